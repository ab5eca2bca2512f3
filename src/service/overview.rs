//! How things stand, for the page that operators open first.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use super::{Caller, Permission, ServiceError, Services};
use crate::db::overview::{self, Day, Glance};
use crate::db::policy_backlogs::{self, PolicyState};

/// Days that are drawn.
const DAYS: i32 = 14;
/// How old the figures of the days may be: two weeks of a busy service are many rows.
const KEPT: Duration = Duration::from_secs(60);
/// How long a page waits for a count; then it shows the one before, or none.
const PATIENCE: Duration = Duration::from_millis(20);
/// Most executions that are counted while somebody waits.
pub const MOST_COUNTED: i64 = 10_000;
/// Policies that are drawn.
const MAX_POLICIES: i64 = 200;

/// What was counted, and when.
#[derive(Debug, Clone)]
pub struct CountedDays {
    counted_at: Instant,
    /// The latest days, oldest first.
    pub days: Vec<Day>,
}

impl CountedDays {
    /// How long ago that was.
    pub fn age(&self) -> Duration {
        self.counted_at.elapsed()
    }
}

/// The figures of the days, counted once for all who look, and by nobody's page. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DaysSeen {
    turn: Arc<Mutex<()>>,
    last: watch::Sender<Option<CountedDays>>,
}

impl Default for DaysSeen {
    fn default() -> Self {
        Self { turn: Arc::default(), last: watch::Sender::new(None) }
    }
}

impl DaysSeen {
    /// Those of a minute ago at most, if that is a matter of [`PATIENCE`]; otherwise those before,
    /// if there are any. The count goes on meanwhile.
    async fn get(&self, pool: &PgPool) -> Option<CountedDays> {
        let mut news = self.last.subscribe();
        let last = news.borrow_and_update().clone();
        if last.as_ref().is_some_and(|last| last.age() < KEPT) {
            return last;
        }
        // One count at a time, whoever looks.
        if let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() {
            let (seen, pool) = (self.clone(), pool.clone());
            tokio::spawn(async move {
                let counted_at = Instant::now();
                match overview::days(&pool, DAYS).await {
                    Ok(days) => {
                        seen.last.send_replace(Some(CountedDays { counted_at, days }));
                    }
                    Err(error) => tracing::warn!(%error, "the latest days cannot be counted"),
                }
                drop(turn);
            });
        }
        match timeout(PATIENCE, news.changed()).await {
            Ok(Ok(())) => news.borrow().clone(),
            Ok(Err(_)) | Err(_) => last,
        }
    }
}

/// How executions stand.
#[derive(Debug, Clone)]
pub struct Overview {
    /// Those that are not done. Counted to [`MOST_COUNTED`].
    pub now: Glance,
    /// Worker processes that live.
    pub workers: i64,
    /// The latest days; `None` while they are counted for the first time.
    pub counted: Option<CountedDays>,
}

impl Services {
    /// How executions stand, over all users.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn overview(&self, caller: &Caller) -> Result<Overview, ServiceError> {
        caller.require(Permission::ExecutionsViewAll)?;
        Ok(Overview {
            now: overview::glance(&self.db, MOST_COUNTED).await?,
            workers: overview::live_workers(&self.db).await?,
            counted: self.days_seen.get(&self.db).await,
        })
    }

    /// What policies had before them when somebody last looked.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn backlogs(&self, caller: &Caller) -> Result<Vec<PolicyState>, ServiceError> {
        caller.require(Permission::RetentionView)?;
        Ok(policy_backlogs::states(&self.db, MAX_POLICIES).await?)
    }
}
