//! From a submit to a published file, and everything that can come between.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use registrar::db::executions::{self, Backend, Beat, Caps, Published, Status};
use registrar::service::ServiceError;
use serde_json::json;

use crate::support::TestApp;
use crate::support::s3::{Fault, Operation};

/// Runs for a minute, unless the role of this name is renamed.
const SLOW: &str = "select pg_sleep(60)::text as slept from roles where name = 'guest'";
/// Sends rows for far longer than any test.
const ENDLESS: &str = "select n, md5(n::text) as hash from generate_series(1, 2000000000) n";

async fn make_quick(app: &TestApp) {
    app.execute("update roles set name = 'visitor' where name = 'guest'").await;
}

async fn failed_attempts(app: &TestApp, id: i64) -> i64 {
    let query = format!("select failed_attempts::int8 from report_executions where id = {id}");
    app.number(&query).await
}

#[tokio::test]
async fn a_submitted_report_is_run_and_published() {
    let app = TestApp::new().await;
    app.define("numbers", "select n, 'row ' || n as text from generate_series(1, 3) n").await;
    let execution = app.run("numbers", json!({})).await;
    assert_eq!(execution.status, Status::Completed, "{execution:#?}");
    assert_eq!(app.csv(execution.id).await, "n,text\n1,row 1\n2,row 2\n3,row 3\n");
    assert_eq!(app.stored().await.len(), 2, "the file and its manifest");
    let expected = ["execution.submitted", "execution.completed", "execution.downloaded"];
    assert_eq!(app.audit(execution.id).await, expected);
}

/// PostgreSQL waits in `drop database` for each connection, also for one that is logging in.
#[tokio::test]
async fn a_worker_whose_places_are_taken_at_its_start_leaves_no_login_unfinished() {
    let app = TestApp::new().with(|config| config.worker.concurrency = NonZeroUsize::MIN).await;
    app.define("slow", SLOW).await;
    let id = app.submit("slow", json!({})).await;
    let worker = app.start_worker().await;
    app.wait_until_querying(id).await;
    let listening = "select count(*) from pg_stat_activity
                      where datname = current_database() and query like 'LISTEN%'
                        and application_name = 'registrar queue'";
    app.wait_for("one connection that listens", async || app.number(listening).await == 1).await;
    let name = format!("registrar_dropped_{}", uuid::Uuid::new_v4().simple());
    app.execute(&format!("create database {name} template template0")).await;
    let drop = format!("drop database {name}");
    let dropped = tokio::time::timeout(Duration::from_secs(20), app.execute(&drop)).await;
    assert!(dropped.is_ok(), "somebody does not answer");
    app.services.cancel(&app.operator(), id).await.unwrap();
    app.wait_until(id, Status::Cancelled).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_report_is_published_on_an_s3_server() {
    let app = TestApp::new().on_s3().await;
    // Larger than a part, so that it travels in several.
    app.define("large", "select n, repeat('x', 1000) as x from generate_series(1, 20000) n").await;
    let execution = app.run("large", json!({})).await;
    assert_eq!(execution.status, Status::Completed, "{execution:#?}");
    let csv = app.csv(execution.id).await;
    assert_eq!(csv.lines().count(), 20_001);
    assert!(csv.ends_with(&format!("20000,{}\n", "x".repeat(1000))));
    let s3 = app.s3.as_ref().unwrap();
    assert!(s3.count(Operation::UploadPart) >= 3);
    assert_eq!(s3.leftover_parts(), [""; 0]);
}

#[tokio::test]
async fn a_report_is_submitted_followed_and_fetched_over_http() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let (http, worker) = (app.http().await, app.start_worker().await);
    let token = app.token("ana").await;
    let submit = http.post("/v1/reports/one/executions", &token, &json!({"format": "csv"}));
    let answer = submit.send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let id = app.number("select id from report_executions").await;
    app.wait_until(id, Status::Completed).await;
    let result = http.get(&format!("{location}/result"), &token).send().await.unwrap();
    assert_eq!(result.status(), 200);
    assert_eq!(result.text().await.unwrap(), "one\n1\n");
    worker.stop().await;
}

#[tokio::test]
async fn an_execution_runs_the_version_that_it_was_submitted_with() {
    let app = TestApp::new().await;
    assert_eq!(app.define("greeting", "select 'old' as text").await, 1);
    let old = app.submit("greeting", json!({})).await;
    assert_eq!(app.define("greeting", "select 'new' as text").await, 2);
    let new = app.submit("greeting", json!({})).await;
    let worker = app.start_worker().await;
    app.wait_until(old, Status::Completed).await;
    app.wait_until(new, Status::Completed).await;
    worker.stop().await;
    assert_eq!(app.csv(old).await, "text\nold\n");
    assert_eq!(app.csv(new).await, "text\nnew\n");
}

