//! `idempotency_keys`: one submit per key and caller.

use sqlx::PgConnection;

/// What a key was used for.
#[derive(Debug, sqlx::FromRow)]
pub struct Used {
    /// SHA-256 of the request that came with it.
    pub request_sha256: Vec<u8>,
    /// What it started.
    pub execution_id: Option<i64>,
}

/// Takes a key for this transaction. `None`: it is ours now. A concurrent transaction with the
/// same key makes this statement wait until that one ends, at most the transaction's
/// `lock_timeout`.
///
/// # Errors
/// The database's; `55P03` when a request with this key is still running.
pub async fn take(
    connection: &mut PgConnection,
    user_id: i32,
    key: &str,
    request_sha256: &[u8],
    retention_hours: u32,
) -> Result<Option<Used>, sqlx::Error> {
    // An expired key that the sweep has not met yet is free.
    sqlx::query(
        "delete from idempotency_keys
          where user_id = $1 and idempotency_key = $2 and expires_at <= now()",
    )
    .bind(user_id)
    .bind(key)
    .execute(&mut *connection)
    .await?;
    let taken = sqlx::query(
        "insert into idempotency_keys (user_id, idempotency_key, request_sha256, expires_at)
         values ($1, $2, $3, now() + make_interval(hours => $4))
         on conflict do nothing",
    )
    .bind(user_id)
    .bind(key)
    .bind(request_sha256)
    .bind(i32::try_from(retention_hours).unwrap_or(i32::MAX))
    .execute(&mut *connection)
    .await?;
    if taken.rows_affected() == 1 {
        return Ok(None);
    }
    sqlx::query_as(
        "select request_sha256, execution_id
           from idempotency_keys
          where user_id = $1 and idempotency_key = $2",
    )
    .bind(user_id)
    .bind(key)
    .fetch_optional(connection)
    .await
}

/// Says what the key started. Same transaction as [`take`].
///
/// # Errors
/// The database's.
pub async fn settle(
    connection: &mut PgConnection,
    user_id: i32,
    key: &str,
    execution_id: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update idempotency_keys
            set execution_id = $3
          where user_id = $1 and idempotency_key = $2",
    )
    .bind(user_id)
    .bind(key)
    .bind(execution_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets at most `limit` keys whose time is over.
///
/// # Errors
/// The database's.
pub async fn forget_expired(pool: &sqlx::PgPool, limit: i64) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "delete from idempotency_keys
          where (user_id, idempotency_key) in (
                select user_id, idempotency_key
                  from idempotency_keys
                 where expires_at <= now()
                 order by expires_at
                 limit $1)",
    )
    .bind(limit)
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
