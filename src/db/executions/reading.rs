//! Looking at executions: nothing here writes.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use super::Status;

/// An execution as clients see it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Execution {
    /// Its number.
    pub id: i64,
    /// The definition's slug.
    pub slug: String,
    /// The definition's title.
    pub title: String,
    /// The definition's version it runs.
    pub definition_version: Option<i32>,
    /// Who submitted it.
    pub executed_by: Option<i32>,
    /// Resolved parameters.
    pub parameters: Option<Value>,
    /// File format.
    pub format: String,
    /// Other choices of the caller.
    pub options: Value,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Tries so far.
    pub attempt: i32,
    /// Failed tries at which it fails for good.
    pub max_attempts: i32,
    /// Not before then.
    pub run_at: DateTime<Utc>,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// When the current attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// Rows read so far.
    pub progress_rows: i64,
    /// Bytes written so far.
    pub progress_bytes: i64,
    /// Why it failed, for programs.
    pub error_code: Option<String>,
    /// Why it failed, for people.
    pub error_message: Option<String>,
    /// Rows of the result.
    pub row_count: Option<i64>,
    /// Size of the result.
    pub size_bytes: Option<i64>,
    /// SHA-256 of the result, in hex.
    pub sha256: Option<String>,
    /// Whether the result was cut at a limit.
    pub truncated: bool,
    /// Instant of the snapshot that was read.
    pub snapshot_at: Option<DateTime<Utc>>,
    /// When the result is deleted.
    pub expires_at: Option<DateTime<Utc>>,
    /// Where the result is in the store.
    pub result_file_path: Option<String>,
    /// The submit's trace.
    pub trace_id: Option<String>,
    /// The execution that this one makes a further format of.
    pub format_of: Option<i64>,
    /// The execution whose result this one shares, or waits for.
    pub shared_from: Option<i64>,
}

/// The columns of [`Execution`]; `concat!` because SQL must be static.
macro_rules! select_execution {
    ($tail:literal) => {
        concat!(
            "select e.id, d.slug, d.name as title, e.definition_version, e.executed_by,
                    e.parameters, e.format, e.options, e.status, e.attempt, e.max_attempts,
                    e.run_at, e.created_at, e.started_at, e.completed_at, e.progress_rows,
                    e.progress_bytes, e.error_code, e.error_message, e.row_count, e.size_bytes,
                    e.sha256, e.truncated, e.snapshot_at, e.expires_at, e.result_file_path,
                    e.trace_id, e.format_of, e.shared_from
               from report_executions e
               join report_definitions d on d.id = e.report_definition_id ",
            $tail
        )
    };
}

/// Finds an execution.
///
/// # Errors
/// The database's.
pub async fn find(
    connection: &mut PgConnection,
    id: i64,
) -> Result<Option<Execution>, sqlx::Error> {
    sqlx::query_as(select_execution!("where e.id = $1")).bind(id).fetch_optional(connection).await
}

/// Finds the newest execution of a user that makes, or has made, a file of another one's report in
/// a format; `options: None` is any. Locks the other one's row, so that two requests at once do
/// not both find nothing.
///
/// # Errors
/// The database's.
pub async fn find_format(
    connection: &mut PgConnection,
    format_of: i64,
    executed_by: Option<i32>,
    format: &str,
    options: Option<&Value>,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query("select from report_executions where id = $1 for no key update")
        .bind(format_of)
        .execute(&mut *connection)
        .await?;
    sqlx::query_scalar(
        "select id
           from report_executions
          where format_of = $1 and executed_by is not distinct from $2 and format = $3
            and ($4::jsonb is null or options = $4)
            and status in ('pending', 'processing', 'completed')
          order by id desc
          limit 1",
    )
    .bind(format_of)
    .bind(executed_by)
    .bind(format)
    .bind(options)
    .fetch_optional(connection)
    .await
}

/// Which executions to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this user.
    pub executed_by: Option<i32>,
    /// Only in this state.
    pub status: Option<Status>,
    /// Only of this report.
    pub slug: Option<String>,
    /// Only with a smaller number: the cursor.
    pub before: Option<i64>,
}

