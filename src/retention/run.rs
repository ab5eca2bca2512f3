//! `lifecycle_runs` and `lifecycle_run_tables`: the truth about every application of a policy.
//!
//! ```text
//!                    ┌──────── give back, retry, rescue, resume ────────┐
//!                    ▼                                                  │
//! start ──► pending ──── claim (attempt + 1, lease) ──► processing ──► paused
//!   │          ▲                                        │  │   │
//!   ▼          │ approve                  over a ceiling│  │   └──► failed
//! needs_approval ◄─────────────────────────────────────┘  └──► completed
//!
//! cancel: from pending, processing, paused and needs_approval to cancelled
//! ```
//!
//! Each arrow is one statement here, guarded by the state it starts from and, where a worker acts,
//! by its attempt. Every chunk begins with [`beat`], which locks the run's row: whoever pauses,
//! cancels or takes over a run waits for at most one chunk, and no chunk starts after it.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor, PgPool};

mod export;
mod lease;
mod ledger;
mod table;

pub use export::{ExpiredExport, KeptExports, NewExport, RunExport};
pub use export::{expired_exports, export_paths, exports_of, kept_exports};
pub use export::{insert_export, next_export, note_removed};
pub use lease::{
    Claimed, Orphan, beat, claim, claim_next, fence, give_back, lock, lock_orphans,
    lock_unticketed, note_ticket, note_waiting, retry_later,
};
pub use ledger::{note_purge, note_replayed_purge, purges_after, purges_of};
pub use table::{ChunkDone, NewTable, RunTable, begin_table, end_table, insert_tables, tables_of};
pub use table::{
    next_pass, store_chunk, store_counts, store_cursor, store_people, store_people_tables,
};

/// State of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Waits for a worker.
    Pending,
    /// Somebody works on it.
    Processing,
    /// All done, as far as holds, references and locks allow.
    Completed,
    /// It ended early; the error says why.
    Failed,
    /// Stopped by a person; it can go on where it is.
    Paused,
    /// It waits for a second person.
    NeedsApproval,
    /// Ended by a person. What was done stays done.
    Cancelled,
}

impl RunStatus {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Processing,
        Self::Completed,
        Self::Failed,
        Self::Paused,
        Self::NeedsApproval,
        Self::Cancelled,
    ];

    /// As stored and as in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Paused => "paused",
            Self::NeedsApproval => "needs_approval",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen to it.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Processing | Self::Paused | Self::NeedsApproval => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a state.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be pending, processing, completed, failed, paused, needs_approval or cancelled")]
pub struct UnknownRunStatus;

impl FromStr for RunStatus {
    type Err = UnknownRunStatus;

    fn from_str(text: &str) -> Result<Self, UnknownRunStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownRunStatus)
    }
}

impl TryFrom<String> for RunStatus {
    type Error = UnknownRunStatus;

    fn try_from(text: String) -> Result<Self, UnknownRunStatus> {
        text.parse()
    }
}

/// Who or what asked for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The operator at the command line.
    Operator,
    /// An account, over HTTP.
    User(i32),
    /// The schedule.
    Schedule,
}

impl Origin {
    /// As stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::User(_) => "user",
            Self::Schedule => "schedule",
        }
    }

    const fn user_id(self) -> Option<i32> {
        match self {
            Self::User(id) => Some(id),
            Self::Operator | Self::Schedule => None,
        }
    }
}

/// A run as people see it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Run {
    /// Its number.
    pub id: i64,
    /// The policy's name.
    pub policy: String,
    /// The policy's kind.
    pub kind: String,
    /// SHA-256 of the policy as it was.
    pub policy_digest: String,
    /// Version of the program that made it.
    pub code_version: String,
    /// The instant that cutoffs are counted from.
    pub as_of: DateTime<Utc>,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub status: RunStatus,
    /// `operator`, `user` or `schedule`.
    pub origin: String,
    /// What was seen before it was started.
    pub preview_digest: Option<String>,
    /// The account that asked for it.
    pub requested_by: Option<i32>,
    /// The account that approved it.
    pub approved_by: Option<i32>,
    /// When it was approved.
    pub approved_at: Option<DateTime<Utc>>,
    /// Tries so far.
    pub attempt: i32,
    /// Who works on it.
    pub lease_owner: Option<String>,
    /// What it waits for between two chunks.
    pub waiting_for: Option<String>,
    /// Since when.
    pub waiting_since: Option<DateTime<Utc>>,
    /// Why it failed or stopped, for programs.
    pub error_code: Option<String>,
    /// Why it failed or stopped, for people.
    pub error_message: Option<String>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When the first attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
}

/// The columns of [`Run`]; `concat!` because SQL must be static.
macro_rules! select_run {
    ($tail:literal) => {
        concat!(
            "select id, policy, kind, policy_digest, code_version, as_of, status, origin,
                    preview_digest, requested_by, approved_by, approved_at, attempt, lease_owner,
                    waiting_for, case when waiting_for is not null then waiting_since end
                    as waiting_since, error_code, error_message, created_at, started_at, completed_at
               from lifecycle_runs ",
            $tail
        )
    };
}

/// A run to be stored.
#[derive(Debug)]
pub struct NewRun<'a> {
    /// The policy's name.
    pub policy: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// SHA-256 of its content.
    pub policy_digest: &'a str,
    /// The instant that cutoffs are counted from; `None` is now.
    pub as_of: Option<DateTime<Utc>>,
    /// Who asks.
    pub origin: Origin,
    /// What they saw.
    pub preview_digest: Option<&'a str>,
    /// Whether it must be approved before it begins.
    pub needs_approval: bool,
}

