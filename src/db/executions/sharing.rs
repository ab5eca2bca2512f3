//! Executions that share one run: who asks for a result that another run has made, or is making,
//! gets an execution of their own that points to it.
//!
//! A follower is never claimed. It ends in the transaction that ends its leader: completed or
//! failed with it, and when the leader is cancelled the oldest follower takes its place. So each
//! has its own owner, rights and audit, and cancelling one does nothing to the others.

use sqlx::{PgConnection, PgPool};

use super::claim::cap;
use super::{NewExecution, Status};

/// A result that may be shared, or a run that will make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shareable {
    /// It is on its way. Its row is locked until the transaction ends, so that it cannot end
    /// without whoever follows it.
    InFlight(i64),
    /// It is there.
    Completed(i64),
}

/// Finds what a submit with this key may share: its snapshot at most `max_age_secs` old. Submits
/// with one key wait for each other, so that two at once do not both find nothing.
///
/// # Errors
/// The database's.
pub async fn find_shareable(
    connection: &mut PgConnection,
    reuse_key: &str,
    max_age_secs: f64,
) -> Result<Option<Shareable>, sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 19))")
        .bind(reuse_key)
        .execute(&mut *connection)
        .await?;
    let in_flight: Option<i64> = sqlx::query_scalar(
        "select id
           from report_executions
          where reuse_key = $1 and shared_from is null
            and (status = 'pending'
                 or status = 'processing' and started_at >= now() - make_interval(secs => $2))
          order by id
          limit 1
            for share",
    )
    .bind(reuse_key)
    .bind(max_age_secs)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(id) = in_flight {
        return Ok(Some(Shareable::InFlight(id)));
    }
    // A minute before its end a result is as good as gone: nobody could fetch it in time.
    let completed: Option<i64> = sqlx::query_scalar(
        "select id
           from report_executions
          where reuse_key = $1 and shared_from is null and status = 'completed'
            and snapshot_at >= now() - make_interval(secs => $2)
            and expires_at > now() + interval '1 minute'
          order by snapshot_at desc
          limit 1",
    )
    .bind(reuse_key)
    .bind(max_age_secs)
    .fetch_optional(connection)
    .await?;
    Ok(completed.map(Shareable::Completed))
}

/// Waits for submits that may share the result of this execution, and lets further ones wait until
/// the transaction ends.
///
/// # Errors
/// The database's.
pub async fn lock_sharing(connection: &mut PgConnection, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "select pg_advisory_xact_lock(hashtextextended(reuse_key, 19))
           from report_executions
          where id = $1 and reuse_key is not null",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether somebody can still read the result that this execution made.
///
/// # Errors
/// The database's.
pub async fn is_shared(connection: &mut PgConnection, maker: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select
                          from report_executions
                         where (id = $1 or shared_from = $1) and status = 'completed')",
    )
    .bind(maker)
    .fetch_one(connection)
    .await
}

/// Stores an execution that is completed at once, with the result of another one. It has no
/// attempt: nothing was run for it. `None`: the other one has expired meanwhile.
///
/// # Errors
/// The database's.
pub async fn insert_shared(
    connection: &mut PgConnection,
    new: &NewExecution<'_>,
    completed: i64,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "insert into report_executions
                (report_definition_id, definition_version, executed_by, parameters, format,
                 options, max_attempts, trace_id, max_concurrent, format_of, reuse_key,
                 shared_from, status, completed_at, started_at, result_file_path, row_count,
                 size_bytes, sha256, truncated, snapshot_at, expires_at, progress_rows,
                 progress_bytes)
         select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, l.id, 'completed', now(),
                l.started_at, l.result_file_path, l.row_count, l.size_bytes, l.sha256,
                l.truncated, l.snapshot_at, l.expires_at, l.progress_rows, l.progress_bytes
           from report_executions l
          where l.id = $12 and l.status = 'completed'
         returning id",
    )
    .bind(new.definition_id)
    .bind(new.definition_version)
    .bind(new.executed_by)
    .bind(new.parameters)
    .bind(new.format)
    .bind(new.options)
    .bind(new.max_attempts)
    .bind(new.trace_id)
    .bind(cap(new.max_concurrent))
    .bind(new.format_of)
    .bind(new.reuse_key)
    .bind(completed)
    .fetch_optional(connection)
    .await
}

/// pending → completed for those who wait for a leader that is completed. Returns who.
///
/// # Errors
/// The database's.
pub async fn complete_followers(
    connection: &mut PgConnection,
    leader: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "update report_executions f
            set status = 'completed', completed_at = now(), started_at = l.started_at,
                result_file_path = l.result_file_path, row_count = l.row_count,
                size_bytes = l.size_bytes, sha256 = l.sha256, truncated = l.truncated,
                snapshot_at = l.snapshot_at, expires_at = l.expires_at,
                progress_rows = l.progress_rows, progress_bytes = l.progress_bytes,
                error_code = null, error_message = null
           from report_executions l
          where l.id = $1 and l.status = 'completed'
            and f.shared_from = l.id and f.status = 'pending'
         returning f.id",
    )
    .bind(leader)
    .fetch_all(connection)
    .await
}

/// pending → failed for those who wait for a leader that failed for good: what it failed of, they
/// would too. Returns who.
///
/// # Errors
/// The database's.
pub async fn fail_followers(
    connection: &mut PgConnection,
    leader: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "update report_executions f
            set status = 'failed', completed_at = now(),
                error_code = l.error_code, error_message = l.error_message
           from report_executions l
          where l.id = $1 and l.status = 'failed'
            and f.shared_from = l.id and f.status = 'pending'
         returning f.id",
    )
    .bind(leader)
    .fetch_all(connection)
    .await
}

/// Gives the place of a leader that will make no result to its oldest follower, which then needs
/// a ticket, and lets the others follow that one. `None`: nobody follows.
///
/// # Errors
/// The database's.
pub async fn promote_follower(
    connection: &mut PgConnection,
    leader: i64,
) -> Result<Option<i64>, sqlx::Error> {
    let promoted: Option<Option<i64>> = sqlx::query_scalar(
        "with next as (
             select min(id) as id
               from report_executions
              where shared_from = $1 and status = 'pending'
         ),
         moved as (
             update report_executions f
                set shared_from = nullif(next.id, f.id), ticket_id = null, ticket_at = null
               from next
              where f.shared_from = $1 and f.status = 'pending'
             returning f.id
         )
         select next.id from next where exists (select from moved)",
    )
    .bind(leader)
    .fetch_optional(connection)
    .await?;
    Ok(promoted.flatten())
}

/// A leader that nobody should wait for.
#[derive(Debug, sqlx::FromRow)]
pub struct LeftBehind {
    /// The leader.
    pub id: i64,
    /// How it has ended.
    #[sqlx(try_from = "String")]
    pub status: Status,
}

/// Lists at most `limit` leaders that have ended, or are being cancelled, while somebody still
/// waits for them. There are none, unless an older version of the service ended them.
///
/// # Errors
/// The database's.
pub async fn list_left_behind(pool: &PgPool, limit: i64) -> Result<Vec<LeftBehind>, sqlx::Error> {
    sqlx::query_as(
        "select distinct l.id, l.status
           from waiting_executions() f
           join report_executions l on l.id = f.shared_from
          where l.status not in ('pending', 'processing')
          limit $1",
    )
    .bind(limit)
    .fetch_all(pool)
    .await
}