#[tokio::test]
async fn an_error_in_the_sql_fails_at_once_and_tells_no_values() {
    let app = TestApp::new().await;
    let cases = [
        ("division", "select 1 / (id - 1) as x from roles", "sql_error", "division by zero"),
        ("missing", "select nothing_like_it from roles", "sql_error", "nothing_like_it"),
        ("cast", "select username::int as x from users", "sql_error", "a value cannot be read"),
    ];
    for (slug, sql, code, message) in cases {
        app.define(slug, sql).await;
        let execution = app.run(slug, json!({})).await;
        assert_eq!(execution.status, Status::Failed);
        assert_eq!((execution.error_code.as_deref(), execution.attempt), (Some(code), 1));
        let told = execution.error_message.unwrap();
        assert!(told.contains(message), "{told}");
        assert!(!told.contains("admin"), "a value of a row is told: {told}");
        assert_eq!(app.audit(execution.id).await, ["execution.submitted", "execution.failed"]);
    }
    assert_eq!(app.stored().await, [""; 0]);
}

#[tokio::test]
async fn a_failure_of_the_store_is_tried_again_with_a_pause_and_a_new_ticket() {
    let app = TestApp::new().on_s3().await;
    app.define("one", "select 1 as one").await;
    app.s3.as_ref().unwrap().fail(Fault::Refuse, Operation::Put, 1);
    let execution = app.run("one", json!({})).await;
    assert_eq!(execution.status, Status::Completed, "{execution:#?}");
    assert_eq!((execution.attempt, failed_attempts(&app, execution.id).await), (2, 1));
    assert_eq!(execution.error_code, None, "what failed once is over");
    let expected = ["execution.submitted", "execution.retried", "execution.completed"];
    assert_eq!(app.audit(execution.id).await, expected);
    assert_eq!(app.number("select count(*) from apalis.jobs").await, 2);
    let pause = format!(
        "select extract(milliseconds from started_at - (
            select created_at from audit_logs where action = 'execution.retried'))::int8
           from report_executions where id = {}",
        execution.id
    );
    assert!(app.number(&pause).await >= 200, "it waited for the pause");
}

#[tokio::test]
async fn a_part_that_is_refused_leaves_no_parts_behind() {
    let app = TestApp::new().on_s3().await;
    app.define("large", "select n, repeat('x', 1000) as x from generate_series(1, 20000) n").await;
    let s3 = app.s3.as_ref().unwrap();
    s3.fail(Fault::Refuse, Operation::UploadPart, 2);
    let execution = app.run("large", json!({})).await;
    assert_eq!((execution.status, execution.attempt), (Status::Completed, 2), "{execution:#?}");
    assert_eq!(app.csv(execution.id).await.lines().count(), 20_001);
    assert_eq!(s3.count(Operation::AbortUpload), 1);
    assert_eq!(s3.leftover_parts(), [""; 0]);
    assert_eq!(app.stored().await.len(), 2);
}

#[tokio::test]
async fn a_store_that_stays_away_fails_the_execution_after_its_attempts() {
    let app = TestApp::new()
        .on_s3()
        .with(|config| config.report.max_attempts = 2.try_into().unwrap())
        .await;
    app.define("one", "select 1 as one").await;
    let s3 = app.s3.as_ref().unwrap();
    s3.fail(Fault::Refuse, Operation::Put, 1);
    s3.fail(Fault::Refuse, Operation::Put, 2);
    let execution = app.run("one", json!({})).await;
    assert_eq!((execution.status, execution.attempt), (Status::Failed, 2));
    assert_eq!(execution.error_code.as_deref(), Some("store_unavailable"));
    let expected = ["execution.submitted", "execution.retried", "execution.failed"];
    assert_eq!(app.audit(execution.id).await, expected);
}

#[tokio::test]
async fn an_execution_that_kills_its_workers_fails_after_its_attempts() {
    let app = TestApp::new()
        .with(|config| {
            config.report.max_attempts = 2.try_into().unwrap();
            config.worker.lease_secs = 3.try_into().unwrap();
        })
        .await;
    app.define("slow", SLOW).await;
    let id = app.submit("slow", json!({})).await;
    for attempt in 1..=2 {
        let worker = app.start_worker().await;
        app.wait_for("the attempt to run", async || {
            let execution = app.execution(id).await;
            execution.status == Status::Processing && execution.attempt == attempt
        })
        .await;
        app.wait_until_querying(id).await;
        worker.kill();
    }
    let survivor = app.start_worker().await;
    let execution = app.wait_until(id, Status::Failed).await;
    survivor.stop().await;
    assert_eq!(execution.error_code.as_deref(), Some("worker_lost"));
    assert_eq!((execution.attempt, failed_attempts(&app, id).await), (2, 2));
    assert_eq!(app.stored().await, [""; 0]);
    app.wait_for("its queries to be gone", async || app.report_backends().await == 0).await;
}

