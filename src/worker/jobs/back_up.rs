//! A ticket of the `backups` queue. Twice does no harm: two backups, or two verifications.

use apalis::prelude::*;

use crate::db::audit::Actor;
use crate::queue::{self, BackupTicket};
use crate::service::Services;
use crate::worker::Context;

/// Does the job that the ticket names. A failure is logged and counted; the next occurrence tries
/// again.
///
/// # Errors
/// None.
pub async fn run(ticket: BackupTicket, context: Data<Context>) -> Result<(), BoxDynError> {
    let services = &context.services;
    match queue::park_if_paused(&services.db, &ticket).await {
        Ok(false) => {}
        Ok(true) => return Ok(()),
        Err(error) => tracing::warn!(%error, "cannot look whether the queue is paused"),
    }
    let (job, done) = match ticket {
        BackupTicket::Create => ("create", Box::pin(create(services)).await),
        BackupTicket::Verify { backup_id } => {
            ("verify", Box::pin(verify(services, backup_id)).await)
        }
    };
    let outcome = if done.is_ok() { "completed" } else { "failed" };
    metrics::counter!("registrar_backup_jobs_total", "job" => job, "outcome" => outcome)
        .increment(1);
    if let Err(error) = done {
        tracing::error!(job, error = format!("{error:#}"), "a job of backups failed");
        // That a backup is bad was told with the verification.
        if !error.is::<Bad>()
            && let Err(error) = services.tell_of_failed_backup(job).await
        {
            tracing::error!(%error, "cannot tell webhooks of it");
        }
    }
    Ok(())
}

/// A backup that was proven to be none.
#[derive(Debug, thiserror::Error)]
#[error("backup {id} is bad: {problem}")]
struct Bad {
    id: String,
    problem: String,
}

async fn create(services: &Services) -> anyhow::Result<()> {
    let manifest = services.create_scheduled_backup().await?;
    tracing::info!(
        backup.id = %manifest.id,
        size_bytes = manifest.stored.size_bytes,
        duration_ms = manifest.timings.total_ms,
        "made backup {}",
        manifest.id
    );
    // Only after a new one is there, so that an ill database never ends with none.
    let pruned = services.prune_backups(&Actor::system(), false).await?;
    for (id, error) in &pruned.failed {
        tracing::warn!(backup.id = %id, error, "cannot delete an expired backup; the next run tries");
    }
    Ok(())
}

async fn verify(services: &Services, id: Option<String>) -> anyhow::Result<()> {
    let outcome = services.verify_named_backup(id.as_deref()).await?;
    let problem = outcome.problem.unwrap_or_default();
    anyhow::ensure!(outcome.good, Bad { id: outcome.id.to_string(), problem });
    tracing::info!(backup.id = %outcome.id, duration_ms = outcome.duration_ms, "proved a backup");
    Ok(())
}
