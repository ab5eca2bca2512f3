//! What every worker tells of the queues and of the processes: all of them read the same rows, so
//! that whichever is asked knows.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Context;
use crate::db::{queue_pauses, workers};
use crate::queue::{self, Depth, Queue};

/// How often. A collector asks every fifteen seconds or so.
const TICK: Duration = Duration::from_secs(5);

/// Tells until `ended`.
pub async fn run(context: Context, ended: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = tell(&context).await {
            tracing::debug!(%error, "cannot measure the queues");
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
async fn tell(context: &Context) -> Result<(), sqlx::Error> {
    let db = &context.services.db;
    let depths = queue::depths(db).await?;
    let pauses = queue_pauses::list(db).await?;
    for queue in Queue::ALL {
        let name = queue.name();
        let depth = depths.iter().find(|(found, _)| *found == queue).map(|(_, depth)| *depth);
        let Depth { waiting, delayed, running, oldest_waiting_seconds } = depth.unwrap_or_default();
        for (state, count) in [("waiting", waiting), ("delayed", delayed), ("running", running)] {
            metrics::gauge!("registrar_queue_tickets", "queue" => name, "state" => state)
                .set(count as f64);
        }
        metrics::gauge!("registrar_queue_oldest_ticket_seconds", "queue" => name)
            .set(oldest_waiting_seconds);
        let is_paused = pauses.iter().any(|pause| pause.queue == name);
        metrics::gauge!("registrar_queue_paused", "queue" => name).set(if is_paused {
            1.0
        } else {
            0.0
        });
    }
    let (working, draining, silent) = workers::count(db).await?;
    for (state, count) in [("working", working), ("draining", draining), ("silent", silent)] {
        metrics::gauge!("registrar_workers", "state" => state).set(count as f64);
    }
    Ok(())
}
