//! Runs executions: takes tickets, claims, works, settles.
//!
//! apalis brings the tickets (see [`crate::queue`]); everything that matters is ours: the claim
//! with attempt and lease, the heartbeat beside the work, the guarded end, the reaper, the drain.
//! The apalis settings below are those that held under fault; each deviation from its defaults
//! has its reason.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use apalis::prelude::*;
use apalis_postgres::{Config, PostgresStorage};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use self::bells::{Bell, Bells};
use crate::db;
use crate::db::executions::Caps;
use crate::db::queue_pauses;
use crate::notify::Sender;
use crate::notify::mail::Mailer;
use crate::queue::{
    BackupTicket, DeliveryTicket, MaintenanceTicket, OccurrenceTicket, Queue, ReportTicket,
    RunTicket,
};
use crate::service::Services;
pub mod attempt;
mod bells;
pub mod delivery;
mod gauges;
pub mod jobs;
pub mod lifecycle;
pub mod presence;
pub mod reaper;
pub mod report_delivery;

/// apalis counts a process as gone after six missed beats of ten seconds. That only redelivers
/// tickets; executions are rescued by lease and lock, much sooner.
const QUEUE_HEARTBEAT: Duration = Duration::from_secs(10);
const QUEUE_MISSED_HEARTBEATS: usize = 6;
/// Notifications alone lose one or two in a hundred wake-ups.
const QUEUE_POLL: Duration = Duration::from_secs(1);
/// Pause before a broken worker of the queue starts again, so that an outage is not a busy loop.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long attempts that were told to end may take to give themselves back. Whoever is not done
/// by then is rescued, as after `kill -9`.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Housekeeping jobs at once.
const MAINTENANCE_CONCURRENCY: usize = 1;
/// Occurrences fired at once: each is one submit.
const OCCURRENCE_CONCURRENCY: usize = 4;
/// Lifecycle runs at once: they are to be gentle, not fast.
const LIFECYCLE_CONCURRENCY: usize = 1;

/// Backups and verifications at once: each keeps a core and the disk busy.
const BACKUP_CONCURRENCY: usize = 1;

/// Messages to webhooks at once: each is a socket that waits.
const DELIVERY_CONCURRENCY: usize = 32;

/// What jobs need.
#[derive(Debug, Clone)]
pub struct Context {
    /// Use cases and what they stand on.
    pub services: Services,
    /// This process in `lease_owner`: never the same twice.
    pub worker_id: Arc<str>,
    /// Ends running attempts: the grace after SIGTERM is over.
    pub abort: CancellationToken,
}

impl Context {
    /// How many executions may run at once.
    pub fn caps(&self) -> Caps {
        let report = &self.services.config.report;
        Caps { per_user: Some(report.max_running_per_user), in_all: Some(report.max_running) }
    }

    /// Whether this process may take something from a queue: neither is told to stand still. What
    /// is refused comes back by its row, see the jobs.
    pub async fn may_take(&self, queue: Queue) -> bool {
        let may = queue_pauses::may_take(&self.services.db, queue.name(), &self.worker_id).await;
        may.unwrap_or_else(|error| {
            tracing::warn!(%error, queue = queue.name(), "cannot look whether the queue is paused");
            false
        })
    }
}

/// Takes and runs jobs until `shutdown`, then waits for what is running, at most the configured
/// grace; what is left is given back to the queue.
///
/// # Errors
/// When this process cannot register, or the queue's machinery fails for good.
pub async fn run(services: Services, shutdown: CancellationToken) -> anyhow::Result<()> {
    let presence = presence::Presence::register(&services).await.context("register the worker")?;
    let context = Context {
        worker_id: Arc::from(presence.id()),
        services: services.clone(),
        abort: CancellationToken::new(),
    };
    tracing::info!(
        worker.id = %context.worker_id,
        concurrency = services.config.worker.concurrency.get(),
        "worker started"
    );
    let ended = CancellationToken::new();
    // Cancelled by the end of the process, and before that when an operator drains it.
    let standstill = shutdown.child_token();
    let keeping = tokio::spawn(presence.keep(ended.clone(), standstill.clone()));
    let reaping = tokio::spawn(reaper::run(context.clone(), shutdown.clone()));
    tokio::spawn(gauges::run(context.clone(), ended.clone()));
    let grace = tokio::spawn(end_after_grace(context.clone(), shutdown.clone()));
    let sender = Sender::new(&services.config.webhook).context("make the client of webhooks")?;
    let mailer = Mailer::new(&services.config.email)?;
    let tickets = db::connect_queue(&services.config.database)?;
    let bells = Bells::default();
    let ringing = tokio::spawn(bells.clone().ring_for_tickets(tickets.clone()));
    let monitored =
        monitor(&context, &tickets, &bells, &sender, mailer).run_with_signal(async move {
            standstill.cancelled().await;
            Ok(())
        });
    let outcome = tokio::select! {
        outcome = monitored => outcome.context("run the queue's workers"),
        () = overdue(&context.abort) => {
            tracing::warn!("what still runs is left to be rescued");
            Ok(())
        }
    };
    if outcome.is_ok() && !shutdown.is_cancelled() {
        // Not ended: whoever keeps this process running would start another one.
        tracing::info!(worker.id = %context.worker_id, "worker drained: it waits for its end");
        shutdown.cancelled().await;
    }
    grace.abort();
    ringing.abort();
    ended.cancel();
    let settled = async { tokio::join!(keeping, reaping) };
    if tokio::time::timeout(END_LIMIT, settled).await.is_err() {
        tracing::warn!("the database does not answer: this worker stays on the list for a while");
    }
    tracing::info!(worker.id = %context.worker_id, "worker stopped");
    outcome
}

