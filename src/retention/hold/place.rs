//! Placing a hold: it must keep something, and every statement that carries it must work.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{PgConnection, Row};

use super::super::archive::ARCHIVE_SCHEMA;
use super::super::catalog::{Catalog, Table};
use super::super::condition::{self, ConditionFault};
use super::super::sql::{Ident, TableName, dynamic};
use super::{Keys, MAX_IN_FORCE, MAX_KEYS, Scope};
use crate::db::holds::{self, NewHold};
use crate::policy::Condition;

/// Longest value of a key, in bytes.
const MAX_VALUE_BYTES: usize = 1_000;

/// What a person asks to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Rows by primary key.
    Rows {
        /// The table.
        table: TableName,
        /// For each row the values of the key's columns.
        keys: Vec<Vec<String>>,
    },
    /// A person by primary key.
    Subject {
        /// The table of people.
        table: TableName,
        /// The values of the key's columns.
        key: Vec<String>,
    },
    /// A table whole.
    Table {
        /// The table.
        table: TableName,
    },
    /// The rows that match.
    Query {
        /// The table.
        table: TableName,
        /// Over its columns.
        condition: Condition,
    },
}

/// The hold cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// There is no such table.
    #[error("must be a table of the database, live or archived")]
    NoTable,
    /// Its rows cannot be told apart.
    #[error("`{0}` has no primary key: hold the table or a condition")]
    NoKey(String),
    /// Keys of the wrong shape.
    #[error(
        "each key must have a value for each of `{columns}`, in that order, of at most \
         {MAX_VALUE_BYTES} bytes; there must be 1 to {MAX_KEYS} keys"
    )]
    BadShape {
        /// The primary key.
        columns: String,
    },
    /// Not values of the columns' types.
    #[error("each key must be a value of the type of `{columns}`")]
    BadValue {
        /// The primary key.
        columns: String,
    },
    /// Keys without rows.
    #[error("{found} of the {asked} keys name a row of `{table}`, live or archived: all must")]
    Missing {
        /// The table.
        table: String,
        /// Keys, the same one counted once.
        asked: usize,
        /// Rows.
        found: usize,
    },
    /// The condition means nothing here.
    #[error("the condition {0}")]
    BadCondition(ConditionFault),
    /// The end lies in the past.
    #[error("`until` must be in the future")]
    Past,
    /// Statements cannot carry more.
    #[error("{MAX_IN_FORCE} holds are in force: release some, or hold tables or conditions")]
    TooMany,
    /// The database's.
    #[error("cannot place the hold")]
    Database(#[from] sqlx::Error),
}

/// Places a hold in the caller's transaction (READ COMMITTED), and gives its number. It waits for
/// the chunks that are at work; once the transaction is committed, none works without it.
///
/// # Errors
/// [`PlaceError`]; the transaction must be rolled back.
pub async fn place(
    connection: &mut PgConnection,
    placement: Placement,
    reason: &str,
    until: Option<DateTime<Utc>>,
    placed_by: Option<i32>,
) -> Result<(i64, Scope), PlaceError> {
    // Before anything is looked at: a row that is there now is there until the hold is.
    holds::lock_exclusive(connection).await?;
    if holds::fingerprint(connection, ARCHIVE_SCHEMA).await?.0.len() >= MAX_IN_FORCE {
        return Err(PlaceError::TooMany);
    }
    let catalog = Catalog::read(connection).await?;
    let scope = resolve(connection, &catalog, placement).await?;
    let keys = match &scope {
        Scope::Rows { table: _, keys } | Scope::Subject { table: _, keys } => Some(keys),
        Scope::Table { table: _ } | Scope::Query { table: _, condition: _ } => None,
    };
    let condition = match &scope {
        Scope::Query { table: _, condition } => Some(condition.as_sql()),
        Scope::Rows { .. } | Scope::Subject { .. } | Scope::Table { .. } => None,
    };
    let columns: Option<Vec<String>> =
        keys.map(|keys| keys.columns.iter().map(|name| name.as_str().to_owned()).collect());
    let new = NewHold {
        scope: scope.name(),
        table_name: &scope.table().plain(),
        key_columns: columns.as_deref(),
        keys: keys.map(|keys| json!(keys.values)),
        condition,
        reason,
        placed_by,
        until,
    };
    let id = holds::insert(connection, new).await?.ok_or(PlaceError::Past)?;
    Ok((id, scope))
}

