//! `report_executions`: the truth about every run of a report.
//!
//! ```text
//!            ┌────────── give back, retry, rescue ───────────┐
//!            ▼                                               │
//! submit → pending ── claim (attempt + 1, lease) ──► processing ──► completed ──► expired
//!            │                                        │     │
//!            │ cancel                          cancel │     └──► failed
//!            ▼                                        ▼
//!        cancelled ◄──── backend is gone ──────── cancelling
//! ```
//!
//! Each arrow is one statement below, guarded by the state it starts from and, where a worker
//! acts, by the attempt it claimed. A worker that was paused and comes back finds that its
//! attempt is not the current one, and can change nothing.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

/// State of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Waits for a worker.
    Pending,
    /// A worker has it.
    Processing,
    /// Somebody asked for its end; its query may still be running.
    Cancelling,
    /// The result is there.
    Completed,
    /// It ended without a result; the error says why.
    Failed,
    /// It was cancelled, and nothing of it runs any more.
    Cancelled,
    /// The result was deleted at its time.
    Expired,
}

impl Status {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Processing,
        Self::Cancelling,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// As stored and as in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether nothing more will happen to the run itself.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Processing | Self::Cancelling => false,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired => true,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownStatus)
    }
}

impl TryFrom<String> for Status {
    type Error = UnknownStatus;

    fn try_from(text: String) -> Result<Self, UnknownStatus> {
        text.parse()
    }
}

/// The text is not the name of a state.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be pending, processing, cancelling, completed, failed, cancelled or expired")]
pub struct UnknownStatus;

/// An execution as clients see it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Execution {
    /// Its number.
    pub id: i64,
    /// The definition's slug.
    pub slug: String,
    /// The definition's title.
    pub title: String,
    /// The definition's version it runs.
    pub definition_version: Option<i32>,
    /// Who submitted it.
    pub executed_by: Option<i32>,
    /// Resolved parameters.
    pub parameters: Option<Value>,
    /// File format.
    pub format: String,
    /// Other choices of the caller.
    pub options: Value,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Tries so far.
    pub attempt: i32,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// Not before then.
    pub run_at: DateTime<Utc>,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// When the current attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// Rows read so far.
    pub progress_rows: i64,
    /// Bytes written so far.
    pub progress_bytes: i64,
    /// Why it failed, for programs.
    pub error_code: Option<String>,
    /// Why it failed, for people.
    pub error_message: Option<String>,
    /// Rows of the result.
    pub row_count: Option<i64>,
    /// Size of the result.
    pub size_bytes: Option<i64>,
    /// SHA-256 of the result, in hex.
    pub sha256: Option<String>,
    /// Whether the result was cut at a limit.
    pub truncated: bool,
    /// Instant of the snapshot that was read.
    pub snapshot_at: Option<DateTime<Utc>>,
    /// When the result is deleted.
    pub expires_at: Option<DateTime<Utc>>,
    /// Where the result is in the store.
    pub result_file_path: Option<String>,
    /// The submit's trace.
    pub trace_id: Option<String>,
}

/// The columns of [`Execution`]; `concat!` because SQL must be static.
macro_rules! select_execution {
    ($tail:literal) => {
        concat!(
            "select e.id, d.slug, d.name as title, e.definition_version, e.executed_by,
                    e.parameters, e.format, e.options, e.status, e.attempt, e.max_attempts,
                    e.run_at, e.created_at, e.started_at, e.completed_at, e.progress_rows,
                    e.progress_bytes, e.error_code, e.error_message, e.row_count, e.size_bytes,
                    e.sha256, e.truncated, e.snapshot_at, e.expires_at, e.result_file_path,
                    e.trace_id
               from report_executions e
               join report_definitions d on d.id = e.report_definition_id ",
            $tail
        )
    };
}

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
                 options, max_attempts, trace_id, status)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 'pending')
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
    .fetch_one(connection)
    .await
}

