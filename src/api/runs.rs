//! Lifecycle: previews, runs, archives.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::extract::{Authenticated, ExecutionId, JsonObject, PathText};
use super::page;
use super::problem::{FieldError, Problem};
use super::query::{NoQuery, QueryReader};
use crate::retention::plan::Preview;
use crate::retention::restore::{ArchiveTable, Restored, Which};
use crate::retention::run::{Run, RunExport, RunFilter, RunStatus, UnknownRunStatus};
use crate::retention::sql::TableName;
use crate::service::runs::RunDetail;

const SKIP: &str = "must be a number, 0 or more";

/// What a run is started with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartBody {
    /// Digest of the preview that the caller has looked at.
    pub digest: String,
}

/// Which archived rows come back: one of the three.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreBody {
    /// Those that a run archived.
    pub run_id: Option<i64>,
    /// Those with these keys: a text for each column of the primary key.
    pub keys: Option<Vec<Vec<String>>>,
    /// All of them.
    pub all: Option<bool>,
}

/// Runs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunPage {
    /// The runs.
    pub runs: Vec<Run>,
}

/// Files that a run wrote to the store, by table and number.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExportPage {
    /// The files.
    pub exports: Vec<RunExport>,
}

/// Archive tables.
#[derive(Debug, Serialize, ToSchema)]
pub struct ArchiveList {
    /// Each table that has archived rows, or had.
    pub archives: Vec<ArchiveTable>,
}

/// Preview a policy
///
/// Everything that a run would do, table by table, and nothing done. A run is started with the
/// digest.
#[utoipa::path(
    get,
    path = "/v1/policies/{name}/preview",
    tag = "lifecycle",
    params(("name" = String, Path, description = "Name of the policy.",
        example = "archive-audit-logs")),
    responses((status = 200, description = "What a run would do now.", body = Preview,
        example = json!({
            "policy": "archive-audit-logs", "kind": "archive", "as_of": "2026-07-01T00:00:00Z",
            "policy_digest": "3f1b…", "over_ceiling": [], "warnings": [],
            "digest": "00065e1c7a4f8000d2…",
            "tables": [{
                "table": "audit_logs", "action": "archive", "cutoff": "2021-07-01T00:00:00Z",
                "total": 1_000_000, "eligible": 12_000, "held": 3, "indeterminate": 0,
                "blocked": 0, "along": [], "references": [], "oldest": "2019-01-01T08:00:00Z",
                "newest": "2021-06-30T23:59:59Z", "indexes": ["idx_audit_logs_created_at"],
                "estimated_chunks": 3, "estimated_secs": 0.4, "sample_keys": ["1", "2"],
                "keys_hash": "9a0c…", "size_bytes": 310_000_000,
            }],
        })))
)]
pub async fn preview_policy(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(name): PathText,
    _: NoQuery,
) -> Result<Response, Problem> {
    Ok(Json(state.services.preview_run(&caller, &name).await?).into_response())
}

/// Run a policy
///
/// A worker does it. Refused with 409 where the rows have changed since the preview.
#[utoipa::path(
    post,
    path = "/v1/policies/{name}/runs",
    tag = "lifecycle",
    params(("name" = String, Path, description = "Name of the policy.",
        example = "archive-audit-logs")),
    request_body(content = StartBody, example = json!({"digest": "00065e1c7a4f8000d2…"})),
    responses((
        status = 202,
        description = "It waits for a worker, or for approval.",
        body = RunDetail,
        headers(("Location" = String, description = "Path of the run.")),
        example = json!(run_example("pending")),
    ))
)]
pub async fn start_run(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(name): PathText,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let body: StartBody = read(object, "must be an object with the text `digest`")?;
    let started = state.services.start_run(&caller, &name, Some(&body.digest)).await?;
    Ok(located(started))
}

