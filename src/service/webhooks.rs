//! Webhooks: who is told of events, and what became of each message.
//!
//! Events are stored by the database in the transaction of the change they tell of (0017); here is
//! who gets them. A message holds numbers, slugs and codes, never parameters, names or rows:
//! whoever gets it asks the API for more, with rights of their own.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};
use sqlx::{PgConnection, Postgres, Transaction};

use super::{Caller, MAX_PAGE, Permission, ServiceError, Services};
use crate::db::audit;
use crate::db::deliveries::{self, Delivery, DeliveryStatus};
use crate::db::schedules::ScheduleName;
use crate::db::webhooks::{self, Sealed, Webhook};
use crate::notify::Secret;
use crate::notify::address::Guard;

/// Most webhooks of an installation: each event is stored once for each that asked for it.
const MAX_WEBHOOKS: i64 = 100;
/// Most deliveries that are replayed at once.
pub const MAX_REPLAYED: i64 = 10_000;

/// What webhooks can ask to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// An execution has its result.
    ExecutionCompleted,
    /// An execution failed for good.
    ExecutionFailed,
    /// An execution was cancelled.
    ExecutionCancelled,
    /// The result of an execution was deleted at its time.
    ExecutionExpired,
    /// A run of a policy completed, failed or was cancelled.
    RunFinished,
    /// A run of a policy waits for an approval.
    RunNeedsApproval,
    /// A backup was proven good.
    BackupVerified,
    /// A backup could not be made or proven, or is bad.
    BackupFailed,
    /// What a schedule started has its result.
    ScheduleCompleted,
    /// What a schedule started failed or was cancelled, or it could start nothing.
    ScheduleFailed,
    /// A mail or a copy of a scheduled report was given up.
    ScheduleDeliveryFailed,
    /// Another webhook was disabled, because it does not take messages.
    WebhookDisabled,
    /// Sent by hand, to try a webhook out.
    WebhookPing,
}

impl EventType {
    /// All.
    pub const ALL: [Self; 13] = [
        Self::ExecutionCompleted,
        Self::ExecutionFailed,
        Self::ExecutionCancelled,
        Self::ExecutionExpired,
        Self::RunFinished,
        Self::RunNeedsApproval,
        Self::BackupVerified,
        Self::BackupFailed,
        Self::ScheduleCompleted,
        Self::ScheduleFailed,
        Self::ScheduleDeliveryFailed,
        Self::WebhookDisabled,
        Self::WebhookPing,
    ];

    /// As stored and sent. The triggers of 0017 write the same.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExecutionCompleted => "execution.completed",
            Self::ExecutionFailed => "execution.failed",
            Self::ExecutionCancelled => "execution.cancelled",
            Self::ExecutionExpired => "execution.expired",
            Self::RunFinished => "run.finished",
            Self::RunNeedsApproval => "run.needs_approval",
            Self::BackupVerified => "backup.verified",
            Self::BackupFailed => "backup.failed",
            Self::ScheduleCompleted => "schedule.completed",
            Self::ScheduleFailed => "schedule.failed",
            Self::ScheduleDeliveryFailed => "schedule.delivery_failed",
            Self::WebhookDisabled => "webhook.disabled",
            Self::WebhookPing => "webhook.ping",
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a type of event.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "must be one of execution.completed, execution.failed, execution.cancelled, \
         execution.expired, run.finished, run.needs_approval, backup.verified, backup.failed, \
         schedule.completed, schedule.failed, schedule.delivery_failed, \
         webhook.disabled, webhook.ping"
)]
pub struct BadEventType;

impl FromStr for EventType {
    type Err = BadEventType;

    fn from_str(text: &str) -> Result<Self, BadEventType> {
        Self::ALL.into_iter().find(|event| event.as_str() == text).ok_or(BadEventType)
    }
}

impl utoipa::PartialSchema for EventType {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("Type of an event."))
            .enum_values(Some(Self::ALL.map(Self::as_str)))
            .into()
    }
}

impl utoipa::ToSchema for EventType {}

/// Where messages go, and which.
#[derive(Debug, Clone)]
pub struct WebhookOrder {
    /// Where to.
    pub url: String,
    /// Types of events.
    pub events: Vec<EventType>,
}

/// A webhook with its secret, which can be read this once.
#[derive(Debug)]
pub struct WebhookWithSecret {
    /// The webhook.
    pub webhook: Webhook,
    /// `whsec_…`
    pub secret: String,
}

