//! Decides when, and enqueues. Never does the work.
//!
//! tokio-cron-scheduler is the ticker and no more: it fires on every machine, forgets what it
//! missed and keeps the offset of the day it was started. What is due is told by the database's
//! clock, and each due time is a unique row inserted in the transaction that enqueues the work, so
//! that N schedulers fire it once.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use tokio_cron_scheduler::{Job, JobScheduler};
use tokio_util::sync::CancellationToken;

use crate::calendar::Calendar;
use crate::config::BackupConfig;
use crate::db::schedules::{self, Schedule};
use crate::queue::{self, BackupTicket, MaintenanceTicket, OccurrenceTicket};

mod due;

/// How often the schedules are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Schedules that one tick fires at most; the next tick goes on.
const MAX_FIRED_PER_TICK: usize = 500;
/// A ticket that did not come for this long is lost; a doubled one does no harm.
const TICKET_SECS: i32 = 60;
/// Tickets that are pushed again in one tick.
const MAX_REISSUED: i64 = 100;

/// Housekeeping that the service itself needs: its name in the table, what it does, and how often.
const HOUSEKEEPING: [(&str, MaintenanceTicket, i32); 6] = [
    ("housekeeping.expire_results", MaintenanceTicket::ExpireResults, 60),
    ("housekeeping.sweep_store", MaintenanceTicket::SweepStore, 6 * 60 * 60),
    ("housekeeping.prune", MaintenanceTicket::Prune, 600),
    ("housekeeping.carry_out_erasures", MaintenanceTicket::CarryOutErasures, 600),
    ("housekeeping.start_due_runs", MaintenanceTicket::StartDueRuns, 60),
    ("housekeeping.seal_certificates", MaintenanceTicket::SealCertificates, 60),
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
    reissue(db).await?;
    while fired < MAX_FIRED_PER_TICK {
        match fire_one(db).await? {
            Some(count) => fired += count.max(1),
            None => break,
        }
    }
    Ok(fired)
}

/// Fires the schedule that has been due longest: its occurrences, their tickets and its next time
/// in one transaction, under its lock. `None`: nothing is due.
async fn fire_one(db: &PgPool) -> Result<Option<usize>, sqlx::Error> {
    let mut tx = db.begin().await?;
    let Some(schedule) = schedules::lock_due(&mut tx).await? else { return Ok(None) };
    let Some(first) = schedule.next_due_at else { return Ok(None) };
    let Some(calendar) = calendar(&schedule) else {
        // It was readable when it was stored: another version of this program stored it.
        schedules::pause(&mut tx, schedule.id, "unreadable_pattern").await?;
        tx.commit().await?;
        return Ok(Some(0));
    };
    let now = sqlx::query_scalar("select now()").fetch_one(&mut *tx).await?;
    let window = TimeDelta::seconds(schedule.window_secs.into());
    let decision = due::decide(&calendar, schedule.catch_up, window, first, now);
    for due_at in &decision.missed {
        schedules::note_occurrence(&mut tx, &schedule.name, *due_at, Some("missed"), 0).await?;
    }
    for due_at in &decision.fire {
        let delay_secs = jitter(&schedule, *due_at);
        if schedules::note_occurrence(&mut tx, &schedule.name, *due_at, None, delay_secs).await? {
            let ticket = OccurrenceTicket { schedule: schedule.name.clone(), due_at: *due_at };
            queue::enqueue_occurrence(&mut tx, ticket, delay_secs).await?;
        }
        metrics::histogram!("registrar_schedule_lateness_seconds")
            .record((now - *due_at).as_seconds_f64().max(0.0));
    }
    schedules::set_next(&mut tx, schedule.id, decision.next).await?;
    tx.commit().await?;
    Ok(Some(decision.fire.len()))
}

/// Writes new tickets for occurrences whose ticket got lost.
async fn reissue(db: &PgPool) -> Result<(), sqlx::Error> {
    let mut tx = db.begin().await?;
    for (schedule, due_at) in schedules::take_unticketed(&mut tx, TICKET_SECS, MAX_REISSUED).await?
    {
        queue::enqueue_occurrence(&mut tx, OccurrenceTicket { schedule, due_at }, 0).await?;
    }
    tx.commit().await
}

fn calendar(schedule: &Schedule) -> Option<Calendar> {
    let calendar = Calendar::parse(&schedule.cron, &schedule.time_zone).ok()?;
    Some(calendar.without(schedule.except_days.clone()))
}

/// The same for every scheduler that asks: a number between 0 and the schedule's jitter.
fn jitter(schedule: &Schedule, due_at: DateTime<Utc>) -> i32 {
    let seed = schedule.id.wrapping_mul(2_654_435_761).wrapping_add(due_at.timestamp());
    let spread = i64::from(schedule.jitter_secs) + 1;
    i32::try_from(seed.rem_euclid(spread)).unwrap_or(0)
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
