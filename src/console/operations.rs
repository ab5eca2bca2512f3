//! Queues and workers, and the search through the audit.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use minijinja::context;
use url::form_urlencoded;

use super::Console;
use super::pages::{Page, of};
use super::request::{Action, Change, Fields, Query, SignedIn};
use super::response::see_other;
use crate::api::{Problem, ProblemKind};
use crate::db::audit::AuditFilter;
use crate::service::Permission;

/// Rows of the audit on a page.
const PAGE: i64 = 100;

/// Queues, and the processes that work on them.
pub async fn queues(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    let notice = match query.get("notice") {
        Some("pause") => Some("Nothing is taken from the queue until it is resumed."),
        Some("resume") => Some("The queue goes on, within a minute."),
        Some("drain") => Some("The worker finishes what it has and takes nothing new."),
        _ => None,
    };
    let content = context! {
        queues => of(services.queues(caller).await?),
        workers => of(services.workers(caller).await?),
        may_manage => caller.may(Permission::QueuesManage.codename()),
    };
    let page = Page { template: "queues.html", title: "Queues", place: "/queues", notice };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

/// Pauses or resumes a queue.
pub async fn change_queue(
    State(console): State<Console>,
    Action(name, verb): Action,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    match verb.as_str() {
        "pause" => services.pause_queue(caller, &name).await?,
        "resume" => services.resume_queue(caller, &name).await?,
        _ => return Err(Problem::new(ProblemKind::NotFound, "there is no such action")),
    }
    Ok(see_other(&format!("/queues?notice={verb}")))
}

/// Lets a worker process finish.
pub async fn drain_worker(
    State(console): State<Console>,
    super::request::Name(id): super::request::Name,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    console.api.services.drain_worker(&session.caller, &id).await?;
    Ok(see_other("/queues?notice=drain"))
}

/// Who did what, newest first. What cannot be read in the query is left out of it.
pub async fn audit(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let filter = audit_filter(&query);
    let mut rows = console.api.services.search_audit(&session.caller, &filter, PAGE + 1).await?;
    let shown = usize::try_from(PAGE).unwrap_or(usize::MAX);
    let has_more = rows.len() > shown;
    rows.truncate(shown);
    let older = rows.last().filter(|_| has_more).map(|last| {
        let mut link = form_urlencoded::Serializer::new(String::new());
        for name in ["user_id", "action", "entity_type", "entity_id", "from", "until"] {
            if let Some(value) = query.filled(name) {
                link.append_pair(name, value);
            }
        }
        link.append_pair("before", &last.id.to_string());
        format!("/audit?{}", link.finish())
    });
    let given = |name: &str| query.get(name).unwrap_or_default().to_owned();
    let content = context! {
        filter => context! {
            user_id => given("user_id"),
            action => given("action"),
            entity_type => given("entity_type"),
            entity_id => given("entity_id"),
            from => given("from"),
            until => given("until"),
        },
        rows => of(rows),
        older,
    };
    let page = Page { template: "audit.html", title: "Audit", place: "/audit", notice: None };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

fn audit_filter(query: &Fields) -> AuditFilter {
    let number = |name: &str| query.filled(name).and_then(|text| text.parse::<i64>().ok());
    let text = |name: &str| query.filled(name).map(str::to_owned);
    AuditFilter {
        user_id: query.filled("user_id").and_then(|text| text.parse().ok()),
        action: text("action"),
        entity_type: text("entity_type"),
        entity_id: number("entity_id"),
        from: query.filled("from").and_then(midnight),
        until: query.filled("until").and_then(midnight),
        before: number("before"),
    }
}

/// The beginning of a day, in UTC.
fn midnight(text: &str) -> Option<DateTime<Utc>> {
    let day: NaiveDate = text.parse().ok()?;
    Some(day.and_time(NaiveTime::MIN).and_utc())
}
