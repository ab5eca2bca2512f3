//! History, progress, preview, and what can be done with an execution.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::{Value, context};
use serde::Serialize;
use serde_json::Value as Json;

use super::Console;
use super::events::{self, Followable};
use super::pages::{Page, of};
use super::reports::{formats, tiles};
use super::request::{Change, Fields, Number, Query, SignedIn};
use super::response::see_other;
use crate::api::{Problem, ProblemKind};
use crate::db::executions::{Execution, Filter, Status};
use crate::report::Presentation;
use crate::service::executions::Followed;
use crate::service::queues::{BulkAction, Selection};
use crate::service::{Caller, Permission, ServiceError};
use crate::writer::Format;

/// Executions on a page.
const PAGE: i64 = 50;
/// An execution as pages show it.
#[derive(Debug, Serialize)]
pub struct Shown {
    id: i64,
    slug: String,
    title: String,
    format: String,
    status: &'static str,
    is_final: bool,
    is_mine: bool,
    executed_by: Option<i32>,
    created_at: chrono::DateTime<chrono::Utc>,
    snapshot_at: Option<chrono::DateTime<chrono::Utc>>,
    expires_at: Option<chrono::DateTime<chrono::Utc>>,
    rows: i64,
    bytes: i64,
    secs: Option<f64>,
    secs_left: Option<f64>,
    /// Percent of the usual time.
    share: Option<i64>,
    queue_position: Option<i64>,
    attempt: i32,
    max_attempts: i32,
    error_code: Option<String>,
    error_message: Option<String>,
    sha256: Option<String>,
    truncated: bool,
    can_cancel: bool,
    can_delete: bool,
    can_retry: bool,
}

impl Shown {
    /// As the caller sees it; `running_secs` is how long it has been running.
    pub fn new(caller: &Caller, followed: Followed, running_secs: Option<f64>) -> Self {
        let Followed { execution: e, queue_position, typical_secs } = followed;
        let is_mine = e.executed_by.is_some() && e.executed_by == caller.user_id;
        let may_change = is_mine || caller.may(Permission::ExecutionsCancelAll.codename());
        let took = e.completed_at.zip(e.started_at).map(|(end, start)| seconds(end - start));
        let is_running = e.status == Status::Processing;
        let outlook = typical_secs.zip(running_secs).filter(|_| is_running);
        #[expect(clippy::cast_possible_truncation, reason = "between 0 and 99")]
        let share = outlook
            .map(|(typical, so_far)| (100.0 * so_far / typical.max(0.1)).clamp(0.0, 99.0) as i64);
        Self {
            id: e.id,
            is_final: e.status.is_final(),
            status: e.status.as_str(),
            is_mine,
            executed_by: e.executed_by,
            created_at: e.created_at,
            snapshot_at: e.snapshot_at,
            expires_at: e.expires_at.filter(|_| e.status == Status::Completed),
            rows: e.row_count.unwrap_or(e.progress_rows),
            bytes: e.size_bytes.unwrap_or(e.progress_bytes),
            secs: if e.status.is_final() { took } else { running_secs.filter(|_| is_running) },
            secs_left: outlook.map(|(typical, so_far)| (typical - so_far).max(0.0)),
            share,
            queue_position,
            attempt: e.attempt,
            max_attempts: e.max_attempts,
            error_code: e.error_code,
            error_message: e.error_message,
            sha256: e.sha256,
            truncated: e.truncated,
            can_cancel: may_change && matches!(e.status, Status::Pending | Status::Processing),
            can_delete: may_change && e.status == Status::Completed,
            can_retry: may_change && matches!(e.status, Status::Failed | Status::Cancelled),
            slug: e.slug,
            title: e.title,
            format: e.format,
        }
    }

    fn in_list(caller: &Caller, execution: Execution) -> Self {
        Self::new(caller, Followed::without_outlook(execution), None)
    }
}

fn seconds(span: chrono::TimeDelta) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of hours, not of ages")]
    let ms = span.num_milliseconds() as f64;
    ms / 1_000.0
}