/// Lists executions, newest first.
///
/// # Errors
/// The database's.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Execution>, sqlx::Error> {
    // By number, so that the planner knows how rare a report is: with the slug it would walk all
    // executions, newest first, for a report that has none.
    let report: Option<i32> = match filter.slug.as_deref() {
        None => None,
        Some(slug) => {
            let id = sqlx::query_scalar("select id from report_definitions where slug = $1");
            let Some(id) = id.bind(slug).fetch_optional(pool).await? else {
                return Ok(Vec::new());
            };
            Some(id)
        }
    };
    // By the index of the filter where there is one filter. By number it would be quicker on
    // average, which is what the planner knows, and read all that came since for what is only old.
    // Indexes by state have expressions that nothing else has, see migrations 0029 and 0030; what
    // has not ended is little, whoever's it is.
    let statement = match (filter.executed_by, filter.status, report) {
        (Some(_), None, None) => select_execution!(
            "where e.executed_by between $1 and $1
               and ($2::text is null or e.status = $2)
               and ($3::int is null or e.report_definition_id = $3)
               and ($4::bigint is null or e.id < $4)
             order by e.executed_by, e.id desc
             limit $5"
        ),
        (None, None, Some(_)) => select_execution!(
            "where ($1::int is null or e.executed_by = $1)
               and ($2::text is null or e.status = $2)
               and e.report_definition_id between $3 and $3
               and ($4::bigint is null or e.id < $4)
             order by e.report_definition_id, e.id desc
             limit $5"
        ),
        (Some(_), Some(status), _) if status.is_final() => select_execution!(
            "where e.executed_by::text || ' ' || e.status
                   between $1::int::text || ' ' || $2 and $1::int::text || ' ' || $2
               and e.status in ('completed', 'failed', 'cancelled', 'expired')
               and ($3::int is null or e.report_definition_id = $3)
               and ($4::bigint is null or e.id < $4)
             order by e.executed_by::text || ' ' || e.status, e.id desc
             limit $5"
        ),
        (None, Some(status), Some(_)) if status.is_final() => select_execution!(
            "where ($1::int is null or e.executed_by = $1)
               and e.report_definition_id::text || ' ' || e.status
                   between $3::int::text || ' ' || $2 and $3::int::text || ' ' || $2
               and e.status in ('completed', 'failed', 'cancelled', 'expired')
               and ($4::bigint is null or e.id < $4)
             order by e.report_definition_id::text || ' ' || e.status, e.id desc
             limit $5"
        ),
        (_, Some(_), _) => select_execution!(
            "where ($1::int is null or e.executed_by = $1)
               and e.status || '' between $2 and $2
               and ($3::int is null or e.report_definition_id = $3)
               and ($4::bigint is null or e.id < $4)
             order by e.status || '', e.id desc
             limit $5"
        ),
        (None, None, None) | (Some(_), None, Some(_)) => {
            select_execution!(
                "where ($1::int is null or e.executed_by = $1)
                   and ($2::text is null or e.status = $2)
                   and ($3::int is null or e.report_definition_id = $3)
                   and ($4::bigint is null or e.id < $4)
                 order by e.id desc
                 limit $5"
            )
        }
    };
    sqlx::query_as(statement)
        // Planned for these values each time: a plan for any would walk all executions, newest first,
        // for a filter that few of them pass.
        .persistent(false)
        .bind(filter.executed_by)
        .bind(filter.status.map(Status::as_str))
        .bind(report)
        .bind(filter.before)
        .bind(limit)
        .fetch_all(pool)
        .await
}

/// How many executions of a user are not finished.
///
/// # Errors
/// The database's.
pub async fn count_active(connection: &mut PgConnection, user_id: i32) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        // By lanes: by `executed_by` alone the planner reads all that a user ever ran, and the next
        // submit of that user waits for it.
        "select coalesce((select sum(lane.executions)
                            from waiting_lanes() l
                           cross join lateral (
                                 select count(*) as executions
                                   from report_executions e
                                  where coalesce(e.executed_by, 0) = l.user_id
                                    and e.priority = l.priority
                                    and e.status is not distinct from 'pending'
                                    and e.run_at >= l.starts and e.run_at <= now()) lane
                           where l.user_id = $1), 0)::bigint
              + (select count(*)
                   from report_executions later
                  where later.status is not distinct from 'pending'
                    and coalesce(later.run_at, later.created_at) > now()
                    and coalesce(later.executed_by, 0) = $1)
              + (select count(*) from running_executions() r where r.user_id = $1)",
    )
    .bind(user_id)
    .fetch_one(connection)
    .await
}

