//! `erasures` and `erasure_tables`: the ending of people's data, as a state machine.
//!
//! ```text
//! request → waiting ── claim (attempt + 1, lease) ──► processing ──► completed
//!            │  ▲ ▲                                    │ │
//!            │  │ └────────── give back, lease lost ───┘ │ a hold
//!            │  └──── release ──── held ◄────────────────┘
//!            │ cancel               │ cancel
//!            └──► cancelled ◄───────┘
//! ```
//!
//! Each arrow is one statement below, guarded by the state it starts from and, where a worker
//! acts, by the attempt it claimed. An erasure whose act has begun cannot be cancelled: what was
//! erased does not come back.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor, PgPool};

/// State of an erasure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ErasureStatus)]
pub enum Status {
    /// Its grace is not over, or it waits for a worker.
    Waiting,
    /// A legal hold keeps it from being carried out.
    Held,
    /// A worker carries it out.
    Processing,
    /// The person's data are gone, and that was verified.
    Completed,
    /// It was taken back, and the account restored.
    Cancelled,
}

impl Status {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Waiting, Self::Held, Self::Processing, Self::Completed, Self::Cancelled];

    /// As stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Held => "held",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a state.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be waiting, held, processing, completed or cancelled")]
pub struct UnknownStatus;

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownStatus)
    }
}

impl TryFrom<String> for Status {
    type Error = UnknownStatus;

    fn try_from(text: String) -> Result<Self, UnknownStatus> {
        text.parse()
    }
}

/// Where an erasure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Somebody asked for it.
    Request,
    /// The ledger tells of it: the database was restored.
    Replay,
    /// A purge found the account deleted for long enough.
    Purge,
}

impl Source {
    /// As stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Replay => "replay",
            Self::Purge => "purge",
        }
    }
}

/// An erasure as people see it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Erasure {
    /// Its number.
    pub id: i64,
    /// The person's table.
    pub subject_table: String,
    /// The person's key.
    pub subject_id: String,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Where it comes from.
    pub source: String,
    /// The account that asked.
    pub requested_by: Option<i32>,
    /// When it was asked for.
    pub requested_at: DateTime<Utc>,
    /// When its grace ends.
    pub due_at: DateTime<Utc>,
    /// What the ledger calls the person.
    pub ledger_token: String,
    /// Tries so far.
    pub attempt: i32,
    /// When the first act began.
    pub begun_at: Option<DateTime<Utc>>,
    /// When no trace was found any more.
    pub verified_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// When it was taken back.
    pub cancelled_at: Option<DateTime<Utc>>,
    /// Why it was not ended at the last try.
    pub waits_because: Option<String>,
}

/// The columns of [`Erasure`]; `concat!` because SQL must be static.
macro_rules! select_erasure {
    ($tail:literal) => {
        concat!(
            "select id, subject_table, subject_id, status, source, requested_by, requested_at,
                    due_at, ledger_token, attempt, begun_at, verified_at, completed_at,
                    cancelled_at, waits_because
               from erasures ",
            $tail
        )
    };
}

/// A calendar interval in a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grace {
    /// Months and days, as PostgreSQL reads an interval.
    pub calendar: String,
    /// Hours, as PostgreSQL reads an interval.
    pub elapsed: String,
    /// IANA name of the zone of the calendar.
    pub time_zone: String,
}

impl Grace {
    /// So many days, in UTC.
    pub fn days(days: u32) -> Self {
        Self {
            calendar: format!("{days} days"),
            elapsed: "0 hours".to_owned(),
            time_zone: "UTC".to_owned(),
        }
    }
}

/// An erasure to be stored.
#[derive(Debug)]
pub struct NewErasure<'a> {
    /// The person's table.
    pub subject_table: &'a str,
    /// The person's key.
    pub subject_id: &'a str,
    /// Where it comes from.
    pub source: Source,
    /// The account that asked.
    pub requested_by: Option<i32>,
    /// How long it can be taken back.
    pub grace: &'a Grace,
    /// The key of its tokens.
    pub key_id: &'a str,
    /// What the ledger calls the person.
    pub ledger_token: &'a str,
    /// The run that asked, where one did.
    pub asked_by_run: Option<i64>,
}

