//! Every fault at every point of an attempt. After each there is exactly one published result or
//! one clear failure, and nothing is left: no upload, no server process, no scratch file.
//!
//! An attempt is held at its point from outside: by a lock that its query waits for, by the S3
//! server, or by a lock on its ticket's row. Nothing in `src/` is made for this.
//!
//! What is a row of the table in part only:
//! - A full disk. Reports make no scratch files: all workers here run without a folder for them,
//!   and so does one report of each format. What can be full is the disk of a store that is a
//!   folder, and it fills while the file is written: one point, not six.
//! - A step of the clock. No decision is made by the clock of a worker's machine (`clippy.toml`
//!   bans the call that reads it), so the clock that steps is that of the database. A server of
//!   the tests cannot change it; its stored times are moved by as much the other way.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

use futures::future::join_all;
use registrar::db::audit::Actor;
use registrar::db::executions::{Execution, Status};
use registrar::postgres::{Binaries, ClusterOptions, DataDir, PrivateCluster};
use registrar::writer::Format;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::sync::Semaphore;

use crate::support::TestApp;
use crate::support::app::{Builder, submission};
use crate::support::process::{Disk, Process};
use crate::support::proxy::PostgresProxy;
use crate::support::s3::{Fault, Operation};

/// How far an attempt is when the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// Its query runs and has sent nothing.
    Claimed,
    /// Rows have come, nothing is uploaded.
    FirstRows,
    /// The same, in ranges over two connections.
    FirstRowsOfRanges,
    /// A part of the file is uploaded, another is on its way.
    MidUpload,
    /// The file is there; its manifest is on its way.
    Uploaded,
    /// The result is published; its ticket is not answered.
    Published,
}

const POINTS: [Point; 6] = [
    Point::Claimed,
    Point::FirstRows,
    Point::FirstRowsOfRanges,
    Point::MidUpload,
    Point::Uploaded,
    Point::Published,
];

/// Rows of the file: three parts of an upload.
const ROWS: usize = 6_400;
/// Cells at once. More would have the processes wait for each other.
const CELLS_AT_ONCE: usize = 3;

/// Server processes of reports that wait at the gate.
const AT_THE_GATE: &str = "
    select count(*)
      from pg_locks l
      join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and not l.granted and a.datname = current_database()
       and a.usename = 'registrar_report'";

/// An execution whose worker is held at a point.
struct Held {
    point: Point,
    app: TestApp,
    id: i64,
    worker: Process,
    /// Held open for as long as the attempt is to stay where it is.
    gate: Option<PgConnection>,
}

fn builder() -> Builder {
    TestApp::new().on_s3().with(|config| {
        config.store.part_bytes = 5 << 20;
        config.report.lock_timeout_ms = 60_000.try_into().unwrap();
        // Many processes share a server that takes two hundred.
        config.database.max_connections = 8.try_into().unwrap();
        config.worker.concurrency = 1.try_into().unwrap();
        config.worker.lease_secs = 4.try_into().unwrap();
        config.worker.shutdown_grace_secs = 1;
    })
}

/// A worker that cannot write scratch files.
async fn start_worker(app: &TestApp) -> Process {
    app.start_worker_process_on(Disk::WithoutScratch).await
}

impl Point {
    /// Stores the report that stops at this point.
    async fn define(self, app: &TestApp) {
        for statement in [
            &*format!(
                "create table wide as select n, repeat('x', 1900) as x
                   from generate_series(1, {ROWS}) n"
            ),
            "create unique index on wide (n)",
            "analyze wide",
            "grant select on wide to registrar_report",
        ] {
            app.execute(statement).await;
        }
        let (toml, at_the_gate) = match self {
            Self::Claimed => ("", "n = 1"),
            Self::FirstRows => ("", "n = 1500"),
            Self::FirstRowsOfRanges => ("split_by = \"n\"", "n % 300 = 200"),
            Self::MidUpload | Self::Uploaded | Self::Published => ("", "false"),
        };
        let sql = format!(
            "select n, x,
                    case when {at_the_gate} then pg_advisory_xact_lock_shared(7)::text end as gate
               from wide
              order by n"
        );
        app.define_with("large", toml, &sql).await;
    }

    /// How many server processes wait at the gate.
    const fn waiting(self) -> i64 {
        match self {
            Self::Claimed | Self::FirstRows => 1,
            Self::FirstRowsOfRanges => 2,
            Self::MidUpload | Self::Uploaded | Self::Published => 0,
        }
    }
}

