//! Schedules: reports that are submitted by themselves, for an owner whose rights count each time.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sqlx::PgConnection;

use super::executions::{IdempotencyKey, Submission};
use super::report_deliveries::Deliver;
use super::{Caller, Permission, ServiceError, Services};
use crate::calendar::{Calendar, CalendarError};
use crate::db::report_deliveries::{self, ReportDelivery};
use crate::db::schedules::{
    self, NewSchedule, Occurrence, OccurrenceStatus, Overlap, Schedule, ScheduleName, Timing,
};
use crate::db::{audit, tokens};
use crate::queue::{self, OccurrenceTicket};
use crate::report::Presentation;
use crate::writer::Format;

/// Most coming times in one answer.
pub const MAX_UPCOMING: usize = 100;
/// Most days that a schedule can leave out.
const MAX_EXCEPT_DAYS: usize = 366;
/// Most due times of one back-fill.
const MAX_BACKFILLED: usize = 500;
/// Most schedules of one owner.
const MAX_PER_OWNER: usize = 200;
/// Occurrences shown with a schedule.
const SHOWN_OCCURRENCES: i64 = 20;

/// What a schedule submits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScheduledSubmission {
    /// Values for the report's parameters; dates may be relative, like `today - 30 days`.
    pub parameters: Map<String, Value>,
    /// Format of the file.
    pub format: Format,
    /// For whom, and how CSV looks.
    pub presentation: Presentation,
}

/// A schedule as a caller asks for it.
#[derive(Debug, Clone)]
pub struct ScheduleOrder {
    /// Its name, unique.
    pub name: ScheduleName,
    /// The slug of the report.
    pub report: String,
    /// What is submitted.
    pub submission: ScheduledSubmission,
    /// How results are brought to the owner.
    pub deliver: Deliver,
    /// When it fires.
    pub timing: Timing,
}

/// When a schedule is due.
#[derive(Debug, Clone)]
pub struct Upcoming {
    /// Its zone.
    pub zone: Tz,
    /// In order.
    pub times: Vec<DateTime<Utc>>,
}

/// A schedule, and what became of its latest occurrences.
#[derive(Debug, Clone)]
pub struct ScheduleHistory {
    /// The schedule.
    pub schedule: Schedule,
    /// Newest first.
    pub occurrences: Vec<Occurrence>,
    /// What was delivered of them, newest first.
    pub deliveries: Vec<ReportDelivery>,
}

impl Services {
    /// Stores a schedule of the caller's. Everything that a submit would check is checked now too,
    /// so that a schedule that can never work is refused.
    ///
    /// # Errors
    /// [`ServiceError::BadField`], [`ServiceError::BadParameters`], forbidden, not found.
    pub async fn create_schedule(
        &self,
        caller: &Caller,
        order: ScheduleOrder,
    ) -> Result<Schedule, ServiceError> {
        caller.require(Permission::ReportsRun)?;
        let Some(owner_id) = caller.user_id else {
            return Err(ServiceError::BadField {
                field: "/owner",
                expected: "must be a user: use a token of the owner's".to_owned(),
            });
        };
        let calendar = order.calendar()?;
        order.check_bounds()?;
        let submission = order.submission.clone().into_submission(None);
        let no_report = || ServiceError::BadField {
            field: "/report",
            expected: "must be the slug of a report".to_owned(),
        };
        // PostgreSQL would not even look for it.
        if order.report.contains('\0') {
            return Err(no_report());
        }
        let estimated = self.estimate(caller, &order.report, &submission).await;
        estimated.map_err(|error| match error {
            // What is named in a body is a field of it, not the resource that was asked for.
            ServiceError::NotFound { .. } => no_report(),
            error => error,
        })?;
        let mut tx = self.db.begin().await?;
        self.check_deliver(&mut tx, &order.deliver).await?;
        if schedules::list(&self.db, Some(owner_id)).await?.len() >= MAX_PER_OWNER {
            return Err(ServiceError::BadField {
                field: "/name",
                expected: format!("is one too many: a user may have {MAX_PER_OWNER} schedules"),
            });
        }
        let new = NewSchedule {
            name: order.name.as_str().to_owned(),
            report: order.report,
            owner_id,
            submission: json!(order.submission),
            deliver: json!(order.deliver),
            timing: order.timing,
        };
        let next_due_at = calendar.after(database_now(&mut tx).await?);
        if !schedules::insert(&mut tx, &new, next_due_at).await? {
            return Err(ServiceError::BadField {
                field: "/name",
                expected: "must be new: another schedule has this name".to_owned(),
            });
        }
        let schedule = self.visible_schedule(&mut tx, caller, &new.name).await?;
        record(&mut tx, caller, "schedule.created", &schedule, json!({})).await?;
        tx.commit().await?;
        Ok(schedule)
    }

