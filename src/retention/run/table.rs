//! What a run does to each table, and how far it is.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

/// A table of a run.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct RunTable {
    /// Place in the order, from 0.
    pub position: i32,
    /// The table.
    pub table_name: String,
    /// `archive`, `purge` or `anonymize`.
    pub action: String,
    /// `pending`, `processing` or `completed`.
    pub status: String,
    /// Rows older than this go; `None` for rows that go with their parents.
    pub cutoff: Option<DateTime<Utc>>,
    /// How often the table was walked through.
    pub pass: i32,
    /// The key after which the walk goes on.
    #[serde(skip)]
    pub cursor: Option<Vec<String>>,
    /// The key at which the walk ends.
    #[serde(skip)]
    pub last_key: Option<Vec<String>>,
    /// Rows of the table when the run began.
    pub total: i64,
    /// Rows that were to go.
    pub eligible: i64,
    /// Old enough, but held.
    pub held: i64,
    /// Without an age.
    pub indeterminate: i64,
    /// Old enough, but others reference them.
    pub blocked: i64,
    /// Rows that went.
    pub done: i64,
    /// Rows that somebody had locked to the end.
    pub skipped: i64,
    /// Transactions so far.
    pub chunks: i64,
    /// Bytes of the rows that went.
    pub bytes_done: i64,
    /// Hash over the keys of the rows that went, whatever their order.
    pub keys_hash: String,
    /// Files that its rows were written to before they left.
    pub exported_files: i64,
    /// Rows in these files.
    pub exported_rows: i64,
    /// Bytes of these files.
    pub exported_bytes: i64,
    /// SHA-256 over the SHA-256 of each of these files, in their order; `None`: there are none.
    pub exports_sha256: Option<String>,
    /// Bytes on disk before.
    pub size_before: Option<i64>,
    /// Bytes on disk after: rows that went leave room that only new rows use.
    pub size_after: Option<i64>,
    /// When its first chunk began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was done.
    pub completed_at: Option<DateTime<Utc>>,
}

/// A table of a run, as the preview found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    /// The table.
    pub table_name: String,
    /// `archive`, `purge` or `anonymize`.
    pub action: &'static str,
    /// Rows older than this go.
    pub cutoff: Option<DateTime<Utc>>,
    /// Rows of the table.
    pub total: i64,
    /// Rows that will go.
    pub eligible: i64,
    /// Old enough, but held.
    pub held: i64,
    /// Without an age.
    pub indeterminate: i64,
    /// Old enough, but referenced.
    pub blocked: i64,
    /// Bytes on disk.
    pub size_before: i64,
}

/// Stores the tables of a run, in order. Tables that are there already stay as they are: a resumed
/// run keeps its cursors.
///
/// # Errors
/// The database's.
pub async fn insert_tables(
    connection: &mut PgConnection,
    run_id: i64,
    tables: &[NewTable],
) -> Result<(), sqlx::Error> {
    for (position, table) in tables.iter().enumerate() {
        sqlx::query(
            "insert into lifecycle_run_tables
                    (run_id, position, table_name, action, cutoff, total, eligible, held,
                     indeterminate, blocked, size_before)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             on conflict do nothing",
        )
        .bind(run_id)
        .bind(i32::try_from(position).unwrap_or(i32::MAX))
        .bind(&table.table_name)
        .bind(table.action)
        .bind(table.cutoff)
        .bind(table.total)
        .bind(table.eligible)
        .bind(table.held)
        .bind(table.indeterminate)
        .bind(table.blocked)
        .bind(table.size_before)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// The tables of a run, in order.
///
/// # Errors
/// The database's.
pub async fn tables_of(
    connection: &mut PgConnection,
    run_id: i64,
) -> Result<Vec<RunTable>, sqlx::Error> {
    sqlx::query_as(
        "select position, table_name, action, status, cutoff, pass, cursor, last_key, total,
                eligible, held, indeterminate, blocked, done, skipped, chunks, bytes_done,
                keys_hash, exported_files, exported_rows, exported_bytes, exports_sha256,
                size_before, size_after, started_at, completed_at
           from lifecycle_run_tables t
          cross join lateral (
                select count(*) as exported_files,
                       coalesce(sum(e.row_count), 0)::bigint as exported_rows,
                       coalesce(sum(e.size_bytes), 0)::bigint as exported_bytes,
                       encode(sha256(string_agg(decode(e.sha256, 'hex'), ''::bytea
                                                order by e.number)), 'hex') as exports_sha256
                  from lifecycle_run_exports e
                 where e.run_id = t.run_id and e.position = t.position) exported
          where run_id = $1
          order by position",
    )
    .bind(run_id)
    .fetch_all(connection)
    .await
}

/// pending → processing, or no change for a table that was begun before.
///
/// # Errors
/// The database's.
pub async fn begin_table(
    connection: &mut PgConnection,
    run_id: i64,
    position: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_run_tables
            set status = 'processing', started_at = coalesce(started_at, now())
          where run_id = $1 and position = $2 and status = 'pending'",
    )
    .bind(run_id)
    .bind(position)
    .execute(connection)
    .await?;
    Ok(())
}

/// Begins a walk through the table, to end at `last_key`.
///
/// # Errors
/// The database's.
pub async fn next_pass(
    connection: &mut PgConnection,
    run_id: i64,
    position: i32,
    last_key: &[String],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_run_tables
            set pass = pass + 1, cursor = null, last_key = $3
          where run_id = $1 and position = $2 and status = 'processing'",
    )
    .bind(run_id)
    .bind(position)
    .bind(last_key)
    .execute(connection)
    .await?;
    Ok(())
}

