//! `audit_logs`: who did what. Always written in the transaction that does it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

/// Longest search: one whose filter hits little reads far back.
const SEARCH_LIMIT: &str = "set local statement_timeout = '10s'";

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

/// Which audit rows are wanted. Default: all.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Only what this user did.
    pub user_id: Option<i32>,
    /// Only this action.
    pub action: Option<String>,
    /// Only what was done to these.
    pub entity_type: Option<String>,
    /// Only what was done to this one.
    pub entity_id: Option<i64>,
    /// Not before this instant.
    pub from: Option<DateTime<Utc>>,
    /// Before this instant.
    pub until: Option<DateTime<Utc>>,
    /// Only rows behind this one: the cursor.
    pub before: Option<i64>,
}

/// An audit row without the values that it holds: they can be personal.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct AuditRow {
    /// Its number.
    pub id: i64,
    /// When.
    pub created_at: Option<DateTime<Utc>>,
    /// Who; none for the system, and for users that are gone.
    pub user_id: Option<i32>,
    /// What was done.
    pub action: String,
    /// To what kind of thing.
    pub entity_type: String,
    /// To which one.
    pub entity_id: Option<i64>,
    /// Names of the fields that were written down.
    pub fields: Vec<String>,
}

/// The statement for audit rows: how three columns are compared, and what comes behind all filters;
/// `concat!` because SQL must be static.
macro_rules! search_audit {
    ($user:literal, $action:literal, $entity_type:literal, $tail:literal) => {
        concat!(
            "select a.id, a.created_at, a.user_id, a.action, a.entity_type, a.entity_id,
                    array(select field
                            from jsonb_object_keys(
                                     case jsonb_typeof(a.new_values) when 'object'
                                          then a.new_values else '{}' end
                                     || case jsonb_typeof(a.old_values) when 'object'
                                             then a.old_values else '{}' end) field
                           order by field) as fields
               from audit_logs a
              where ($1::int is null or a.user_id ",
            $user,
            ") and ($2::text is null or a.action ",
            $action,
            ") and ($3::text is null or a.entity_type ",
            $entity_type,
            ") and ($4::bigint is null or a.entity_id = $4)
               and ($5::timestamptz is null or a.created_at >= $5)
               and ($6::timestamptz is null or a.created_at < $6)
               and ($7::bigint is null or ",
            $tail
        )
    };
}

/// The statement for a filter. By number, a search for what is long ago would read all that came
/// since: so by time where the filter says a time, and by the one column that it names, whose index
/// has the number behind it. What the planner knows of one value says nothing of its age.
const fn search_statement(filter: &AuditFilter, is_by_time: bool) -> &'static str {
    if is_by_time {
        return search_audit!(
            "= $1",
            "= $2",
            "= $3",
            "a.created_at <= $9 and (a.created_at, a.id) < ($9::timestamptz, $7))
             order by a.created_at desc, a.id desc
             limit $8"
        );
    }
    let has_others = filter.entity_id.is_some() || filter.from.is_some() || filter.until.is_some();
    match (&filter.user_id, &filter.action, &filter.entity_type) {
        (Some(_), None, None) if !has_others => search_audit!(
            "between $1 and $1",
            "= $2",
            "= $3",
            "a.id < $7) order by a.user_id, a.id desc limit $8"
        ),
        (None, Some(_), None) if !has_others => search_audit!(
            "= $1",
            "between $2 and $2",
            "= $3",
            "a.id < $7) order by a.action, a.id desc limit $8"
        ),
        (None, None, Some(_)) if !has_others => search_audit!(
            "= $1",
            "= $2",
            "between $3 and $3",
            "a.id < $7) order by a.entity_type, a.id desc limit $8"
        ),
        _ => search_audit!("= $1", "= $2", "= $3", "a.id < $7) order by a.id desc limit $8"),
    }
}

/// Lists audit rows, newest first: by number, or by time where the filter says a time.
///
/// # Errors
/// The database's, among them that of a search that takes too long.
pub async fn search(
    pool: &PgPool,
    filter: &AuditFilter,
    limit: i64,
) -> Result<Vec<AuditRow>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query(SEARCH_LIMIT).execute(&mut *tx).await?;
    let before_at = match filter.before {
        Some(id) => time_of(&mut tx, id).await?,
        None => None,
    };
    let has_time = filter.from.is_some() || filter.until.is_some();
    // A row that is archived since its page was shown has no time here: its number still leads on.
    let is_by_time = has_time && before_at.is_some() == filter.before.is_some();
    let query = sqlx::query_as(search_statement(filter, is_by_time))
        // Planned for these values each time: a plan for any walks the log for what is rare.
        .persistent(false)
        .bind(filter.user_id)
        .bind(filter.action.as_deref())
        .bind(filter.entity_type.as_deref())
        .bind(filter.entity_id)
        .bind(filter.from)
        .bind(filter.until)
        .bind(filter.before)
        .bind(limit);
    let query = if is_by_time { query.bind(before_at) } else { query };
    let rows = query.fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

async fn time_of(
    connection: &mut PgConnection,
    id: i64,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let time = sqlx::query_scalar("select created_at from audit_logs where id = $1");
    Ok(time.bind(id).fetch_optional(connection).await?.flatten())
}
