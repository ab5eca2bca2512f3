//! Lifecycle runs: claim → work, with a heartbeat beside it → settle; and their rescue.
//!
//! The rules are those of executions (see [`super::attempt`]). A run that is taken over goes on
//! behind the last committed chunk.

use serde_json::json;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::reaper::{BATCH, LOCK_GRACE_SECS, TICKET_SECS, WORKER_LOST};
use crate::db::audit::{self, Actor};
use crate::db::policy_backlogs;
use crate::queue;
use crate::retention::certificate::CertificateError;
use crate::retention::chunk::Attempt;
use crate::retention::engine::Outcome;
use crate::retention::error::RetentionError;
use crate::retention::run::{self, Claimed, RunEnd};
use crate::service::Services;

/// Heartbeats per lease: two may be lost.
const BEATS_PER_LEASE: u32 = 3;
/// Pause after the first attempt that failed; each further one doubles it. The reaper's and the
/// lock's patience come on top.
const RETRY_PAUSE_SECS: u32 = 10;
/// The pause is doubled until it is this long.
const MAX_RETRY_PAUSE_SECS: u32 = 300;

/// Works on the run that has waited longest, if one waits.
pub async fn run_next(context: &Context) {
    let owner: &str = &context.worker_id;
    let lease = lease_secs(&context.services);
    match run::claim_next(&context.services.db, owner, lease).await {
        Ok(Some(claimed)) => run_claimed(&context.services, claimed, &context.abort).await,
        Ok(None) => tracing::debug!("no run to claim: a doubled or late ticket"),
        Err(error) => tracing::warn!(error = code(&error), "cannot claim a run"),
    }
}

/// Works on this run in the process that calls, if it waits. `false`: somebody else has it.
///
/// # Errors
/// The database's.
pub async fn run_here(
    services: &Services,
    run_id: i64,
    owner: &str,
    abort: &CancellationToken,
) -> Result<bool, sqlx::Error> {
    let claimed = run::claim(&services.db, run_id, owner, lease_secs(services)).await?;
    let Some(claimed) = claimed else { return Ok(false) };
    run_claimed(services, claimed, abort).await;
    Ok(true)
}

async fn run_claimed(services: &Services, claimed: Claimed, abort: &CancellationToken) {
    let attempt = Attempt {
        run_id: claimed.id,
        number: claimed.attempt,
        lease_secs: lease_secs(services),
        stop: abort.child_token(),
    };
    tracing::info!(run.id = claimed.id, policy = claimed.policy, "run {} begins", claimed.id);
    // A task of its own: a panic ends the attempt, not the worker.
    let (worker_services, worker_claimed) = (services.clone(), claimed.clone());
    let worker_attempt = attempt.clone();
    let mut work = tokio::spawn(async move {
        Box::pin(work(&worker_services, &worker_claimed, &worker_attempt)).await
    });
    let joined = tokio::select! {
        joined = &mut work => joined,
        () = beat(services, &attempt) => {
            attempt.stop.cancel();
            work.await
        }
    };
    let panicked = |_| {
        Err(RetentionError::refused("panicked", "the run failed for a reason that is in the log"))
    };
    let outcome = joined.unwrap_or_else(panicked);
    if let Err(error) = settle(services, &claimed, &outcome, abort).await {
        // The lease runs out, and the reaper goes on.
        let error = match error {
            CertificateError::Database(error) => code(&error),
            error => format!("{:#}", anyhow::Error::from(error)),
        };
        tracing::error!(run.id = claimed.id, error, "cannot settle a run");
    }
    if outcome.is_err() {
        services.sweep_exports(claimed.id).await;
    }
    services.store_certificates().await;
}

