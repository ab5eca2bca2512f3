//! Errors as clients see them: `application/problem+json` (RFC 9457).
//!
//! The only file with status codes for errors. A handler returns a [`Problem`]; [`render`] adds
//! what only the request knows (`instance`, `trace_id`) and writes the body. What is shown says
//! what to mend; why an internal error happened is in the log, once, under the same trace id.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::trace::TraceId;
use crate::db::executions::Status;
use crate::report::parameters::ParameterError;
use crate::service::ServiceError;

/// Media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Seconds after which a client may ask again when the service lacks something for a while.
const RETRY_SOON_SECS: u32 = 5;
/// Seconds after which a place among a caller's unfinished executions may be free.
const RETRY_PLACE_SECS: u32 = 10;
/// Longest path that is repeated in `instance`.
const MAX_INSTANCE_BYTES: usize = 2_048;

/// What can go wrong. The names are part of the API: they end the `type` of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The body is not JSON.
    MalformedBody,
    /// A query parameter is unknown or cannot be read.
    InvalidQuery,
    /// A header that matters cannot be read.
    InvalidHeader,
    /// No valid token.
    Unauthenticated,
    /// A permission is missing.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The resource does not know the method.
    MethodNotAllowed,
    /// The execution's state does not allow it.
    WrongState,
    /// The first request with this key is still running.
    IdempotencyInFlight,
    /// The result is deleted.
    Expired,
    /// The body is too large.
    BodyTooLarge,
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// The result has no such bytes.
    RangeNotSatisfiable,
    /// The body is JSON, but not what is expected.
    InvalidInput,
    /// The key was used for another request.
    IdempotencyMismatch,
    /// Too many unfinished executions.
    TooManyActive,
    /// Our fault.
    Internal,
    /// The database or the store does not answer.
    Unavailable,
    /// Too many requests in work.
    Overloaded,
    /// The request took too long.
    Timeout,
}

impl ProblemKind {
    /// Every kind, for the documentation.
    pub const ALL: [Self; 20] = [
        Self::MalformedBody,
        Self::InvalidQuery,
        Self::InvalidHeader,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::WrongState,
        Self::IdempotencyInFlight,
        Self::Expired,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::RangeNotSatisfiable,
        Self::InvalidInput,
        Self::IdempotencyMismatch,
        Self::TooManyActive,
        Self::Internal,
        Self::Unavailable,
        Self::Overloaded,
        Self::Timeout,
    ];

    /// Name, status and title.
    const fn parts(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::MalformedBody => {
                ("malformed-body", S::BAD_REQUEST, "The body cannot be read as JSON")
            }
            Self::InvalidQuery => {
                ("invalid-query", S::BAD_REQUEST, "A query parameter is not valid")
            }
            Self::InvalidHeader => ("invalid-header", S::BAD_REQUEST, "A header is not valid"),
            Self::Unauthenticated => {
                ("unauthenticated", S::UNAUTHORIZED, "A valid token is needed")
            }
            Self::Forbidden => ("forbidden", S::FORBIDDEN, "A permission is missing"),
            Self::NotFound => ("not-found", S::NOT_FOUND, "There is no such resource"),
            Self::MethodNotAllowed => (
                "method-not-allowed",
                S::METHOD_NOT_ALLOWED,
                "The resource does not know this method",
            ),
            Self::WrongState => {
                ("wrong-state", S::CONFLICT, "The execution's state does not allow this")
            }
            Self::IdempotencyInFlight => (
                "idempotency-in-flight",
                S::CONFLICT,
                "The first request with this key is still running",
            ),
            Self::Expired => ("expired", S::GONE, "The result was deleted at its time"),
            Self::BodyTooLarge => ("body-too-large", S::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::UnsupportedMediaType => (
                "unsupported-media-type",
                S::UNSUPPORTED_MEDIA_TYPE,
                "The body must be application/json",
            ),
            Self::RangeNotSatisfiable => (
                "range-not-satisfiable",
                S::RANGE_NOT_SATISFIABLE,
                "The result does not have these bytes",
            ),
            Self::InvalidInput => {
                ("invalid-input", S::UNPROCESSABLE_ENTITY, "Parts of the request are not valid")
            }
            Self::IdempotencyMismatch => (
                "idempotency-mismatch",
                S::UNPROCESSABLE_ENTITY,
                "The key was used for another request",
            ),
            Self::TooManyActive => {
                ("too-many-active", S::TOO_MANY_REQUESTS, "Too many unfinished executions")
            }
            Self::Internal => {
                ("internal", S::INTERNAL_SERVER_ERROR, "Something went wrong on the server")
            }
            Self::Unavailable => {
                ("unavailable", S::SERVICE_UNAVAILABLE, "A part of the service does not answer")
            }
            Self::Overloaded => {
                ("overloaded", S::SERVICE_UNAVAILABLE, "Too many requests are in work")
            }
            Self::Timeout => ("timeout", S::SERVICE_UNAVAILABLE, "The request took too long"),
        }
    }

