//! The promises of the README, each under the fault that would break it, on the real binary with
//! the settings that are shipped.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use registrar::db::executions::Status;
use registrar::postgres::{Binaries, ClusterOptions, DataDir, PrivateCluster};
use registrar::writer::Format;
use rustix::process::Signal;
use serde_json::json;

use crate::support::TestApp;
use crate::support::app::submission;
use crate::support::eventually;
use crate::support::process::Process;
use crate::support::proxy::PostgresProxy;
use crate::support::s3::{Fault, Operation};

/// Runs for ten minutes, unless the role of this name is renamed.
const SLOW: &str = "select pg_sleep(600)::text as slept from roles where name = 'guest'";
/// Twenty megabytes, three parts of an upload.
const LARGE: &str = "select n, repeat('x', 1000) as x from generate_series(1, 20000) n";
/// From the death of a worker to the end of a short report on another one.
const RESCUE_LIMIT: Duration = Duration::from_secs(30);

async fn make_quick(app: &TestApp) {
    app.execute("update roles set name = 'visitor' where name = 'guest'").await;
}

async fn count(app: &TestApp, id: i64, action: &str) -> usize {
    app.audit(id).await.iter().filter(|recorded| *recorded == action).count()
}

#[tokio::test]
async fn a_killed_workers_report_is_completed_by_another_within_30_seconds() {
    let app = TestApp::new().with_default_times().on_s3().await;
    app.define("large", LARGE).await;
    let s3 = app.s3.as_ref().unwrap();
    // It is killed in the middle of its upload: one part is there, another on its way.
    s3.fail(Fault::Hang, Operation::UploadPart, 2);
    let id = app.submit("large", json!({})).await;
    let mut first = app.start_worker_process().await;
    app.wait_for("the second part", async || s3.count(Operation::UploadPart) >= 2).await;
    let second = app.start_worker_process().await;
    first.kill().await;
    let killed = Instant::now();
    assert_eq!(app.stored().await, [""; 0], "no partial file is visible");

    let execution = app.wait_until_within(RESCUE_LIMIT, id, Status::Completed).await;
    assert!(killed.elapsed() < RESCUE_LIMIT, "it took {:?}", killed.elapsed());
    assert_eq!(execution.attempt, 2);
    assert_eq!(app.csv(id).await.lines().count(), 20_001);
    assert_eq!(app.stored().await.len(), 2, "one file and its manifest");
    assert_eq!(count(&app, id, "execution.completed").await, 1);
    end(second).await;
}

#[tokio::test]
async fn a_worker_that_was_paused_and_replaced_cannot_publish() {
    let app = TestApp::new().with_default_times().on_s3().await;
    app.define("one", "select 1 as one").await;
    let s3 = app.s3.as_ref().unwrap();
    // It is paused with its file on the way: when it wakes, the store says that all is well.
    s3.fail(Fault::Hold, Operation::Put, 1);
    let id = app.submit("one", json!({})).await;
    let paused = app.start_worker_process().await;
    app.wait_for("the file to be on its way", async || s3.count(Operation::Put) == 1).await;
    paused.signal(Signal::STOP);
    let second = app.start_worker_process().await;
    let published = app.wait_until(id, Status::Completed).await;
    assert_eq!(published.attempt, 2);

    s3.release();
    paused.signal(Signal::CONT);
    // Its graceful end comes after the end of its attempt.
    end(paused).await;
    end(second).await;
    let after = app.execution(id).await;
    assert_eq!(format!("{after:?}"), format!("{published:?}"), "it changed nothing");
    assert_eq!(app.csv(id).await, "one\n1\n");
    assert_eq!(count(&app, id, "execution.completed").await, 1);
    let folder = format!("/{id}/2/");
    let stored = app.stored().await;
    assert!(stored.len() == 2 && stored.iter().all(|p| p.contains(&folder)), "{stored:?}");
}

#[tokio::test]
async fn a_worker_paused_in_its_query_finds_it_gone_and_leaves_the_result_alone() {
    let app = TestApp::new().with_default_times().await;
    app.define("slow", SLOW).await;
    let id = app.submit("slow", json!({})).await;
    let paused = app.start_worker_process().await;
    app.wait_until_querying(id).await;
    paused.signal(Signal::STOP);
    make_quick(&app).await;
    let second = app.start_worker_process().await;
    let published = app.wait_until(id, Status::Completed).await;
    paused.signal(Signal::CONT);
    end(paused).await;
    end(second).await;
    assert_eq!(format!("{:?}", app.execution(id).await), format!("{published:?}"));
    assert_eq!(count(&app, id, "execution.completed").await, 1);
    assert_eq!(app.stored().await.len(), 2);
}

#[tokio::test]
async fn a_terminated_worker_gives_its_report_back_at_no_cost() {
    let app = TestApp::new().with(|config| config.worker.shutdown_grace_secs = 1).await;
    app.define("slow", SLOW).await;
    let id = app.submit("slow", json!({})).await;
    let first = app.start_worker_process().await;
    app.wait_until_querying(id).await;
    end(first).await;
    assert_eq!(app.execution(id).await.status, Status::Pending);
    make_quick(&app).await;
    let second = app.start_worker_process().await;
    app.wait_until(id, Status::Completed).await;
    end(second).await;
    let failed = format!("select failed_attempts::int8 from report_executions where id = {id}");
    assert_eq!(app.number(&failed).await, 0);
}

