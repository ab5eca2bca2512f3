//! `holds`: what no lifecycle run may touch. Rows are added, released once, and never deleted.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;

/// A row.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow, Serialize, Deserialize)]
pub struct HoldRow {
    /// Its number.
    pub id: i64,
    /// `rows`, `subject`, `table` or `query`.
    pub scope: String,
    /// The table, with its schema outside of `public`.
    pub table_name: String,
    /// Columns of the keys, for rows and subjects.
    pub key_columns: Option<Vec<String>>,
    /// Keys as arrays of texts, for rows and subjects.
    pub keys: Option<Value>,
    /// SQL, for queries.
    pub condition: Option<String>,
    /// Why.
    pub reason: String,
    /// The account; `None` for the operator.
    pub placed_by: Option<i32>,
    /// When.
    pub placed_at: DateTime<Utc>,
    /// When it ends by itself.
    pub until: Option<DateTime<Utc>>,
    /// The account that released it; `None` for the operator, or if it is not released.
    pub released_by: Option<i32>,
    /// When it was released.
    pub released_at: Option<DateTime<Utc>>,
    /// Why it was.
    pub release_reason: Option<String>,
    /// Whether it is in force now.
    #[serde(skip)]
    pub in_force: bool,
}

/// A hold to place.
#[derive(Debug, Clone, PartialEq)]
pub struct NewHold<'a> {
    /// See [`HoldRow::scope`].
    pub scope: &'a str,
    /// See [`HoldRow::table_name`].
    pub table_name: &'a str,
    /// See [`HoldRow::key_columns`].
    pub key_columns: Option<&'a [String]>,
    /// See [`HoldRow::keys`].
    pub keys: Option<Value>,
    /// See [`HoldRow::condition`].
    pub condition: Option<&'a str>,
    /// See [`HoldRow::reason`].
    pub reason: &'a str,
    /// See [`HoldRow::placed_by`].
    pub placed_by: Option<i32>,
    /// See [`HoldRow::until`].
    pub until: Option<DateTime<Utc>>,
}

/// Which holds are listed.
#[derive(Debug, Clone, Copy, Default)]
pub struct HoldFilter<'a> {
    /// Only those in force, or only those that are not.
    pub in_force: Option<bool>,
    /// Only those of this table.
    pub table_name: Option<&'a str>,
    /// Only those placed before this one.
    pub before: Option<i64>,
}

/// Keeps every destructive chunk out until the transaction ends. Taken before a hold is placed or
/// released, so that whoever is told of a hold knows that no chunk works without it.
///
/// # Errors
/// The database's.
pub async fn lock_exclusive(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK_KEY).execute(connection).await?;
    Ok(())
}

/// Keeps holds as they are until the transaction ends. Any number of chunks may have it at once.
///
/// # Errors
/// The database's.
pub async fn lock_shared(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock_shared($1)")
        .bind(LOCK_KEY)
        .execute(connection)
        .await?;
    Ok(())
}

/// `hold` in a room of its own: any number does that nobody else uses.
const LOCK_KEY: i64 = 0x7267_6873_686f_6c64;

/// Places a hold. `None`: `until` is not in the future.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    new: NewHold<'_>,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "insert into holds
                (scope, table_name, key_columns, keys, condition, reason, placed_by, until)
         select $1, $2, $3, $4, $5, $6, $7, $8
          where $8::timestamptz is null or $8 > now()
         returning id",
    )
    .bind(new.scope)
    .bind(new.table_name)
    .bind(new.key_columns)
    .bind(new.keys)
    .bind(new.condition)
    .bind(new.reason)
    .bind(new.placed_by)
    .bind(new.until)
    .fetch_optional(connection)
    .await
}

/// Releases a hold that is not released. False: there is none such.
///
/// # Errors
/// The database's.
pub async fn release(
    connection: &mut PgConnection,
    id: i64,
    released_by: Option<i32>,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "update holds
            set released_at = now(), released_by = $2, release_reason = $3
          where id = $1 and released_at is null",
    )
    .bind(id)
    .bind(released_by)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A hold by its number.
