//! Every shipped report, through the real worker: the bytes are those of PostgreSQL's own CSV, and
//! the workbook holds the same values with their types.

use std::io::Cursor;

use bytes::Bytes;
use calamine::{Data, DataType, Reader, Xlsx};
use chrono::{NaiveDate, NaiveDateTime};
use futures::TryStreamExt;
use registrar::db::definitions::Stored;
use registrar::db::executions::Status;
use registrar::report::definition::{Definition, load_templates};
use registrar::report::manifest::Manifest;
use registrar::report::parameters::BoundParameters;
use registrar::writer::{Adjustment, Format, Kind};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;

use crate::support::TestApp;
use crate::support::app::{submission, templates_dir};
use crate::support::database::sql;

/// Parameters that every template can be run with: the examples of what it requires, and for the
/// audit log a time in which this test itself writes nothing.
fn parameters(definition: &Definition) -> Value {
    if definition.slug().as_str() == "audit-log-extract" {
        return json!({ "from_date": "2026-01-01", "to_date": "2026-06-30" });
    }
    let required = definition.parameters().iter().filter(|parameter| parameter.is_required());
    required
        .map(|parameter| {
            let example = parameter.example().expect("a required parameter has an example");
            (parameter.name().to_owned(), example.clone())
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[test]
fn every_template_survives_the_database_s_json() {
    for definition in load_templates(&templates_dir()).unwrap() {
        let slug = definition.slug().clone();
        let read = Definition::from_json(slug, &definition.spec(), definition.sql()).unwrap();
        assert_eq!(read.content_digest(), definition.content_digest());
    }
}

#[tokio::test]
async fn every_template_is_valid_for_the_report_role() {
    let app = TestApp::new().await;
    let all = app.services.validate_templates(&templates_dir()).await.unwrap();
    assert!(all.len() >= 11, "only {} templates", all.len());
    for template in all {
        assert!(template.problems.is_empty(), "{}: {:?}", template.slug, template.problems);
    }
}

#[tokio::test]
async fn every_template_writes_the_csv_that_copy_writes() {
    let app = TestApp::new().await;
    app.sync_templates().await;
    let worker = app.start_worker().await;
    for definition in load_templates(&templates_dir()).unwrap() {
        let id = app.submit(definition.slug().as_str(), parameters(&definition)).await;
        let execution = app.wait_until(id, Status::Completed).await;
        let stored = execution.parameters.unwrap();
        let bound = BoundParameters::from_canonical(&definition, &stored).unwrap();
        let expected = copy(&app, &definition, &bound).await;
        let written = app.csv(id).await;
        assert!(written == expected, "{} differs from COPY", definition.slug());
        assert!(execution.row_count > Some(0), "{} is empty", definition.slug());
    }
    worker.stop().await;
}

#[tokio::test]
async fn every_template_writes_a_workbook_of_the_same_values_and_types() {
    let app = TestApp::new().await;
    app.sync_templates().await;
    let worker = app.start_worker().await;
    for definition in load_templates(&templates_dir()).unwrap() {
        let slug = definition.slug().as_str();
        let csv = app.submit(slug, parameters(&definition)).await;
        let request = submission(parameters(&definition), Format::Xlsx);
        let operator = app.operator();
        let xlsx = app.submit_as(&operator, slug, &request).await.unwrap().execution.id;
        app.wait_until(csv, Status::Completed).await;
        app.wait_until(xlsx, Status::Completed).await;
        compare(slug, &app.csv(csv).await, app.result(xlsx).await, &app.manifest(xlsx).await);
    }
    worker.stop().await;
}

#[tokio::test]
async fn syncing_grows_a_version_only_when_the_content_changes() {
    let app = TestApp::new().await;
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let sync = async || app.services.sync_templates(folder.path()).await.unwrap();
    write("one.toml", "title = \"One\"");
    write("one.sql", "select 1 as n");
    write("two.toml", "title = \"Two\"");
    write("two.sql", "select 2 as n");
    assert!(sync().await.iter().all(|s| (s.version, s.outcome) == (1, Stored::Created)));
    assert!(sync().await.iter().all(|s| (s.version, s.outcome) == (1, Stored::Unchanged)));
    write("one.sql", "select 10 as n");
    let synced = sync().await;
    assert_eq!((synced[0].version, synced[0].outcome), (2, Stored::Updated));
    assert_eq!((synced[1].version, synced[1].outcome), (1, Stored::Unchanged));
    std::fs::remove_file(folder.path().join("two.toml")).unwrap();
    std::fs::remove_file(folder.path().join("two.sql")).unwrap();
    sync().await;
    let left = app.services.list_reports(&app.operator()).await.unwrap();
    assert_eq!(left.len(), 1, "a template that is gone can no longer be run");
}

#[tokio::test]
async fn a_template_that_the_server_refuses_is_named() {
    let app = TestApp::new().await;
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("secrets.toml", "title = \"Secrets\"");
    write("secrets.sql", "select password from users");
    write("columns.toml", "title = \"Columns\"\n[[column]]\nname = \"other\"");
    write("columns.sql", "select 1 as one");
    let all = app.services.validate_templates(folder.path()).await.unwrap();
    let problems = |slug: &str| all.iter().find(|t| t.slug == slug).unwrap().problems.join(" ");
    assert!(problems("secrets").contains("permission denied"), "{}", problems("secrets"));
    assert!(problems("columns").contains("describes other"), "{}", problems("columns"));
}

/// What the server's own COPY writes for the same query, values and time zone.
async fn copy(app: &TestApp, definition: &Definition, bound: &BoundParameters) -> String {
    let mut query = definition.statement();
    for (index, parameter) in bound.iter().enumerate() {
        let pg_type = parameter.pg_type();
        let literal = literal(&parameter.value().to_json());
        let placeholder = format!("(${}::{pg_type})", index + 1);
        query = query.replace(&placeholder, &format!("({literal}::{pg_type})"));
    }
    let mut connection = PgConnection::connect(app.database_url()).await.unwrap();
    let zone = format!("set timezone = '{}'", definition.time_zone().name());
    connection.execute(sql(zone)).await.unwrap();
    let statement = format!("copy (\n{query}\n) to stdout (format csv, header)");
    let blocks = connection.copy_out_raw(&statement).await.unwrap();
    let bytes: Vec<Bytes> = blocks.try_collect().await.unwrap();
    String::from_utf8(bytes.concat()).unwrap()
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Bool(_) | Value::Number(_) => format!("'{value}'"),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(literal).collect();
            format!("array[{}]", items.join(", "))
        }
        Value::Object(_) => panic!("no parameter is an object"),
    }
}

/// Compares a workbook with the CSV of the same report, cell by cell, types included.
fn compare(slug: &str, csv: &str, xlsx: Vec<u8>, manifest: &Manifest) {
    let mut workbook: Xlsx<_> = Xlsx::new(Cursor::new(xlsx)).unwrap();
    let sheet = workbook.worksheet_range_at(0).unwrap().unwrap();
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let labels: Vec<_> = manifest.columns.iter().map(|column| column.label.clone()).collect();
    let header: Vec<_> = sheet.rows().next().unwrap().iter().map(Data::to_string).collect();
    assert_eq!(header, labels, "{slug}: the header");
    let mut rows: u64 = 0;
    for (number, (record, cells)) in reader.records().zip(sheet.rows().skip(1)).enumerate() {
        for ((text, cell), column) in record.unwrap().iter().zip(cells).zip(&manifest.columns) {
            let same = is_same(column.kind, text, cell);
            let place = format!("{slug}, row {}, {}", number + 1, column.name);
            assert!(same, "{place}: {text:?} became {cell:?}");
        }
        rows += 1;
    }
    assert_eq!(rows, manifest.row_count, "{slug}");
    let cut = manifest.adjusted_cells.get(&Adjustment::TextCut).copied().unwrap_or(0);
    assert!(cut <= 1, "{slug}: {cut} texts were cut; the sample data has one that is too long");
}

/// Whether a cell is what PostgreSQL's text says, in the type that the column has.
fn is_same(kind: Kind, text: &str, cell: &Data) -> bool {
    if text.is_empty() {
        return matches!(cell, Data::Empty) || cell.get_string() == Some("");
    }
    match kind {
        Kind::Int | Kind::Float | Kind::Numeric => {
            cell.get_float().or_else(|| cell.get_int().map(|n| n as f64)) == text.parse().ok()
        }
        Kind::Bool => cell.get_bool() == Some(text == "t"),
        Kind::Date => {
            cell.is_datetime() && cell.as_date() == NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()
        }
        Kind::Timestamp | Kind::TimestampTz => {
            // The cell holds the local time of the report's zone, without an offset.
            let local = text.get(..19).unwrap_or_default();
            let expected = NaiveDateTime::parse_from_str(local, "%Y-%m-%d %H:%M:%S").unwrap();
            let found = cell.as_datetime().unwrap();
            cell.is_datetime() && (found - expected).num_milliseconds().abs() <= 1000
        }
        Kind::Time => cell.is_datetime() || cell.is_duration_iso(),
        Kind::Text | Kind::Json | Kind::Bytes | Kind::Uuid => {
            let found = cell.get_string().unwrap_or_default();
            // Excel holds 32,767 UTF-16 units in a cell.
            let cut = found.encode_utf16().count() >= 32_766 && text.starts_with(found);
            found == text || cut
        }
    }
}
