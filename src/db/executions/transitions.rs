//! The arrows between the states but the claim: each is one guarded statement.

use std::num::NonZeroU32;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use super::Backend;
use super::claim::cap;

/// An execution to be stored.
#[derive(Debug)]
pub struct NewExecution<'a> {
    /// The definition.
    pub definition_id: i32,
    /// Its version.
    pub definition_version: i32,
    /// Who submits; `None` for the operator at the command line.
    pub executed_by: Option<i32>,
    /// Resolved parameters.
    pub parameters: &'a Value,
    /// File format.
    pub format: &'a str,
    /// Other choices of the caller.
    pub options: &'a Value,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// How many of this definition the user may have running.
    pub max_concurrent: Option<NonZeroU32>,
    /// The execution that this one makes a further format of.
    pub format_of: Option<i64>,
    /// What makes two executions the same, see [`super::find_shareable`].
    pub reuse_key: Option<&'a str>,
    /// The execution on its way whose result this one will share.
    pub shared_from: Option<i64>,
    /// Trace of the request.
    pub trace_id: &'a str,
}

/// Stores a pending execution.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    new: &NewExecution<'_>,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "insert into report_executions
                (report_definition_id, definition_version, executed_by, parameters, format,
                 options, max_attempts, trace_id, max_concurrent, format_of, reuse_key, shared_from,
                 status, ticket_at)
         -- With the ticket's time, whose number follows: without it the row would be one that a cap
         -- has kept back, to be found by that, and be written to all indexes twice.
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 'pending',
                 case when $12::bigint is null then now() end)
         returning id",
    )
    .bind(new.definition_id)
    .bind(new.definition_version)
    .bind(new.executed_by)
    .bind(new.parameters)
    .bind(new.format)
    .bind(new.options)
    .bind(new.max_attempts)
    .bind(new.trace_id)
    .bind(cap(new.max_concurrent))
    .bind(new.format_of)
    .bind(new.reuse_key)
    .bind(new.shared_from)
    .fetch_one(connection)
    .await
}

/// Notes the ticket that was pushed for a pending execution.
///
/// # Errors
/// The database's.
pub async fn note_ticket(
    connection: &mut PgConnection,
    id: i64,
    ticket_id: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update report_executions
            set ticket_id = $2, ticket_at = now()
          where id = $1 and status = 'pending'",
    )
    .bind(id)
    .bind(ticket_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// What a heartbeat learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// The lease is renewed.
    Renewed,
    /// Somebody wants the execution cancelled.
    Cancelling,
    /// The attempt is not ours any more.
    Lost,
}

/// Renews the lease of an attempt and stores its progress.
///
/// # Errors
/// The database's.
pub async fn heartbeat(
    pool: &PgPool,
    id: i64,
    attempt: i32,
    lease_secs: i32,
    rows: i64,
    bytes: i64,
) -> Result<Beat, sqlx::Error> {
    let status: Option<String> = sqlx::query_scalar(
        "update report_executions
            set lease_until = now() + make_interval(secs => $3),
                progress_rows = $4, progress_bytes = $5
          where id = $1 and attempt = $2 and status in ('processing', 'cancelling')
         returning status",
    )
    .bind(id)
    .bind(attempt)
    .bind(f64::from(lease_secs))
    .bind(rows)
    .bind(bytes)
    .fetch_optional(pool)
    .await?;
    Ok(match status.as_deref() {
        Some("processing") => Beat::Renewed,
        Some(_) => Beat::Cancelling,
        None => Beat::Lost,
    })
}

/// Asks, without writing, whether an attempt may go on: cheap enough for every second.
///
/// # Errors
/// The database's.
pub async fn look(pool: &PgPool, id: i64, attempt: i32) -> Result<Beat, sqlx::Error> {
    let status: Option<String> = sqlx::query_scalar(
        "select status
           from report_executions
          where id = $1 and attempt = $2 and status in ('processing', 'cancelling')",
    )
    .bind(id)
    .bind(attempt)
    .fetch_optional(pool)
    .await?;
    Ok(match status.as_deref() {
        Some("processing") => Beat::Renewed,
        Some(_) => Beat::Cancelling,
        None => Beat::Lost,
    })
}

/// What a finished attempt publishes.
#[derive(Debug)]
pub struct Published<'a> {
    /// Where the file is.
    pub path: &'a str,
    /// Rows in it.
    pub row_count: i64,
    /// Its size.
    pub size_bytes: i64,
    /// Its hash, in hex.
    pub sha256: &'a str,
    /// Whether it was cut at a limit.
    pub truncated: bool,
    /// Instant of the snapshot.
    pub snapshot_at: DateTime<Utc>,
    /// Days that it is kept.
    pub expires_after_days: i32,
}

