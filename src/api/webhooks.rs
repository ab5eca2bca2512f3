//! Webhooks: who is told of events, and what became of each message.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::extract::{Authenticated, JsonObject, NameInPath};
use super::page;
use super::problem::{FieldError, Problem};
use super::query::{NoQuery, QueryReader};
use super::submission::{pointer, required};
use crate::db::deliveries::{BadDeliveryStatus, Delivery, DeliveryStatus};
use crate::db::schedules::ScheduleName;
use crate::db::webhooks::Webhook;
use crate::service::webhooks::{
    BadEventType, DeliveryFilter, EventType, WebhookOrder, WebhookWithSecret,
};

const NAME: &str = "must be 1 to 100 small letters, digits and single hyphens";

/// A webhook to be made.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub struct WebhookBody {
    /// Its name, unique.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// Where messages go: https, a public address, no redirects.
    url: String,
    /// Types of events.
    events: Vec<EventType>,
}

/// What is changed of a webhook.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub struct WebhookChange {
    /// Where messages go: https, a public address, no redirects.
    url: String,
    /// Types of events.
    events: Vec<EventType>,
}

/// A webhook.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Webhook)]
pub struct WebhookResource {
    /// Its name in URLs.
    pub name: String,
    /// Where messages go.
    pub url: String,
    /// Types of events that it is told of.
    pub events: Vec<String>,
    /// Since when no message has arrived, though some were sent.
    pub failing_since: Option<DateTime<Utc>>,
    /// Since when it is disabled.
    pub disabled_at: Option<DateTime<Utc>>,
    /// `by_hand`; `gone`: it answered 410; `failing`: it took no message.
    pub disabled_reason: Option<String>,
    /// Until when messages are signed with the secret before too.
    pub previous_secret_until: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// `whsec_…`: only in the answer that makes or rotates it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Its path.
    #[serde(rename = "self")]
    pub itself: String,
}

/// Webhooks.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookList {
    /// By name.
    pub webhooks: Vec<WebhookResource>,
}

/// What became of a message.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryResource {
    /// Its number.
    pub id: i64,
    /// `webhook-id` of each attempt.
    pub message_id: String,
    /// Type of the event.
    pub event: String,
    /// What it tells.
    #[schema(value_type = Object)]
    pub data: Value,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// Attempts so far.
    pub attempts: i32,
    /// When it was tried last.
    pub attempted_at: Option<DateTime<Utc>>,
    /// What the receiver answered then.
    pub http_status: Option<i16>,
    /// Why it did not arrive: `status`, `timed_out`, `unreachable`, `redirected`,
    /// `address_refused`, `gone`, `worker_lost`, `webhook_disabled`, `unusable`.
    pub error: Option<String>,
    /// When it is tried next, if it waits.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When it was delivered or given up.
    pub ended_at: Option<DateTime<Utc>>,
}

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryPage {
    /// Newest first.
    pub deliveries: Vec<DeliveryResource>,
    /// Path of the next page; none on the last.
    pub next: Option<String>,
}

/// A message to try a webhook out.
#[derive(Debug, Serialize, ToSchema)]
pub struct PingStarted {
    /// Number of the delivery.
    pub delivery: i64,
}

/// Deliveries that are sent again.
#[derive(Debug, Serialize, ToSchema)]
pub struct Replayed {
    /// How many.
    pub replayed: u64,
}

impl From<Webhook> for WebhookResource {
    fn from(webhook: Webhook) -> Self {
        Self {
            itself: format!("/v1/webhooks/{}", webhook.name),
            name: webhook.name,
            url: webhook.url,
            events: webhook.events,
            failing_since: webhook.failing_since,
            disabled_at: webhook.disabled_at,
            disabled_reason: webhook.disabled_reason,
            previous_secret_until: webhook.previous_until,
            created_at: webhook.created_at,
            secret: None,
        }
    }
}

impl From<WebhookWithSecret> for WebhookResource {
    fn from(WebhookWithSecret { webhook, secret }: WebhookWithSecret) -> Self {
        Self { secret: Some(secret), ..Self::from(webhook) }
    }
}

