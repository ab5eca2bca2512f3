//! Files that a run wrote to the store before rows left.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};

/// A file of a run.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct RunExport {
    /// The table's place among the run's tables.
    pub position: i32,
    /// The table.
    pub table_name: String,
    /// The file's number, from 1.
    pub number: i32,
    /// Where it is in the store.
    pub object_path: String,
    /// Rows in it.
    pub row_count: i64,
    /// Its size.
    pub size_bytes: i64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// When its rows left.
    pub created_at: DateTime<Utc>,
    /// When it may be removed; `None`: never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was removed.
    pub removed_at: Option<DateTime<Utc>>,
}

/// A file to be noted.
#[derive(Debug)]
pub struct NewExport<'a> {
    /// See [`RunExport::position`].
    pub position: i32,
    /// See [`RunExport::number`].
    pub number: i32,
    /// See [`RunExport::object_path`].
    pub object_path: &'a str,
    /// See [`RunExport::row_count`].
    pub row_count: i64,
    /// See [`RunExport::size_bytes`].
    pub size_bytes: i64,
    /// See [`RunExport::sha256`].
    pub sha256: &'a str,
    /// For how long it is kept: a calendar interval and one of elapsed time.
    pub keep: Option<(String, String)>,
}

/// A file whose time is over.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ExpiredExport {
    /// The run.
    pub run_id: i64,
    /// The table's place among the run's tables.
    pub position: i32,
    /// The file's number.
    pub number: i32,
    /// Where it is in the store.
    pub object_path: String,
}

/// Notes a file, in the transaction in which its rows leave.
///
/// # Errors
/// The database's.
pub async fn insert_export(
    connection: &mut PgConnection,
    run_id: i64,
    new: &NewExport<'_>,
) -> Result<(), sqlx::Error> {
    let (calendar, elapsed) = new.keep.as_ref().map(|(c, e)| (c.as_str(), e.as_str())).unzip();
    sqlx::query(
        "insert into lifecycle_run_exports
                (run_id, position, number, object_path, row_count, size_bytes, sha256, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7, now() + $8::text::interval + $9::text::interval)",
    )
    .bind(run_id)
    .bind(new.position)
    .bind(new.number)
    .bind(new.object_path)
    .bind(new.row_count)
    .bind(new.size_bytes)
    .bind(new.sha256)
    .bind(calendar)
    .bind(elapsed)
    .execute(connection)
    .await?;
    Ok(())
}

/// The number of a table's next file. The caller holds the run's row.
///
/// # Errors
/// The database's.
pub async fn next_export(
    connection: &mut PgConnection,
    run_id: i64,
    position: i32,
) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar(
        "select coalesce(max(number), 0) + 1
           from lifecycle_run_exports
          where run_id = $1 and position = $2",
    )
    .bind(run_id)
    .bind(position)
    .fetch_one(connection)
    .await
}

/// At most `limit` files of a run behind the first `skipped`, in order.
///
/// # Errors
/// The database's.
pub async fn exports_of(
    pool: &PgPool,
    run_id: i64,
    skipped: i64,
    limit: i64,
) -> Result<Vec<RunExport>, sqlx::Error> {
    sqlx::query_as(
        "select e.position, t.table_name, e.number, e.object_path, e.row_count, e.size_bytes,
                e.sha256, e.created_at, e.expires_at, e.removed_at
           from lifecycle_run_exports e
           join lifecycle_run_tables t using (run_id, position)
          where e.run_id = $1
          order by e.position, e.number
         offset $2
          limit $3",
    )
    .bind(run_id)
    .bind(skipped)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Where the files of a run are.
///
/// # Errors
/// The database's.
pub async fn export_paths(
    connection: &mut PgConnection,
    run_id: i64,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("select object_path from lifecycle_run_exports where run_id = $1")
        .bind(run_id)
        .fetch_all(connection)
        .await
}

/// Files whose time is over, oldest first. A hold over the file's table or over a person keeps
/// them: nobody looks into files to see whose rows they have.
///
/// # Errors
/// The database's.
pub async fn expired_exports(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<ExpiredExport>, sqlx::Error> {
    sqlx::query_as(
        "select e.run_id, e.position, e.number, e.object_path
           from lifecycle_run_exports e
           join lifecycle_run_tables t using (run_id, position)
          where e.expires_at < now() and e.removed_at is null
            and not exists (
                select from holds h
                 where h.released_at is null and (h.until is null or h.until > now())
                   and (h.table_name = t.table_name or h.scope = 'subject'))
          order by e.expires_at
          limit $1",
    )
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Files of one table that are in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct KeptExports {
    /// The table whose rows they have.
    pub table_name: String,
    /// How many.
    pub files: i64,
    /// When the last of them goes; `None`: one of them stays for ever.
    pub until: Option<DateTime<Utc>>,
}

/// What is in the store of rows that left these tables before an instant.
///
/// # Errors
/// The database's.
pub async fn kept_exports(
    db: &PgPool,
    tables: &[String],
    before: DateTime<Utc>,
) -> Result<Vec<KeptExports>, sqlx::Error> {
    sqlx::query_as(
        "select t.table_name, count(*) as files,
                case when bool_and(e.expires_at is not null) then max(e.expires_at) end as until
           from lifecycle_run_exports e
           join lifecycle_run_tables t using (run_id, position)
          where e.removed_at is null and e.created_at < $2 and t.table_name = any ($1)
          group by t.table_name
          order by t.table_name",
    )
    .bind(tables)
    .bind(before)
    .fetch_all(db)
    .await
}

/// Notes that a file is gone.
///
/// # Errors
/// The database's.
pub async fn note_removed(
    connection: &mut PgConnection,
    expired: &ExpiredExport,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_run_exports
            set removed_at = now()
          where run_id = $1 and position = $2 and number = $3 and removed_at is null",
    )
    .bind(expired.run_id)
    .bind(expired.position)
    .bind(expired.number)
    .execute(connection)
    .await?;
    Ok(())
}
