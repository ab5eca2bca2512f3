//! The console's session, which counts in the API too: pages download files and open documents.
//!
//! A browser sends a cookie whoever made the page, so a request that changes something needs more:
//! the session's form token in `X-CSRF-Token`, which other sites cannot read.

use axum::http::header::{COOKIE, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method};

use super::ApiState;
use super::error::ProblemKind;
use super::extract::actor;
use super::problem::Problem;
use super::trace::TraceId;
use crate::service::Caller;

/// Name of the cookie.
pub const SESSION_COOKIE: &str = "registrar_session";
const CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The secret of the session that a request comes with; `None` without one, or with two that may
/// not be of the same maker.
pub fn session_secret(headers: &HeaderMap) -> Option<&str> {
    let mut found = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(SESSION_COOKIE)?.strip_prefix('='));
    let first = found.next()?;
    (found.next().is_none() && !first.is_empty()).then_some(first)
}

/// Whether a request may come from one of our own pages, as far as its headers tell. A browser
/// that tells nothing is one whose form token decides.
pub fn is_same_site(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return site == "same-origin" || site == "none";
    }
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    matches!((origin, host), (Some((_, origin)), Some(host)) if origin == host)
}

/// The caller of a request that comes with a session.
///
/// # Errors
/// 401 for a session that is over, 403 for a change without the form token.
pub(super) async fn authenticate(
    state: &ApiState,
    parts: &Parts,
    secret: &str,
) -> Result<Caller, Problem> {
    let trace_id = parts.extensions.get::<TraceId>().cloned().unwrap_or_default();
    let services = &state.services;
    let session = services.authenticate_session(secret, actor(parts), trace_id.to_string()).await?;
    let given = parts.headers.get(CSRF_TOKEN).map(|value| value.as_bytes());
    let is_safe = matches!(parts.method, Method::GET | Method::HEAD);
    if !is_safe && given != Some(session.csrf_token.as_bytes()) {
        let detail = "a change by the console's session needs its `X-CSRF-Token`";
        return Err(Problem::new(ProblemKind::ForeignForm, detail));
    }
    Ok(session.caller)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_static(name);
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn one_session_is_read() {
        for (cookies, expected) in [
            ("registrar_session=ab", Some("ab")),
            ("a=b; registrar_session=ab; c=d", Some("ab")),
            ("registrar_session=ab; registrar_session=cd", None),
            ("xregistrar_session=ab", None),
            ("registrar_session=", None),
            ("registrar_sessionab", None),
        ] {
            assert_eq!(session_secret(&headers(&[("cookie", cookies)])), expected, "{cookies}");
        }
    }

    #[test]
    fn other_sites_are_told_apart() {
        for (pairs, expected) in [
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("origin", "https://a.example"), ("host", "a.example")], true),
            (&[("origin", "https://b.example"), ("host", "a.example")], false),
            (&[("origin", "null"), ("host", "a.example")], false),
            (&[("host", "a.example")], true),
        ] {
            assert_eq!(is_same_site(&headers(pairs)), expected, "{pairs:?}");
        }
    }
}
