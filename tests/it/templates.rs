//! The shipped templates: each loads, is synced, is valid for the report role, and gives in CSV and
//! XLSX exactly what the server gives for its query.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use calamine::{Data, Reader, Xlsx};
use chrono::{NaiveDate, NaiveDateTime, TimeDelta};
use futures::TryStreamExt;
use registrar::db::definitions::Stored;
use registrar::db::executions::{Execution, Status};
use registrar::report::definition::{Definition, load_templates};
use registrar::report::manifest::Manifest;
use registrar::report::parameters::BoundParameters;
use registrar::service::ServiceError;
use registrar::writer::{Format, Kind};
use serde_json::{Map, Value, json};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::support::TestApp;
use crate::support::app::{submission, templates_dir};

fn templates() -> Vec<Definition> {
    load_templates(&templates_dir()).expect("every shipped template loads")
}

/// A folder with a copy of the shipped templates, to be changed.
fn copied_templates() -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(templates_dir()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

#[tokio::test]
async fn syncing_changes_a_version_only_with_the_content() {
    let app = TestApp::new().await;
    let folder = copied_templates();
    let sync = async || app.services.sync_templates(folder.path()).await.unwrap();
    let first = sync().await;
    assert!(first.len() >= 10, "at least ten templates are shipped");
    assert!(first.iter().all(|s| s.outcome == Stored::Created && s.version == 1), "{first:?}");

    let second = sync().await;
    assert!(second.iter().all(|s| s.outcome == Stored::Unchanged && s.version == 1), "{second:?}");

    let changed = folder.path().join("gpa-ranking.sql");
    let text = fs::read_to_string(&changed).unwrap();
    fs::write(&changed, format!("{text}-- a comment is content too\n")).unwrap();
    for synced in sync().await {
        let expected = match synced.slug.as_str() {
            "gpa-ranking" => (Stored::Updated, 2),
            _ => (Stored::Unchanged, 1),
        };
        assert_eq!((synced.outcome, synced.version), expected, "{}", synced.slug);
    }
    let recorded = "select count(*) from audit_logs where action = 'report.synced'";
    assert_eq!(app.number(recorded).await, first.len() as i64 + 1);
}

#[tokio::test]
async fn a_template_that_is_gone_cannot_be_run_until_it_is_back() {
    let app = TestApp::new().await;
    let folder = copied_templates();
    let (ana, aside) = (app.caller("ana").await, TempDir::new().unwrap());
    app.services.sync_templates(folder.path()).await.unwrap();
    move_template(folder.path(), aside.path());
    app.services.sync_templates(folder.path()).await.unwrap();
    let gone = app.services.show_report(&ana, "course-catalogue").await;
    assert!(matches!(gone, Err(ServiceError::NotFound { what: "report" })), "{gone:?}");
    let submission = submission(json!({}), Format::Csv);
    let refused = app.submit_as(&ana, "course-catalogue", &submission).await;
    assert!(matches!(refused, Err(ServiceError::NotFound { .. })), "{refused:?}");

    move_template(aside.path(), folder.path());
    app.services.sync_templates(folder.path()).await.unwrap();
    let entry = app.services.show_report(&ana, "course-catalogue").await.expect("it is back");
    assert_eq!(entry.version, 1, "its content is what it was");
}

fn move_template(from: &Path, to: &Path) {
    for extension in ["toml", "sql"] {
        let name = format!("course-catalogue.{extension}");
        fs::copy(from.join(&name), to.join(&name)).unwrap();
        fs::remove_file(from.join(&name)).unwrap();
    }
}

#[tokio::test]
async fn a_faulty_template_keeps_all_of_them_out() {
    let app = TestApp::new().await;
    let folder = copied_templates();
    fs::write(folder.path().join("gpa-ranking.sql"), "select 1; select 2").unwrap();
    fs::remove_file(folder.path().join("course-results.sql")).unwrap();
    let error = app.services.sync_templates(folder.path()).await.expect_err("two are faulty");
    let message = error.to_string();
    assert!(message.contains("gpa-ranking.sql") && message.contains("course-results"), "{message}");
    assert_eq!(app.number("select count(*) from report_definitions").await, 0);
}

#[test]
fn every_template_is_the_same_after_it_was_stored() {
    for definition in templates() {
        let slug = definition.slug().clone();
        let read = Definition::from_json(slug, &definition.spec(), definition.sql()).unwrap();
        assert_eq!(read, definition);
        assert_eq!(read.content_digest(), definition.content_digest());
    }
}

#[tokio::test]
async fn every_template_is_valid_for_the_report_role() {
    let app = TestApp::new().await;
    let validated = app.services.validate_templates(&templates_dir()).await.unwrap();
    assert_eq!(validated.len(), templates().len());
    for template in validated {
        assert_eq!(template.problems, [""; 0], "{}", template.slug);
    }
}

#[tokio::test]
async fn validating_finds_what_only_the_server_can_tell() {
    let app = TestApp::new().await;
    let folder = TempDir::new().unwrap();
    let cases = [
        ("secret", "select password from users", "permission denied for table users"),
        ("writing", "insert into roles (name) values ('x') returning id", "SQLSTATE 42601"),
        ("missing", "select 1 from no_such_table", "no_such_table"),
        ("columns", "select 1 as one, 2 as two", "returns the columns one, two"),
        ("nothing", "select from roles", "no columns"),
    ];
    for (slug, query, _) in cases {
        let column = if slug == "columns" { "\n[[column]]\nname = \"one\"\n" } else { "" };
        let toml = format!("title = \"{slug}\"\ndescription = \"x\"\n{column}");
        fs::write(folder.path().join(format!("{slug}.toml")), toml).unwrap();
        fs::write(folder.path().join(format!("{slug}.sql")), query).unwrap();
    }
    let validated = app.services.validate_templates(folder.path()).await.unwrap();
    for (slug, _, problem) in cases {
        let found = &validated.iter().find(|v| v.slug == slug).unwrap().problems;
        assert!(found.len() == 1 && found[0].contains(problem), "{slug}: {found:?}");
    }
}

#[tokio::test]
async fn every_template_gives_in_csv_and_xlsx_what_the_server_gives() {
    let app = TestApp::new().await;
    app.sync_templates().await;
    let mut server = PgConnection::connect(app.database_url()).await.unwrap();
    let last_sample_row = app.number("select max(id) from audit_logs").await;
    let worker = app.start_worker().await;
    for definition in templates() {
        let mut rows = 0;
        for parameters in parameter_sets(&definition) {
            for format in [Format::Csv, Format::Xlsx] {
                let what = format!("{} as {format} with {parameters}", definition.slug());
                let execution = run(&app, &definition, parameters.clone(), format, &what).await;
                let bytes = app.result(execution.id).await;
                rows += execution.row_count.unwrap();
                let manifest = app.manifest(execution.id).await;
                let held = manifest.sheet_list.len();
                assert_eq!(held + manifest.sheets_left_out.len(), definition.sheets().count());
                let counted: u64 = manifest.sheet_list.iter().map(|sheet| sheet.rows).sum();
                assert_eq!(manifest.row_count, counted, "{what}");
                for (index, view) in definition.sheets().enumerate().take(held) {
                    let query = definition.statement_of(view.query);
                    let bound = bound_to(&definition, &execution);
                    let values = bound.values_of(view.query).map(|value| literal(&value.to_json()));
                    let query = with_literals(query, values);
                    let zone = definition.time_zone().name();
                    let expected =
                        copy(&mut server, zone, &query, &execution, last_sample_row).await;
                    if format == Format::Csv {
                        assert_same_text(&bytes, &expected, &what);
                    } else {
                        let has_totals = view.columns.iter().any(|column| column.total.is_some());
                        assert_same_cells(&bytes, &expected, (&manifest, index), has_totals, &what);
                    }
                }
            }
        }
        assert!(rows > 0, "{}: an empty result compares nothing", definition.slug());
    }
    worker.stop().await;
}

/// As few parameters as can be given, and every one that has an example.
fn parameter_sets(definition: &Definition) -> Vec<Value> {
    let examples = |of_required_only: bool| {
        let parameters = definition.parameters().iter();
        let given = parameters.filter(|p| p.is_required() || !of_required_only);
        let given = given.filter_map(|p| Some((p.name().to_owned(), p.example()?.clone())));
        Value::Object(given.collect::<Map<_, _>>())
    };
    let mut sets = vec![examples(true), examples(false)];
    sets.dedup();
    sets
}

async fn run(
    app: &TestApp,
    definition: &Definition,
    parameters: Value,
    format: Format,
    what: &str,
) -> Execution {
    let submission = submission(parameters, format);
    let slug = definition.slug().as_str();
    let submitted = app.submit_as(&app.operator(), slug, &submission).await;
    let id = submitted.unwrap_or_else(|error| panic!("{what}: {error:?}")).execution.id;
    let execution = app.wait_until_ended(id).await;
    assert_eq!(execution.status, Status::Completed, "{what}: {execution:#?}");
    execution
}

fn bound_to(definition: &Definition, execution: &Execution) -> BoundParameters {
    let stored = execution.parameters.clone().unwrap();
    BoundParameters::from_canonical(definition, &stored).unwrap()
}

fn with_literals(mut query: String, literals: impl Iterator<Item = String>) -> String {
    for (literal, number) in literals.zip(1..) {
        let placeholder = format!("(${number}::");
        assert!(query.contains(&placeholder), "{query}");
        query = query.replace(&placeholder, &format!("({literal}::"));
    }
    query
}

/// What `\copy (…) to … csv header` of the same query gives.
async fn copy(
    server: &mut PgConnection,
    zone: &str,
    query: &str,
    execution: &Execution,
    last_sample_row: i64,
) -> Vec<u8> {
    let mut tx = server.begin().await.unwrap();
    sqlx::query("select set_config('TimeZone', $1, true), set_config('DateStyle', 'ISO', true)")
        .bind(zone)
        .execute(&mut *tx)
        .await
        .unwrap();
    // The service writes audit rows while it runs; the report saw none of the later ones.
    sqlx::query("delete from audit_logs where id > $1 and created_at > $2")
        .bind(last_sample_row)
        .bind(execution.snapshot_at)
        .execute(&mut *tx)
        .await
        .unwrap();
    let statement = format!("copy (\n{query}\n) to stdout (format csv, header)");
    let blocks = tx.copy_out_raw(&statement).await.unwrap();
    let bytes = blocks
        .try_fold(Vec::new(), |mut all, block| async move {
            all.extend_from_slice(&block);
            Ok(all)
        })
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    bytes
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(literal).collect();
            format!("array[{}]", items.join(", "))
        }
        Value::Object(_) => unreachable!("no parameter is an object"),
    }
}

