//! What every page's answer has: protection, and problems as pages.

use axum::extract::{Request, State};
use axum::http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use minijinja::context;
use url::form_urlencoded;

use super::Console;
use crate::api::{Problem, ProblemKind, TraceId};

/// Nothing from elsewhere, nothing inline, in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";

/// HTML.
pub fn html(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, "text/html; charset=utf-8")], body).into_response()
}

/// To another page of ours, by GET. The path is ours: text from outside is encoded into it.
pub fn see_other(path: &str) -> Response {
    let location = HeaderValue::try_from(path).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response()
}

/// Middleware: headers that hold for every page and asset.
pub async fn protect(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Middleware: a problem becomes a page; who is not signed in comes to the form for that.
pub async fn problems_as_pages(
    State(console): State<Console>,
    request: Request,
    next: Next,
) -> Response {
    let is_get = request.method() == Method::GET;
    let wanted = request.uri().path_and_query().map(|path| path.as_str().to_owned());
    let trace_id = request.extensions().get::<TraceId>().cloned().unwrap_or_default();
    let mut response = next.run(request).await;
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    if matches!(problem.kind(), ProblemKind::Unauthenticated) {
        let wanted = wanted.filter(|path| is_get && path.len() <= 1_000 && path != "/");
        let query = wanted.map(|path| {
            let encoded: String = form_urlencoded::byte_serialize(path.as_bytes()).collect();
            format!("?next={encoded}")
        });
        return see_other(&format!("/sign-in{}", query.unwrap_or_default()));
    }
    let errors: Vec<_> = problem.errors().iter().map(|error| error.message.clone()).collect();
    let page = console.pages.render_alone(
        "problem.html",
        problem.kind().title(),
        context! {
            detail => problem.detail(),
            errors => if errors.len() > 1 { errors } else { Vec::new() },
            status => problem.kind().status().as_u16(),
            trace_id => trace_id.to_string(),
        },
    );
    let mut shown = html(problem.kind().status(), page);
    // `Retry-After` and its like.
    for (name, value) in response.headers() {
        if name != CONTENT_TYPE {
            shown.headers_mut().append(name, value.clone());
        }
    }
    shown
}