impl From<Delivery> for DeliveryResource {
    fn from(delivery: Delivery) -> Self {
        let waits = delivery.status == DeliveryStatus::Pending;
        Self {
            id: delivery.id,
            message_id: format!("msg_{}", delivery.event_id.simple()),
            event: delivery.event_type,
            data: delivery.data,
            occurred_at: delivery.occurred_at,
            status: delivery.status,
            attempts: delivery.attempt,
            attempted_at: delivery.attempted_at,
            http_status: delivery.http_status,
            error: delivery.error,
            next_attempt_at: waits.then_some(delivery.next_attempt_at),
            ended_at: delivery.ended_at,
        }
    }
}

/// Make a webhook
///
/// The answer holds its secret, which can be read this once. Messages follow Standard Webhooks:
/// `webhook-id`, `webhook-timestamp`, `webhook-signature`.
#[utoipa::path(
    post,
    path = "/v1/webhooks",
    tag = "webhooks",
    request_body(
        content = WebhookBody,
        example = json!({"name": "reports-portal", "url": "https://portal.example/hooks/registrar",
                         "events": ["execution.completed", "execution.failed"]}),
    ),
    responses((
        status = 201,
        description = "Stored.",
        body = WebhookResource,
        headers(("Location" = String, description = "Path of the webhook.")),
        example = json!(secret_example()),
    ))
)]
pub async fn create_webhook(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let (name, order) = read(object)?;
    let made = state.services.create_webhook(&caller, &name, order).await?;
    let webhook = WebhookResource::from(made);
    let location = HeaderValue::try_from(webhook.itself.as_str()).expect("a path of ASCII");
    let mut response = (StatusCode::CREATED, Json(webhook)).into_response();
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// List webhooks
#[utoipa::path(
    get,
    path = "/v1/webhooks",
    tag = "webhooks",
    responses((
        status = 200,
        description = "All, by name.",
        body = WebhookList,
        example = json!({"webhooks": [webhook_example()]}),
    ))
)]
pub async fn list_webhooks(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
) -> Result<Json<WebhookList>, Problem> {
    let webhooks = state.services.list_webhooks(&caller).await?;
    Ok(Json(WebhookList { webhooks: webhooks.into_iter().map(Into::into).collect() }))
}