#[tokio::test]
async fn an_attempt_that_panics_is_tried_again_and_then_failed() {
    let app =
        TestApp::new().with(|config| config.report.max_attempts = 2.try_into().unwrap()).await;
    app.define("one", "select 1 as one").await;
    let id = app.submit("one", json!({})).await;
    let worker = app.start_worker_on_panicking_store().await;
    let execution = app.wait_until(id, Status::Failed).await;
    assert_eq!(execution.error_code.as_deref(), Some("panic"));
    assert_eq!(execution.attempt, 2);
    worker.stop().await;
    let expected = ["execution.submitted", "execution.retried", "execution.failed"];
    assert_eq!(app.audit(id).await, expected);
}

/// What a worker wrote that was paused, declared dead, and came back.
#[tokio::test]
async fn an_attempt_that_is_not_the_current_one_can_change_nothing() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let id = app.submit("one", json!({})).await;
    let db = app.services.db.clone();
    let stale =
        executions::claim_next(&db, "paused", 1, Caps::default()).await.unwrap().unwrap().attempt;
    let mut connection = db.acquire().await.unwrap();
    assert!(executions::retry_later(&mut connection, id, stale, "x", "x", 0.0).await.unwrap());
    let current =
        executions::claim_next(&db, "current", 60, Caps::default()).await.unwrap().unwrap().attempt;
    assert_eq!((stale, current), (1, 2));
    let before = app.execution(id).await;

    let result = Published {
        path: "results/stale.csv",
        row_count: 1,
        size_bytes: 1,
        sha256: &"0".repeat(64),
        truncated: false,
        snapshot_at: before.created_at,
        expires_after_days: 1,
    };
    let connection = &mut connection;
    assert!(!executions::publish(connection, id, stale, &result).await.unwrap());
    assert!(!executions::fail(connection, id, stale, "x", "x").await.unwrap());
    assert!(!executions::retry_later(connection, id, stale, "x", "x", 0.0).await.unwrap());
    assert!(!executions::give_back(connection, id, stale).await.unwrap());
    assert!(!executions::finish_cancel(connection, id, stale).await.unwrap());
    assert_eq!(executions::heartbeat(&db, id, stale, 60, 1, 1).await.unwrap(), Beat::Lost);
    assert_eq!(executions::look(&db, id, stale).await.unwrap(), Beat::Lost);
    let backend = Backend {
        id,
        attempt: stale,
        backend_pid: Some(1),
        backend_start: Some(before.created_at),
    };
    assert!(!executions::note_backend(&db, backend).await.unwrap());
    assert_eq!(format!("{:?}", app.execution(id).await), format!("{before:?}"));

    assert_eq!(executions::look(&db, id, current).await.unwrap(), Beat::Renewed);
    assert!(executions::publish(connection, id, current, &result).await.unwrap());
    assert!(!executions::publish(connection, id, current, &result).await.unwrap(), "only once");
    app.leave_unfinished();
}

#[tokio::test]
async fn a_claim_needs_a_pending_execution_whose_time_has_come() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let db = app.services.db.clone();
    app.submit("one", json!({})).await;
    app.execute("update report_executions set run_at = now() + interval '1 minute'").await;
    assert!(executions::claim_next(&db, "early", 9, Caps::default()).await.unwrap().is_none());
    app.execute("update report_executions set run_at = now()").await;
    let claims = (0..8).map(|_| executions::claim_next(&db, "one of eight", 9, Caps::default()));
    let claimed: Vec<_> = futures::future::try_join_all(claims).await.unwrap();
    assert_eq!(claimed.iter().flatten().count(), 1);
    assert!(executions::claim_next(&db, "late", 9, Caps::default()).await.unwrap().is_none());
    app.leave_unfinished();
}

#[tokio::test]
async fn a_graceful_stop_waits_for_what_is_running() {
    let app = TestApp::new().await;
    app.define("brief", "select pg_sleep(1)::text as slept").await;
    let id = app.submit("brief", json!({})).await;
    let worker = app.start_worker().await;
    app.wait_until_querying(id).await;
    worker.stop().await;
    assert_eq!(app.execution(id).await.status, Status::Completed);
    assert_eq!(app.number("select count(*) from workers").await, 0, "it is off the list");
}

