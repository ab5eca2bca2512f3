//! Workbooks of several sheets: one snapshot, one set of parameters, one limit, and layouts as an
//! independent reader sees them.

use std::fs;
use std::io::{Cursor, Read};

use calamine::{Data, Range, Reader, Xlsx};
use registrar::db::executions::{Execution, Status};
use registrar::report::manifest::Manifest;
use registrar::writer::Format;
use serde_json::{Value, json};
use tempfile::TempDir;
use zip::ZipArchive;

use crate::support::TestApp;
use crate::support::app::submission;
use crate::support::database::sql as sql_text;

async fn run(app: &TestApp, slug: &str, parameters: Value, format: Format) -> Execution {
    let submission = submission(parameters, format);
    let submitted = app.submit_as(&app.operator(), slug, &submission).await.unwrap();
    app.wait_until_ended(submitted.execution.id).await
}

/// Runs a report that must succeed: its file and its manifest.
async fn workbook(app: &TestApp, slug: &str, parameters: Value) -> (Vec<u8>, Manifest) {
    let execution = run(app, slug, parameters, Format::Xlsx).await;
    assert_eq!(execution.status, Status::Completed, "{execution:#?}");
    (app.result(execution.id).await, app.manifest(execution.id).await)
}

fn sheets(file: &[u8]) -> Vec<(String, Range<Data>)> {
    Xlsx::new(Cursor::new(file)).unwrap().worksheets()
}

fn row(sheet: &Range<Data>, number: usize) -> Vec<String> {
    sheet.rows().nth(number - 1).unwrap().iter().map(ToString::to_string).collect()
}

fn part(file: &[u8], name: &str) -> String {
    let mut text = String::new();
    let mut archive = ZipArchive::new(Cursor::new(file)).unwrap();
    archive.by_name(name).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn sheets_are_read_in_one_transaction_with_the_same_parameters() {
    let app = TestApp::new().await;
    let worker = app.start_worker().await;
    let columns = "pg_backend_pid() as pid, pg_current_snapshot()::text as snapshot, now() as at";
    let toml = format!(
        "description = 'Where am I?'\ntime_zone = 'Asia/Kolkata'\nsheet_name = 'First'\n\
         [[parameter]]\nname = 'n'\ntype = 'integer'\nlabel = 'Number'\n\
         [[parameter]]\nname = 'words'\ntype = 'text'\nlist = true\nlabel = 'Words'\n\
         [layout]\ntitle = ['{{title}} – {{description}}', '{{parameters}}', '{{snapshot}} \
         {{time_zone}}', '{{owner}} {{execution}}']\n\
         [[sheet]]\nname = 'Second'\nquery = 'select {columns}, :words::text as words, :n as n'\n\
         [[sheet]]\nname = 'Third'\nquery = 'select {columns}, :n + 1 as n'\n"
    );
    app.define_with("where", &toml, &format!("select {columns}, :n as n")).await;
    let parameters = json!({"n": 41, "words": ["a", "b"]});
    let (file, manifest) = workbook(&app, "where", parameters.clone()).await;
    let sheets = sheets(&file);
    let names: Vec<_> = sheets.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["First", "Second", "Third"]);
    let rows = [row(&sheets[0].1, 7), row(&sheets[1].1, 2), row(&sheets[2].1, 2)];
    assert_eq!(rows[0][..3], rows[1][..3]);
    assert_eq!(rows[0][..3], rows[2][..3]);
    assert_eq!(
        (&rows[0][3], &rows[1][3], &rows[1][4], &rows[2][3]),
        (&"41".to_owned(), &"{a,b}".to_owned(), &"41".to_owned(), &"42".to_owned())
    );

    let zone = chrono_tz::Tz::Asia__Kolkata;
    let local = manifest.snapshot_at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S");
    let title = [1, 2, 3, 4].map(|line| row(&sheets[0].1, line)[0].clone());
    assert_eq!(title[0], "where – Where am I?");
    assert_eq!(title[1], "Number: 41; Words: a, b");
    assert_eq!(title[2], format!("{local} +05:30 Asia/Kolkata"));
    assert_eq!(title[3], format!("– {}", manifest.execution_id), "an operator has no account");
    let ana = app.caller("ana").await;
    let submission = submission(parameters.clone(), Format::Xlsx);
    let id = app.submit_as(&ana, "where", &submission).await.unwrap().execution.id;
    app.wait_until_ended(id).await;
    let own = self::sheets(&app.result(id).await);
    assert_eq!(row(&own[0].1, 4)[0], format!("ana {id}"));

    let listed =
        manifest.sheet_list.iter().map(|s| (&*s.name, s.rows, s.columns.len(), s.header_row));
    assert_eq!(
        listed.collect::<Vec<_>>(),
        [("First", 1, 4, Some(6)), ("Second", 1, 5, Some(1)), ("Third", 1, 4, Some(1))]
    );
    assert_eq!((manifest.row_count, manifest.sheets), (3, 3));

    // In other formats the first sheet is the file.
    let execution = run(&app, "where", parameters, Format::Csv).await;
    let csv = app.csv(execution.id).await;
    assert!(csv.starts_with("pid,snapshot,at,n\n") && csv.lines().count() == 2, "{csv}");
    let manifest = app.manifest(execution.id).await;
    assert_eq!(manifest.sheets_left_out, ["Second", "Third"]);
    assert_eq!((manifest.sheet_list.len(), manifest.sheet_list[0].rows), (1, 1));
    worker.stop().await;
}

