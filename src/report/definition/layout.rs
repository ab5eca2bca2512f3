//! What a definition says of the look of its workbook: its sheets, and for each of them title,
//! header, rules by colour and charts.
//!
//! Columns are named here, as the queries call them. Whether they are there, and of a kind that
//! fits, only the server can tell: see [`crate::report::layout`].

use serde::{Deserialize, Serialize};

use super::check::Faults;
use super::title::TitleLine;
use super::{ColumnSpec, Definition};
use crate::report::sql::NamedSql;
use crate::writer::xlsx::layout::{CellStyle, Chart, ChartKind, Conditional, Operand, Operator};

/// Sheets beside the main one.
const MAX_SHEETS: usize = 20;
/// What Excel allows for the name of a sheet, in UTF-16 units.
const MAX_SHEET_NAME: usize = 31;
const MAX_TITLE_LINES: usize = 10;
const MAX_TITLE_LINE_LENGTH: usize = 500;
const MAX_WORD_LENGTH: usize = 100;
const MAX_CONDITIONALS: usize = 50;
const MAX_CHARTS: usize = 8;
const MAX_SERIES: usize = 8;
const MAX_FROZEN_COLUMNS: u16 = 50;
/// Size of a chart, in pixels.
const CHART_PIXELS: std::ops::RangeInclusive<u32> = 100..=4_000;

/// How a sheet looks, apart from its columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LayoutSpec {
    /// Lines above the header.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub title: Vec<TitleLine>,
    /// Style of the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<CellStyle>,
    /// Whether the header stays in view; it does if this is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_header: Option<bool>,
    /// How many columns stay in view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_columns: Option<u16>,
    /// Whether the header has filters; it has if this is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autofilter: Option<bool>,
    /// The word before the totals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals_label: Option<String>,
}

impl LayoutSpec {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A sheet beside the main one, in TOML and JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SheetDocument {
    name: String,
    query: String,
    #[serde(default, skip_serializing_if = "LayoutSpec::is_default")]
    layout: LayoutSpec,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    column: Vec<ColumnSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    conditional: Vec<Conditional<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    chart: Vec<Chart<String>>,
}

/// A sheet beside the main one: the rows of a query of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct SheetSpec {
    name: String,
    sql: String,
    query: NamedSql,
    columns: Vec<ColumnSpec>,
    look: Look,
}

/// How a sheet looks.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Look {
    pub(super) layout: LayoutSpec,
    pub(super) conditionals: Vec<Conditional<String>>,
    pub(super) charts: Vec<Chart<String>>,
}

/// A sheet of a definition, the main one or another.
#[derive(Debug, Clone, Copy)]
pub struct SheetView<'a> {
    /// Its name; `None` for the main sheet.
    pub further: Option<&'a str>,
    /// The name in the workbook.
    pub name: &'a str,
    /// Its query.
    pub query: &'a NamedSql,
    /// Columns that are described.
    pub columns: &'a [ColumnSpec],
    /// Title, header and panes.
    pub layout: &'a LayoutSpec,
    /// Rules by colour.
    pub conditionals: &'a [Conditional<String>],
    /// Charts.
    pub charts: &'a [Chart<String>],
}

impl SheetSpec {
    pub(super) fn document(&self) -> SheetDocument {
        let Self { name, sql, query: _, columns, look } = self;
        let Look { layout, conditionals, charts } = look;
        SheetDocument {
            name: name.clone(),
            query: sql.clone(),
            layout: layout.clone(),
            column: columns.clone(),
            conditional: conditionals.clone(),
            chart: charts.clone(),
        }
    }
}

impl Definition {
    /// The name of the main sheet.
    pub fn main_sheet_name(&self) -> &str {
        self.sheet_name.as_deref().unwrap_or(&self.title)
    }

