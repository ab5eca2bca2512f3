//! The catalogue: `/v1/reports`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::extract::{Authenticated, JsonObject, PathText, ReportSlug};
use super::problem::{FieldError, Problem};
use super::query::NoQuery;
use super::submission::required;
use crate::config::ReportConfig;
use crate::db::definitions::Stored;
use crate::report::Limits;
use crate::report::definition::{ColumnFormat, Definition, OnLimit, Slug};
use crate::service::reports::CatalogueEntry;
use crate::service::{Caller, Permission};
use crate::writer::Format;

/// The reports that the caller may run.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReportList {
    /// By slug.
    pub reports: Vec<ReportSummary>,
}

/// A report in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReportSummary {
    /// Its name in URLs.
    pub slug: String,
    /// Its name for people.
    pub title: String,
    /// What it shows.
    pub description: String,
    /// Grows when the report changes.
    pub version: i32,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// Where to go from here.
    pub links: ReportLinks,
}

/// A report with all that a caller needs to run it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Report {
    /// What the list shows.
    #[serde(flatten)]
    pub summary: ReportSummary,
    /// IANA zone of "today" and of the instants in its files.
    pub time_zone: String,
    /// JSON Schema (draft 2020-12) of the object `parameters` of a submission.
    #[schema(value_type = Object)]
    pub parameters: Value,
    /// Columns that the report describes, in order; others are shown under their names.
    pub columns: Vec<ReportColumn>,
    /// Sheets of a workbook. The first one's rows are the file in other formats.
    pub sheets: Vec<String>,
    /// Formats that the file can have.
    pub formats: Vec<Format>,
    /// What a run may take on this server.
    pub limits: ReportLimits,
    /// Days after which a result is deleted.
    pub expires_after_days: u32,
    /// The body of the `PUT` that makes it as it is; only for callers with `reports.manage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ReportBody>)]
    pub definition: Option<Value>,
}

/// A report to be stored: its query, and what a template's TOML file says, with the same keys.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which the definition reads")]
pub struct ReportBody {
    /// Its name for people.
    #[schema(max_length = 255)]
    title: String,
    /// One SELECT, with `:name` for each parameter.
    query: String,
    /// What it shows.
    #[schema(required = false)]
    description: String,
    /// Permission that its callers need.
    #[schema(required = false)]
    permission: Option<String>,
    /// IANA zone of "today" and of the instants in its files.
    #[schema(required = false, default = "UTC")]
    time_zone: String,
    /// Words to find it by.
    #[schema(required = false)]
    tags: Vec<String>,
    /// Column to read in ranges by, over several connections.
    #[schema(required = false)]
    split_by: Option<String>,
    /// One for each `:name`.
    #[schema(required = false, value_type = Vec<Object>)]
    parameter: Vec<Value>,
    /// Columns that want a label, a format or a width.
    #[schema(required = false, value_type = Vec<Object>)]
    column: Vec<Value>,
    /// What a run may take.
    #[schema(required = false, value_type = Object)]
    limits: Value,
    /// How long results are kept.
    #[schema(required = false, value_type = Object)]
    result: Value,
    /// Name of the main sheet of a workbook.
    #[schema(required = false)]
    sheet_name: Option<String>,
    /// Look of the main sheet.
    #[schema(required = false, value_type = Object)]
    layout: Value,
    /// Rules by colour of the main sheet.
    #[schema(required = false, value_type = Vec<Object>)]
    conditional: Vec<Value>,
    /// Charts of the main sheet.
    #[schema(required = false, value_type = Vec<Object>)]
    chart: Vec<Value>,
    /// Further sheets, with a `query` each.
    #[schema(required = false, value_type = Vec<Object>)]
    sheet: Vec<Value>,
}

/// A column of a report.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReportColumn {
    /// Header for programs.
    pub name: String,
    /// Header for people.
    pub label: String,
    /// How values are shown in a spreadsheet; none for the type's own way.
    pub format: Option<ColumnFormat>,
}