/// Stores an erasure. `None`: one of this person is open already.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    new: &NewErasure<'_>,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "insert into erasures (subject_table, subject_id, status, source, requested_by, due_at,
                               run_at, key_id, ledger_token, asked_by_run)
         select $1, $2, 'waiting', $3, $4, due.at, due.at, $8, $9, $10
           from (select ((now() at time zone $7) + $5::interval) at time zone $7 + $6::interval
                        as at) due
         on conflict (subject_table, subject_id)
               where status in ('waiting', 'held', 'processing') do nothing
         returning id",
    )
    .bind(new.subject_table)
    .bind(new.subject_id)
    .bind(new.source.as_str())
    .bind(new.requested_by)
    .bind(&new.grace.calendar)
    .bind(&new.grace.elapsed)
    .bind(&new.grace.time_zone)
    .bind(new.key_id)
    .bind(new.ledger_token)
    .bind(new.asked_by_run)
    .fetch_optional(connection)
    .await
}

/// Keeps what a cancel gives back and the verification looks for, sealed. While it waits there is
/// no attempt to guard it; the caller holds the row's lock since its insert.
///
/// # Errors
/// The database's.
pub async fn seal_request(
    connection: &mut PgConnection,
    id: i64,
    sealed: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query("update erasures set sealed = $2 where id = $1 and status = 'waiting'")
        .bind(id)
        .bind(sealed)
        .execute(connection)
        .await?;
    Ok(())
}

/// One erasure.
///
/// # Errors
/// The database's.
pub async fn find(connection: &mut PgConnection, id: i64) -> Result<Option<Erasure>, sqlx::Error> {
    sqlx::query_as(select_erasure!("where id = $1")).bind(id).fetch_optional(connection).await
}

/// The open erasure of a person.
///
/// # Errors
/// The database's.
pub async fn find_open(
    connection: &mut PgConnection,
    subject_table: &str,
    subject_id: &str,
) -> Result<Option<Erasure>, sqlx::Error> {
    sqlx::query_as(select_erasure!(
        "where subject_table = $1 and subject_id = $2
           and status in ('waiting', 'held', 'processing')"
    ))
    .bind(subject_table)
    .bind(subject_id)
    .fetch_optional(connection)
    .await
}

/// Lists erasures, newest first, below `before`.
///
/// # Errors
/// The database's.
pub async fn list(
    executor: impl PgExecutor<'_>,
    status: Option<Status>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Erasure>, sqlx::Error> {
    sqlx::query_as(select_erasure!(
        "where ($1::text is null or status = $1)
           and ($2::bigint is null or id < $2)
         order by id desc
         limit $3"
    ))
    .bind(status.map(Status::as_str))
    .bind(before)
    .bind(limit)
    .fetch_all(executor)
    .await
}

/// What was sealed, and with which key.
#[derive(Debug, sqlx::FromRow)]
pub struct Sealed {
    /// The key's name.
    pub key_id: String,
    /// Encrypted.
    pub sealed: Option<Vec<u8>>,
}

/// Takes an erasure back that has not begun. `None`: it has, or has ended. The row stays locked,
/// so no worker can claim it before the caller has restored the account.
///
/// # Errors
/// The database's.
pub async fn lock_for_cancel(
    connection: &mut PgConnection,
    id: i64,
) -> Result<Option<Sealed>, sqlx::Error> {
    sqlx::query_as(
        "select key_id, sealed
           from erasures
          where id = $1 and status in ('waiting', 'held') and begun_at is null
            for update",
    )
    .bind(id)
    .fetch_optional(connection)
    .await
}

/// Notes that an erasure was taken back, and forgets what was sealed.
///
/// # Errors
/// The database's.
pub async fn cancel(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let cancelled = sqlx::query(
        "update erasures
            set status = 'cancelled', cancelled_at = now(), sealed = null, waits_because = null
          where id = $1 and status in ('waiting', 'held') and begun_at is null",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(cancelled.rows_affected() == 1)
}

/// An erasure that this process carries out.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Claimed {
    /// Its number.
    pub id: i64,
    /// The fencing token.
    pub attempt: i32,
    /// The person's table.
    pub subject_table: String,
    /// The person's key.
    pub subject_id: String,
    /// The key of its tokens.
    pub key_id: String,
    /// What the ledger calls the person.
    pub ledger_token: String,
    /// When the first act began: the same at every attempt.
    pub begun_at: DateTime<Utc>,
    /// When it was asked for.
    pub requested_at: DateTime<Utc>,
    /// What was sealed at the request, or by an attempt before.
    pub sealed: Option<Vec<u8>>,
}

/// Which erasures are claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All that are due now.
    Due,
    /// Those of them whose act has begun: they go on, whatever run began them.
    Begun,
    /// Those that were due at an instant, for a run.
    ForRun {
        /// The run.
        run_id: i64,
        /// The instant.
        as_of: DateTime<Utc>,
    },
}

