//! Executions as clients see them.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::db::executions::{Execution, Status};
use crate::service::executions::Followed;

/// One run of a report.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Execution)]
pub struct ExecutionResource {
    /// Its number.
    pub id: i64,
    /// The report's slug.
    pub report: String,
    /// The report's title.
    pub title: String,
    /// The report's version that it runs.
    pub definition_version: Option<i32>,
    /// Where it stands. `pending`, `processing` and `cancelling` are on their way; the others are
    /// final, except that `completed` becomes `expired` when the result is deleted.
    pub status: Status,
    /// Number of the user who submitted it; none for the operator at the command line.
    pub submitted_by: Option<i32>,
    /// The parameters, with defaults filled in and relative dates resolved.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Format of the file.
    pub format: String,
    /// Reader, byte order mark and delimiter.
    #[schema(value_type = Object)]
    pub options: Value,
    /// The current or last try.
    pub attempt: i32,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// A pending execution is not started before this instant.
    pub run_at: DateTime<Utc>,
    /// When the current or last try began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// How far it is.
    pub progress: Progress,
    /// Pending executions that come before it, while it is pending.
    pub queue_position: Option<i64>,
    /// Seconds that recent runs of this version took, at the median, while it is on its way.
    pub typical_seconds: Option<f64>,
    /// When it will be done if it takes as long as recent runs, while it is processing. An
    /// instant, so that the entity tag changes only when something happened.
    pub expected_at: Option<DateTime<Utc>>,
    /// Why it failed.
    pub error: Option<ExecutionFailure>,
    /// What it made, once it is completed; stays when the result has expired.
    pub result: Option<ResultSummary>,
    /// The execution that this is a further format of: the same version and parameters, and a
    /// snapshot of its own.
    pub format_of: Option<i64>,
    /// Whether it shares the result of an identical run, as its submit permitted.
    pub shared: bool,
    /// Trace of the submit.
    pub trace_id: Option<String>,
    /// What can be done next.
    pub links: ExecutionLinks,
}

/// How far an execution is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Progress {
    /// Rows read by the current try.
    pub rows: i64,
    /// Bytes written by the current try.
    pub bytes: i64,
}

/// Why an execution failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExecutionFailure {
    /// For programs.
    #[schema(example = "timeout")]
    pub code: String,
    /// For people. Never holds values of rows.
    #[schema(example = "the report took longer than 300 s")]
    pub message: Option<String>,
}

/// The file that an execution made.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResultSummary {
    /// Rows, without headers.
    pub rows: Option<i64>,
    /// Size of the file.
    pub size_bytes: Option<i64>,
    /// SHA-256 of the file, in hex.
    pub sha256: Option<String>,
    /// Whether the file was cut at a limit.
    pub truncated: bool,
    /// Instant of the snapshot that was read.
    pub snapshot_at: Option<DateTime<Utc>>,
    /// When the file is deleted.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Paths that are worth following now; the others are left out.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExecutionLinks {
    /// This resource.
    #[serde(rename = "self")]
    pub itself: String,
    /// The report.
    pub report: String,
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// How the file was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// `POST` here for a further format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formats: Option<String>,
    /// `POST` here to cancel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel: Option<String>,
    /// `POST` here to run it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
}

impl From<Followed> for ExecutionResource {
    fn from(followed: Followed) -> Self {
        let Followed { execution, queue_position, typical_secs } = followed;
        let links = links(&execution);
        let expected_at = expected_at(&execution, typical_secs);
        let result = result(&execution);
        let Execution {
            id,
            slug,
            title,
            definition_version,
            executed_by,
            parameters,
            format,
            options,
            status,
            attempt,
            max_attempts,
            run_at,
            created_at,
            started_at,
            completed_at,
            progress_rows,
            progress_bytes,
            error_code,
            error_message,
            trace_id,
            format_of,
            shared_from,
            // In `result`, or, as the place in the store, for nobody.
            row_count: _,
            size_bytes: _,
            sha256: _,
            truncated: _,
            snapshot_at: _,
            expires_at: _,
            result_file_path: _,
        } = execution;
        Self {
            id,
            report: slug,
            title,
            definition_version,
            status,
            submitted_by: executed_by,
            parameters,
            format,
            options,
            attempt,
            max_attempts,
            created_at,
            run_at,
            started_at,
            completed_at,
            progress: Progress { rows: progress_rows, bytes: progress_bytes },
            queue_position,
            typical_seconds: typical_secs,
            expected_at,
            error: error_code.map(|code| ExecutionFailure { code, message: error_message }),
            result,
            format_of,
            // Whose it is may be nobody's business.
            shared: shared_from.is_some(),
            trace_id,
            links,
        }
    }
}

impl From<Execution> for ExecutionResource {
    /// Without the outlook, which costs a query for each execution.
    fn from(execution: Execution) -> Self {
        Self::from(Followed::without_outlook(execution))
    }
}

