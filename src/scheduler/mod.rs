//! Decides when, and enqueues. Never does the work.
//!
//! tokio-cron-scheduler is the ticker and no more: it fires on every machine, forgets what it
//! missed and keeps the offset of the day it was started. What is due is told by the database's
//! clock, and each due time is a unique row inserted in the transaction that enqueues the work, so
//! that N schedulers fire it once.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use tokio_cron_scheduler::{Job, JobScheduler};
use tokio_util::sync::CancellationToken;

use crate::config::BackupConfig;
use crate::db::schedules;
use crate::queue::{self, BackupTicket, MaintenanceTicket};

/// How often the schedules are looked at.
const TICK: Duration = Duration::from_secs(5);

/// Housekeeping that the service itself needs: its name in the table, what it does, and how often.
const HOUSEKEEPING: [(&str, MaintenanceTicket, i32); 2] = [
    ("housekeeping.expire_results", MaintenanceTicket::ExpireResults, 60),
    ("housekeeping.prune", MaintenanceTicket::Prune, 600),
];

/// Ticks until `shutdown`.
///
/// # Errors
/// When the ticker cannot be started.
pub async fn run(
    db: PgPool,
    backup: BackupConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut ticker = JobScheduler::new().await.context("make the ticker")?;
    let job = Job::new_repeated_async(TICK, move |_, _| {
        let (db, backup) = (db.clone(), backup.clone());
        Box::pin(async move {
            if let Err(error) = tick(&db, &backup).await {
                tracing::warn!(%error, "cannot look at the schedules");
            }
        })
    });
    ticker.add(job.context("make the tick")?).await.context("add the tick")?;
    ticker.start().await.context("start the ticker")?;
    tracing::info!("scheduler started");
    shutdown.cancelled().await;
    ticker.shutdown().await.context("stop the ticker")?;
    tracing::info!("scheduler stopped");
    Ok(())
}

/// Enqueues what is due and not yet taken. Returns how many occurrences this call fired.
///
/// # Errors
/// The database's.
pub async fn tick(db: &PgPool, backup: &BackupConfig) -> Result<usize, sqlx::Error> {
    let mut fired = 0;
    for (name, ticket, every_secs) in HOUSEKEEPING {
        let mut tx = db.begin().await?;
        if take(&mut tx, name, f64::from(every_secs)).await? {
            queue::enqueue_maintenance(&mut tx, ticket).await?;
            fired += 1;
        }
        tx.commit().await?;
    }
    let verify = BackupTicket::Verify { backup_id: None };
    for (name, ticket, every_hours) in [
        ("backup.create", BackupTicket::Create, backup.every_hours),
        ("backup.verify", verify, backup.verify_every_hours),
    ] {
        if every_hours == 0 {
            continue;
        }
        let mut tx = db.begin().await?;
        if take(&mut tx, name, f64::from(every_hours) * 3_600.0).await? {
            queue::enqueue_backup(&mut tx, &ticket).await?;
            fired += 1;
        }
        tx.commit().await?;
    }
    Ok(fired)
}

/// Takes the occurrence that is due, if nobody has.
async fn take(tx: &mut PgConnection, name: &str, every_secs: f64) -> Result<bool, sqlx::Error> {
    let due_at: DateTime<Utc> =
        sqlx::query_scalar("select date_bin(make_interval(secs => $1), now(), 'epoch')")
            .bind(every_secs)
            .fetch_one(&mut *tx)
            .await?;
    schedules::take_occurrence(tx, name, due_at).await
}
