//! Executions: submit, cancel, run again.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header::{LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use super::extract::{Authenticated, ExecutionId, JsonObject, ReportSlug, only};
use super::follow::{follow, retry_after_secs};
use super::limits::GrantedWait;
use super::prefer::Wait;
use super::problem::Problem;
use super::query::{NoQuery, QueryReader};
use super::resources::{
    ExecutionResource, cancelling_example, completed_example, execution_path, expired_example,
    pending_example,
};
use super::submission::{FormatBody, SubmissionBody};
use crate::report::Excess;
use crate::service::executions::{Followed, IdempotencyKey, Submitted};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What the planner expects.
#[derive(Debug, Serialize, ToSchema)]
pub struct SubmissionEstimate {
    /// Rows that the planner expects.
    pub estimated_rows: f64,
    /// Cost in the planner's units.
    pub estimated_cost: f64,
    /// Most rows that the report may have.
    pub max_rows: u64,
    /// What the estimate is over, if it is: `estimate_over_max_rows` or, for a workbook,
    /// `estimate_over_sheet_rows`.
    #[schema(example = "estimate_over_max_rows")]
    pub over_limit: Option<&'static str>,
    /// Whether a submit is refused for that.
    pub refused: bool,
}

/// What a submit is answered with when there is something to tell already.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    clippy::large_enum_variant,
    reason = "describes two answers in the document; neither is made from it"
)]
enum SubmitAnswer {
    /// It ended in time.
    Finished(ExecutionResource),
    /// It was only checked.
    Estimate(SubmissionEstimate),
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
                (SubmitAnswer = "application/json", examples(
                    ("finished" = (summary = "It ended in time",
                        value = json!(completed_example()))),
                    ("estimate" = (summary = "validate_only=true",
                        value = json!({"estimated_rows": 19850.0, "estimated_cost": 4211.7,
                                       "max_rows": 1000000, "over_limit": null,
                                       "refused": false}))),
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
        let estimate = SubmissionEstimate {
            estimated_rows: estimate.rows,
            estimated_cost: estimate.cost,
            max_rows: estimate.max_rows,
            over_limit: estimate.excess.map(Excess::code),
            refused: estimate.refused,
        };
        return Ok(Json(estimate).into_response());
    }
    let Submitted { execution, replayed } =
        state.services.submit(&caller, &slug, &submission).await?;
    let granted = GrantedWait::from_headers(&state, &headers);
    let wait = granted.as_ref().map_or(Wait::default(), |granted| granted.wait);
    let has_ended = |now: &Followed| now.execution.status.is_final();
    let followed = follow(&state, &caller, execution.id, wait, has_ended).await;
    // It is stored: an error now would make the client submit it again.
    let followed = followed.unwrap_or_else(|_| Followed::without_outlook(execution));
    let ended = granted.is_some() && followed.execution.status.is_final();
    let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = located(status, followed);
    if granted.is_some() {
        let (name, value) = wait.applied();
        response.headers_mut().insert(name, value);
    }
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
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
        example = json!(cancelling_example()),
    ))
)]
pub async fn cancel_execution(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    let execution = state.services.cancel(&caller, id).await?;
    let followed = Followed::without_outlook(execution);
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
    _: NoQuery,
) -> Result<Response, Problem> {
    let execution = state.services.retry(&caller, id).await?;
    let followed = Followed::without_outlook(execution);
    Ok(located(StatusCode::ACCEPTED, followed))
}

/// Delete the result of an execution
///
/// Before its time: the file and its copies go, and the execution stays as `expired`, so that it
/// can be told who ran what. An execution that is shared with others leaves theirs to them. One
/// that has no result yet is cancelled instead, and one that never had any has none to delete.
#[utoipa::path(
    delete,
    path = "/v1/executions/{id}",
    tag = "executions",
    params(("id" = i64, Path, description = "Number of the execution.", example = 71)),
    responses((
        status = 200,
        description = "The result is gone.",
        body = ExecutionResource,
        example = json!(expired_example()),
    ))
)]
pub async fn delete_execution(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Json<ExecutionResource>, Problem> {
    let execution = state.services.delete_result(&caller, id).await?;
    Ok(Json(Followed::without_outlook(execution).into()))
}

/// Make a further format of a finished execution
///
/// Runs the same version of the report with the same parameters into another file, as an execution
/// of its own whose `format_of` is this one. It reads a snapshot of its own: `result.snapshot_at`
/// of the two tells how far apart they are. Asking again for the same file gives the same
/// execution. `GET …/result?format=` of this one then finds it.
#[utoipa::path(
    post,
    path = "/v1/executions/{id}/formats",
    tag = "executions",
    params(("id" = i64, Path, description = "Number of a completed execution.", example = 71)),
    request_body(
        content = FormatBody,
        example = json!({"format": "xlsx", "reader": "spreadsheet"}),
    ),
    responses(
        (
            status = 202,
            description = "It is on its way.",
            body = ExecutionResource,
            headers(("Location" = String, description = "Path of the execution.")),
            example = json!(pending_example()),
        ),
        (
            status = 200,
            description = "It is there.",
            body = ExecutionResource,
            headers(("Location" = String, description = "Path of the execution.")),
            example = json!(completed_example()),
        ),
    )
)]
pub async fn request_format(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let (format, presentation) = SubmissionBody::read_format(object)?;
    let execution = state.services.request_format(&caller, id, format, presentation).await?;
    let done = execution.status.is_final();
    let status = if done { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(located(status, Followed::without_outlook(execution)))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(value) = only(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    // What is not ASCII is as wrong as an empty key, and refused with the same words.
    Ok(Some(value.to_str().unwrap_or_default().parse()?))
}

/// The answer that points to an execution.
fn located(status: StatusCode, followed: Followed) -> Response {
    let location = execution_path(followed.execution.id);
    let retry_after = retry_after_secs(&followed);
    let mut response = (status, Json(ExecutionResource::from(followed))).into_response();
    let fields = response.headers_mut();
    fields.insert(LOCATION, HeaderValue::try_from(location).expect("a path of ASCII"));
    if let Some(seconds) = retry_after {
        fields.insert(RETRY_AFTER, seconds.into());
    }
    response
}
