//! `workers`: processes that hold leases, and whether they live.
//!
//! A process holds the session advisory lock `lock_key` while it lives. The server frees it within
//! milliseconds of the process's death, so that its work is taken over at once; the lease covers
//! what the lock cannot see, a host that vanished without closing its connections.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool};

/// A worker process as operators see it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct WorkerRow {
    /// Its name in leases.
    pub id: String,
    /// Its machine.
    pub host: String,
    /// Its process number there.
    pub pid: i32,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it last said that it lives.
    pub last_seen_at: DateTime<Utc>,
    /// Since when it takes nothing new.
    pub draining_at: Option<DateTime<Utc>>,
    /// Executions and runs that it has in hand.
    pub running: i64,
}

/// Lists processes, the newest first, at most 1,000.
///
/// # Errors
/// The database's.
pub async fn list(pool: &PgPool) -> Result<Vec<WorkerRow>, sqlx::Error> {
    sqlx::query_as(
        "select w.id, w.host, w.pid, w.started_at, w.last_seen_at, w.draining_at,
                (select count(*) from report_executions e
                  where e.lease_owner = w.id and e.lease_until is not null)
              + (select count(*) from lifecycle_runs r
                  where r.lease_owner = w.id and r.status = 'processing') as running
           from workers w
          order by w.started_at desc, w.id
          limit 1000",
    )
    .fetch_all(pool)
    .await
}

/// How many processes work, drain, and have not been seen for half a minute.
///
/// # Errors
/// The database's.
pub async fn count(pool: &PgPool) -> Result<(i64, i64, i64), sqlx::Error> {
    sqlx::query_as(
        "select count(*) filter (where not silent and draining_at is null),
                count(*) filter (where not silent and draining_at is not null),
                count(*) filter (where silent)
           from (select draining_at, last_seen_at < now() - interval '30 seconds' as silent
                   from workers) w",
    )
    .fetch_one(pool)
    .await
}

/// Tells a process to take nothing new. `Some(false)`: it was told before; `None`: there is none.
///
/// # Errors
/// The database's.
pub async fn drain(connection: &mut PgConnection, id: &str) -> Result<Option<bool>, sqlx::Error> {
    let told =
        sqlx::query("update workers set draining_at = now() where id = $1 and draining_at is null")
            .bind(id)
            .execute(&mut *connection)
            .await?;
    if told.rows_affected() > 0 {
        return Ok(Some(true));
    }
    let known: bool = sqlx::query_scalar("select exists (select from workers where id = $1)")
        .bind(id)
        .fetch_one(connection)
        .await?;
    Ok(known.then_some(false))
}

/// The condition, as SQL, that the worker of a name is gone: its advisory lock is free, and it has
/// not been seen within a number of seconds of now.
///
/// The lock alone is not believed, because a lost connection frees it too while the worker lives;
/// a living worker takes it again and is seen every second. "Within" looks both ways: after a step
/// back of the server's clock what a dead worker said last lies ahead, maybe by hours. After a
/// restart of the server every lock is free, so locks count only when it has been up for ten
/// seconds.
macro_rules! worker_is_gone {
    ($name:literal, $grace_secs:literal) => {
        concat!(
            "(pg_postmaster_start_time() not between now() - interval '10 seconds'
                                                 and now() + interval '10 seconds'
              and exists (
                  select from workers w
                   where w.id = ",
            $name,
            "
                     and w.last_seen_at not between now() - make_interval(secs => ",
            $grace_secs,
            ")
                                                and now() + make_interval(secs => ",
            $grace_secs,
            ")
                     and not exists (
                         select from pg_locks l
                          where l.locktype = 'advisory' and l.objsubid = 1
                            and l.database = (select oid from pg_database
                                               where datname = current_database())
                            and ((l.classid::bigint << 32) | l.objid::bigint) = w.lock_key)))"
        )
    };
}
pub(crate) use worker_is_gone;

/// Registers a process.
///
/// # Errors
/// The database's.
pub async fn register(
    connection: &mut PgConnection,
    id: &str,
    host: &str,
    pid: i32,
    lock_key: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into workers (id, host, pid, lock_key)
         values ($1, $2, $3, $4)
         on conflict (id) do update set last_seen_at = now()",
    )
    .bind(id)
    .bind(host)
    .bind(pid)
    .bind(lock_key)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes the lock of a process on this connection, which must stay open as long as it lives.
///
/// # Errors
/// The database's.
pub async fn hold_lock(connection: &mut PgConnection, lock_key: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(lock_key).fetch_one(connection).await
}

/// Says that the process lives, over the connection that holds its lock. Returns whether it is to
/// take nothing new.
///
/// # Errors
/// The database's: the lock is gone with the connection.
pub async fn touch(connection: &mut PgConnection, id: &str) -> Result<bool, sqlx::Error> {
    connection.ping().await?;
    let draining: Option<bool> = sqlx::query_scalar(
        "update workers set last_seen_at = now() where id = $1
         returning draining_at is not null",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(draining.unwrap_or(false))
}

/// Takes a process off the list, when it ends in order.
///
/// # Errors
/// The database's.
pub async fn deregister(pool: &PgPool, id: &str) -> Result<(), sqlx::Error> {
    sqlx::query("delete from workers where id = $1").bind(id).execute(pool).await?;
    Ok(())
}

/// Forgets processes not seen for a day that hold no lease.
///
/// # Errors
/// The database's.
pub async fn forget_gone(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "delete from workers w
          where w.last_seen_at < now() - interval '1 day'
            and not exists (select from report_executions e where e.lease_owner = w.id
                               and e.lease_until is not null)
            and not exists (select from lifecycle_runs r where r.lease_owner = w.id
                               and r.status = 'processing')",
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
