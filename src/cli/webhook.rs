//! `registrar webhook`: who is told of events.

use std::process::ExitCode;

use anyhow::Context;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

use super::{Settings, command_services, note, operator, say, say_json, table};
use crate::db::deliveries::{Delivery, DeliveryStatus};
use crate::db::schedules::ScheduleName;
use crate::db::webhooks::Webhook;
use crate::service::webhooks::{DeliveryFilter, EventType, WebhookOrder, WebhookWithSecret};

/// Make, change and try out webhooks; see and replay what was sent to them
#[derive(Debug, Args)]
pub struct WebhookCommand {
    #[command(subcommand)]
    verb: WebhookVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum WebhookVerb {
    /// Make a webhook and print its secret: the only time that it can be read
    #[command(after_help = "\
Example:
  registrar webhook create portal --url https://portal.example/hooks --event execution.completed")]
    Create {
        /// Its name, unique
        name: ScheduleName,
        #[command(flatten)]
        target: Target,
    },
    /// List webhooks by name
    #[command(after_help = "Example:\n  registrar webhook list")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change where messages go, and which; the secret stays
    #[command(after_help = "\
Example:
  registrar webhook update portal --url https://portal.example/new --event execution.completed")]
    Update {
        /// Its name
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a webhook, with what was delivered to it
    #[command(after_help = "Example:\n  registrar webhook delete portal")]
    Delete {
        /// Its name
        name: String,
    },
    /// Make a new secret and print it; the one before signs too for a while
    #[command(after_help = "Example:\n  registrar webhook rotate portal")]
    Rotate {
        /// Its name
        name: String,
    },
    /// Disable a webhook; what happens meanwhile can be replayed
    #[command(after_help = "Example:\n  registrar webhook disable portal")]
    Disable {
        /// Its name
        name: String,
    },
    /// Enable a webhook
    #[command(after_help = "Example:\n  registrar webhook enable portal")]
    Enable {
        /// Its name
        name: String,
    },
    /// Send a message to try a webhook out
    #[command(after_help = "Example:\n  registrar webhook ping portal")]
    Ping {
        /// Its name
        name: String,
    },
    /// List what was sent to a webhook, newest first
    #[command(after_help = "Example:\n  registrar webhook deliveries portal --status failed")]
    Deliveries {
        /// Its name
        name: String,
        /// Only those that stand so: pending, sending, delivered, failed
        #[arg(long)]
        status: Option<DeliveryStatus>,
        /// Only those with a smaller number
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=200))]
        limit: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send a delivery again, or every failed one
    #[command(after_help = "\
Examples:
  registrar webhook replay portal 81
  registrar webhook replay portal --failed")]
    Replay {
        /// Its name
        name: String,
        /// Number of the delivery
        #[arg(required_unless_present = "failed")]
        delivery: Option<i64>,
        /// Every failed one
        #[arg(long, conflicts_with = "delivery")]
        failed: bool,
    },
}

#[derive(Debug, Args)]
struct Target {
    /// Where messages go
    #[arg(long)]
    url: String,
    /// A type of event, like execution.completed; may be repeated
    #[arg(long = "event", value_name = "TYPE", required = true)]
    events: Vec<EventType>,
}

impl Target {
    fn order(self) -> WebhookOrder {
        WebhookOrder { url: self.url, events: self.events }
    }
}

/// Runs `registrar webhook`.
///
/// # Errors
/// Settings or database cannot be used, or there is no such webhook.
pub async fn run(command: WebhookCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    let caller = operator();
    let of = |name: &str| format!("webhook `{name}`");
    match command.verb {
        WebhookVerb::Create { name, target } => {
            let made = services.create_webhook(&caller, &name, target.order()).await;
            reveal(made.with_context(|| of(name.as_str()))?)?;
        }
        WebhookVerb::List { json: as_json } => {
            let webhooks = services.list_webhooks(&caller).await?;
            if as_json { say_json(&webhooks)? } else { list(&webhooks)? }
        }
        WebhookVerb::Update { name, target } => {
            let changed = services.update_webhook(&caller, &name, target.order()).await;
            let webhook = changed.with_context(|| of(&name))?;
            note(format!("{name} gets {} at {}.", webhook.events.join(", "), webhook.url));
        }
        WebhookVerb::Delete { name } => {
            services.delete_webhook(&caller, &name).await.with_context(|| of(&name))?;
            note(format!("{name} is deleted."));
        }
        WebhookVerb::Rotate { name } => {
            let made = services.rotate_webhook_secret(&caller, &name).await;
            reveal(made.with_context(|| of(&name))?)?;
        }
        WebhookVerb::Disable { name } => {
            services.disable_webhook(&caller, &name).await.with_context(|| of(&name))?;
            note(format!("{name} is disabled."));
        }
        WebhookVerb::Enable { name } => {
            services.enable_webhook(&caller, &name).await.with_context(|| of(&name))?;
            note(format!("{name} is enabled; `webhook replay {name} --failed` sends the rest."));
        }
        WebhookVerb::Ping { name } => {
            let id = services.ping_webhook(&caller, &name).await.with_context(|| of(&name))?;
            note(format!("{name} gets a ping; delivery:"));
            say(id)?;
        }
        WebhookVerb::Deliveries { name, status, before, limit, json: as_json } => {
            let filter = DeliveryFilter { status, before, limit };
            let found = services.list_deliveries(&caller, &name, filter).await;
            let found = found.with_context(|| of(&name))?;
            if as_json { say_json(&found)? } else { list_deliveries(&found)? }
        }
        WebhookVerb::Replay { name, delivery, failed: _ } => {
            let replayed = services.replay_deliveries(&caller, &name, delivery).await;
            let replayed = replayed.with_context(|| of(&name))?;
            note(format!("{replayed} deliveries are on their way again."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn reveal(WebhookWithSecret { webhook, secret }: WebhookWithSecret) -> anyhow::Result<()> {
    note(format!("Keep this secret of {}: it cannot be shown again.", webhook.name));
    say(secret)
}

fn time(at: Option<DateTime<Utc>>) -> String {
    at.map(|at| at.format("%F %TZ").to_string()).unwrap_or_default()
}

fn list(webhooks: &[Webhook]) -> anyhow::Result<()> {
    let rows: Vec<_> = webhooks
        .iter()
        .map(|webhook| {
            let state = match (&webhook.disabled_reason, webhook.failing_since) {
                (Some(reason), _) => format!("disabled ({reason})"),
                (None, Some(since)) => format!("failing since {}", time(Some(since))),
                (None, None) => "active".to_owned(),
            };
            vec![webhook.name.clone(), webhook.url.clone(), webhook.events.join(","), state]
        })
        .collect();
    table(&["WEBHOOK", "URL", "EVENTS", "STATE"], &rows)
}

fn list_deliveries(deliveries: &[Delivery]) -> anyhow::Result<()> {
    let rows: Vec<_> = deliveries
        .iter()
        .map(|delivery| {
            vec![
                delivery.id.to_string(),
                delivery.event_type.clone(),
                time(Some(delivery.occurred_at)),
                delivery.status.to_string(),
                delivery.attempt.to_string(),
                delivery.http_status.map(|status| status.to_string()).unwrap_or_default(),
                delivery.error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["ID", "EVENT", "HAPPENED", "STATUS", "ATTEMPTS", "ANSWER", "ERROR"], &rows)
}
