//! The OpenAPI document: collected from the handlers, completed with what all of them share.

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use super::error::ProblemKind;
use super::problem::{FieldError, PROBLEM_JSON, Problem, ProblemBody};
use super::trace::TraceId;

const BEARER: &str = "bearer";
/// Where references to schemas lead.
const SCHEMAS: &str = "#/components/schemas/";
const DESCRIPTION: &str = "Runs slow reports of a PostgreSQL application in the background.\n\n\
    Submit a report, follow its execution, fetch the file. Errors are problem details (RFC 9457).";

const TAGS: [(&str, &str); 10] = [
    ("reports", "What can be run."),
    ("executions", "Runs of reports: submit, follow, cancel."),
    ("results", "Files of completed executions."),
    ("schedules", "Reports that run by themselves."),
    ("lifecycle", "Archive, anonymize and purge by policy; legal holds; erasures and their proof."),
    ("backups", "What could be restored, and whether that was tried."),
    ("webhooks", "Who is told of events, as Standard Webhooks has it."),
    ("tokens", "Who may call, with which rights, and until when."),
    ("operations", "For orchestrators and collectors; open."),
    ("documentation", "This document."),
];

/// The document: every route of the router, every answer, with examples.
pub fn openapi() -> OpenApi {
    let tags =
        TAGS.map(|(name, about)| TagBuilder::new().name(name).description(Some(about)).build());
    let start = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Registrar")
                .version(env!("CARGO_PKG_VERSION"))
                .license(Some(LicenseBuilder::new().name(env!("CARGO_PKG_LICENSE")).build()))
                .description(Some(DESCRIPTION)),
        )
        .tags(Some(tags))
        .build();
    let mut document = OpenApiRouter::with_openapi(start)
        .merge(super::v1())
        .merge(super::operational())
        .into_openapi();
    type_headers(&mut document);
    close_bodies(&mut document);
    add_problems(&mut document);
    add_security(&mut document);
    document
}

