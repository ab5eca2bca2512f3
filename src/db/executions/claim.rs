//! Whose turn it is: pending → processing.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;

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
