//! Whose turn it is: pending → processing.

use std::num::NonZeroU32;

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
    /// The execution that this one makes a further format of.
    pub format_of: Option<i64>,
}

/// How many executions may run at once. `None`: as many as there are workers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caps {
    /// Of one user, over all processes.
    pub per_user: Option<NonZeroU32>,
    /// Of everybody, over all processes.
    pub in_all: Option<NonZeroU32>,
}

/// pending → processing: takes the execution whose turn it is for its next attempt. `None`: there
/// is nothing that may start, which is how a doubled or late ticket ends, and one that comes while
/// caps keep back all that waits. Committed at once: no transaction stays open while the report
/// runs.
///
/// Whose turn it is: the highest priority first; inside it the user who has the fewest running,
/// counting those of the same user that would go before; of those, the user who was served longest
/// ago. So one user's thousand executions cost another user at most one run's wait. As many tickets are
/// pushed as there are executions, and it does not matter which ticket takes which.
///
/// Nothing is taken while the queue is paused, nor by a worker that is to drain: the function is
/// called for the row before it, and there is none.
///
/// What a cap keeps back is passed over, and keeps nothing back that is behind it. Claims go one
/// after the other, so that a cap holds exactly; see the function in migration 0011. They begin to
/// read where the last look found something; see migration 0026.
///
/// # Errors
/// The database's.
pub async fn claim_next(
    pool: &PgPool,
    owner: &str,
    lease_secs: i32,
    caps: Caps,
) -> Result<Option<Claimed>, sqlx::Error> {
    sqlx::query_as(
        "select id, attempt, failed_attempts, max_attempts, report_definition_id,
                definition_version, executed_by, parameters, format, options,
                created_at, started_at, trace_id, format_of
           from (select $1::text as owner
                  where not exists (select from queue_pauses where queue = 'reports')
                    and not exists (select from workers
                                     where id = $1 and draining_at is not null)) taker
          cross join lateral claim_execution(taker.owner, $2, $3, $4)",
    )
    .bind(owner)
    .bind(f64::from(lease_secs))
    .bind(cap(caps.per_user))
    .bind(cap(caps.in_all))
    .fetch_optional(pool)
    .await
}

/// Marks one execution that waits as being without a ticket: one was used up for nothing. It gets
/// another as soon as it may start.
///
/// # Errors
/// The database's.
pub async fn park_one(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("select park_execution()").execute(pool).await?;
    Ok(())
}

/// Has claims begin anew where nobody has claimed for long: what the last look missed is found.
///
/// # Errors
/// The database's.
pub async fn look_if_nobody_claims(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("select look_if_nobody_claims()").execute(pool).await?;
    Ok(())
}

/// A cap as the database counts.
pub(super) fn cap(cap: Option<NonZeroU32>) -> Option<i32> {
    cap.map(|cap| i32::try_from(cap.get()).unwrap_or(i32::MAX))
}
