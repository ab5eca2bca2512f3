//! Erasures of people.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::extract::{Authenticated, ExecutionId, JsonObject};
use super::page;
use super::problem::{FieldError, Problem};
use super::query::{NoQuery, QueryReader};
use crate::db::erasures::{Erasure, Status, UnknownStatus};

/// The ending of a person's data.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Erasure)]
pub struct ErasureResource {
    /// Number.
    pub id: i64,
    /// The table of people.
    pub table: String,
    /// The person's key.
    pub subject: String,
    /// State.
    #[schema(inline)]
    pub status: Status,
    /// When it was asked for.
    pub requested_at: DateTime<Utc>,
    /// When its grace ends.
    pub due_at: DateTime<Utc>,
    /// When the first act began: from then on it cannot be cancelled.
    pub begun_at: Option<DateTime<Utc>>,
    /// When no trace was found any more.
    pub verified_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// When it was taken back.
    pub cancelled_at: Option<DateTime<Utc>>,
    /// Why it was not ended at the last try.
    pub waits_because: Option<String>,
}

impl From<Erasure> for ErasureResource {
    fn from(erasure: Erasure) -> Self {
        Self {
            id: erasure.id,
            table: erasure.subject_table,
            subject: erasure.subject_id,
            status: erasure.status,
            requested_at: erasure.requested_at,
            due_at: erasure.due_at,
            begun_at: erasure.begun_at,
            verified_at: erasure.verified_at,
            completed_at: erasure.completed_at,
            cancelled_at: erasure.cancelled_at,
            waits_because: erasure.waits_because,
        }
    }
}

/// Whose data end.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErasureBody {
    /// The person's key, as a text or a whole number.
    #[schema(value_type = String)]
    pub subject: String,
    /// The table of people; may be left out where there is one.
    #[schema(required = false)]
    pub table: Option<String>,
}

impl ErasureBody {
    fn read(mut object: Map<String, Value>) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let subject = match object.shift_remove("subject") {
            Some(Value::String(text)) => Some(text),
            Some(Value::Number(number)) if number.is_i64() => Some(number.to_string()),
            _ => None,
        };
        if subject.is_none() {
            errors.push(FieldError::at("/subject", "type", "must be the key of a person"));
        }
        let table = match object.shift_remove("table") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                errors.push(FieldError::at("/table", "type", "must be the name of a table"));
                None
            }
        };
        errors.extend(object.keys().map(|name| {
            let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
            FieldError::at(pointer, "unknown", "an erasure has no such field")
        }));
        match subject {
            // PostgreSQL's texts cannot hold it, so nobody has such a key.
            Some(subject) if errors.is_empty() => {
                Ok(Self { subject: subject.replace('\0', "\u{fffd}"), table })
            }
            _ => Err(Problem::with_errors(ProblemKind::InvalidInput, errors)),
        }
    }
}

/// A page of erasures.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErasurePage {
    /// Newest first.
    pub erasures: Vec<ErasureResource>,
    /// Path of the next page; none on the last.
    pub next: Option<String>,
}

fn example() -> Value {
    serde_json::json!({
        "id": 12, "table": "users", "subject": "4711", "status": "waiting",
        "requested_at": "2026-03-01T08:00:00Z", "due_at": "2026-03-31T08:00:00Z",
        "begun_at": null, "verified_at": null, "completed_at": null, "cancelled_at": null,
        "waits_because": null,
    })
}

/// Request the erasure of a person
///
/// The account is closed at once: it cannot be used, its tokens are revoked, and its username and
/// e-mail address are free for others. The data follow when the grace is over. A second request
/// gives the erasure that is open.
#[utoipa::path(
    post,
    path = "/v1/erasures",
    tag = "lifecycle",
    request_body(content = ErasureBody, example = json!({"subject": "4711"})),
    responses((
        status = 202,
        description = "The account is closed.",
        body = ErasureResource,
        headers(("Location" = String, description = "Path of the erasure.")),
        example = json!(example()),
    ))
)]
pub async fn request_erasure(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let body = ErasureBody::read(object)?;
    let erasure =
        state.services.request_erasure(&caller, body.table.as_deref(), &body.subject).await?;
    let location = format!("/v1/erasures/{}", erasure.id);
    let answer = (StatusCode::ACCEPTED, Json(ErasureResource::from(erasure)));
    let mut response = answer.into_response();
    let location = HeaderValue::try_from(location).expect("a path of ASCII");
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// List erasures
#[utoipa::path(
    get,
    path = "/v1/erasures",
    tag = "lifecycle",
    params(
        ("status" = Option<String>, Query, description = "Only in this state.",
            pattern = "^(waiting|held|processing|completed|cancelled)$", example = "waiting"),
        ("limit" = Option<i64>, Query, description = "Erasures on a page; 50 if not given.",
            minimum = 1, maximum = 200),
        ("before" = Option<i64>, Query, description = "Only with smaller numbers; see `next`."),
    ),
    responses((
        status = 200,
        description = "A page, newest first.",
        body = ErasurePage,
        example = json!({"erasures": [example()], "next": "/v1/erasures?limit=1&before=12"}),
    ))
)]
pub async fn list_erasures(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    RawQuery(query): RawQuery,
) -> Result<Json<ErasurePage>, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let status: Option<Status> = query.parse("status", &UnknownStatus.to_string());
    let before: Option<i64> = query.parse("before", "must be the number of an erasure");
    let limit = page::limit(&mut query);
    query.finish()?;
    let mut all = state.services.list_erasures(&caller, status, before, limit + 1).await?;
    let next = page::cut(&mut all, limit).map(|last| {
        let status = status.map(|status| format!("status={status}&")).unwrap_or_default();
        format!("/v1/erasures?{status}limit={limit}&before={}", last.id)
    });
    Ok(Json(ErasurePage { erasures: all.into_iter().map(ErasureResource::from).collect(), next }))
}

/// Look at an erasure
#[utoipa::path(
    get,
    path = "/v1/erasures/{id}",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the erasure.", example = 12)),
    responses((
        status = 200,
        description = "As it stands.",
        body = ErasureResource,
        example = json!(example()),
    ))
)]
pub async fn show_erasure(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Json<ErasureResource>, Problem> {
    Ok(Json(state.services.erasure(&caller, id).await?.into()))
}

/// Cancel an erasure
///
/// The account is as it was before the request, but for its tokens, which stay revoked. Refused
/// once the act has begun, and where somebody else has taken the username or address by now.
#[utoipa::path(
    post,
    path = "/v1/erasures/{id}/cancel",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the erasure.", example = 12)),
    responses((
        status = 200,
        description = "Cancelled, and the account is open again.",
        body = ErasureResource,
        example = json!(example()),
    ))
)]
pub async fn cancel_erasure(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Json<ErasureResource>, Problem> {
    Ok(Json(state.services.cancel_erasure(&caller, id).await?.into()))
}