#[tokio::test]
async fn a_pause_between_sheets_may_be_as_long_as_the_run() {
    let app = TestApp::new().await;
    let worker = app.start_worker().await;
    let query = "select current_setting('idle_in_transaction_session_timeout') as idle";
    let toml = "[limits]\ntimeout_secs = 131\n";
    app.define_with("one", toml, query).await;
    let sheet = format!("{toml}[[sheet]]\nname = 'S'\nquery = \"{query}\"\n");
    app.define_with("two", &sheet, query).await;
    for (slug, number, idle) in [("one", 0, "1min"), ("two", 0, "136s"), ("two", 1, "136s")] {
        let (file, _) = workbook(&app, slug, json!({})).await;
        assert_eq!(row(&sheets(&file)[number].1, 2), [idle], "{slug} {number}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn totals_are_those_of_the_server() {
    const ROWS: &str = "select n as id, (n * 1.07 - 900)::numeric(12, 2) as amount, \
                        (sqrt(n))::float8 as root, date '2020-01-01' + n as day, \
                        case when n % 3 = 0 then 'x' end as mark from generate_series(1, 20000) n";
    let app = TestApp::new().await;
    let worker = app.start_worker().await;
    let column = |name: &str, total: &str| format!("[[column]]\nname='{name}'\ntotal='{total}'\n");
    for (total, of_day, of_mark) in [
        ("sum", "max", "count"),
        ("avg", "min", "count"),
        ("min", "min", "count"),
        ("max", "count", "count"),
    ] {
        let toml = ["amount", "root"].map(|name| column(name, total)).concat()
            + &column("day", of_day)
            + &column("mark", of_mark);
        app.define_with("totals", &toml, ROWS).await;
        let (file, _) = workbook(&app, "totals", json!({})).await;
        let (_, sheet) = &sheets(&file)[0];
        let found = sheet.rows().next_back().unwrap();
        assert_eq!(sheet.height(), 20_002);
        assert_eq!(found[0], Data::String("Total".to_owned()));
        let number = async |expression: &str| -> f64 {
            let sql = format!("select ({expression})::float8 from ({ROWS}) r");
            sqlx::query_scalar(sql_text(sql)).fetch_one(&app.services.db).await.unwrap()
        };
        let close = |cell: &Data, expected: f64| {
            let Data::Float(found) = cell else { panic!("{total}: {cell:?}") };
            assert!(
                (found - expected).abs() <= expected.abs() * 1e-13,
                "{total}: {found} {expected}"
            );
        };
        close(&found[1], number(&format!("{total}(amount)")).await);
        close(&found[2], number(&format!("{total}(root)")).await);
        close(&found[4], number("count(mark)").await);
        let day = match &found[3] {
            Data::DateTime(day) => day.as_f64(),
            Data::Float(count) => *count,
            other => panic!("{other:?}"),
        };
        let serial = if of_day == "count" {
            "count(day)"
        } else {
            &format!("{of_day}(day) - date '1899-12-30'")
        };
        assert_eq!(day, number(serial).await, "{of_day}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_limit_of_rows_is_that_of_all_sheets_together() {
    let app = TestApp::new().await;
    let worker = app.start_worker().await;
    let sheet = |name: &str| {
        format!("[[sheet]]\nname = '{name}'\nquery = 'select n from generate_series(1, 5) n'\n")
    };
    let toml = |on_limit: &str| {
        format!("[limits]\nmax_rows = 7\non_limit = '{on_limit}'\n{}{}", sheet("B"), sheet("C"))
    };
    let sql = "select n from generate_series(1, 5) n";
    app.define_with("limited", &toml("fail"), sql).await;
    let failed = run(&app, "limited", json!({}), Format::Xlsx).await;
    assert_eq!(failed.status, Status::Failed);
    assert_eq!(failed.error_code.as_deref(), Some("row_limit"));

    app.define_with("limited", &toml("truncate"), sql).await;
    let (file, manifest) = workbook(&app, "limited", json!({})).await;
    let mark = "Cut at the limit of 7 rows: there are more.";
    assert_eq!(manifest.truncated.as_deref(), Some(mark));
    let texts = sheets(&file)
        .into_iter()
        .map(|(_, sheet)| sheet.rows().map(|row| row[0].to_string()).collect::<Vec<_>>().join(" "));
    let texts: Vec<_> = texts.collect();
    assert_eq!(texts, ["n 1 2 3 4 5".to_owned(), format!("n 1 2 {mark}"), format!("n {mark}")]);

    let csv = run(&app, "limited", json!({}), Format::Csv).await;
    assert_eq!((csv.status, csv.truncated), (Status::Completed, false), "five rows are allowed");
    worker.stop().await;
}

#[tokio::test]
async fn a_cancel_in_the_query_of_a_further_sheet_leaves_nothing_behind() {
    let app = TestApp::new().await;
    let sheet = "[[sheet]]\nname = 'S'\nquery = 'select pg_sleep(600)::text as second_sheet'\n";
    app.define_with("slow", sheet, "select 1 as n").await;
    let submission = submission(json!({}), Format::Xlsx);
    let id = app.submit_as(&app.operator(), "slow", &submission).await.unwrap().execution.id;
    let worker = app.start_worker().await;
    app.wait_for("the second query", async || {
        app.number(
            "select count(*) from pg_stat_activity
              where state = 'active' and query like '%second_sheet%' and query not like '%count(%'
                and datname = current_database()",
        )
        .await
            == 1
    })
    .await;
    app.services.cancel(&app.operator(), id).await.unwrap();
    app.wait_until(id, Status::Cancelled).await;
    assert_eq!(app.report_backends().await, 0, "cancelled means that nothing runs any more");
    worker.stop().await;
    assert_eq!(app.stored().await, [""; 0]);
}

#[tokio::test]
async fn ten_rows_more_than_a_sheet_holds_go_on_in_the_next() {
    const ROWS: u64 = 1_048_576 + 10;
    let app = TestApp::new().await;
    let worker = app.start_worker().await;
    let toml = "sheet_name = 'Numbers'\n[limits]\nmax_rows = 2000000\n[[column]]\nname = 'n'\n\
                total = 'sum'\n[[conditional]]\ntype = 'data_bar'\ncolumn = 'n'\n[[chart]]\n\
                type = 'line'\ncategories = 'n'\nvalues = ['n']\n";
    let sql = format!("select n from generate_series(1, {ROWS}) n");
    app.define_with("long", toml, &sql).await;
    let (file, manifest) = workbook(&app, "long", json!({})).await;
    let listed = manifest.sheet_list.iter().map(|sheet| (&*sheet.name, sheet.rows));
    assert_eq!(
        listed.collect::<Vec<_>>(),
        [("Numbers", 1_048_575), ("Numbers (2)", ROWS - 1_048_575)]
    );
    let sheets = sheets(&file);
    assert_eq!(sheets.len(), 2);
    assert_eq!((sheets[0].1.height(), sheets[1].1.height()), (1_048_576, 13));
    let next: Vec<_> = sheets[1].1.rows().map(|row| row[0].to_string()).collect();
    assert_eq!((&*next[0], &*next[1], &*next[11]), ("n", "1048576", "1048586"));
    assert_eq!(next[12], (ROWS * (ROWS + 1) / 2).to_string(), "the total of both sheets");
    let chart = part(&file, "xl/charts/chart1.xml");
    assert!(chart.contains("<c:f>Numbers!$A$2:$A$4001</c:f>"), "a chart shows 4,000 rows");
    worker.stop().await;
}

#[tokio::test]
async fn validating_finds_layouts_that_do_not_fit_the_columns() {
    let app = TestApp::new().await;
    let folder = TempDir::new().unwrap();
    let toml = "title = 'T'\n[[column]]\nname = 'word'\ntotal = 'sum'\n\
                [[conditional]]\ntype = 'data_bar'\ncolumn = 'none'\n\
                [[sheet]]\nname = 'S'\nquery = \"select 'x' as word, 1 as n\"\n\
                [[sheet.chart]]\ntype = 'bar'\ncategories = 'gone'\nvalues = ['word']\n\
                [[sheet]]\nname = 'Secret'\nquery = 'select password from users'\n";
    fs::write(folder.path().join("t.toml"), toml).unwrap();
    fs::write(folder.path().join("t.sql"), "select 'x' as word").unwrap();
    let validated = app.services.validate_templates(folder.path()).await.unwrap();
    assert_eq!(validated[0].problems, ["permission denied for table users (SQLSTATE 42501)"]);

    let (allowed, _) = toml.rsplit_once("[[sheet]]").unwrap();
    fs::write(folder.path().join("t.toml"), allowed).unwrap();
    let validated = app.services.validate_templates(folder.path()).await.unwrap();
    assert_eq!(
        validated[0].problems,
        [
            "column `word` total needs a column of a number, `word` is text",
            "conditional number 1 column names `none`, which the query does not return",
            "sheet `S` chart number 1 categories names `gone`, which the query does not return",
            "sheet `S` chart number 1 values need columns of numbers, `word` is text",
        ]
    );

    // What is stored all the same fails when it is run, and says why.
    let toml = "[[chart]]\ntype = 'bar'\ncategories = 'gone'\nvalues = ['n']\n";
    app.define_with("stored", toml, "select 1 as n").await;
    let worker = app.start_worker().await;
    let failed = run(&app, "stored", json!({}), Format::Xlsx).await;
    assert_eq!(failed.error_code.as_deref(), Some("bad_definition"), "{failed:?}");
    worker.stop().await;
}

#[tokio::test]
async fn two_shipped_templates_have_several_sheets_and_a_chart() {
    let app = TestApp::new().await;
    app.sync_templates().await;
    let worker = app.start_worker().await;
    for (slug, names, column, charts) in [
        ("grade-distribution", ["By group", "By grade"], [8, 2], 1),
        ("enrollment-summary", ["By programme", "By session"], [16, 5], 2),
    ] {
        let (file, manifest) = workbook(&app, slug, json!({})).await;
        let sheets = sheets(&file);
        assert_eq!([&*sheets[0].0, &*sheets[1].0], names);
        for number in 1..=charts {
            assert!(part(&file, &format!("xl/charts/chart{number}.xml")).contains("strCache"));
        }
        // What both sheets count in two ways comes to the same.
        let totals = [0, 1].map(|index| {
            let last = sheets[index].1.rows().next_back().unwrap();
            assert!(matches!(last[0], Data::String(_)), "{last:?}");
            last[column[index]].to_string()
        });
        assert_eq!(totals[0], totals[1], "{slug}");
        let title = row(&sheets[0].1, 4)[0].clone();
        assert!(title.contains(&format!("run {} for ", manifest.execution_id)), "{title}");
    }
    worker.stop().await;
}
