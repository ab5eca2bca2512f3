//! Executions as owners of files, for the sweep.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::Status;

/// Whose a file may be.
#[derive(Debug, sqlx::FromRow)]
pub struct FileOwner {
    /// The execution.
    pub id: i64,
    /// Its current attempt: only that can publish.
    pub attempt: i32,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Files that it, or somebody who shares its result, has published.
    pub paths: Vec<String>,
}

/// Finds the executions of these numbers, with what may be read of them.
///
/// # Errors
/// The database's.
pub async fn find_file_owners(pool: &PgPool, ids: &[i64]) -> Result<Vec<FileOwner>, sqlx::Error> {
    sqlx::query_as(
        "select e.id, e.attempt, e.status,
                array(select o.result_file_path
                        from report_executions o
                       where (o.id = e.id or o.shared_from = e.id) and o.status = 'completed'
                         and o.result_file_path is not null) as paths
           from report_executions e
          where e.id = any ($1)",
    )
    .bind(ids)
    .fetch_all(pool)
    .await
}

/// Lists at most `limit` results that were published before an instant, with their numbers above
/// `after`. What is about to expire is left out: its file goes first.
///
/// # Errors
/// The database's.
pub async fn list_results(
    pool: &PgPool,
    after: i64,
    before: DateTime<Utc>,
    limit: usize,
) -> Result<Vec<(i64, String)>, sqlx::Error> {
    sqlx::query_as(
        "select id, result_file_path
           from report_executions
          where id > $1 and status = 'completed' and result_file_path is not null
            and completed_at < $2
            and (expires_at is null or expires_at > now() + interval '1 hour')
          order by id
          limit $3",
    )
    .bind(after)
    .bind(before)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await
}