/// History, newest first, by filter.
pub async fn list(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let services = &console.api.services;
    let caller = &session.caller;
    let filter = filter(caller, &query);
    let mut found = services.list_executions(caller, filter.clone(), PAGE + 1).await?;
    let has_more = found.len() > usize::try_from(PAGE).unwrap_or(usize::MAX);
    found.truncate(usize::try_from(PAGE).unwrap_or(usize::MAX));
    let older = found.last().filter(|_| has_more).map(|last| {
        let mut link = url::form_urlencoded::Serializer::new(String::new());
        for name in ["report", "status", "mine"] {
            if let Some(value) = query.filled(name) {
                link.append_pair(name, value);
            }
        }
        link.append_pair("before", &last.id.to_string());
        format!("/executions?{}", link.finish())
    });
    let reports = tiles(services, &session).await.unwrap_or_default();
    let may = |permission: Permission| caller.may(permission.codename());
    let sees_all = may(Permission::ExecutionsViewAll);
    // These act on everybody's executions, so they are not offered beside a list of one's own.
    let changes_all = may(Permission::ExecutionsCancelAll) && filter.executed_by.is_none();
    let status = filter.status;
    let content = context! {
        can_cancel_all => changes_all && status.is_none_or(|s| s == Status::Pending),
        can_retry_all => changes_all && status.is_none_or(|s| s == Status::Failed),
        executions => of(found.into_iter().map(|e| Shown::in_list(caller, e)).collect::<Vec<_>>()),
        reports => of(reports),
        sees_all, older,
        statuses => Status::ALL.map(Status::as_str),
        filter => context! {
            report => query.filled("report").unwrap_or_default(),
            status => status.map(Status::as_str).unwrap_or_default(),
            mine => if query.filled("mine").is_some() { "true" } else { "" },
        },
    };
    let notice = match query.get("notice") {
        Some("cancelled") => Some("Cancelled what matched and waited."),
        Some("retried") => Some("Retried the failed ones that matched."),
        _ => None,
    };
    let page =
        Page { template: "executions.html", title: "Executions", place: "/executions", notice };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

fn filter(caller: &Caller, fields: &Fields) -> Filter {
    Filter {
        executed_by: fields.filled("mine").and(caller.user_id),
        status: fields.filled("status").and_then(|text| text.parse().ok()),
        slug: fields.filled("report").map(str::to_owned),
        before: fields.filled("before").and_then(|text| text.parse().ok()),
    }
}

/// Cancels all that wait, or retries all that failed; of one report, where one is named.
pub async fn bulk(
    State(console): State<Console>,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let (action, notice) = match fields.get("act") {
        Some("cancel") => (BulkAction::Discard, "cancelled"),
        Some("retry") => (BulkAction::Retry, "retried"),
        _ => return Err(Problem::new(ProblemKind::InvalidQuery, "`act` is `cancel` or `retry`")),
    };
    let selection =
        Selection { report: fields.filled("report").map(str::to_owned), ..Selection::default() };
    console.api.services.change_many(&session.caller, action, &selection, true).await?;
    Ok(see_other(&format!("/executions?notice={notice}")))
}

/// One execution: progress, then its file and first rows.
pub async fn show(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Number(id): Number,
    Query(query): Query,
) -> Result<Response, Problem> {
    let services = &console.api.services;
    let caller = &session.caller;
    let followed = services.follow(caller, id).await?;
    let running = services.running_secs(&followed.execution).await?;
    let is_completed = followed.execution.status == Status::Completed;
    let preview = match is_completed {
        // Who follows an execution may lack what its report asks for, and then sees no rows.
        true => match services.preview_result(caller, id).await {
            Ok(preview) => preview,
            Err(ServiceError::Forbidden { .. } | ServiceError::StoreUnavailable(_)) => None,
            Err(error) => return Err(error.into()),
        },
        false => None,
    };
    let parameters = parameters(&followed.execution);
    let title = followed.execution.title.clone();
    let content = context! {
        e => of(Shown::new(caller, followed, running)),
        preview => of(preview),
        parameters,
        formats => formats(),
        may_run => caller.may(Permission::ReportsRun.codename()),
    };
    let notice = match query.get("notice") {
        Some("cancelled") => Some("It is being cancelled."),
        Some("deleted") => Some("The file is deleted."),
        Some("retried") => Some("It runs again."),
        _ => None,
    };
    let page = Page { template: "execution.html", title: &title, place: "/executions", notice };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

fn parameters(execution: &Execution) -> Value {
    let all = execution.parameters.as_ref().and_then(Json::as_object);
    let shown = |value: &Json| match value {
        Json::String(text) => text.clone(),
        Json::Null => "—".to_owned(),
        Json::Array(items) => {
            let items =
                items.iter().map(|item| item.as_str().map_or(item.to_string(), str::to_owned));
            items.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    let all = all.into_iter().flatten();
    all.map(|(label, value)| context! { label, value => shown(value) }).collect()
}

/// Progress as server-sent events.
pub async fn events(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Number(id): Number,
) -> Result<Response, Problem> {
    console.api.services.follow(&session.caller, id).await?;
    events::follow(console, session, Followable::Execution(id))
}

/// Cancels.
pub async fn cancel(
    State(console): State<Console>,
    Number(id): Number,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    console.api.services.cancel(&session.caller, id).await?;
    Ok(see_other(&format!("/executions/{id}?notice=cancelled")))
}

/// Runs a failed or cancelled one again.
pub async fn retry(
    State(console): State<Console>,
    Number(id): Number,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    console.api.services.retry(&session.caller, id).await?;
    Ok(see_other(&format!("/executions/{id}?notice=retried")))
}

/// Deletes the file before its time.
pub async fn delete(
    State(console): State<Console>,
    Number(id): Number,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    console.api.services.delete_result(&session.caller, id).await?;
    Ok(see_other(&format!("/executions/{id}?notice=deleted")))
}

/// Makes a further format.
pub async fn request_format(
    State(console): State<Console>,
    Number(id): Number,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let format: Format =
        fields.get("format").unwrap_or_default().parse().map_err(|_| ServiceError::BadField {
            field: "/format",
            expected: "must be `csv`, `xlsx`, `parquet` or `ndjson`".to_owned(),
        })?;
    let presentation = Presentation::default();
    let services = &console.api.services;
    let made = services.request_format(&session.caller, id, format, presentation).await?;
    Ok(see_other(&format!("/executions/{}", made.id)))
}