fn assert_same_text(bytes: &[u8], expected: &[u8], what: &str) {
    if bytes != expected {
        let (text, expected) = (String::from_utf8_lossy(bytes), String::from_utf8_lossy(expected));
        let different = text.split('\n').zip(expected.split('\n')).find(|(a, b)| a != b);
        panic!("{what}: (file, COPY) = {different:#?}");
    }
}

/// Compares a sheet, as an independent reader sees it, with the server's CSV.
fn assert_same_cells(
    bytes: &[u8],
    expected: &[u8],
    (manifest, index): (&Manifest, usize),
    has_totals: bool,
    what: &str,
) {
    let mut workbook = Xlsx::new(Cursor::new(bytes)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let sheets = workbook.worksheets();
    assert_eq!(sheets.len(), manifest.sheet_list.len(), "{what}");
    let (name, sheet) = &sheets[index];
    let listed = &manifest.sheet_list[index];
    assert_eq!(*name, listed.name, "{what}");
    let header = listed.header_row.unwrap() as usize - 1;
    let cell = |row: usize, column: usize| {
        let position = ((row + header) as u32, column as u32);
        sheet.get_value(position).unwrap_or(&Data::Empty)
    };
    for (index, column) in listed.columns.iter().enumerate() {
        assert_eq!(cell(0, index), &Data::String(column.label.clone()), "{what}: header");
    }
    let mut reader = csv::Reader::from_reader(expected);
    let mut rows = 0;
    for (row, record) in reader.records().enumerate() {
        let record = record.unwrap();
        for (index, column) in listed.columns.iter().enumerate() {
            let (found, text) = (cell(row + 1, index), &record[index]);
            let fits = fits(found, text, column.kind);
            assert!(fits, "{what}: {} of row {row}: {found:?} for {text:?}", column.name);
        }
        rows += 1;
    }
    assert_eq!(listed.rows, rows, "{what}");
    let height = sheet.end().map_or(0, |(row, _)| u64::from(row) + 1);
    let most = header as u64 + 1 + rows + u64::from(has_totals);
    assert!(height <= most, "{what}: no rows beyond those of the result and its totals");
}

/// Whether a cell holds the value, in the cell's own type, that COPY shows as `text`.
fn fits(cell: &Data, text: &str, kind: Kind) -> bool {
    if text.is_empty() {
        // COPY's CSV tells NULL from an empty text, this reader of it does not.
        return matches!(cell, Data::Empty)
            || matches!(cell, Data::String(cell) if cell.is_empty());
    }
    match kind {
        Kind::Bool => *cell == Data::Bool(text == "t"),
        Kind::Int | Kind::Float | Kind::Numeric => match cell {
            Data::Int(number) => text.parse() == Ok(*number as f64),
            Data::Float(number) => text.parse() == Ok(*number),
            // More digits than a spreadsheet keeps, NaN, infinities.
            Data::String(cell) => cell == text && text.parse::<f64>().is_ok(),
            _ => false,
        },
        Kind::Date => {
            let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").unwrap();
            moment(cell) == day.and_hms_opt(0, 0, 0)
        }
        Kind::Timestamp | Kind::TimestampTz => {
            // Without the offset, which is the zone's: 2026-06-30 09:00:00.5+02.
            let local = text.rfind('+').map_or(text, |offset| &text[..offset]);
            let expected = NaiveDateTime::parse_from_str(local, "%Y-%m-%d %H:%M:%S%.f").unwrap();
            // A spreadsheet's moments are binary fractions of days.
            moment(cell).is_some_and(|m| (m - expected).abs() <= TimeDelta::milliseconds(1))
        }
        Kind::Time => matches!(cell, Data::DateTime(_)),
        Kind::Text | Kind::Json | Kind::Bytes | Kind::Uuid => {
            matches!(cell, Data::String(cell) if *cell == shown(text))
        }
    }
}

fn moment(cell: &Data) -> Option<NaiveDateTime> {
    match cell {
        Data::DateTime(moment) => moment.as_datetime(),
        _ => None,
    }
}

/// What an Excel cell shows of a text: at most 32,767 UTF-16 units of it.
fn shown(text: &str) -> String {
    let mut units = 0;
    text.chars()
        .take_while(|character| {
            units += character.len_utf16();
            units <= 32_767
        })
        .collect()
}