/// Show a webhook
#[utoipa::path(
    get,
    path = "/v1/webhooks/{name}",
    tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.", example = "reports-portal")),
    responses((
        status = 200,
        description = "The webhook.",
        body = WebhookResource,
        example = json!(webhook_example()),
    ))
)]
pub async fn show_webhook(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<WebhookResource>, Problem> {
    Ok(Json(state.services.show_webhook(&caller, &name).await?.into()))
}

/// Change a webhook
///
/// Where messages go, and which. Its secret stays.
#[utoipa::path(
    put,
    path = "/v1/webhooks/{name}",
    tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.", example = "reports-portal")),
    request_body(
        content = WebhookChange,
        example = json!({"url": "https://portal.example/hooks/reports",
                         "events": ["execution.completed"]}),
    ),
    responses((
        status = 200,
        description = "Changed.",
        body = WebhookResource,
        example = json!(webhook_example()),
    ))
)]
pub async fn update_webhook(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Json<WebhookResource>, Problem> {
    let mut errors = Vec::new();
    let order = order(object, &mut errors);
    let (Some(order), true) = (order, errors.is_empty()) else {
        return Err(Problem::with_errors(ProblemKind::InvalidInput, errors));
    };
    Ok(Json(state.services.update_webhook(&caller, &name, order).await?.into()))
}

/// Delete a webhook
///
/// With what was delivered to it. The answer is the webhook as it was.
#[utoipa::path(
    delete,
    path = "/v1/webhooks/{name}",
    tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.", example = "reports-portal")),
    responses((
        status = 200,
        description = "Deleted.",
        body = WebhookResource,
        example = json!(webhook_example()),
    ))
)]
pub async fn delete_webhook(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<WebhookResource>, Problem> {
    Ok(Json(state.services.delete_webhook(&caller, &name).await?.into()))
}

/// Make a new secret for a webhook
///
/// The answer holds it. For a day messages carry two signatures, so that receivers can change over.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{name}/rotate",
    tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.", example = "reports-portal")),
    responses((
        status = 200,
        description = "The new secret.",
        body = WebhookResource,
        example = json!(secret_example()),
    ))
)]
pub async fn rotate_webhook_secret(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<WebhookResource>, Problem> {
    Ok(Json(state.services.rotate_webhook_secret(&caller, &name).await?.into()))
}

/// Disable a webhook
///
/// What waits for it, and what happens meanwhile, is kept as failed and can be replayed.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{name}/disable",
    tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.", example = "reports-portal")),
    responses((
        status = 200,
        description = "Disabled.",
        body = WebhookResource,
        example = json!(webhook_example()),
    ))
)]
pub async fn disable_webhook(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<WebhookResource>, Problem> {
    Ok(Json(state.services.disable_webhook(&caller, &name).await?.into()))
}

/// Enable a webhook
///
/// What happened meanwhile is sent by a replay.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{name}/enable",
    tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.", example = "reports-portal")),
    responses((
        status = 200,
        description = "Enabled.",
        body = WebhookResource,
        example = json!(webhook_example()),
    ))
)]
pub async fn enable_webhook(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<WebhookResource>, Problem> {
    Ok(Json(state.services.enable_webhook(&caller, &name).await?.into()))
}

/// Try a webhook out
///
/// Sends it a `webhook.ping`, whatever types it asked for.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{name}/ping",
    tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.", example = "reports-portal")),
    responses((
        status = 202,
        description = "On its way.",
        body = PingStarted,
        example = json!({"delivery": 81}),
    ))
)]
pub async fn ping_webhook(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Response, Problem> {
    let delivery = state.services.ping_webhook(&caller, &name).await?;
    Ok((StatusCode::ACCEPTED, Json(PingStarted { delivery })).into_response())
}

/// List what was sent to a webhook
#[utoipa::path(
    get,
    path = "/v1/webhooks/{name}/deliveries",
    tag = "webhooks",
    params(
        ("name" = String, Path, description = "Name of the webhook.", example = "reports-portal"),
        ("status" = Option<DeliveryStatus>, Query, description = "Only those that stand so."),
        ("limit" = Option<i64>, Query, description = "Deliveries on a page; 50 if not given.",
            minimum = 1, maximum = 200),
        ("cursor" = Option<i64>, Query, description = "From `next` of the page before."),
    ),
    responses((
        status = 200,
        description = "A page, newest first.",
        body = DeliveryPage,
        example = json!({"deliveries": [delivery_example()], "next": null}),
    ))
)]
pub async fn list_deliveries(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    RawQuery(query): RawQuery,
) -> Result<Json<DeliveryPage>, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let status: Option<DeliveryStatus> = query.parse("status", &BadDeliveryStatus.to_string());
    let before: Option<i64> = query.parse("cursor", "must be from `next` of the page before");
    let limit = page::limit(&mut query);
    query.finish()?;
    let filter = DeliveryFilter { status, before, limit };
    let found = state.services.list_deliveries(&caller, &name, filter).await?;
    let full = i64::try_from(found.len()).is_ok_and(|found| found == limit);
    let next = found.last().filter(|_| full).map(|last| {
        let status = status.map(|status| format!("status={status}&")).unwrap_or_default();
        format!("/v1/webhooks/{name}/deliveries?{status}limit={limit}&cursor={}", last.id)
    });
    Ok(Json(DeliveryPage { deliveries: found.into_iter().map(Into::into).collect(), next }))
}

