//! The catalogue: `/v1/reports`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::extract::{Authenticated, ReportSlug};
use super::problem::Problem;
use super::query::NoQuery;
use crate::config::ReportConfig;
use crate::report::Limits;
use crate::report::definition::{ColumnFormat, Definition, OnLimit};
use crate::service::reports::CatalogueEntry;
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
    fn new(entry: &CatalogueEntry, config: &ReportConfig) -> Self {
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
        }
    }
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
    Ok(Json(Report::new(&entry, &state.services.config.report)))
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
