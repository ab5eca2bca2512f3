//! `workers`: processes that hold leases, and whether they live.
//!
//! A process holds the session advisory lock `lock_key` while it lives. The server frees it within
//! milliseconds of the process's death, so that its work is taken over at once; the lease covers
//! what the lock cannot see, a host that vanished without closing its connections.

use sqlx::{Connection, PgConnection, PgPool};

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

/// Says that the process lives, over the connection that holds its lock.
///
/// # Errors
/// The database's: the lock is gone with the connection.
pub async fn touch(connection: &mut PgConnection, id: &str) -> Result<(), sqlx::Error> {
    connection.ping().await?;
    sqlx::query("update workers set last_seen_at = now() where id = $1")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
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
                               and e.status in ('processing', 'cancelling'))
            and not exists (select from lifecycle_runs r where r.lease_owner = w.id
                               and r.status = 'processing')",
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