/// What a run may take.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReportLimits {
    /// Longest try, in seconds.
    pub timeout_secs: u64,
    /// Rows.
    pub max_rows: u64,
    /// Size of the file.
    pub max_bytes: u64,
    /// What happens over rows and bytes.
    pub on_limit: OnLimit,
}

/// Where to go from a report.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReportLinks {
    /// The report with its parameters.
    #[serde(rename = "self")]
    pub itself: String,
    /// `POST` here to run it.
    pub executions: String,
}

impl ReportSummary {
    fn new(definition: &Definition, version: i32) -> Self {
        let itself = format!("/v1/reports/{}", definition.slug());
        Self {
            slug: definition.slug().to_string(),
            title: definition.title().to_owned(),
            description: definition.description().to_owned(),
            version,
            tags: definition.tags().to_vec(),
            links: ReportLinks { executions: format!("{itself}/executions"), itself },
        }
    }
}

impl Report {
    fn new(entry: &CatalogueEntry, config: &ReportConfig, caller: &Caller) -> Self {
        let definition = &entry.definition;
        let limits = Limits::of(definition, config);
        let columns = definition.columns().iter().map(|column| ReportColumn {
            name: column.name.clone(),
            label: column.label.clone().unwrap_or_else(|| column.name.clone()),
            format: column.format,
        });
        Self {
            summary: ReportSummary::new(definition, entry.version),
            time_zone: definition.time_zone().name().to_owned(),
            parameters: definition.json_schema_with(&entry.choices),
            columns: columns.collect(),
            sheets: definition.sheets().map(|sheet| sheet.name.to_owned()).collect(),
            formats: Format::ALL.to_vec(),
            limits: ReportLimits {
                timeout_secs: limits.timeout.as_secs(),
                max_rows: limits.ceiling.max_rows,
                max_bytes: limits.ceiling.max_bytes,
                on_limit: definition.limits().on_limit,
            },
            expires_after_days: definition
                .expires_after_days()
                .unwrap_or(config.expires_after_days)
                .get(),
            definition: caller
                .may(Permission::ReportsManage.codename())
                .then(|| definition_body(definition)),
        }
    }
}

/// A definition as `PUT` takes it.
pub fn definition_body(definition: &Definition) -> Value {
    let mut body = definition.spec();
    body["query"] = definition.sql().into();
    body
}

/// List the reports that you may run
#[utoipa::path(
    get,
    path = "/v1/reports",
    tag = "reports",
    responses((
        status = 200,
        description = "The reports, by slug.",
        body = ReportList,
        example = json!({"reports": [summary_example()]}),
    ))
)]
pub async fn list_reports(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
) -> Result<Json<ReportList>, Problem> {
    let entries = state.services.list_reports(&caller).await?;
    let reports = entries.iter().map(|entry| ReportSummary::new(&entry.definition, entry.version));
    Ok(Json(ReportList { reports: reports.collect() }))
}

/// Show a report, its parameters and limits
#[utoipa::path(
    get,
    path = "/v1/reports/{slug}",
    tag = "reports",
    params(("slug" = String, Path, description = "Slug of the report.", example = "gpa-ranking")),
    responses((
        status = 200,
        description = "The report.",
        body = Report,
        example = json!(report_example()),
    ))
)]
pub async fn show_report(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ReportSlug(slug): ReportSlug,
    _: NoQuery,
) -> Result<Json<Report>, Problem> {
    let entry = state.services.show_report(&caller, &slug).await?;
    Ok(Json(Report::new(&entry, &state.services.config.report, &caller)))
}

/// Store a report
///
/// New, or a new version of it, under the slug of the path, with `reports.manage`. The server
/// checks the query as the role that runs reports, without running it. Executions that are on
/// their way run the version that they were submitted with. Reports that are kept as templates are
/// changed in their files.
#[utoipa::path(
    put,
    path = "/v1/reports/{slug}",
    tag = "reports",
    params(("slug" = String, Path, description = "Slug of the report.", example = "gpa-ranking")),
    request_body(content = ReportBody, example = json!(body_example())),
    responses(
        (
            status = 201,
            description = "It is new.",
            body = Report,
            example = json!(report_example()),
        ),
        (
            status = 200,
            description = "Changed, or the same as before: `version` tells.",
            body = Report,
            example = json!(report_example()),
        ),
    )
)]
pub async fn put_report(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(slug): PathText,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let NewReport { slug, spec, query } = read_report(&slug, object)?;
    let (entry, stored) = state.services.put_report(&caller, slug, &spec, &query).await?;
    let status = match stored {
        Stored::Created => StatusCode::CREATED,
        Stored::Updated | Stored::Unchanged => StatusCode::OK,
    };
    let report = Report::new(&entry, &state.services.config.report, &caller);
    Ok((status, Json(report)).into_response())
}

