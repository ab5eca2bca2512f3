//! What may be kept of answers: nothing, unless the handler says otherwise.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::middleware::Next;
use axum::response::Response;

/// Middleware: answers are about people, and belong in no cache that nobody thought about.
pub async fn forbid_storing(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let store = response.headers_mut().entry(CACHE_CONTROL);
    store.or_insert(HeaderValue::from_static("private, no-store"));
    response
}
