//! Errors as clients see them: `application/problem+json` (RFC 9457).
//!
//! A handler returns a [`Problem`]; [`render`] adds what only the request knows (`instance`,
//! `trace_id`) and writes the body.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ProblemKind;
use super::trace::TraceId;
use crate::db::executions::Status;
use crate::report::definition::DefinitionFault;
use crate::report::parameters::ParameterError;

/// Media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Longest path that is repeated in `instance`.
const MAX_INSTANCE_BYTES: usize = 2_048;

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

impl From<DefinitionFault> for FieldError {
    /// The pointer leads to the member of the body; the message names what is inside of it.
    fn from(fault: DefinitionFault) -> Self {
        let DefinitionFault { file, position, key, expected } = fault;
        if file == "query" {
            let place = position.map(|at| format!("line {}, column {}: ", at.line, at.column));
            return Self::at("/query", "query", place.unwrap_or_default() + &expected);
        }
        let Some(member) = key.split(' ').next().filter(|member| !member.is_empty()) else {
            return Self::at("", "invalid", expected);
        };
        Self::at(format!("/{member}"), "invalid", format!("{key} {expected}"))
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

    /// Adds a header.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.append(name, value);
        self
    }

    /// What kind it is.
    pub fn kind(&self) -> ProblemKind {
        self.0.kind
    }

    /// This occurrence in words.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Each part of the request that was refused.
    pub fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }

    /// Adds the execution's state.
    pub fn with_execution_status(mut self, status: Status) -> Self {
        self.0.execution_status = Some(status);
        self
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

impl IntoResponse for Problem {
    /// The body comes from `render`, which knows the request.
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
    let instance = (1..=MAX_INSTANCE_BYTES).contains(&path.len()).then(|| path.to_owned());
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
