//! Reports that are read over several connections, in ranges of a key.

use std::sync::Arc;
use std::time::Duration;

use registrar::db::executions::Status;
use registrar::report::definition::Definition;
use registrar::report::error::ReportError;
use registrar::report::parameters::BoundParameters;
use registrar::report::pipeline::{Destination, Watch};
use registrar::report::split::Split;
use registrar::report::{self, Exported, Limits, Order, Presentation};
use registrar::writer::Format;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::support::TestApp;
use crate::support::s3::{Fault, Operation};

/// One column for each type of key, with NULLs, infinities, gaps, repeats and one value that most
/// rows have.
const KEYED: [&str; 3] = [
    "create table keyed as
     select n as id,
            case when n % 7 <> 0 then (n * 37 % 20000 - 10000)::smallint end as small,
            case when n % 11 <> 0 then n * 3000000000001 - 5000000000000000 end as big,
            case n % 500 when 1 then 'infinity' when 2 then '-infinity' when 3 then null
                 else date '1960-02-27' + n % 3000 end as day,
            case n % 500 when 1 then 'infinity' when 2 then '-infinity' when 3 then null
                 else timestamp '0044-03-15 BC' + n * interval '101.000001 days' end as moment,
            case n % 500 when 1 then 'infinity' when 2 then '-infinity' when 3 then null
                 else timestamptz '1999-12-31 23:00Z' + n % 900 * interval '37 minutes' end as instant,
            case when n % 90 = 0 then n when n % 13 <> 0 then 1 end as skewed,
            'row ' || n as text
       from generate_series(1, 4000) n",
    "create unique index on keyed (id)",
    "grant select on keyed to registrar_report",
];
const KEYS: [&str; 7] = ["id", "small", "big", "day", "moment", "instant", "skewed"];

/// A table that is read for so long that a test can do something meanwhile, and large enough for
/// splitting to pay.
const WIDE: [&str; 4] = [
    "create table wide as
     select n as id, repeat('x', 600) as pad from generate_series(1, 200000) n",
    "create unique index on wide (id)",
    "analyze wide",
    "grant select on wide to registrar_report",
];

async fn make(app: &TestApp, statements: &[&str]) {
    for statement in statements {
        app.execute(statement).await;
    }
}

async fn export(
    app: &TestApp,
    toml: &str,
    sql: &str,
    split: Split,
) -> Result<(String, Exported), ReportError> {
    let toml = format!("title = \"Split\"\n{toml}");
    let definition = Definition::from_template("split".parse().unwrap(), &toml, sql).unwrap();
    let has_parameter = !definition.parameters().is_empty();
    let values = if has_parameter { json!({"over": 100}) } else { json!({}) };
    let parameters = BoundParameters::from_canonical(&definition, &values).unwrap();
    let order = Order {
        definition: &definition,
        parameters: &parameters,
        format: Format::Csv,
        presentation: Presentation::default(),
        limits: Limits { split, ..Limits::of(&definition, &app.config.report) },
        name: "registrar test".to_owned(),
    };
    let opened = report::open(&app.services.reports, &order).await?;
    let (stream, mut end) = tokio::io::duplex(64 * 1024);
    let exporting = async move {
        let mut destination = Destination::Stream(Box::new(stream));
        let watch = Arc::new(Watch::default());
        opened.export(&order, 1 << 20, &mut destination, &watch).await
    };
    let mut file = String::new();
    let (exported, read) = tokio::join!(exporting, end.read_to_string(&mut file));
    read.unwrap();
    Ok((file, exported?))
}

const WHOLE: Split = Split { connections: 1, ranges: None };

const fn into_ranges(connections: usize, ranges: usize) -> Split {
    Split { connections, ranges: Some(ranges) }
}

