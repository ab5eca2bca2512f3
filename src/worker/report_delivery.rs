//! One attempt to bring a scheduled report to its owner: claim → mail or copy → settle.
//!
//! As for messages to webhooks (see [`super::delivery`]): a lease longer than any attempt, the same
//! pauses, and a mail that is sent twice has the same `Message-ID`.

use std::time::Duration;

use super::Context;
use super::delivery::{LEASE_MARGIN_SECS, pause_after};
use crate::db::deliveries;
use crate::db::report_deliveries::{self, Channel, ClaimedReport};
use crate::notify::mail::Mailer;
use crate::service::ServiceError;

/// Longest copy of a file.
const COPY_TIMEOUT: Duration = Duration::from_secs(300);
/// Tries to settle: an outage of the database that is longer costs a repeated mail.
const SETTLE_TRIES: u32 = 5;
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Delivered,
    Failed { code: &'static str, may_pass: bool },
}

/// Delivers, if it is due and nobody else does.
pub async fn run(context: &Context, mailer: Option<&Mailer>, id: i64) {
    let config = &context.services.config;
    let longest = COPY_TIMEOUT.as_secs().max(config.email.timeout_secs.get().into());
    let lease_secs = i32::try_from(longest).unwrap_or(i32::MAX / 2);
    let lease_secs = lease_secs + i32::try_from(LEASE_MARGIN_SECS).unwrap_or(0);
    let db = &context.services.db;
    let claimed = match report_deliveries::claim(db, id, &context.worker_id, lease_secs).await {
        Ok(Some(claimed)) => claimed,
        Ok(None) => {
            tracing::debug!(delivery.id = id, "nothing to deliver: a doubled or late ticket");
            return;
        }
        // The scheduler writes a new ticket.
        Err(error) => {
            tracing::warn!(delivery.id = id, code = crate::db::sqlstate(&error), "cannot claim");
            return;
        }
    };
    let outcome = deliver(context, mailer, &claimed).await;
    for attempt in 1..=SETTLE_TRIES {
        match settle(context, &claimed, outcome).await {
            Ok(()) => return,
            Err(_) if attempt < SETTLE_TRIES => tokio::time::sleep(SETTLE_PAUSE).await,
            Err(error) => {
                let code = crate::db::sqlstate(&error);
                tracing::error!(delivery.id = id, code, "cannot settle: its lease will run out");
            }
        }
    }
}

async fn deliver(context: &Context, mailer: Option<&Mailer>, claimed: &ClaimedReport) -> Outcome {
    let failed = |code, may_pass| Outcome::Failed { code, may_pass };
    match (claimed.channel, claimed.execution_id, claimed.copy_to.as_deref()) {
        (Channel::Email, ..) => {
            let Some(mailer) = mailer else { return failed("no_mail_server", true) };
            let _place = mailer.place().await;
            match context.services.write_mail(claimed).await {
                Ok(Some(mail)) => match mailer.send(mail).await {
                    Ok(()) => Outcome::Delivered,
                    Err(failure) => failed(failure.code(), failure.may_pass()),
                },
                Ok(None) => failed("owner_inactive", false),
                Err(error) => unavailable(claimed, error),
            }
        }
        (Channel::Copy, Some(execution), Some(folder)) => {
            let copied = context.services.copy_result(claimed, folder, execution);
            match tokio::time::timeout(COPY_TIMEOUT, copied).await {
                Ok(Ok(true)) => Outcome::Delivered,
                Ok(Ok(false)) => failed("forbidden", false),
                Ok(Err(error)) => unavailable(claimed, error),
                Err(_) => failed("timed_out", true),
            }
        }
        (Channel::Copy | Channel::Webhook, ..) => failed("unusable", false),
    }
}

fn unavailable(claimed: &ClaimedReport, error: ServiceError) -> Outcome {
    tracing::warn!(
        delivery.id = claimed.id,
        error = format!("{:#}", anyhow::Error::from(error)),
        "a report could not be delivered yet"
    );
    Outcome::Failed { code: "unavailable", may_pass: true }
}

/// Brings the row where the outcome says; each statement is guarded by the attempt.
async fn settle(
    context: &Context,
    claimed: &ClaimedReport,
    outcome: Outcome,
) -> Result<(), sqlx::Error> {
    let (id, attempt) = (claimed.id, claimed.attempt);
    let mut tx = context.services.db.begin().await?;
    let (label, code) = match outcome {
        Outcome::Delivered => {
            deliveries::deliver(&mut tx, id, attempt, None).await?;
            ("delivered", "")
        }
        Outcome::Failed { code, may_pass } => {
            let pause = pause_after(claimed.failed_attempts, claimed.event_id, claimed.attempt);
            match pause.filter(|_| may_pass) {
                Some(pause) => {
                    let secs = pause.as_secs_f64();
                    deliveries::retry_later(&mut tx, id, attempt, code, None, secs).await?;
                    ("retried", code)
                }
                None => {
                    if deliveries::give_up(&mut tx, id, attempt, code, None).await? {
                        context.services.tell_of_failed_delivery(&mut tx, claimed, code).await?;
                    }
                    ("failed", code)
                }
            }
        }
    };
    tx.commit().await?;
    metrics::counter!(
        "registrar_report_deliveries_total",
        "channel" => claimed.channel.as_str(), "outcome" => label, "code" => code
    )
    .increment(1);
    tracing::info!(
        delivery.id = id,
        schedule = claimed.schedule,
        channel = claimed.channel.as_str(),
        attempt,
        code,
        "delivery {id}: {label}"
    );
    Ok(())
}
