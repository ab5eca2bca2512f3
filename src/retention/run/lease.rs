//! Claim, lease and rescue of runs: the same rules as for executions.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::{RunStatus, UnknownRunStatus};
use crate::db::workers::worker_is_gone;

/// A run that this process works on.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Claimed {
    /// The run.
    pub id: i64,
    /// The fencing token.
    pub attempt: i32,
    /// Failed tries before this one.
    pub failed_attempts: i32,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// The policy's name.
    pub policy: String,
    /// SHA-256 of the policy as it was when the run was asked for.
    pub policy_digest: String,
    /// The instant that cutoffs are counted from.
    pub as_of: DateTime<Utc>,
    /// What was seen before it was started.
    pub preview_digest: Option<String>,
    /// Whether somebody approved it.
    pub is_approved: bool,
}

/// What both claims set and return; `concat!` because SQL must be static.
macro_rules! claim {
    ($which:literal) => {
        concat!(
            "update lifecycle_runs r
                set status = 'processing', attempt = r.attempt + 1, lease_owner = $1,
                    lease_until = now() + make_interval(secs => $2),
                    started_at = coalesce(r.started_at, now()),
                    ticket_id = null, ticket_at = null
               from (select id from lifecycle_runs where status = 'pending' and ",
            $which,
            "   for update skip locked) chosen
              where r.id = chosen.id and r.status = 'pending'
             returning r.id, r.attempt, r.failed_attempts, r.max_attempts, r.policy,
                       r.policy_digest, r.as_of, r.preview_digest,
                       r.approved_at is not null as is_approved"
        )
    };
}

/// pending → processing: the run that has waited longest. Committed at once.
///
/// # Errors
/// The database's.
pub async fn claim_next(
    pool: &PgPool,
    owner: &str,
    lease_secs: i32,
) -> Result<Option<Claimed>, sqlx::Error> {
    sqlx::query_as(claim!("run_at <= now() order by run_at, id limit 1"))
        .bind(owner)
        .bind(f64::from(lease_secs))
        .fetch_optional(pool)
        .await
}

/// pending → processing: this run. `None`: somebody else has it, or it does not wait.
///
/// # Errors
/// The database's.
pub async fn claim(
    pool: &PgPool,
    id: i64,
    owner: &str,
    lease_secs: i32,
) -> Result<Option<Claimed>, sqlx::Error> {
    sqlx::query_as(claim!("id = $3"))
        .bind(owner)
        .bind(f64::from(lease_secs))
        .bind(id)
        .fetch_optional(pool)
        .await
}

/// Renews the lease and locks the run's row for the caller's transaction. `false`: the attempt is
/// not ours any more, or the run was paused or cancelled, and nothing may be done.
///
/// # Errors
/// The database's.
pub async fn beat(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    lease_secs: i32,
) -> Result<bool, sqlx::Error> {
    let beaten = sqlx::query(
        "update lifecycle_runs
            set lease_until = now() + make_interval(secs => $3)
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .bind(f64::from(lease_secs))
    .execute(connection)
    .await?;
    Ok(beaten.rows_affected() == 1)
}

/// The same as [`beat`], at the beginning of a chunk: a chunk that is committed shows that the run
/// gets on, so failures before it no longer count.
///
/// # Errors
/// The database's.
pub async fn fence(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    lease_secs: i32,
) -> Result<bool, sqlx::Error> {
    let fenced = sqlx::query(
        "update lifecycle_runs
            set lease_until = now() + make_interval(secs => $3), failed_attempts = 0
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .bind(f64::from(lease_secs))
    .execute(connection)
    .await?;
    Ok(fenced.rows_affected() == 1)
}

/// Notes what a run waits for between two chunks; `None`: it goes on.
///
/// # Errors
/// The database's.
pub async fn note_waiting(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    waiting_for: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_runs
            set waiting_for = $3,
                waiting_since = case when waiting_for is null then now() else waiting_since end
          where id = $1 and attempt = $2 and status = 'processing'
            and waiting_for is distinct from $3",
    )
    .bind(id)
    .bind(attempt)
    .bind(waiting_for)
    .execute(connection)
    .await?;
    Ok(())
}

/// processing → pending when this process ends: no failure is counted.
///
/// # Errors
/// The database's.
pub async fn give_back(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
) -> Result<bool, sqlx::Error> {
    let given = sqlx::query(
        "update lifecycle_runs
            set status = 'pending', run_at = now(), lease_until = null, waiting_for = null
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .execute(connection)
    .await?;
    Ok(given.rows_affected() == 1)
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
        "update lifecycle_runs
            set status = 'pending', failed_attempts = failed_attempts + 1,
                run_at = now() + make_interval(secs => $5), error_code = $3, error_message = $4,
                lease_until = null, waiting_for = null
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

/// Notes the ticket that was pushed for a pending run.
///
/// # Errors
/// The database's.
pub async fn note_ticket(
    connection: &mut PgConnection,
    id: i64,
    ticket_id: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_runs
            set ticket_id = $2, ticket_at = now()
          where id = $1 and status = 'pending'",
    )
    .bind(id)
    .bind(ticket_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks a run's row and tells its state. `None`: there is no such run.
///
/// # Errors
/// The database's.
pub async fn lock(
    connection: &mut PgConnection,
    id: i64,
) -> Result<Option<RunStatus>, sqlx::Error> {
    let status: Option<String> =
        sqlx::query_scalar("select status from lifecycle_runs where id = $1 for update")
            .bind(id)
            .fetch_optional(connection)
            .await?;
    let unknown = |error: UnknownRunStatus| sqlx::Error::Decode(error.into());
    status.map(|status| status.parse().map_err(unknown)).transpose()
}

/// A run whose worker is gone.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Orphan {
    /// The run.
    pub id: i64,
    /// The attempt that was lost.
    pub attempt: i32,
    /// Failed tries since it last got on.
    pub failed_attempts: i32,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// Who had it.
    pub lease_owner: Option<String>,
}

/// Locks at most `limit` runs whose worker is gone: the lease has run out, or nothing has been seen
/// of the worker for `lock_grace_secs`, see [`crate::db::workers`].
///
/// # Errors
/// The database's.
pub async fn lock_orphans(
    connection: &mut PgConnection,
    lock_grace_secs: i32,
    limit: i64,
) -> Result<Vec<Orphan>, sqlx::Error> {
    sqlx::query_as(concat!(
        "select r.id, r.attempt, r.failed_attempts, r.max_attempts, r.lease_owner
           from lifecycle_runs r
          where r.status = 'processing'
            and (r.lease_until < now() or ",
        worker_is_gone!("r.lease_owner", "$1"),
        ")
          order by r.lease_until
          limit $2
            for update of r skip locked",
    ))
    .bind(f64::from(lock_grace_secs))
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Locks at most `limit` pending runs that are due and have no live ticket.
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
           from lifecycle_runs
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
