//! Whether a condition that an operator wrote means something in this database.

use sqlx::PgConnection;

use super::sql::{Ident, TableName, dynamic};
use crate::policy::Condition;

/// A condition that the database does not accept.
#[derive(Debug, thiserror::Error)]
pub enum ConditionFault {
    /// It gives another answer each time it is asked.
    #[error("calls `{0}`, which gives another answer each time: rows could slip through")]
    Volatile(String),
    /// The server's words. They hold nothing but the condition's own names and values.
    #[error("is refused by the database: {0}")]
    Refused(String),
    /// The database cannot be asked.
    #[error("cannot be checked")]
    Database(#[source] sqlx::Error),
}

/// Checks a condition over `from`, a list of tables in SQL in which every alias is unique. Nothing
/// is read: the statement is only planned.
///
/// # Errors
/// [`ConditionFault`]; in a transaction, the transaction has failed then.
pub async fn check(
    connection: &mut PgConnection,
    from: &str,
    condition: &Condition,
) -> Result<(), ConditionFault> {
    let called: Vec<_> = condition.functions().into_iter().collect();
    let volatile: Option<String> = sqlx::query_scalar(
        "select proname::text from pg_proc
          where lower(proname) = any ($1) and provolatile = 'v'
          order by 1 limit 1",
    )
    .bind(&called)
    .fetch_optional(&mut *connection)
    .await
    .map_err(ConditionFault::Database)?;
    if let Some(function) = volatile {
        return Err(ConditionFault::Volatile(function));
    }
    let explain = format!("explain select from {from} where ({condition})");
    match sqlx::query(dynamic(explain)).fetch_all(connection).await {
        Ok(_) => Ok(()),
        Err(error) => Err(refusal(error)),
    }
}

/// A table as the condition sees it: under its own name, without its schema.
pub fn source(table: &TableName) -> String {
    format!("{table} as {}", Ident::new(table.name.as_str()))
}

fn refusal(error: sqlx::Error) -> ConditionFault {
    // Classes 22 and 42 are about the text of the statement, others about the server's state.
    match error.as_database_error() {
        Some(database)
            if database.code().is_some_and(|c| c.starts_with("22") || c.starts_with("42")) =>
        {
            ConditionFault::Refused(database.message().to_owned())
        }
        _ => ConditionFault::Database(error),
    }
}
