//! Decides when, and enqueues. Never does the work.
//!
//! tokio-cron-scheduler is the ticker and no more: it fires on every machine, forgets what it
//! missed and keeps the offset of the day it was started. It also goes by the machine's clock: one
//! that is set back keeps it silent for as long, so a silence has an end here. What is due is told
//! by the database's clock, and each due time is a unique row inserted in the transaction that
//! enqueues the work, so that N schedulers fire it once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler};
use tokio_util::sync::CancellationToken;

use crate::db::deliveries;
use crate::db::report_deliveries;
use crate::db::schedules::{self, Schedule};
use crate::queue::{self, MaintenanceTicket, OccurrenceTicket};

mod due;

/// How often the schedules are looked at: each second. A pattern, because a job that is repeated by
/// a length of time is never run again once it was late by more than that, as it is in a process
/// that stood still.
const TICK: &str = "* * * * * *";
/// Longest silence of the ticker. After that the schedules are looked at anyway, and there is a new
/// ticker.
const SILENCE: Duration = Duration::from_secs(3);
/// Longest standstill inside a transaction.
const STANDSTILL: &str = "5s";
/// Schedules that one tick fires at most; the next tick goes on.
const MAX_FIRED_PER_TICK: usize = 500;
/// A ticket that did not come for this long is lost; a doubled one does no harm.
const TICKET_SECS: i32 = 60;
/// Tickets that are pushed again in one tick.
const MAX_REISSUED: i64 = 100;
/// Messages to webhooks that one tick sends on their way, and those that one webhook may have there.
const MAX_DELIVERIES: i64 = 200;
const MAX_DELIVERIES_PER_WEBHOOK: i64 = 8;

/// Housekeeping that the service itself needs: its name in the table, what it does, and how often.
const HOUSEKEEPING: [(&str, MaintenanceTicket, i32); 7] = [
    ("housekeeping.expire_results", MaintenanceTicket::ExpireResults, 60),
    ("housekeeping.sweep_store", MaintenanceTicket::SweepStore, 6 * 60 * 60),
    ("housekeeping.prune", MaintenanceTicket::Prune, 600),
    ("housekeeping.carry_out_erasures", MaintenanceTicket::CarryOutErasures, 600),
    ("housekeeping.start_due_runs", MaintenanceTicket::StartDueRuns, 60),
    ("housekeeping.look_at_backlogs", MaintenanceTicket::LookAtBacklogs, 60 * 60),
    ("housekeeping.seal_certificates", MaintenanceTicket::SealCertificates, 60),
];

/// Ticks until `shutdown`.
///
/// # Errors
/// When the ticker cannot be started.
pub async fn run(db: PgPool, shutdown: CancellationToken) -> anyhow::Result<()> {
    let beat = Arc::new(Notify::new());
    let mut ticker = start_ticker(&beat).await?;
    tracing::info!("scheduler started");
    loop {
        // One look after the other: what comes meanwhile is one more look.
        let ticked = tokio::select! {
            () = shutdown.cancelled() => break,
            ticked = tokio::time::timeout(SILENCE, beat.notified()) => ticked.is_ok(),
        };
        if !ticked {
            tracing::warn!("the ticker is silent: was the machine's clock set back?");
            ticker.shutdown().await.context("stop a silent ticker")?;
            ticker = start_ticker(&beat).await?;
        }
        let looked = tokio::select! {
            () = shutdown.cancelled() => break,
            looked = tick(&db) => looked,
        };
        if let Err(error) = looked {
            tracing::warn!(%error, "cannot look at the schedules");
        }
    }
    ticker.shutdown().await.context("stop the ticker")?;
    tracing::info!("scheduler stopped");
    Ok(())
}

async fn start_ticker(beat: &Arc<Notify>) -> anyhow::Result<JobScheduler> {
    let ticker = JobScheduler::new().await.context("make the ticker")?;
    let beat = Arc::clone(beat);
    let job = Job::new(TICK, move |_, _| beat.notify_one());
    ticker.add(job.context("make the tick")?).await.context("add the tick")?;
    ticker.start().await.context("start the ticker")?;
    Ok(ticker)
}