async fn resolve(
    connection: &mut PgConnection,
    catalog: &Catalog,
    placement: Placement,
) -> Result<Scope, PlaceError> {
    match placement {
        Placement::Rows { table, keys } => {
            let keys = resolve_keys(connection, &homes(catalog, &table)?, keys).await?;
            Ok(Scope::Rows { table, keys })
        }
        Placement::Subject { table, key } => {
            let keys = resolve_keys(connection, &homes(catalog, &table)?, vec![key]).await?;
            Ok(Scope::Subject { table, keys })
        }
        Placement::Table { table } => {
            homes(catalog, &table)?;
            Ok(Scope::Table { table })
        }
        Placement::Query { table, condition } => {
            for home in homes(catalog, &table)? {
                condition::check(connection, &condition::source(&home.name), &condition)
                    .await
                    .map_err(PlaceError::BadCondition)?;
            }
            Ok(Scope::Query { table, condition })
        }
    }
}

/// Where rows of the table are: itself and its archive, of which at least one is there.
fn homes<'a>(catalog: &'a Catalog, table: &TableName) -> Result<Vec<&'a Table>, PlaceError> {
    let same_kind = |other: &&Table| super::is_same_row_kind(&other.name, table);
    let homes: Vec<_> = catalog.tables().filter(same_kind).collect();
    if homes.is_empty() { Err(PlaceError::NoTable) } else { Ok(homes) }
}

/// The keys as the database writes them.
async fn resolve_keys(
    connection: &mut PgConnection,
    homes: &[&Table],
    values: Vec<Vec<String>>,
) -> Result<Keys, PlaceError> {
    // `homes` is never empty.
    let first = homes.first().map(|table| (table.name.plain(), table.primary_key.clone()));
    let (table, columns) = first.unwrap_or_default();
    if columns.is_empty() {
        return Err(PlaceError::NoKey(table));
    }
    let plain: Vec<_> = columns.iter().map(Ident::as_str).collect();
    let plain = plain.join(", ");
    let fits = |key: &Vec<String>| {
        key.len() == columns.len()
            && key.iter().all(|value| value.len() <= MAX_VALUE_BYTES && !value.contains('\0'))
    };
    if values.is_empty() || values.len() > MAX_KEYS || !values.iter().all(fits) {
        return Err(PlaceError::BadShape { columns: plain });
    }
    let mut asked = Keys { columns, values };
    asked.values.sort();
    asked.values.dedup();
    let mut found = Vec::new();
    for home in homes.iter().filter(|home| home.primary_key == asked.columns) {
        found.extend(existing(connection, &home.name, &asked, &plain).await?);
    }
    found.sort();
    found.dedup();
    if found.len() < asked.values.len() {
        return Err(PlaceError::Missing { table, asked: asked.values.len(), found: found.len() });
    }
    Ok(Keys { values: found, ..asked })
}

async fn existing(
    connection: &mut PgConnection,
    table: &TableName,
    asked: &Keys,
    plain: &str,
) -> Result<Vec<Vec<String>>, PlaceError> {
    let alias = Ident::new("held");
    let texts: Vec<_> = asked.columns.iter().map(|name| format!("{alias}.{name}::text")).collect();
    let select = format!(
        "select array[{}] as key from {table} as {alias} where {}",
        texts.join(", "),
        asked.predicate(&alias),
    );
    let rows =
        sqlx::query(dynamic(select)).fetch_all(connection).await.map_err(|error| {
            match error.as_database_error().and_then(|database| database.code()) {
                Some(code) if code.starts_with("22") => {
                    PlaceError::BadValue { columns: plain.to_owned() }
                }
                _ => PlaceError::Database(error),
            }
        })?;
    rows.iter().map(|row| Ok(row.try_get("key")?)).collect()
}
