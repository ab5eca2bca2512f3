//! Many machines, played by processes of this one: a primary and a streaming replica.

use std::time::Duration;

use registrar::db::executions::Status;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::support::process::Process;
use crate::support::servers::{Servers, caught_up};
use crate::support::{TestApp, eventually};

const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test]
async fn reports_are_read_from_the_replica_until_it_is_behind_or_away() {
    let mut servers = Servers::start().await;
    let app = TestApp::new().on_server(&servers.url()).await;
    app.define("where", "select pg_is_in_recovery() as replica").await;
    let mut replica = servers.on_replica(&app).await;
    let mut config = app.config.clone();
    config.database.report_url = Some(servers.report_url(&app));
    config.database.replica_max_lag_secs = 5;
    let worker = app.start_worker_with(config).await;
    let read_from = async || {
        let id = app.submit("where", json!({})).await;
        app.wait_until_ended(id).await;
        app.csv(id).await
    };
    caught_up(&app, &mut replica).await;
    assert_eq!(read_from().await, "replica\nt\n");

    sqlx::query("select pg_wal_replay_pause()").execute(&mut replica).await.unwrap();
    eventually("the replica to be behind", LIMIT, async || {
        app.execute("create table if not exists something as select 1 as n").await;
        let lag: Option<f64> = sqlx::query_scalar(
            "select extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8",
        )
        .fetch_one(&mut replica)
        .await
        .unwrap();
        lag.filter(|lag| *lag > 6.0)
    })
    .await;
    assert_eq!(read_from().await, "replica\nf\n", "it is behind");

    sqlx::query("select pg_wal_replay_resume()").execute(&mut replica).await.unwrap();
    caught_up(&app, &mut replica).await;
    assert_eq!(read_from().await, "replica\nt\n");

    replica.close().await.unwrap();
    servers.stop_replica().await;
    assert_eq!(read_from().await, "replica\nf\n", "it is away");
    worker.stop().await;
    drop(app);
    servers.stop().await;
}

/// Queries of reports on the replica.
async fn queries_on(replica: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_stat_activity
          where usename = 'registrar_report' and state = 'active'
            and query like '%pg_sleep(3600)%'",
    )
    .fetch_one(replica)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_cancel_reaches_the_replica_though_the_worker_stands_still() {
    let servers = Servers::start().await;
    let app = TestApp::new().on_server(&servers.url()).await;
    app.define("endless", "select n from generate_series(1, 3) as n, pg_sleep(3600)").await;
    let mut replica = servers.on_replica(&app).await;
    caught_up(&app, &mut replica).await;
    let mut config = app.config.clone();
    config.database.report_url = Some(servers.report_url(&app));
    // Behind is not away: it must be the replica that runs it.
    config.database.replica_max_lag_secs = 600;
    let mut worker = Process::start(&config, &["serve", "--only", "worker"]);
    let id = app.submit("endless", json!({})).await;
    eventually("the query on the replica", LIMIT, async || {
        (queries_on(&mut replica).await == 1).then_some(())
    })
    .await;
    let noted =
        format!("select count(*) from report_executions where id = {id} and backend_pid > 0");
    app.wait_for("the worker to note it", async || app.number(&noted).await == 1).await;

    // Nobody closes its connection, and the primary knows nothing of its process.
    worker.signal(Signal::STOP);
    let mut services = app.services.clone();
    services.reports = registrar::service::report_database(&config.database).unwrap();
    services.cancel(&app.operator(), id).await.unwrap();
    eventually("the query to be ended", Duration::from_secs(5), async || {
        (queries_on(&mut replica).await == 0).then_some(())
    })
    .await;
    let other = Process::start(&config, &["serve", "--only", "worker"]);
    app.wait_until(id, Status::Cancelled).await;
    worker.signal(Signal::CONT);
    worker.kill().await;
    drop(other);
    replica.close().await.unwrap();
    drop(app);
    servers.stop().await;
}
