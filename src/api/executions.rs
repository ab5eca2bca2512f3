//! Executions: submit, follow, cancel, run again.

use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, LINK, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::ApiState;
use super::cursor;
use super::error::Problem;
use super::etag::ETag;
use super::extract::{Authenticated, ExecutionId, JsonObject, ReportSlug, only};
use super::prefer::Wait;
use super::query::QueryReader;
use super::resources::{ExecutionResource, completed_example, execution_path, pending_example};
use super::submission::SubmissionBody;
use crate::db::executions::{Filter, Status};
use crate::report::definition::Slug;
use crate::service::Caller;
use crate::service::executions::{Followed, IdempotencyKey, MAX_PAGE};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Executions on a page where the client does not say.
const DEFAULT_PAGE: i64 = 50;
/// First and longest pause between two looks of a long poll.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// Longest time that a client is asked to wait before it looks again.
const MAX_RETRY_AFTER_SECS: i64 = 30;

/// A page of executions.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExecutionPage {
    /// Newest first; without queue position and outlook.
    pub items: Vec<ExecutionResource>,
    /// Path of the next page; none on the last.
    pub next: Option<String>,
}

/// What the planner expects.
#[derive(Debug, Serialize, ToSchema)]
pub struct SubmissionEstimate {
    /// Rows that the planner expects.
    pub estimated_rows: f64,
    /// Cost in the planner's units.
    pub estimated_cost: f64,
    /// Most rows that the report may have.
    pub max_rows: u64,
}

/// Run a report
///
/// Stores the execution and answers at once; a worker runs it. With `validate_only=true` nothing
/// is stored: everything is checked, and the answer is what the planner expects.
#[utoipa::path(
    post,
    path = "/v1/reports/{slug}/executions",
    tag = "executions",
    params(
        ("slug" = String, Path, description = "Slug of the report.", example = "gpa-ranking"),
        ("validate_only" = Option<bool>, Query, description = "Check and estimate only."),
        ("Idempotency-Key" = Option<String>, Header,
            description = "1 to 255 visible ASCII characters. A repeated submit with the same key \
                           and body gives the first one's execution.",
            example = "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("Prefer" = Option<String>, Header,
            description = "`wait=N`: wait up to N seconds, at most 30, for the end.",
            example = "wait=10"),
    ),
    request_body(
        content = SubmissionBody,
        example = json!({"parameters": {"min_credits": 60}, "format": "xlsx",
                         "reader": "spreadsheet"}),
    ),
    responses(
        (
            status = 202,
            description = "Stored. The same answer for every submit with the same key.",
            body = ExecutionResource,
            headers(
                ("Location" = String, description = "Path of the execution."),
                ("Retry-After" = u32, description = "Seconds until looking is worth it."),
                ("Idempotency-Replayed" = bool, description = "`true`: the key was seen before."),
            ),
            example = json!(pending_example()),
        ),
        (
            status = 200,
            description = "With `Prefer: wait=N`, an execution that ended in time; with \
                           `validate_only=true`, the estimate.",
            content(
                (ExecutionResource = "application/json", examples(
                    ("finished" = (summary = "It ended in time",
                        value = json!(completed_example()))),
                    ("estimate" = (summary = "validate_only=true",
                        value = json!({"estimated_rows": 19850.0, "estimated_cost": 4211.7,
                                       "max_rows": 1000000}))),
                )),
            ),
        ),
    )
)]
pub async fn submit_execution(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ReportSlug(slug): ReportSlug,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let validate_only = query.parse("validate_only", "must be true or false").unwrap_or(false);
    query.finish()?;
    let key = idempotency_key(&headers)?;
    let submission = SubmissionBody::read(object)?.into_submission(key);
    if validate_only {
        let estimate = state.services.estimate(&caller, &slug, &submission).await?;
        return Ok(Json(SubmissionEstimate {
            estimated_rows: estimate.rows,
            estimated_cost: estimate.cost,
            max_rows: estimate.max_rows,
        })
        .into_response());
    }
    let submitted = state.services.submit(&caller, &slug, &submission).await?;
    let id = submitted.execution.id;
    let wait = Wait::from_headers(&headers);
    let followed = match wait {
        Some(wait) => {
            follow(&state, &caller, id, wait, |now| now.execution.status.is_final()).await?
        }
        None => state.services.follow(&caller, id).await?,
    };
    let ended = wait.is_some() && followed.execution.status.is_final();
    let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = located(status, followed);
    if let Some(wait) = wait {
        let (name, value) = wait.applied();
        response.headers_mut().insert(name, value);
    }
    if submitted.replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// List executions
///
/// Newest first: your own, or everybody's with the permission to see them.
#[utoipa::path(
    get,
    path = "/v1/executions",
    tag = "executions",
    params(
        ("status" = Option<Status>, Query, description = "Only in this state."),
        ("report" = Option<String>, Query, description = "Only of the report with this slug.",
            example = "gpa-ranking"),
        ("mine" = Option<bool>, Query, description = "Only your own."),
        ("limit" = Option<i64>, Query, description = "Executions on a page; 50 if not given.",
            minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query,
            description = "From `next` of the page before, with the same filter."),
    ),
    responses((
        status = 200,
        description = "A page.",
        body = ExecutionPage,
        headers(("Link" = String, description = "The next page, as `rel=\"next\"`.")),
        example = json!({"items": [completed_example()],
            "next": "/v1/executions?limit=1&cursor=01000000000000004749d2a1b1c0ffee00"}),
    ))
)]
pub async fn list_executions(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (filter, limit) = page_query(&caller, query.as_deref())?;
    let mut executions = state.services.list_executions(&caller, filter.clone(), limit + 1).await?;
    let size = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = executions.len() > size;
    executions.truncate(size);
    let last = executions.last().filter(|_| more).map(|execution| execution.id);
    let next = last.map(|last| next_page(&filter, &caller, limit, last));
    let items = executions.into_iter().map(ExecutionResource::from).collect();
    let link = next.as_ref().map(|path| format!("<{path}>; rel=\"next\""));
    let mut response = Json(ExecutionPage { items, next }).into_response();
    if let Some(link) = link {
        let value = HeaderValue::try_from(link).expect("a path of ASCII");
        response.headers_mut().insert(LINK, value);
    }
    Ok(response)
}

