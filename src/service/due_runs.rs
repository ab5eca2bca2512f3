//! Runs and backups of policies that their schedules ask for.
//!
//! Each due time is a unique row of `schedule_occurrences`, taken in the transaction that stores
//! the run or its ticket, so that of many workers one starts it. A run does all that has become
//! due, however many times were missed: the latest one is enough, also where the policy says `all`.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use sqlx::PgConnection;

use super::backup_policies::ticket;
use super::runs::{push_ticket, record};
use super::{Caller, ServiceError, Services};
use crate::calendar::Calendar;
use crate::db::schedules;
use crate::policy::{ApprovalRule, CatchUp, Kind, Overlap, Policy, Schedule};
use crate::queue;
use crate::retention::run::{self, NewRun, Origin};

/// An occurrence this late has been missed.
const LATE: TimeDelta = TimeDelta::minutes(5);
/// A due time that nobody has taken for this long is overdue.
const OVERDUE: TimeDelta = TimeDelta::hours(1);
/// Due times that are looked at: a schedule of every minute with a window of a week.
const MAX_LOOKED_AT: usize = 11_000;

impl Services {
    /// Stores a run, with its ticket, for each policy that is due. Returns how many.
    ///
    /// A policy that is seen for the first time is due from now on: what was due before nobody had
    /// asked for.
    ///
    /// # Errors
    /// The jobs folder or the database cannot be used.
    pub async fn start_due_runs(&self) -> Result<usize, ServiceError> {
        let policies = self.policies().await?;
        let mut started = 0;
        for policy in policies.policies.values().filter(|policy| policy.enabled) {
            let Some(schedule) = self.schedule_of_starts(policy) else { continue };
            let is_started = match ticket(policy) {
                Some(ticket) => {
                    let mut tx = self.db.begin().await?;
                    let is_due = take_due(&mut tx, policy, schedule).await?.is_some();
                    if is_due {
                        queue::enqueue_backup(&mut tx, &ticket).await?;
                    }
                    tx.commit().await?;
                    is_due
                }
                None => self.start_if_due(policy, schedule).await?,
            };
            started += usize::from(is_started);
        }
        Ok(started)
    }

    /// Names of enabled policies whose latest due time nobody has taken for longer than a start
    /// takes. A policy that was never looked at is not behind: it is due from then on.
    ///
    /// # Errors
    /// The jobs folder or the database cannot be used.
    pub async fn policies_behind(&self) -> Result<Vec<String>, ServiceError> {
        let policies = self.policies().await?;
        let now: DateTime<Utc> = sqlx::query_scalar("select now()").fetch_one(&self.db).await?;
        let mut behind = Vec::new();
        for policy in policies.policies.values().filter(|policy| policy.enabled) {
            let Some(schedule) = self.schedule_of_starts(policy) else { continue };
            let occurrences = format!("policy.{}", policy.name);
            let Some(last) = schedules::latest_occurrence(&self.db, &occurrences).await? else {
                continue;
            };
            let calendar = calendar_of(policy, schedule)?;
            if calendar.after(last).is_some_and(|due| now - due > OVERDUE) {
                behind.push(policy.name.as_str().to_owned());
            }
        }
        Ok(behind)
    }

    /// The schedule that runs or backups of a policy start by.
    fn schedule_of_starts<'a>(&self, policy: &'a Policy) -> Option<&'a Schedule> {
        let starts = match &policy.kind {
            Kind::Archive(_)
            | Kind::AnonymizeRows(_)
            | Kind::Purge(_)
            | Kind::Backup(_)
            | Kind::VerifyBackup(_)
            | Kind::PruneBackups(_) => true,
            // Without keys nobody can have requested an erasure.
            Kind::Anonymize(_) => self.can_erase(),
            // Housekeeping of its own, or nothing that a run could do.
            Kind::ExpireResults(_) | Kind::Report(_) => false,
        };
        policy.schedule.as_ref().filter(|_| starts)
    }

    async fn start_if_due(
        &self,
        policy: &Policy,
        schedule: &Schedule,
    ) -> Result<bool, ServiceError> {
        let mut tx = self.db.begin().await?;
        let Some(due_at) = take_due(&mut tx, policy, schedule).await? else {
            tx.commit().await?;
            return Ok(false);
        };
        let name = policy.name.as_str();
        let new = NewRun {
            policy: name,
            kind: policy.kind.name(),
            policy_digest: &policy.digest(),
            as_of: None,
            origin: Origin::Schedule,
            preview_digest: None,
            needs_approval: policy.approval.required_for == ApprovalRule::Always,
        };
        let Some(id) = run::insert(&mut tx, &new).await? else {
            tracing::info!(policy = name, %due_at, "the run before is not finished");
            match schedule.overlap {
                Overlap::Skip => tx.commit().await?,
                // Not taken: the next look tries again.
                Overlap::Queue => tx.rollback().await?,
            }
            return Ok(false);
        };
        if !new.needs_approval {
            push_ticket(&mut tx, id).await?;
        }
        let system = Caller::operator(String::new());
        let details = json!({ "policy": name, "due_at": due_at });
        record(&mut tx, &system, id, "run.scheduled", details).await?;
        tx.commit().await?;
        Ok(true)
    }
}

fn calendar_of(policy: &Policy, schedule: &Schedule) -> Result<Calendar, ServiceError> {
    Calendar::parse(&schedule.cron, policy.time_zone.name())
        .map_err(|error| ServiceError::Internal(anyhow::anyhow!("{}: {error}", policy.name)))
}

/// Takes the latest due time for this transaction, if there is one and nobody has it. A policy that
/// is seen for the first time is due from now on.
async fn take_due(
    tx: &mut PgConnection,
    policy: &Policy,
    schedule: &Schedule,
) -> Result<Option<DateTime<Utc>>, ServiceError> {
    let occurrences = format!("policy.{}", policy.name);
    let now: DateTime<Utc> = sqlx::query_scalar("select now()").fetch_one(&mut *tx).await?;
    if !schedules::has_occurrence(tx, &occurrences).await? {
        schedules::take_occurrence(tx, &occurrences, now).await?;
        return Ok(None);
    }
    let Some(due_at) = latest_due(policy, schedule, now)? else { return Ok(None) };
    let is_taken = schedules::take_occurrence_after(tx, &occurrences, due_at).await?;
    Ok(is_taken.then_some(due_at))
}

/// The latest due time that may still start.
fn latest_due(
    policy: &Policy,
    schedule: &Schedule,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, ServiceError> {
    let calendar = calendar_of(policy, schedule)?;
    let window = match schedule.catch_up {
        CatchUp::None => LATE,
        CatchUp::Latest | CatchUp::All => {
            TimeDelta::from_std(schedule.window.duration()).unwrap_or(LATE)
        }
    };
    let mut latest = None;
    let mut due = calendar.after(now - window);
    for _ in 0..MAX_LOOKED_AT {
        match due.filter(|due| *due <= now) {
            Some(time) => latest = Some(time),
            None => break,
        }
        due = due.and_then(|due| calendar.after(due));
    }
    Ok(latest)
}
