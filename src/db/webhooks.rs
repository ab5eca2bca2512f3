//! `webhooks`: who is told of events, and with which secrets.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};

/// A webhook. Its secrets are not in it: see [`Sealed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Webhook {
    /// Its number.
    pub id: i64,
    /// Its name in URLs.
    pub name: String,
    /// Where messages go.
    pub url: String,
    /// Types of events that it asked for.
    pub events: Vec<String>,
    /// Until when messages are signed with the secret before too.
    pub previous_until: Option<DateTime<Utc>>,
    /// Since when no message has arrived, though some were sent.
    pub failing_since: Option<DateTime<Utc>>,
    /// Since when it is disabled.
    pub disabled_at: Option<DateTime<Utc>>,
    /// Why: `by_hand`, `gone`, `failing`.
    pub disabled_reason: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A secret that only the key of this name opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Name of the key.
    pub key_id: String,
    /// What is sealed.
    pub bytes: Vec<u8>,
}

/// Columns of [`Webhook`].
macro_rules! select_webhooks {
    ($rest:literal) => {
        concat!(
            "select id, name, url, events, previous_until, failing_since, disabled_at,
                    disabled_reason, created_at
               from webhooks ",
            $rest
        )
    };
}

/// Stores a webhook. `false`: the name is taken.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    name: &str,
    url: &str,
    events: &[String],
    secret: &Sealed,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "insert into webhooks (name, url, events, key_id, secret_sealed)
         values ($1, $2, $3, $4, $5)
             on conflict (name) do nothing",
    )
    .bind(name)
    .bind(url)
    .bind(events)
    .bind(&secret.key_id)
    .bind(&secret.bytes)
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// How many there are.
///
/// # Errors
/// The database's.
pub async fn count(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select count(*) from webhooks").fetch_one(connection).await
}

/// A webhook by name.
///
/// # Errors
/// The database's.
pub async fn find(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<Webhook>, sqlx::Error> {
    sqlx::query_as(select_webhooks!("where name = $1")).bind(name).fetch_optional(connection).await
}

/// All, by name; how many there can be is bounded where they are made.
///
/// # Errors
/// The database's.
pub async fn list(pool: &PgPool) -> Result<Vec<Webhook>, sqlx::Error> {
    sqlx::query_as(select_webhooks!("order by name")).fetch_all(pool).await
}

/// Changes where messages go and which. `false`: it is gone.
///
/// # Errors
/// The database's.
pub async fn update(
    connection: &mut PgConnection,
    id: i64,
    url: &str,
    events: &[String],
) -> Result<bool, sqlx::Error> {
    let updated = sqlx::query("update webhooks set url = $2, events = $3 where id = $1")
        .bind(id)
        .bind(url)
        .bind(events)
        .execute(connection)
        .await?;
    Ok(updated.rows_affected() == 1)
}

/// Puts a new secret in the place of the one before, which signs too for `hours` more. `false`: the
/// webhook is gone.
///
/// # Errors
/// The database's.
pub async fn rotate(
    connection: &mut PgConnection,
    id: i64,
    secret: &Sealed,
    hours: i32,
) -> Result<bool, sqlx::Error> {
    let rotated = sqlx::query(
        "update webhooks
            set previous_key_id = key_id, previous_sealed = secret_sealed,
                previous_until = now() + make_interval(hours => $4),
                key_id = $2, secret_sealed = $3
          where id = $1",
    )
    .bind(id)
    .bind(&secret.key_id)
    .bind(&secret.bytes)
    .bind(hours)
    .execute(connection)
    .await?;
    Ok(rotated.rows_affected() == 1)
}

/// Disables a webhook. `false`: it is disabled already.
///
/// # Errors
/// The database's.
pub async fn disable(
    connection: &mut PgConnection,
    id: i64,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let disabled = sqlx::query(
        "update webhooks
            set disabled_at = now(), disabled_reason = $2
          where id = $1 and disabled_at is null",
    )
    .bind(id)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(disabled.rows_affected() == 1)
}

/// Enables a webhook. `false`: it is not disabled.
///
/// # Errors
/// The database's.
pub async fn enable(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let enabled = sqlx::query(
        "update webhooks
            set disabled_at = null, disabled_reason = null, failing_since = null
          where id = $1 and disabled_at is not null",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(enabled.rows_affected() == 1)
}

/// Deletes a webhook, with what was delivered to it. `false`: it is gone.
///
/// # Errors
/// The database's.
pub async fn delete(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let deleted =
        sqlx::query("delete from webhooks where id = $1").bind(id).execute(connection).await?;
    Ok(deleted.rows_affected() == 1)
}

/// Whether nothing has arrived for so many hours, though messages were sent.
///
/// # Errors
/// The database's.
pub async fn has_failed_for(
    connection: &mut PgConnection,
    id: i64,
    hours: i32,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select coalesce(failing_since < now() - make_interval(hours => $2), false)
           from webhooks
          where id = $1",
    )
    .bind(id)
    .bind(hours)
    .fetch_one(connection)
    .await
}

/// Notes that messages do not arrive, or that one has.
///
/// # Errors
/// The database's.
pub async fn note_health(
    connection: &mut PgConnection,
    id: i64,
    arrived: bool,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update webhooks
            set failing_since = case when $2 then null else now() end
          where id = $1 and (failing_since is null) <> $2",
    )
    .bind(id)
    .bind(arrived)
    .execute(connection)
    .await?;
    Ok(())
}
