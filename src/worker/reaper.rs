//! Finds executions that nobody works for, and tickets that got lost.
//!
//! Runs in every worker process; rows are locked with `SKIP LOCKED`, so several reapers share the
//! work. It is the net under the queue: whatever happens to a ticket or to a worker, the row says
//! what must be done.

use futures::future::try_join_all;
use serde_json::json;
use sqlx::PgConnection;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::{Context, lifecycle};
use crate::db::audit::{self, Actor};
use crate::db::executions::{self, BackendSignal, Orphan, Status};
use crate::db::{backups, queue_pauses};
use crate::queue::{self, Queue};
use crate::service::sharing::end_followers;
use crate::store::key::attempt_folder;

/// A worker whose lock is free and that was not seen for this long is gone. Longer than a
/// reconnect takes, shorter than anybody's patience.
pub const LOCK_GRACE_SECS: i32 = 3;
/// A ticket that was not answered for this long is lost; a doubled one does no harm.
pub const TICKET_SECS: i32 = 30;
/// How far the marks of tickets stay behind now: longer than a submit is open before its commit.
pub const MARK_SLACK_SECS: i32 = 3;
/// Rows settled in one transaction.
pub const BATCH: i32 = 100;
/// Orphans whose queries are ended at once.
const ENDED_AT_ONCE: usize = 8;
/// Why an execution whose worker died failed or is tried again.
pub const WORKER_LOST: &str = "worker_lost";

/// Looks until `shutdown`.
pub async fn run(context: Context, shutdown: CancellationToken) {
    let every = Duration::from_millis(context.services.config.worker.reap_interval_ms.get());
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        if let Err(error) = pass(&context).await {
            tracing::warn!(error = format!("{error:#}"), "cannot look for orphaned executions");
        }
    }
}

