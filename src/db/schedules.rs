//! `schedule_occurrences`: each due time of a schedule once, whoever comes first.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// Takes an occurrence for this transaction. `false`: another scheduler has it.
///
/// # Errors
/// The database's.
pub async fn take_occurrence(
    connection: &mut PgConnection,
    schedule: &str,
    due_at: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let taken = sqlx::query(
        "insert into schedule_occurrences (schedule, due_at)
         values ($1, $2)
         on conflict do nothing",
    )
    .bind(schedule)
    .bind(due_at)
    .execute(connection)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Forgets at most `limit` occurrences older than `days`.
///
/// # Errors
/// The database's.
pub async fn forget_occurrences(
    pool: &sqlx::PgPool,
    days: i32,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "delete from schedule_occurrences
          where (schedule, due_at) in (
                select schedule, due_at
                  from schedule_occurrences
                 where created_at < now() - make_interval(days => $1)
                 order by created_at
                 limit $2)",
    )
    .bind(days)
    .bind(limit)
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
