//! `outbox_events` and `outbox_deliveries`: the outbox, and what became of each message.
//!
//! A delivery goes `pending → sending → delivered | failed`, and from `sending` back to `pending`
//! for another try. Each arrow is one statement, guarded by the state and, where a worker acts, by
//! its attempt.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::webhooks::Sealed;

/// Attempts at a delivery before it is given up.
pub const MAX_ATTEMPTS: usize = 10;

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// It waits for its next attempt.
    Pending,
    /// A worker is sending it.
    Sending,
    /// The receiver took it.
    Delivered,
    /// It was given up; it can be replayed.
    Failed,
}

impl DeliveryStatus {
    const ALL: [Self; 4] = [Self::Pending, Self::Sending, Self::Delivered, Self::Failed];

    /// As stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for DeliveryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a status.
#[derive(Debug, Clone, thiserror::Error)]
#[error("must be `pending`, `sending`, `delivered` or `failed`")]
pub struct BadDeliveryStatus;

impl FromStr for DeliveryStatus {
    type Err = BadDeliveryStatus;

    fn from_str(text: &str) -> Result<Self, BadDeliveryStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(BadDeliveryStatus)
    }
}

/// A delivery, as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Delivery {
    /// Its number.
    pub id: i64,
    /// The event.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// What it tells.
    pub data: Value,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// Where the delivery stands.
    pub status: DeliveryStatus,
    /// Attempts so far.
    pub attempt: i32,
    /// When it is tried next, if it waits.
    pub next_attempt_at: DateTime<Utc>,
    /// When it was tried last.
    pub attempted_at: Option<DateTime<Utc>>,
    /// What the receiver answered then.
    pub http_status: Option<i16>,
    /// Why it did not arrive.
    pub error: Option<String>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// An attempt that this process makes.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ClaimedDelivery {
    /// The delivery.
    pub id: i64,
    /// The attempt: what settles must name it.
    pub attempt: i32,
    /// Attempts before this one that did not arrive.
    pub failed_attempts: i32,
    /// The event.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// What it tells.
    pub data: Value,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// Seconds since the epoch.
    pub now_epoch: i64,
    /// The webhook.
    pub webhook_id: i64,
    /// Its name.
    pub webhook: String,
    /// Where to.
    pub url: String,
    key_id: String,
    secret_sealed: Vec<u8>,
    previous_key_id: Option<String>,
    previous_sealed: Option<Vec<u8>>,
}

impl ClaimedDelivery {
    /// The secrets to sign with, the newest first.
    pub fn secrets(&self) -> Vec<Sealed> {
        let newest = Sealed { key_id: self.key_id.clone(), bytes: self.secret_sealed.clone() };
        let previous = self.previous_key_id.clone().zip(self.previous_sealed.clone());
        let previous = previous.map(|(key_id, bytes)| Sealed { key_id, bytes });
        std::iter::once(newest).chain(previous).collect()
    }
}

/// Stores an event where no row of ours changes: the others are stored by triggers (0017).
///
/// # Errors
/// The database's.
pub async fn publish(
    connection: &mut PgConnection,
    event_type: &str,
    data: &Value,
) -> Result<(), sqlx::Error> {
    sqlx::query("select publish_event($1, $2)")
        .bind(event_type)
        .bind(data)
        .execute(connection)
        .await?;
    Ok(())
}

/// Stores an event for one webhook, whatever it asked for, and returns the delivery.
///
/// # Errors
/// The database's.
pub async fn publish_to(
    connection: &mut PgConnection,
    webhook_id: i64,
    event_type: &str,
    data: &Value,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "with event as (
            insert into outbox_events (type, data) values ($2, $3) returning id)
         insert into outbox_deliveries (event_id, webhook_id)
         select id, $1 from event
         returning id",
    )
    .bind(webhook_id)
    .bind(event_type)
    .bind(data)
    .fetch_one(connection)
    .await
}

