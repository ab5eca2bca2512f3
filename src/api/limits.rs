//! Bounds on requests: how many at once, how long, and that a panic ends one of them only.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tokio::sync::OwnedSemaphorePermit;

use super::ApiState;
use super::error::ProblemKind;
use super::prefer::Wait;
use super::problem::Problem;

/// A place among the requests in work. A download keeps it until its last byte, longer than the
/// handler: many slow readers are a load as well.
#[derive(Debug, Clone)]
pub struct Place(
    #[expect(dead_code, reason = "held, and given back when dropped")] Arc<OwnedSemaphorePermit>,
);

/// Middleware: takes a place, or refuses at once. Nobody queues here.
pub async fn shed(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    match Arc::clone(&state.in_flight).try_acquire_owned() {
        Ok(permit) => {
            let place = Place(Arc::new(permit));
            request.extensions_mut().insert(place.clone());
            let response = next.run(request).await;
            drop(place);
            response
        }
        Err(_) => Problem::retry_soon(ProblemKind::Overloaded, "too many requests are in work")
            .into_response(),
    }
}

/// A client's wait, as it is granted.
#[derive(Debug)]
pub struct GrantedWait {
    /// How long.
    pub wait: Wait,
    _permit: OwnedSemaphorePermit,
}

impl GrantedWait {
    /// What the client wishes, if there is room for one more that waits. Otherwise it is answered
    /// at once, which RFC 7240 permits.
    pub fn from_headers(state: &ApiState, headers: &HeaderMap) -> Option<Self> {
        let wait = Wait::from_headers(headers)?;
        let permit = Arc::clone(&state.waits).try_acquire_owned().ok()?;
        Some(Self { wait, _permit: permit })
    }
}

/// Middleware: an answer must begin in time. A wait that the client asked for comes on top.
pub async fn time_out(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let wait = Wait::from_headers(request.headers()).map_or(Duration::ZERO, Wait::duration);
    let limit = state.request_timeout().saturating_add(wait);
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::retry_soon(
            ProblemKind::Timeout,
            format!("no answer within {} s", limit.as_secs()),
        )
        .into_response(),
    }
}

/// Middleware: a panic in a handler is an error of this request. The panic hook has logged where.
pub async fn catch_panics(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!("a request handler panicked");
            Problem::new(
                ProblemKind::Internal,
                "the error is in the server's log under this trace id",
            )
            .into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::middleware::from_fn;
    use tower::Service;

    use super::super::problem::render;
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_500_that_tells_nothing() {
        async fn panics() -> Response {
            panic!("a secret")
        }
        let mut app = Router::<()>::new()
            .fallback(panics)
            .layer(from_fn(catch_panics))
            .layer(from_fn(render));
        let request = Request::builder().uri("/somewhere").body(Body::empty()).expect("a request");
        let response = app.call(request).await.expect("a router cannot fail");
        assert_eq!(response.status(), 500);
        let body = to_bytes(response.into_body(), 10_000).await.expect("a small body");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["type"], "/problems/internal");
        assert_eq!(body["instance"], "/somewhere");
        assert!(!body.to_string().contains("secret"), "{body}");
    }
}
