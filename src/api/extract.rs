//! What handlers take out of a request: the caller, the parts of the path, the body.
//!
//! A handler takes the caller first, so that 401 comes before anything else. A part of the path
//! that cannot name anything is not refused here: it becomes a name that nothing has, so that the
//! service answers 403 or 404 as for any other name.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Path, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::error::ProblemKind;
use super::problem::{FieldError, Problem};
use super::trace::TraceId;
use super::{ApiState, session};
use crate::db::audit::Actor;
use crate::db::schedules::ScheduleName;
use crate::report::definition::Slug;
use crate::service::Caller;

/// Longest `User-Agent` that is kept, in characters.
const MAX_USER_AGENT_CHARS: usize = 512;

/// The caller, by the bearer token, or by the console's session.
#[derive(Debug)]
pub struct Authenticated(pub Caller);

impl FromRequestParts<ApiState> for Authenticated {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let given = parts.headers.contains_key(AUTHORIZATION);
        if !given && let Some(secret) = session::session_secret(&parts.headers) {
            return session::authenticate(state, parts, secret).await.map(Self);
        }
        let token = bearer_token(&parts.headers).ok_or_else(|| Problem::unauthenticated(given))?;
        let trace_id = parts.extensions.get::<TraceId>().cloned().unwrap_or_default();
        let caller = state.services.authenticate(token, actor(parts), trace_id.to_string()).await?;
        Ok(Self(caller))
    }
}

/// The token of `Authorization: Bearer …`; `None` where there is none, or more than one.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = only(headers, &AUTHORIZATION).ok()??.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

/// The value of a header that may be there once.
///
/// # Errors
/// A [`Problem`] that names the header where it is there twice.
pub fn only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        let error = FieldError::header(name.as_str(), "repeated", "may be sent only once");
        return Err(Problem::with_errors(ProblemKind::InvalidHeader, vec![error]));
    }
    Ok(first)
}

/// Who acts, for the audit: the connection's address, because a header can say anything.
pub fn actor(parts: &Parts) -> Actor {
    Actor {
        user_id: None,
        ip_address: parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|ConnectInfo(address)| address.ip().to_canonical()),
        user_agent: parts
            .headers
            .get(USER_AGENT)
            .map(|value| readable(value.as_bytes()))
            .filter(|text| !text.is_empty()),
    }
}

/// What of a header can be stored and shown: UTF-8 without control characters, cut.
fn readable(bytes: &[u8]) -> String {
    bytes
        .utf8_chunks()
        .flat_map(|chunk| chunk.valid().chars())
        .filter(|character| !character.is_control())
        .take(MAX_USER_AGENT_CHARS)
        .collect()
}

/// The number of an execution in the path; 0, which none has, for other text.
#[derive(Debug, Clone, Copy)]
pub struct ExecutionId(pub i64);

impl<S: Send + Sync> FromRequestParts<S> for ExecutionId {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        // Fails where the path holds bytes that are not UTF-8.
        let text = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(text.ok().and_then(|Path(text)| execution_id(&text)).unwrap_or(0)))
    }
}

/// One number has one name: no sign, no leading zero.
fn execution_id(text: &str) -> Option<i64> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if canonical { text.parse().ok() } else { None }
}

/// The slug of a report in the path; empty, which none is, for text that is no slug.
#[derive(Debug)]
pub struct ReportSlug(pub String);

impl<S: Send + Sync> FromRequestParts<S> for ReportSlug {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let slug = text.ok().and_then(|Path(text)| text.parse::<Slug>().ok());
        Ok(Self(slug.map(|slug| slug.to_string()).unwrap_or_default()))
    }
}

/// The name of a schedule in the path; empty, which none has, for text that is no name.
#[derive(Debug)]
pub struct NameInPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for NameInPath {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let name = text.ok().and_then(|Path(text)| text.parse::<ScheduleName>().ok());
        Ok(Self(name.map(|name| name.as_str().to_owned()).unwrap_or_default()))
    }
}

/// The last part of the path that can be chosen, as text; empty, which names nothing, where it is
/// not UTF-8 or holds NUL, which PostgreSQL cannot look for.
#[derive(Debug)]
pub struct PathText(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let text = text.ok().filter(|Path(text)| !text.contains('\0'));
        Ok(Self(text.map(|Path(text)| text).unwrap_or_default()))
    }
}

/// A body that is a JSON object.
#[derive(Debug)]
pub struct JsonObject(pub Map<String, Value>);

impl FromRequest<ApiState> for JsonObject {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                ProblemKind::UnsupportedMediaType,
                "send `Content-Type: application/json`",
            ));
        }
        let limit = state.services.config.http.max_body_bytes.get();
        let too_large =
            || Problem::new(ProblemKind::BodyTooLarge, format!("a body has at most {limit} bytes"));
        // What is announced as too large need not be waited for.
        if announced_bytes(request.headers()).is_some_and(|bytes| bytes > limit as u64) {
            return Err(too_large());
        }
        let bytes =
            Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
                BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                    too_large()
                }
                _ => Problem::new(ProblemKind::MalformedBody, "the body ended too early"),
            })?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(_) => Err(Problem::with_errors(
                ProblemKind::InvalidInput,
                vec![FieldError::at("", "type", "must be a JSON object")],
            )),
            Err(error) => Err(Problem::with_errors(
                ProblemKind::MalformedBody,
                vec![FieldError::at("", "syntax", json_fault(&error))],
            )),
        }
    }
}

/// The length that a client announces.
fn announced_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Where JSON breaks off. serde_json's own message can repeat what was given.
fn json_fault(error: &serde_json::Error) -> String {
    format!("must be JSON; line {}, column {} is not", error.line(), error.column())
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(text) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_scheme_is_read_in_any_case() {
        for (value, expected) in [
            ("Bearer rgs_1", Some("rgs_1")),
            ("bearer  rgs_1 ", Some("rgs_1")),
            ("Basic rgs_1", None),
            ("rgs_1", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(bearer_token(&headers), expected, "{value}");
        }
    }

    #[test]
    fn two_tokens_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer rgs_1"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer rgs_2"));
        assert_eq!(bearer_token(&headers), None);
    }

    #[test]
    fn an_execution_has_one_name() {
        assert_eq!(execution_id("71"), Some(71));
        assert_eq!(execution_id("9223372036854775807"), Some(i64::MAX));
        for text in ["", "0", "071", "-1", "+1", "1.0", "9223372036854775808", "x", "1\0", "١"] {
            assert_eq!(execution_id(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_user_agent_is_kept_readable() {
        assert_eq!(readable(b"curl/8\x07\xff ok\xc3\xa9"), "curl/8 ok\u{e9}");
        assert_eq!(readable(&[b'a'; 2_000]).len(), MAX_USER_AGENT_CHARS);
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let text = readable(&bytes);
            prop_assert!(text.chars().count() <= MAX_USER_AGENT_CHARS);
            prop_assert!(!text.chars().any(char::is_control));
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(AUTHORIZATION, value.clone());
                headers.insert(CONTENT_TYPE, value);
                bearer_token(&headers);
                is_json(&headers);
            }
        }
    }
}