impl Held {
    /// Brings an execution to a point.
    async fn at(point: Point, app: TestApp) -> Self {
        point.define(&app).await;
        let mut gate = PgConnection::connect(app.database_url()).await.unwrap();
        let s3 = app.s3.as_ref().unwrap();
        match point {
            Point::Claimed | Point::FirstRows | Point::FirstRowsOfRanges => {
                sqlx::query("select pg_advisory_lock(7)").execute(&mut gate).await.unwrap();
            }
            Point::MidUpload => s3.fail(Fault::Hold, Operation::UploadPart, 2),
            Point::Uploaded | Point::Published => s3.fail(Fault::Hold, Operation::Put, 1),
        }
        let id = app.submit("large", json!({})).await;
        let worker = start_worker(&app).await;
        let mut held = Self { point, app, id, worker, gate: Some(gate) };
        held.wait_until_there().await;
        held
    }

    async fn wait_until_there(&mut self) {
        let (app, s3) = (&self.app, self.app.s3.as_ref().unwrap());
        let what = format!("{:?}", self.point);
        match self.point {
            Point::Claimed | Point::FirstRows | Point::FirstRowsOfRanges => {
                let waiting = self.point.waiting();
                app.wait_for(&what, async || app.number(AT_THE_GATE).await == waiting).await;
            }
            Point::MidUpload => {
                app.wait_for(&what, async || s3.count(Operation::UploadPart) >= 2).await;
            }
            Point::Uploaded => app.wait_for(&what, async || s3.count(Operation::Put) >= 1).await,
            Point::Published => {
                app.wait_for(&what, async || s3.count(Operation::Put) >= 1).await;
                // Its ticket was taken; what is locked now is the answer.
                let gate = self.gate.as_mut().unwrap();
                sqlx::query("begin").execute(&mut *gate).await.unwrap();
                let lock = "select from apalis.jobs where job_type = 'reports' for update";
                sqlx::query(lock).execute(&mut *gate).await.unwrap();
                s3.release();
                app.wait_until(self.id, Status::Completed).await;
            }
        }
    }

    /// Lets the attempt go on, and every later one pass.
    async fn let_go(&mut self) {
        self.open_gate().await;
        match self.point {
            Point::MidUpload | Point::Uploaded => self.app.s3.as_ref().unwrap().release(),
            Point::Claimed | Point::FirstRows | Point::FirstRowsOfRanges | Point::Published => {}
        }
    }

    async fn open_gate(&mut self) {
        if let Some(gate) = self.gate.take() {
            // It may be gone with its server.
            let _closed = gate.close().await;
        }
    }

    async fn failures(&self) -> i64 {
        self.app.number("select failed_attempts::int8 from report_executions").await
    }

    /// Waits until the store has cost an attempt, if it was still needed, and then mends it.
    async fn wait_until_it_cost_an_attempt(&self) {
        if self.point != Point::Published {
            let what = format!("an attempt to fail at {:?}", self.point);
            self.app.wait_for(&what, async || self.failures().await >= 1).await;
        }
        self.app.s3.as_ref().unwrap().break_down(None);
    }

    /// Waits until the attempt is over, if the fault came before its end.
    async fn wait_until_given_up(&self) {
        if self.point == Point::Published {
            return;
        }
        let what = format!("the attempt at {:?} to be given up", self.point);
        let app = &self.app;
        app.wait_for(&what, async || {
            let execution = app.execution(self.id).await;
            execution.attempt > 1 || execution.status == Status::Pending
        })
        .await;
    }

