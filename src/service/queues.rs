//! Queues and workers as operators handle them: look, pause, drain, run again, throw away.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{Caller, MAX_PAGE, Permission, ServiceError, Services};
use crate::db::executions::{Filter, Status};
use crate::db::workers::{self, WorkerRow};
use crate::db::{audit, queue_pauses};
use crate::queue::{self, Depth, Queue};

/// Most executions that one bulk action changes.
pub const MAX_BULK: usize = 1_000;
/// Pages that a bulk action looks at; what is behind them is for the next one.
const MAX_BULK_PAGES: usize = 50;

/// A queue as it stands.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct QueueState {
    /// Its name.
    pub name: &'static str,
    /// Since when nothing is taken from it.
    pub paused_at: Option<DateTime<Utc>>,
    /// Tickets that a worker may take now, those of a paused queue among them.
    pub waiting: i64,
    /// Tickets for later.
    pub delayed: i64,
    /// Tickets that workers have in hand.
    pub running: i64,
    /// How long the oldest has been waiting, in seconds.
    pub oldest_waiting_seconds: f64,
}

/// What a bulk action is about: executions in one state, perhaps fewer.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only of this report.
    pub report: Option<String>,
    /// Only those that failed with this code.
    pub error_code: Option<String>,
}

/// What a bulk action found, and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BulkOutcome {
    /// Executions that were selected, at most [`MAX_BULK`].
    pub selected: usize,
    /// Those that were changed; the others had moved on meanwhile.
    pub changed: usize,
}

/// What is done with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BulkAction {
    /// Failed executions run again.
    Retry,
    /// Executions that wait are cancelled.
    Discard,
}

impl BulkAction {
    const fn acts_on(self) -> Status {
        match self {
            Self::Retry => Status::Failed,
            Self::Discard => Status::Pending,
        }
    }
}

impl Services {
    /// Every queue, with what is in it.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn queues(&self, caller: &Caller) -> Result<Vec<QueueState>, ServiceError> {
        caller.require(Permission::ExecutionsViewAll)?;
        let pauses: BTreeMap<_, _> = queue_pauses::list(&self.db)
            .await?
            .into_iter()
            .map(|pause| (pause.queue, pause.paused_at))
            .collect();
        let depths = queue::depths(&self.db).await?;
        let state = |queue: Queue| {
            let depth = depths.iter().find(|(found, _)| *found == queue).map(|(_, depth)| *depth);
            let Depth { waiting, delayed, running, oldest_waiting_seconds } =
                depth.unwrap_or_default();
            QueueState {
                name: queue.name(),
                paused_at: pauses.get(queue.name()).copied(),
                waiting,
                delayed,
                running,
                oldest_waiting_seconds,
            }
        };
        Ok(Queue::ALL.into_iter().map(state).collect())
    }

    /// Lets nothing be taken from a queue until it is resumed, by any worker, also after a restart.
    /// What runs goes on. Twice does no harm.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`] and [`ServiceError::NotFound`]
    pub async fn pause_queue(&self, caller: &Caller, name: &str) -> Result<(), ServiceError> {
        caller.require(Permission::QueuesManage)?;
        let queue = known(name)?;
        let mut tx = self.db.begin().await?;
        if queue_pauses::pause(&mut tx, queue.name()).await? {
            record(&mut tx, caller, "queue.paused", json!({ "queue": queue.name() })).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Lets a paused queue go on, within a minute at the latest. Twice does no harm.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`] and [`ServiceError::NotFound`]
    pub async fn resume_queue(&self, caller: &Caller, name: &str) -> Result<(), ServiceError> {
        caller.require(Permission::QueuesManage)?;
        let queue = known(name)?;
        let mut tx = self.db.begin().await?;
        if queue_pauses::resume(&mut tx, queue.name()).await? {
            queue::unpark(&mut tx, queue).await?;
            record(&mut tx, caller, "queue.resumed", json!({ "queue": queue.name() })).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Worker processes, those that are gone for less than a day among them.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn workers(&self, caller: &Caller) -> Result<Vec<WorkerRow>, ServiceError> {
        caller.require(Permission::ExecutionsViewAll)?;
        Ok(workers::list(&self.db).await?)
    }

    /// Tells a worker process to finish what it has and to take nothing new. It then stands still
    /// until it is ended, so that nothing starts it anew. Twice does no harm.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`] and [`ServiceError::NotFound`]
    pub async fn drain_worker(&self, caller: &Caller, id: &str) -> Result<(), ServiceError> {
        caller.require(Permission::QueuesManage)?;
        let mut tx = self.db.begin().await?;
        match workers::drain(&mut tx, id).await? {
            None => return Err(ServiceError::NotFound { what: "worker" }),
            Some(false) => {}
            Some(true) => {
                record(&mut tx, caller, "worker.drained", json!({ "worker": id })).await?;
            }
        }
        Ok(tx.commit().await?)
    }

    /// Runs failed executions again, or cancels those that wait; with `act` false it only counts
    /// them. Each is a transaction with an audit row of its own.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]; what was changed before stays so.
    pub async fn change_many(
        &self,
        caller: &Caller,
        action: BulkAction,
        selection: &Selection,
        act: bool,
    ) -> Result<BulkOutcome, ServiceError> {
        caller.require(Permission::ExecutionsCancelAll)?;
        let ids = self.select(caller, action.acts_on(), selection).await?;
        let mut changed = 0;
        for id in ids.iter().copied().filter(|_| act) {
            let done = match action {
                BulkAction::Retry => self.retry(caller, id).await,
                BulkAction::Discard => self.cancel(caller, id).await,
            };
            match done {
                Ok(_) => changed += 1,
                // Somebody else was faster.
                Err(ServiceError::WrongState { .. } | ServiceError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(BulkOutcome { selected: ids.len(), changed })
    }

    async fn select(
        &self,
        caller: &Caller,
        status: Status,
        selection: &Selection,
    ) -> Result<Vec<i64>, ServiceError> {
        let mut ids = Vec::new();
        let mut filter =
            Filter { status: Some(status), slug: selection.report.clone(), ..Filter::default() };
        for _ in 0..MAX_BULK_PAGES {
            let page = self.list_executions(caller, filter.clone(), MAX_PAGE).await?;
            let Some(last) = page.last() else { break };
            filter.before = Some(last.id);
            let wanted = page.iter().filter(|execution| {
                let code = selection.error_code.as_ref();
                code.is_none() || execution.error_code.as_ref() == code
            });
            ids.extend(wanted.map(|execution| execution.id));
            if ids.len() >= MAX_BULK {
                break;
            }
        }
        ids.truncate(MAX_BULK);
        Ok(ids)
    }
}

fn known(name: &str) -> Result<Queue, ServiceError> {
    let found = Queue::ALL.into_iter().find(|queue| queue.name() == name);
    found.ok_or(ServiceError::NotFound { what: "queue" })
}

async fn record(
    connection: &mut sqlx::PgConnection,
    caller: &Caller,
    action: &str,
    details: serde_json::Value,
) -> Result<(), sqlx::Error> {
    let event = audit::Event { action, entity_type: "queues", entity_id: None, details };
    audit::record(connection, &caller.actor, event).await
}