/// Follow an execution
#[utoipa::path(
    get,
    path = "/v1/executions/{id}",
    tag = "executions",
    params(
        ("id" = i64, Path, description = "Number of the execution.", example = 71),
        ("If-None-Match" = Option<String>, Header, description = "Tags that you have."),
        ("Prefer" = Option<String>, Header,
            description = "`wait=N`: answer when the state changes, or, with `If-None-Match`, when \
                           anything changes; after N seconds, at most 30, in any case.",
            example = "wait=20"),
    ),
    responses(
        (
            status = 200,
            description = "The execution.",
            body = ExecutionResource,
            headers(
                ("ETag" = String, description = "Changes when anything below does."),
                ("Retry-After" = u32, description = "Not on a final state."),
            ),
            example = json!(completed_example()),
        ),
        (status = 304, description = "You have it."),
    )
)]
pub async fn show_execution(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    QueryReader::new(query.as_deref()).finish()?;
    let first = state.services.follow(&caller, id).await?;
    let Some(wait) = Wait::from_headers(&headers) else { return Ok(shown(first, &headers)) };
    let before = first.execution.status;
    let conditional = headers.contains_key(axum::http::header::IF_NONE_MATCH);
    let news = |now: &Followed| {
        let execution = &now.execution;
        let seen = if conditional { is_known(now, &headers) } else { execution.status == before };
        execution.status.is_final() || !seen
    };
    let followed = follow(&state, &caller, id, wait, news).await?;
    let mut response = shown(followed, &headers);
    let (name, value) = wait.applied();
    response.headers_mut().insert(name, value);
    Ok(response)
}

/// Cancel an execution
///
/// At once while it waits. While it runs, its query is ended on the database server, and the state
/// turns from `cancelling` to `cancelled` when the server's process is gone.
#[utoipa::path(
    post,
    path = "/v1/executions/{id}/cancel",
    tag = "executions",
    params(("id" = i64, Path, description = "Number of the execution.", example = 71)),
    responses((
        status = 202,
        description = "Cancelled, or on the way there.",
        body = ExecutionResource,
        headers(("Location" = String, description = "Path of the execution.")),
        example = json!(pending_example()),
    ))
)]
pub async fn cancel_execution(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
) -> Result<Response, Problem> {
    let execution = state.services.cancel(&caller, id).await?;
    let followed = Followed { execution, queue_position: None, typical_secs: None };
    Ok(located(StatusCode::ACCEPTED, followed))
}

/// Run a failed or cancelled execution again
///
/// With the same parameters and the same version of the report, under the same number.
#[utoipa::path(
    post,
    path = "/v1/executions/{id}/retry",
    tag = "executions",
    params(("id" = i64, Path, description = "Number of the execution.", example = 71)),
    responses((
        status = 202,
        description = "It waits for a worker again.",
        body = ExecutionResource,
        headers(("Location" = String, description = "Path of the execution.")),
        example = json!(pending_example()),
    ))
)]
pub async fn retry_execution(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
) -> Result<Response, Problem> {
    let execution = state.services.retry(&caller, id).await?;
    let followed = Followed { execution, queue_position: None, typical_secs: None };
    Ok(located(StatusCode::ACCEPTED, followed))
}

