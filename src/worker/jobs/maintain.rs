//! A ticket of the `maintenance` queue: housekeeping. Every job may run twice, and does no harm.

use apalis::prelude::*;

use crate::db::audit::Actor;
use crate::db::{deliveries, idempotency, schedules, workers};
use crate::queue::{self, MaintenanceTicket, Queue};
use crate::retention::anonymize::Outcome;
use crate::service::results::ExpiredResults;
use crate::worker::Context;

/// Finished tickets are kept this long, for whoever looks into the queue.
const TICKETS_KEPT_MINUTES: i32 = 60;
/// Occurrences are kept longer than any scheduler can be late.
const OCCURRENCES_KEPT_DAYS: i32 = 30;
/// Rows deleted in one statement, and statements in one run.
const BATCH: i64 = 5_000;
const MAX_BATCHES: u32 = 200;

/// Does the job that the ticket names. A failure is logged; the next occurrence tries again.
///
/// # Errors
/// None.
pub async fn run(ticket: MaintenanceTicket, context: Data<Context>) -> Result<(), BoxDynError> {
    // Left out: the next one is due soon.
    if !context.may_take(Queue::Maintenance).await {
        return Ok(());
    }
    let done = match ticket {
        MaintenanceTicket::ExpireResults => expire(&context).await,
        MaintenanceTicket::SweepStore => sweep(&context).await,
        MaintenanceTicket::Prune => prune(&context).await,
        MaintenanceTicket::CarryOutErasures => carry_out_erasures(&context).await,
        MaintenanceTicket::StartDueRuns => start_due_runs(&context).await,
        MaintenanceTicket::LookAtBacklogs => look_at_backlogs(&context).await,
        MaintenanceTicket::SealCertificates => seal_certificates(&context).await,
    };
    if let Err(error) = done {
        tracing::warn!(job = ?ticket, error = format!("{error:#}"), "a housekeeping job failed");
    }
    Ok(())
}

async fn expire(context: &Context) -> anyhow::Result<()> {
    let ExpiredResults { expired, stuck } = context.services.expire_results().await?;
    if expired > 0 {
        tracing::info!(expired, "deleted results past their time");
    }
    if stuck > 0 {
        tracing::warn!(stuck, "the store keeps results past their time");
    }
    Ok(())
}

/// What it finds is in the log, the metrics and the audit.
async fn sweep(context: &Context) -> anyhow::Result<()> {
    context.services.sweep(&Actor::system(), true).await?;
    let copied = context.services.copy_holds().await?;
    if copied > 0 {
        tracing::info!(copied, "wrote copies of holds that were missing");
    }
    let copies = context.services.sweep_copies().await?;
    if copies > 0 {
        tracing::info!(copies, "deleted copies of results that are gone");
    }
    Ok(())
}

/// What a policy does by its schedule is left to it. Nothing where no keys are set: nobody can have
/// requested an erasure then.
async fn carry_out_erasures(context: &Context) -> anyhow::Result<()> {
    if !context.services.can_erase() {
        return Ok(());
    }
    let outcome = context.services.carry_out_left().await?;
    if outcome != Outcome::default() {
        let Outcome { completed, held, postponed } = outcome;
        tracing::info!(completed, held, postponed, "carried out erasures");
    }
    Ok(())
}

async fn start_due_runs(context: &Context) -> anyhow::Result<()> {
    let started = context.services.start_due_runs().await?;
    if started > 0 {
        tracing::info!(started, "started runs that were due");
    }
    Ok(())
}

async fn look_at_backlogs(context: &Context) -> anyhow::Result<()> {
    let seen = context.services.look_at_backlogs().await?;
    tracing::debug!(seen, "looked at what policies have before them");
    Ok(())
}

/// A run is sealed in the transaction that ends it; this is for what could not be, for want of
/// keys, and for copies that a process did not come to.
async fn seal_certificates(context: &Context) -> anyhow::Result<()> {
    let sealed = context.services.seal_unsealed().await?;
    if sealed > 0 {
        tracing::info!(sealed, "sealed runs that had no certificate");
    }
    Ok(())
}

/// Housekeeping of our own tables.
///
/// # Errors
/// The database's.
pub async fn prune(context: &Context) -> anyhow::Result<()> {
    let db = &context.services.db;
    let events_kept_days = i32::from(context.services.config.webhook.keep_days.get());
    for _ in 0..MAX_BATCHES {
        let tickets = queue::prune(db, TICKETS_KEPT_MINUTES, BATCH).await?;
        let keys = idempotency::forget_expired(db, BATCH).await?;
        let occurrences = schedules::forget_occurrences(db, OCCURRENCES_KEPT_DAYS, BATCH).await?;
        let events = deliveries::forget_old(db, events_kept_days, BATCH).await?;
        tracing::debug!(tickets, keys, occurrences, events, "pruned");
        if tickets + keys + occurrences + events == 0 {
            break;
        }
    }
    workers::forget_gone(db).await?;
    Ok(())
}