/// How many erasures a run has asked for.
///
/// # Errors
/// The database's.
pub async fn count_asked_by(
    connection: &mut PgConnection,
    run_id: i64,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select count(*) from erasures where asked_by_run = $1")
        .bind(run_id)
        .fetch_one(connection)
        .await
}

/// Claims erasures that are due, of one table: those that wait or are held and are to be looked at
/// again, and those whose worker has lost its lease. Committed at once by the caller.
///
/// # Errors
/// The database's.
pub async fn claim(
    pool: &PgPool,
    subject_table: &str,
    which: Which,
    limit: i64,
    lease_secs: f64,
) -> Result<Vec<Claimed>, sqlx::Error> {
    let (run_id, as_of, only_begun) = match which {
        Which::Due => (None, None, false),
        Which::Begun => (None, None, true),
        Which::ForRun { run_id, as_of } => (Some(run_id), Some(as_of), false),
    };
    sqlx::query_as(
        "update erasures e
            set status = 'processing', attempt = attempt + 1, waits_because = null,
                begun_at = coalesce(begun_at, now()), carried_out_by_run = $4,
                lease_until = now() + make_interval(secs => $3)
           from (select id
                   from erasures
                  where subject_table = $1
                    and status in ('waiting', 'held', 'processing')
                    and run_at <= least(coalesce($5, now()), now())
                    and (begun_at is not null or not $6)
                    and (lease_until is null or lease_until < now()
                         -- A run has one attempt at a time: what an earlier one had is ours.
                         or carried_out_by_run = $4)
                  order by run_at, id
                  limit $2
                    for update skip locked) due
          where e.id = due.id
         returning e.id, e.attempt, e.subject_table, e.subject_id, e.key_id, e.ledger_token,
                   e.begun_at, e.requested_at, e.sealed",
    )
    .bind(subject_table)
    .bind(limit)
    .bind(lease_secs)
    .bind(run_id)
    .bind(as_of)
    .bind(only_begun)
    .fetch_all(pool)
    .await
}

/// Renews leases. Returns how many are still this process's.
///
/// # Errors
/// The database's.
pub async fn renew(
    connection: &mut PgConnection,
    ids: &[i64],
    attempts: &[i32],
    lease_secs: f64,
) -> Result<u64, sqlx::Error> {
    let renewed = sqlx::query(
        "update erasures e
            set lease_until = now() + make_interval(secs => $3)
           from unnest($1::bigint[], $2::int[]) as mine (id, attempt)
          where e.id = mine.id and e.attempt = mine.attempt and e.status = 'processing'",
    )
    .bind(ids)
    .bind(attempts)
    .bind(lease_secs)
    .execute(connection)
    .await?;
    Ok(renewed.rows_affected())
}