    /// The sheets of its workbook, the main one first: in every other format that one's rows are
    /// the file.
    pub fn sheets(&self) -> impl Iterator<Item = SheetView<'_>> {
        let main = SheetView {
            further: None,
            name: self.main_sheet_name(),
            query: &self.query,
            columns: &self.columns,
            layout: &self.look.layout,
            conditionals: &self.look.conditionals,
            charts: &self.look.charts,
        };
        let further = self.more_sheets.iter().map(|sheet| SheetView {
            further: Some(&sheet.name),
            name: &sheet.name,
            query: &sheet.query,
            columns: &sheet.columns,
            layout: &sheet.look.layout,
            conditionals: &sheet.look.conditionals,
            charts: &sheet.look.charts,
        });
        std::iter::once(main).chain(further)
    }
}

/// The main sheet's name and look, and the other sheets, checked.
pub(super) fn main_sheet(name: Option<&str>, look: &Look, faults: &mut Faults<'_>) {
    if let Some(name) = name {
        check_sheet_name("sheet_name", name, faults);
    }
    check_look("", look, faults);
}

/// The other sheets. Of each, its query where that can be read.
pub(super) fn more_sheets(
    documents: Vec<SheetDocument>,
    main_name: Option<&str>,
    faults: &mut Faults<'_>,
) -> Vec<SheetSpec> {
    if documents.len() > MAX_SHEETS {
        faults.spec("sheet", format!("must be declared at most {MAX_SHEETS} times"));
        return Vec::new();
    }
    let mut names: Vec<String> = main_name.iter().map(|name| name.to_lowercase()).collect();
    let mut sheets = Vec::with_capacity(documents.len());
    for (index, document) in documents.into_iter().enumerate() {
        let SheetDocument { name, query: sql, layout, column, conditional, chart } = document;
        check_sheet_name(&format!("sheet number {} name", index + 1), &name, faults);
        let prefix = format!("sheet `{name}` ");
        if names.contains(&name.to_lowercase()) {
            faults.spec(format!("{prefix}name"), "must not be there twice, whatever the case");
        }
        names.push(name.to_lowercase());
        super::check::check_columns(&prefix, &column, faults);
        let look = Look { layout, conditionals: conditional, charts: chart };
        check_look(&prefix, &look, faults);
        match NamedSql::parse(&sql) {
            Ok(query) => sheets.push(SheetSpec { name, sql, query, columns: column, look }),
            Err(error) => {
                let place = error.position().map_or_else(String::new, |position| {
                    format!(" at line {}, character {}", position.line, position.column)
                });
                faults.spec(format!("{prefix}query"), format!("{}{place}", error.kind()));
            }
        }
    }
    sheets
}

/// The queries of further sheets use names that are declared.
pub(super) fn check_names(sheets: &[SheetSpec], declared: &[String], faults: &mut Faults<'_>) {
    for SheetSpec { name, query, .. } in sheets {
        for used in query.names().filter(|used| !declared.iter().any(|known| known == used)) {
            faults.spec(
                format!("sheet `{name}` query"),
                format!("`:{used}` must be declared as a parameter"),
            );
        }
    }
}

impl SheetSpec {
    pub(super) fn uses(&self, parameter: &str) -> bool {
        self.query.first_use(parameter).is_some()
    }
}

fn check_sheet_name(key: &str, name: &str, faults: &mut Faults<'_>) {
    let is_bad = |c: char| matches!(c, '[' | ']' | ':' | '*' | '?' | '/' | '\\') || c.is_control();
    let edge = |c: char| c == '\'' || c.is_whitespace();
    if name.is_empty()
        || name.encode_utf16().count() > MAX_SHEET_NAME
        || name.contains(is_bad)
        || name.starts_with(edge)
        || name.ends_with(edge)
        || name.eq_ignore_ascii_case("history")
    {
        faults.spec(
            key,
            format!(
                "must be 1 to {MAX_SHEET_NAME} characters without []:*?/\\, not `History`, and not \
                 begin or end with an apostrophe or a space"
            ),
        );
    }
}

