//! Closing the account of a person whose erasure was requested, and opening it again.
//!
//! Closing is one statement on the person's row: it is deleted softly, can no longer be used, and
//! the values of its unique columns become the tokens that the erasure would give them, so that
//! somebody else can take the username and the address at once. That needs no change of the
//! application's constraints, and its look-ups by e-mail find one row, never two. What stood there
//! is kept sealed with the erasure until it is cancelled or carried out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::anonymize::{Identity, Plan, Strength};
use super::keyring::Key;
use super::sql::{self, Ident};
use super::treatment::Place;
use crate::db::sqlstate;
use crate::policy::ColumnName;

/// What is sealed with an erasure.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The columns that closing changes, as they were.
    pub before: BTreeMap<String, Option<String>>,
    /// What the person is called by.
    pub identity: Identity,
}

/// A person's row, locked.
#[derive(Debug)]
pub struct Locked {
    /// What the ledger needs beside table and key.
    pub born: Option<String>,
    /// What is to be sealed.
    pub kept: Kept,
}

/// An account cannot be opened again.
#[derive(Debug, thiserror::Error)]
pub enum ReopenError {
    /// Somebody else has a value that would be given back.
    #[error("`{column}` of the account was taken by another one: change that one first")]
    Taken {
        /// The column.
        column: String,
    },
    /// The row is gone.
    #[error("the account does not exist any more")]
    Gone,
    /// The database's.
    #[error("the account cannot be opened")]
    Database(#[from] sqlx::Error),
}

impl Kept {
    /// As bytes, to be sealed.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// From what was sealed.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// What was sealed is bound to its person: a copy to another's row does not open.
pub fn sealed_about(subject_table: &str, subject_id: &str) -> String {
    format!("erasure of {subject_table} {subject_id}")
}

/// The ledger's view of every person of the table, in a form that no setting of a session changes.
pub fn born_expression(plan: &Plan) -> String {
    born_of(plan.subject.account.born.as_ref().map(ident).as_ref())
}

/// The same, of a row with the alias `t`.
pub(super) fn born_of(column: Option<&Ident>) -> String {
    match column {
        Some(column) => format!("(t.{column} at time zone 'UTC')::text"),
        None => "null::text".to_owned(),
    }
}

/// Locks a person's row and reads what is needed of it. `None`: there is no such person.
///
/// # Errors
/// The database's; a key that is no value of the key's type finds nobody.
pub async fn lock(
    connection: &mut PgConnection,
    plan: &Plan,
    id: &str,
) -> Result<Option<Locked>, sqlx::Error> {
    super::anonymize::set_forms(&mut *connection).await?;
    let changed = changed_columns(plan);
    let before: Vec<_> = changed.iter().map(|column| format!("t.{column}::text")).collect();
    let subject = &plan.subject;
    let statement = format!(
        "select array[{}]::text[] as before, {} as born, {} from {} t where t.{} = $1::text::{}
            for update",
        before.join(", "),
        born_expression(plan),
        name_columns(plan),
        subject.table,
        subject.key.name,
        subject.key.type_name,
    );
    let row = sqlx::query(sql::dynamic(statement)).bind(id).fetch_optional(connection).await;
    let row = match row {
        // Text that is no number, or a number too large: nobody has such a key.
        Err(error) if sqlstate(&error).is_some_and(|code| code.starts_with("22")) => {
            return Ok(None);
        }
        row => row?,
    };
    let Some(row) = row else { return Ok(None) };
    let values: Vec<Option<String>> = row.try_get("before")?;
    let names = changed.iter().map(|column| column.as_str().to_owned());
    let before = names.zip(values).collect();
    let kept = Kept { before, identity: identity(&row, plan, None)? };
    Ok(Some(Locked { born: row.try_get("born")?, kept }))
}

/// Closes the account of a person whose row is locked.
///
/// # Errors
/// The database's.
pub async fn close(
    connection: &mut PgConnection,
    plan: &Plan,
    id: &str,
    key: &Key,
) -> Result<(), sqlx::Error> {
    let account = &plan.subject.account;
    let deleted_at = ident(&account.deleted_at);
    let mut sets = vec![format!("{deleted_at} = coalesce(t.{deleted_at}, now())")];
    let mut values = Vec::new();
    for (column, value) in &account.closed {
        values.push(Some(value.clone()));
        sets.push(set(plan, &ident(column), values.len() + 1));
    }
    let row = [id.to_owned()];
    for column in &account.frees {
        let place =
            Place { table: plan.subject.table.name.as_str(), column: column.as_str(), row: &row };
        let treated = plan.subject.columns.iter().find(|t| t.name == ident(column));
        let token = treated.and_then(|column| column.treatment.apply(key, place, Some("")));
        values.push(token);
        // A value that is not there holds nothing up.
        let column = ident(column);
        let at = values.len() + 1;
        sets.push(format!("{column} = case when t.{column} is not null then ${at}::text end"));
    }
    write(&mut *connection, plan, id, &sets, &values).await?;
    for revoked in &account.revokes {
        let (at, of) = (ident(&revoked.at), ident(&revoked.subject));
        let table = super::sql::TableName::new(revoked.table.schema(), revoked.table.table());
        let statement = format!(
            "update {table} t set {at} = now()
              where t.{of} = $1::text::{} and t.{at} is null",
            plan.subject.key.type_name
        );
        sqlx::query(sql::dynamic(statement)).bind(id).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Opens an account again as it was before it was closed.
///
/// # Errors
/// [`ReopenError`]
pub async fn reopen(
    connection: &mut PgConnection,
    plan: &Plan,
    id: &str,
    kept: &Kept,
) -> Result<(), ReopenError> {
    super::anonymize::set_forms(&mut *connection).await?;
    let (mut sets, mut values) = (Vec::new(), Vec::new());
    for column in changed_columns(plan) {
        if let Some(value) = kept.before.get(column.as_str()) {
            values.push(value.clone());
            sets.push(set(plan, &column, values.len() + 1));
        }
    }
    match write(connection, plan, id, &sets, &values).await {
        Ok(0) => Err(ReopenError::Gone),
        Ok(_) => Ok(()),
        Err(error) if sqlstate(&error).as_deref() == Some("23505") => {
            let constraint = error.as_database_error().and_then(|error| error.constraint());
            let unique = constraint.unwrap_or_default().to_owned();
            let frees = &plan.subject.account.frees;
            let column = frees.iter().find(|column| unique.contains(column.as_str()));
            let column = column.map_or(unique.clone(), |column| column.as_str().to_owned());
            Err(ReopenError::Taken { column })
        }
        Err(error) => Err(error.into()),
    }
}

/// What a person is called by, from a row with [`name_columns`]. With a key, values that are
/// treated already are left out: they are no names any more.
///
/// # Errors
/// The row does not have the columns.
pub fn identity(
    row: &PgRow,
    plan: &Plan,
    treated: Option<(&Key, &str)>,
) -> Result<Identity, sqlx::Error> {
    let mut identity = Identity::default();
    for (at, columns) in plan.subject.names.iter().enumerate() {
        let parts: Vec<Option<String>> = row.try_get(format!("n{at}").as_str())?;
        let is_treated = |column: &Ident, value: &str| {
            let Some((key, id)) = treated else { return false };
            let found = plan.subject.columns.iter().find(|t| t.name == *column);
            let row = [id.to_owned()];
            let table = plan.subject.table.name.as_str();
            let place = Place { table, column: column.as_str(), row: &row };
            found.is_some_and(|column| {
                column.treatment != super::treatment::Treatment::Keep
                    && column.treatment.apply(key, place, Some(value)).as_deref() == Some(value)
            })
        };
        // A family name alone names many.
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else { continue };
        if columns.iter().zip(&parts).any(|(column, value)| is_treated(column, value)) {
            continue;
        }
        let is_unique =
            matches!(columns.as_slice(), [one] if plan.subject.unique.contains(one.as_str()));
        let strength = if is_unique { Strength::Unique } else { Strength::Shared };
        identity.add(strength, &parts.join(" "));
    }
    Ok(identity)
}

/// The columns that [`identity`] reads, for a select with the alias `t`.
pub fn name_columns(plan: &Plan) -> String {
    let names = plan.subject.names.iter().enumerate().map(|(at, columns)| {
        let columns: Vec<_> = columns.iter().map(|column| format!("t.{column}::text")).collect();
        format!("array[{}]::text[] as n{at}", columns.join(", "))
    });
    names.collect::<Vec<_>>().join(", ")
}

fn changed_columns(plan: &Plan) -> Vec<Ident> {
    let account = &plan.subject.account;
    let closed = account.closed.iter().map(|(column, _)| column);
    [&account.deleted_at].into_iter().chain(closed).chain(&account.frees).map(ident).collect()
}

fn ident(column: &ColumnName) -> Ident {
    Ident::new(column.as_str())
}

/// `column = $n`, read as the column's own type.
fn set(plan: &Plan, column: &Ident, at: usize) -> String {
    let found = plan.subject.types.get(column.as_str());
    let type_name = found.map_or("text", String::as_str);
    format!("{column} = ${at}::text::{type_name}")
}

async fn write(
    connection: &mut PgConnection,
    plan: &Plan,
    id: &str,
    sets: &[String],
    values: &[Option<String>],
) -> Result<u64, sqlx::Error> {
    let statement = format!(
        "update {} t set {} where t.{} = $1::text::{}",
        plan.subject.table,
        sets.join(", "),
        plan.subject.key.name,
        plan.subject.key.type_name,
    );
    let mut query = sqlx::query(sql::dynamic(statement)).bind(id);
    for value in values {
        query = query.bind(value);
    }
    Ok(query.execute(connection).await?.rows_affected())
}