async fn work(
    services: &Services,
    claimed: &Claimed,
    attempt: &Attempt,
) -> Result<Outcome, RetentionError> {
    let policies = services.policies().await.map_err(|error| {
        tracing::warn!(error = error.to_string(), "the jobs folder cannot be used");
        RetentionError::refused(
            "bad_policies",
            "the jobs folder cannot be used: mend it, then resume",
        )
    })?;
    let policy = policies.get(&claimed.policy).cloned().ok_or_else(|| {
        let message = format!("there is no policy `{}` any more", claimed.policy);
        RetentionError::refused("policy_changed", message)
    })?;
    Box::pin(services.work_on_run(&policies, &policy, claimed, attempt)).await
}

/// Renews the lease; returns when the run is not ours any more.
async fn beat(services: &Services, attempt: &Attempt) {
    let every = services.config.worker.lease() / BEATS_PER_LEASE;
    loop {
        tokio::time::sleep(every).await;
        let beaten = async {
            let mut connection = services.db.acquire().await?;
            let Attempt { run_id, number, lease_secs, .. } = *attempt;
            run::beat(&mut connection, run_id, number, lease_secs).await
        };
        match beaten.await {
            Ok(true) => {}
            Ok(false) => return,
            // Chunks are fenced: going on does no harm.
            Err(error) => tracing::warn!(error = code(&error), "cannot renew a run's lease"),
        }
    }
}

/// Brings the run where the outcome says, in one guarded statement with its audit row and, where
/// that is its end, its certificate.
async fn settle(
    services: &Services,
    claimed: &Claimed,
    outcome: &Result<Outcome, RetentionError>,
    abort: &CancellationToken,
) -> Result<(), CertificateError> {
    let (id, attempt) = (claimed.id, claimed.attempt);
    let mut tx = services.db.begin().await?;
    let (changed, action, details) = match outcome {
        Ok(Outcome::Completed) => {
            let changed = run::settle(&mut tx, id, attempt, &RunEnd::Completed).await?;
            let tables = run::tables_of(&mut tx, id).await?;
            let counts: serde_json::Map<_, _> = tables
                .iter()
                .map(|t| (t.table_name.clone(), json!({"done": t.done, "held": t.held})))
                .collect();
            if changed {
                policy_backlogs::store_after_run(&mut tx, &claimed.policy, id).await?;
            }
            (changed, "run.completed", json!({ "tables": counts }))
        }
        Ok(Outcome::NeedsApproval(why)) => {
            let end = RunEnd::NeedsApproval(why);
            (run::settle(&mut tx, id, attempt, &end).await?, "run.needs_approval", json!({}))
        }
        Err(RetentionError::Lost) => (false, "", json!({})),
        Err(RetentionError::Stopped) if abort.is_cancelled() => {
            let given = run::give_back(&mut tx, id, attempt).await?;
            push_ticket(&mut tx, id, given, 0).await?;
            (given, "run.given_back", json!({}))
        }
        Err(RetentionError::Stopped) => (false, "", json!({})),
        Err(error) => {
            let (code, message) = (error.code(), error.to_string());
            let retried =
                error.is_transient() && claimed.failed_attempts + 1 < claimed.max_attempts;
            let details = json!({ "code": code });
            if retried {
                let pause_secs = retry_pause_secs(claimed.failed_attempts);
                let pause = f64::from(pause_secs);
                let changed = run::retry_later(&mut tx, id, attempt, code, &message, pause).await?;
                push_ticket(&mut tx, id, changed, pause_secs).await?;
                (changed, "run.retried", details)
            } else {
                let end = RunEnd::Failed(code, &message);
                (run::settle(&mut tx, id, attempt, &end).await?, "run.failed", details)
            }
        }
    };
    if changed {
        record(&mut tx, id, action, &claimed.policy, details).await?;
        if matches!(action, "run.completed" | "run.failed") {
            services.seal_run(&mut tx, id).await?;
        }
    }
    tx.commit().await?;
    let result = match outcome {
        Ok(Outcome::Completed) => "completed",
        Ok(Outcome::NeedsApproval(_)) => "needs_approval",
        Err(error) => error.code(),
    };
    let error = outcome.as_ref().err().map(tracing::field::display);
    tracing::info!(run.id = id, changed, result, error, "run {id}: {result}");
    if changed {
        metrics::counter!("registrar_lifecycle_runs_finished_total", "outcome" => result)
            .increment(1);
    }
    Ok(())
}

