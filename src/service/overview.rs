//! How things stand, for the page that operators open first.

use super::{Caller, Permission, ServiceError, Services};
use crate::db::executions;
use crate::db::overview::{self, Day};

/// Days that are drawn.
const DAYS: i32 = 14;

/// How executions stand.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    /// Wait for a worker.
    pub waiting: i64,
    /// A worker has them.
    pub running: i64,
    /// How long the oldest that is due waits, in seconds.
    pub oldest_wait_secs: f64,
    /// Worker processes that live.
    pub workers: i64,
    /// The latest days, oldest first.
    pub days: Vec<Day>,
}

impl Services {
    /// How executions stand, over all users.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn overview(&self, caller: &Caller) -> Result<Overview, ServiceError> {
        caller.require(Permission::ExecutionsViewAll)?;
        let (waiting, running, cancelling, oldest_wait_secs) =
            executions::queue_depth(&self.db).await?;
        Ok(Overview {
            waiting,
            running: running + cancelling,
            oldest_wait_secs,
            workers: overview::live_workers(&self.db).await?,
            days: overview::days(&self.db, DAYS).await?,
        })
    }
}
