//! Searching the audit: who did what to which thing, never with the values that rows had.

use super::{Caller, MAX_PAGE, Permission, ServiceError, Services};
use crate::db::audit::{self, AuditFilter, AuditRow};

impl Services {
    /// Lists audit rows, newest first. One more than [`MAX_PAGE`] may be asked for, so that a page
    /// knows whether another follows.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], and [`ServiceError::DatabaseUnavailable`] for a search that
    /// takes too long: a narrower one does not.
    pub async fn search_audit(
        &self,
        caller: &Caller,
        filter: &AuditFilter,
        limit: i64,
    ) -> Result<Vec<AuditRow>, ServiceError> {
        caller.require(Permission::AuditView)?;
        Ok(audit::search(&self.db, filter, limit.clamp(1, MAX_PAGE + 1)).await?)
    }
}