/// One look. Returns how many executions were rescued and how many tickets were written anew.
///
/// # Errors
/// The database's.
pub async fn pass(context: &Context) -> anyhow::Result<(usize, usize)> {
    executions::look_if_nobody_claims(&context.services.db).await?;
    queue::move_marks(&context.services.db, MARK_SLACK_SECS).await?;
    let rescued = rescue(context).await? + lifecycle::rescue(context).await?;
    end_left_behind(context).await?;
    context.services.start_report_deliveries().await?;
    let reissued = reissue(context).await? + lifecycle::reissue(context).await?;
    let (pending, processing, cancelling, oldest) =
        executions::queue_depth(&context.services.db).await?;
    for (state, count) in
        [("pending", pending), ("processing", processing), ("cancelling", cancelling)]
    {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!("registrar_queue_executions", "state" => state).set(count as f64);
    }
    metrics::gauge!("registrar_queue_oldest_pending_seconds").set(oldest);
    tell_backups(&backups::summary(&context.services.db).await?);
    context.services.tell_policies().await?;
    Ok((rescued, reissued))
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn tell_backups(summary: &backups::Summary) {
    let seconds = |millis: i64| millis as f64 / 1_000.0;
    metrics::gauge!("registrar_backups").set(summary.backups as f64);
    let latest = [
        ("registrar_backup_last_success_timestamp_seconds", summary.last_success),
        ("registrar_backup_last_verified_timestamp_seconds", summary.last_verified),
        ("registrar_backup_last_size_bytes", summary.last_size_bytes.map(|bytes| bytes as f64)),
        ("registrar_backup_last_duration_seconds", summary.last_duration_ms.map(seconds)),
    ];
    for (name, value) in latest {
        // A gauge that is not there says that there was none; 0 would be a time.
        if let Some(value) = value {
            metrics::gauge!(name).set(value);
        }
    }
}

async fn rescue(context: &Context) -> anyhow::Result<usize> {
    let mut tx = context.services.db.begin().await?;
    let orphans = executions::lock_orphans(&mut tx, LOCK_GRACE_SECS, i64::from(BATCH)).await?;
    // Their queries may still be running, for nobody. At once, because a server of reports that
    // does not answer takes its time, and the rows are locked.
    let mut ended = Vec::with_capacity(orphans.len());
    for some in orphans.chunks(ENDED_AT_ONCE) {
        let mut ending = Vec::with_capacity(some.len());
        for orphan in some {
            ending.push(end_backend(context, orphan));
        }
        ended.extend(try_join_all(ending).await?);
    }
    for (orphan, gone) in orphans.iter().zip(ended) {
        match orphan.status {
            Status::Cancelling if gone => {
                executions::finish_cancel(&mut tx, orphan.backend.id, orphan.backend.attempt)
                    .await?;
                record(&mut tx, "execution.cancelled", orphan).await?;
            }
            Status::Cancelling => {} // the next pass sees it again
            Status::Processing => take_over(&mut tx, orphan).await?,
            Status::Pending
            | Status::Completed
            | Status::Failed
            | Status::Cancelled
            | Status::Expired => unreachable!("lock_orphans selects the two states above"),
        }
    }
    tx.commit().await?;
    for orphan in &orphans {
        // What it had uploaded. If its worker lives after all, it finds that it may not publish.
        let folder = attempt_folder(orphan.created_at, orphan.backend.id, orphan.backend.attempt);
        if let Err(error) = context.services.store.remove_folder(&folder).await {
            tracing::warn!(execution.id = orphan.backend.id, %error, "cannot delete files of an orphan");
        }
    }
    Ok(orphans.len())
}

/// Ends those who wait for an execution that has ended without them.
async fn end_left_behind(context: &Context) -> anyhow::Result<()> {
    let db = &context.services.db;
    for leader in executions::list_left_behind(db, i64::from(BATCH)).await? {
        let mut tx = db.begin().await?;
        let ended = end_followers(&mut tx, leader.id, leader.status).await?;
        tx.commit().await?;
        tracing::warn!(execution.id = leader.id, ended, "{} had followers left", leader.id);
    }
    Ok(())
}

/// processing → pending for the next worker, or → failed when it has cost enough of them: an
/// execution that kills its worker must not go on for ever.
async fn take_over(connection: &mut PgConnection, orphan: &Orphan) -> anyhow::Result<()> {
    let (id, attempt) = (orphan.backend.id, orphan.backend.attempt);
    let message = "the worker that ran it is gone";
    if orphan.failed_attempts + 1 >= orphan.max_attempts {
        executions::fail(connection, id, attempt, WORKER_LOST, message).await?;
        record(connection, "execution.failed", orphan).await?;
        end_followers(connection, id, Status::Failed).await?;
    } else {
        executions::retry_later(connection, id, attempt, WORKER_LOST, message, 0.0).await?;
        queue::enqueue_execution(connection, id, 0).await?;
        record(connection, "execution.rescued", orphan).await?;
    }
    tracing::warn!(
        execution.id = id,
        attempt,
        lease.owner = orphan.lease_owner.as_deref(),
        "execution {id} lost its worker"
    );
    Ok(())
}

async fn record(
    connection: &mut PgConnection,
    action: &str,
    orphan: &Orphan,
) -> Result<(), sqlx::Error> {
    let event = audit::Event {
        action,
        entity_type: "report_executions",
        entity_id: Some(orphan.backend.id),
        details: json!({
            "attempt": orphan.backend.attempt, "lease_owner": orphan.lease_owner, "reason": WORKER_LOST,
        }),
    };
    audit::record(connection, &Actor::system(), event).await
}

/// Ends the server processes of an orphan. Answers whether they are gone.
async fn end_backend(context: &Context, orphan: &Orphan) -> Result<bool, sqlx::Error> {
    let (services, backend) = (&context.services, orphan.backend);
    services.signal_backend(backend, BackendSignal::Terminate).await?;
    Ok(!services.signal_backend(backend, BackendSignal::Probe).await?)
}

/// Writes tickets for executions that may start and have none. Returns how many.
///
/// # Errors
/// The database's.
pub async fn reissue(context: &Context) -> anyhow::Result<usize> {
    if queue_pauses::is_paused(&context.services.db, Queue::Reports.name()).await? {
        return Ok(0);
    }
    let mut tx = context.services.db.begin().await?;
    let ids = executions::lock_unticketed(&mut tx, context.caps(), TICKET_SECS, BATCH).await?;
    for id in &ids {
        queue::enqueue_execution(&mut tx, *id, 0).await?;
        tracing::debug!(execution.id = id, "execution {id} was without a ticket");
    }
    tx.commit().await?;
    Ok(ids.len())
}
