//! Further formats of a finished execution.
//!
//! A further format is a run of its own: the same version of the report and the same resolved
//! parameters, on a new snapshot. Converting the stored file instead would keep the snapshot, but
//! a CSV has forgotten its types, and half of all cells would be guesses. So status and manifest
//! say whose format it is, and when its own snapshot was taken.

use sqlx::PgConnection;

use super::executions::{Order, check_file_type, find, typed};
use super::{Caller, Permission, ServiceError, Services};
use crate::db::definitions::{self, StoredDefinition};
use crate::db::executions::{self, Execution};
use crate::report::Presentation;
use crate::writer::Format;

impl Services {
    /// Makes a further format of a completed execution, or finds the one that the caller has asked
    /// for before: asking twice runs once.
    ///
    /// # Errors
    /// As [`Services::submit`], and as [`Services::result`] of the completed one.
    pub async fn request_format(
        &self,
        caller: &Caller,
        id: i64,
        format: Format,
        presentation: Presentation,
    ) -> Result<Execution, ServiceError> {
        caller.require(Permission::ReportsRun)?;
        check_file_type(format, presentation)?;
        let source = self.readable(caller, id).await?;
        let mut tx = self.db.begin().await?;
        let options = serde_json::json!(presentation);
        if source.format == format.extension() && source.options == options {
            return Ok(source);
        }
        let user = caller.user_id;
        let made =
            executions::find_format(&mut tx, id, user, format.extension(), Some(&options)).await?;
        if let Some(made) = made {
            return find(&mut tx, made).await;
        }
        let stored = version_of(&mut tx, &source).await?;
        let definition = typed(&stored)?;
        let order = Order {
            definition: &definition,
            definition_id: stored.id,
            version: stored.version,
            parameters: source.parameters.unwrap_or_else(|| serde_json::json!({})),
            format,
            presentation,
            format_of: Some(id),
        };
        let made = self.store(&mut tx, caller, &order, None).await?;
        let execution = find(&mut tx, made).await?;
        tx.commit().await?;
        metrics::counter!("registrar_executions_submitted_total").increment(1);
        Ok(execution)
    }

    /// The execution that has a file of this one's report in a format: itself, or a further format
    /// that the caller asked for.
    ///
    /// # Errors
    /// As [`Services::result`]; [`ServiceError::NotFound`] for a format that nobody made.
    pub async fn in_format(
        &self,
        caller: &Caller,
        id: i64,
        format: Format,
    ) -> Result<i64, ServiceError> {
        let source = self.readable(caller, id).await?;
        if source.format == format.extension() {
            return Ok(id);
        }
        let mut connection = self.db.acquire().await?;
        let user = caller.user_id;
        executions::find_format(&mut connection, id, user, format.extension(), None)
            .await?
            .ok_or(ServiceError::NotFound { what: "format: POST it to …/formats first" })
    }
}

/// The version that an execution ran, of a report that can still be run.
async fn version_of(
    connection: &mut PgConnection,
    execution: &Execution,
) -> Result<StoredDefinition, ServiceError> {
    let gone = || ServiceError::NotFound { what: "report" };
    let version = execution.definition_version.ok_or_else(gone)?;
    let current = definitions::find_active(connection, &execution.slug).await?.ok_or_else(gone)?;
    definitions::find_version(&mut *connection, current.id, version).await?.ok_or_else(gone)
}