/// The path of an execution.
pub fn execution_path(id: i64) -> String {
    format!("/v1/executions/{id}")
}

fn links(execution: &Execution) -> ExecutionLinks {
    let path = execution_path(execution.id);
    let below = |name: &str, there: bool| there.then(|| format!("{path}/{name}"));
    let status = execution.status;
    let done = status == Status::Completed;
    ExecutionLinks {
        report: format!("/v1/reports/{}", execution.slug),
        result: below("result", done),
        manifest: below("manifest", done),
        formats: below("formats", done),
        cancel: below("cancel", matches!(status, Status::Pending | Status::Processing)),
        retry: below("retry", matches!(status, Status::Failed | Status::Cancelled)),
        itself: path,
    }
}

fn expected_at(execution: &Execution, typical_secs: Option<f64>) -> Option<DateTime<Utc>> {
    if execution.status != Status::Processing {
        return None;
    }
    let typical = std::time::Duration::try_from_secs_f64(typical_secs?).ok()?;
    execution.started_at?.checked_add_signed(TimeDelta::from_std(typical).ok()?)
}

fn result(execution: &Execution) -> Option<ResultSummary> {
    matches!(execution.status, Status::Completed | Status::Expired).then(|| ResultSummary {
        rows: execution.row_count,
        size_bytes: execution.size_bytes,
        sha256: execution.sha256.clone(),
        truncated: execution.truncated,
        snapshot_at: execution.snapshot_at,
        expires_at: execution.expires_at,
    })
}

/// An execution on its way to its end, for the documentation.
pub fn cancelling_example() -> Value {
    let mut execution = pending_example();
    execution["status"] = json!("cancelling");
    execution["attempt"] = json!(1);
    execution["started_at"] = json!("2026-03-01T08:00:01Z");
    execution["progress"] = json!({"rows": 4096, "bytes": 262144});
    execution["queue_position"] = Value::Null;
    execution["links"] = json!({
        "self": "/v1/executions/71",
        "report": "/v1/reports/gpa-ranking"
    });
    execution
}

/// An execution whose result is gone, for the documentation.
pub fn expired_example() -> Value {
    let mut execution = completed_example();
    execution["status"] = json!("expired");
    execution["result"]["expires_at"] = json!("2026-03-02T09:30:00Z");
    execution["links"] = json!({
        "self": "/v1/executions/71",
        "report": "/v1/reports/gpa-ranking"
    });
    execution
}

/// A completed execution, for the documentation.
pub fn completed_example() -> Value {
    json!({
        "id": 71,
        "report": "gpa-ranking",
        "title": "GPA ranking with ties",
        "definition_version": 2,
        "status": "completed",
        "submitted_by": 12,
        "parameters": {"rank_within": "unit", "min_results": 30},
        "format": "csv",
        "options": {"reader": "machine", "byte_order_mark": false, "delimiter": ","},
        "attempt": 1,
        "max_attempts": 3,
        "created_at": "2026-03-01T08:00:00Z",
        "run_at": "2026-03-01T08:00:00Z",
        "started_at": "2026-03-01T08:00:01Z",
        "completed_at": "2026-03-01T08:00:04Z",
        "progress": {"rows": 20000, "bytes": 1835008},
        "queue_position": null,
        "typical_seconds": null,
        "expected_at": null,
        "error": null,
        "result": {
            "rows": 20000,
            "size_bytes": 1835008,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "truncated": false,
            "snapshot_at": "2026-03-01T08:00:01Z",
            "expires_at": "2026-03-08T08:00:04Z"
        },
        "format_of": null,
        "shared": false,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "links": {
            "self": "/v1/executions/71",
            "report": "/v1/reports/gpa-ranking",
            "result": "/v1/executions/71/result",
            "manifest": "/v1/executions/71/manifest",
            "formats": "/v1/executions/71/formats"
        }
    })
}

/// An execution that was just submitted, for the documentation.
pub fn pending_example() -> Value {
    json!({
        "id": 71,
        "report": "gpa-ranking",
        "title": "GPA ranking with ties",
        "definition_version": 2,
        "status": "pending",
        "submitted_by": 12,
        "parameters": {"rank_within": "unit", "min_results": 30},
        "format": "csv",
        "options": {"reader": "machine", "byte_order_mark": false, "delimiter": ","},
        "attempt": 0,
        "max_attempts": 3,
        "created_at": "2026-03-01T08:00:00Z",
        "run_at": "2026-03-01T08:00:00Z",
        "started_at": null,
        "completed_at": null,
        "progress": {"rows": 0, "bytes": 0},
        "queue_position": 0,
        "typical_seconds": 2.9,
        "expected_at": null,
        "error": null,
        "result": null,
        "format_of": null,
        "shared": false,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "links": {
            "self": "/v1/executions/71",
            "report": "/v1/reports/gpa-ranking",
            "cancel": "/v1/executions/71/cancel"
        }
    })
}
