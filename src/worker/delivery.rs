//! One attempt to deliver a message: claim → send → settle.
//!
//! The rules are those of executions (see [`super::attempt`]), only shorter: a message is sent in
//! seconds, so its lease is longer than any attempt and needs no heartbeat. Receivers may get a
//! message twice, always under the same id; none is lost.

use std::time::Duration;

use chrono::SecondsFormat;
use uuid::Uuid;

use super::Context;
use crate::db::deliveries::{self, ClaimedDelivery, MAX_ATTEMPTS};
use crate::db::webhooks;
use crate::notify::{Failure, Message, Sender};
use crate::service::webhooks::message_body;

/// Pauses between the attempts, before jitter: those that Standard Webhooks suggests, three days
/// and more in all.
const PAUSES_SECS: [u32; MAX_ATTEMPTS - 1] =
    [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
/// A pause is up to a fifth longer, so that what failed together is not tried together.
const JITTER: f64 = 0.2;
/// A webhook is disabled when a message is given up and none has arrived for so long: one that
/// refuses a single message is well.
const FAILING_HOURS: i32 = 24;
/// What claiming and settling may take, on top of the request.
pub(super) const LEASE_MARGIN_SECS: u32 = 30;
/// Tries to settle: an outage of the database that is longer costs a repeated message.
const SETTLE_TRIES: u32 = 5;
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// Sends a message to a webhook, if it is due and nobody else does. `false`: it is none.
pub async fn run(context: &Context, sender: &Sender, id: i64) -> bool {
    let lease_secs = context.services.config.webhook.timeout_secs.get() + LEASE_MARGIN_SECS;
    let lease_secs = i32::try_from(lease_secs).unwrap_or(i32::MAX);
    let db = &context.services.db;
    let claimed = match deliveries::claim(db, id, &context.worker_id, lease_secs).await {
        Ok(Some(claimed)) => claimed,
        Ok(None) => return false,
        // The scheduler writes a new ticket.
        Err(error) => {
            tracing::warn!(delivery.id = id, code = crate::db::sqlstate(&error), "cannot claim");
            return true;
        }
    };
    let outcome = send(context, sender, &claimed).await;
    for attempt in 1..=SETTLE_TRIES {
        match settle(context, &claimed, outcome).await {
            Ok(()) => return true,
            Err(_) if attempt < SETTLE_TRIES => tokio::time::sleep(SETTLE_PAUSE).await,
            Err(error) => {
                let code = crate::db::sqlstate(&error);
                tracing::error!(delivery.id = id, code, "cannot settle: its lease will run out");
            }
        }
    }
    true
}

async fn send(
    context: &Context,
    sender: &Sender,
    claimed: &ClaimedDelivery,
) -> Result<u16, Failure> {
    let secrets = context.services.open_secrets(&claimed.webhook, &claimed.secrets());
    let secrets = secrets.map_err(|error| {
        tracing::warn!(webhook = claimed.webhook, %error, "cannot open the secret of a webhook");
        Failure::Unusable
    })?;
    let occurred_at = claimed.occurred_at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let message = Message {
        url: &claimed.url,
        id: &format!("msg_{}", claimed.event_id.simple()),
        timestamp: claimed.now_epoch,
        body: message_body(&claimed.event_type, &occurred_at, &claimed.data),
        secrets: &secrets,
    };
    sender.send(message).await
}

/// Brings the row where the outcome says. May be called again after an error: each statement is
/// guarded by the attempt.
async fn settle(
    context: &Context,
    claimed: &ClaimedDelivery,
    outcome: Result<u16, Failure>,
) -> Result<(), sqlx::Error> {
    let (id, attempt) = (claimed.id, claimed.attempt);
    let mut tx = context.services.db.begin().await?;
    let (current, label) = match outcome {
        Ok(status) => {
            let status = i16::try_from(status).unwrap_or(i16::MAX);
            let current = deliveries::deliver(&mut tx, id, attempt, Some(status)).await?;
            (current, "delivered")
        }
        Err(failure) => {
            let code = failure.code();
            let status = failure.status().and_then(|status| i16::try_from(status).ok());
            match pause(claimed, failure) {
                Some(pause) => {
                    let secs = pause.as_secs_f64();
                    let current =
                        deliveries::retry_later(&mut tx, id, attempt, code, status, secs).await?;
                    (current, "retried")
                }
                None => {
                    let current = deliveries::give_up(&mut tx, id, attempt, code, status).await?;
                    (current, "failed")
                }
            }
        }
    };
    if current {
        webhooks::note_health(&mut tx, claimed.webhook_id, outcome.is_ok()).await?;
        let (webhook, name) = (claimed.webhook_id, &claimed.webhook);
        let reason = match outcome {
            Err(Failure::Gone) => Some("gone"),
            Err(_) if label == "failed" => {
                let failing = webhooks::has_failed_for(&mut tx, webhook, FAILING_HOURS).await?;
                failing.then_some("failing")
            }
            _ => None,
        };
        if let Some(reason) = reason {
            context.services.disable_failing_webhook(&mut tx, webhook, name, reason).await?;
        }
    }
    tx.commit().await?;
    let code = outcome.map_or_else(Failure::code, |_| "");
    metrics::counter!("registrar_webhook_attempts_total", "outcome" => label, "code" => code)
        .increment(1);
    tracing::info!(
        delivery.id = id,
        webhook = claimed.webhook,
        event = claimed.event_type,
        attempt,
        code,
        "delivery {id}: {label}"
    );
    Ok(())
}

/// How long until the next attempt; `None`: it is given up.
fn pause(claimed: &ClaimedDelivery, failure: Failure) -> Option<Duration> {
    if failure == Failure::Gone {
        return None;
    }
    let pause = pause_after(claimed.failed_attempts, claimed.event_id, claimed.attempt)?;
    match failure {
        Failure::Status { retry_after: Some(asked), .. } => Some(pause.max(asked)),
        _ => Some(pause),
    }
}

/// The pause after so many failed attempts; `None`: there were enough.
pub(super) fn pause_after(failed_attempts: i32, event_id: Uuid, attempt: i32) -> Option<Duration> {
    let tries = usize::try_from(failed_attempts).unwrap_or(usize::MAX);
    let pause = f64::from(*PAUSES_SECS.get(tries)?);
    Some(Duration::from_secs_f64(pause * (1.0 + JITTER * jitter(event_id, attempt))))
}

/// Between 0 and 1, from what no two deliveries and no two attempts share.
fn jitter(event_id: Uuid, attempt: i32) -> f64 {
    let [first, second, ..] = *event_id.as_bytes();
    let seed = u16::from_be_bytes([first, second]);
    let attempt = u16::try_from(attempt).unwrap_or(u16::MAX);
    f64::from(seed.wrapping_add(attempt.wrapping_mul(40_503))) / f64::from(u16::MAX)
}
