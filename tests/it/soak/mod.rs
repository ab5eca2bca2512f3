//! The whole service on many machines, played by processes of this one, while they are killed, and
//! while everything that they stand on breaks at random. At the end an auditor sums.
//!
//! The test suite runs the second test for 90 seconds, `make soak` for 15 minutes. What broke, and
//! when, is printed with the seed, and the seed breaks the same things in the same order again.

mod auditor;
mod chance;
mod chaos;
mod fleet;
mod load;

use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::time::Duration;

use registrar::config::Config;
use reqwest::Method;
use serde_json::json;
use sqlx::Connection;
use tokio_util::sync::CancellationToken;

use self::chaos::Chaos;
use self::fleet::{Fleet, Part};
use self::load::Api;
use crate::support::app::jobs_dir;
use crate::support::process::Process;
use crate::support::receiver::Receiver;
use crate::support::servers::{Servers, caught_up};
use crate::support::{TestApp, tell};

/// How long things break where nobody says how long.
const SECS: u64 = 90;
/// The policy that the soak runs: the shipped one, without waiting for a machine that is idle.
const POLICY: &str = "archive-old-audit";
const POLICY_TOML: &str = r#"
kind        = "archive"
description = "Audit rows move to the archive after five years."
owner       = "records-office"

[limits]
max_rows   = 5_000_000
max_share  = 1.0

[[table]]
name   = "audit_logs"
age    = "created_at"
after  = "5 years"
"#;

/// A setting of a test, from the environment.
#[expect(clippy::disallowed_methods, reason = "how long a test runs, not a setting of the service")]
fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, is {text}")))
}

/// The servers, and the app over them with its reports, its webhook and its policy.
struct World {
    app: TestApp,
    servers: Servers,
    receiver: Receiver,
    token: String,
    config: Config,
    jobs: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let servers = Servers::start().await;
        let app = TestApp::new().on_s3().on_server(&servers.url()).await;
        app.define("load", "select n from generate_series(1, 200) as n, pg_sleep(0.001)").await;
        app.define("slow", "select n from generate_series(1, 5) as n, pg_sleep(0.3)").await;
        app.define("broken", "select 1 / (n - n) as x from generate_series(1, 3) as n").await;
        let large = "select n, repeat(md5(n::text), 5) as text from generate_series(1, 40000) n";
        app.define("large", large).await;
        app.define("tick", "select 1 as n").await;
        let mut replica = servers.on_replica(&app).await;
        caught_up(&app, &mut replica).await;
        replica.close().await.unwrap();
        let jobs = jobs(&app);
        // As `report.max_attempts` below: what is broken a hundred times is no poison here.
        app.execute("alter table lifecycle_runs alter column max_attempts set default 100").await;
        let mut config = app.config.clone();
        config.database.report_url = Some(servers.report_url(&app));
        config.database.replica_max_lag_secs = 10;
        config.database.max_connections = NonZeroU32::new(8).unwrap();
        config.database.acquire_timeout_secs = NonZeroU64::new(10).unwrap();
        config.http.shutdown_delay_secs = 0;
        config.worker.concurrency = 2.try_into().unwrap();
        config.report.max_attempts = NonZeroU32::new(100).unwrap();
        config.store.part_bytes = 5 * 1024 * 1024;
        config.store.request_timeout_secs = NonZeroU64::new(3).unwrap();
        config.webhook.timeout_secs = NonZeroU32::new(2).unwrap();
        config.lifecycle.jobs_dir = jobs.path().to_owned();
        config.backup.allow_plain = true;
        config.backup.verify_server_url = Some(servers.url().into());
        let token = app.token("admin").await;
        Self { app, servers, receiver: Receiver::start().await, token, config, jobs }
    }

    /// What clients set up, over whichever API answers.
    async fn set_up(&self, api: &Api, schedules: &[(&str, &str)]) {
        let events =
            ["execution.completed", "execution.failed", "execution.cancelled", "run.finished"];
        let url = format!("{}/hook", self.receiver.base);
        api.make("/v1/webhooks", &json!({"name": "portal", "url": url, "events": events})).await;
        for (name, cron) in schedules {
            let schedule = json!({"name": name, "report": "tick", "cron": cron,
                                  "overlap": "queue", "catch_up": "all",
                                  "pause_after_failures": 100});
            api.make("/v1/schedules", &schedule).await;
        }
    }

    async fn pause(&self, api: &Api, schedules: &[(&str, &str)]) {
        for (name, _) in schedules {
            let path = format!("/v1/schedules/{name}/pause");
            let (status, answer) =
                api.ask(Method::POST, &path, |request| request.json(&json!({}))).await;
            assert_eq!(status, 200, "{answer}");
        }
    }
}

