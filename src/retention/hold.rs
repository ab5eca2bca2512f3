//! Holds: rows that are never archived, anonymized or purged, whatever a policy says.
//!
//! [`Holds::predicate`] is a boolean expression over one row of a table, and stands in every
//! destructive statement, on live and on archived tables alike: an archived row has the key of the
//! live one, so a hold follows it there and back.
//!
//! **A hold that was acknowledged is never missed.** Placing and releasing take an advisory lock
//! alone, every destructive chunk takes it shared with [`Holds::for_chunk`] and looks at the holds
//! again in its own transaction. So a chunk either ends before the hold is placed, or sees it. This
//! needs READ COMMITTED: under REPEATABLE READ the look would be at an older snapshot.
//!
//! **Who belongs to a person.** A hold over a subject is over their own row, every row with a
//! foreign key to it, every row that `classification.toml` ties to it, and whatever would be
//! deleted along with these (`ON DELETE CASCADE`), at any distance. Rows that merely stand below a
//! row with such a key, like the courses of a department that the person heads, are not theirs.

use std::sync::Arc;

use serde::Serialize;
use sqlx::PgConnection;

use super::archive::{ARCHIVE_SCHEMA, is_archive_of};
use super::catalog::Catalog;
use super::sql::{Ident, Literal, TableName};
use crate::db::holds::{self, HoldRow};
use crate::policy::{Classification, Condition};

mod place;
mod subject;

pub use place::{PlaceError, Placement, place};

/// Most rows of one hold: they stand in every statement of a run.
pub const MAX_KEYS: usize = 10_000;
/// Most holds in force at once, for the same reason.
pub const MAX_IN_FORCE: usize = 10_000;

/// What a hold is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub enum Scope {
    /// Rows of a table.
    Rows {
        /// The table.
        table: TableName,
        /// Which rows.
        keys: Keys,
    },
    /// A person, with every row tied to them.
    Subject {
        /// The table of people.
        table: TableName,
        /// The person.
        keys: Keys,
    },
    /// All rows of a table, those to come as well.
    Table {
        /// The table.
        table: TableName,
    },
    /// The rows of a table for which a condition is true, whenever it is asked.
    Query {
        /// The table.
        table: TableName,
        /// The condition.
        condition: Condition,
    },
}

impl Scope {
    /// The table that is named.
    pub fn table(&self) -> &TableName {
        match self {
            Self::Rows { table, keys: _ }
            | Self::Subject { table, keys: _ }
            | Self::Table { table }
            | Self::Query { table, condition: _ } => table,
        }
    }

    /// As in the table of holds.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rows { .. } => "rows",
            Self::Subject { .. } => "subject",
            Self::Table { .. } => "table",
            Self::Query { .. } => "query",
        }
    }
}

/// Keys of rows: for each as many texts as there are columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Keys {
    /// Columns of the primary key.
    pub columns: Vec<Ident>,
    /// Values, in PostgreSQL's text form.
    pub values: Vec<Vec<String>>,
}

impl Keys {
    /// Whether the row of `alias` has one of the keys. The columns' types read the texts, so the
    /// primary key's index can be used.
    fn predicate(&self, alias: &Ident) -> String {
        let columns: Vec<_> = self.columns.iter().map(|name| format!("{alias}.{name}")).collect();
        let rows: Vec<_> = self.values.iter().map(|values| tuple(values)).collect();
        format!("({}) in ({})", columns.join(", "), rows.join(", "))
    }
}

fn tuple(values: &[String]) -> String {
    let literals: Vec<_> = values.iter().map(|value| Literal::new(value).to_string()).collect();
    format!("({})", literals.join(", "))
}

/// The holds cannot be used, so nothing may be deleted.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The database's.
    #[error("cannot read the holds")]
    Database(#[from] sqlx::Error),
    /// A row says something that no hold says.
    #[error("hold {id} cannot be read: {expected}")]
    Unreadable {
        /// Which.
        id: i64,
        /// What was expected.
        expected: String,
    },
    /// There are more than statements can carry.
    #[error(
        "more than {MAX_IN_FORCE} holds are in force: hold tables or conditions instead of rows"
    )]
    TooMany,
}

/// Every hold in force, at one instant.
#[derive(Debug, Clone)]
pub struct Holds {
    scopes: Vec<Scope>,
    classification: Arc<Classification>,
    /// Only read where a hold is over a person.
    catalog: Option<Catalog>,
    fingerprint: (Vec<i64>, Vec<String>),
}

