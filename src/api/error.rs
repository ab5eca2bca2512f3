//! What can go wrong, and what each error of a service is in HTTP.
//!
//! The only file with status codes for errors. What is shown says what to mend; why an internal
//! error happened is in the log, once, under the same trace id.

use axum::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};

use super::problem::{FieldError, Problem};
use crate::backup::BackupError;
use crate::service::ServiceError;

/// Seconds after which a client may ask again when the service lacks something for a while.
const RETRY_SOON_SECS: u32 = 5;
/// Seconds after which a place among a caller's unfinished executions may be free.
const RETRY_PLACE_SECS: u32 = 10;

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
    /// A safety rule refuses it.
    Refused,
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
    /// The report itself is at fault.
    ReportFails,
    /// More is expected than the report allows.
    EstimateOverLimit,
    /// The key was used for another request.
    IdempotencyMismatch,
    /// Too many unfinished executions.
    TooManyActive,
    /// Too many attempts to sign in.
    TooManySignIns,
    /// A form came from another site, or from a session that is over.
    ForeignForm,
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
    pub const ALL: [Self; 25] = [
        Self::MalformedBody,
        Self::InvalidQuery,
        Self::InvalidHeader,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::WrongState,
        Self::Refused,
        Self::IdempotencyInFlight,
        Self::Expired,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::RangeNotSatisfiable,
        Self::InvalidInput,
        Self::ReportFails,
        Self::EstimateOverLimit,
        Self::IdempotencyMismatch,
        Self::TooManyActive,
        Self::TooManySignIns,
        Self::ForeignForm,
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
                ("wrong-state", S::CONFLICT, "The current state does not allow this")
            }
            Self::Refused => ("refused", S::CONFLICT, "A safety rule refuses this"),
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
            Self::ReportFails => {
                ("report-fails", S::UNPROCESSABLE_ENTITY, "The report cannot be run as it is")
            }
            Self::EstimateOverLimit => (
                "estimate-over-limit",
                S::UNPROCESSABLE_ENTITY,
                "More rows are expected than the report allows",
            ),
            Self::IdempotencyMismatch => (
                "idempotency-mismatch",
                S::UNPROCESSABLE_ENTITY,
                "The key was used for another request",
            ),
            Self::TooManyActive => {
                ("too-many-active", S::TOO_MANY_REQUESTS, "Too many unfinished executions")
            }
            Self::TooManySignIns => {
                ("too-many-sign-ins", S::TOO_MANY_REQUESTS, "Too many attempts to sign in")
            }
            Self::ForeignForm => {
                ("foreign-form", S::FORBIDDEN, "The request does not come from this console")
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

impl Problem {
    /// Too much at once, or something is away: the client should come back.
    pub fn retry_soon(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self::new(kind, detail).with_header(RETRY_AFTER, RETRY_SOON_SECS.into())
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
            ServiceError::BadDefinition(faults) => Self::with_errors(
                Kind::InvalidInput,
                faults.into_iter().map(FieldError::from).collect(),
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
            ServiceError::ReportFails { code, message } => {
                Self::with_errors(Kind::ReportFails, vec![FieldError::at("", code, message)])
            }
            ServiceError::OverEstimate { code, .. } => {
                let error = FieldError::at("", code, detail);
                Self::with_errors(Kind::EstimateOverLimit, vec![error])
            }
            ServiceError::WrongState { status } => {
                Self::new(Kind::WrongState, detail).with_execution_status(status)
            }
            ServiceError::Refused { code, message } => {
                Self::with_errors(Kind::Refused, vec![FieldError::at("", code, message)])
            }
            ServiceError::HoldEnded => Self::new(Kind::WrongState, detail),
            ServiceError::BadPolicies(_) => {
                tracing::error!("{detail}");
                Self::retry_soon(Kind::Unavailable, detail)
            }
            ServiceError::Expired => Self::new(Kind::Expired, detail),
            ServiceError::IdempotencyMismatch => Self::new(Kind::IdempotencyMismatch, detail),
            ServiceError::IdempotencyInFlight => {
                Self::retry_soon(Kind::IdempotencyInFlight, detail)
            }
            ServiceError::TooManyActive { limit } => Self::too_many_active(limit),
            ServiceError::TooManySignIns { retry_after_secs } => {
                Self::new(Kind::TooManySignIns, detail)
                    .with_header(RETRY_AFTER, retry_after_secs.into())
            }
            ServiceError::DatabaseUnavailable(source) => {
                tracing::warn!(error = chain(&source), "{detail}");
                Self::retry_soon(Kind::Unavailable, detail)
            }
            ServiceError::StoreUnavailable(source) => {
                tracing::warn!(error = chain(&source), "{detail}");
                Self::retry_soon(Kind::Unavailable, detail)
            }
            ServiceError::Backup(error) if matches!(*error, BackupError::NotFound(_)) => {
                Self::new(Kind::NotFound, "there is no such backup")
            }
            ServiceError::Backup(error) => {
                tracing::error!(error = chain(&*error), "a backup failed");
                Self::new(Kind::Internal, "the error is in the server's log under this trace id")
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

/// Answers requests for paths that no route has.
pub async fn not_found() -> Problem {
    Problem::new(ProblemKind::NotFound, "nothing is at this path; /docs lists what there is")
}

/// Answers requests with a method that the route does not have; the router adds `Allow`.
pub async fn method_not_allowed() -> Problem {
    let allow = ALLOW.as_str();
    Problem::new(ProblemKind::MethodNotAllowed, format!("the header `{allow}` lists the methods"))
}
