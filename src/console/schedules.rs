//! Schedules: one's own, or everybody's with the right to see them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::context;
use serde_json::{Map, Value, json};

use super::Console;
use super::pages::{Page, of};
use super::request::{Action, Change, Fields, Name, Query, SignedIn};
use super::response::see_other;
use crate::api::{Problem, ProblemKind, ScheduleResource, read_backfill};
use crate::service::Permission;

/// Coming times that are shown.
const UPCOMING: usize = 3;

/// The schedules, by name.
pub async fn list(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let schedules = console.api.services.list_schedules(&session.caller).await?;
    let may_run = session.caller.may(Permission::ReportsRun.codename())
        || session.caller.may(Permission::ExecutionsCancelAll.codename());
    let notice = match query.get("notice") {
        Some("scheduled") => Some("The schedule is stored."),
        Some("run") => Some("It runs now."),
        Some("changed") => Some("The schedule is changed."),
        _ => None,
    };
    let page = Page { template: "schedules.html", title: "Schedules", place: "/schedules", notice };
    Ok(console.pages.show(
        StatusCode::OK,
        &session,
        &page,
        context! { schedules => of(schedules), may_run },
    ))
}

/// A schedule with its next times, and what became of the latest ones.
pub async fn show(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Name(name): Name,
    Query(query): Query,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    let history = services.show_schedule(caller, &name).await?;
    let times = services.upcoming(caller, &name, UPCOMING).await?.times;
    let resource = ScheduleResource::from(history);
    let title = resource.name.clone();
    let is_mine = caller.user_id == Some(resource.owner_id);
    let content = context! {
        may_change => is_mine || caller.may(Permission::ExecutionsCancelAll.codename()),
        times => of(times),
        occurrences => of(&resource.occurrences),
        s => of(&resource),
    };
    let notice = (query.get("notice") == Some("backfilled"))
        .then_some("What had started nothing in that time is on its way.");
    let page = Page { template: "schedule.html", title: &title, place: "/schedules", notice };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

/// Pauses, resumes, runs, back-fills or deletes one.
pub async fn change(
    State(console): State<Console>,
    Action(name, verb): Action,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    let notice = match verb.as_str() {
        "pause" => services.pause_schedule(caller, &name).await.map(|_| "changed")?,
        "resume" => services.resume_schedule(caller, &name).await.map(|_| "changed")?,
        "delete" => services.delete_schedule(caller, &name).await.map(|_| "changed")?,
        "run" => services.run_schedule(caller, &name).await.map(|_| "run")?,
        "backfill" => {
            let (from, until) = read_backfill(backfill(&fields))?;
            services.backfill_schedule(caller, &name, from, until).await?;
            // It was found by this name, so it is one: small letters, digits and hyphens.
            return Ok(see_other(&format!("/schedules/{name}?notice=backfilled")));
        }
        _ => return Err(Problem::new(ProblemKind::NotFound, "there is no such action")),
    };
    Ok(see_other(&format!("/schedules?notice={notice}")))
}

/// The same body as a client of the API would send: days begin in UTC.
fn backfill(fields: &Fields) -> Map<String, Value> {
    let instant = |name: &str| {
        let day = fields.filled(name)?;
        Some((name.to_owned(), json!(format!("{day}T00:00:00Z"))))
    };
    ["from", "until"].into_iter().filter_map(instant).collect()
}