/// A folder with the shipped classification and one policy.
fn jobs(app: &TestApp) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copied = std::fs::copy(
        Path::new(&jobs_dir()).join("classification.toml"),
        folder.path().join("classification.toml"),
    );
    copied.unwrap();
    let policy = folder.path().join(format!("{POLICY}.toml"));
    std::fs::write(policy, POLICY_TOML).unwrap();
    assert!(app.config.lifecycle.jobs_dir.exists());
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_loses_processes_under_load_and_nothing_else() {
    const SUBMITS: usize = 60;
    let schedules = [("every-two", "*/2 * * * * *")];
    let world = World::new().await;
    let mut fleet = Fleet::start(world.config.clone());
    let api = Api::new(fleet.bases(), &world.token);
    world.set_up(&api, &schedules).await;
    for key in 0..SUBMITS {
        api.submit("load", &format!("load-{key}"), &json!({})).await;
        match key {
            10 | 40 => fleet.kill(Part::Worker, key).await,
            20 | 45 => fleet.kill(Part::Api, key).await,
            30 | 50 => fleet.kill(Part::Scheduler, key).await,
            // What a client does that lost the answer.
            35 => {
                api.submit("load", "load-3", &json!({})).await;
            }
            _ => {}
        }
    }
    world.pause(&api, &schedules).await;
    Box::pin(finish(world, fleet, api)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_loses_nothing_and_doubles_nothing() {
    let secs = from_environment("REGISTRAR_SOAK_SECS").unwrap_or(SECS);
    let seed = from_environment("REGISTRAR_SOAK_SEED").unwrap_or_else(|| {
        u64::from_le_bytes(uuid::Uuid::new_v4().as_bytes()[..8].try_into().unwrap()) % 1_000_000
    });
    tell(&format!("{secs} s of chaos; REGISTRAR_SOAK_SEED={seed} repeats it"));
    let schedules = [("every-three", "*/3 * * * * *"), ("every-five", "*/5 * * * * *")];
    let mut world = World::new().await;
    let fleet = Fleet::start(world.config.clone());
    let api = Api::new(fleet.bases(), &world.token);
    world.set_up(&api, &schedules).await;
    let s3 = world.app.s3.take().expect("it is on S3");
    let World { app, servers, receiver, token, config, jobs } = world;
    let mut chaos = Chaos::new(fleet, servers, s3, receiver, seed);
    let stop = CancellationToken::new();
    let breaking = async {
        let faults = chaos.run(Duration::from_secs(secs)).await;
        stop.cancel();
        faults
    };
    let working = load::work(&api, &config, &app.services.db, POLICY, seed, &stop);
    let (faults, ()) = tokio::join!(breaking, working);
    let Chaos { fleet, servers, s3, receiver, .. } = chaos;
    let mut world = World { app, servers, receiver, token, config, jobs };
    world.app.s3 = Some(s3);
    world.pause(&api, &schedules).await;
    tell(&format!("{faults} faults; {}", api.ledger));
    backups(&world.config).await;
    Box::pin(finish(world, fleet, api)).await;
}

/// The last backup takes away what killed ones left, and can be restored like every other one.
async fn backups(config: &Config) {
    for arguments in [&["backup", "create"][..], &["backup", "verify", "latest"][..]] {
        let mut process = Process::start(config, arguments);
        let status = process.ended().await;
        assert!(status.success(), "{arguments:?}: {status}\n{}", process.log());
    }
}

/// Everything ends in order, and then the sums are made.
async fn finish(world: World, fleet: Fleet, api: Api) {
    let World { app, servers, receiver, token: _, config: _, jobs: _jobs } = world;
    auditor::settle(&app).await;
    let scratch = fleet.stop().await;
    let mut replica = servers.on_replica(&app).await;
    let mut wrong = auditor::audit(&app, &api.ledger, &receiver).await;
    if !scratch.is_empty() {
        wrong.push(format!("temporary files: {scratch:?}"));
    }
    let reports = auditor::reports_on(&mut replica).await;
    if reports > 0 {
        wrong.push(format!("{reports} connections of reports on the replica"));
    }
    replica.close().await.unwrap();
    let left = app.s3.as_ref().expect("it is on S3").leftover_parts();
    if !left.is_empty() {
        wrong.push(format!("unfinished uploads: {left:?}"));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    drop(app);
    servers.stop().await;
}