/// Finds an execution.
///
/// # Errors
/// The database's.
pub async fn find(
    connection: &mut PgConnection,
    id: i64,
) -> Result<Option<Execution>, sqlx::Error> {
    sqlx::query_as(select_execution!("where e.id = $1")).bind(id).fetch_optional(connection).await
}

/// Which executions to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this user.
    pub executed_by: Option<i32>,
    /// Only in this state.
    pub status: Option<Status>,
    /// Only of this report.
    pub slug: Option<String>,
    /// Only with a smaller number: the cursor.
    pub before: Option<i64>,
}

/// Lists executions, newest first.
///
/// # Errors
/// The database's.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Execution>, sqlx::Error> {
    sqlx::query_as(select_execution!(
        "where ($1::int is null or e.executed_by = $1)
           and ($2::text is null or e.status = $2)
           and ($3::text is null or d.slug = $3)
           and ($4::bigint is null or e.id < $4)
         order by e.id desc
         limit $5"
    ))
    .bind(filter.executed_by)
    .bind(filter.status.map(Status::as_str))
    .bind(filter.slug.as_deref())
    .bind(filter.before)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// How many executions of a user are not finished. Locks the user's row, so that two submits at
/// once cannot both take the last free place.
///
/// # Errors
/// The database's.
pub async fn count_active(connection: &mut PgConnection, user_id: i32) -> Result<i64, sqlx::Error> {
    sqlx::query("select from users where id = $1 for no key update")
        .bind(user_id)
        .execute(&mut *connection)
        .await?;
    sqlx::query_scalar(
        "select count(*)
           from report_executions
          where executed_by = $1 and status in ('pending', 'processing', 'cancelling')",
    )
    .bind(user_id)
    .fetch_one(connection)
    .await
}

/// How many pending executions are before this one, and how long runs of its report took: the
/// median of the last twenty, in seconds.
///
/// # Errors
/// The database's.
pub async fn outlook(pool: &PgPool, id: i64) -> Result<(i64, Option<f64>), sqlx::Error> {
    sqlx::query_as(
        "select (select count(*)
                   from report_executions p
                  where p.status = 'pending' and e.status = 'pending'
                    and (p.run_at, p.id) < (e.run_at, e.id)),
                (select percentile_cont(0.5) within group (order by recent.seconds)
                   from (select extract(epoch from c.completed_at - c.started_at)::float8 as seconds
                           from report_executions c
                          where c.report_definition_id = e.report_definition_id
                            and c.definition_version = e.definition_version
                            and c.status = 'completed'
                          order by c.id desc
                          limit 20) recent)
           from report_executions e
          where e.id = $1",
    )
    .bind(id)
    .fetch_one(pool)
    .await
}

/// What a worker needs to run an attempt.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Claimed {
    /// The execution.
    pub id: i64,
    /// The fencing token.
    pub attempt: i32,
    /// Failed tries before this one.
    pub failed_attempts: i32,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// The definition.
    pub report_definition_id: i32,
    /// Its version; none for rows from before versions.
    pub definition_version: Option<i32>,
    /// Who submitted it.
    pub executed_by: Option<i32>,
    /// Resolved parameters.
    pub parameters: Option<Value>,
    /// File format.
    pub format: String,
    /// Other choices of the caller.
    pub options: Value,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// When this attempt began.
    pub started_at: DateTime<Utc>,
    /// Trace of the submit.
    pub trace_id: Option<String>,
}

