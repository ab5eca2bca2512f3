//! SQL of Registrar's own tables, one file per table, and the pool to the application's database.
//!
//! Functions that change state take the caller's transaction, so that a use case is one
//! transaction with its audit row inside. Each state change is one statement guarded by the old
//! state; the number of rows it hit is its answer.

use std::str::FromStr;
use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::config::DatabaseConfig;

pub mod accounts;
pub mod audit;
pub mod backups;
pub mod certificates;
pub mod definitions;
pub mod deliveries;
pub mod diagnostics;
pub mod erasures;
pub mod executions;
pub mod holds;
pub mod idempotency;
pub mod overview;
pub mod policy_backlogs;
pub mod queue_pauses;
pub mod report_deliveries;
pub mod schedules;
pub mod sessions;
pub mod tokens;
pub mod webhooks;
pub mod workers;

/// The login role that reports run as.
pub const REPORT_ROLE: &str = "registrar_report";

/// Connections of a worker to its queues: one to listen, and one for each of the six to fetch, to
/// answer and to beat.
pub const QUEUE_CONNECTIONS: u32 = 7;

/// A wait for a connection that is worth a line in the log: under load, shorter ones are ordinary.
const SLOW_ACQUIRE: Duration = Duration::from_secs(10);

/// No database can be reached with the settings.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// `database.url` is missing.
    #[error(
        "database.url must be set: in registrar.toml, as REGISTRAR__DATABASE__URL or DATABASE_URL"
    )]
    NoUrl,
    /// A URL cannot be read. The message does not show it: it may hold a password.
    #[error("{key} must be a URL like postgres://user@host:5432/database")]
    BadUrl {
        /// Which setting.
        key: &'static str,
    },
    /// The server does not answer, or refuses.
    #[error("cannot connect to the database of {key}")]
    Connect {
        /// Which setting.
        key: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
}

/// How to reach the application's database.
///
/// # Errors
/// [`DatabaseError::NoUrl`] and [`DatabaseError::BadUrl`]
pub fn application_options(config: &DatabaseConfig) -> Result<PgConnectOptions, DatabaseError> {
    let url = config.url.as_ref().ok_or(DatabaseError::NoUrl)?;
    let options = PgConnectOptions::from_str(url.expose_secret())
        .map_err(|_| DatabaseError::BadUrl { key: "database.url" })?;
    // Metrics tell how long requests take; a warning with the whole text of a statement does not.
    Ok(options.application_name("registrar").disable_statement_logging())
}

/// How to reach the database as the report role.
///
/// # Errors
/// [`DatabaseError::NoUrl`] and [`DatabaseError::BadUrl`]
pub fn report_options(config: &DatabaseConfig) -> Result<PgConnectOptions, DatabaseError> {
    if let Some(url) = &config.report_url {
        return PgConnectOptions::from_str(url.expose_secret())
            .map_err(|_| DatabaseError::BadUrl { key: "database.report_url" });
    }
    primary_report_options(config)
}

/// How to reach the application's database as the report role, whatever `report_url` says.
///
/// # Errors
/// [`DatabaseError::NoUrl`] and [`DatabaseError::BadUrl`]
pub fn primary_report_options(config: &DatabaseConfig) -> Result<PgConnectOptions, DatabaseError> {
    let options = application_options(config)?.username(REPORT_ROLE);
    Ok(match &config.report_password {
        Some(password) => options.password(password.expose_secret()),
        None => options,
    })
}

/// Opens the pool to the application's database and checks that it answers.
///
/// # Errors
/// [`DatabaseError`]
pub async fn connect(config: &DatabaseConfig) -> Result<PgPool, DatabaseError> {
    pool_options(config)
        .connect_with(application_options(config)?)
        .await
        .map_err(|source| DatabaseError::Connect { key: "database.url", source })
}

/// Opens the pool without a first connection: a server that is not there yet is waited for by
/// whoever asks first.
///
/// # Errors
/// [`DatabaseError::NoUrl`] and [`DatabaseError::BadUrl`]
pub fn connect_lazily(config: &DatabaseConfig) -> Result<PgPool, DatabaseError> {
    Ok(pool_options(config).connect_lazy_with(application_options(config)?))
}

/// Opens the pool that a worker takes its tickets from, so that work never waits for a ticket's
/// connection, nor a ticket for work's.
///
/// # Errors
/// [`DatabaseError::NoUrl`] and [`DatabaseError::BadUrl`]
pub fn connect_queue(config: &DatabaseConfig) -> Result<PgPool, DatabaseError> {
    let options = application_options(config)?.application_name("registrar queue");
    Ok(pool_options(config).max_connections(QUEUE_CONNECTIONS).connect_lazy_with(options))
}

fn pool_options(config: &DatabaseConfig) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(config.max_connections.get())
        .acquire_timeout(Duration::from_secs(config.acquire_timeout_secs.get()))
        .acquire_slow_threshold(SLOW_ACQUIRE)
}

/// The five-character SQLSTATE of an error, when the server sent one.
pub fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned())
}
