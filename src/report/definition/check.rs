//! The rules that make a [`Definition`] of a document and its SQL.

use std::fmt::Display;

use chrono_tz::Tz;

use super::document::Document;
use super::error::{DefinitionError, DefinitionFault};
use super::layout::{self, Look, SheetSpec};
use super::{ColumnSpec, Definition, Slug};
use crate::report::parameters::{MAX_PARAMETERS, Parameter, ParameterDocument, check_text};
use crate::report::sql::{NamedSql, Position};

/// Longest texts, in characters. The first is `report_definitions.name`.
const MAX_TITLE_LENGTH: usize = 255;
const MAX_DESCRIPTION_LENGTH: usize = 5_000;
const MAX_PERMISSION_LENGTH: usize = 100;
const MAX_TAG_LENGTH: usize = 50;
const MAX_COLUMN_NAME_LENGTH: usize = 63;
const MAX_LABEL_LENGTH: usize = 255;

const MAX_TAGS: usize = 20;

/// PostgreSQL's limit for the columns of a query.
const MAX_COLUMNS: usize = 1_664;

/// Excel's limit for the width of a column, in characters.
const MAX_WIDTH: f64 = 255.0;

/// Longest number format.
const MAX_NUMBER_FORMAT_LENGTH: usize = 100;

/// The faults found so far.
pub(super) struct Faults<'a> {
    spec_file: &'a str,
    sql_file: &'a str,
    faults: Vec<DefinitionFault>,
}

impl Faults<'_> {
    pub(super) fn spec(&mut self, key: impl Into<String>, expected: impl Into<String>) {
        self.faults.push(DefinitionFault {
            file: self.spec_file.to_owned(),
            position: None,
            key: key.into(),
            expected: expected.into(),
        });
    }

    fn sql(&mut self, position: Option<Position>, expected: impl Into<String>) {
        self.faults.push(DefinitionFault {
            file: self.sql_file.to_owned(),
            position,
            key: String::new(),
            expected: expected.into(),
        });
    }

    pub(super) fn text(&mut self, key: impl Into<String>, text: &str, max_length: usize) {
        if let Err(expected) = check_text(text, max_length) {
            self.spec(key, expected);
        }
    }
}

/// Checks everything and reports all of it.
pub(super) fn definition(
    slug: Slug,
    document: Document,
    sql: &str,
    spec_file: &str,
    sql_file: &str,
) -> Result<Definition, DefinitionError> {
    let faults = &mut Faults { spec_file, sql_file, faults: Vec::new() };
    check_head(&document, faults);
    check_columns("", &document.column, faults);
    let time_zone: Option<Tz> = document.time_zone.parse().ok();
    if time_zone.is_none() {
        faults.spec("time_zone", "must be a name of the IANA database like Africa/Gaborone");
    }
    let declared: Vec<String> = document.parameter.iter().map(|p| p.name.clone()).collect();
    let parameters = parameters(document.parameter, faults);
    let look = Look {
        layout: document.layout,
        conditionals: document.conditional,
        charts: document.chart,
    };
    layout::main_sheet(document.sheet_name.as_deref(), &look, faults);
    let sheets = layout::more_sheets(document.sheet, document.sheet_name.as_deref(), faults);
    layout::check_names(&sheets, &declared, faults);
    let query = query(sql, faults);
    if let Some(query) = &query {
        check_names(query, &sheets, &declared, faults);
    }
    let (Some(time_zone), Some(query), []) = (time_zone, query, faults.faults.as_slice()) else {
        return Err(DefinitionError::new(std::mem::take(&mut faults.faults)));
    };
    Ok(Definition {
        slug,
        title: document.title,
        description: document.description,
        permission: document.permission,
        time_zone,
        tags: document.tags,
        sql: sql.to_owned(),
        query,
        parameters,
        columns: document.column,
        limits: document.limits,
        expires_after_days: document.result.expires_after_days,
        split_by: document.split_by,
        sheet_name: document.sheet_name,
        look,
        more_sheets: sheets,
    })
}

