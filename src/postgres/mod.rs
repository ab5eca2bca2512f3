//! A PostgreSQL server of our own, for the demo, the tests and the benchmarks.
//!
//! It promises:
//! - one call makes and starts a cluster, as root, as any other user, and offline;
//! - only who knows the random password gets in, also from the same machine;
//! - it ends with us: by [`PrivateCluster::stop`], when the value is dropped, and even when our
//!   process is killed, because a tiny shell process (`guard.sh`) waits for that and ends it;
//! - kept data survive all of that, temporary data are removed.
//!
//! It is not for production: there an administrator runs PostgreSQL and gives us its URL.
//! Nothing here knows the schema. Everything blocks, so it runs on threads for blocking work.

mod account;
mod binaries;
mod command;
mod error;
mod home;
mod restored;
mod server;
mod tools;

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection};

use self::{home::Home, server::Server};

pub use self::{
    binaries::{Binaries, OLDEST_SUPPORTED_MAJOR},
    command::run_with_cluster,
    error::Error,
    restored::{RestoreInto, RestoredCluster, command_of_server_account},
    tools::ClientTools,
};

/// The role that owns a private cluster, and the name of its database.
const NAME: &str = "registrar";

/// Where the data of a cluster are, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataDir {
    /// In this folder, made when missing, kept with durable settings. The data themselves are
    /// in `data` below it, beside the password and the log.
    Keep(PathBuf),
    /// In the system's temporary folder, with fast and unsafe settings, removed at the end.
    Temporary,
}

/// What [`PrivateCluster::start`] needs to know.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Where the data are.
    pub data: DataDir,
    /// The server programs.
    pub binaries: Binaries,
    /// Settings as in `postgresql.conf`, name and value; they win over our own.
    pub settings: Vec<(String, String)>,
}

/// A running PostgreSQL server that ends with this value.
#[derive(Debug)]
pub struct PrivateCluster {
    /// Present until the server is stopped.
    server: Option<Server>,
    home: Home,
    password: SecretString,
    port: u16,
}

impl PrivateCluster {
    /// Makes the cluster if it is new, starts it and waits until its database takes
    /// connections.
    ///
    /// A dropped future does not leave a server behind: the start goes on in its thread and
    /// what it made is stopped there.
    ///
    /// # Errors
    /// The folder cannot be used or is in use, the data are of another version, or the server
    /// does not start: then the message shows the end of its log.
    pub async fn start(options: ClusterOptions) -> Result<Self, Error> {
        let cluster = blocking(move || Self::start_server(&options)).await?;
        cluster.ensure_database().await?;
        Ok(cluster)
    }

    fn start_server(options: &ClusterOptions) -> Result<Self, Error> {
        let ClusterOptions { data, binaries, settings } = options;
        let home = match data {
            DataDir::Keep(dir) => Home::kept(dir)?,
            DataDir::Temporary => Home::temporary()?,
        };
        let started = Self::start_in(&home, binaries, settings);
        if started.is_err() {
            home.remove_if_temporary()?;
        }
        let (server, password) = started?;
        let port = server.port();
        Ok(Self { server: Some(server), home, password, port })
    }

    fn start_in(
        home: &Home,
        binaries: &Binaries,
        settings: &[(String, String)],
    ) -> Result<(Server, SecretString), Error> {
        home.account().check_reach(&binaries.program("postgres"))?;
        let password = match home.data_version() {
            None => home.fill(|data, pwfile| server::init(home, binaries, data, pwfile))?,
            Some(version) if version == binaries.major().to_string() => home.password()?,
            Some(data) => {
                let (home, binaries) = (home.dir().to_owned(), binaries.major());
                return Err(Error::OtherVersion { home, data, binaries });
            }
        };
        Ok((Server::start(home, binaries, settings, server::START_LIMIT)?, password))
    }

    async fn ensure_database(&self) -> Result<(), Error> {
        let database = |source| Error::Database { source };
        let url = self.url_of("postgres");
        let mut connection = PgConnection::connect(&url).await.map_err(database)?;
        let exists: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(NAME)
                .fetch_one(&mut connection)
                .await
                .map_err(database)?;
        if !exists {
            let create = sqlx::query("create database registrar");
            create.execute(&mut connection).await.map_err(database)?;
        }
        connection.close().await.map_err(database)
    }

    /// The URL of the database `registrar`, with the password of the superuser `registrar`.
    pub fn database_url(&self) -> String {
        self.url_of(NAME)
    }

    fn url_of(&self, database: &str) -> String {
        let Self { password, port, .. } = self;
        format!("postgres://{NAME}:{}@127.0.0.1:{port}/{database}", password.expose_secret())
    }

    /// The folder of this cluster: `data`, `password` and `postgres.log`.
    pub fn home(&self) -> &Path {
        self.home.dir()
    }

    /// The folder that was asked for, when the cluster had to go elsewhere: as root, because
    /// the unprivileged account that runs the server cannot reach it.
    pub fn relocated_from(&self) -> Option<&Path> {
        self.home.relocated_from()
    }

    /// Stops the server, a kept one in order, and removes temporary data. Takes 23 s at most;
    /// usually a fraction of one.
    ///
    /// # Errors
    /// The server cannot be ended or the data not be removed.
    pub async fn stop(mut self) -> Result<(), Error> {
        blocking(move || self.stop_server()).await
    }

    fn stop_server(&mut self) -> Result<(), Error> {
        let Some(server) = self.server.take() else { return Ok(()) };
        // Nobody needs the order of data that are removed.
        server.stop(self.home.is_temporary())?;
        self.home.remove_if_temporary()
    }
}

impl Drop for PrivateCluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop_server() {
            tracing::error!(error = %error, "the private cluster was not stopped: {error}");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
