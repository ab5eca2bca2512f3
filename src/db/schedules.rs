//! `schedules` and `schedule_occurrences`: what runs by itself, and what became of each due time.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use crate::calendar::{Calendar, CalendarError};

/// What becomes of occurrences that were missed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum CatchUp {
    /// They are skipped.
    None,
    /// The latest one within the window fires.
    #[default]
    Latest,
    /// Each one within the window fires.
    All,
}

/// What happens while the occurrence before is not done.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Overlap {
    /// The new one is skipped.
    #[default]
    Skip,
    /// The new one waits.
    Queue,
}

/// When a schedule fires.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Timing {
    /// Five fields, or six with seconds first.
    pub cron: String,
    /// IANA name.
    pub time_zone: String,
    /// Days of the zone without an occurrence.
    pub except_days: Vec<NaiveDate>,
    /// What becomes of missed occurrences.
    pub catch_up: CatchUp,
    /// How late an occurrence may still fire.
    pub window_secs: i32,
    /// What happens while the one before is not done.
    pub overlap: Overlap,
    /// An occurrence fires up to this much later than due, to spread load.
    pub jitter_secs: i32,
    /// So many failures in a row pause the schedule.
    pub pause_after_failures: i32,
}

impl Timing {
    /// Its calendar, without the days that are left out.
    ///
    /// # Errors
    /// [`CalendarError`]: of what is stored, only where another version of this program stored it.
    pub fn calendar(&self) -> Result<Calendar, CalendarError> {
        let calendar = Calendar::parse(&self.cron, &self.time_zone)?;
        Ok(calendar.without(self.except_days.clone()))
    }
}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Schedule {
    /// Its number.
    pub id: i64,
    /// Its name in URLs.
    pub name: String,
    /// The slug of the report.
    pub report: String,
    /// Who submits: rights are theirs, at each firing.
    pub owner_id: i32,
    /// The body of the submit.
    pub submission: Value,
    /// How results are brought to the owner.
    pub deliver: Value,
    /// When it fires.
    #[serde(flatten)]
    #[sqlx(flatten)]
    pub timing: Timing,
    /// When it fires next; `None` when its pattern has no next time.
    pub next_due_at: Option<DateTime<Utc>>,
    /// Since when it is paused.
    pub paused_at: Option<DateTime<Utc>>,
    /// Why: `by_hand`, or what failed.
    pub pause_reason: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A schedule to be stored.
#[derive(Debug, Clone)]
pub struct NewSchedule {
    /// See [`Schedule`].
    pub name: String,
    /// See [`Schedule`].
    pub report: String,
    /// See [`Schedule`].
    pub owner_id: i32,
    /// See [`Schedule`].
    pub submission: Value,
    /// See [`Schedule`].
    pub deliver: Value,
    /// See [`Schedule`].
    pub timing: Timing,
}

/// Where an occurrence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum OccurrenceStatus {
    /// It is due, and its ticket is on the way.
    Pending,
    /// What it had to start was started.
    Done,
    /// It was left out, for a reason.
    Skipped,
    /// It could not be started.
    Failed,
}

impl fmt::Display for OccurrenceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        })
    }
}

/// A due time and what became of it.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Occurrence {
    /// When it was due.
    pub due_at: DateTime<Utc>,
    /// Where it stands.
    pub status: OccurrenceStatus,
    /// Why it was skipped or failed.
    pub reason: Option<String>,
    /// What it started.
    pub execution_id: Option<i64>,
    /// Where that stands.
    pub execution_status: Option<String>,
}

/// Columns of [`Schedule`].
macro_rules! select_schedules {
    ($rest:literal) => {
        concat!(
            "select id, name, report, owner_id, submission, deliver, cron, time_zone, except_days,
                    catch_up::text as catch_up, window_secs, overlap::text as overlap, jitter_secs,
                    pause_after_failures, next_due_at, paused_at, pause_reason, created_at
               from schedules ",
            $rest
        )
    };
}

