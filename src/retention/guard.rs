//! Holds, as every destructive transaction sees them.

use std::sync::Arc;

use sqlx::PgConnection;

use super::error::RetentionError;
use super::hold::{HoldError, Holds};
use super::sql::{Ident, TableName};
use crate::policy::Classification;

/// The holds in force.
#[derive(Debug, Clone)]
pub struct Guard(Holds);

impl Guard {
    /// Reads the holds. `classification` says which rows belong to a person who is held.
    ///
    /// # Errors
    /// The database's, or a hold that cannot be read: then nothing may be deleted.
    pub async fn load(
        connection: &mut PgConnection,
        classification: &Arc<Classification>,
    ) -> Result<Self, RetentionError> {
        let holds = Holds::load(connection, Arc::clone(classification)).await;
        holds.map(Self).map_err(unusable)
    }

    /// Keeps holds from being placed or released until the transaction ends, and brings these up
    /// to date. To be called first in every destructive transaction.
    ///
    /// # Errors
    /// The same; then nothing may be deleted.
    pub async fn for_chunk(&mut self, connection: &mut PgConnection) -> Result<(), RetentionError> {
        self.0.for_chunk(connection).await.map(|_changed| ()).map_err(unusable)
    }

    /// SQL that says whether the row with this alias is held.
    pub fn predicate(&self, table: &TableName, alias: &Ident) -> String {
        self.0.predicate(table, alias.as_str())
    }
}

fn unusable(error: HoldError) -> RetentionError {
    match error {
        HoldError::Database(error) => error.into(),
        other @ (HoldError::Unreadable { .. } | HoldError::TooMany) => {
            RetentionError::refused("holds", other.to_string())
        }
    }
}
