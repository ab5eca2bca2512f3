//! Many machines, played by processes of this one: a primary and a streaming replica.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use registrar::postgres::{Binaries, ClusterOptions, DataDir, PrivateCluster};
use secrecy::SecretString;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tempfile::TempDir;
use url::Url;

use crate::support::database::REPORT_PASSWORD;
use crate::support::{TestApp, eventually};

const LIMIT: Duration = Duration::from_secs(90);
const CAUGHT_UP: &str = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn";

/// A primary and its replica, each a server of its own.
struct Servers {
    primary: PrivateCluster,
    replica: PrivateCluster,
    _folder: TempDir,
}

impl Servers {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // As root the servers run as another user, who must get there.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let primary = start(&folder.path().join("primary")).await;
        copy(&primary, &folder.path().join("replica"));
        let replica = start(&folder.path().join("replica")).await;
        Self { primary, replica, _folder: folder }
    }

    /// The database of an app on the replica, as its superuser.
    async fn on_replica(&self, app: &TestApp) -> PgConnection {
        let port = Url::parse(&self.replica.database_url()).unwrap().port().unwrap();
        let options = PgConnectOptions::from_str(app.database_url()).unwrap().port(port);
        eventually("the replica to have the database", LIMIT, async || options.connect().await.ok())
            .await
    }

    /// Where the reports of an app are read on the replica.
    fn report_url(&self, app: &TestApp) -> SecretString {
        let port = Url::parse(&self.replica.database_url()).unwrap().port();
        let mut url = Url::parse(app.database_url()).unwrap();
        url.set_port(port).unwrap();
        url.set_username("registrar_report").unwrap();
        url.set_password(Some(REPORT_PASSWORD)).unwrap();
        SecretString::from(url.as_str())
    }
}

async fn start(home: &Path) -> PrivateCluster {
    let options = ClusterOptions {
        data: DataDir::Keep(home.to_owned()),
        binaries: Binaries::find(None).unwrap(),
        settings: vec![("fsync".to_owned(), "off".to_owned())],
    };
    PrivateCluster::start(options).await.unwrap()
}

/// Makes the home of a streaming replica: a copy of the primary that follows it.
fn copy(primary: &PrivateCluster, home: &Path) {
    let data = home.join("data");
    std::fs::create_dir(home).unwrap();
    std::fs::set_permissions(home, Permissions::from_mode(0o711)).unwrap();
    let server = Binaries::find(None).unwrap().program("postgres").canonicalize().unwrap();
    let status = Command::new(server.with_file_name("pg_basebackup"))
        .args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"])
        .arg("--pgdata")
        .arg(&data)
        .args(["--dbname", &primary.database_url()])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    std::fs::copy(primary.home().join("password"), home.join("password")).unwrap();
    let owner = std::fs::metadata(primary.home().join("data")).unwrap();
    let status = Command::new("chown")
        .arg("-R")
        .arg(format!("{}:{}", owner.uid(), owner.gid()))
        .arg(&data)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

async fn caught_up(app: &TestApp, replica: &mut PgConnection) {
    eventually("the replica to have caught up", LIMIT, async || {
        let written: String = sqlx::query_scalar("select pg_current_wal_lsn()::text")
            .fetch_one(&app.services.db)
            .await
            .unwrap();
        let caught_up: Option<bool> =
            sqlx::query_scalar(CAUGHT_UP).bind(written).fetch_one(&mut *replica).await.unwrap();
        (caught_up == Some(true)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn reports_are_read_from_the_replica_until_it_is_behind_or_away() {
    let servers = Servers::start().await;
    let app = TestApp::new().on_server(&servers.primary.database_url()).await;
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
    let Servers { primary, replica, _folder } = servers;
    replica.stop().await.unwrap();
    assert_eq!(read_from().await, "replica\nf\n", "it is away");
    worker.stop().await;
    drop(app);
    primary.stop().await.unwrap();
}