    /// The last part of the `type`.
    pub const fn name(self) -> &'static str {
        self.parts().0
    }

    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        self.parts().1
    }

    /// The same words for every problem of this kind.
    pub const fn title(self) -> &'static str {
        self.parts().2
    }
}

/// One part of a request that was refused. One of `pointer`, `parameter` and `header` is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) into the body; empty for the whole body.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/parameters/since")]
    pub pointer: Option<String>,
    /// Name of a query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// Name of a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// What is wrong, for programs.
    #[schema(example = "type")]
    pub code: &'static str,
    /// What was expected, for people. Never repeats what was given.
    #[schema(example = "must be a date like 2024-01-31")]
    pub message: String,
}

impl FieldError {
    /// A part of the body.
    pub fn at(pointer: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            pointer: Some(pointer.into()),
            parameter: None,
            header: None,
            code,
            message: message.into(),
        }
    }

    /// A query parameter.
    pub fn query(name: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { pointer: None, parameter: Some(name.into()), ..Self::at("", code, message) }
    }

    /// A header.
    pub fn header(name: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { pointer: None, header: Some(name.into()), ..Self::at("", code, message) }
    }
}

impl From<ParameterError> for FieldError {
    fn from(error: ParameterError) -> Self {
        Self::at(error.pointer, error.code.as_str(), error.message)
    }
}

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// What kind of problem; a path of this service, documented there.
    #[serde(rename = "type")]
    #[schema(example = "/problems/invalid-input")]
    problem_type: String,
    /// The kind in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// This occurrence in words.
    #[schema(example = "2 parameters are not valid")]
    detail: String,
    /// The path that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/v1/reports/gpa-ranking/executions")]
    instance: Option<String>,
    /// Trace of the request: give it to whoever looks after the service.
    #[schema(example = "4bf92f3577b34da6a3ce929d0e0e4736")]
    trace_id: String,
    /// Each part of the request that was refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// The execution's state, where that is the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_status: Option<Status>,
}

/// Why a request is not answered as asked. Small: it is the error of every handler.
#[derive(Debug, Clone)]
pub struct Problem(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    kind: ProblemKind,
    detail: String,
    errors: Vec<FieldError>,
    execution_status: Option<Status>,
    headers: HeaderMap,
}

