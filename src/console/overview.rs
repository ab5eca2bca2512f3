//! The page that operators open first.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::{Value, context};

use super::Console;
use super::chart::{Bar, stacked};
use super::pages::Page;
use super::request::SignedIn;
use crate::api::Problem;
use crate::db::backups::BackupRow;
use crate::db::overview::Day;
use crate::retention::run::{RunFilter, RunStatus};
use crate::service::Permission;
use crate::service::backups::Listed;

/// Runs that are looked through for those that wait for approval, and for what they left.
const RUNS: i64 = 200;
/// Backups that are drawn.
const BACKUPS: usize = 20;

/// How things stand, as far as the caller may know.
pub async fn show(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    let overview = services.overview(caller).await?;
    let may = |permission: Permission| caller.may(permission.codename());
    let backups = match may(Permission::BackupsView) {
        true => Some(services.show_backups(caller).await?.backups),
        false => None,
    };
    let waiting = RunFilter { status: Some(RunStatus::NeedsApproval), ..RunFilter::default() };
    let approvals = match may(Permission::RetentionView) {
        true => Some(services.list_runs(caller, &waiting, RUNS).await?.len()),
        false => None,
    };
    let backlog = match may(Permission::RetentionView) {
        true => backlog(&console, &session).await?,
        false => None,
    };
    let today = overview.days.last();
    let content = context! {
        outcomes => outcomes(&overview.days),
        waits => waits(&overview.days),
        sizes => backups.as_deref().and_then(sizes),
        backup => backups.as_deref().map(latest),
        approvals, backlog,
        o => context! {
            waiting => overview.waiting,
            running => overview.running,
            oldest_wait_secs => overview.oldest_wait_secs,
            workers => overview.workers,
            failed_today => today.map_or(0, |day| day.failed),
        },
    };
    let page =
        Page { template: "overview.html", title: "Overview", place: "/overview", notice: None };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

#[expect(clippy::cast_precision_loss, reason = "a drawing needs no last digit")]
fn outcomes(days: &[Day]) -> Value {
    let bars = days.iter().map(|day| Bar {
        label: day.day.format("%-d %b").to_string(),
        parts: vec![
            ("c-good", day.completed as f64),
            ("c-bad", day.failed as f64),
            ("c-warn", day.cancelled as f64),
        ],
    });
    stacked("Executions by day and outcome", "executions", &bars.collect::<Vec<_>>())
}

fn waits(days: &[Day]) -> Value {
    let bars = days.iter().map(|day| Bar {
        label: day.day.format("%-d %b").to_string(),
        parts: vec![("c-accent", day.wait_secs)],
    });
    stacked("Average wait in the queue by day", "s", &bars.collect::<Vec<_>>())
}

/// Sizes of backups, oldest first; `None` where there is none.
pub fn sizes(backups: &[Listed]) -> Option<Value> {
    #[expect(clippy::cast_precision_loss, reason = "a drawing needs no last digit")]
    let bar = |BackupRow { taken_at, size_bytes, .. }: &BackupRow| Bar {
        label: taken_at.format("%-d %b").to_string(),
        parts: vec![("c-accent", *size_bytes as f64 / 1e6)],
    };
    let bars: Vec<_> =
        backups.iter().take(BACKUPS).rev().map(|listed| bar(&listed.backup)).collect();
    (!bars.is_empty()).then(|| stacked("Size of each backup", "MB", &bars))
}

fn latest(backups: &[Listed]) -> Value {
    let latest = backups.first();
    context! {
        age_secs => latest.map(|listed| listed.age_secs),
        verified_good => latest.and_then(|listed| listed.backup.verified_good) == Some(true),
    }
}

/// What the last run of each policy left undone.
async fn backlog(
    console: &Console,
    session: &crate::service::sessions::Session,
) -> Result<Option<Value>, Problem> {
    let services = &console.api.services;
    let mut bars: Vec<Bar> = Vec::new();
    for policy in services.list_policies(&session.caller).await? {
        let name = policy.name.as_str().to_owned();
        let last = RunFilter { policy: Some(name.clone()), ..RunFilter::default() };
        let Some(run) = services.list_runs(&session.caller, &last, 1).await?.pop() else {
            continue;
        };
        let tables = services.show_run(&session.caller, run.id).await?.tables;
        #[expect(clippy::cast_precision_loss, reason = "a drawing needs no last digit")]
        let left = tables.iter().map(|t| (t.eligible - t.done).max(0)).sum::<i64>() as f64;
        #[expect(clippy::cast_precision_loss, reason = "a drawing needs no last digit")]
        let held = tables.iter().map(|t| t.held + t.blocked).sum::<i64>() as f64;
        bars.push(Bar { label: name, parts: vec![("c-accent", left), ("c-warn", held)] });
    }
    Ok((!bars.is_empty()).then(|| stacked("Rows left by the last run", "rows", &bars)))
}