    /// Waits for the end, ends the workers, and looks for what may not be left.
    async fn check(self, fault: &str, others: Vec<Process>) {
        let Self { point, app, id, worker, gate: _ } = self;
        let cell = format!("{fault} at {point:?}");
        let ended: Execution = app.wait_until_ended(id).await;
        assert_eq!(ended.status, Status::Completed, "{cell}: {ended:#?}");
        for mut process in others.into_iter().chain([worker]) {
            if process.is_running() {
                process.signal(Signal::TERM);
                let status = process.ended().await;
                assert!(status.success(), "{cell}: {status}: {}", process.log());
            }
        }
        let after = app.execution(id).await;
        assert_eq!(format!("{after:?}"), format!("{ended:?}"), "{cell}: an end is an end");
        let recorded = app.audit(id).await;
        let ends = recorded.iter().filter(|action| {
            ["execution.completed", "execution.failed"].contains(&action.as_str())
        });
        assert_eq!(ends.count(), 1, "{cell}: one end: {recorded:?}");
        assert_eq!(app.csv(id).await.lines().count(), ROWS + 1, "{cell}");
        app.wait_for(&format!("{cell}: no server process"), async || {
            app.report_backends().await == 0
        })
        .await;
        app.services.sweep(&Actor::system(), true).await.unwrap();
        let stored = app.stored().await;
        assert_eq!(stored.len(), 2, "{cell}: file and manifest: {stored:?}");
        let parts = app.s3.as_ref().unwrap().leftover_parts();
        assert_eq!(parts, [""; 0], "{cell}");
        // Dropping a database waits until every server process has taken note of it. One that
        // waits for a client of this thread to log in would not, and the thread would wait for it.
        tokio::task::spawn_blocking(move || drop(app)).await.unwrap();
    }
}

/// Runs a cell for each point, a few at once.
async fn at_each_point(cell: impl AsyncFn(Point)) {
    let places = Semaphore::new(CELLS_AT_ONCE);
    let cells = POINTS.map(async |point| {
        let _place = places.acquire().await.expect("it is never closed");
        cell(point).await;
    });
    join_all(cells).await;
}

#[tokio::test]
async fn kill_9() {
    at_each_point(async |point| {
        let mut held = Held::at(point, builder().await).await;
        held.worker.kill().await;
        let second = start_worker(&held.app).await;
        held.let_go().await;
        held.check("kill -9", vec![second]).await;
    })
    .await;
}

#[tokio::test]
async fn sigterm() {
    at_each_point(async |point| {
        let mut held = Held::at(point, builder().await).await;
        held.worker.signal(Signal::TERM);
        let second = start_worker(&held.app).await;
        held.wait_until_given_up().await;
        held.let_go().await;
        held.app.wait_until_ended(held.id).await;
        assert_eq!(held.failures().await, 0, "{point:?}: a deploy costs nothing");
        // Told once: a second signal would end it at once.
        let status = held.worker.ended().await;
        assert!(status.success(), "{point:?}: {status}: {}", held.worker.log());
        held.check("SIGTERM", vec![second]).await;
    })
    .await;
}

#[tokio::test]
async fn sigstop_and_sigcont() {
    at_each_point(async |point| {
        let mut held = Held::at(point, builder().await).await;
        held.worker.signal(Signal::STOP);
        let second = start_worker(&held.app).await;
        // Somebody else has it when it wakes.
        held.wait_until_given_up().await;
        held.let_go().await;
        held.app.wait_until_ended(held.id).await;
        held.worker.signal(Signal::CONT);
        held.check("SIGSTOP", vec![second]).await;
    })
    .await;
}

#[tokio::test]
async fn connections_cut() {
    at_each_point(async |point| {
        let mut app = builder().await;
        let proxy = app.proxy();
        let direct = app.config.clone();
        app.config.database.url = Some(proxy.url(app.database_url()).into());
        app.config.database.report_url = Some(proxy.report_url(&direct).into());
        let mut held = Held::at(point, app).await;
        assert!(proxy.cut() >= 2, "{point:?}");
        held.let_go().await;
        held.check("cut", Vec::new()).await;
    })
    .await;
}

#[tokio::test]
async fn a_store_that_answers_500() {
    at_each_point(async |point| {
        let mut held = Held::at(point, builder().await).await;
        held.app.s3.as_ref().unwrap().break_down(Some(Fault::Broken));
        held.let_go().await;
        held.wait_until_it_cost_an_attempt().await;
        held.check("store 500", Vec::new()).await;
    })
    .await;
}

#[tokio::test]
async fn a_store_that_hangs() {
    at_each_point(async |point| {
        let impatient =
            builder().with(|config| config.store.request_timeout_secs = 5.try_into().unwrap());
        let mut held = Held::at(point, impatient.await).await;
        held.app.s3.as_ref().unwrap().break_down(Some(Fault::Hang));
        // What the store holds is never answered.
        held.open_gate().await;
        held.wait_until_it_cost_an_attempt().await;
        held.check("store hang", Vec::new()).await;
    })
    .await;
}

