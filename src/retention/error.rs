//! What can go wrong in the engine.

/// The engine stopped. Each variant is one thing that callers act on.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// A safety rule refuses it; the message says what to do.
    #[error("{message}")]
    Refused {
        /// For programs: `stale_digest`, `over_ceiling`, `unplanned`, …
        code: &'static str,
        /// For people. Holds no value of any row.
        message: String,
    },
    /// The run was paused or cancelled, or is another worker's now.
    #[error("the run is not ours any more")]
    Lost,
    /// This process is asked to stop.
    #[error("the run was stopped")]
    Stopped,
    /// Rows were locked by others for too long.
    #[error("rows of `{table}` stay locked by others: no chunk got through in {tries} tries")]
    Locked {
        /// Which table.
        table: String,
        /// How often it was tried.
        tries: u32,
    },
    /// What was moved is not what was deleted. The transaction was rolled back.
    #[error("rows of `{table}` did not arrive in the archive as they left; nothing was moved")]
    Unequal {
        /// Which table.
        table: String,
    },
    /// The store did not take, or not give back, an export.
    #[error("rows cannot be exported: {0}")]
    Store(#[from] crate::store::StoreError),
    /// What the policy says to wait for did not end.
    #[error("nothing could be done for {most}: {reason}; resume the run when that is over")]
    Busy {
        /// What it was.
        reason: String,
        /// How long it was waited for.
        most: crate::policy::Timespan,
    },
    /// The store takes too long: rows are locked meanwhile.
    #[error("the store took longer than {} s over an export", .limit.as_secs())]
    SlowStore {
        /// How long it had.
        limit: std::time::Duration,
    },
    /// Something beside the database does not answer.
    #[error("{what} is not available")]
    Unavailable {
        /// What.
        what: &'static str,
    },
    /// The database's. Its DETAIL is never shown.
    #[error("the database refused a statement{}", sqlstate_note(.0))]
    Database(#[from] sqlx::Error),
}

impl RetentionError {
    /// A refusal.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::Refused { code, message: message.into() }
    }

    /// For programs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Lost => "lost",
            Self::Stopped => "stopped",
            Self::Locked { .. } => "locked",
            Self::Unequal { .. } => "unequal",
            Self::Busy { .. } => "busy",
            Self::Store(_) | Self::SlowStore { .. } => "store",
            Self::Unavailable { .. } => "unavailable",
            Self::Database(_) => "database",
        }
    }

    /// Whether a later try may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Locked { .. }
            | Self::Store(_)
            | Self::SlowStore { .. }
            | Self::Unavailable { .. } => true,
            Self::Database(error) => is_passing(error),
            Self::Refused { .. }
            | Self::Lost
            | Self::Stopped
            | Self::Busy { .. }
            | Self::Unequal { .. } => false,
        }
    }
}

/// Whether an error is about the connection, the server's state, or a race.
fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => {
            let code = sqlstate(error);
            ["08", "40", "53", "55", "57"].iter().any(|class| code.starts_with(class))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Whether another transaction stood in the way of a chunk: a lock, a deadlock, a conflict.
pub(super) fn is_lock_conflict(error: &RetentionError) -> bool {
    match error {
        RetentionError::Database(error) => {
            ["55P03", "40P01", "40001"].contains(&sqlstate(error).as_str())
        }
        RetentionError::Refused { .. }
        | RetentionError::Lost
        | RetentionError::Stopped
        | RetentionError::Busy { .. }
        | RetentionError::Locked { .. }
        | RetentionError::Store(_)
        | RetentionError::SlowStore { .. }
        | RetentionError::Unavailable { .. }
        | RetentionError::Unequal { .. } => false,
    }
}

fn sqlstate(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map(|code| code.into_owned()).unwrap_or_default()
}

fn sqlstate_note(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(database) => {
            let constraint = database.constraint();
            let constraint = constraint.map(|name| format!(", constraint `{name}`"));
            format!(" (SQLSTATE {}{})", sqlstate(error), constraint.unwrap_or_default())
        }
        None => ": it does not answer".to_owned(),
    }
}