impl Problem {
    /// A problem, in words for this occurrence.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            execution_status: None,
            headers: HeaderMap::new(),
        }))
    }

    /// A problem with parts of the request.
    pub fn with_errors(kind: ProblemKind, errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => one.message.clone(),
            many => format!("{} parts of the request are not valid", many.len()),
        };
        let mut problem = Self::new(kind, detail);
        problem.0.errors = errors;
        problem
    }

    /// Too much at once, or something is away: the client should come back.
    pub fn retry_soon(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self::new(kind, detail).with_header(RETRY_AFTER, RETRY_SOON_SECS.into())
    }

    /// Adds a header.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.append(name, value);
        self
    }

    /// A token is missing or not valid; `given` tells which (RFC 6750, section 3).
    pub fn unauthenticated(given: bool) -> Self {
        let challenge = if given {
            r#"Bearer realm="registrar", error="invalid_token""#
        } else {
            r#"Bearer realm="registrar""#
        };
        Self::new(ProblemKind::Unauthenticated, "send `Authorization: Bearer` and a valid token")
            .with_header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    fn too_many_active(limit: u32) -> Self {
        let policy = format!("\"active\";q={limit}");
        let left = format!("\"active\";r=0;t={RETRY_PLACE_SECS}");
        let header = |text: String| HeaderValue::try_from(text).expect("digits and ASCII");
        Self::new(
            ProblemKind::TooManyActive,
            format!("at most {limit} executions may be unfinished at once: wait or cancel some"),
        )
        .with_header(RETRY_AFTER, RETRY_PLACE_SECS.into())
        .with_header(HeaderName::from_static("ratelimit-policy"), header(policy))
        .with_header(HeaderName::from_static("ratelimit"), header(left))
    }

    /// The body as JSON, for the documentation.
    pub(super) fn into_json(self, instance: Option<String>, trace: &TraceId) -> serde_json::Value {
        serde_json::to_value(self.into_body(instance, trace)).expect("its keys are strings")
    }

    fn into_body(self, instance: Option<String>, trace_id: &TraceId) -> ProblemBody {
        let Inner { kind, detail, errors, execution_status, headers: _ } = *self.0;
        ProblemBody {
            problem_type: format!("/problems/{}", kind.name()),
            title: kind.title(),
            status: kind.status().as_u16(),
            detail,
            instance,
            trace_id: trace_id.to_string(),
            errors,
            execution_status,
        }
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        use ProblemKind as Kind;
        let detail = error.to_string();
        match error {
            ServiceError::Unauthenticated => Self::unauthenticated(true),
            ServiceError::Forbidden { .. } => Self::new(Kind::Forbidden, detail),
            ServiceError::NotFound { .. } => Self::new(Kind::NotFound, detail),
            ServiceError::BadParameters(errors) => Self::with_errors(
                Kind::InvalidInput,
                errors.into_iter().map(FieldError::from).collect(),
            ),
            ServiceError::BadField { field, expected } if field.starts_with('/') => {
                Self::with_errors(
                    Kind::InvalidInput,
                    vec![FieldError::at(field, "invalid", expected)],
                )
            }
            ServiceError::BadField { field, expected } => Self::with_errors(
                Kind::InvalidHeader,
                vec![FieldError::header(field, "invalid", expected)],
            ),
            ServiceError::WrongState { status } => {
                let mut problem = Self::new(Kind::WrongState, detail);
                problem.0.execution_status = Some(status);
                problem
            }
            ServiceError::Expired => Self::new(Kind::Expired, detail),
            ServiceError::IdempotencyMismatch => Self::new(Kind::IdempotencyMismatch, detail),
            ServiceError::IdempotencyInFlight => {
                Self::retry_soon(Kind::IdempotencyInFlight, detail)
            }
            ServiceError::TooManyActive { limit } => Self::too_many_active(limit),
            ServiceError::DatabaseUnavailable(source) => {
                tracing::warn!(error = chain(&source), "{detail}");
                Self::retry_soon(Kind::Unavailable, detail)
            }
            ServiceError::StoreUnavailable(source) => {
                tracing::warn!(error = chain(&source), "{detail}");
                Self::retry_soon(Kind::Unavailable, detail)
            }
            ServiceError::Internal(source) => {
                tracing::error!(error = format!("{source:#}"), "{detail}");
                Self::new(Kind::Internal, "the error is in the server's log under this trace id")
            }
        }
    }
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}

impl IntoResponse for Problem {
    /// The body comes from [`render`], which knows the request.
    fn into_response(self) -> Response {
        let mut response = self.0.kind.status().into_response();
        response.headers_mut().extend(self.0.headers.clone());
        response.extensions_mut().insert(self);
        response
    }
}

/// Middleware: writes the bodies of problems.
pub async fn render(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let instance = (path.len() <= MAX_INSTANCE_BYTES).then(|| path.to_owned());
    let trace_id = request.extensions().get::<TraceId>().cloned().unwrap_or_default();
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let body = serde_json::to_vec(&problem.into_body(instance, &trace_id))
            .expect("strings and numbers are JSON");
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        *response.body_mut() = Body::from(body);
    }
    response
}

/// Answers requests for paths that no route has.
pub async fn not_found() -> Problem {
    Problem::new(ProblemKind::NotFound, "nothing is at this path; /docs lists what there is")
}

/// Answers requests with a method that the route does not have; the router adds `Allow`.
pub async fn method_not_allowed() -> Problem {
    let allow = ALLOW.as_str();
    Problem::new(ProblemKind::MethodNotAllowed, format!("the header `{allow}` lists the methods"))
}