/// processing → completed. `false`: the attempt is not the current one, and its file must be
/// dropped. This is the only statement that makes a result visible, and the attempt in it is why
/// a worker that comes back from the dead can publish nothing.
///
/// # Errors
/// The database's.
pub async fn publish(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    result: &Published<'_>,
) -> Result<bool, sqlx::Error> {
    let published = sqlx::query(
        "update report_executions
            set status = 'completed', completed_at = now(), result_file_path = $3,
                row_count = $4, size_bytes = $5, sha256 = $6, truncated = $7, snapshot_at = $8,
                expires_at = now() + make_interval(days => $9),
                progress_rows = $4, progress_bytes = $5, error_code = null, error_message = null,
                lease_until = null, backend_pid = null, backend_start = null
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .bind(result.path)
    .bind(result.row_count)
    .bind(result.size_bytes)
    .bind(result.sha256)
    .bind(result.truncated)
    .bind(result.snapshot_at)
    .bind(result.expires_after_days)
    .execute(connection)
    .await?;
    Ok(published.rows_affected() == 1)
}

/// processing → failed, for good.
///
/// # Errors
/// The database's.
pub async fn fail(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    code: &str,
    message: &str,
) -> Result<bool, sqlx::Error> {
    let failed = sqlx::query(
        "update report_executions
            set status = 'failed', completed_at = now(), failed_attempts = failed_attempts + 1,
                error_code = $3, error_message = $4,
                lease_until = null, backend_pid = null, backend_start = null
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .bind(code)
    .bind(message)
    .execute(connection)
    .await?;
    Ok(failed.rows_affected() == 1)
}

/// processing → pending after a failure that may pass; the error stays readable meanwhile.
///
/// # Errors
/// The database's.
pub async fn retry_later(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    code: &str,
    message: &str,
    pause_secs: f64,
) -> Result<bool, sqlx::Error> {
    let retried = sqlx::query(
        "update report_executions
            set status = 'pending', failed_attempts = failed_attempts + 1,
                run_at = now() + make_interval(secs => $5),
                error_code = $3, error_message = $4,
                lease_until = null, backend_pid = null, backend_start = null
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .bind(code)
    .bind(message)
    .bind(pause_secs)
    .execute(connection)
    .await?;
    Ok(retried.rows_affected() == 1)
}

/// processing → pending at a deploy: no failure is counted, and nobody waits.
///
/// # Errors
/// The database's.
pub async fn give_back(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
) -> Result<bool, sqlx::Error> {
    let given = sqlx::query(
        "update report_executions
            set status = 'pending', run_at = now(),
                lease_until = null, backend_pid = null, backend_start = null
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .execute(connection)
    .await?;
    Ok(given.rows_affected() == 1)
}

/// What asking for a cancel did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelRequest {
    /// It had not begun, and is cancelled.
    Cancelled,
    /// It runs; its server process must be ended.
    Cancelling(Backend),
    /// It is in a state that cannot be cancelled.
    Refused,
}

#[derive(sqlx::FromRow)]
struct CancelledRow {
    status: String,
    #[sqlx(flatten)]
    backend: Backend,
}

/// pending → cancelled, or processing → cancelling.
///
/// # Errors
/// The database's.
pub async fn request_cancel(
    connection: &mut PgConnection,
    id: i64,
) -> Result<CancelRequest, sqlx::Error> {
    let row: Option<CancelledRow> = sqlx::query_as(
        "update report_executions
            set status = case status when 'pending' then 'cancelled' else 'cancelling' end,
                completed_at = case status when 'pending' then now() end,
                cancel_requested_at = now()
          where id = $1 and status in ('pending', 'processing')
         returning status, id, attempt, backend_pid, backend_start",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(match row {
        None => CancelRequest::Refused,
        Some(row) if row.status == "cancelled" => CancelRequest::Cancelled,
        Some(row) => CancelRequest::Cancelling(row.backend),
    })
}

/// cancelling → cancelled, once the server process is gone.
///
/// # Errors
/// The database's.
pub async fn finish_cancel(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
) -> Result<bool, sqlx::Error> {
    let cancelled = sqlx::query(
        "update report_executions
            set status = 'cancelled', completed_at = now(),
                lease_until = null, backend_pid = null, backend_start = null
          where id = $1 and attempt = $2 and status = 'cancelling'",
    )
    .bind(id)
    .bind(attempt)
    .execute(connection)
    .await?;
    Ok(cancelled.rows_affected() == 1)
}

/// failed or cancelled → pending, by hand: the attempt number goes on, the count of failures
/// starts again.
///
/// # Errors
/// The database's.
pub async fn retry_by_hand(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let retried = sqlx::query(
        "update report_executions
            set status = 'pending', run_at = now(), failed_attempts = 0, completed_at = null,
                cancel_requested_at = null, error_code = null, error_message = null,
                shared_from = null
          where id = $1 and status in ('failed', 'cancelled') and definition_version is not null",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(retried.rows_affected() == 1)
}

/// completed → expired, after the file is gone.
///
/// # Errors
/// The database's.
pub async fn expire(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let expired = sqlx::query(
        "update report_executions
            set status = 'expired', result_file_path = null, reuse_key = null
          where id = $1 and status = 'completed' and expires_at <= now()",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(expired.rows_affected() == 1)
}
