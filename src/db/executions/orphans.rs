//! Executions that somebody must look after: their worker, their ticket or their time is gone.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::claim::cap;
use super::{Caps, Status};

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
                           and run_at <= now())",
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
