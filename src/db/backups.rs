//! `backups`: a copy of the catalog in the store, which is the truth.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection, PgExecutor, PgPool};

/// A backup, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, FromRow, Serialize)]
pub struct BackupRow {
    /// Its number.
    pub id: String,
    /// When its snapshot was taken.
    pub taken_at: DateTime<Utc>,
    /// When it was stored.
    pub finished_at: DateTime<Utc>,
    /// `manual`, `scheduled` or `pre-migration`.
    pub purpose: String,
    /// `pg_dump` or `pgbackrest`.
    pub engine: String,
    /// The policy that asked for it.
    pub policy: Option<String>,
    /// The database.
    pub database_name: String,
    /// Version of its server.
    pub server_version: String,
    /// Its newest migration.
    pub schema_version: Option<i64>,
    /// Bytes stored.
    pub size_bytes: i64,
    /// Bytes of the dump.
    pub dump_bytes: i64,
    /// Rows of all tables.
    pub row_count: i64,
    /// Milliseconds that it took.
    pub duration_ms: i64,
    /// Whether a key is needed to read it.
    pub encrypted: bool,
    /// Names of its pins.
    pub pins: Vec<String>,
    /// When it was restored to prove it, the last time.
    pub verified_at: Option<DateTime<Utc>>,
    /// Whether it was found good then.
    pub verified_good: Option<bool>,
    /// Milliseconds that this took.
    pub verify_duration_ms: Option<i64>,
    /// What was wrong.
    pub verify_problem: Option<String>,
}

/// What metrics tell.
#[derive(Debug, Clone, FromRow)]
pub struct Summary {
    /// How many there are.
    pub backups: i64,
    /// Seconds since the epoch of the newest.
    pub last_success: Option<f64>,
    /// Seconds since the epoch of the newest good verification.
    pub last_verified: Option<f64>,
    /// Bytes of the newest.
    pub last_size_bytes: Option<i64>,
    /// Milliseconds of the newest.
    pub last_duration_ms: Option<i64>,
}

/// Lists all, the newest first.
///
/// # Errors
/// The database's.
pub async fn list(executor: impl PgExecutor<'_>) -> Result<Vec<BackupRow>, sqlx::Error> {
    sqlx::query_as(
        "select id, taken_at, finished_at, purpose, engine, policy, database_name, server_version, schema_version,
                size_bytes, dump_bytes, row_count, duration_ms, encrypted, pins, verified_at,
                verified_good, verify_duration_ms, verify_problem
           from backups
          order by taken_at desc, id desc",
    )
    .fetch_all(executor)
    .await
}

/// Waits for the turn to write here, which lasts until the transaction ends. Taken before the store
/// is asked: what was read earlier than another's write must not be written after it.
///
/// # Errors
/// The database's.
pub async fn take_turn(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('registrar backups', 0))")
        .execute(connection)
        .await?;
    Ok(())
}

/// Stores what is known of a backup, in one's turn.
///
/// # Errors
/// The database's.
pub async fn put(connection: &mut PgConnection, row: &BackupRow) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into backups
                (id, taken_at, finished_at, purpose, database_name, server_version, schema_version,
                 size_bytes, dump_bytes, row_count, duration_ms, encrypted, pins, verified_at,
                 verified_good, verify_duration_ms, verify_problem, engine, policy)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
                 $19)
         on conflict (id) do update
            set pins = excluded.pins, verified_at = excluded.verified_at,
                verified_good = excluded.verified_good,
                verify_duration_ms = excluded.verify_duration_ms,
                verify_problem = excluded.verify_problem",
    )
    .bind(&row.id)
    .bind(row.taken_at)
    .bind(row.finished_at)
    .bind(&row.purpose)
    .bind(&row.database_name)
    .bind(&row.server_version)
    .bind(row.schema_version)
    .bind(row.size_bytes)
    .bind(row.dump_bytes)
    .bind(row.row_count)
    .bind(row.duration_ms)
    .bind(row.encrypted)
    .bind(&row.pins)
    .bind(row.verified_at)
    .bind(row.verified_good)
    .bind(row.verify_duration_ms)
    .bind(&row.verify_problem)
    .bind(&row.engine)
    .bind(&row.policy)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets every backup that is not among `ids`, in one's turn.
///
/// # Errors
/// The database's.
pub async fn keep_only(connection: &mut PgConnection, ids: &[String]) -> Result<(), sqlx::Error> {
    sqlx::query("delete from backups where id <> all($1)").bind(ids).execute(connection).await?;
    Ok(())
}

/// Whether a backup is known.
///
/// # Errors
/// The database's.
pub async fn exists(connection: &mut PgConnection, id: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select from backups where id = $1)")
        .bind(id)
        .fetch_one(connection)
        .await
}

/// What metrics tell.
///
/// # Errors
/// The database's.
pub async fn summary(pool: &PgPool) -> Result<Summary, sqlx::Error> {
    sqlx::query_as(
        "select count(*) as backups,
                extract(epoch from max(finished_at))::float8 as last_success,
                extract(epoch from max(verified_at) filter (where verified_good))::float8
                    as last_verified,
                (array_agg(size_bytes order by taken_at desc))[1] as last_size_bytes,
                (array_agg(duration_ms order by taken_at desc))[1] as last_duration_ms
           from backups",
    )
    .fetch_one(pool)
    .await
}
