//! Executions that somebody must look after: their worker, their ticket or their time is gone.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::claim::cap;
use super::{Backend, Caps, Status};
use crate::db::workers::worker_is_gone;

/// An execution whose worker is gone.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Orphan {
    /// The execution, the attempt that was lost, and its server processes.
    #[sqlx(flatten)]
    pub backend: Backend,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// Failed tries before it.
    pub failed_attempts: i32,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// processing or cancelling.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Who had it.
    pub lease_owner: Option<String>,
}

/// Locks at most `limit` executions whose worker is gone: the lease has run out, or nothing has
/// been seen of the worker for `lock_grace_secs`, see [`crate::db::workers`].
///
/// # Errors
/// The database's.
pub async fn lock_orphans(
    connection: &mut PgConnection,
    lock_grace_secs: i32,
    limit: i64,
) -> Result<Vec<Orphan>, sqlx::Error> {
    sqlx::query_as(concat!(
        "select e.id, e.created_at, e.attempt, e.failed_attempts, e.max_attempts, e.status,
                e.lease_owner, e.backend_pid, e.backend_start
           from running_executions() r
           join report_executions e on e.id = r.id
          where e.status in ('processing', 'cancelling')
            and (e.lease_until < now() or ",
        worker_is_gone!("e.lease_owner", "$1"),
        ")
          order by e.lease_until
          limit $2
            for update of e skip locked",
    ))
    .bind(f64::from(lock_grace_secs))
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Locks at most `limit` executions that may start now and have no live ticket: never ticketed,
/// ticketed more than `ticket_secs` ago, or passed over because of a cap. In the order in which
/// they will start, and no more of a user than the caps let in: a ticket that finds all places
/// taken is a ticket wasted.
///
/// # Errors
/// The database's.
pub async fn lock_unticketed(
    connection: &mut PgConnection,
    caps: Caps,
    ticket_secs: i32,
    limit: i32,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select e.id
           from claimable_executions($3, $4, $5) next
           join report_executions e on e.id = next.id and e.status = 'pending'
          where e.ticket_at is null
             or greatest(e.ticket_at, e.run_at) < now() - make_interval(secs => $1)
          order by next.priority desc, next.turn, next.served_at nulls first, next.run_at,
                   next.id
          limit $2
            for update of e skip locked",
    )
    .bind(f64::from(ticket_secs))
    .bind(i64::from(limit))
    .bind(limit)
    .bind(cap(caps.per_user))
    .bind(cap(caps.in_all))
    .fetch_all(connection)
    .await
}

/// Whether an execution waits that a cap has kept back.
///
/// # Errors
/// The database's.
pub async fn any_is_parked(pool: &PgPool) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select
                          from report_executions
                         where status = 'pending' and ticket_at is null and shared_from is null
                           and run_at <= now()
                           and run_at >= (select min(starts) from waiting_lanes()))",
    )
    .fetch_one(pool)
    .await
}

/// A result whose time is over.
#[derive(Debug, sqlx::FromRow)]
pub struct Expiring {
    /// The execution.
    pub id: i64,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// When its time was over.
    pub expires_at: DateTime<Utc>,
}

/// Lists at most `limit` completed executions past their time, those behind `after` (an
/// `expires_at` and an id), the oldest first.
///
/// # Errors
/// The database's.
pub async fn list_expiring(
    pool: &PgPool,
    after: Option<(DateTime<Utc>, i64)>,
    limit: i64,
) -> Result<Vec<Expiring>, sqlx::Error> {
    let (after_time, after_id) = after.unzip();
    sqlx::query_as(
        "select id, created_at, expires_at
           from report_executions
          where status = 'completed' and expires_at <= now()
            and expires_at >= coalesce($2, '-infinity')
            and ($2 is null or (expires_at, id) > ($2, $3))
          order by expires_at, id
          limit $1",
    )
    .bind(limit)
    .bind(after_time)
    .bind(after_id)
    .fetch_all(pool)
    .await
}
