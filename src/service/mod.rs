//! Use cases: one method = one use case = at most one transaction, with its audit row inside.
//!
//! `api` and `cli` parse and render; what may be done, by whom, and what it changes is decided
//! here. Nothing here knows HTTP.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

use crate::backup::BackupError;
use crate::config::{Config, DatabaseConfig};
use crate::db::executions::Status;
use crate::db::{self, DatabaseError};
use crate::policy::PolicyError;
use crate::report::definition::DefinitionFault;
use crate::report::parameters::ParameterError;
use crate::report::source::ReportDatabase;
use crate::store::{Store, StoreError};

pub mod access;
pub mod audit_trail;
mod backends;
pub mod backlogs;
pub mod backup_policies;
pub mod backups;
pub mod certificates;
mod deletions;
pub mod doctor;
pub mod due_runs;
pub mod erasures;
pub mod executions;
pub mod formats;
mod health;
pub mod hold_copies;
pub mod holds;
pub mod object;
pub mod overview;
pub mod passwords;
pub mod people_runs;
pub mod policies;
pub mod preview;
pub mod queues;
pub mod report_deliveries;
pub mod reports;
pub mod results;
pub mod runs;
pub mod schedules;
pub mod sessions;
pub mod sharing;
pub mod sweep;
pub mod tokens;
pub mod webhooks;

pub use access::{Caller, Permission};

/// Everything that use cases need. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    /// The application's database.
    pub db: PgPool,
    /// Where reports are read.
    pub reports: ReportDatabase,
    /// Where results are.
    pub store: Store,
    /// Settings.
    pub config: Arc<Config>,
    /// Checks passwords, a few at a time.
    pub passwords: passwords::PasswordChecker,
    /// Figures of the latest days.
    pub days_seen: overview::DaysSeen,
}

/// Most entries on a page of a list.
pub const MAX_PAGE: i64 = 200;

/// Where reports are read: from the replica that the settings name, with the primary behind it.
///
/// # Errors
/// A URL is missing or cannot be read.
pub fn report_database(config: &DatabaseConfig) -> Result<ReportDatabase, DatabaseError> {
    let mut reports = ReportDatabase::new(db::report_options(config)?);
    if config.report_url.is_some() {
        reports = reports.elsewhere();
    }
    let has_replica = config.report_url.is_some() && config.report_password.is_some();
    if !has_replica || config.replica_max_lag_secs == 0 {
        return Ok(reports);
    }
    let max_lag = Duration::from_secs(config.replica_max_lag_secs);
    Ok(reports.or_primary(db::primary_report_options(config)?, max_lag))
}

/// A use case was refused or failed. Each variant is one answer that callers can act on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// No valid token came with the request.
    #[error("a valid token is needed")]
    Unauthenticated,
    /// The caller lacks a permission.
    #[error("the permission `{permission}` is needed")]
    Forbidden {
        /// Its codename.
        permission: String,
    },
    /// There is no such thing, or the caller may not know of it.
    #[error("there is no such {what}")]
    NotFound {
        /// What was asked for.
        what: &'static str,
    },
    /// Parameters of a report are wrong.
    #[error("{} parameters are not valid", .0.len())]
    BadParameters(Vec<ParameterError>),
    /// A definition of a report is wrong.
    #[error("the definition has {} faults", .0.len())]
    BadDefinition(Vec<DefinitionFault>),
    /// Another part of the request is wrong.
    #[error("{field} {expected}")]
    BadField {
        /// JSON pointer or header name.
        field: &'static str,
        /// What was expected.
        expected: String,
    },
    /// The report cannot be run as it is; its author must mend it.
    #[error("the report cannot be run: {message}")]
    ReportFails {
        /// For programs, see [`crate::report::error::ReportError::code`].
        code: &'static str,
        /// For people. Never holds a value.
        message: String,
    },
    /// The planner expects too much, and the report refuses that.
    #[error("about {rows:.0} rows are expected, and {limit} are allowed")]
    OverEstimate {
        /// For programs, see [`crate::report::Excess::code`].
        code: &'static str,
        /// What the planner expects.
        rows: f64,
        /// What is allowed.
        limit: u64,
    },
    /// The execution is in a state that does not allow this.
    #[error("the execution is {status}")]
    WrongState {
        /// The current state.
        status: Status,
    },
    /// The result was deleted at its time.
    #[error("the result has expired")]
    Expired,
    /// The key was used for another request.
    #[error("the idempotency key was used with another request")]
    IdempotencyMismatch,
    /// A request with this key is still running.
    #[error("a request with this idempotency key is still running")]
    IdempotencyInFlight,
    /// The caller has as many unfinished executions as are allowed.
    #[error("at most {limit} executions may be unfinished at once")]
    TooManyActive {
        /// How many.
        limit: u32,
    },
    /// The files of the jobs folder cannot be used; whoever runs the service must mend them.
    #[error("the jobs folder cannot be used: {0}")]
    BadPolicies(#[source] PolicyError),
    /// A safety rule refuses it; the message says what to do.
    #[error("{message}")]
    Refused {
        /// For programs: `stale_digest`, `needs_digest`, `wrong_state`, …
        code: &'static str,
        /// For people.
        message: String,
    },
    /// The hold is not in force.
    #[error("the hold was released already, or has ended")]
    HoldEnded,
    /// A backup could not be made, read, proven or deleted.
    #[error(transparent)]
    Backup(Box<BackupError>),
    /// Somebody tried too often to sign in.
    #[error("too many attempts to sign in: try again in {} minutes", retry_after_secs / 60)]
    TooManySignIns {
        /// Until tries are forgotten.
        retry_after_secs: i32,
    },
    /// The database does not answer.
    #[error("the database is not available")]
    DatabaseUnavailable(#[source] sqlx::Error),
    /// The store does not answer.
    #[error("the object store is not available")]
    StoreUnavailable(#[source] StoreError),
    /// Something that should not happen. The source is for the log only.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

impl ServiceError {
    /// A safety rule refuses it: which, for programs, and what to do, for people.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::Refused { code, message: message.into() }
    }
}

impl From<sqlx::Error> for ServiceError {
    fn from(error: sqlx::Error) -> Self {
        let gone = match &error {
            // Connection, resources, shutdown; then what a moment later would have worked: a
            // deadlock, a conflict, a lock held for too long.
            sqlx::Error::Database(database) => database.code().is_some_and(|code| {
                ["08", "53", "57P", "40", "55P03", "57014"]
                    .iter()
                    .any(|class| code.starts_with(class))
            }),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            _ => false,
        };
        if gone { Self::DatabaseUnavailable(error) } else { Self::Internal(safe(error)) }
    }
}

/// Drops what PostgreSQL adds to an error: its DETAIL can hold whole rows.
fn safe(error: sqlx::Error) -> anyhow::Error {
    match error.as_database_error() {
        Some(database) => anyhow::anyhow!(
            "SQLSTATE {}{}",
            database.code().unwrap_or_default(),
            database.constraint().map(|name| format!(", constraint {name}")).unwrap_or_default(),
        ),
        None => error.into(),
    }
}

impl From<BackupError> for ServiceError {
    fn from(error: BackupError) -> Self {
        Self::Backup(Box::new(error))
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(_) => Self::NotFound { what: "file" },
            error => Self::StoreUnavailable(error),
        }
    }
}