/// pending → processing: takes the execution whose turn it is for its next attempt. `None`: there
/// is nothing to take, which is how a doubled or late ticket ends. Committed at once: no
/// transaction stays open while the report runs.
///
/// Whose turn it is: the highest priority first; inside it the user who has the fewest running,
/// counting those of the same user that would go before; then whoever has waited longest. So one
/// user's thousand executions cost another user at most one run's wait. As many tickets are
/// pushed as there are executions, and it does not matter which ticket takes which.
///
/// Two workers that claim at once never take the same row, and never wait for each other: a row
/// that one of them has locked is skipped. `PER_USER` rows of each waiting user are looked at,
/// more than there can be workers claiming in the same instant.
///
/// # Errors
/// The database's.
pub async fn claim_next(
    pool: &PgPool,
    owner: &str,
    lease_secs: i32,
) -> Result<Option<Claimed>, sqlx::Error> {
    /// More than this many claims at the same instant leave a ticket to the reaper.
    const PER_USER: i64 = 16;
    sqlx::query_as(
        "with recursive waiting (user_id) as (
             (select coalesce(executed_by, 0)
                from report_executions
               where status = 'pending'
               order by coalesce(executed_by, 0)
               limit 1)
             union all
             select (select coalesce(e.executed_by, 0)
                       from report_executions e
                      where e.status = 'pending' and coalesce(e.executed_by, 0) > waiting.user_id
                      order by coalesce(e.executed_by, 0)
                      limit 1)
               from waiting
              where waiting.user_id is not null
         ),
         ranked as (
             select next.id, next.priority, next.run_at,
                    running.executions
                        + row_number() over (partition by waiting.user_id, next.priority
                                             order by next.run_at, next.id) as turn
               from waiting
              cross join lateral (
                    select count(*) as executions
                      from report_executions r
                     where coalesce(r.executed_by, 0) = waiting.user_id
                       and r.status in ('processing', 'cancelling')) running
              cross join lateral (
                    select e.id, e.priority, e.run_at
                      from report_executions e
                     where coalesce(e.executed_by, 0) = waiting.user_id
                       and e.status = 'pending' and e.run_at <= now()
                     order by e.priority desc, e.run_at, e.id
                     limit $3) next
              where waiting.user_id is not null
         ),
         chosen as (
             select e.id
               from ranked
               join report_executions e on e.id = ranked.id and e.status = 'pending'
              order by ranked.priority desc, ranked.turn, ranked.run_at, ranked.id
              limit 1
                for update of e skip locked
         )
         update report_executions e
            set status = 'processing', attempt = e.attempt + 1,
                lease_owner = $1, lease_until = now() + make_interval(secs => $2),
                started_at = now(), progress_rows = 0, progress_bytes = 0,
                backend_pid = null, backend_start = null,
                ticket_id = null, ticket_at = null
           from chosen
          where e.id = chosen.id and e.status = 'pending'
         returning e.id, e.attempt, e.failed_attempts, e.max_attempts, e.report_definition_id,
                   e.definition_version, e.executed_by, e.parameters, e.format, e.options,
                   e.created_at, e.started_at, e.trace_id",
    )
    .bind(owner)
    .bind(f64::from(lease_secs))
    .bind(PER_USER)
    .fetch_optional(pool)
    .await
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

/// A server process that runs a report's query. The start tells it from a later one that was
/// given the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Backend {
    /// Process number on the server.
    pub backend_pid: i32,
    /// When that process began.
    pub backend_start: DateTime<Utc>,
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
    Cancelling(Option<Backend>),
    /// It is in a state that cannot be cancelled.
    Refused,
}