/// A report to be stored, not checked yet.
#[derive(Debug)]
pub struct NewReport {
    /// Its slug.
    pub slug: Slug,
    /// All but its query.
    pub spec: Value,
    /// Its query.
    pub query: String,
}

/// Reads a report.
///
/// # Errors
/// A [`Problem`] with everything that is wrong.
pub fn read_report(slug: &str, mut object: Map<String, Value>) -> Result<NewReport, Problem> {
    let mut errors = Vec::new();
    let query: Option<String> = required(&mut object, "query", "must be text", &mut errors);
    let slug: Option<Slug> = slug
        .parse()
        .map_err(|error| errors.push(FieldError::at("", "slug", format!("the slug {error}"))))
        .ok();
    let (Some(query), Some(slug)) = (query, slug) else {
        return Err(Problem::with_errors(ProblemKind::InvalidInput, errors));
    };
    Ok(NewReport { slug, spec: Value::Object(object), query })
}

/// Delete a report
///
/// With `reports.manage`. Its executions and their results stay, and the slug can be used again.
/// The answer is the report as it was.
#[utoipa::path(
    delete,
    path = "/v1/reports/{slug}",
    tag = "reports",
    params(("slug" = String, Path, description = "Slug of the report.", example = "gpa-ranking")),
    responses((
        status = 200,
        description = "It can be run no more.",
        body = Report,
        example = json!(report_example()),
    ))
)]
pub async fn delete_report(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ReportSlug(slug): ReportSlug,
    _: NoQuery,
) -> Result<Json<Report>, Problem> {
    let entry = state.services.delete_report(&caller, &slug).await?;
    Ok(Json(Report::new(&entry, &state.services.config.report, &caller)))
}

fn body_example() -> Value {
    json!({
        "title": "Awards since a day",
        "query": "select id, awarded_at from awards where awarded_at >= :since order by id",
        "tags": ["results"],
        "parameter": [{"name": "since", "type": "date", "default": "today - 1 year"}],
        "column": [{"name": "awarded_at", "label": "Awarded", "format": "datetime"}],
        "limits": {"timeout_secs": 120}
    })
}

fn summary_example() -> Value {
    json!({
        "slug": "gpa-ranking",
        "title": "GPA ranking with ties",
        "description": "People ranked by their average; equal averages share a rank.",
        "version": 2,
        "tags": ["results", "ranking"],
        "links": {
            "self": "/v1/reports/gpa-ranking",
            "executions": "/v1/reports/gpa-ranking/executions"
        }
    })
}

fn report_example() -> Value {
    let mut report = summary_example();
    let rest = json!({
        "time_zone": "Africa/Harare",
        "parameters": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "GPA ranking with ties",
            "type": "object",
            "properties": {
                "min_credits": {
                    "title": "Least credits",
                    "type": ["integer", "null"],
                    "minimum": 0,
                    "maximum": 10000,
                    "default": 30,
                    "x-postgres-type": "int4"
                }
            },
            "required": [],
            "additionalProperties": false
        },
        "columns": [{"name": "gpa", "label": "GPA", "format": "decimal2"}],
        "sheets": ["GPA ranking"],
        "formats": ["csv", "xlsx"],
        "limits": {
            "timeout_secs": 120, "max_rows": 1000000, "max_bytes": 10737418240_u64,
            "on_limit": "fail"
        },
        "expires_after_days": 7
    });
    if let (Value::Object(report), Value::Object(rest)) = (&mut report, rest) {
        report.extend(rest);
    }
    report
}
