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
use crate::db::policy_backlogs::PolicyState;
use crate::retention::run::{RunFilter, RunStatus};
use crate::service::Permission;
use crate::service::backups::Listed;
use crate::service::overview::MOST_COUNTED;

/// Most runs that are counted as waiting for approval.
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
    let (approvals, backlog) = match may(Permission::RetentionView) {
        true => {
            let runs = services.list_runs(caller, &waiting, RUNS).await?;
            (Some(runs.len()), backlog(&services.backlogs(caller).await?))
        }
        false => (None, None),
    };
    let days = overview.counted.as_ref().map(|counted| counted.days.as_slice());
    let content = context! {
        outcomes => days.map(outcomes),
        waits => days.map(waits),
        sizes => backups.as_deref().and_then(sizes),
        backup => backups.as_deref().map(latest),
        approvals, backlog,
        o => context! {
            waiting => overview.now.waiting,
            running => overview.now.running,
            most_counted => MOST_COUNTED,
            oldest_wait_secs => overview.now.oldest_wait_secs,
            workers => overview.workers,
            counted_secs => overview.counted.as_ref().map(|counted| counted.age().as_secs()),
            failed_today => days.map(|days| days.last().map_or(0, |day| day.failed)),
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

/// What each policy had before it when somebody last looked, or when a run last ended.
fn backlog(policies: &[PolicyState]) -> Option<Value> {
    #[expect(clippy::cast_precision_loss, reason = "a drawing needs no last digit")]
    let bar = |policy: &PolicyState| Bar {
        label: policy.policy.clone(),
        parts: vec![
            ("c-accent", policy.eligible as f64),
            ("c-warn", (policy.held + policy.blocked) as f64),
        ],
    };
    let bars: Vec<_> = policies.iter().map(bar).collect();
    (!bars.is_empty()).then(|| stacked("Rows before each policy", "rows", &bars))
}