async fn end_after_grace(context: Context, shutdown: CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(context.services.config.worker.shutdown_grace()).await;
    tracing::info!("the grace is over: running attempts are given back");
    context.abort.cancel();
}

/// Returns when attempts that were told to end have had their time. apalis waits for every task that
/// it knows of, and one of a worker that broke while the database was away may never be counted
/// off.
async fn overdue(abort: &CancellationToken) {
    abort.cancelled().await;
    tokio::time::sleep(END_LIMIT).await;
}

fn monitor(
    context: &Context,
    tickets: &PgPool,
    bells: &Bells,
    sender: &Sender,
    mailer: Option<Mailer>,
) -> Monitor {
    let reports = storage::<ReportTicket>(tickets, Queue::Reports);
    let lifecycle = storage::<RunTicket>(tickets, Queue::Lifecycle);
    let maintenance = storage::<MaintenanceTicket>(tickets, Queue::Maintenance);
    let concurrency = context.services.config.worker.concurrency.get();
    let occurrences = storage::<OccurrenceTicket>(tickets, Queue::Occurrences);
    let backups = storage::<BackupTicket>(tickets, Queue::Backups);
    let deliveries = storage::<DeliveryTicket>(tickets, Queue::Deliveries);
    let (for_backups, for_deliveries) = (context.clone(), context.clone());
    let [
        reports_bell,
        lifecycle_bell,
        maintenance_bell,
        occurrences_bell,
        backups_bell,
        deliveries_bell,
    ] = Queue::ALL.map(|queue| bells.of(queue));
    let sender = sender.clone();
    let (for_reports, for_maintenance) = (context.clone(), context.clone());
    let (for_occurrences, for_lifecycle) = (context.clone(), context.clone());
    Monitor::new()
        // An error of the database ends a worker of apalis. Without this the process would look
        // alive and do nothing.
        .should_restart(|_, error| {
            tracing::warn!(%error, "the queue's worker broke and starts again");
            std::thread::sleep(RESTART_PAUSE);
            true
        })
        .register(move |_| {
            WorkerBuilder::new(queue_worker_name(&for_reports, Queue::Reports))
                .backend(woken(reports.clone(), reports_bell.clone()))
                .data(for_reports.clone())
                .concurrency(concurrency)
                .parallelize(tokio::spawn)
                .build(jobs::run_report::run)
        })
        .register(move |_| {
            WorkerBuilder::new(queue_worker_name(&for_lifecycle, Queue::Lifecycle))
                .backend(woken(lifecycle.clone(), lifecycle_bell.clone()))
                .data(for_lifecycle.clone())
                .concurrency(LIFECYCLE_CONCURRENCY)
                .parallelize(tokio::spawn)
                .build(jobs::run_policy::run)
        })
        .register(move |_| {
            WorkerBuilder::new(queue_worker_name(&for_maintenance, Queue::Maintenance))
                .backend(woken(maintenance.clone(), maintenance_bell.clone()))
                .data(for_maintenance.clone())
                .concurrency(MAINTENANCE_CONCURRENCY)
                .parallelize(tokio::spawn)
                .build(jobs::maintain::run)
        })
        .register(move |_| {
            WorkerBuilder::new(queue_worker_name(&for_occurrences, Queue::Occurrences))
                .backend(woken(occurrences.clone(), occurrences_bell.clone()))
                .data(for_occurrences.clone())
                .concurrency(OCCURRENCE_CONCURRENCY)
                .parallelize(tokio::spawn)
                .build(jobs::fire_occurrence::run)
        })
        .register(move |_| {
            WorkerBuilder::new(queue_worker_name(&for_backups, Queue::Backups))
                .backend(woken(backups.clone(), backups_bell.clone()))
                .data(for_backups.clone())
                .concurrency(BACKUP_CONCURRENCY)
                .parallelize(tokio::spawn)
                .build(jobs::back_up::run)
        })
        .register(move |_| {
            WorkerBuilder::new(queue_worker_name(&for_deliveries, Queue::Deliveries))
                .backend(woken(deliveries.clone(), deliveries_bell.clone()))
                .data(for_deliveries.clone())
                .data(sender.clone())
                .data(mailer.clone())
                .concurrency(DELIVERY_CONCURRENCY)
                .parallelize(tokio::spawn)
                .build(jobs::deliver::run)
        })
}

/// A queue that is asked for tickets when its bell rings, and every second.
fn woken<T>(
    queue: PostgresStorage<T>,
    bell: Bell,
) -> PollWith<PollWith<PostgresStorage<T>, StreamStrategy<Bell>>, IntervalStrategy> {
    queue.poll_with_stream(bell).poll_with_interval(QUEUE_POLL)
}

/// A new name at every start and restart: apalis takes rows of a worker with the same name for
/// those of a living one, and they would stay `Running` for ever.
fn queue_worker_name(context: &Context, queue: Queue) -> String {
    format!("{}-{}-{}", context.worker_id, queue.name(), Ulid::generate())
}

fn storage<T>(tickets: &PgPool, queue: Queue) -> PostgresStorage<T> {
    let config = Config::default()
        .queue(queue.name())
        // With more, buffered tickets keep apalis from beating, and a peer runs them again.
        .batch_size(1)
        // Saves a commit per ticket; our claim is the lock.
        .lock_tasks(false)
        .heartbeat_interval(QUEUE_HEARTBEAT)
        .missed_heartbeats(QUEUE_MISSED_HEARTBEATS);
    PostgresStorage::<T>::new(tickets).with_config(config)
}
