//! `queue_pauses`: queues from which nothing is taken.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

/// A queue that is paused.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Pause {
    /// Its name.
    pub queue: String,
    /// Since when.
    pub paused_at: DateTime<Utc>,
}

/// Pauses a queue. `false`: it was paused before.
///
/// # Errors
/// The database's.
pub async fn pause(connection: &mut PgConnection, queue: &str) -> Result<bool, sqlx::Error> {
    let paused =
        sqlx::query("insert into queue_pauses (queue) values ($1) on conflict (queue) do nothing")
            .bind(queue)
            .execute(connection)
            .await?;
    Ok(paused.rows_affected() > 0)
}

/// Lets a queue go on. `false`: it was not paused.
///
/// # Errors
/// The database's.
pub async fn resume(connection: &mut PgConnection, queue: &str) -> Result<bool, sqlx::Error> {
    let resumed = sqlx::query("delete from queue_pauses where queue = $1")
        .bind(queue)
        .execute(connection)
        .await?;
    Ok(resumed.rows_affected() > 0)
}

/// Every queue that is paused.
///
/// # Errors
/// The database's.
pub async fn list(pool: &PgPool) -> Result<Vec<Pause>, sqlx::Error> {
    sqlx::query_as("select queue, paused_at from queue_pauses order by queue").fetch_all(pool).await
}

/// Whether a queue is paused.
///
/// # Errors
/// The database's.
pub async fn is_paused(pool: &PgPool, queue: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select from queue_pauses where queue = $1)")
        .bind(queue)
        .fetch_one(pool)
        .await
}

/// Whether a worker may take something from a queue: neither is told to stand still.
///
/// # Errors
/// The database's.
pub async fn may_take(pool: &PgPool, queue: &str, worker: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select not exists (select from queue_pauses where queue = $1)
            and not exists (select from workers where id = $2 and draining_at is not null)",
    )
    .bind(queue)
    .bind(worker)
    .fetch_one(pool)
    .await
}