/// Enqueues what is due and not yet taken. Returns how many occurrences this call fired.
///
/// # Errors
/// The database's.
pub async fn tick(db: &PgPool) -> Result<usize, sqlx::Error> {
    let mut fired = start_housekeeping(db).await?;
    while fired < MAX_FIRED_PER_TICK {
        match fire_one(db).await? {
            Some(count) => fired += count.max(1),
            None => break,
        }
    }
    Ok(fired)
}

/// Takes every period that has begun and that nobody has taken, in one statement, because most
/// ticks find none; and writes lost tickets anew. One transaction, each second, on each scheduler.
async fn start_housekeeping(db: &PgPool) -> Result<usize, sqlx::Error> {
    let names = HOUSEKEEPING.map(|(name, _, _)| name);
    let every_secs = HOUSEKEEPING.map(|(_, _, secs)| f64::from(secs));
    let mut tx = begin(db).await?;
    let taken = schedules::take_periods(&mut tx, &names, &every_secs).await?;
    for (_, ticket, _) in HOUSEKEEPING.iter().filter(|(name, _, _)| taken.iter().any(|t| t == name))
    {
        queue::enqueue_maintenance(&mut tx, *ticket).await?;
    }
    reissue(&mut tx).await?;
    send_due(&mut tx).await?;
    tx.commit().await?;
    Ok(taken.len())
}

/// A transaction that the server ends when this process stands still in it, with the locks that it
/// holds: the other schedulers pass over what is locked.
async fn begin(db: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let mut tx = db.begin().await?;
    sqlx::query("select set_config('idle_in_transaction_session_timeout', $1, true)")
        .bind(STANDSTILL)
        .execute(&mut *tx)
        .await?;
    Ok(tx)
}

/// Fires the schedule that has been due longest: its occurrences, their tickets and its next time
/// in one transaction, under its lock. `None`: nothing is due.
async fn fire_one(db: &PgPool) -> Result<Option<usize>, sqlx::Error> {
    let mut tx = begin(db).await?;
    let Some(schedule) = schedules::lock_due(&mut tx).await? else { return Ok(None) };
    let Some(first) = schedule.next_due_at else { return Ok(None) };
    let Ok(calendar) = schedule.timing.calendar() else {
        // It was readable when it was stored: another version of this program stored it.
        schedules::pause(&mut tx, schedule.id, "unreadable_pattern").await?;
        tx.commit().await?;
        return Ok(Some(0));
    };
    let now = sqlx::query_scalar("select now()").fetch_one(&mut *tx).await?;
    let window = TimeDelta::seconds(schedule.timing.window_secs.into());
    let decision = due::decide(&calendar, schedule.timing.catch_up, window, first, now);
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
async fn reissue(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let lost = schedules::take_unticketed(connection, TICKET_SECS, MAX_REISSUED).await?;
    for (schedule, due_at) in lost {
        queue::enqueue_occurrence(connection, OccurrenceTicket { schedule, due_at }, 0).await?;
    }
    Ok(())
}

/// Writes tickets for deliveries whose time has come, and takes back those whose worker is gone.
async fn send_due(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let lost = deliveries::take_back(connection, MAX_DELIVERIES).await?;
    if lost > 0 {
        tracing::warn!(lost, "{lost} deliveries lost their worker and are sent again");
    }
    let due =
        deliveries::take_due(connection, TICKET_SECS, MAX_DELIVERIES_PER_WEBHOOK, MAX_DELIVERIES)
            .await?;
    let reports = report_deliveries::take_due(connection, TICKET_SECS, MAX_DELIVERIES).await?;
    for id in due.into_iter().chain(reports) {
        queue::enqueue_delivery(connection, id).await?;
    }
    Ok(())
}

/// The same for every scheduler that asks: a number between 0 and the schedule's jitter.
fn jitter(schedule: &Schedule, due_at: DateTime<Utc>) -> i32 {
    let seed = schedule.id.wrapping_mul(2_654_435_761).wrapping_add(due_at.timestamp());
    let spread = i64::from(schedule.timing.jitter_secs) + 1;
    i32::try_from(seed.rem_euclid(spread)).unwrap_or(0)
}
