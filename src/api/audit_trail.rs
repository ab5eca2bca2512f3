//! The audit, searched page by page: `/v1/audit`.

use axum::Json;
use axum::extract::{RawQuery, State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::cursor;
use super::extract::Authenticated;
use super::page;
use super::problem::Problem;
use super::query::QueryReader;
use crate::db::audit::{AuditFilter, AuditRow};

/// Longest action or kind of a thing that is searched for, as its column is.
const MAX_NAME_CHARS: usize = 100;

/// A page of the audit.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditPage {
    /// Newest first.
    pub entries: Vec<AuditEntry>,
    /// Path of the next page; none on the last.
    pub next: Option<String>,
}

/// Something that was done. What rows held before and after is not shown: it can be personal.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditEntry {
    /// Its number.
    pub id: i64,
    /// When.
    pub at: Option<DateTime<Utc>>,
    /// Number of the user; none for the system, and for users that are gone.
    pub user_id: Option<i32>,
    /// What was done.
    #[schema(example = "execution.submitted")]
    pub action: String,
    /// To what kind of thing.
    #[schema(example = "report_executions")]
    pub entity_type: String,
    /// To which one.
    pub entity_id: Option<i64>,
    /// Names of the fields that were written down.
    pub fields: Vec<String>,
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        let AuditRow { id, created_at, user_id, action, entity_type, entity_id, fields } = row;
        Self { id, at: created_at, user_id, action, entity_type, entity_id, fields }
    }
}

/// Search the audit
#[utoipa::path(
    get,
    path = "/v1/audit",
    tag = "operations",
    params(
        ("user_id" = Option<i32>, Query, description = "Only what this user did."),
        ("action" = Option<String>, Query, description = "Only this action.",
            pattern = "^[!-~]{1,100}$",
            example = "queue.paused"),
        ("entity_type" = Option<String>, Query, description = "Only what was done to these.",
            pattern = "^[!-~]{1,100}$",
            example = "report_executions"),
        ("entity_id" = Option<i64>, Query, description = "Only what was done to this one."),
        ("from" = Option<DateTime<Utc>>, Query, description = "Not before this instant."),
        ("until" = Option<DateTime<Utc>>, Query, description = "Before this instant."),
        ("limit" = Option<i64>, Query, description = "Rows on a page; 50 if not given.",
            minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query,
            description = "From `next` of the page before, with the same filter.",
            pattern = "^01[0-9a-f]{32}$"),
    ),
    responses((
        status = 200,
        description = "A page.",
        body = AuditPage,
        example = json!({"entries": [entry_example()], "next": null}),
    ))
)]
pub async fn search_audit(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    RawQuery(query): RawQuery,
) -> Result<Json<AuditPage>, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let instant = "must be an instant like 2026-11-22T09:30:00Z";
    let mut filter = AuditFilter {
        user_id: query.parse("user_id", "must be the number of a user"),
        action: name(&mut query, "action"),
        entity_type: name(&mut query, "entity_type"),
        entity_id: query.parse("entity_id", "must be a number"),
        from: query.parse("from", instant),
        until: query.parse("until", instant),
        before: None,
    };
    let limit = page::limit(&mut query);
    if let Some(text) = query.take("cursor") {
        filter.before = cursor::decode_any(&identity(&filter), &text);
        if filter.before.is_none() {
            query.refuse("cursor", "invalid", "must be from a page with the same filter");
        }
    }
    query.finish()?;
    let mut rows = state.services.search_audit(&caller, &filter, limit + 1).await?;
    let next = page::cut(&mut rows, limit).map(|last| next_page(&filter, limit, last.id));
    Ok(Json(AuditPage { entries: rows.into_iter().map(AuditEntry::from).collect(), next }))
}

fn name(query: &mut QueryReader, field: &'static str) -> Option<String> {
    let text = query.take(field)?;
    if text.is_empty() || text.chars().count() > MAX_NAME_CHARS || text.contains('\0') {
        query.refuse(field, "invalid", "must be a name of 1 to 100 characters");
        return None;
    }
    Some(text)
}

/// What a cursor is bound to.
fn identity(filter: &AuditFilter) -> Value {
    let AuditFilter { user_id, action, entity_type, entity_id, from, until, before: _ } = filter;
    json!(["audit", user_id, action, entity_type, entity_id, from, until])
}

fn next_page(filter: &AuditFilter, limit: i64, last: i64) -> String {
    let instant = |at: DateTime<Utc>| at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
    let given = [
        ("user_id", filter.user_id.map(|id| id.to_string())),
        ("action", filter.action.clone()),
        ("entity_type", filter.entity_type.clone()),
        ("entity_id", filter.entity_id.map(|id| id.to_string())),
        ("from", filter.from.map(instant)),
        ("until", filter.until.map(instant)),
    ];
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in given {
        if let Some(value) = value {
            query.append_pair(name, &value);
        }
    }
    query.append_pair("limit", &limit.to_string());
    query.append_pair("cursor", &cursor::encode_any(&identity(filter), last));
    format!("/v1/audit?{}", query.finish())
}

fn entry_example() -> Value {
    json!({
        "id": 9120,
        "at": "2026-11-22T09:30:00Z",
        "user_id": 3,
        "action": "queue.paused",
        "entity_type": "queues",
        "entity_id": null,
        "fields": ["queue"]
    })
}