impl Holds {
    /// Reads the holds in force. `classification` says what belongs to a person.
    ///
    /// # Errors
    /// [`HoldError`]
    pub async fn load(
        connection: &mut PgConnection,
        classification: Arc<Classification>,
    ) -> Result<Self, HoldError> {
        // Before the holds: if one is placed in between, the next look sees that it is new.
        let fingerprint = holds::fingerprint(connection, ARCHIVE_SCHEMA).await?;
        if fingerprint.0.len() > MAX_IN_FORCE {
            return Err(HoldError::TooMany);
        }
        let rows = holds::in_force(connection).await?;
        let scopes = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let about_people = scopes.iter().any(|scope| matches!(scope, Scope::Subject { .. }));
        let catalog = if about_people { Some(Catalog::read(connection).await?) } else { None };
        Ok(Self { scopes, classification, catalog, fingerprint })
    }

    /// To be called first in the transaction of a destructive chunk: keeps holds from being placed
    /// or released until it ends, and brings these up to date. Whether they changed is the answer:
    /// then predicates have to be asked for again.
    ///
    /// # Errors
    /// [`HoldError`]; the chunk must be given up.
    pub async fn for_chunk(&mut self, connection: &mut PgConnection) -> Result<bool, HoldError> {
        holds::lock_shared(connection).await?;
        if holds::fingerprint(connection, ARCHIVE_SCHEMA).await? == self.fingerprint {
            return Ok(false);
        }
        *self = Self::load(connection, Arc::clone(&self.classification)).await?;
        Ok(true)
    }

    /// Whether none is in force.
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Boolean SQL: whether the row of `table` that a statement calls `alias` is held. Never NULL;
    /// `false` where no hold concerns the table.
    pub fn predicate(&self, table: &TableName, alias: &str) -> String {
        let alias = Ident::new(alias);
        let mut held: Vec<_> =
            self.scopes.iter().flat_map(|scope| self.conditions(scope, table, &alias)).collect();
        held.sort();
        held.dedup();
        if held.is_empty() {
            "false".to_owned()
        } else {
            format!("coalesce({}, false)", any(&held))
        }
    }

    fn conditions(&self, scope: &Scope, table: &TableName, alias: &Ident) -> Vec<String> {
        match scope {
            Scope::Subject { table: subject, keys } => match &self.catalog {
                Some(catalog) => {
                    let links = subject::Links {
                        catalog,
                        classification: &self.classification,
                        subject,
                        keys,
                    };
                    links.conditions(table, alias)
                }
                None => Vec::new(),
            },
            other if !is_same_row_kind(other.table(), table) => Vec::new(),
            Scope::Rows { table: _, keys } => vec![keys.predicate(alias)],
            Scope::Table { table: _ } => vec!["true".to_owned()],
            Scope::Query { table: held, condition } => vec![over_row(held, condition, alias)],
        }
    }
}

/// `(a or b)`.
fn any(conditions: &[String]) -> String {
    format!("({})", conditions.join(" or "))
}

/// A condition over the row of `alias`: its columns have their bare names, as where it was written.
fn over_row(table: &TableName, condition: &Condition, alias: &Ident) -> String {
    format!("(select ({condition}) from (select {alias}.*) as {})", table.name)
}

/// Whether a row of one table can become a row of the other by archive or restore.
fn is_same_row_kind(a: &TableName, b: &TableName) -> bool {
    a == b || is_archive_of(b, a) || is_archive_of(a, b)
}

/// A row of the table of holds as what it means.
///
/// # Errors
/// [`HoldError::Unreadable`]
pub fn read(row: &HoldRow) -> Result<Scope, HoldError> {
    let unreadable = |expected: String| HoldError::Unreadable { id: row.id, expected };
    let table: TableName =
        row.table_name.parse().map_err(|error| unreadable(format!("its table {error}")))?;
    let keys = || -> Result<Keys, HoldError> {
        let columns: Vec<_> =
            row.key_columns.iter().flatten().map(|name| Ident::new(name.as_str())).collect();
        let values: Vec<Vec<String>> = serde_json::from_value(row.keys.clone().unwrap_or_default())
            .map_err(|_| unreadable("its keys must be arrays of texts".to_owned()))?;
        let whole = !columns.is_empty()
            && !values.is_empty()
            && values.iter().all(|key| key.len() == columns.len());
        if !whole {
            return Err(unreadable("its keys must have a value for each column".to_owned()));
        }
        Ok(Keys { columns, values })
    };
    match row.scope.as_str() {
        "rows" => Ok(Scope::Rows { table, keys: keys()? }),
        "subject" => Ok(Scope::Subject { table, keys: keys()? }),
        "table" => Ok(Scope::Table { table }),
        "query" => {
            let condition = row.condition.as_deref().unwrap_or_default();
            let condition =
                condition.parse().map_err(|error| unreadable(format!("its condition {error}")))?;
            Ok(Scope::Query { table, condition })
        }
        other => Err(unreadable(format!("its scope is `{other}`"))),
    }
}