/// Stores a run. `None`: another run of the policy is not finished.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    new: &NewRun<'_>,
) -> Result<Option<i64>, sqlx::Error> {
    let status = if new.needs_approval { RunStatus::NeedsApproval } else { RunStatus::Pending };
    sqlx::query_scalar(
        "insert into lifecycle_runs
                (policy, kind, policy_digest, code_version, as_of, status, origin, requested_by,
                 preview_digest)
         values ($1, $2, $3, $4, coalesce($5, now()), $6, $7, $8, $9)
         on conflict (policy) where status in
                ('pending', 'processing', 'paused', 'needs_approval') do nothing
         returning id",
    )
    .bind(new.policy)
    .bind(new.kind)
    .bind(new.policy_digest)
    .bind(env!("CARGO_PKG_VERSION"))
    .bind(new.as_of)
    .bind(status.as_str())
    .bind(new.origin.as_str())
    .bind(new.origin.user_id())
    .bind(new.preview_digest)
    .fetch_optional(connection)
    .await
}

/// Finds a run.
///
/// # Errors
/// The database's.
pub async fn find(connection: &mut PgConnection, id: i64) -> Result<Option<Run>, sqlx::Error> {
    sqlx::query_as(select_run!("where id = $1")).bind(id).fetch_optional(connection).await
}

/// The unfinished run of a policy.
///
/// # Errors
/// The database's.
pub async fn find_active(pool: &PgPool, policy: &str) -> Result<Option<Run>, sqlx::Error> {
    sqlx::query_as(select_run!(
        "where policy = $1
           and status in ('pending', 'processing', 'paused', 'needs_approval')"
    ))
    .bind(policy)
    .fetch_optional(pool)
    .await
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only of this policy.
    pub policy: Option<String>,
    /// Only in this state.
    pub status: Option<RunStatus>,
    /// Only with a smaller number.
    pub before: Option<i64>,
}

/// Lists runs, newest first.
///
/// # Errors
/// The database's.
pub async fn list(
    executor: impl PgExecutor<'_>,
    filter: &RunFilter,
    limit: i64,
) -> Result<Vec<Run>, sqlx::Error> {
    sqlx::query_as(select_run!(
        "where ($1::text is null or policy = $1)
           and ($2::text is null or status = $2)
           and ($3::bigint is null or id < $3)
         order by id desc
         limit $4"
    ))
    .bind(filter.policy.as_deref())
    .bind(filter.status.map(RunStatus::as_str))
    .bind(filter.before)
    .bind(limit)
    .fetch_all(executor)
    .await
}

/// needs_approval → pending. The approver was checked by the caller.
///
/// # Errors
/// The database's.
pub async fn approve(
    connection: &mut PgConnection,
    id: i64,
    approved_by: Option<i32>,
) -> Result<bool, sqlx::Error> {
    let approved = sqlx::query(
        "update lifecycle_runs
            set status = 'pending', approved_by = $2, approved_at = now(), run_at = now(),
                error_code = null, error_message = null
          where id = $1 and status = 'needs_approval'",
    )
    .bind(id)
    .bind(approved_by)
    .execute(connection)
    .await?;
    Ok(approved.rows_affected() == 1)
}

/// pending, processing → paused. A worker notices at its next chunk.
///
/// # Errors
/// The database's.
pub async fn pause(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let paused = sqlx::query(
        "update lifecycle_runs
            set status = 'paused', lease_until = null, waiting_for = null
          where id = $1 and status in ('pending', 'processing')",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(paused.rows_affected() == 1)
}

/// paused, failed → pending: it goes on where it stopped. A failed one does so only while no other
/// run of its policy is unfinished, which the unique index sees to.
///
/// # Errors
/// The database's; `23505` for the reason above.
pub async fn resume(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let resumed = sqlx::query(
        "update lifecycle_runs
            set status = 'pending', run_at = now(), failed_attempts = 0, completed_at = null,
                error_code = null, error_message = null
          where id = $1 and status in ('paused', 'failed')",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(resumed.rows_affected() == 1)
}

/// → cancelled, from every state that is not final.
///
/// # Errors
/// The database's.
pub async fn cancel(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let cancelled = sqlx::query(
        "update lifecycle_runs
            set status = 'cancelled', completed_at = now(), lease_until = null, waiting_for = null
          where id = $1 and status in ('pending', 'processing', 'paused', 'needs_approval')",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(cancelled.rows_affected() == 1)
}

/// How an attempt ends a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd<'a> {
    /// All done.
    Completed,
    /// Over a ceiling, and nobody has approved yet.
    NeedsApproval(&'a str),
    /// For good, with a code and a message.
    Failed(&'a str, &'a str),
}

/// processing → completed, needs_approval or failed. `false`: the attempt is not the current one.
///
/// # Errors
/// The database's.
pub async fn settle(
    connection: &mut PgConnection,
    id: i64,
    attempt: i32,
    end: &RunEnd<'_>,
) -> Result<bool, sqlx::Error> {
    let (status, code, message) = match end {
        RunEnd::Completed => (RunStatus::Completed, None, None),
        RunEnd::NeedsApproval(why) => (RunStatus::NeedsApproval, Some("over_ceiling"), Some(*why)),
        RunEnd::Failed(code, message) => (RunStatus::Failed, Some(*code), Some(*message)),
    };
    let settled = sqlx::query(
        "update lifecycle_runs
            set status = $3, error_code = $4, error_message = $5, lease_until = null,
                waiting_for = null, completed_at = case when $6 then now() end
          where id = $1 and attempt = $2 and status = 'processing'",
    )
    .bind(id)
    .bind(attempt)
    .bind(status.as_str())
    .bind(code)
    .bind(message)
    .bind(status.is_final())
    .execute(connection)
    .await?;
    Ok(settled.rows_affected() == 1)
}