/// How long a run waits that has failed so often before, and once more now: a database or a store
/// that is away for minutes must not use up all attempts.
fn retry_pause_secs(failed_before: i32) -> u32 {
    let doubled = u32::try_from(failed_before)
        .ok()
        .and_then(|times| 1_u32.checked_shl(times))
        .and_then(|times| RETRY_PAUSE_SECS.checked_mul(times));
    doubled.map_or(MAX_RETRY_PAUSE_SECS, |pause| pause.min(MAX_RETRY_PAUSE_SECS))
}

/// Takes runs away from workers that are gone. Returns how many.
///
/// # Errors
/// The database's.
pub async fn rescue(context: &Context) -> anyhow::Result<usize> {
    let mut tx = context.services.db.begin().await?;
    let orphans = run::lock_orphans(&mut tx, LOCK_GRACE_SECS, i64::from(BATCH)).await?;
    for orphan in &orphans {
        let (id, attempt) = (orphan.id, orphan.attempt);
        let message = "the worker that ran it is gone";
        let is_last = orphan.failed_attempts + 1 >= orphan.max_attempts;
        let changed = if is_last {
            run::settle(&mut tx, id, attempt, &RunEnd::Failed(WORKER_LOST, message)).await?
        } else {
            let changed = run::retry_later(&mut tx, id, attempt, WORKER_LOST, message, 0.0).await?;
            push_ticket(&mut tx, id, changed, 0).await?;
            changed
        };
        if changed {
            let action = if is_last { "run.failed" } else { "run.rescued" };
            let owner = json!({ "lease_owner": orphan.lease_owner, "reason": WORKER_LOST });
            record(&mut tx, id, action, "", owner).await?;
            if is_last {
                context.services.seal_run(&mut tx, id).await?;
            }
        }
        tracing::warn!(run.id = id, attempt, "run {id} lost its worker");
    }
    tx.commit().await?;
    for orphan in &orphans {
        context.services.sweep_exports(orphan.id).await;
    }
    Ok(orphans.len())
}

/// Writes tickets for runs that wait without one.
///
/// # Errors
/// The database's.
pub async fn reissue(context: &Context) -> anyhow::Result<usize> {
    let mut tx = context.services.db.begin().await?;
    let ids = run::lock_unticketed(&mut tx, TICKET_SECS, i64::from(BATCH)).await?;
    for id in &ids {
        push_ticket(&mut tx, *id, true, 0).await?;
    }
    tx.commit().await?;
    Ok(ids.len())
}

async fn push_ticket(
    connection: &mut PgConnection,
    id: i64,
    is_pending: bool,
    delay_secs: u32,
) -> Result<(), sqlx::Error> {
    if !is_pending {
        return Ok(());
    }
    let ticket = queue::enqueue_run(connection, id, u128::from(delay_secs)).await?;
    run::note_ticket(connection, id, &ticket).await
}

async fn record(
    connection: &mut PgConnection,
    id: i64,
    action: &str,
    policy: &str,
    mut details: serde_json::Value,
) -> Result<(), sqlx::Error> {
    if !policy.is_empty() {
        details["policy"] = json!(policy);
    }
    let event =
        audit::Event { action, entity_type: "lifecycle_runs", entity_id: Some(id), details };
    audit::record(connection, &Actor::system(), event).await
}

/// An error of the database for the log: its text can hold values of rows.
fn code(error: &sqlx::Error) -> String {
    crate::db::sqlstate(error).map_or_else(|| error.to_string(), |code| format!("SQLSTATE {code}"))
}

fn lease_secs(services: &Services) -> i32 {
    i32::try_from(services.config.worker.lease_secs.get()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_pause_up_to_five_minutes() {
        let pauses = [0, 1, 2, 3, 4, 5, 6, 31, 32, i32::MAX].map(retry_pause_secs);
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300, 300, 300]);
    }
}