/// Looks until `done` says so, the time is over, or the process is asked to stop.
async fn follow(
    state: &ApiState,
    caller: &Caller,
    id: i64,
    wait: Wait,
    done: impl Fn(&Followed) -> bool,
) -> Result<Followed, Problem> {
    let deadline = Instant::now() + wait.duration();
    let mut pause = FIRST_LOOK;
    loop {
        let followed = state.services.follow(caller, id).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || done(&followed) {
            return Ok(followed);
        }
        tokio::select! {
            () = state.shutdown.cancelled() => return Ok(followed),
            () = tokio::time::sleep(pause.min(left)) => {}
        }
        pause = (pause * 3 / 2).min(LONGEST_LOOK);
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(value) = only(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    // What is not ASCII is as wrong as an empty key, and refused with the same words.
    Ok(Some(value.to_str().unwrap_or_default().parse()?))
}

fn page_query(caller: &Caller, query: Option<&str>) -> Result<(Filter, i64), Problem> {
    let mut query = QueryReader::new(query);
    let states = crate::db::executions::UnknownStatus.to_string();
    let status = query.parse("status", &states);
    let slug = query.parse::<Slug>("report", "must be the slug of a report");
    let mine = query.parse("mine", "must be true or false").unwrap_or(false);
    let mut filter = Filter {
        executed_by: if mine { caller.user_id } else { None },
        status,
        slug: slug.map(|slug| slug.to_string()),
        before: None,
    };
    let limit = query.parse("limit", "must be between 1 and 200").unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        query.refuse("limit", "invalid", &format!("must be between 1 and {MAX_PAGE}"));
    }
    if let Some(text) = query.take("cursor") {
        filter.before = cursor::decode(&filter, &text);
        if filter.before.is_none() {
            query.refuse("cursor", "invalid", "must be from a page with the same filter");
        }
    }
    query.finish()?;
    Ok((filter, limit))
}

fn next_page(filter: &Filter, caller: &Caller, limit: i64, last: i64) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    if let Some(status) = filter.status {
        query.append_pair("status", status.as_str());
    }
    if let Some(slug) = &filter.slug {
        query.append_pair("report", slug);
    }
    if filter.executed_by.is_some() && filter.executed_by == caller.user_id {
        query.append_pair("mine", "true");
    }
    query.append_pair("limit", &limit.to_string());
    query.append_pair("cursor", &cursor::encode(filter, last));
    format!("/v1/executions?{}", query.finish())
}

/// The answer that points to an execution.
fn located(status: StatusCode, followed: Followed) -> Response {
    let location = execution_path(followed.execution.id);
    let mut response = shown(followed, &HeaderMap::new());
    *response.status_mut() = status;
    let value = HeaderValue::try_from(location).expect("a path of ASCII");
    response.headers_mut().insert(LOCATION, value);
    response
}

/// The execution, or 304 where the client has it.
fn shown(followed: Followed, headers: &HeaderMap) -> Response {
    let retry_after = retry_after_secs(&followed);
    let body = representation(followed);
    let tag = ETag::of(&body);
    let mut response = if tag.is_known_to(headers) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, "application/json")], body).into_response()
    };
    let fields = response.headers_mut();
    fields.insert(ETAG, tag.header());
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Some(seconds) = retry_after {
        fields.insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn is_known(followed: &Followed, headers: &HeaderMap) -> bool {
    let copy = Followed {
        execution: followed.execution.clone(),
        queue_position: followed.queue_position,
        typical_secs: followed.typical_secs,
    };
    ETag::of(&representation(copy)).is_known_to(headers)
}

fn representation(followed: Followed) -> Vec<u8> {
    serde_json::to_vec(&ExecutionResource::from(followed)).expect("its keys are strings")
}

/// When looking again is worth it; `None` in a final state.
fn retry_after_secs(followed: &Followed) -> Option<i64> {
    let seconds = match followed.execution.status {
        Status::Pending => followed.queue_position.unwrap_or(0).saturating_add(1),
        // A quarter of the usual time: late by at most that much.
        Status::Processing => {
            followed.typical_secs.map_or(2, |secs| (secs / 4.0).clamp(1.0, 30.0) as i64)
        }
        Status::Cancelling => 1,
        Status::Completed | Status::Failed | Status::Cancelled | Status::Expired => return None,
    };
    Some(seconds.clamp(1, MAX_RETRY_AFTER_SECS))
}