/// A body has no fields that are not described: each that is unknown is refused.
fn close_bodies(document: &mut OpenApi) {
    let items = document.paths.paths.values_mut();
    let bodies = items.flat_map(operations).filter_map(|o| match o.request_body.as_ref()? {
        RefOr::T(body) => Some(body),
        RefOr::Ref(_) => None,
    });
    let contents = bodies.flat_map(|body| body.content.values());
    let schemas: Vec<_> = contents
        .filter_map(|content| match content {
            RefOr::T(content) => content.schema.as_ref(),
            RefOr::Ref(_) => None,
        })
        .filter_map(|schema| match schema {
            RefOr::Ref(to) => to.ref_location.strip_prefix(SCHEMAS).map(str::to_owned),
            RefOr::T(_) => None,
        })
        .collect();
    let components = document.components.get_or_insert_default();
    for name in schemas {
        if let Some(RefOr::T(Schema::Object(body))) = components.schemas.get_mut(&name) {
            body.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
}

/// A header is there or not, and never null: `Option` in a handler's description says too much.
fn type_headers(document: &mut OpenApi) {
    let items = document.paths.paths.values_mut();
    let parameters = items.flat_map(operations).filter_map(|o| o.parameters.as_mut()).flatten();
    for parameter in parameters {
        if let RefOr::T(parameter) = parameter
            && parameter.parameter_in == ParameterIn::Header
        {
            let text = ObjectBuilder::new().schema_type(Type::String);
            parameter.schema = Some(match parameter.name.as_str() {
                "Idempotency-Key" => text.pattern(Some("^[!-~]{1,255}$")).into(),
                _ => text.into(),
            });
        }
    }
}

fn add_security(document: &mut OpenApi) {
    let mut http = Http::new(HttpAuthScheme::Bearer);
    http.description = Some("A token of `registrar token create`: `rgs_…`.".to_owned());
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(http));
    for (path, item) in &mut document.paths.paths {
        if is_secured(path) {
            for operation in operations(item) {
                operation.security =
                    Some(vec![SecurityRequirement::new(BEARER, Vec::<String>::new())]);
            }
        }
    }
}

/// One response for each status, with an example for each kind of problem, shared by operations.
fn add_problems(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    let mut schemas = Vec::new();
    ProblemBody::schemas(&mut schemas);
    components.schemas.extend(schemas);
    components.schemas.insert(FieldError::name().into_owned(), FieldError::schema());
    components.schemas.insert(ProblemBody::name().into_owned(), ProblemBody::schema());
    // An operation that is in the document never answers that its method is unknown.
    for kind in ProblemKind::ALL.into_iter().filter(|kind| *kind != ProblemKind::MethodNotAllowed) {
        let status = kind.status().as_u16();
        let name = response_name(status);
        components.responses.entry(name).or_insert_with(|| problem_response(status).into());
    }
    for (path, item) in &mut document.paths.paths {
        let secured = is_secured(path);
        for operation in operations(item) {
            for status in statuses(path, secured, operation) {
                operation
                    .responses
                    .responses
                    .entry(status.to_string())
                    .or_insert_with(|| RefOr::Ref(Ref::from_response_name(response_name(status))));
            }
        }
    }
}

/// The error statuses that an operation can answer with.
fn statuses(path: &str, secured: bool, operation: &Operation) -> Vec<u16> {
    let mut all = vec![500];
    if secured {
        all.extend([400, 401, 403, 503]);
    }
    // Or the body names somebody.
    if path.contains('{') || (path == "/v1/erasures" && operation.request_body.is_some()) {
        all.push(404);
    }
    if operation.request_body.is_some() {
        all.extend([409, 413, 415, 422, 429]);
    }
    const STEERING: [&str; 11] = [
        "/cancel",
        "/retry",
        "/approve",
        "/pause",
        "/resume",
        "/preview",
        "/rotate",
        "/ping",
        "/replay",
        "/anonymity",
        "/verification",
    ];
    if STEERING.iter().any(|verb| path.ends_with(verb)) {
        all.push(409);
    }
    const DELETING: [&str; 2] = ["delete_report", "delete_execution"];
    if operation.operation_id.as_deref().is_some_and(|id| DELETING.contains(&id)) {
        all.push(409);
    }
    if path.ends_with("/result") || path.ends_with("/manifest") {
        all.extend([409, 410]);
    }
    if path.ends_with("/formats") {
        all.push(410);
    }
    if path.ends_with("/result") {
        all.push(416);
    }
    all
}

fn problem_response(status: u16) -> Response {
    let kinds: Vec<_> =
        ProblemKind::ALL.into_iter().filter(|kind| kind.status().as_u16() == status).collect();
    let titles: Vec<_> = kinds.iter().map(|kind| kind.title()).collect();
    let examples = kinds.iter().map(|kind| {
        let example = ExampleBuilder::new().summary(kind.title()).value(Some(example(*kind)));
        (kind.name(), example.build())
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(ProblemBody::name())))
        .examples_from_iter(examples)
        .build();
    ResponseBuilder::new()
        .description(format!("{}.", titles.join(", or: ")))
        .content(PROBLEM_JSON, content)
        .build()
}

fn example(kind: ProblemKind) -> serde_json::Value {
    let errors = match kind {
        ProblemKind::InvalidInput => {
            vec![FieldError::at("/parameters/min_credits", "min", "must be at least 0")]
        }
        ProblemKind::MalformedBody => {
            vec![FieldError::at("", "syntax", "must be JSON; line 1, column 7 is not")]
        }
        ProblemKind::InvalidQuery => {
            vec![FieldError::query("limit", "invalid", "must be between 1 and 200")]
        }
        ProblemKind::InvalidHeader => {
            let expected = "must be 1 to 255 visible ASCII characters";
            vec![FieldError::header("Idempotency-Key", "invalid", expected)]
        }
        _ => return Problem::new(kind, kind.title()).into_json(None, &example_trace()),
    };
    Problem::with_errors(kind, errors).into_json(None, &example_trace())
}

fn example_trace() -> TraceId {
    TraceId::from_static("4bf92f3577b34da6a3ce929d0e0e4736")
}

fn response_name(status: u16) -> String {
    format!("Problem{status}")
}

fn is_secured(path: &str) -> bool {
    path.starts_with("/v1/")
}

/// The operations of a path; this service has no others.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
}
