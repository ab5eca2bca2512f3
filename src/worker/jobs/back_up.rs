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
        BackupTicket::Create { policy } => ("create", Box::pin(create(services, &policy)).await),
        BackupTicket::Verify { backup_id, policy } => {
            ("verify", Box::pin(verify(services, backup_id, policy)).await)
        }
        BackupTicket::Prune { policy } => ("prune", Box::pin(prune(services, &policy)).await),
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

async fn create(services: &Services, policy: &str) -> anyhow::Result<()> {
    if let Some(made) = services.back_up_on_schedule(policy).await? {
        tracing::info!(
            backup.id = %made.id(),
            policy,
            size_bytes = made.size_bytes(),
            "made backup {}",
            made.id()
        );
    }
    Ok(())
}

async fn verify(
    services: &Services,
    id: Option<String>,
    policy: Option<String>,
) -> anyhow::Result<()> {
    let outcome = services.verify_named_backup(id.as_deref(), policy.as_deref()).await?;
    let problem = outcome.problem.unwrap_or_default();
    anyhow::ensure!(outcome.good, Bad { id: outcome.id.to_string(), problem });
    tracing::info!(backup.id = %outcome.id, duration_ms = outcome.duration_ms, "proved a backup");
    Ok(())
}

async fn prune(services: &Services, policy: &str) -> anyhow::Result<()> {
    let pruned = services.prune_by_policy(&Actor::system(), policy).await?;
    anyhow::ensure!(pruned.failed.is_empty(), "{} could not be deleted yet", pruned.failed.len());
    tracing::info!(policy, deleted = pruned.deleted.len(), "pruned backups");
    Ok(())
}
