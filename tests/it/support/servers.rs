//! A PostgreSQL of a test's own with a streaming replica, both of which can be restarted.
//!
//! Everybody, the replica included, reaches the primary through a proxy: a server that comes back
//! has a new port, and its clients need not know.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use registrar::postgres::{Binaries, ClusterOptions, DataDir, PrivateCluster};
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tempfile::TempDir;
use url::Url;

use super::database::REPORT_PASSWORD;
use super::proxy::PostgresProxy;
use super::{TestApp, eventually};

/// How long a server may take for anything that a test waits for.
const LIMIT: Duration = Duration::from_secs(90);
const CAUGHT_UP: &str = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn";

/// A primary and its replica, each a server of its own.
#[derive(Debug)]
pub struct Servers {
    /// What stands before the primary.
    pub proxy: PostgresProxy,
    primary: Option<PrivateCluster>,
    replica: Option<PrivateCluster>,
    folder: TempDir,
}

impl Servers {
    /// Makes and starts both.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // As root the servers run as another user, who must get there.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let primary = start(&folder.path().join("primary")).await;
        let proxy = PostgresProxy::start(&primary.database_url());
        copy(&primary, &proxy, &folder.path().join("replica"));
        let replica = start(&folder.path().join("replica")).await;
        Self { proxy, primary: Some(primary), replica: Some(replica), folder }
    }

    /// The primary, through its proxy.
    pub fn url(&self) -> String {
        self.proxy.url(&self.primary.as_ref().expect("it runs").database_url())
    }

    /// The database of an app on the replica, as its superuser.
    pub async fn on_replica(&self, app: &TestApp) -> PgConnection {
        let options = PgConnectOptions::from_str(app.database_url()).unwrap();
        let options = options.port(self.replica_port());
        eventually("the replica to have the database", LIMIT, async || options.connect().await.ok())
            .await
    }

    /// Where the reports of an app are read on the replica.
    pub fn report_url(&self, app: &TestApp) -> SecretString {
        let mut url = Url::parse(app.database_url()).unwrap();
        url.set_port(Some(self.replica_port())).unwrap();
        url.set_username("registrar_report").unwrap();
        url.set_password(Some(REPORT_PASSWORD)).unwrap();
        SecretString::from(url.as_str())
    }

    fn replica_port(&self) -> u16 {
        let replica = self.replica.as_ref().expect("it runs");
        Url::parse(&replica.database_url()).unwrap().port().unwrap()
    }

    /// Stops the replica for good.
    pub async fn stop_replica(&mut self) {
        self.replica.take().expect("it runs").stop().await.unwrap();
    }

    /// Stops the primary in order and starts it again, on another port.
    pub async fn restart_primary(&mut self) {
        self.primary.take().expect("it runs").stop().await.unwrap();
        let primary = start(&self.home("primary")).await;
        self.proxy.point_to(&primary.database_url());
        self.primary = Some(primary);
    }

    /// Kills one of the primary's processes: it then ends all others and recovers as after a crash.
    pub async fn crash_primary(&self) {
        let url = self.primary.as_ref().expect("it runs").database_url();
        let Ok(mut admin) = PgConnection::connect(&url).await else { return };
        let victim: Result<i32, _> =
            sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut admin).await;
        let Ok(victim) = victim else { return };
        let pid = rustix::process::Pid::from_raw(victim).expect("a process number");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    fn home(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Stops both. What used them must be gone.
    pub async fn stop(self) {
        let Self { proxy, primary, replica, folder } = self;
        for server in [replica, primary].into_iter().flatten() {
            server.stop().await.unwrap();
        }
        drop((proxy, folder));
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
fn copy(primary: &PrivateCluster, proxy: &PostgresProxy, home: &Path) {
    let data = home.join("data");
    std::fs::create_dir(home).unwrap();
    std::fs::set_permissions(home, Permissions::from_mode(0o711)).unwrap();
    let server = Binaries::find(None).unwrap().program("postgres").canonicalize().unwrap();
    let status = Command::new(server.with_file_name("pg_basebackup"))
        .args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"])
        .arg("--pgdata")
        .arg(&data)
        .args(["--dbname", &proxy.url(&primary.database_url())])
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

/// Waits until the replica has replayed all that the primary has written.
pub async fn caught_up(app: &TestApp, replica: &mut PgConnection) {
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
