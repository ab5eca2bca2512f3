//! What a definition says of its sheets, brought together with what the server says of their
//! columns: the layout of a workbook, or what is wrong with it.

use std::borrow::Cow;

use super::definition::{Definition, Place, SheetView};
use super::parameters::BoundParameters;
use super::source::{Snapshot, SourceColumn};
use crate::writer::xlsx::layout::{Chart, Total};
use crate::writer::{Column, Kind, Sheet, SheetLayout};

/// A list of parameters shows at most this many items.
const MAX_ITEMS_SHOWN: usize = 20;

/// What a title can say of a run beside its data. What is not known is shown as a dash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunLabel {
    /// The execution's number.
    pub execution: Option<i64>,
    /// The name of who asked for it.
    pub owner: Option<String>,
}

/// The file's columns: as the definition describes them, otherwise by name.
pub(super) fn file_columns(view: &SheetView<'_>, source: &[SourceColumn]) -> Vec<Column> {
    source
        .iter()
        .map(|column| {
            let described = view.columns.iter().find(|spec| spec.name == column.name);
            Column {
                name: column.name.clone(),
                label: described
                    .and_then(|spec| spec.label.clone())
                    .unwrap_or_else(|| column.name.clone()),
                kind: column.decoder.kind(),
                precision: column.precision,
                number_format: described.and_then(|spec| {
                    let ours = spec.format.map(|format| format.number_format().to_owned());
                    ours.or_else(|| spec.number_format.clone())
                }),
                width: described.and_then(|spec| spec.width),
            }
        })
        .collect()
}

/// A sheet of a run.
///
/// # Errors
/// What the layout asks for and the columns cannot give, each with its key.
pub(super) fn sheet(
    view: &SheetView<'_>,
    source: &[SourceColumn],
    title: Vec<String>,
) -> Result<Sheet, Vec<String>> {
    let mut problems = Problems { prefix: prefix(view), source, found: Vec::new() };
    let spec = view.layout;
    let mut layout = SheetLayout {
        title,
        header: spec.header.clone().unwrap_or_default(),
        freeze_columns: spec.freeze_columns.unwrap_or(0),
        ..SheetLayout::default()
    };
    layout.freeze_header = spec.freeze_header.unwrap_or(layout.freeze_header);
    layout.autofilter = spec.autofilter.unwrap_or(layout.autofilter);
    if let Some(label) = &spec.totals_label {
        layout.totals_label.clone_from(label);
    }
    for column in view.columns {
        if let Some(style) = &column.style
            && let Some(index) = problems.column(&format!("column `{}`", column.name), &column.name)
        {
            layout.styles.push((index, style.clone()));
        }
        if let Some(total) = column.total
            && let Some(index) = problems.total(&column.name, total)
        {
            layout.totals.push((index, total));
        }
    }
    for (rule, number) in view.conditionals.iter().zip(1..) {
        let key = format!("conditional number {number} column");
        if let Some(index) = problems.column(&key, rule.column()) {
            layout.conditionals.push(rule.clone().with_column(index));
        }
    }
    for (chart, number) in view.charts.iter().zip(1..) {
        if let Some(chart) = problems.chart(chart, number) {
            layout.charts.push(chart);
        }
    }
    match problems.found.as_slice() {
        [] => Ok(Sheet { name: view.name.to_owned(), columns: file_columns(view, source), layout }),
        [..] => Err(problems.found),
    }
}

/// What is wrong with a sheet's description, told by the columns of its query.
pub(super) fn problems(view: &SheetView<'_>, source: &[SourceColumn]) -> Vec<String> {
    let mut found = sheet(view, source, Vec::new()).err().unwrap_or_default();
    let described: Vec<_> = view.columns.iter().map(|column| column.name.as_str()).collect();
    let names: Vec<_> = source.iter().map(|column| column.name.as_str()).collect();
    if !described.is_empty() && described != names {
        found.push(format!(
            "{}the query returns the columns {}, but the template describes {}",
            prefix(view),
            names.join(", "),
            described.join(", ")
        ));
    }
    found
}