/// Stores a schedule. `false`: the name is taken.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    new: &NewSchedule,
    next_due_at: Option<DateTime<Utc>>,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "insert into schedules
                (name, report, owner_id, submission, cron, time_zone, except_days, catch_up,
                 window_secs, overlap, jitter_secs, pause_after_failures, next_due_at, deliver)
         values ($1, $2, $3, $4, $5, $6, $7, $8::text, $9, $10::text, $11, $12, $13, $14)
         on conflict (name) do nothing",
    )
    .bind(&new.name)
    .bind(&new.report)
    .bind(new.owner_id)
    .bind(&new.submission)
    .bind(&new.timing.cron)
    .bind(&new.timing.time_zone)
    .bind(&new.timing.except_days)
    .bind(new.timing.catch_up)
    .bind(new.timing.window_secs)
    .bind(new.timing.overlap)
    .bind(new.timing.jitter_secs)
    .bind(new.timing.pause_after_failures)
    .bind(next_due_at)
    .bind(&new.deliver)
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// A schedule by name.
///
/// # Errors
/// The database's.
pub async fn find(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<Schedule>, sqlx::Error> {
    sqlx::query_as(select_schedules!("where name = $1")).bind(name).fetch_optional(connection).await
}

/// A schedule by name, locked: nobody fires or changes it meanwhile.
///
/// # Errors
/// The database's.
pub async fn lock(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<Schedule>, sqlx::Error> {
    sqlx::query_as(select_schedules!("where name = $1 for update"))
        .bind(name)
        .fetch_optional(connection)
        .await
}

/// The schedules of an owner, or all, by name; at most 1,000.
///
/// # Errors
/// The database's.
pub async fn list(pool: &PgPool, owner_id: Option<i32>) -> Result<Vec<Schedule>, sqlx::Error> {
    sqlx::query_as(select_schedules!(
        "where $1::integer is null or owner_id = $1 order by name limit 1000"
    ))
    .bind(owner_id)
    .fetch_all(pool)
    .await
}

/// Locks the schedule that has been due longest. Those that another scheduler looks at are passed
/// over.
///
/// # Errors
/// The database's.
pub async fn lock_due(connection: &mut PgConnection) -> Result<Option<Schedule>, sqlx::Error> {
    sqlx::query_as(select_schedules!(
        "where paused_at is null and next_due_at <= now()
         order by next_due_at
         limit 1
         for update skip locked"
    ))
    .fetch_optional(connection)
    .await
}

/// Moves a schedule on in its calendar.
///
/// # Errors
/// The database's.
pub async fn set_next(
    connection: &mut PgConnection,
    id: i64,
    next_due_at: Option<DateTime<Utc>>,
) -> Result<(), sqlx::Error> {
    sqlx::query("update schedules set next_due_at = $2 where id = $1")
        .bind(id)
        .bind(next_due_at)
        .execute(connection)
        .await?;
    Ok(())
}

/// Pauses a schedule. `false`: it is paused already.
///
/// # Errors
/// The database's.
pub async fn pause(
    connection: &mut PgConnection,
    id: i64,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let paused = sqlx::query(
        "update schedules
            set paused_at = now(), pause_reason = $2
          where id = $1 and paused_at is null",
    )
    .bind(id)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(paused.rows_affected() == 1)
}

/// Lets a paused schedule go on, from `next_due_at`. `false`: it was not paused.
///
/// # Errors
/// The database's.
pub async fn resume(
    connection: &mut PgConnection,
    id: i64,
    next_due_at: Option<DateTime<Utc>>,
) -> Result<bool, sqlx::Error> {
    let resumed = sqlx::query(
        "update schedules
            set paused_at = null, pause_reason = null, next_due_at = $2
          where id = $1 and paused_at is not null",
    )
    .bind(id)
    .bind(next_due_at)
    .execute(connection)
    .await?;
    Ok(resumed.rows_affected() == 1)
}

/// Deletes a schedule. What it started stays.
///
/// # Errors
/// The database's.
pub async fn delete(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let deleted =
        sqlx::query("delete from schedules where id = $1").bind(id).execute(connection).await?;
    Ok(deleted.rows_affected() == 1)
}

/// Takes, for this transaction, the current period of each name whose period nobody has taken yet,
/// and returns those names. Periods are counted from the epoch, in seconds.
///
/// # Errors
/// The database's.
pub async fn take_periods(
    connection: &mut PgConnection,
    names: &[&str],
    every_secs: &[f64],
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "insert into schedule_occurrences (schedule, due_at)
         select name, date_bin(make_interval(secs => every_secs), now(), 'epoch')
           from unnest($1::text[], $2::float8[]) as period (name, every_secs)
             on conflict do nothing
         returning schedule",
    )
    .bind(names)
    .bind(every_secs)
    .fetch_all(connection)
    .await
}

/// Takes an occurrence of housekeeping for this transaction. `false`: another scheduler has it.
///
/// # Errors
/// The database's.
pub async fn take_occurrence(
    connection: &mut PgConnection,
    schedule: &str,
    due_at: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let taken = sqlx::query(
        "insert into schedule_occurrences (schedule, due_at)
         values ($1, $2)
         on conflict do nothing",
    )
    .bind(schedule)
    .bind(due_at)
    .execute(connection)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Whether any occurrence of a schedule is known.
///
/// # Errors
/// The database's.
pub async fn has_occurrence(
    connection: &mut PgConnection,
    schedule: &str,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select from schedule_occurrences where schedule = $1)")
        .bind(schedule)
        .fetch_one(connection)
        .await
}

/// Takes an occurrence for this transaction, unless it or a later one is taken.
///
/// # Errors
/// The database's.
pub async fn take_occurrence_after(
    connection: &mut PgConnection,
    schedule: &str,
    due_at: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let taken = sqlx::query(
        "insert into schedule_occurrences (schedule, due_at)
         select $1, $2
          where not exists (select from schedule_occurrences
                             where schedule = $1 and due_at >= $2)
         on conflict do nothing",
    )
    .bind(schedule)
    .bind(due_at)
    .execute(connection)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Writes an occurrence down: pending, with a ticket that comes `delay_secs` later, or skipped for
/// a reason. `false`: it is there already.
///
/// # Errors
/// The database's.
pub async fn note_occurrence(
    connection: &mut PgConnection,
    schedule: &str,
    due_at: DateTime<Utc>,
    skipped_because: Option<&str>,
    delay_secs: i32,
) -> Result<bool, sqlx::Error> {
    let noted = sqlx::query(
        "insert into schedule_occurrences (schedule, due_at, status, reason, ticket_at)
         values ($1, $2, case when $3::text is null then 'pending' else 'skipped' end, $3,
                 case when $3::text is null then now() + make_interval(secs => $4) end)
         on conflict do nothing",
    )
    .bind(schedule)
    .bind(due_at)
    .bind(skipped_because)
    .bind(f64::from(delay_secs))
    .execute(connection)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// Why an occurrence that was added by a back-fill is there.
pub const BACKFILL: &str = "backfill";

/// Writes due times of the past down, as pending: those that nobody has noted, and those that were
/// left out or could start nothing. Returns them.
///
/// # Errors
/// The database's.
pub async fn backfill(
    connection: &mut PgConnection,
    schedule: &str,
    due: &[DateTime<Utc>],
) -> Result<Vec<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar(
        "insert into schedule_occurrences as o (schedule, due_at, status, reason, ticket_at)
         select $1, due_at, 'pending', $3, now()
           from unnest($2::timestamptz[]) as missed (due_at)
             on conflict (schedule, due_at) do update
            set status = 'pending', reason = $3, ticket_at = now(), delivery = null
          where o.status in ('skipped', 'failed') and o.execution_id is null
         returning o.due_at",
    )
    .bind(schedule)
    .bind(due)
    .bind(BACKFILL)
    .fetch_all(connection)
    .await
}

/// An occurrence that is about to be fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingOccurrence {
    /// Whether a back-fill has added it: it waits for no other, and no other for it.
    pub is_backfill: bool,
}

/// Locks an occurrence that waits to be fired. `None`: somebody has fired it, or is about to.
///
/// # Errors
/// The database's.
pub async fn lock_pending(
    connection: &mut PgConnection,
    schedule: &str,
    due_at: DateTime<Utc>,
) -> Result<Option<PendingOccurrence>, sqlx::Error> {
    let locked: Option<bool> = sqlx::query_scalar(
        "select coalesce(reason = $3, false)
           from schedule_occurrences
          where schedule = $1 and due_at = $2 and status = 'pending'
            for update skip locked",
    )
    .bind(schedule)
    .bind(due_at)
    .bind(BACKFILL)
    .fetch_optional(connection)
    .await?;
    Ok(locked.map(|is_backfill| PendingOccurrence { is_backfill }))
}

/// Ends a pending occurrence; the owner is told when what it started has ended. `false`: it has ended.
///
/// # Errors
/// The database's.
pub async fn settle_occurrence(
    connection: &mut PgConnection,
    schedule: &str,
    due_at: DateTime<Utc>,
    status: OccurrenceStatus,
    reason: Option<&str>,
    execution_id: Option<i64>,
) -> Result<bool, sqlx::Error> {
    let settled = sqlx::query(
        "update schedule_occurrences
            set status = $3::text, reason = $4, execution_id = $5, ticket_at = null,
                delivery = case when $3::text in ('done', 'failed') then 'waiting' end
          where schedule = $1 and due_at = $2 and status = 'pending'",
    )
    .bind(schedule)
    .bind(due_at)
    .bind(status)
    .bind(reason)
    .bind(execution_id)
    .execute(connection)
    .await?;
    Ok(settled.rows_affected() == 1)
}

/// Lets an occurrence wait for the one before it: it has no ticket until its turn has come.
///
/// # Errors
/// The database's.
pub async fn wait_for_turn(
    connection: &mut PgConnection,
    schedule: &str,
    due_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update schedule_occurrences
            set ticket_at = null
          where schedule = $1 and due_at = $2 and status = 'pending'",
    )
    .bind(schedule)
    .bind(due_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks pending occurrences whose ticket should have come `secs` ago, and those whose turn has come
/// (see [`wait_for_turn`]): the first that waits of its schedule, once what the one before started
/// has ended. Gives them another time.
///
/// # Errors
/// The database's.
pub async fn take_unticketed(
    connection: &mut PgConnection,
    secs: i32,
    limit: i64,
) -> Result<Vec<(String, DateTime<Utc>)>, sqlx::Error> {
    sqlx::query_as(
        "update schedule_occurrences o
            set ticket_at = now()
           from (select w.schedule, w.due_at
                   from schedule_occurrences w
                  where w.status = 'pending'
                    and (w.ticket_at < now() - make_interval(secs => $1)
                         or w.ticket_at is null
                            and not exists (
                                select
                                  from schedule_occurrences p
                                 where p.schedule = w.schedule and p.due_at < w.due_at
                                   and p.status = 'pending'
                                   and p.reason is distinct from 'backfill')
                            and not exists (
                                select
                                  from (select d.execution_id
                                          from schedule_occurrences d
                                         where d.schedule = w.schedule and d.due_at < w.due_at
                                           and d.execution_id is not null
                                         order by d.due_at desc
                                         limit 1) before
                                  join report_executions e on e.id = before.execution_id
                                 where e.status in ('pending', 'processing', 'cancelling')))
                  order by w.ticket_at nulls first
                  limit $2
                  for update of w skip locked) lost
          where o.schedule = lost.schedule and o.due_at = lost.due_at
         returning o.schedule, o.due_at",
    )
    .bind(f64::from(secs))
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Occurrences before one that are asked whether they are done. Each waits for the one before, so
/// the last one would do, were it not that somebody may retry an older one.
const STARTED_BEFORE: i64 = 100;

/// Whether an earlier occurrence of the schedule still waits, or the execution of one of the last
/// `STARTED_BEFORE` that started one is not done. All of them may be years of them.
///
/// # Errors
/// The database's.
pub async fn is_busy(
    connection: &mut PgConnection,
    schedule: &str,
    before: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (
            select
              from schedule_occurrences o
             where o.schedule = $1 and o.due_at < $2 and o.status = 'pending'
               and o.reason is distinct from 'backfill')
            or exists (
            select
              from (select o.execution_id
                      from schedule_occurrences o
                     where o.schedule = $1 and o.due_at < $2 and o.execution_id is not null
                       and o.reason is distinct from 'backfill'
                     order by o.due_at desc
                     limit $3) started
              join report_executions e on e.id = started.execution_id
             where e.status in ('pending', 'processing', 'cancelling'))",
    )
    .bind(schedule)
    .bind(before)
    .bind(STARTED_BEFORE)
    .fetch_one(connection)
    .await
}

/// The latest occurrences of a schedule, newest first.
///
/// # Errors
/// The database's.
pub async fn occurrences(
    connection: &mut PgConnection,
    schedule: &str,
    limit: i64,
) -> Result<Vec<Occurrence>, sqlx::Error> {
    sqlx::query_as(
        "select o.due_at, o.status::text as status, o.reason, o.execution_id,
                e.status::text as execution_status
           from schedule_occurrences o
           left join report_executions e on e.id = o.execution_id
          where o.schedule = $1
          order by o.due_at desc
          limit $2",
    )
    .bind(schedule)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Forgets at most `limit` occurrences older than `days` that are done.
///
/// # Errors
/// The database's.
pub async fn forget_occurrences(pool: &PgPool, days: i32, limit: i64) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "delete from schedule_occurrences
          where (schedule, due_at) in (
                select schedule, due_at
                  from schedule_occurrences
                 where created_at < now() - make_interval(days => $1)
                   and status <> 'pending' and delivery is distinct from 'waiting'
                 order by created_at
                 limit $2)",
    )
    .bind(days)
    .bind(limit)
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}

/// The name of a schedule: words of small letters and digits, joined by hyphens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleName(String);

impl ScheduleName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not the name of a schedule.
#[derive(Debug, Clone, thiserror::Error)]
#[error("must be 1 to 100 small letters, digits and single hyphens, like `weekly-ranking`")]
pub struct BadScheduleName;

impl FromStr for ScheduleName {
    type Err = BadScheduleName;

    fn from_str(text: &str) -> Result<Self, BadScheduleName> {
        let word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if text.len() <= 100 && text.split('-').all(word) {
            return Ok(Self(text.to_owned()));
        }
        Err(BadScheduleName)
    }
}

/// The latest due time of a schedule that was taken.
///
/// # Errors
/// The database's.
pub async fn latest_occurrence(
    pool: &PgPool,
    schedule: &str,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar("select max(due_at) from schedule_occurrences where schedule = $1")
        .bind(schedule)
        .fetch_one(pool)
        .await
}