/// pending → cancelled, or processing → cancelling.
///
/// # Errors
/// The database's.
pub async fn request_cancel(
    connection: &mut PgConnection,
    id: i64,
) -> Result<CancelRequest, sqlx::Error> {
    let row: Option<(String, Option<i32>, Option<DateTime<Utc>>)> = sqlx::query_as(
        "update report_executions
            set status = case status when 'pending' then 'cancelled' else 'cancelling' end,
                completed_at = case status when 'pending' then now() end,
                cancel_requested_at = now()
          where id = $1 and status in ('pending', 'processing')
         returning status, backend_pid, backend_start",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(match row {
        None => CancelRequest::Refused,
        Some((status, _, _)) if status == "cancelled" => CancelRequest::Cancelled,
        Some((_, Some(backend_pid), Some(backend_start))) => {
            CancelRequest::Cancelling(Some(Backend { backend_pid, backend_start }))
        }
        Some(_) => CancelRequest::Cancelling(None),
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
                cancel_requested_at = null, error_code = null, error_message = null
          where id = $1 and status in ('failed', 'cancelled') and definition_version is not null",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(retried.rows_affected() == 1)
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

/// An execution whose worker is gone.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Orphan {
    /// The execution.
    pub id: i64,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// The attempt that was lost.
    pub attempt: i32,
    /// Failed tries before it.
    pub failed_attempts: i32,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// processing or cancelling.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Who had it.
    pub lease_owner: Option<String>,
    /// Process number on the server, if its query was running.
    pub backend_pid: Option<i32>,
    /// When that process began.
    pub backend_start: Option<DateTime<Utc>>,
}

/// Locks at most `limit` executions whose worker is gone: the lease has run out, or the worker's
/// advisory lock is free although the worker has not been seen for `lock_grace_secs`.
///
/// The lock alone is not believed, because a lost connection frees it too while the worker lives;
/// a living worker takes it again and is seen every second. After a restart of the server every
/// lock is free, so locks count only when the server has been up for ten seconds.
///
/// # Errors
/// The database's.
pub async fn lock_orphans(
    connection: &mut PgConnection,
    lock_grace_secs: i32,
    limit: i64,
) -> Result<Vec<Orphan>, sqlx::Error> {
    sqlx::query_as(
        "select e.id, e.created_at, e.attempt, e.failed_attempts, e.max_attempts, e.status,
                e.lease_owner, e.backend_pid, e.backend_start
           from report_executions e
          where e.status in ('processing', 'cancelling')
            and e.lease_until is not null
            and (e.lease_until < now()
                 or (pg_postmaster_start_time() < now() - interval '10 seconds'
                     and exists (
                         select from workers w
                          where w.id = e.lease_owner
                            and w.last_seen_at < now() - make_interval(secs => $1)
                            and not exists (
                                select from pg_locks l
                                 where l.locktype = 'advisory' and l.objsubid = 1
                                   and l.database = (select oid from pg_database
                                                      where datname = current_database())
                                   and ((l.classid::bigint << 32) | l.objid::bigint)
                                       = w.lock_key))))
          order by e.lease_until
          limit $2
            for update of e skip locked",
    )
    .bind(f64::from(lock_grace_secs))
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Locks at most `limit` pending executions that are due and have no live ticket: never ticketed,
/// or ticketed more than `ticket_secs` ago.
///
/// # Errors
/// The database's.
pub async fn lock_unticketed(
    connection: &mut PgConnection,
    ticket_secs: i32,
    limit: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select id
           from report_executions
          where status = 'pending' and run_at <= now()
            and (ticket_at is null
                 or greatest(ticket_at, run_at) < now() - make_interval(secs => $1))
          order by run_at
          limit $2
            for update skip locked",
    )
    .bind(f64::from(ticket_secs))
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// A result whose time is over.
#[derive(Debug, sqlx::FromRow)]
pub struct Expiring {
    /// The execution.
    pub id: i64,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
}

/// Lists at most `limit` completed executions past their time.
///
/// # Errors
/// The database's.
pub async fn list_expiring(pool: &PgPool, limit: i64) -> Result<Vec<Expiring>, sqlx::Error> {
    sqlx::query_as(
        "select id, created_at
           from report_executions
          where status = 'completed' and expires_at <= now()
          order by expires_at
          limit $1",
    )
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// completed → expired, after the file is gone.
///
/// # Errors
/// The database's.
pub async fn expire(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let expired = sqlx::query(
        "update report_executions
            set status = 'expired', result_file_path = null
          where id = $1 and status = 'completed' and expires_at <= now()",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(expired.rows_affected() == 1)
}

/// completed → expired before its time, after the file is gone: it may name somebody who was erased.
///
/// # Errors
/// The database's.
pub async fn expire_now(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let expired = sqlx::query(
        "update report_executions
            set status = 'expired', result_file_path = null,
                expires_at = least(expires_at, now())
          where id = $1 and status = 'completed'",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(expired.rows_affected() == 1)
}

/// Executions whose query matches a pattern, or that one of these accounts ran, and that may have
/// read before `read_before`; `concat!` because SQL must be static.
macro_rules! naming {
    ($head:literal, $tail:literal) => {
        concat!(
            $head,
            " from report_executions e
               left join report_definition_versions v
                 on v.report_definition_id = e.report_definition_id
                and v.version = e.definition_version
              where (v.query is null or v.query ~* $1 or e.executed_by::text = any ($3))
                and coalesce(e.snapshot_at, e.started_at, e.created_at)
                    <= $2 ",
            $tail
        )
    };
}

/// Completed ones, oldest first.
///
/// # Errors
/// The database's.
pub async fn list_naming(
    pool: &PgPool,
    pattern: &str,
    read_before: DateTime<Utc>,
    executed_by: &[String],
    limit: i64,
) -> Result<Vec<Expiring>, sqlx::Error> {
    sqlx::query_as(naming!(
        "select e.id, e.created_at",
        "and e.status = 'completed' order by e.id limit $4"
    ))
    .bind(pattern)
    .bind(read_before)
    .bind(executed_by)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Whether one of them has a result or still runs.
///
/// # Errors
/// The database's.
pub async fn is_naming_open(
    pool: &PgPool,
    pattern: &str,
    read_before: DateTime<Utc>,
    executed_by: &[String],
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(naming!(
        "select count(*) > 0",
        "and e.status in ('completed', 'processing', 'cancelling')"
    ))
    .bind(pattern)
    .bind(read_before)
    .bind(executed_by)
    .fetch_one(pool)
    .await
}

/// Executions in states that are not final, and the age of the oldest that waits, in seconds.
///
/// # Errors
/// The database's.
pub async fn queue_depth(pool: &PgPool) -> Result<(i64, i64, i64, f64), sqlx::Error> {
    sqlx::query_as(
        "select count(*) filter (where status = 'pending'),
                count(*) filter (where status = 'processing'),
                count(*) filter (where status = 'cancelling'),
                coalesce(extract(epoch from now() - min(run_at)
                    filter (where status = 'pending' and run_at <= now())), 0)::float8
           from report_executions
          where status in ('pending', 'processing', 'cancelling')",
    )
    .fetch_one(pool)
    .await
}

/// Whether a server process is still there.
///
/// # Errors
/// The database's.
pub async fn backend_is_alive(pool: &PgPool, backend: Backend) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select from pg_stat_activity where pid = $1 and backend_start = $2)",
    )
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .fetch_one(pool)
    .await
}

/// Asks the server to end the query of a process. `false`: the process is gone.
///
/// # Errors
/// The database's; `42501` when this role may not signal the report role.
pub async fn cancel_backend(pool: &PgPool, backend: Backend) -> Result<bool, sqlx::Error> {
    let signalled: Option<bool> = sqlx::query_scalar(
        "select pg_cancel_backend(pid)
           from pg_stat_activity
          where pid = $1 and backend_start = $2",
    )
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .fetch_optional(pool)
    .await?;
    Ok(signalled.unwrap_or(false))
}

/// Asks the server to end a process. `false`: it is gone.
///
/// # Errors
/// The database's; `42501` when this role may not signal the report role.
pub async fn terminate_backend(pool: &PgPool, backend: Backend) -> Result<bool, sqlx::Error> {
    let signalled: Option<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(pid)
           from pg_stat_activity
          where pid = $1 and backend_start = $2",
    )
    .bind(backend.backend_pid)
    .bind(backend.backend_start)
    .fetch_optional(pool)
    .await?;
    Ok(signalled.unwrap_or(false))
}
