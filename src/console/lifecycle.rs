//! Policies with their preview drawn, and runs with their progress.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::{Value, context};
use serde::Serialize;

use super::Console;
use super::chart::share;
use super::events::{self, Followable};
use super::pages::{Page, of};
use super::request::{Action, Change, Name, Number, Query, SignedIn};
use super::response::see_other;
use crate::api::{Problem, ProblemKind};
use crate::retention::plan::Preview;
use crate::retention::run::{Run, RunFilter, RunStatus};
use crate::service::sessions::Session;
use crate::service::{Caller, Permission, ServiceError};

/// Runs on a page.
const PAGE: i64 = 50;

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    description: String,
    kind: &'static str,
    owner: String,
    enabled: bool,
    cron: Option<String>,
    last_id: Option<i64>,
    last_at: Option<chrono::DateTime<chrono::Utc>>,
    last_status: Option<RunStatus>,
}

/// Every policy, with its last run.
pub async fn policies(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    let mut policies = Vec::new();
    for policy in services.list_policies(caller).await? {
        let last = runs_of(&console, caller, policy.name.as_str(), 1).await?.pop();
        policies.push(Line {
            name: policy.name.as_str().to_owned(),
            kind: policy.kind.name(),
            enabled: policy.enabled,
            cron: policy.schedule.map(|schedule| schedule.cron),
            description: policy.description,
            owner: policy.owner,
            last_id: last.as_ref().map(|run| run.id),
            last_at: last.as_ref().map(|run| run.created_at),
            last_status: last.as_ref().map(|run| run.status),
        });
    }
    let page =
        Page { template: "policies.html", title: "Policies", place: "/policies", notice: None };
    let content = context! { policies => of(policies) };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

async fn runs_of(
    console: &Console,
    caller: &Caller,
    policy: &str,
    limit: i64,
) -> Result<Vec<Run>, ServiceError> {
    let filter = RunFilter { policy: Some(policy.to_owned()), ..RunFilter::default() };
    console.api.services.list_runs(caller, &filter, limit).await
}

/// One policy; with `?preview=1`, what a run of it would do now.
pub async fn policy(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Name(name): Name,
    Query(query): Query,
) -> Result<Response, Problem> {
    let preview = match query.filled("preview") {
        Some(_) => Some(console.api.services.preview_run(&session.caller, &name).await),
        None => None,
    };
    match preview {
        None => policy_page(&console, &session, &name, None, None, StatusCode::OK).await,
        Some(Ok(preview)) => {
            policy_page(&console, &session, &name, Some(preview), None, StatusCode::OK).await
        }
        Some(Err(error)) => refused(&console, &session, &name, error).await,
    }
}

/// Starts a run of what the preview showed.
pub async fn start(
    State(console): State<Console>,
    Name(name): Name,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let digest = fields.filled("digest");
    match console.api.services.start_run(&session.caller, &name, digest).await {
        Ok(started) => Ok(see_other(&format!("/runs/{}", started.run.id))),
        Err(error) => refused(&console, &session, &name, error).await,
    }
}

/// What a safety rule refuses is told on the policy's own page.
async fn refused(
    console: &Console,
    session: &Session,
    name: &str,
    error: ServiceError,
) -> Result<Response, Problem> {
    let ServiceError::Refused { message, .. } = &error else { return Err(error.into()) };
    let fault = Some(message.clone());
    policy_page(console, session, name, None, fault, StatusCode::CONFLICT).await
}

async fn policy_page(
    console: &Console,
    session: &Session,
    name: &str,
    preview: Option<Preview>,
    fault: Option<String>,
    status: StatusCode,
) -> Result<Response, Problem> {
    let policy = console.api.services.find_policy(&session.caller, name).await?;
    let bars = preview.iter().flat_map(|preview| &preview.tables).map(|table| {
        let known = table.eligible + table.held + table.blocked + table.indeterminate;
        share(&[
            ("c-accent", table.eligible),
            ("c-warn", table.held),
            ("c-busy", table.blocked),
            ("c-bad", table.indeterminate),
            ("c-line", table.total - known),
        ])
    });
    let content = context! {
        bars => bars.collect::<Vec<Value>>(),
        description => policy.description.as_str(),
        enabled => policy.enabled,
        content => serde_json::to_string_pretty(&policy).unwrap_or_default(),
        may_run => session.caller.may(Permission::RetentionRun.codename()),
        runs => of(runs_of(console, &session.caller, name, 10).await?),
        preview => of(preview),
        fault,
    };
    let title = policy.name.as_str();
    let page = Page { template: "policy.html", title, place: "/policies", notice: None };
    Ok(console.pages.show(status, session, &page, content))
}

/// Runs, newest first.
pub async fn runs(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let status = query.filled("status").and_then(|text| text.parse().ok());
    let filter = RunFilter { status, ..RunFilter::default() };
    let runs = console.api.services.list_runs(&session.caller, &filter, PAGE).await?;
    let page = Page { template: "runs.html", title: "Runs", place: "/runs", notice: None };
    Ok(console.pages.show(StatusCode::OK, &session, &page, context! { runs => of(runs) }))
}

/// One run.
pub async fn run(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Number(id): Number,
) -> Result<Response, Problem> {
    let detail = console.api.services.show_run(&session.caller, id).await?;
    let may_run = session.caller.may(Permission::RetentionRun.codename());
    let may_approve = session.caller.may(Permission::RetentionApprove.codename());
    let title = format!("Run {id}");
    let content = context! {
        verbs => verbs(detail.run.status, may_run, may_approve),
        is_moving => is_moving(detail.run.status),
        r => of(detail),
    };
    let page = Page { template: "run.html", title: &title, place: "/runs", notice: None };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

/// Whether the page has something to wait for.
pub fn is_moving(status: RunStatus) -> bool {
    matches!(status, RunStatus::Pending | RunStatus::Processing)
}

/// What can be done with a run. The service has the last word.
fn verbs(status: RunStatus, may_run: bool, may_approve: bool) -> Vec<Value> {
    let approve = ("approve", "Approve", "main", "Approve this run?");
    let pause = ("pause", "Pause", "", "");
    let resume = ("resume", "Resume", "main", "");
    let cancel = ("cancel", "Cancel", "bad", "End this run? What was done stays done.");
    let all = match status {
        RunStatus::NeedsApproval => vec![(approve, may_approve), (cancel, may_run)],
        RunStatus::Pending | RunStatus::Processing => vec![(pause, may_run), (cancel, may_run)],
        RunStatus::Paused => vec![(resume, may_run), (cancel, may_run)],
        RunStatus::Failed => vec![(resume, may_run)],
        RunStatus::Completed | RunStatus::Cancelled => Vec::new(),
    };
    let shown = all.into_iter().filter(|(_, may)| *may);
    shown.map(|((name, label, tone, ask), _)| context! { name, label, tone, ask }).collect()
}

/// Progress as server-sent events.
pub async fn run_events(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Number(id): Number,
) -> Result<Response, Problem> {
    console.api.services.show_run(&session.caller, id).await?;
    events::follow(console, session, Followable::Run(id))
}

/// Approves, pauses, resumes or cancels.
pub async fn change_run(
    State(console): State<Console>,
    Action(id, verb): Action,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    let id = id.parse().unwrap_or(0);
    let (services, caller) = (&console.api.services, &session.caller);
    match verb.as_str() {
        "approve" => services.approve_run(caller, id).await?,
        "pause" => services.pause_run(caller, id).await?,
        "resume" => services.resume_run(caller, id).await?,
        "cancel" => services.cancel_run(caller, id).await?,
        _ => return Err(Problem::new(ProblemKind::NotFound, "there is no such action")),
    };
    Ok(see_other(&format!("/runs/{id}")))
}
