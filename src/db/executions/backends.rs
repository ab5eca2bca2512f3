//! The server processes that run the queries of reports, and their end.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

/// The server processes of an attempt. Those are the one that is noted on the row, when it is known
/// yet, and every one that bears the attempt's name: it may read over several connections, and may
/// have been killed before it noted the first.
///
/// The start tells a process from a later one that was given the same number. Number and start are
/// what a report's query cannot change, as it can its connection's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Backend {
    /// The execution.
    pub id: i64,
    /// Its attempt.
    pub attempt: i32,
    /// Process number on the server.
    pub backend_pid: Option<i32>,
    /// When that process began.
    pub backend_start: Option<DateTime<Utc>>,
}

/// What the connections of an attempt are called in the server's list of processes.
pub fn connection_name(id: i64, attempt: i32) -> String {
    format!("registrar execution {id} attempt {attempt}")
}

/// What is sent to the server processes of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendSignal {
    /// Nothing: are they there?
    Probe,
    /// End the query.
    Cancel,
    /// End the connection.
    Terminate,
}

/// Notes which server process works for an attempt, so that anybody can end it. `false`: the
/// attempt is not ours any more, or is being cancelled.
///
/// # Errors
/// The database's.
pub async fn note_backend(pool: &PgPool, backend: Backend) -> Result<bool, sqlx::Error> {
    let noted = sqlx::query(
        "update report_executions
            set backend_pid = $3, backend_start = $4
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(backend.id)
    .bind(backend.attempt)
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .execute(pool)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// The server processes of an attempt; none when it is not the current one.
///
/// # Errors
/// The database's.
pub async fn backend_of(
    pool: &PgPool,
    id: i64,
    attempt: i32,
) -> Result<Option<Backend>, sqlx::Error> {
    sqlx::query_as(
        "select id, attempt, backend_pid, backend_start
           from report_executions
          where id = $1 and attempt = $2",
    )
    .bind(id)
    .bind(attempt)
    .fetch_optional(pool)
    .await
}

/// Sends a signal to the server processes of an attempt. Answers whether there were any.
///
/// # Errors
/// The database's; `42501` when this role may not signal the report role.
pub async fn signal_backend(
    pool: &PgPool,
    backend: Backend,
    signal: BackendSignal,
) -> Result<bool, sqlx::Error> {
    let signal = match signal {
        BackendSignal::Probe => "probe",
        BackendSignal::Cancel => "cancel",
        BackendSignal::Terminate => "terminate",
    };
    sqlx::query_scalar(
        "select coalesce(bool_or(case $4
                                 when 'cancel' then pg_cancel_backend(pid)
                                 when 'terminate' then pg_terminate_backend(pid)
                                 else true end), false)
           from pg_stat_activity
          where datname = current_database()
            and (pid = $1 and backend_start = $2 or application_name = $3)",
    )
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .bind(connection_name(backend.id, backend.attempt))
    .bind(signal)
    .fetch_one(pool)
    .await
}