/// List runs
#[utoipa::path(
    get,
    path = "/v1/runs",
    tag = "lifecycle",
    params(
        ("policy" = Option<String>, Query, description = "Only of this policy."),
        ("status" = Option<RunStatus>, Query, description = "Only in this state."),
        ("before" = Option<i64>, Query, description = "Only with a smaller number: the next page."),
        ("limit" = Option<i64>, Query, description = "Runs on a page; 50 if not given.",
            minimum = 1, maximum = 200),
    ),
    responses((status = 200, description = "Newest first.", body = RunPage,
        example = json!({"runs": [run_example("completed")]})))
)]
pub async fn list_runs(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let filter = RunFilter {
        policy: query.take("policy"),
        status: query.parse("status", &UnknownRunStatus.to_string()),
        before: query.parse("before", "must be the number of a run"),
    };
    let limit = page::limit(&mut query);
    query.finish()?;
    let runs = state.services.list_runs(&caller, &filter, limit).await?;
    Ok(Json(RunPage { runs }).into_response())
}

/// Show a run
///
/// With its tables: what went, what stayed and why.
#[utoipa::path(
    get,
    path = "/v1/runs/{id}",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the run.", example = 12)),
    responses((status = 200, description = "The run.", body = RunDetail,
        example = json!(run_example("completed"))))
)]
pub async fn show_run(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    Ok(Json(state.services.show_run(&caller, id).await?).into_response())
}

/// List the files of a run
///
/// Where the policy says `export`, rows are written to the store, and the file read back, before
/// they leave their table.
#[utoipa::path(
    get,
    path = "/v1/runs/{id}/exports",
    tag = "lifecycle",
    params(
        ("id" = i64, Path, description = "Number of the run.", example = 12),
        ("skip" = Option<i64>, Query, description = "Leave so many out: the next page.",
            minimum = 0),
        ("limit" = Option<i64>, Query, description = "Files on a page; 50 if not given.",
            minimum = 1, maximum = 200),
    ),
    responses((status = 200, description = "By table and number.", body = ExportPage,
        example = json!({"exports": [{
            "position": 0, "table_name": "audit_logs", "number": 1, "row_count": 4_800,
            "object_path": "archive/0000000012/audit_logs/000001-9f86….parquet",
            "size_bytes": 310_000, "sha256": "9f86…", "created_at": "2026-07-01T00:00:06Z",
            "expires_at": "2033-07-01T00:00:06Z", "removed_at": null}]})))
)]
pub async fn list_exports(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let skip = query.parse("skip", SKIP).unwrap_or(0);
    if skip < 0 {
        query.refuse("skip", "invalid", SKIP);
    }
    let limit = page::limit(&mut query);
    query.finish()?;
    let exports = state.services.list_exports(&caller, id, skip, limit).await?;
    Ok(Json(ExportPage { exports }).into_response())
}

/// Approve a run
///
/// By a second person, with the permission that the policy names.
#[utoipa::path(
    post,
    path = "/v1/runs/{id}/approve",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the run.", example = 12)),
    responses((status = 202, description = "It waits for a worker.", body = RunDetail,
        headers(("Location" = String, description = "Path of the run.")),
        example = json!(run_example("pending"))))
)]
pub async fn approve_run(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    Ok(located(state.services.approve_run(&caller, id).await?))
}

/// Pause a run
///
/// After the chunk at work.
#[utoipa::path(
    post,
    path = "/v1/runs/{id}/pause",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the run.", example = 12)),
    responses((status = 202, description = "It is paused.", body = RunDetail,
        headers(("Location" = String, description = "Path of the run.")),
        example = json!(run_example("paused"))))
)]
pub async fn pause_run(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    Ok(located(state.services.pause_run(&caller, id).await?))
}

/// Go on with a paused or failed run
///
/// Behind the last chunk that was committed.
#[utoipa::path(
    post,
    path = "/v1/runs/{id}/resume",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the run.", example = 12)),
    responses((status = 202, description = "It waits for a worker.", body = RunDetail,
        headers(("Location" = String, description = "Path of the run.")),
        example = json!(run_example("pending"))))
)]
pub async fn resume_run(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    Ok(located(state.services.resume_run(&caller, id).await?))
}

