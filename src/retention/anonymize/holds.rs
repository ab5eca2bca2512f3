//! Legal holds, asked in the transaction that would touch a row.

use std::sync::Arc;

use sqlx::PgConnection;
use tokio::sync::Mutex;

use crate::policy::Classification;
use crate::retention::hold::{HoldError, Holds};
use crate::retention::sql::TableName;

/// Tells which rows are held.
#[derive(Debug)]
pub struct HoldGate(Mutex<Holds>);

impl HoldGate {
    /// Reads the holds in force.
    ///
    /// # Errors
    /// [`HoldError`]
    pub async fn load(
        connection: &mut PgConnection,
        classification: Arc<Classification>,
    ) -> Result<Self, HoldError> {
        Ok(Self(Mutex::new(Holds::load(connection, classification).await?)))
    }

    /// Boolean SQL: whether the row that a statement calls `alias` is held. Until the transaction
    /// ends no hold can be placed: one that was acknowledged is never missed.
    ///
    /// # Errors
    /// What is held cannot be told: nothing may be touched.
    pub async fn predicate(
        &self,
        connection: &mut PgConnection,
        table: &TableName,
        alias: &str,
    ) -> Result<String, HoldError> {
        let mut holds = self.0.lock().await;
        holds.for_chunk(connection).await?;
        Ok(holds.predicate(table, alias))
    }
}
