//! How things stand, for the page that operators open first.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Caller, Permission, ServiceError, Services};
use crate::db::executions;
use crate::db::overview::{self, Day};

/// Days that are drawn.
const DAYS: i32 = 14;
/// How old the figures of the days may be: two weeks of a busy service are many rows.
const KEPT: Duration = Duration::from_secs(60);

/// When the days were counted, and what was found.
type Counted = (Instant, Vec<Day>);

/// The figures of the days, counted once for all who look. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct DaysSeen(Arc<Mutex<Option<Counted>>>);

impl DaysSeen {
    async fn get(&self, pool: &PgPool) -> Result<Vec<Day>, sqlx::Error> {
        // Held while counting: who comes meanwhile waits for that count instead of another.
        let mut seen = self.0.lock().await;
        if let Some((at, days)) = seen.as_ref()
            && at.elapsed() < KEPT
        {
            return Ok(days.clone());
        }
        let days = overview::days(pool, DAYS).await?;
        *seen = Some((Instant::now(), days.clone()));
        Ok(days)
    }
}

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
    /// The latest days, oldest first, as they were a minute ago at most.
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
            days: self.days_seen.get(&self.db).await?,
        })
    }
}