    /// The caller's schedules, or everybody's with the right to see all executions.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn list_schedules(&self, caller: &Caller) -> Result<Vec<Schedule>, ServiceError> {
        caller.require_following()?;
        let everybody = caller.may(Permission::ExecutionsViewAll.codename());
        let owner = if everybody { None } else { Some(caller.user_id.unwrap_or(0)) };
        Ok(schedules::list(&self.db, owner).await?)
    }

    /// A schedule with what became of its latest occurrences.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], also for one that the caller may not know of.
    pub async fn show_schedule(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<ScheduleHistory, ServiceError> {
        caller.require_following()?;
        let mut connection = self.db.acquire().await?;
        let schedule = self.visible_schedule(&mut connection, caller, name).await?;
        let occurrences = schedules::occurrences(&mut connection, name, SHOWN_OCCURRENCES).await?;
        let limit = SHOWN_OCCURRENCES * 3;
        let deliveries = report_deliveries::of_schedule(&mut connection, name, limit).await?;
        Ok(ScheduleHistory { schedule, occurrences, deliveries })
    }

    /// The next due times, at most [`MAX_UPCOMING`], whether the schedule is paused or not.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`]
    pub async fn upcoming(
        &self,
        caller: &Caller,
        name: &str,
        count: usize,
    ) -> Result<Upcoming, ServiceError> {
        caller.require_following()?;
        let mut connection = self.db.acquire().await?;
        let schedule = self.visible_schedule(&mut connection, caller, name).await?;
        let calendar = stored_calendar(&schedule)?;
        let mut time = database_now(&mut connection).await?;
        let mut times = Vec::new();
        while times.len() < count.min(MAX_UPCOMING) {
            let Some(next) = calendar.after(time) else { break };
            times.push(next);
            time = next;
        }
        Ok(Upcoming { zone: calendar.zone(), times })
    }

    /// Pauses a schedule. What it has started goes on; one that is paused stays so.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] and [`ServiceError::Forbidden`]
    pub async fn pause_schedule(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Schedule, ServiceError> {
        let mut tx = self.db.begin().await?;
        let schedule = self.own_schedule(&mut tx, caller, name).await?;
        if schedules::pause(&mut tx, schedule.id, "by_hand").await? {
            record(&mut tx, caller, "schedule.paused", &schedule, json!({})).await?;
        }
        let schedule = self.visible_schedule(&mut tx, caller, name).await?;
        tx.commit().await?;
        Ok(schedule)
    }

    /// Lets a paused schedule go on with its next time: what was due meanwhile is left out.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] and [`ServiceError::Forbidden`]
    pub async fn resume_schedule(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Schedule, ServiceError> {
        let mut tx = self.db.begin().await?;
        let schedule = self.own_schedule(&mut tx, caller, name).await?;
        let next = stored_calendar(&schedule)?.after(database_now(&mut tx).await?);
        if schedules::resume(&mut tx, schedule.id, next).await? {
            record(&mut tx, caller, "schedule.resumed", &schedule, json!({})).await?;
        }
        let schedule = self.visible_schedule(&mut tx, caller, name).await?;
        tx.commit().await?;
        Ok(schedule)
    }

    /// Adds an occurrence that is due now, also to a schedule that is paused.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] and [`ServiceError::Forbidden`]
    pub async fn run_schedule(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<DateTime<Utc>, ServiceError> {
        let mut tx = self.db.begin().await?;
        let schedule = self.own_schedule(&mut tx, caller, name).await?;
        let due_at = database_now(&mut tx).await?;
        schedules::note_occurrence(&mut tx, name, due_at, None, 0).await?;
        let ticket = OccurrenceTicket { schedule: name.to_owned(), due_at };
        queue::enqueue_occurrence(&mut tx, ticket, 0).await?;
        record(&mut tx, caller, "schedule.run_now", &schedule, json!({ "due_at": due_at })).await?;
        tx.commit().await?;
        Ok(due_at)
    }

    /// Fires the due times from `from`, and before `until`, that have started nothing: those that were
    /// missed, left out or could not start, and those of before the schedule was made. Dates of the
    /// report's parameters are told from each due time. Returns how many.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], [`ServiceError::Forbidden`], [`ServiceError::BadField`]
    pub async fn backfill_schedule(
        &self,
        caller: &Caller,
        name: &str,
        from: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Result<usize, ServiceError> {
        let mut tx = self.db.begin().await?;
        let schedule = self.own_schedule(&mut tx, caller, name).await?;
        let refuse = |field, expected: &str| {
            Err(ServiceError::BadField { field, expected: expected.to_owned() })
        };
        if until > database_now(&mut tx).await? {
            return refuse("/until", "must not be in the future");
        }
        if from >= until {
            return refuse("/from", "must be before `until`");
        }
        let calendar = stored_calendar(&schedule)?;
        let mut due = Vec::new();
        let mut next = calendar.after(from - TimeDelta::microseconds(1));
        while let Some(time) = next.filter(|time| *time < until) {
            if due.len() == MAX_BACKFILLED {
                let expected = format!("must be earlier: at most {MAX_BACKFILLED} due times");
                return refuse("/until", &expected);
            }
            due.push(time);
            next = calendar.after(time);
        }
        let added = schedules::backfill(&mut tx, name, &due).await?;
        for due_at in &added {
            let ticket = OccurrenceTicket { schedule: name.to_owned(), due_at: *due_at };
            queue::enqueue_occurrence(&mut tx, ticket, 0).await?;
        }
        let details = json!({ "from": from, "until": until, "occurrences": added.len() });
        record(&mut tx, caller, "schedule.backfilled", &schedule, details).await?;
        tx.commit().await?;
        Ok(added.len())
    }

    /// Deletes a schedule and answers with what it was. What it has started stays.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] and [`ServiceError::Forbidden`]
    pub async fn delete_schedule(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Schedule, ServiceError> {
        let mut tx = self.db.begin().await?;
        let schedule = self.own_schedule(&mut tx, caller, name).await?;
        if schedules::delete(&mut tx, schedule.id).await? {
            record(&mut tx, caller, "schedule.deleted", &schedule, json!({})).await?;
        }
        tx.commit().await?;
        Ok(schedule)
    }

    /// Starts what an occurrence has due. The submit's idempotency key is the occurrence itself,
    /// so that a worker that dies between the submit and the occurrence's row starts nothing twice.
    ///
    /// # Errors
    /// The database or the store does not answer: the occurrence stays pending, and gets another
    /// ticket. Whatever else is wrong is the occurrence's outcome.
    pub async fn fire_occurrence(
        &self,
        name: &str,
        due_at: DateTime<Utc>,
    ) -> Result<(), ServiceError> {
        let mut tx = self.db.begin().await?;
        let Some(pending) = schedules::lock_pending(&mut tx, name, due_at).await? else {
            return Ok(());
        };
        let is_busy = !pending.is_backfill && schedules::is_busy(&mut tx, name, due_at).await?;
        let end = match schedules::find(&mut tx, name).await? {
            None => End::skipped("schedule_deleted"),
            Some(schedule) if is_busy => {
                match schedule.timing.overlap {
                    Overlap::Skip => End::skipped("overlap"),
                    // Stays pending; the scheduler writes a ticket when its turn has come.
                    Overlap::Queue => {
                        schedules::wait_for_turn(&mut tx, name, due_at).await?;
                        return Ok(tx.commit().await?);
                    }
                }
            }
            Some(schedule) => self.submit_occurrence(&mut tx, &schedule, due_at).await?,
        };
        let End { status, reason, execution_id } = end;
        let reason = reason.or(pending.is_backfill.then_some(schedules::BACKFILL));
        schedules::settle_occurrence(&mut tx, name, due_at, status, reason, execution_id).await?;
        if status != OccurrenceStatus::Skipped {
            self.pause_if_failing(&mut tx, name).await?;
        }
        tx.commit().await?;
        metrics::counter!("registrar_schedule_occurrences_total", "outcome" => status.to_string())
            .increment(1);
        Ok(())
    }

    async fn submit_occurrence(
        &self,
        connection: &mut PgConnection,
        schedule: &Schedule,
        due_at: DateTime<Utc>,
    ) -> Result<End, ServiceError> {
        let trace_id = uuid::Uuid::new_v4().simple().to_string();
        let owner = tokens::find_account(connection, schedule.owner_id).await?;
        let Some(owner) = owner else { return Ok(End::failed("owner_inactive")) };
        let caller = Caller::on_behalf_of(owner, trace_id);
        let key = format!("schedule/{}/{}", schedule.name, due_at.timestamp_micros());
        let key: IdempotencyKey = key.parse()?;
        let Ok(stored) = serde_json::from_value::<ScheduledSubmission>(schedule.submission.clone())
        else {
            return Ok(End::failed("unreadable_submission"));
        };
        // The day that it is the report of is the day that it was due, however late it fires.
        let submission = Submission { as_of: Some(due_at), ..stored.into_submission(Some(key)) };
        match self.submit(&caller, &schedule.report, &submission).await {
            Ok(submitted) => Ok(End::done(submitted.execution.id)),
            Err(
                error @ (ServiceError::DatabaseUnavailable(_)
                | ServiceError::StoreUnavailable(_)
                | ServiceError::IdempotencyInFlight
                | ServiceError::TooManyActive { .. }),
            ) => Err(error),
            Err(ServiceError::Forbidden { .. }) => Ok(End::failed("forbidden")),
            Err(ServiceError::NotFound { .. }) => Ok(End::failed("report_gone")),
            Err(ServiceError::BadParameters(_)) => Ok(End::failed("bad_parameters")),
            Err(error) => {
                tracing::warn!(
                    schedule = schedule.name,
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "an occurrence was refused"
                );
                Ok(End::failed("refused"))
            }
        }
    }

    /// Pauses a schedule whose latest occurrences have all failed, and says so in the audit.
    async fn pause_if_failing(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<(), ServiceError> {
        let Some(schedule) = schedules::lock(connection, name).await? else { return Ok(()) };
        let limit = i64::from(schedule.timing.pause_after_failures);
        // One more: the newest was just submitted and has no outcome yet.
        let latest = schedules::occurrences(connection, name, limit + SHOWN_OCCURRENCES).await?;
        let failures = latest
            .iter()
            .filter(|one| one.status != OccurrenceStatus::Skipped)
            .filter(|one| {
                !matches!(one.execution_status.as_deref(), Some("pending" | "processing"))
            })
            .take_while(|one| {
                one.status == OccurrenceStatus::Failed
                    || one.execution_status.as_deref() == Some("failed")
            })
            .count();
        if i64::try_from(failures).is_ok_and(|failures| failures >= limit)
            && schedules::pause(connection, schedule.id, "failing").await?
        {
            tracing::warn!(schedule = name, failures, "a schedule was paused: it keeps failing");
            let system = Caller::operator(String::new());
            let details = json!({ "failures": failures });
            record(connection, &system, "schedule.paused", &schedule, details).await?;
        }
        Ok(())
    }

    /// The schedule, if the caller may know of it.
    async fn visible_schedule(
        &self,
        connection: &mut PgConnection,
        caller: &Caller,
        name: &str,
    ) -> Result<Schedule, ServiceError> {
        let found = schedules::find(connection, name).await?;
        found
            .filter(|schedule| {
                caller.user_id == Some(schedule.owner_id)
                    || caller.may(Permission::ExecutionsViewAll.codename())
            })
            .ok_or(ServiceError::NotFound { what: "schedule" })
    }

    /// The schedule, locked, if the caller may change it.
    async fn own_schedule(
        &self,
        connection: &mut PgConnection,
        caller: &Caller,
        name: &str,
    ) -> Result<Schedule, ServiceError> {
        caller.require_following()?;
        self.visible_schedule(connection, caller, name).await?;
        let schedule = schedules::lock(connection, name)
            .await?
            .ok_or(ServiceError::NotFound { what: "schedule" })?;
        if caller.user_id != Some(schedule.owner_id) {
            caller.require(Permission::ExecutionsCancelAll)?;
        }
        Ok(schedule)
    }
}

/// How an occurrence ends.
struct End {
    status: OccurrenceStatus,
    reason: Option<&'static str>,
    execution_id: Option<i64>,
}

impl End {
    fn done(execution_id: i64) -> Self {
        let execution_id = Some(execution_id);
        Self { status: OccurrenceStatus::Done, reason: None, execution_id }
    }

    fn skipped(reason: &'static str) -> Self {
        let reason = Some(reason);
        Self { status: OccurrenceStatus::Skipped, reason, execution_id: None }
    }

    fn failed(reason: &'static str) -> Self {
        let reason = Some(reason);
        Self { status: OccurrenceStatus::Failed, reason, execution_id: None }
    }
}

impl ScheduledSubmission {
    fn into_submission(self, idempotency_key: Option<IdempotencyKey>) -> Submission {
        let Self { parameters, format, presentation } = self;
        Submission { parameters, format, presentation, idempotency_key, reuse: None, as_of: None }
    }
}

impl ScheduleOrder {
    fn calendar(&self) -> Result<Calendar, ServiceError> {
        self.timing.calendar().map_err(|error| {
            let field = match error {
                CalendarError::Zone => "/time_zone",
                CalendarError::Pattern | CalendarError::Never => "/cron",
            };
            ServiceError::BadField { field, expected: error.to_string() }
        })
    }

    fn check_bounds(&self) -> Result<(), ServiceError> {
        let timing = &self.timing;
        let bounds = [
            ("/window_secs", timing.window_secs, 60, 31_622_400),
            ("/jitter_secs", timing.jitter_secs, 0, 3_600),
            ("/pause_after_failures", timing.pause_after_failures, 1, 100),
        ];
        for (field, value, least, most) in bounds {
            if !(least..=most).contains(&value) {
                let expected = format!("must be between {least} and {most}");
                return Err(ServiceError::BadField { field, expected });
            }
        }
        if timing.except_days.len() > MAX_EXCEPT_DAYS {
            let expected = format!("must be at most {MAX_EXCEPT_DAYS} days");
            return Err(ServiceError::BadField { field: "/except_days", expected });
        }
        Ok(())
    }
}

/// The calendar of a schedule that was readable when it was stored.
fn stored_calendar(schedule: &Schedule) -> Result<Calendar, ServiceError> {
    schedule
        .timing
        .calendar()
        .map_err(|error| ServiceError::Internal(anyhow::anyhow!("stored schedule: {error}")))
}

async fn database_now(connection: &mut PgConnection) -> Result<DateTime<Utc>, ServiceError> {
    Ok(sqlx::query_scalar("select now()").fetch_one(connection).await?)
}

async fn record(
    connection: &mut PgConnection,
    caller: &Caller,
    action: &str,
    schedule: &Schedule,
    mut details: Value,
) -> Result<(), sqlx::Error> {
    if let Value::Object(details) = &mut details {
        details.insert("schedule".to_owned(), schedule.name.clone().into());
        details.insert("trace_id".to_owned(), caller.trace_id.clone().into());
    }
    let entity_id = Some(schedule.id);
    let event = audit::Event { action, entity_type: "schedules", entity_id, details };
    audit::record(connection, &caller.actor, event).await
}