#[tokio::test]
async fn a_split_file_is_the_whole_ones() {
    let app = TestApp::new().await;
    make(&app, &KEYED).await;
    // Before and after the server knows how the keys are spread.
    for is_analyzed in [false, true] {
        for key in KEYS {
            let toml = format!("split_by = \"{key}\"");
            let sql = format!("select * from keyed order by {key} nulls last, id");
            let (whole, exported) = export(&app, &toml, &sql, WHOLE).await.unwrap();
            assert_eq!((exported.written.summary.rows, exported.ranges), (4000, 1));
            for (connections, ranges) in [(2, 2), (2, 9), (4, 5)] {
                let split = into_ranges(connections, ranges);
                let (file, exported) = export(&app, &toml, &sql, split).await.unwrap();
                assert!(exported.ranges > 2, "{key}: {}", exported.ranges);
                assert_eq!(exported.written.summary.rows, 4000, "{key}");
                assert!(file == whole, "{key} in {ranges} ranges, analyzed: {is_analyzed}");
            }
        }
        app.execute("analyze keyed").await;
    }
    assert_eq!(app.report_backends().await, 0);
}

#[tokio::test]
async fn a_query_without_an_order_has_the_same_rows_each_once() {
    let app = TestApp::new().await;
    make(&app, &KEYED).await;
    // A value is bound before the ends of the ranges, and one column comes as text.
    let toml = "split_by = \"skewed\"\n[[parameter]]\nname = \"over\"\nlabel = \"Over\"\n\
                type = \"integer\"\ndefault = 100";
    let sql = "select text, array[id] as ids, skewed from keyed where id > :over";
    let (whole, _) = export(&app, toml, sql, WHOLE).await.unwrap();
    let (file, exported) = export(&app, toml, sql, into_ranges(3, 6)).await.unwrap();
    assert!(exported.ranges > 2, "{}", exported.ranges);
    let sorted = |file: &str| {
        let mut lines: Vec<_> = file.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(&file), sorted(&whole));
    assert_eq!(whole.lines().count(), 3901);
}

#[tokio::test]
async fn a_few_rows_or_none_are_written_too() {
    let app = TestApp::new().await;
    make(&app, &KEYED).await;
    for (condition, rows) in
        [("false", 0), ("id = 5", 1), ("id in (5, 4000)", 2), ("skewed is null", 304)]
    {
        let sql = format!("select id, skewed from keyed where {condition} order by skewed, id");
        let (whole, _) = export(&app, "split_by = \"skewed\"", &sql, WHOLE).await.unwrap();
        let split = into_ranges(2, 8);
        let (file, exported) = export(&app, "split_by = \"skewed\"", &sql, split).await.unwrap();
        assert_eq!((file, exported.written.summary.rows), (whole, rows), "{condition}");
    }
}

#[tokio::test]
async fn limits_count_the_rows_of_all_ranges() {
    let app = TestApp::new().await;
    make(&app, &KEYED).await;
    let sql = "select id from keyed order by id";
    for on_limit in ["fail", "truncate"] {
        let toml =
            format!("split_by = \"id\"\n[limits]\nmax_rows = 3001\non_limit = \"{on_limit}\"");
        let done = export(&app, &toml, sql, into_ranges(2, 8)).await;
        match (on_limit, done) {
            ("fail", Err(ReportError::RowLimit { max_rows: 3001 })) => {}
            ("truncate", Ok((file, exported))) => {
                assert!(exported.written.truncated.is_some());
                assert_eq!((file.lines().count(), file.lines().last()), (3002, Some("3001")));
            }
            (_, other) => panic!("{on_limit}: {other:?}"),
        }
    }
    app.wait_for("the connections to close", async || app.report_backends().await == 0).await;
}