#[tokio::test]
async fn after_the_grace_an_attempt_is_given_back_and_costs_nothing() {
    let app = TestApp::new().with(|config| config.worker.shutdown_grace_secs = 1).await;
    app.define("slow", SLOW).await;
    let id = app.submit("slow", json!({})).await;
    let first = app.start_worker().await;
    app.wait_until_querying(id).await;
    first.stop().await;
    let execution = app.execution(id).await;
    assert_eq!((execution.status, execution.attempt), (Status::Pending, 1));
    assert_eq!(failed_attempts(&app, id).await, 0);
    app.wait_for("its query to be gone", async || app.report_backends().await == 0).await;

    make_quick(&app).await;
    let second = app.start_worker().await;
    let execution = app.wait_until(id, Status::Completed).await;
    second.stop().await;
    assert_eq!((execution.attempt, failed_attempts(&app, id).await), (2, 0));
    let expected = ["execution.submitted", "execution.given_back", "execution.completed"];
    assert_eq!(app.audit(id).await, expected);
}

#[tokio::test]
async fn cancelling_what_waits_is_immediate() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let id = app.submit("one", json!({})).await;
    let execution = app.services.cancel(&app.operator(), id).await.unwrap();
    assert_eq!(execution.status, Status::Cancelled);
    // Its ticket finds nothing to claim.
    let worker = app.start_worker().await;
    app.wait_for("the ticket to be used up", async || {
        app.number("select count(*) from apalis.jobs where status = 'Done'").await == 1
    })
    .await;
    worker.stop().await;
    assert_eq!(app.execution(id).await.status, Status::Cancelled);
    let again = app.services.cancel(&app.operator(), id).await;
    assert!(
        matches!(again, Err(ServiceError::WrongState { status: Status::Cancelled })),
        "{again:?}"
    );
}

#[tokio::test]
async fn cancelling_a_sleeping_query_ends_it_on_the_server() {
    cancels("select pg_sleep(600)::text as slept").await;
}

#[tokio::test]
async fn cancelling_a_computing_query_ends_it_on_the_server() {
    cancels("select count(*) from generate_series(1, 20000000000) n").await;
}

#[tokio::test]
async fn cancelling_a_query_that_sends_rows_ends_it_on_the_server() {
    cancels(ENDLESS).await;
}

async fn cancels(sql: &str) {
    let app = TestApp::new().await;
    app.define("long", sql).await;
    let id = app.submit("long", json!({})).await;
    let worker = app.start_worker().await;
    app.wait_until_querying(id).await;
    let began = Instant::now();
    let execution = app.services.cancel(&app.operator(), id).await.unwrap();
    assert_eq!(execution.status, Status::Cancelling);
    app.wait_until(id, Status::Cancelled).await;
    let took = began.elapsed();
    assert_eq!(app.report_backends().await, 0, "cancelled means that nothing runs any more");
    assert!(took < Duration::from_secs(15), "it took {took:?}");
    worker.stop().await;
    assert_eq!(app.stored().await, [""; 0]);
    let expected = ["execution.submitted", "execution.cancel_requested", "execution.cancelled"];
    assert_eq!(app.audit(id).await, expected);
}

#[tokio::test]
async fn a_cancel_ends_an_attempt_whose_store_does_not_answer() {
    let app = TestApp::new().on_s3().await;
    app.define("large", "select n, repeat('x', 1000) as x from generate_series(1, 40000) n").await;
    let s3 = app.s3.as_ref().unwrap();
    s3.fail(Fault::Hang, Operation::UploadPart, 1);
    let id = app.submit("large", json!({})).await;
    let worker = app.start_worker().await;
    app.wait_for("the upload to hang", async || s3.count(Operation::UploadPart) > 0).await;
    let began = Instant::now();
    app.services.cancel(&app.operator(), id).await.unwrap();
    app.wait_until(id, Status::Cancelled).await;
    worker.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert_eq!(s3.leftover_parts(), [""; 0]);
}

#[tokio::test]
async fn a_cancel_ends_an_attempt_whose_file_cannot_be_completed() {
    cancels_while_request_hangs(1).await;
}

#[tokio::test]
async fn a_cancel_ends_an_attempt_whose_manifest_cannot_be_written() {
    cancels_while_request_hangs(2).await;
}