/// Which deliveries are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeliveryFilter {
    /// Only those that stand so.
    pub status: Option<DeliveryStatus>,
    /// Only those with a smaller number.
    pub before: Option<i64>,
    /// At most so many; [`MAX_PAGE`] at most.
    pub limit: i64,
}

impl Services {
    /// Stores a webhook, and makes its secret.
    ///
    /// # Errors
    /// Forbidden, [`ServiceError::BadField`]; [`ServiceError::Refused`] where no key is set.
    pub async fn create_webhook(
        &self,
        caller: &Caller,
        name: &ScheduleName,
        order: WebhookOrder,
    ) -> Result<WebhookWithSecret, ServiceError> {
        caller.require(Permission::WebhooksManage)?;
        let (url, events) = self.check_order(order)?;
        let (secret, sealed) = self.new_secret(name.as_str())?;
        let mut tx = self.db.begin().await?;
        if webhooks::count(&mut tx).await? >= MAX_WEBHOOKS {
            let expected = format!("is one too many: there may be {MAX_WEBHOOKS} webhooks");
            return Err(ServiceError::BadField { field: "/name", expected });
        }
        if !webhooks::insert(&mut tx, name.as_str(), &url, &events, &sealed).await? {
            let expected = "must be new: another webhook has this name".to_owned();
            return Err(ServiceError::BadField { field: "/name", expected });
        }
        let webhook = find(&mut tx, name.as_str()).await?;
        record(&mut tx, caller, "webhook.created", &webhook, json!({ "events": events })).await?;
        tx.commit().await?;
        Ok(WebhookWithSecret { webhook, secret: secret.reveal() })
    }