fn check_head(document: &Document, faults: &mut Faults<'_>) {
    faults.text("title", &document.title, MAX_TITLE_LENGTH);
    if !document.description.is_empty() {
        faults.text("description", &document.description, MAX_DESCRIPTION_LENGTH);
    }
    if let Some(permission) = &document.permission {
        faults.text("permission", permission, MAX_PERMISSION_LENGTH);
        if permission.contains(char::is_whitespace) {
            faults.spec("permission", "must be a codename without spaces");
        }
    }
    if document.tags.len() > MAX_TAGS {
        faults.spec("tags", format!("must be at most {MAX_TAGS}"));
    }
    for (index, tag) in document.tags.iter().enumerate() {
        faults.text(format!("tags item {index}"), tag, MAX_TAG_LENGTH);
        if document.tags[..index].contains(tag) {
            faults.spec(format!("tags item {index}"), "must not be there twice");
        }
    }
    if let Some(column) = &document.split_by {
        faults.text("split_by", column, MAX_COLUMN_NAME_LENGTH);
    }
}

/// The columns of a sheet, whose keys begin with `prefix`.
pub(super) fn check_columns(prefix: &str, columns: &[ColumnSpec], faults: &mut Faults<'_>) {
    if columns.len() > MAX_COLUMNS {
        faults.spec(
            format!("{prefix}column"),
            format!("must be declared at most {MAX_COLUMNS} times"),
        );
    }
    for (index, column) in columns.iter().enumerate() {
        let ColumnSpec { name, label, format, number_format, width, style: _, total: _ } = column;
        let key = |key: &dyn Display| format!("{prefix}column `{name}` {key}");
        let number = format!("{prefix}column number {} name", index + 1);
        faults.text(number, name, MAX_COLUMN_NAME_LENGTH);
        if let Some(number_format) = number_format {
            faults.text(key(&"number_format"), number_format, MAX_NUMBER_FORMAT_LENGTH);
            if format.is_some() {
                faults.spec(key(&"number_format"), "must be left out where there is a `format`");
            }
        }
        if columns[..index].iter().any(|earlier| earlier.name == *name) {
            faults.spec(key(&"name"), "must not be declared twice");
        }
        if let Some(label) = label {
            faults.text(key(&"label"), label, MAX_LABEL_LENGTH);
        }
        if width.is_some_and(|width| !(width > 0.0 && width <= MAX_WIDTH)) {
            faults.spec(key(&"width"), format!("must be above 0 and at most {MAX_WIDTH}"));
        }
    }
}

fn parameters(documents: Vec<ParameterDocument>, faults: &mut Faults<'_>) -> Vec<Parameter> {
    if documents.len() > MAX_PARAMETERS {
        faults.spec("parameter", format!("must be declared at most {MAX_PARAMETERS} times"));
        return Vec::new();
    }
    let mut parameters: Vec<Parameter> = Vec::with_capacity(documents.len());
    let mut names: Vec<String> = Vec::with_capacity(documents.len());
    for document in documents {
        let name = document.name.clone();
        if names.contains(&name) {
            faults.spec(format!("parameter `{name}` name"), "must not be declared twice");
        }
        match Parameter::declare(document) {
            Ok(parameter) => parameters.push(parameter),
            Err(declared) => {
                for fault in declared {
                    faults.spec(format!("parameter `{name}` {}", fault.key), fault.expected);
                }
            }
        }
        names.push(name);
    }
    parameters
}

fn query(sql: &str, faults: &mut Faults<'_>) -> Option<NamedSql> {
    match NamedSql::parse(sql) {
        Ok(query) => Some(query),
        Err(error) => {
            faults.sql(error.position(), error.kind().to_string());
            None
        }
    }
}

/// Every name in the SQL is declared, and every declared name is used, there or in another sheet.
fn check_names(
    query: &NamedSql,
    sheets: &[SheetSpec],
    declared: &[String],
    faults: &mut Faults<'_>,
) {
    let is_used =
        |name: &str| query.first_use(name).is_some() || sheets.iter().any(|s| s.uses(name));
    for name in query.names().filter(|name| !declared.iter().any(|known| known == name)) {
        faults.sql(query.first_use(name), format!("`:{name}` must be declared as a parameter"));
    }
    for name in declared.iter().filter(|name| !is_used(name)) {
        faults.spec(format!("parameter `{name}`"), format!("must be used in the SQL as `:{name}`"));
    }
}
