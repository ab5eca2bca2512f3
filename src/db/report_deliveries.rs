//! `outbox_deliveries` of scheduled reports: mails and copies. Their ends and retries are those of
//! messages to webhooks, see [`super::deliveries`].

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::deliveries::DeliveryStatus;

/// How a result is brought to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Channel {
    /// A message to a webhook.
    Webhook,
    /// A mail to the owner.
    Email,
    /// A copy in the store.
    Copy,
}

impl Channel {
    /// As stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Email => "email",
            Self::Copy => "copy",
        }
    }
}

/// An occurrence whose outcome nobody was told of.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Ended {
    /// The schedule.
    pub schedule: String,
    /// When it was due.
    pub due_at: DateTime<Utc>,
    /// Why nothing was started.
    pub reason: Option<String>,
    /// What was started.
    pub execution_id: Option<i64>,
    /// How that ended.
    pub execution_status: Option<String>,
    /// Why it failed.
    pub error_code: Option<String>,
    /// Rows of the result.
    pub row_count: Option<i64>,
    /// Size of the result.
    pub size_bytes: Option<i64>,
}

/// Whose result is delivered.
#[derive(Debug, Clone)]
pub struct Source {
    /// The schedule.
    pub schedule: String,
    /// Its owner.
    pub owner_id: i32,
    /// The execution, if there is one.
    pub execution_id: Option<i64>,
}

/// An attempt that this process makes.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ClaimedReport {
    /// The delivery.
    pub id: i64,
    /// The attempt: what settles must name it.
    pub attempt: i32,
    /// Attempts before this one that did not arrive.
    pub failed_attempts: i32,
    /// How.
    pub channel: Channel,
    /// The event.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// What it tells.
    pub data: Value,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// The schedule.
    pub schedule: String,
    /// Its owner.
    pub owner_id: i32,
    /// The execution, if there is one.
    pub execution_id: Option<i64>,
    /// Whether the file comes with the mail.
    pub attach: bool,
    /// Where the copy goes.
    pub copy_to: Option<String>,
}

impl ClaimedReport {
    /// Whose result it is.
    pub fn source(&self) -> Source {
        let Self { schedule, owner_id, execution_id, .. } = self;
        Source { schedule: schedule.clone(), owner_id: *owner_id, execution_id: *execution_id }
    }
}

/// A delivery, as a schedule shows it.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct ReportDelivery {
    /// When the occurrence was due, as the event has it.
    pub due_at: DateTime<Utc>,
    /// How.
    pub channel: Channel,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// Why it did not arrive.
    pub error: Option<String>,
}

