//! The server processes that run the queries of reports, and their end.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

/// A server process that runs a report's query. The start tells it from a later one that was
/// given the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Backend {
    /// Process number on the server.
    pub backend_pid: i32,
    /// When that process began.
    pub backend_start: DateTime<Utc>,
}

impl Backend {
    /// The name of the processes that read other ranges of the same snapshot for the same attempt,
    /// as `report::source` gives it to their connections. They are not noted on the row.
    fn helper_name(&self) -> String {
        let since = self.backend_start.timestamp_micros();
        format!("registrar range of {} since {since}", self.backend_pid)
    }
}

/// Notes which server process works for an attempt, so that anybody can end it. `false`: the
/// attempt is not ours any more, or is being cancelled.
///
/// # Errors
/// The database's.
pub async fn note_backend(
    pool: &PgPool,
    id: i64,
    attempt: i32,
    backend: Backend,
) -> Result<bool, sqlx::Error> {
    let noted = sqlx::query(
        "update report_executions
            set backend_pid = $3, backend_start = $4
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .execute(pool)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// The server process of an attempt, if one was noted.
///
/// # Errors
/// The database's.
pub async fn backend_of(
    pool: &PgPool,
    id: i64,
    attempt: i32,
) -> Result<Option<Backend>, sqlx::Error> {
    sqlx::query_as(
        "select backend_pid, backend_start
           from report_executions
          where id = $1 and attempt = $2
            and backend_pid is not null and backend_start is not null",
    )
    .bind(id)
    .bind(attempt)
    .fetch_optional(pool)
    .await
}

/// Whether a server process or one of its helpers is still there.
///
/// # Errors
/// The database's.
pub async fn backend_is_alive(pool: &PgPool, backend: Backend) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select from pg_stat_activity
                         where pid = $1 and backend_start = $2 or application_name = $3)",
    )
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .bind(backend.helper_name())
    .fetch_one(pool)
    .await
}

/// Asks the server to end the query of a process and of its helpers. `false`: they are gone.
///
/// # Errors
/// The database's; `42501` when this role may not signal the report role.
pub async fn cancel_backend(pool: &PgPool, backend: Backend) -> Result<bool, sqlx::Error> {
    let signalled: Option<bool> = sqlx::query_scalar(
        "select bool_or(pg_cancel_backend(pid))
           from pg_stat_activity
          where pid = $1 and backend_start = $2 or application_name = $3",
    )
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .bind(backend.helper_name())
    .fetch_one(pool)
    .await?;
    Ok(signalled.unwrap_or(false))
}

/// Asks the server to end a process and its helpers. `false`: they are gone.
///
/// # Errors
/// The database's; `42501` when this role may not signal the report role.
pub async fn terminate_backend(pool: &PgPool, backend: Backend) -> Result<bool, sqlx::Error> {
    let signalled: Option<bool> = sqlx::query_scalar(
        "select bool_or(pg_terminate_backend(pid))
           from pg_stat_activity
          where pid = $1 and backend_start = $2 or application_name = $3",
    )
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .bind(backend.helper_name())
    .fetch_one(pool)
    .await?;
    Ok(signalled.unwrap_or(false))
}