///
/// # Errors
/// The database's.
pub async fn find(connection: &mut PgConnection, id: i64) -> Result<Option<HoldRow>, sqlx::Error> {
    sqlx::query_as(
        "select id, scope, table_name, key_columns, keys, condition, reason, placed_by, placed_at,
                until, released_by, released_at, release_reason,
                released_at is null and (until is null or until > now()) as in_force
           from holds
          where id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await
}

/// Holds, newest first.
///
/// # Errors
/// The database's.
pub async fn list(
    connection: &mut PgConnection,
    filter: HoldFilter<'_>,
    limit: i64,
) -> Result<Vec<HoldRow>, sqlx::Error> {
    sqlx::query_as(
        "select id, scope, table_name, key_columns, keys, condition, reason, placed_by, placed_at,
                until, released_by, released_at, release_reason,
                released_at is null and (until is null or until > now()) as in_force
           from holds
          where ($1::bool is null
                 or $1 = (released_at is null and (until is null or until > now())))
            and ($2::text is null or table_name = $2)
            and ($3::bigint is null or id < $3)
          order by id desc
          limit $4",
    )
    .bind(filter.in_force)
    .bind(filter.table_name)
    .bind(filter.before)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Every hold in force.
///
/// # Errors
/// The database's.
pub async fn in_force(connection: &mut PgConnection) -> Result<Vec<HoldRow>, sqlx::Error> {
    sqlx::query_as(
        "select id, scope, table_name, key_columns, keys, condition, reason, placed_by, placed_at,
                until, released_by, released_at, release_reason, true as in_force
           from holds
          where released_at is null and (until is null or until > now())
          order by id",
    )
    .fetch_all(connection)
    .await
}

/// What became of a hold that was placed in another life of this database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// It was not there.
    Placed,
    /// It was there, and had not been released yet.
    Released,
    /// It was there, as it is.
    Known,
}

/// Brings a hold back as it was, with its number if that is free. A hold is told from others by
/// when and over what it was placed: doing it twice changes nothing.
///
/// # Errors
/// The database's.
pub async fn replay(connection: &mut PgConnection, hold: &HoldRow) -> Result<Replay, sqlx::Error> {
    // Alone: between the look and the insert nobody takes the number.
    lock_exclusive(connection).await?;
    let known: Option<(i64, bool)> = sqlx::query_as(
        "select id, released_at is not null
           from holds
          where placed_at = $1 and scope = $2 and table_name = $3
            and keys is not distinct from $4 and condition is not distinct from $5",
    )
    .bind(hold.placed_at)
    .bind(&hold.scope)
    .bind(&hold.table_name)
    .bind(&hold.keys)
    .bind(&hold.condition)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some((id, is_released)) = known {
        if is_released || hold.released_at.is_none() {
            return Ok(Replay::Known);
        }
        sqlx::query(
            "update holds
                set released_at = $2, released_by = $3, release_reason = $4
              where id = $1 and released_at is null",
        )
        .bind(id)
        .bind(hold.released_at)
        .bind(hold.released_by)
        .bind(&hold.release_reason)
        .execute(connection)
        .await?;
        return Ok(Replay::Released);
    }
    sqlx::query(
        "insert into holds
                (id, scope, table_name, key_columns, keys, condition, reason, placed_by, placed_at,
                 until, released_by, released_at, release_reason)
         select case when exists (select from holds where id = $1)
                     then nextval(pg_get_serial_sequence('holds', 'id')) else $1 end,
                $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13",
    )
    .bind(hold.id)
    .bind(&hold.scope)
    .bind(&hold.table_name)
    .bind(&hold.key_columns)
    .bind(&hold.keys)
    .bind(&hold.condition)
    .bind(&hold.reason)
    .bind(hold.placed_by)
    .bind(hold.placed_at)
    .bind(hold.until)
    .bind(hold.released_by)
    .bind(hold.released_at)
    .bind(&hold.release_reason)
    .execute(&mut *connection)
    .await?;
    // The next number is one that no hold has.
    sqlx::query(
        "select setval(pg_get_serial_sequence('holds', 'id'), (select max(id) from holds))",
    )
    .execute(connection)
    .await?;
    Ok(Replay::Placed)
}

/// What tells, cheaply, whether other holds are in force than before: their numbers, because a
/// hold does not change, and the names of the tables in `schema`.
///
/// # Errors
/// The database's.
pub async fn fingerprint(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<(Vec<i64>, Vec<String>), sqlx::Error> {
    sqlx::query_as(
        "select array(select id from holds
                       where released_at is null and (until is null or until > now())
                       order by id),
                array(select c.relname::text from pg_class c
                        join pg_namespace n on n.oid = c.relnamespace
                       where n.nspname = $1 and c.relkind in ('r', 'p')
                       order by 1)",
    )
    .bind(schema)
    .fetch_one(connection)
    .await
}