/// By an hour, to either side.
#[tokio::test]
async fn the_clock_steps() {
    for (name, hours) in [("clock forward", 1), ("clock back", -1)] {
        at_each_point(async |point| {
            let mut held = Held::at(point, builder().await).await;
            step_clock(&held.app, hours).await;
            held.let_go().await;
            held.check(name, Vec::new()).await;
        })
        .await;
    }
}

/// And the worker dies before it could say the new time.
#[tokio::test]
async fn the_clock_steps_back_and_the_worker_is_killed() {
    at_each_point(async |point| {
        let mut held = Held::at(point, builder().await).await;
        held.worker.kill().await;
        step_clock(&held.app, -1).await;
        let second = start_worker(&held.app).await;
        held.let_go().await;
        held.check("clock back and kill -9", vec![second]).await;
    })
    .await;
}

/// Moves what is stored as if the database's clock had stepped by so many hours.
async fn step_clock(app: &TestApp, hours: i32) {
    for statement in [
        format!(
            "update report_executions
                set created_at = created_at - interval '{hours} hours',
                    run_at = run_at - interval '{hours} hours',
                    started_at = started_at - interval '{hours} hours',
                    lease_until = lease_until - interval '{hours} hours',
                    ticket_at = ticket_at - interval '{hours} hours'
              where status in ('pending', 'processing')"
        ),
        format!("update workers set last_seen_at = last_seen_at - interval '{hours} hours'"),
        format!("update apalis.workers set last_seen = last_seen - interval '{hours} hours'"),
    ] {
        app.execute(&statement).await;
    }
}

#[tokio::test]
async fn postgres_restarted() {
    let folder = tempfile::tempdir().unwrap();
    // As root the server runs as another user, who must get there.
    set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let start = async || {
        let options = ClusterOptions {
            data: DataDir::Keep(folder.path().join("cluster")),
            binaries: Binaries::find(None).unwrap(),
            settings: vec![("fsync".to_owned(), "off".to_owned())],
        };
        PrivateCluster::start(options).await.unwrap()
    };
    let cluster = start().await;
    let proxy = PostgresProxy::start(&cluster.database_url());
    let url = proxy.url(&cluster.database_url());
    let mut apps = Vec::new();
    for _ in POINTS {
        // One after the other: the first makes the template of the others.
        apps.push(builder().on_server(&url).await);
    }
    let cells = POINTS.into_iter().zip(apps);
    let mut cells = join_all(cells.map(async |(point, app)| Held::at(point, app).await)).await;
    cluster.stop().await.unwrap();
    let cluster = start().await;
    proxy.point_to(&cluster.database_url());
    for held in &mut cells {
        held.let_go().await;
    }
    let checks = cells.into_iter().map(async |held| {
        held.check("PostgreSQL restart", Vec::new()).await;
    });
    join_all(checks).await;
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_stores_disk_is_full() {
    let app = TestApp::new().await;
    Point::MidUpload.define(&app).await;
    let id = app.submit("large", json!({})).await;
    let mut worker = app.start_worker_process_on(Disk::FullAt { mib: 2 }).await;
    let failed = app.wait_until(id, Status::Failed).await;
    assert_eq!(failed.error_code.as_deref(), Some("store_unavailable"), "{failed:#?}");
    let message = failed.error_message.unwrap();
    assert!(!message.contains('/'), "no path of the server: {message}");
    assert_eq!(app.stored().await, [""; 0]);
    let swept = app.services.sweep(&Actor::system(), false).await.unwrap();
    assert!(swept.is_clean(), "no staged file either: {swept:?}");
    assert_eq!(app.report_backends().await, 0);
    // The process lives, and what fits is written.
    app.define("one", "select 1 as one").await;
    let small = app.submit("one", json!({})).await;
    app.wait_until(small, Status::Completed).await;
    worker.signal(Signal::TERM);
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn no_format_needs_a_scratch_file() {
    let app = builder().await;
    Point::MidUpload.define(&app).await;
    let mut worker = start_worker(&app).await;
    for format in [Format::Csv, Format::Xlsx, Format::Parquet, Format::Ndjson] {
        let submission = submission(json!({}), format);
        let submitted = app.submit_as(&app.operator(), "large", &submission).await.unwrap();
        let ended = app.wait_until(submitted.execution.id, Status::Completed).await;
        assert_eq!(ended.row_count, Some(ROWS as i64), "{format}");
    }
    worker.signal(Signal::TERM);
    assert!(worker.ended().await.success());
}
