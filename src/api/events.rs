//! An execution's story as server-sent events (WHATWG HTML, section 9.2), for pages that watch.
//!
//! An event is the whole execution, and its id names that representation: who comes back with
//! `Last-Event-ID` is told only what is new. A stream ends after a minute, so that a token that was
//! taken back is noticed when the client returns, as every client of events does by itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::etag::ETag;
use super::extract::{Authenticated, ExecutionId, only};
use super::follow::representation;
use super::limits::Place;
use super::problem::Problem;
use super::query::NoQuery;
use crate::service::Caller;
use crate::service::executions::Followed;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How often the execution is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A comment is sent when nothing else was for so long: proxies end connections that are silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// When a client that was cut off comes back.
const COME_BACK: Duration = Duration::from_secs(2);
/// Longest stream; the client comes back, and its token is looked at again.
const LONGEST_STREAM: Duration = Duration::from_secs(60);

/// An event of an execution.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes what axum writes")]
pub struct ExecutionEvent {
    /// `execution`.
    event: String,
    /// Of this representation, for `Last-Event-ID`.
    id: String,
    /// When to come back, in milliseconds.
    #[schema(required = false)]
    retry: u64,
    /// The execution as JSON.
    data: String,
}

/// Watch an execution
///
/// Events named `execution`, each with the execution as `GET /v1/executions/{id}` shows it: one at
/// once, then one whenever something changes, the last one in a final state. The stream ends there,
/// and after a minute in any case.
#[utoipa::path(
    get,
    path = "/v1/executions/{id}/events",
    tag = "executions",
    params(
        ("id" = i64, Path, description = "Number of the execution.", example = 71),
        ("Last-Event-ID" = Option<String>, Header,
            description = "The id of the last event that you have: you get only what is new."),
    ),
    responses(
        (
            status = 200,
            description = "Server-sent events.",
            content((ExecutionEvent = "text/event-stream", example =
                "event: execution\nid: 9f86d081884c7d65\ndata: {\"id\":71,\"status\":\"processing\"}\n\n")),
        ),
        (status = 204, description = "It has ended, and you know how: do not come back."),
    )
)]
pub async fn watch_execution(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let known =
        only(&headers, &LAST_EVENT_ID)?.and_then(|value| value.to_str().ok()).map(ETag::from_hex);
    let first = state.services.follow(&caller, id).await?;
    if first.execution.status.is_final() && known == Some(ETag::of(&representation(first.clone())))
    {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let permit = Arc::clone(&state.waits)
        .try_acquire_owned()
        .map_err(|_| Problem::retry_soon(ProblemKind::Overloaded, "too many clients watch"))?;
    let watch = Watch {
        state,
        caller,
        id,
        known,
        next: Some(first),
        until: Instant::now() + LONGEST_STREAM,
        has_ended: false,
        _place: place,
        _permit: permit,
    };
    let events = futures::stream::unfold(watch, Watch::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// A client that watches.
struct Watch {
    state: ApiState,
    caller: Caller,
    id: i64,
    /// What the client has.
    known: Option<ETag>,
    /// What was looked up already.
    next: Option<Followed>,
    until: Instant,
    has_ended: bool,
    // Held to the last event: who watches takes a place among the requests in work, and among
    // those that wait.
    _place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    /// The next event, when there is news. An error ends the stream: the client comes back, and is
    /// told then.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.has_ended {
            return None;
        }
        loop {
            let followed = match self.next.take() {
                Some(first) => first,
                None => self.look().await?,
            };
            let ended = followed.execution.status.is_final();
            let body = representation(followed);
            let tag = ETag::of(&body);
            if self.known.as_ref() == Some(&tag) {
                continue;
            }
            self.has_ended = ended;
            let event = Event::default()
                .event("execution")
                .id(tag.as_str())
                .retry(COME_BACK)
                .data(String::from_utf8_lossy(&body));
            self.known = Some(tag);
            return Some((Ok(event), self));
        }
    }

    async fn look(&self) -> Option<Followed> {
        tokio::select! {
            () = self.state.shutdown.cancelled() => return None,
            () = tokio::time::sleep_until(self.until.min(Instant::now() + LOOK_EVERY)) => {}
        }
        if Instant::now() >= self.until {
            return None;
        }
        self.state.services.follow(&self.caller, self.id).await.ok()
    }
}
