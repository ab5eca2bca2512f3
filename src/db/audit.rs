//! `audit_logs`: who did what. Always written in the transaction that does it.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

/// A certificate was added to the chain.
pub const CERTIFICATE_SEALED: &str = "certificate.sealed";
/// The table of certificates, as audit rows name it.
pub const CERTIFICATES: &str = "certificates";

/// Who acts, and from where.
#[derive(Debug, Clone, Default)]
pub struct Actor {
    /// The user, `None` for the system itself.
    pub user_id: Option<i32>,
    /// The client's address.
    pub ip_address: Option<std::net::IpAddr>,
    /// The client's `User-Agent`, as sent.
    pub user_agent: Option<String>,
}

impl Actor {
    /// A worker or a schedule.
    pub fn system() -> Self {
        Self::default()
    }
}

/// Something that is recorded.
#[derive(Debug)]
pub struct Event<'a> {
    /// `noun.verb`, for example `execution.submitted`.
    pub action: &'a str,
    /// The table of the thing.
    pub entity_type: &'a str,
    /// Its id.
    pub entity_id: Option<i64>,
    /// What is worth knowing later. Never personal data, never parameters.
    pub details: Value,
}

/// Records an event.
///
/// # Errors
/// The database's.
pub async fn record(
    connection: &mut PgConnection,
    actor: &Actor,
    event: Event<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into audit_logs
                (user_id, action, entity_type, entity_id, new_values, ip_address, user_agent)
         values ($1, $2, $3, $4, $5, $6::inet, $7)",
    )
    .bind(actor.user_id)
    .bind(event.action)
    .bind(event.entity_type)
    .bind(event.entity_id)
    .bind(event.details)
    .bind(actor.ip_address.map(|address| address.to_string()))
    .bind(actor.user_agent.as_deref())
    .execute(connection)
    .await?;
    Ok(())
}

/// The last certificate that the audit log tells of: its number and hash.
///
/// # Errors
/// The database's.
pub async fn last_certificate(
    connection: &mut PgConnection,
) -> Result<Option<(i64, Option<String>)>, sqlx::Error> {
    sqlx::query_as(
        "select entity_id, new_values ->> 'sha256'
           from audit_logs
          where entity_type = $1 and action = $2 and entity_id is not null
          order by entity_id desc, id desc
          limit 1",
    )
    .bind(CERTIFICATES)
    .bind(CERTIFICATE_SEALED)
    .fetch_optional(connection)
    .await
}

/// Whether the log still has a row from before this time.
///
/// # Errors
/// The database's.
pub async fn reaches_back_to(
    connection: &mut PgConnection,
    time: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select from audit_logs where created_at < $1)")
        .bind(time)
        .fetch_one(connection)
        .await
}