/// Takes, for this transaction, occurrences that have ended and whose owner was not told, the
/// oldest first: those that could start nothing, and those whose execution has ended or is gone.
///
/// # Errors
/// The database's.
pub async fn take_ended(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Ended>, sqlx::Error> {
    sqlx::query_as(
        "update schedule_occurrences o
            set delivery = 'started'
           from (select w.schedule, w.due_at, e.status::text as execution_status,
                        e.error_code::text as error_code, e.row_count, e.size_bytes
                   from schedule_occurrences w
                   left join report_executions e on e.id = w.execution_id
                  where w.delivery = 'waiting'
                    and (e.status is null
                         or e.status in ('completed', 'failed', 'cancelled', 'expired'))
                  order by w.due_at
                  limit $1
                  for update of w skip locked) ended
          where o.schedule = ended.schedule and o.due_at = ended.due_at
         returning o.schedule, o.due_at, o.reason, o.execution_id, ended.execution_status,
                   ended.error_code, ended.row_count, ended.size_bytes",
    )
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Stores an event for the webhook of this name and for whoever asked for its type; `wanted` says
/// that there are other deliveries. `None`: nobody waits for it, and nothing was stored.
///
/// # Errors
/// The database's.
pub async fn publish(
    connection: &mut PgConnection,
    event_type: &str,
    data: &Value,
    webhook: Option<&str>,
    wanted: bool,
) -> Result<Option<Uuid>, sqlx::Error> {
    let event: Option<Uuid> = sqlx::query_scalar(
        "insert into outbox_events (type, data)
         select $1, $2
          where $4 or exists (select from webhooks where $1 = any (events) or name = $3)
         returning id",
    )
    .bind(event_type)
    .bind(data)
    .bind(webhook)
    .bind(wanted)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(event) = event else { return Ok(None) };
    sqlx::query(
        "insert into outbox_deliveries (event_id, webhook_id, schedule, status, error, ended_at)
         select $1, w.id, $3,
                case when w.disabled_at is null then 'pending' else 'failed' end,
                case when w.disabled_at is not null then 'webhook_disabled' end,
                case when w.disabled_at is not null then now() end
           from webhooks w
          where $2 = any (w.events) or w.name = $4",
    )
    .bind(event)
    .bind(event_type)
    .bind(data["schedule"].as_str())
    .bind(webhook)
    .execute(connection)
    .await?;
    Ok(Some(event))
}

/// Adds a mail to the owner.
///
/// # Errors
/// The database's.
pub async fn add_email(
    connection: &mut PgConnection,
    event: Uuid,
    source: &Source,
    attach: bool,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into outbox_deliveries
                (event_id, channel, schedule, owner_id, execution_id, attach)
         values ($1, 'email', $2, $3, $4, $5)",
    )
    .bind(event)
    .bind(&source.schedule)
    .bind(source.owner_id)
    .bind(source.execution_id)
    .bind(attach)
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds a copy in the store.
///
/// # Errors
/// The database's.
pub async fn add_copy(
    connection: &mut PgConnection,
    event: Uuid,
    source: &Source,
    folder: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into outbox_deliveries
                (event_id, channel, schedule, owner_id, execution_id, copy_to)
         values ($1, 'copy', $2, $3, $4, $5)",
    )
    .bind(event)
    .bind(&source.schedule)
    .bind(source.owner_id)
    .bind(source.execution_id)
    .bind(folder)
    .execute(connection)
    .await?;
    Ok(())
}

/// Chooses mails and copies that are due and have no ticket on its way, the oldest first, and notes
/// that they get one.
///
/// # Errors
/// The database's.
pub async fn take_due(
    connection: &mut PgConnection,
    ticket_secs: i32,
    limit: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "update outbox_deliveries d
            set ticket_at = now()
           from (select id
                   from outbox_deliveries
                  where status = 'pending' and webhook_id is null and next_attempt_at <= now()
                    and (ticket_at is null or ticket_at < now() - make_interval(secs => $1))
                  order by next_attempt_at, id
                  limit $2
                  for update skip locked) due
          where d.id = due.id
         returning d.id",
    )
    .bind(f64::from(ticket_secs))
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// pending → sending, for the next attempt. `None`: it is not due, somebody else has it, or it is a
/// message to a webhook.
///
/// # Errors
/// The database's.
pub async fn claim(
    pool: &PgPool,
    id: i64,
    owner: &str,
    lease_secs: i32,
) -> Result<Option<ClaimedReport>, sqlx::Error> {
    sqlx::query_as(
        "update outbox_deliveries d
            set status = 'sending', attempt = d.attempt + 1, attempted_at = now(),
                lease_owner = $2, lease_until = now() + make_interval(secs => $3)
           from outbox_events e
          where d.id = $1 and d.status = 'pending' and d.next_attempt_at <= now()
            and d.webhook_id is null and e.id = d.event_id
         returning d.id, d.attempt, d.failed_attempts, d.channel::text as channel,
                   e.id as event_id, e.type as event_type, e.data, e.occurred_at,
                   coalesce(d.schedule, '') as schedule, d.owner_id, d.execution_id, d.attach,
                   d.copy_to",
    )
    .bind(id)
    .bind(owner)
    .bind(f64::from(lease_secs))
    .fetch_optional(pool)
    .await
}

/// The folders in which there are copies of an execution's result, or may be.
///
/// # Errors
/// The database's.
pub async fn copies_of(pool: &PgPool, execution_id: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select distinct copy_to
           from outbox_deliveries
          where channel = 'copy' and execution_id = $1 and copy_to is not null",
    )
    .bind(execution_id)
    .fetch_all(pool)
    .await
}

/// Those of these executions that have a result.
///
/// # Errors
/// The database's.
pub async fn completed_among(pool: &PgPool, executions: &[i64]) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select id from report_executions where id = any ($1) and status = 'completed'",
    )
    .bind(executions)
    .fetch_all(pool)
    .await
}

/// What was delivered of a schedule, newest first.
///
/// # Errors
/// The database's.
pub async fn of_schedule(
    connection: &mut PgConnection,
    schedule: &str,
    limit: i64,
) -> Result<Vec<ReportDelivery>, sqlx::Error> {
    sqlx::query_as(
        "select (e.data ->> 'due_at')::timestamptz as due_at, d.channel::text as channel,
                d.status::text as status, d.error
           from outbox_deliveries d
           join outbox_events e on e.id = d.event_id
          where d.schedule = $1 and e.data ? 'due_at'
          order by d.id desc
          limit $2",
    )
    .bind(schedule)
    .bind(limit)
    .fetch_all(connection)
    .await
}