/// Send a delivery again
///
/// Under the same `webhook-id`, with all attempts before it.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{name}/deliveries/{id}/replay",
    tag = "webhooks",
    params(
        ("name" = String, Path, description = "Name of the webhook.", example = "reports-portal"),
        ("id" = i64, Path, description = "Number of the delivery.", example = 81),
    ),
    responses((
        status = 202,
        description = "On its way.",
        body = Replayed,
        example = json!({"replayed": 1}),
    ))
)]
pub async fn replay_delivery(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    path: Result<Path<(String, String)>, PathRejection>,
    _: NoQuery,
) -> Result<Response, Problem> {
    // What names nothing becomes a name that nothing has: 403 comes before 404.
    let path = path.ok().filter(|Path((name, _))| !name.contains('\0'));
    let (name, id) = path.map(|Path(path)| path).unwrap_or_default();
    let id = id.parse().unwrap_or(0);
    let replayed = state.services.replay_deliveries(&caller, &name, Some(id)).await?;
    Ok((StatusCode::ACCEPTED, Json(Replayed { replayed })).into_response())
}

/// Send every failed delivery again
///
/// The oldest first, 10,000 at most.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{name}/replay",
    tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.", example = "reports-portal")),
    responses((
        status = 202,
        description = "On their way.",
        body = Replayed,
        example = json!({"replayed": 17}),
    ))
)]
pub async fn replay_failed(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Response, Problem> {
    let replayed = state.services.replay_deliveries(&caller, &name, None).await?;
    Ok((StatusCode::ACCEPTED, Json(Replayed { replayed })).into_response())
}

/// Reads a webhook to be made.
///
/// # Errors
/// A [`Problem`] with a pointer to each field that is missing, unknown or wrong.
pub fn read(mut object: Map<String, Value>) -> Result<(ScheduleName, WebhookOrder), Problem> {
    let mut errors = Vec::new();
    let name = required::<String>(&mut object, "name", NAME, &mut errors);
    let name = name.and_then(|text| {
        let name = text.parse::<ScheduleName>();
        name.map_err(|_| errors.push(FieldError::at("/name", "invalid", NAME))).ok()
    });
    let order = order(object, &mut errors);
    let (Some(name), Some(order), true) = (name, order, errors.is_empty()) else {
        return Err(Problem::with_errors(ProblemKind::InvalidInput, errors));
    };
    Ok((name, order))
}

/// Reads what a body says of where and what, and refuses everything else in it.
fn order(mut object: Map<String, Value>, errors: &mut Vec<FieldError>) -> Option<WebhookOrder> {
    let url = required(&mut object, "url", "must be a URL", errors);
    let expected = BadEventType.to_string();
    let texts: Option<Vec<String>> = required(&mut object, "events", &expected, errors);
    let mut events = Vec::new();
    for (index, text) in texts.iter().flatten().enumerate() {
        match text.parse::<EventType>() {
            Ok(event) => events.push(event),
            Err(error) => {
                let at = format!("/events/{index}");
                errors.push(FieldError::at(at, "invalid", error.to_string()));
                break; // one is enough to see what is meant, and a body can hold many
            }
        }
    }
    let unknown =
        |name: &String| FieldError::at(pointer(name), "unknown", "there is no such field here");
    errors.extend(object.keys().map(unknown));
    Some(WebhookOrder { url: url?, events })
}

fn webhook_example() -> Value {
    json!({
        "name": "reports-portal", "url": "https://portal.example/hooks/registrar",
        "events": ["execution.completed", "execution.failed"], "failing_since": null,
        "disabled_at": null, "disabled_reason": null, "previous_secret_until": null,
        "created_at": "2026-03-02T07:12:44.120531Z", "self": "/v1/webhooks/reports-portal",
    })
}

fn secret_example() -> Value {
    let mut example = webhook_example();
    example["secret"] = json!("whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=");
    example
}

fn delivery_example() -> Value {
    json!({
        "id": 81, "message_id": "msg_5f0c7b0e3f2d4c6f9b7a1e2d3c4b5a69",
        "event": "execution.completed",
        "data": {"execution_id": 71, "report": "gpa-ranking", "status": "completed",
                 "format": "xlsx", "row_count": 1200, "size_bytes": 48210, "truncated": false,
                 "error_code": null},
        "occurred_at": "2026-03-02T07:12:44.120531Z", "status": "delivered", "attempts": 1,
        "attempted_at": "2026-03-02T07:12:45.001240Z", "http_status": 204, "error": null,
        "next_attempt_at": null, "ended_at": "2026-03-02T07:12:45.120004Z",
    })
}
