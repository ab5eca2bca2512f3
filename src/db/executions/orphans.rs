//! Executions that somebody must look after: their worker, their ticket or their time is gone.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::Status;

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