    /// All webhooks, by name.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn list_webhooks(&self, caller: &Caller) -> Result<Vec<Webhook>, ServiceError> {
        caller.require(Permission::WebhooksManage)?;
        Ok(webhooks::list(&self.db).await?)
    }

    /// A webhook.
    ///
    /// # Errors
    /// Forbidden, not found.
    pub async fn show_webhook(&self, caller: &Caller, name: &str) -> Result<Webhook, ServiceError> {
        caller.require(Permission::WebhooksManage)?;
        find(&mut *self.db.acquire().await?, name).await
    }

    /// Changes where messages go and which; the secret stays.
    ///
    /// # Errors
    /// Forbidden, not found, [`ServiceError::BadField`].
    pub async fn update_webhook(
        &self,
        caller: &Caller,
        name: &str,
        order: WebhookOrder,
    ) -> Result<Webhook, ServiceError> {
        let (mut tx, webhook) = self.begin_webhook(caller, name).await?;
        let (url, events) = self.check_order(order)?;
        webhooks::update(&mut tx, webhook.id, &url, &events).await?;
        record(&mut tx, caller, "webhook.updated", &webhook, json!({ "events": events })).await?;
        commit_webhook(tx, name).await
    }

    /// Deletes a webhook, with what was delivered to it, and answers with what it was.
    ///
    /// # Errors
    /// Forbidden, not found.
    pub async fn delete_webhook(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Webhook, ServiceError> {
        let (mut tx, webhook) = self.begin_webhook(caller, name).await?;
        if webhooks::delete(&mut tx, webhook.id).await? {
            record(&mut tx, caller, "webhook.deleted", &webhook, json!({})).await?;
        }
        tx.commit().await?;
        Ok(webhook)
    }

    /// Makes a new secret. Messages are signed with the one before too, for
    /// `webhook.rotation_hours`.
    ///
    /// # Errors
    /// Forbidden, not found; [`ServiceError::Refused`] where no key is set.
    pub async fn rotate_webhook_secret(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<WebhookWithSecret, ServiceError> {
        let (mut tx, webhook) = self.begin_webhook(caller, name).await?;
        let (secret, sealed) = self.new_secret(name)?;
        let hours = i32::from(self.config.webhook.rotation_hours.get());
        webhooks::rotate(&mut tx, webhook.id, &sealed, hours).await?;
        record(&mut tx, caller, "webhook.secret_rotated", &webhook, json!({})).await?;
        let webhook = commit_webhook(tx, name).await?;
        Ok(WebhookWithSecret { webhook, secret: secret.reveal() })
    }

    /// Disables a webhook: what waits for it, and what happens meanwhile, is stored as failed and
    /// can be replayed. One that is disabled stays so.
    ///
    /// # Errors
    /// Forbidden, not found.
    pub async fn disable_webhook(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Webhook, ServiceError> {
        let (mut tx, webhook) = self.begin_webhook(caller, name).await?;
        if webhooks::disable(&mut tx, webhook.id, "by_hand").await? {
            deliveries::fail_waiting(&mut tx, webhook.id).await?;
            record(&mut tx, caller, "webhook.disabled", &webhook, json!({})).await?;
        }
        commit_webhook(tx, name).await
    }

    /// Enables a webhook. What happened meanwhile is not sent by itself: see
    /// [`Services::replay_deliveries`].
    ///
    /// # Errors
    /// Forbidden, not found.
    pub async fn enable_webhook(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Webhook, ServiceError> {
        let (mut tx, webhook) = self.begin_webhook(caller, name).await?;
        if webhooks::enable(&mut tx, webhook.id).await? {
            record(&mut tx, caller, "webhook.enabled", &webhook, json!({})).await?;
        }
        commit_webhook(tx, name).await
    }

    /// Sends a message to try a webhook out, and returns the delivery's number.
    ///
    /// # Errors
    /// Forbidden, not found; [`ServiceError::Refused`] for one that is disabled.
    pub async fn ping_webhook(&self, caller: &Caller, name: &str) -> Result<i64, ServiceError> {
        let (mut tx, webhook) = self.begin_webhook(caller, name).await?;
        require_enabled(&webhook)?;
        let ping = EventType::WebhookPing.as_str();
        let data = json!({ "webhook": webhook.name });
        let id = deliveries::publish_to(&mut tx, webhook.id, ping, &data).await?;
        record(&mut tx, caller, "webhook.pinged", &webhook, json!({ "delivery": id })).await?;
        tx.commit().await?;
        Ok(id)
    }

    /// Deliveries of a webhook, newest first.
    ///
    /// # Errors
    /// Forbidden, not found.
    pub async fn list_deliveries(
        &self,
        caller: &Caller,
        name: &str,
        filter: DeliveryFilter,
    ) -> Result<Vec<Delivery>, ServiceError> {
        caller.require(Permission::WebhooksManage)?;
        let mut connection = self.db.acquire().await?;
        let webhook = find(&mut connection, name).await?;
        let DeliveryFilter { status, before, limit } = filter;
        let limit = limit.clamp(1, MAX_PAGE);
        Ok(deliveries::list(&mut connection, webhook.id, status, before, limit).await?)
    }

    /// Sends a delivery again, or every failed one ([`MAX_REPLAYED`] at most): under the same ids.
    /// Returns how many.
    ///
    /// # Errors
    /// Forbidden, not found; [`ServiceError::Refused`] for a webhook that is disabled and for a
    /// delivery that is on its way.
    pub async fn replay_deliveries(
        &self,
        caller: &Caller,
        name: &str,
        delivery: Option<i64>,
    ) -> Result<u64, ServiceError> {
        let (mut tx, webhook) = self.begin_webhook(caller, name).await?;
        if let Some(id) = delivery {
            match deliveries::status(&mut tx, webhook.id, id).await? {
                None => return Err(ServiceError::NotFound { what: "delivery" }),
                Some(DeliveryStatus::Delivered | DeliveryStatus::Failed) => {}
                Some(status @ (DeliveryStatus::Pending | DeliveryStatus::Sending)) => {
                    let message = format!("the delivery is {status}: it is on its way");
                    return Err(ServiceError::refused("wrong_state", message));
                }
            }
        }
        require_enabled(&webhook)?;
        let replayed = deliveries::replay(&mut tx, webhook.id, delivery, MAX_REPLAYED).await?;
        let details = json!({ "delivery": delivery, "replayed": replayed });
        record(&mut tx, caller, "webhook.replayed", &webhook, details).await?;
        tx.commit().await?;
        Ok(replayed)
    }

    /// Opens secrets, for signing.
    ///
    /// # Errors
    /// [`ServiceError::Refused`]: the key is not set, or another one.
    pub fn open_secrets(&self, name: &str, sealed: &[Sealed]) -> Result<Vec<Secret>, ServiceError> {
        let keyring = self.keyring()?;
        let open = |sealed: &Sealed| {
            let bytes = keyring.open(&sealed.key_id, &about(name), &sealed.bytes)?;
            Secret::from_bytes(&bytes)
                .ok_or_else(|| ServiceError::Internal(anyhow::anyhow!("a secret of other length")))
        };
        sealed.iter().map(open).collect()
    }

    /// Disables a webhook that does not take messages, and tells whoever asked for that.
    ///
    /// # Errors
    /// The database's.
    pub async fn disable_failing_webhook(
        &self,
        connection: &mut PgConnection,
        id: i64,
        name: &str,
        reason: &'static str,
    ) -> Result<(), sqlx::Error> {
        if !webhooks::disable(connection, id, reason).await? {
            return Ok(());
        }
        let failed = deliveries::fail_waiting(connection, id).await?;
        let details = json!({ "webhook": name, "reason": reason });
        let event_type = EventType::WebhookDisabled.as_str();
        deliveries::publish(connection, event_type, &details).await?;
        let event = audit::Event {
            action: "webhook.disabled",
            entity_type: "webhooks",
            entity_id: Some(id),
            details,
        };
        audit::record(connection, &audit::Actor::system(), event).await?;
        metrics::counter!("registrar_webhooks_disabled_total", "reason" => reason).increment(1);
        tracing::warn!(webhook = name, reason, failed, "webhook {name} was disabled");
        Ok(())
    }

    async fn begin_webhook(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<(Transaction<'static, Postgres>, Webhook), ServiceError> {
        caller.require(Permission::WebhooksManage)?;
        let mut tx = self.db.begin().await?;
        let webhook = find(&mut tx, name).await?;
        Ok((tx, webhook))
    }

    fn check_order(&self, order: WebhookOrder) -> Result<(String, Vec<String>), ServiceError> {
        let WebhookOrder { url, events } = order;
        let config = &self.config.webhook;
        let url = Guard::new(&config.allow_networks, config.allow_http).read(&url).map_err(
            |expected| ServiceError::BadField { field: "/url", expected: expected.to_owned() },
        )?;
        if events.is_empty() {
            let expected = "must name at least one type of event".to_owned();
            return Err(ServiceError::BadField { field: "/events", expected });
        }
        // In the order of the list, each once.
        let chosen = EventType::ALL.into_iter().filter(|event| events.contains(event));
        Ok((url.into(), chosen.map(|event| event.to_string()).collect()))
    }

    fn new_secret(&self, name: &str) -> Result<(Secret, Sealed), ServiceError> {
        let keyring = self.keyring()?;
        let secret = Secret::generate()
            .ok_or_else(|| ServiceError::Internal(anyhow::anyhow!("no random bits")))?;
        let bytes = keyring.active().seal(&about(name), secret.as_bytes())?;
        Ok((secret, Sealed { key_id: keyring.active_id().to_owned(), bytes }))
    }
}

/// The document that is sent.
pub fn message_body(event_type: &str, occurred_at: &str, data: &Value) -> Vec<u8> {
    json!({ "type": event_type, "timestamp": occurred_at, "data": data }).to_string().into_bytes()
}

fn about(name: &str) -> String {
    format!("secret of webhook {name}")
}

fn require_enabled(webhook: &Webhook) -> Result<(), ServiceError> {
    match webhook.disabled_at {
        None => Ok(()),
        Some(_) => Err(ServiceError::refused(
            "webhook_disabled",
            format!("webhook `{}` is disabled: enable it first", webhook.name),
        )),
    }
}

async fn find(connection: &mut PgConnection, name: &str) -> Result<Webhook, ServiceError> {
    webhooks::find(connection, name).await?.ok_or(ServiceError::NotFound { what: "webhook" })
}

/// Commits what was changed, and answers with the webhook as it is now.
async fn commit_webhook(
    mut tx: Transaction<'static, Postgres>,
    name: &str,
) -> Result<Webhook, ServiceError> {
    let webhook = find(&mut tx, name).await?;
    tx.commit().await?;
    Ok(webhook)
}

async fn record(
    connection: &mut PgConnection,
    caller: &Caller,
    action: &str,
    webhook: &Webhook,
    mut details: Value,
) -> Result<(), sqlx::Error> {
    if let Value::Object(details) = &mut details {
        details.insert("webhook".to_owned(), webhook.name.clone().into());
        details.insert("trace_id".to_owned(), caller.trace_id.clone().into());
    }
    let entity_id = Some(webhook.id);
    let event = audit::Event { action, entity_type: "webhooks", entity_id, details };
    audit::record(connection, &caller.actor, event).await
}