/// The title of a sheet.
pub(super) fn title(
    view: &SheetView<'_>,
    definition: &Definition,
    parameters: &BoundParameters,
    snapshot: &Snapshot,
    label: &RunLabel,
) -> Vec<String> {
    let zone = definition.time_zone();
    let value = |place: Place| -> Cow<'_, str> {
        let unknown = || Cow::Borrowed("–");
        match place {
            Place::Title => definition.title().into(),
            Place::Description => definition.description().into(),
            Place::Parameters => parameters_text(definition, parameters).into(),
            Place::Snapshot => {
                let local = snapshot.taken_at.with_timezone(&zone);
                local.format("%Y-%m-%d %H:%M:%S %:z").to_string().into()
            }
            Place::TimeZone => zone.name().into(),
            Place::Owner => label.owner.as_deref().map_or_else(unknown, Cow::Borrowed),
            Place::Execution => {
                label.execution.map_or_else(unknown, |number| number.to_string().into())
            }
        }
    };
    view.layout.title.iter().map(|line| line.fill(value)).collect()
}

/// `Since: 2024-01-31; Codes: ABC, DEF`: the parameters that have a value, as they were declared.
fn parameters_text(definition: &Definition, parameters: &BoundParameters) -> String {
    let given = definition.parameters().iter().filter_map(|parameter| {
        let text = match parameters.get(parameter.name())?.to_json() {
            serde_json::Value::Null => return None,
            serde_json::Value::Array(items) => {
                let shown: Vec<_> = items.iter().take(MAX_ITEMS_SHOWN).map(plain).collect();
                let more = items.len().saturating_sub(MAX_ITEMS_SHOWN);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("{}{more}", shown.join(", "))
            }
            value => plain(&value),
        };
        Some(format!("{}: {text}", parameter.label()))
    });
    let given: Vec<_> = given.collect();
    if given.is_empty() { "none".to_owned() } else { given.join("; ") }
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn prefix(view: &SheetView<'_>) -> String {
    view.further.map_or_else(String::new, |name| format!("sheet `{name}` "))
}

struct Problems<'a> {
    prefix: String,
    source: &'a [SourceColumn],
    found: Vec<String>,
}

impl Problems<'_> {
    fn column(&mut self, key: &str, name: &str) -> Option<usize> {
        let found = self.source.iter().position(|column| column.name == name);
        if found.is_none() {
            self.push(key, &format!("names `{name}`, which the query does not return"));
        }
        found
    }

    fn total(&mut self, name: &str, total: Total) -> Option<usize> {
        let key = format!("column `{name}` total");
        let index = self.column(&key, name)?;
        if total.fits(self.source[index].decoder.kind()) {
            return Some(index);
        }
        let wanted = match total {
            Total::Sum | Total::Avg => "a number",
            Total::Min | Total::Max => "a number, a date or a time",
            Total::Count => "any type",
        };
        let is = &self.source[index].type_name;
        self.push(&key, &format!("needs a column of {wanted}, `{name}` is {is}"));
        None
    }

    fn chart(&mut self, chart: &Chart<String>, number: usize) -> Option<Chart<usize>> {
        let key = format!("chart number {number}");
        let categories = self.column(&format!("{key} categories"), &chart.categories);
        let mut values = Vec::with_capacity(chart.values.len());
        for name in &chart.values {
            let Some(index) = self.column(&format!("{key} values"), name) else { continue };
            match self.source[index].decoder.kind() {
                Kind::Int | Kind::Float | Kind::Numeric => values.push(index),
                _ => {
                    let is = &self.source[index].type_name;
                    let needs = format!("need columns of numbers, `{name}` is {is}");
                    self.push(&format!("{key} values"), &needs);
                }
            }
        }
        let Chart {
            kind,
            title,
            categories: _,
            values: _,
            stacked,
            x_title,
            y_title,
            width,
            height,
        } = chart.clone();
        let categories = categories?;
        Some(Chart { kind, title, categories, values, stacked, x_title, y_title, width, height })
    }

    fn push(&mut self, key: &str, what: &str) {
        self.found.push(format!("{}{key} {what}", self.prefix));
    }
}
