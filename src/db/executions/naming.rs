//! Results that may name a person: found and expired when the person is erased.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

/// completed → expired before its time: it may name somebody who was erased, or is not wanted any
/// more.
///
/// # Errors
/// The database's.
pub async fn expire_now(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let expired = sqlx::query(
        "update report_executions
            set status = 'expired', result_file_path = null,
                expires_at = least(expires_at, now())
          where id = $1 and status = 'completed'",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(expired.rows_affected() == 1)
}

/// Executions whose query matches a pattern, or that one of these accounts ran, and that may have
/// read before `read_before`; `concat!` because SQL must be static.
macro_rules! naming {
    ($head:literal, $tail:literal) => {
        concat!(
            $head,
            " from report_executions e
               left join report_definition_versions v
                 on v.report_definition_id = e.report_definition_id
                and v.version = e.definition_version
              where (v.query is null or v.query ~* $1 or e.executed_by::text = any ($3))
                and coalesce(e.snapshot_at, e.started_at, e.created_at)
                    <= $2 ",
            $tail
        )
    };
}

/// A result that may name somebody.
#[derive(Debug, sqlx::FromRow)]
pub struct Naming {
    /// The execution.
    pub id: i64,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
}

/// Completed ones, oldest first.
///
/// # Errors
/// The database's.
pub async fn list_naming(
    pool: &PgPool,
    pattern: &str,
    read_before: DateTime<Utc>,
    executed_by: &[String],
    limit: i64,
) -> Result<Vec<Naming>, sqlx::Error> {
    sqlx::query_as(naming!(
        "select e.id, e.created_at",
        "and e.status = 'completed' order by e.id limit $4"
    ))
    .bind(pattern)
    .bind(read_before)
    .bind(executed_by)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Whether one of them has a result or still runs.
///
/// # Errors
/// The database's.
pub async fn is_naming_open(
    pool: &PgPool,
    pattern: &str,
    read_before: DateTime<Utc>,
    executed_by: &[String],
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(naming!(
        "select count(*) > 0",
        "and e.status in ('completed', 'processing', 'cancelling')"
    ))
    .bind(pattern)
    .bind(read_before)
    .bind(executed_by)
    .fetch_one(pool)
    .await
}