/// What a chunk did to a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkDone {
    /// Rows that went.
    pub rows: i64,
    /// Their size.
    pub bytes: i64,
    /// Exclusive or of the hashes of their keys, under two seeds.
    pub keys: (i64, i64),
}

impl ChunkDone {
    /// Adds what was done to other rows.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.keys = (self.keys.0 ^ other.keys.0, self.keys.1 ^ other.keys.1);
    }
}

/// Adds what a chunk did to a table's account, in the transaction that did it.
///
/// # Errors
/// The database's.
pub async fn store_chunk(
    connection: &mut PgConnection,
    run_id: i64,
    position: i32,
    done: &ChunkDone,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_run_tables
            set done = done + $3, bytes_done = bytes_done + $4, chunks = chunks + 1,
                keys_hash = lpad(to_hex(('x' || left(keys_hash, 16))::bit(64)::bigint # $5),
                                 16, '0')
                         || lpad(to_hex(('x' || right(keys_hash, 16))::bit(64)::bigint # $6),
                                 16, '0')
          where run_id = $1 and position = $2",
    )
    .bind(run_id)
    .bind(position)
    .bind(done.rows)
    .bind(done.bytes)
    .bind(done.keys.0)
    .bind(done.keys.1)
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves a table's cursor, in the transaction that did the rows before it.
///
/// # Errors
/// The database's.
pub async fn store_cursor(
    connection: &mut PgConnection,
    run_id: i64,
    position: i32,
    cursor: &[String],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_run_tables
            set cursor = $3
          where run_id = $1 and position = $2 and status = 'processing'",
    )
    .bind(run_id)
    .bind(position)
    .bind(cursor)
    .execute(connection)
    .await?;
    Ok(())
}

/// Stores what stays in a table at the end, and why.
///
/// # Errors
/// The database's.
pub async fn store_counts(
    connection: &mut PgConnection,
    run_id: i64,
    position: i32,
    held: i64,
    blocked: i64,
    skipped: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_run_tables
            set held = $3, blocked = $4, skipped = $5
          where run_id = $1 and position = $2 and status = 'processing'",
    )
    .bind(run_id)
    .bind(position)
    .bind(held)
    .bind(blocked)
    .bind(skipped)
    .execute(connection)
    .await?;
    Ok(())
}

/// Brings the account of a run that makes people anonymous up to date: who is done, held, or put
/// off. Counted from the erasures, so that a crash loses nothing.
///
/// # Errors
/// The database's.
pub async fn store_people(
    connection: &mut PgConnection,
    run_id: i64,
    position: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_run_tables t
            set done = p.done, held = p.held, skipped = p.skipped,
                chunks = case when t.done + t.held + t.skipped < p.done + p.held + p.skipped
                              then t.chunks + 1 else t.chunks end,
                keys_hash = lpad(to_hex(p.keys_0), 16, '0') || lpad(to_hex(p.keys_1), 16, '0')
           from (select count(*) filter (where status = 'completed') as done,
                        count(*) filter (where status = 'held') as held,
                        count(*) filter (where status in ('waiting', 'processing')) as skipped,
                        coalesce(bit_xor(hashtextextended(subject_id, 0))
                                 filter (where status = 'completed'), 0) as keys_0,
                        coalesce(bit_xor(hashtextextended(subject_id, 1))
                                 filter (where status = 'completed'), 0) as keys_1
                   from erasures
                  where carried_out_by_run = $1) p
          where t.run_id = $1 and t.position = $2 and t.status = 'processing'",
    )
    .bind(run_id)
    .bind(position)
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds what a run changed for people in other tables than their own.
///
/// # Errors
/// The database's.
pub async fn store_people_tables(
    connection: &mut PgConnection,
    run_id: i64,
    subject_table: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into lifecycle_run_tables
                (run_id, position, table_name, action, status, total, eligible, done, started_at,
                 completed_at)
         select $1, row_number() over (order by c.table_name), c.table_name, 'anonymize',
                'completed', c.rows, c.rows, c.rows, now(), now()
           from (select t.table_name, sum(t.rows_changed)::bigint as rows
                   from erasure_tables t
                   join erasures e on e.id = t.erasure_id
                  where e.carried_out_by_run = $1 and e.status = 'completed'
                    and t.table_name <> $2
                  group by t.table_name) c
         on conflict do nothing",
    )
    .bind(run_id)
    .bind(subject_table)
    .execute(connection)
    .await?;
    Ok(())
}

/// processing → completed.
///
/// # Errors
/// The database's.
pub async fn end_table(
    connection: &mut PgConnection,
    run_id: i64,
    position: i32,
    size_after: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update lifecycle_run_tables
            set status = 'completed', completed_at = now(), size_after = $3
          where run_id = $1 and position = $2 and status in ('pending', 'processing')",
    )
    .bind(run_id)
    .bind(position)
    .bind(size_after)
    .execute(connection)
    .await?;
    Ok(())
}