#[tokio::test]
async fn postgres_restarted_under_three_reports_is_sat_out() {
    let folder = tempfile::tempdir().unwrap();
    // As root the server runs as another user, who must get there.
    set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let cluster = start_cluster(folder.path()).await;
    let proxy = PostgresProxy::start(&cluster.database_url());
    let url = proxy.url(&cluster.database_url());
    let app = TestApp::new().on_server(&url).with_default_times().await;
    app.define("slow", SLOW).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(app.submit("slow", json!({})).await);
    }
    let mut service = app.start_process(&["serve"]).await;
    for &id in &ids {
        app.wait_until_querying(id).await;
    }

    cluster.stop().await.unwrap();
    let cluster = start_cluster(folder.path()).await;
    proxy.point_to(&cluster.database_url());
    make_quick(&app).await;
    for id in ids {
        let execution = app.wait_until(id, Status::Completed).await;
        assert_eq!(execution.attempt, 2);
        assert_eq!(count(&app, id, "execution.completed").await, 1);
    }
    assert!(service.is_running(), "the process is the one that was there before");
    // It does not only finish what it had: it takes new work.
    let id = app.submit("slow", json!({})).await;
    app.wait_until(id, Status::Completed).await;
    end(service).await;
    drop(app);
    cluster.stop().await.unwrap();
}

async fn start_cluster(folder: &Path) -> PrivateCluster {
    let options = ClusterOptions {
        data: DataDir::Keep(folder.join("cluster")),
        binaries: Binaries::find(None).unwrap(),
        settings: vec![("fsync".to_owned(), "off".to_owned())],
    };
    PrivateCluster::start(options).await.unwrap()
}

#[tokio::test]
async fn a_store_that_is_away_for_20_seconds_is_sat_out() {
    let mut app = TestApp::new().with_default_times().on_s3().await;
    app.define("large", LARGE).await;
    app.define("one", "select 1 as one").await;
    let s3 = app.s3.as_ref().unwrap();
    // One report is in the middle of its upload, others are submitted meanwhile.
    s3.fail(Fault::Hang, Operation::UploadPart, 2);
    let mut ids = vec![app.submit("large", json!({})).await];
    let service = app.start_process(&["serve"]).await;
    app.wait_for("the second part", async || s3.count(Operation::UploadPart) >= 2).await;

    app.s3.as_mut().unwrap().stop();
    let stopped = Instant::now();
    for _ in 0..2 {
        ids.push(app.submit("one", json!({})).await);
    }
    eventually("20 seconds to pass", Duration::from_secs(30), async || {
        (stopped.elapsed() >= Duration::from_secs(20)).then_some(())
    })
    .await;
    for &id in &ids {
        let status = app.execution(id).await.status;
        assert!(!status.is_final(), "{id} is {status} without a store");
    }
    app.s3.as_mut().unwrap().start_again();
    for &id in &ids {
        app.wait_until(id, Status::Completed).await;
        app.result(id).await;
        assert_eq!(count(&app, id, "execution.completed").await, 1);
    }
    end(service).await;
    assert_eq!(app.stored().await.len(), 2 * ids.len());
}

#[tokio::test]
async fn two_services_on_one_database_run_every_execution_once() {
    let app = TestApp::new().with_default_times().await;
    app.define("numbers", "select n from generate_series(1, 1000) n").await;
    let services = [app.start_process(&["serve"]).await, app.start_process(&["serve"]).await];
    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(app.submit("numbers", json!({})).await);
    }
    for &id in &ids {
        let execution = app.wait_until(id, Status::Completed).await;
        assert_eq!(execution.attempt, 1);
        assert_eq!(app.audit(id).await, ["execution.submitted", "execution.completed"]);
    }
    let workers = "select count(distinct lease_owner) from report_executions";
    assert_eq!(app.number(workers).await, 2, "both took part");
    for service in services {
        end(service).await;
    }
    assert_eq!(app.stored().await.len(), 80);
}

/// A join's worth of types: one million rows of ten columns.
const MILLION: &str = "
    select n as id, 'S' || lpad(n::text, 8, '0') as number,
           'Student, the ' || n || '. of many' as name, n % 2 = 0 as is_active,
           date '2000-01-01' + n % 10000 as born,
           timestamptz '2020-01-01 00:00Z' + n * interval '37 seconds' as enrolled,
           (n % 10000)::numeric(10, 2) / 100 as average, n * 1.5e0 as score,
           nullif(md5(n::text), md5('7')) as hash, n::bigint * 1000003 as reference
      from generate_series(1, 1000000) n";

#[tokio::test]
async fn a_million_rows_to_csv_on_s3_take_less_than_128_mib() {
    million(Format::Csv, 128).await;
}

#[tokio::test]
async fn a_million_rows_to_xlsx_on_s3_take_less_than_256_mib() {
    million(Format::Xlsx, 256).await;
}

async fn million(format: Format, limit_mib: u64) {
    let app = TestApp::new().with_default_times().on_s3().await;
    app.define("million", MILLION).await;
    let submission = submission(json!({}), format);
    let submitted = app.submit_as(&app.operator(), "million", &submission).await.unwrap();
    let id = submitted.execution.id;
    let worker = app.start_worker_process().await;
    let limit = Duration::from_secs(170);
    let execution = app.wait_until_within(limit, id, Status::Completed).await;
    assert_eq!((execution.row_count, execution.attempt), (Some(1_000_000), 1));
    let peak = worker.peak_memory_bytes();
    assert!(peak < limit_mib << 20, "{format}: {} MiB", peak >> 20);
    end(worker).await;
    let file = app.result(id).await;
    if format == Format::Csv {
        assert_eq!(file.iter().filter(|byte| **byte == b'\n').count(), 1_000_001);
    }
}

/// Ends a process in order.
async fn end(mut process: Process) {
    process.signal(Signal::TERM);
    let status = process.ended().await;
    assert!(status.success(), "{status}: {}", process.log());
}