/// Chooses deliveries that are due and have no ticket on its way, the oldest of each webhook first,
/// and notes that they get one. A webhook has at most `per_webhook` on their way, so that one that
/// does not answer keeps no other waiting.
///
/// # Errors
/// The database's.
pub async fn take_due(
    connection: &mut PgConnection,
    ticket_secs: i32,
    per_webhook: i64,
    limit: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "update outbox_deliveries d
            set ticket_at = now()
           from (select due.id
                   from webhooks w
                  cross join lateral (
                        select p.id
                          from outbox_deliveries p
                         where p.webhook_id = w.id and p.status = 'pending'
                           and p.next_attempt_at <= now()
                           and (p.ticket_at is null
                                or p.ticket_at < now() - make_interval(secs => $1))
                         order by p.next_attempt_at, p.id
                         limit greatest(0, $2 - (
                               select count(*)
                                 from outbox_deliveries f
                                where f.webhook_id = w.id
                                  and (f.status = 'sending'
                                       or (f.status = 'pending'
                                           and f.ticket_at >= now() - make_interval(secs => $1)))))
                           for update skip locked) due
                  where w.disabled_at is null
                  limit $3) chosen
          where d.id = chosen.id
         returning d.id",
    )
    .bind(f64::from(ticket_secs))
    .bind(per_webhook)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// sending → pending, of attempts whose worker is gone: they count as failed, and after
/// [`MAX_ATTEMPTS`] of them the delivery has. Whether the receiver has the message nobody knows; it
/// gets it again, under the same id.
///
/// # Errors
/// The database's.
pub async fn take_back(connection: &mut PgConnection, limit: i64) -> Result<u64, sqlx::Error> {
    let taken = sqlx::query(
        "update outbox_deliveries d
            set status = case when d.failed_attempts + 1 < $2 then 'pending' else 'failed' end,
                ended_at = case when d.failed_attempts + 1 < $2 then null else now() end,
                failed_attempts = d.failed_attempts + 1, error = 'worker_lost',
                next_attempt_at = now(), ticket_at = null, lease_owner = null, lease_until = null
           from (select id from outbox_deliveries
                  where status = 'sending' and lease_until < now()
                  order by lease_until
                  limit $1
                  for update skip locked) lost
          where d.id = lost.id",
    )
    .bind(limit)
    .bind(i32::try_from(MAX_ATTEMPTS).unwrap_or(i32::MAX))
    .execute(connection)
    .await?;
    Ok(taken.rows_affected())
}

/// pending → sending, for the next attempt. `None`: it is not due, somebody else has it, or its
/// webhook is disabled.
///
/// # Errors
/// The database's.
pub async fn claim(
    pool: &PgPool,
    id: i64,
    owner: &str,
    lease_secs: i32,
) -> Result<Option<ClaimedDelivery>, sqlx::Error> {
    sqlx::query_as(
        "update outbox_deliveries d
            set status = 'sending', attempt = d.attempt + 1, attempted_at = now(),
                lease_owner = $2, lease_until = now() + make_interval(secs => $3)
           from webhooks w, outbox_events e
          where d.id = $1 and d.status = 'pending' and d.next_attempt_at <= now()
            and w.id = d.webhook_id and w.disabled_at is null and e.id = d.event_id
         returning d.id, d.attempt, d.failed_attempts, e.id as event_id, e.type as event_type,
                   e.data, e.occurred_at, extract(epoch from now())::bigint as now_epoch,
                   w.id as webhook_id, w.name as webhook, w.url, w.key_id, w.secret_sealed,
                   case when w.previous_until > now() then w.previous_key_id end
                        as previous_key_id,
                   case when w.previous_until > now() then w.previous_sealed end
                        as previous_sealed",
    )
    .bind(id)
    .bind(owner)
    .bind(f64::from(lease_secs))
    .fetch_optional(pool)
    .await
}

/// sending → delivered. `false`: the attempt is not the current one.
///
/// # Errors
/// The database's.
pub async fn deliver(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    http_status: Option<i16>,
) -> Result<bool, sqlx::Error> {
    let delivered = sqlx::query(
        "update outbox_deliveries
            set status = 'delivered', http_status = $3, error = null, ended_at = now(),
                lease_owner = null, lease_until = null, ticket_at = null
          where id = $1 and attempt = $2 and status = 'sending'",
    )
    .bind(id)
    .bind(attempt)
    .bind(http_status)
    .execute(connection)
    .await?;
    Ok(delivered.rows_affected() == 1)
}

/// sending → pending, for another attempt after a pause. `false`: the attempt is not the current
/// one.
///
/// # Errors
/// The database's.
pub async fn retry_later(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    error: &str,
    http_status: Option<i16>,
    pause_secs: f64,
) -> Result<bool, sqlx::Error> {
    let retried = sqlx::query(
        "update outbox_deliveries
            set status = 'pending', failed_attempts = failed_attempts + 1, error = $3,
                http_status = $4, next_attempt_at = now() + make_interval(secs => $5),
                lease_owner = null, lease_until = null, ticket_at = null
          where id = $1 and attempt = $2 and status = 'sending'",
    )
    .bind(id)
    .bind(attempt)
    .bind(error)
    .bind(http_status)
    .bind(pause_secs)
    .execute(connection)
    .await?;
    Ok(retried.rows_affected() == 1)
}