/// Lets submits of one user go one after the other from here to the end of the transaction, so
/// that two at once cannot both take the last free place. Waits at most `wait_secs`. The user's
/// row is left alone: it is the application's to lock.
///
/// # Errors
/// The database's; `55P03` when others took too long.
pub async fn queue_up_submits(
    connection: &mut PgConnection,
    user_id: i32,
    wait_secs: u32,
) -> Result<(), sqlx::Error> {
    // The wait is set first: a select list is computed from left to right.
    sqlx::query(
        "select set_config('lock_timeout', $1, true),
                pg_advisory_xact_lock(hashtextextended('registrar submits of ' || $2::int, 0))",
    )
    .bind(format!("{wait_secs}s"))
    .bind(user_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// How many pending executions are before this one, in the order in which claims take them, and
/// how long runs of its report took: the median of the last twenty, in seconds. What a cap keeps
/// back may be passed by others. What waits for another's result has that one's place.
///
/// # Errors
/// The database's.
pub async fn outlook(pool: &PgPool, id: i64) -> Result<(i64, Option<f64>), sqlx::Error> {
    sqlx::query_as(
        "with running as (
             select user_id, count(*) as executions from running_executions() group by user_id
         ),
         unclaimed as materialized (
             select id, executed_by, shared_from, priority, run_at from waiting_executions()
         ),
         users as materialized (
             select w.user_id,
                    (select max(s.started_at)
                       from report_executions s
                      where coalesce(s.executed_by, 0) = w.user_id
                        and s.started_at is not null) as served_at
               from (select distinct coalesce(executed_by, 0) as user_id from unclaimed) w
         ),
         waiting as (
             select p.id, p.priority, p.run_at,
                    coalesce(users.served_at, '-infinity') as served_at,
                    coalesce(running.executions, 0)
                        + row_number() over (partition by coalesce(p.executed_by, 0), p.priority
                                             order by p.run_at, p.id) as turn
               from unclaimed p
               join users on users.user_id = coalesce(p.executed_by, 0)
               left join running on running.user_id = users.user_id
              where p.shared_from is null
         ),
         -- One row, of its own: joined to itself, all that waits would be compared with all.
         mine as materialized (
             select w.*
               from waiting w
               join report_executions e on w.id = coalesce(e.shared_from, e.id)
              where e.id = $1
         )
         select (select count(*)
                   from waiting p
                  cross join mine
                  where p.priority > mine.priority
                     or p.priority = mine.priority
                        and (p.turn, p.served_at, p.run_at, p.id)
                          < (mine.turn, mine.served_at, mine.run_at, mine.id)),
                (select percentile_cont(0.5) within group (order by recent.seconds)
                   from (select extract(epoch from c.completed_at - c.started_at)::float8 as seconds
                           from report_executions c
                          where c.report_definition_id = e.report_definition_id
                            and c.definition_version = e.definition_version
                            and c.status = 'completed'
                          order by c.id desc
                          limit 20) recent)
           from report_executions e
          where e.id = $1",
    )
    .bind(id)
    .fetch_one(pool)
    .await
}

/// Executions in states that are not final, and the age of the oldest that waits, in seconds.
///
/// # Errors
/// The database's.
pub async fn queue_depth(pool: &PgPool) -> Result<(i64, i64, i64, f64), sqlx::Error> {
    sqlx::query_as(
        "select waiting.executions, running.processing, running.cancelling, waiting.oldest
           from (select count(*) as executions,
                        coalesce(extract(epoch from now() - min(run_at)
                            filter (where run_at <= now())), 0)::float8 as oldest
                   from waiting_executions()) waiting
          cross join (
                select count(*) filter (where e.status = 'processing') as processing,
                       count(*) filter (where e.status = 'cancelling') as cancelling
                  from running_executions() r
                  join report_executions e on e.id = r.id) running",
    )
    .fetch_one(pool)
    .await
}