#[tokio::test]
async fn a_column_that_cannot_be_a_key_is_refused() {
    let app = TestApp::new().await;
    make(&app, &KEYED).await;
    for (key, sql, expected) in [
        ("text", "select * from keyed", "must be of type integer, bigint, date, timestamp or"),
        ("other", "select * from keyed", "is no column of the query"),
        ("id", "select id, id from keyed", "is the name of several columns"),
    ] {
        let toml = format!("title = \"Split\"\nsplit_by = \"{key}\"");
        let definition = Definition::from_template("split".parse().unwrap(), &toml, sql).unwrap();
        let refused = report::check(&app.services.reports, &definition, &app.config.report).await;
        match refused {
            Err(ReportError::Definition(message)) => {
                assert!(message.starts_with(&format!("split_by `{key}` {expected}")), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn where_it_does_not_pay_a_report_is_read_whole() {
    let app = TestApp::new().await;
    make(&app, &WIDE).await;
    let auto = Split { connections: 2, ranges: None };
    let toml = "split_by = \"id\"";
    let plain = "select id, pad from wide";
    let (_, exported) = export(&app, toml, plain, auto).await.unwrap();
    assert!(exported.ranges > 1, "{}", exported.ranges);
    // The key does not reach into this one, so that every range would compute the whole.
    let numbered = "select row_number() over (order by pad) as id, pad from wide";
    for sql in ["select id, pad from wide where id < 1000", numbered] {
        let (_, exported) = export(&app, toml, sql, auto).await.unwrap();
        assert_eq!(exported.ranges, 1, "{sql}");
    }
}

/// An app with a split report on its way, whose server processes wait for a store that hangs.
async fn hanging(toml: &str) -> (TestApp, i64) {
    let app = TestApp::new().on_s3().await;
    make(&app, &WIDE).await;
    app.define_with("wide", &format!("split_by = \"id\"\n{toml}"), "select id, pad from wide")
        .await;
    app.s3.as_ref().unwrap().fail(Fault::Hang, Operation::UploadPart, 1);
    let id = app.submit("wide", json!({})).await;
    (app, id)
}

async fn wait_for_both_backends(app: &TestApp) {
    let s3 = app.s3.as_ref().unwrap();
    app.wait_for("the upload to hang", async || s3.count(Operation::UploadPart) > 0).await;
    assert_eq!(app.report_backends().await, 2, "one for each connection");
}

#[tokio::test]
async fn a_cancel_ends_every_connection() {
    let (app, id) = hanging("").await;
    let worker = app.start_worker().await;
    wait_for_both_backends(&app).await;
    app.services.cancel(&app.operator(), id).await.unwrap();
    app.wait_until(id, Status::Cancelled).await;
    assert_eq!(app.report_backends().await, 0, "cancelled means that nothing runs any more");
    worker.stop().await;
    assert_eq!(app.s3.as_ref().unwrap().leftover_parts(), [""; 0]);
}

#[tokio::test]
async fn a_cancel_ends_every_connection_of_a_worker_that_is_paused() {
    let (app, id) = hanging("").await;
    let mut paused = app.start_worker_process().await;
    wait_for_both_backends(&app).await;
    paused.signal(Signal::STOP);
    app.services.cancel(&app.operator(), id).await.unwrap();
    let second = app.start_worker().await;
    app.wait_until(id, Status::Cancelled).await;
    assert_eq!(app.report_backends().await, 0, "ended by the server alone");
    second.stop().await;
    paused.kill().await;
}

#[tokio::test]
async fn a_killed_worker_leaves_no_connection_behind() {
    let (mut app, _) = hanging("").await;
    app.leave_unfinished();
    let mut worker = app.start_worker_process().await;
    wait_for_both_backends(&app).await;
    worker.kill().await;
    app.wait_for("the server to notice", async || app.report_backends().await == 0).await;
}

#[tokio::test]
async fn a_deadline_ends_every_connection() {
    let (app, id) = hanging("[limits]\ntimeout_secs = 15").await;
    let worker = app.start_worker().await;
    wait_for_both_backends(&app).await;
    let execution = app.wait_until_ended(id).await;
    assert_eq!(execution.error_code.as_deref(), Some("timeout"), "{execution:#?}");
    app.wait_for("the server to notice", async || app.report_backends().await == 0).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_lost_costs_an_attempt_and_no_rows() {
    let app = TestApp::new().await;
    make(&app, &WIDE).await;
    app.define_with("wide", "split_by = \"id\"", "select id, pad from wide order by id").await;
    let id = app.submit("wide", json!({})).await;
    let worker = app.start_worker().await;
    let ended = "select count(pg_terminate_backend(a.pid))
                   from pg_stat_activity a
                   join report_executions e on e.backend_pid <> a.pid
                  where a.datname = current_database() and a.usename = 'registrar_report'";
    app.wait_for("another connection to end", async || app.number(ended).await == 1).await;
    let execution = app.wait_until_within(Duration::from_secs(60), id, Status::Completed).await;
    worker.stop().await;
    assert_eq!((execution.attempt, execution.row_count), (2, Some(200_000)));
    let csv = app.csv(id).await;
    let ids =
        csv.lines().skip(1).map(|line| line.split(',').next().unwrap().parse::<i64>().unwrap());
    assert!(ids.eq(1..=200_000));
}