/// sending → failed, for good. `false`: the attempt is not the current one.
///
/// # Errors
/// The database's.
pub async fn give_up(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    error: &str,
    http_status: Option<i16>,
) -> Result<bool, sqlx::Error> {
    let failed = sqlx::query(
        "update outbox_deliveries
            set status = 'failed', failed_attempts = failed_attempts + 1, error = $3,
                http_status = $4, ended_at = now(), lease_owner = null, lease_until = null,
                ticket_at = null
          where id = $1 and attempt = $2 and status = 'sending'",
    )
    .bind(id)
    .bind(attempt)
    .bind(error)
    .bind(http_status)
    .execute(connection)
    .await?;
    Ok(failed.rows_affected() == 1)
}

/// pending → failed, of everything that waits for a webhook that was disabled.
///
/// # Errors
/// The database's.
pub async fn fail_waiting(
    connection: &mut PgConnection,
    webhook_id: i64,
) -> Result<u64, sqlx::Error> {
    let failed = sqlx::query(
        "update outbox_deliveries
            set status = 'failed', error = 'webhook_disabled', ended_at = now(), ticket_at = null
          where webhook_id = $1 and status = 'pending'",
    )
    .bind(webhook_id)
    .execute(connection)
    .await?;
    Ok(failed.rows_affected())
}

/// Where the delivery of this number stands, if the webhook has it.
///
/// # Errors
/// The database's.
pub async fn status(
    connection: &mut PgConnection,
    webhook_id: i64,
    id: i64,
) -> Result<Option<DeliveryStatus>, sqlx::Error> {
    sqlx::query_scalar(
        "select status::text from outbox_deliveries where id = $2 and webhook_id = $1",
    )
    .bind(webhook_id)
    .bind(id)
    .fetch_optional(connection)
    .await
}

/// delivered or failed → pending, with all attempts before it: one delivery, or every failed one of
/// the webhook, at most `limit`, the oldest first. Returns how many.
///
/// # Errors
/// The database's.
pub async fn replay(
    connection: &mut PgConnection,
    webhook_id: i64,
    id: Option<i64>,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let replayed = sqlx::query(
        "update outbox_deliveries d
            set status = 'pending', failed_attempts = 0, next_attempt_at = now(), ended_at = null,
                ticket_at = null
           from (select id
                   from outbox_deliveries
                  where webhook_id = $1
                    and case when $2::bigint is null then status = 'failed'
                             else id = $2 and status in ('delivered', 'failed') end
                  order by id
                  limit $3
                  for update skip locked) chosen
          where d.id = chosen.id",
    )
    .bind(webhook_id)
    .bind(id)
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(replayed.rows_affected())
}

/// Deliveries of a webhook, newest first, those before `before` and in `status`.
///
/// # Errors
/// The database's.
pub async fn list(
    connection: &mut PgConnection,
    webhook_id: i64,
    status: Option<DeliveryStatus>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Delivery>, sqlx::Error> {
    sqlx::query_as(
        "select d.id, d.event_id, e.type as event_type, e.data, e.occurred_at,
                d.status::text as status, d.attempt, d.next_attempt_at, d.attempted_at,
                d.http_status, d.error, d.ended_at
           from outbox_deliveries d
           join outbox_events e on e.id = d.event_id
          where d.webhook_id = $1
            and ($2::text is null or d.status = $2)
            and ($3::bigint is null or d.id < $3)
          order by d.id desc
          limit $4",
    )
    .bind(webhook_id)
    .bind(status.map(DeliveryStatus::as_str))
    .bind(before)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Forgets at most `limit` events older than `days` that wait for nobody, with their deliveries.
///
/// # Errors
/// The database's.
pub async fn forget_old(pool: &PgPool, days: i32, limit: i64) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "delete from outbox_events
          where id in (select e.id
                         from outbox_events e
                        where e.occurred_at < now() - make_interval(days => $1)
                          and not exists (select from outbox_deliveries d
                                           where d.event_id = e.id
                                             and d.status in ('pending', 'sending'))
                          -- Until the copy is deleted, this is what knows of it.
                          and not exists (select from outbox_deliveries d
                                            join report_executions x on x.id = d.execution_id
                                           where d.event_id = e.id and d.channel = 'copy'
                                             and x.status = 'completed')
                        order by e.occurred_at
                        limit $2)",
    )
    .bind(days)
    .bind(limit)
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