/// Cancel a run
///
/// After the chunk at work. What was done stays done.
#[utoipa::path(
    post,
    path = "/v1/runs/{id}/cancel",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the run.", example = 12)),
    responses((status = 202, description = "It is cancelled.", body = RunDetail,
        headers(("Location" = String, description = "Path of the run.")),
        example = json!(run_example("cancelled"))))
)]
pub async fn cancel_run(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    Ok(located(state.services.cancel_run(&caller, id).await?))
}

/// List archives
#[utoipa::path(
    get,
    path = "/v1/archives",
    tag = "lifecycle",
    responses((status = 200, description = "Tables with archived rows.", body = ArchiveList,
        example = json!({"archives": [
            {"table": "audit_logs", "estimated_rows": 12_000, "size_bytes": 4_000_000}]})))
)]
pub async fn list_archives(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
) -> Result<Response, Problem> {
    let archives = state.services.list_archives(&caller).await?;
    Ok(Json(ArchiveList { archives }).into_response())
}

/// Take archived rows back
///
/// Rows that do not fit stay archived and are counted by reason.
#[utoipa::path(
    post,
    path = "/v1/archives/{table}/restore",
    tag = "lifecycle",
    params(("table" = String, Path, description = "The live table.", example = "audit_logs")),
    request_body(content = RestoreBody, example = json!({"run_id": 12})),
    responses((status = 200, description = "What came back.", body = Restored,
        example = json!({"table": "audit_logs", "restored": 12_000, "key_taken": 0,
            "unique_taken": 0, "parent_missing": 0})))
)]
pub async fn restore_archive(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(table): PathText,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let (table, which) = read_restore(&table, object)?;
    let restored = state.services.restore_archive(&caller, &table, &which).await?;
    Ok(Json(restored).into_response())
}

/// Reads what is to be brought back, and to which table.
///
/// # Errors
/// A [`Problem`] that says what was expected.
pub fn read_restore(
    table: &str,
    object: Map<String, Value>,
) -> Result<(TableName, Which), Problem> {
    const EXPECTED: &str = "must be an object with one of `run_id`, `keys` and `all`";
    let which = match read(object, EXPECTED)? {
        RestoreBody { run_id: Some(id), keys: None, all: None } => Which::Run(id),
        RestoreBody { run_id: None, keys: Some(keys), all: None } => Which::Keys(keys),
        RestoreBody { run_id: None, keys: None, all: Some(true) } => Which::All,
        RestoreBody { .. } => return Err(invalid(EXPECTED)),
    };
    let not_found = |_| Problem::new(ProblemKind::NotFound, "there is no such table");
    Ok((table.parse().map_err(not_found)?, which))
}

fn read<T: serde::de::DeserializeOwned>(
    object: Map<String, Value>,
    expected: &str,
) -> Result<T, Problem> {
    // serde_json's own message can repeat what was given.
    serde_json::from_value(Value::Object(object)).map_err(|_| invalid(expected))
}

fn invalid(expected: &str) -> Problem {
    let error = FieldError::at("", "invalid", expected);
    Problem::with_errors(ProblemKind::InvalidInput, vec![error])
}

fn located(detail: RunDetail) -> Response {
    let location = format!("/v1/runs/{}", detail.run.id);
    let mut response = (StatusCode::ACCEPTED, Json(detail)).into_response();
    let value = HeaderValue::try_from(location).expect("a path of ASCII");
    response.headers_mut().insert(LOCATION, value);
    response
}

fn run_example(status: &str) -> Value {
    json!({
        "id": 12, "policy": "archive-audit-logs", "kind": "archive", "policy_digest": "3f1b…",
        "code_version": "0.1.0", "as_of": "2026-07-01T00:00:00Z", "status": status,
        "origin": "user", "preview_digest": "00065e1c7a4f8000d2…", "requested_by": 1,
        "approved_by": null, "approved_at": null, "attempt": 1, "lease_owner": null,
        "waiting_for": null, "waiting_since": null, "error_code": null, "error_message": null,
        "created_at": "2026-07-01T00:00:05Z", "started_at": null, "completed_at": null,
    })
}
