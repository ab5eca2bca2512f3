//! The seam to legal holds: what must not be touched, asked in the transaction that would touch it.

use sqlx::PgConnection;

use super::EraseError;
use crate::retention::sql::TableName;

/// Tells which rows are held.
#[derive(Debug, Default)]
pub struct HoldGate {}

impl HoldGate {
    /// Boolean SQL: whether the row that a statement calls `alias` is held.
    ///
    /// # Errors
    /// What is held cannot be told: nothing may be touched.
    pub async fn predicate(
        &self,
        _connection: &mut PgConnection,
        _table: &TableName,
        _alias: &str,
    ) -> Result<String, EraseError> {
        Ok("false".to_owned())
    }
}