/// Of a small report, the first request writes the file and the second the manifest.
async fn cancels_while_request_hangs(nth: u32) {
    let app = TestApp::new().on_s3().await;
    app.define("one", "select 1 as one").await;
    let s3 = app.s3.as_ref().unwrap();
    s3.fail(Fault::Hang, Operation::Put, nth);
    let id = app.submit("one", json!({})).await;
    let worker = app.start_worker().await;
    app.wait_for("the request to hang", async || s3.count(Operation::Put) == nth as usize).await;
    let began = Instant::now();
    app.services.cancel(&app.operator(), id).await.unwrap();
    app.wait_until(id, Status::Cancelled).await;
    worker.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert_eq!(app.stored().await, [""; 0]);
}

#[tokio::test]
async fn a_cancelled_execution_can_be_run_again_by_hand() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let id = app.submit("one", json!({})).await;
    app.services.cancel(&app.operator(), id).await.unwrap();
    app.services.retry(&app.operator(), id).await.unwrap();
    let worker = app.start_worker().await;
    app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    let refused = app.services.retry(&app.operator(), id).await;
    assert!(
        matches!(refused, Err(ServiceError::WrongState { status: Status::Completed })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_lease_that_nobody_renews_is_rescued() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let id = app.submit("one", json!({})).await;
    // A worker that claimed and vanished with its host: no lock to look at, only a lease.
    executions::claim_next(&app.services.db, "vanished", 1, Caps::default())
        .await
        .unwrap()
        .unwrap();
    let worker = app.start_worker().await;
    let execution = app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    assert_eq!((execution.attempt, failed_attempts(&app, id).await), (2, 1));
    let expected = ["execution.submitted", "execution.rescued", "execution.completed"];
    assert_eq!(app.audit(id).await, expected);
}

#[tokio::test]
async fn a_cancel_whose_worker_died_is_finished_by_another() {
    let app = TestApp::new().await;
    app.define("slow", SLOW).await;
    let id = app.submit("slow", json!({})).await;
    let first = app.start_worker().await;
    app.wait_until_querying(id).await;
    first.kill();
    app.services.cancel(&app.operator(), id).await.unwrap();
    let second = app.start_worker().await;
    app.wait_until(id, Status::Cancelled).await;
    assert_eq!(app.report_backends().await, 0);
    second.stop().await;
}

#[tokio::test]
async fn a_long_attempt_keeps_its_lease_and_shows_its_progress() {
    let app = TestApp::new().with(|config| config.worker.lease_secs = 3.try_into().unwrap()).await;
    app.define(
        "steady",
        "select n, repeat('x', 500) as x, pg_sleep(0.01)::text as slept
           from generate_series(1, 500) n",
    )
    .await;
    let id = app.submit("steady", json!({})).await;
    let workers = [app.start_worker().await, app.start_worker().await];
    app.wait_for("some progress", async || app.execution(id).await.progress_rows > 0).await;
    let execution = app.wait_until(id, Status::Completed).await;
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(execution.attempt, 1, "nobody took it away although it took longer than a lease");
    assert_eq!(execution.progress_rows, 500);
}

#[tokio::test]
async fn a_connection_that_is_cut_in_mid_report_is_tried_again() {
    let app = TestApp::new().await;
    app.define("slow", SLOW).await;
    let proxy = app.proxy();
    let mut config = app.config.clone();
    // Only reports go through it: the application's database stays.
    config.database.report_url = Some(proxy.report_url(&config).into());
    let id = app.submit("slow", json!({})).await;
    let worker = app.start_worker_with(config).await;
    app.wait_until_querying(id).await;
    make_quick(&app).await;
    assert_eq!(proxy.cut(), 1);
    let execution = app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    assert_eq!((execution.attempt, failed_attempts(&app, id).await), (2, 1));
}

#[tokio::test]
async fn a_worker_outlives_an_outage_of_the_database() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    app.define("brief", "select pg_sleep(3)::text as slept").await;
    let proxy = app.proxy();
    let mut config = app.config.clone();
    config.database.url = Some(proxy.url(app.database_url()).into());
    config.database.report_url = Some(proxy.report_url(&app.config).into());
    let running = app.submit("brief", json!({})).await;
    let worker = app.start_worker_with(config).await;
    app.wait_until_querying(running).await;
    proxy.refuse(true);
    assert!(proxy.cut() >= 3, "pool, queue, presence and report were connected");
    let waiting = app.submit("one", json!({})).await;
    // Long enough for every part of the worker to meet the outage.
    app.wait_for("the worker to be missed", async || {
        app.number("select extract(epoch from now() - max(last_seen_at))::int8 from workers").await
            >= 4
    })
    .await;
    proxy.refuse(false);
    for id in [running, waiting] {
        app.wait_until(id, Status::Completed).await;
    }
    worker.stop().await;
}