/// Keeps what the verification looks for, before anything is erased.
///
/// # Errors
/// The database's.
pub async fn seal(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    sealed: &[u8],
) -> Result<bool, sqlx::Error> {
    let kept = sqlx::query(
        "update erasures
            set sealed = $3
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .bind(sealed)
    .execute(connection)
    .await?;
    Ok(kept.rows_affected() == 1)
}

/// Gives an erasure back, to be looked at again after a pause. One whose act never began, because
/// a hold was found first, begins anew at the next claim and can be cancelled meanwhile.
///
/// # Errors
/// The database's.
pub async fn give_back(
    connection: &mut PgConnection,
    claimed: &Claimed,
    status: Status,
    because: &str,
    pause_secs: f64,
    has_begun: bool,
) -> Result<bool, sqlx::Error> {
    let given = sqlx::query(
        "update erasures
            set status = $3, lease_until = null, waits_because = $4,
                run_at = now() + make_interval(secs => $5),
                begun_at = case when $6 then begun_at end
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(claimed.id)
    .bind(claimed.attempt)
    .bind(status.as_str())
    .bind(because)
    .bind(pause_secs)
    .bind(has_begun)
    .execute(connection)
    .await?;
    Ok(given.rows_affected() == 1)
}

/// Notes when the last row was changed; `None`: an attempt is not the current one. Where nothing
/// was changed this time, the time of an attempt before counts.
///
/// # Errors
/// The database's.
pub async fn mark_acted(
    pool: &PgPool,
    ids: &[i64],
    attempts: &[i32],
    is_now: bool,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let times: Vec<DateTime<Utc>> = sqlx::query_scalar(
        "update erasures e
            set acted_at = case when $3 then now() else coalesce(acted_at, now()) end
           from unnest($1::bigint[], $2::int[]) as mine (id, attempt)
          where e.id = mine.id and e.attempt = mine.attempt and e.status = 'processing'
         returning e.acted_at",
    )
    .bind(ids)
    .bind(attempts)
    .bind(is_now)
    .fetch_all(pool)
    .await?;
    let all_are_ours = times.len() == ids.len();
    Ok(times.into_iter().max().filter(|_| all_are_ours))
}

/// Notes that no trace was found any more; the time is the first one's.
///
/// # Errors
/// The database's.
pub async fn mark_verified(
    pool: &PgPool,
    id: i64,
    attempt: i32,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar(
        "update erasures
            set verified_at = coalesce(verified_at, now())
          where id = $1 and attempt = $2 and status = 'processing'
         returning verified_at",
    )
    .bind(id)
    .bind(attempt)
    .fetch_optional(pool)
    .await
}

/// A trace was found after all: another verification will tell when it is gone.
///
/// # Errors
/// The database's.
pub async fn unmark_verified(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update erasures
            set verified_at = null
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends an erasure: the marker, written last. What was sealed is gone with it.
///
/// # Errors
/// The database's.
pub async fn complete(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar(
        "update erasures
            set status = 'completed', completed_at = now(), lease_until = null, sealed = null,
                waits_because = null
          where id = $1 and attempt = $2 and status = 'processing' and verified_at is not null
         returning completed_at",
    )
    .bind(id)
    .bind(attempt)
    .fetch_optional(connection)
    .await
}

/// Adds to what was changed for people, in the transaction that changes it. Refuses, by counting
/// fewer rows than there are people, where an attempt is not the current one.
///
/// # Errors
/// The database's.
pub async fn count_rows(
    connection: &mut PgConnection,
    ids: &[i64],
    attempts: &[i32],
    table: &str,
    rows: &[i64],
) -> Result<u64, sqlx::Error> {
    let counted = sqlx::query(
        "insert into erasure_tables (erasure_id, table_name, rows_changed)
         select e.id, $3, mine.rows
           from unnest($1::bigint[], $2::int[], $4::bigint[]) as mine (id, attempt, rows)
           join erasures e
             on e.id = mine.id and e.attempt = mine.attempt and e.status = 'processing'
         on conflict (erasure_id, table_name)
         do update set rows_changed = erasure_tables.rows_changed + excluded.rows_changed",
    )
    .bind(ids)
    .bind(attempts)
    .bind(table)
    .bind(rows)
    .execute(connection)
    .await?;
    Ok(counted.rows_affected())
}

/// What an erasure did to a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct TableCount {
    /// The table.
    pub table: String,
    /// Rows changed.
    pub rows: i64,
}

/// What an erasure did to every table.
///
/// # Errors
/// The database's.
pub async fn counts(
    connection: &mut PgConnection,
    id: i64,
) -> Result<Vec<TableCount>, sqlx::Error> {
    sqlx::query_as(
        "select table_name as table, rows_changed as rows
           from erasure_tables
          where erasure_id = $1
          order by table_name",
    )
    .bind(id)
    .fetch_all(connection)
    .await
}

/// People of a table whose erasure this database knows as completed, or as open.
///
/// # Errors
/// The database's.
pub async fn known_tokens(
    pool: &PgPool,
    subject_table: &str,
) -> Result<Vec<(String, bool)>, sqlx::Error> {
    sqlx::query_as(
        "select ledger_token::text, bool_or(status = 'completed')
           from erasures
          where subject_table = $1 and status <> 'cancelled'
          group by ledger_token",
    )
    .bind(subject_table)
    .fetch_all(pool)
    .await
}

/// Makes open erasures of these people due now: the ledger says that their act had begun.
///
/// # Errors
/// The database's.
pub async fn hasten(
    connection: &mut PgConnection,
    subject_table: &str,
    subject_ids: &[String],
) -> Result<u64, sqlx::Error> {
    let hastened = sqlx::query(
        "update erasures
            set due_at = least(due_at, now()), run_at = least(run_at, now()), source = 'replay'
          where subject_table = $1 and subject_id = any($2) and status in ('waiting', 'held')",
    )
    .bind(subject_table)
    .bind(subject_ids)
    .execute(connection)
    .await?;
    Ok(hastened.rows_affected())
}
