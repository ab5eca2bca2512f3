//! Following an execution: its state now, or when there is news.

use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::ApiState;
use super::etag::ETag;
use super::extract::{Authenticated, ExecutionId};
use super::limits::GrantedWait;
use super::prefer::Wait;
use super::problem::Problem;
use super::query::NoQuery;
use super::resources::{ExecutionResource, completed_example};
use crate::db::executions::Status;
use crate::service::Caller;
use crate::service::executions::Followed;

/// First and longest pause between two looks of a long poll.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// Longest time that a client is asked to wait before it looks again.
const MAX_RETRY_AFTER_SECS: i64 = 30;

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
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let first = state.services.follow(&caller, id).await?;
    let Some(granted) = GrantedWait::from_headers(&state, &headers) else {
        return Ok(shown(first, &headers));
    };
    let before = first.execution.status;
    let conditional = headers.contains_key(IF_NONE_MATCH);
    let news = |now: &Followed| {
        let execution = &now.execution;
        let seen = if conditional { is_known(now, &headers) } else { execution.status == before };
        execution.status.is_final() || !seen
    };
    let followed = follow(&state, &caller, id, granted.wait, news).await?;
    let mut response = shown(followed, &headers);
    let (name, value) = granted.wait.applied();
    response.headers_mut().insert(name, value);
    Ok(response)
}

/// Looks until `done` says so, the time is over, or the process is asked to stop.
pub async fn follow(
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
    ETag::of(&representation(followed.clone())).is_known_to(headers)
}

/// The bytes that an entity tag and the id of an event stand for.
pub fn representation(followed: Followed) -> Vec<u8> {
    serde_json::to_vec(&ExecutionResource::from(followed)).expect("its keys are strings")
}

/// When looking again is worth it; `None` in a final state.
pub fn retry_after_secs(followed: &Followed) -> Option<i64> {
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