fn check_look(prefix: &str, look: &Look, faults: &mut Faults<'_>) {
    let Look { layout, conditionals, charts } = look;
    let LayoutSpec { title, freeze_columns, totals_label, .. } = layout;
    if title.len() > MAX_TITLE_LINES {
        faults.spec(format!("{prefix}layout title"), format!("must be at most {MAX_TITLE_LINES}"));
    }
    for (index, line) in title.iter().enumerate() {
        let key = format!("{prefix}layout title item {index}");
        faults.text(key, &line.to_string(), MAX_TITLE_LINE_LENGTH);
    }
    if freeze_columns.is_some_and(|columns| columns > MAX_FROZEN_COLUMNS) {
        let key = format!("{prefix}layout freeze_columns");
        faults.spec(key, format!("must be at most {MAX_FROZEN_COLUMNS}"));
    }
    if let Some(label) = totals_label {
        faults.text(format!("{prefix}layout totals_label"), label, MAX_WORD_LENGTH);
    }
    if conditionals.len() > MAX_CONDITIONALS {
        let expected = format!("must be declared at most {MAX_CONDITIONALS} times");
        faults.spec(format!("{prefix}conditional"), expected);
    }
    for (index, rule) in conditionals.iter().enumerate() {
        check_conditional(&format!("{prefix}conditional number {} ", index + 1), rule, faults);
    }
    if charts.len() > MAX_CHARTS {
        faults
            .spec(format!("{prefix}chart"), format!("must be declared at most {MAX_CHARTS} times"));
    }
    for (index, chart) in charts.iter().enumerate() {
        check_chart(&format!("{prefix}chart number {} ", index + 1), chart, faults);
    }
}

fn check_conditional(key: &str, rule: &Conditional<String>, faults: &mut Faults<'_>) {
    let Conditional::Cell { column: _, operator, value, and, style: _ } = rule else { return };
    if operator.takes_two() != and.is_some() {
        let expected = match operator {
            Operator::Between | Operator::NotBetween => "must be given: the upper end",
            Operator::Equal
            | Operator::NotEqual
            | Operator::Greater
            | Operator::GreaterOrEqual
            | Operator::Less
            | Operator::LessOrEqual => "must be left out: only between and not_between have two",
        };
        faults.spec(format!("{key}and"), expected);
    }
    for (name, operand) in [("value", Some(value)), ("and", and.as_ref())] {
        match operand {
            Some(Operand::Number(number)) if !number.is_finite() => {
                faults.spec(format!("{key}{name}"), "must be a number or a text");
            }
            Some(Operand::Text(text)) => {
                faults.text(format!("{key}{name}"), text, MAX_WORD_LENGTH);
                if text.contains('"') {
                    faults.spec(format!("{key}{name}"), "must not hold a double quote");
                }
            }
            Some(Operand::Number(_)) | None => {}
        }
    }
}

fn check_chart(key: &str, chart: &Chart<String>, faults: &mut Faults<'_>) {
    let Chart { kind, title, categories: _, values, stacked, x_title, y_title, width, height } =
        chart;
    let texts = [("title", title), ("x_title", x_title), ("y_title", y_title)];
    for (name, text) in texts {
        if let Some(text) = text {
            faults.text(format!("{key}{name}"), text, MAX_WORD_LENGTH);
            if text.starts_with('=') {
                faults.spec(format!("{key}{name}"), "must not begin with `=`");
            }
        }
    }
    let most = if *kind == ChartKind::Pie { 1 } else { MAX_SERIES };
    if values.is_empty() || values.len() > most {
        faults.spec(
            format!("{key}values"),
            match most {
                1 => "must be one column: a pie has one series".to_owned(),
                most => format!("must be 1 to {most} columns"),
            },
        );
    }
    if *kind == ChartKind::Pie {
        let given =
            [("stacked", *stacked), ("x_title", x_title.is_some()), ("y_title", y_title.is_some())];
        for (name, _) in given.into_iter().filter(|(_, given)| *given) {
            faults.spec(format!("{key}{name}"), "must be left out: a pie has none");
        }
    }
    for (name, pixels) in [("width", width), ("height", height)] {
        if !CHART_PIXELS.contains(pixels) {
            let (least, most) = (CHART_PIXELS.start(), CHART_PIXELS.end());
            faults.spec(format!("{key}{name}"), format!("must be {least} to {most} pixels"));
        }
    }
}
