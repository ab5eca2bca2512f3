//! Figures for the console's overview.

use chrono::NaiveDate;
use sqlx::PgPool;

/// What became of the executions of a day.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Day {
    /// The day, in UTC.
    pub day: NaiveDate,
    /// Completed, and those whose result is deleted by now.
    pub completed: i64,
    /// Failed.
    pub failed: i64,
    /// Cancelled.
    pub cancelled: i64,
    /// Seconds between being due and the start, on average.
    pub wait_secs: f64,
}

/// Longest count of the days.
const DAYS_LIMIT: &str = "set local statement_timeout = '30s'";

/// The latest days, oldest first, days without executions included.
///
/// # Errors
/// The database's.
pub async fn days(pool: &PgPool, days: i32) -> Result<Vec<Day>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query(DAYS_LIMIT).execute(&mut *tx).await?;
    let days = sqlx::query_as(
        "with ended as (
             select (completed_at at time zone 'UTC')::date as day,
                    count(*) filter (where status in ('completed', 'expired')) as completed,
                    count(*) filter (where status = 'failed') as failed,
                    count(*) filter (where status = 'cancelled') as cancelled,
                    avg(extract(epoch from started_at - run_at))
                        filter (where started_at >= run_at) as wait_secs
               from report_executions
              where completed_at >= date_trunc('day', now() at time zone 'UTC') at time zone 'UTC'
                                    - make_interval(days => $1 - 1)
              group by 1
         )
         select at::date as day, coalesce(completed, 0) as completed,
                coalesce(failed, 0) as failed, coalesce(cancelled, 0) as cancelled,
                coalesce(wait_secs, 0)::float8 as wait_secs
           from generate_series((now() at time zone 'UTC')::date - ($1 - 1),
                                (now() at time zone 'UTC')::date, interval '1 day') as at
           left join ended on ended.day = at::date
          order by at",
    )
    .bind(days)
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(days)
}

/// Executions that are not done.
#[derive(Debug, Clone, Copy, PartialEq, sqlx::FromRow)]
pub struct Glance {
    /// Wait for a worker; no more than asked for are counted.
    pub waiting: i64,
    /// How long the one that was due first waits, in seconds.
    pub oldest_wait_secs: f64,
    /// A worker has them, or has to end them; no more than asked for are counted.
    pub running: i64,
}

/// Counts executions that are not done, at most `most` of each kind: however many wait, this is
/// quick.
///
/// # Errors
/// The database's.
pub async fn glance(pool: &PgPool, most: i64) -> Result<Glance, sqlx::Error> {
    sqlx::query_as(
        "select (select count(*) from (select from waiting_executions() limit $1) w) as waiting,
                (select count(*) from (select from running_executions() limit $1) r) as running,
                coalesce((select extract(epoch from now() - min(coalesce(e.run_at, e.created_at)))
                            from report_executions e
                           where e.status is not distinct from 'pending'
                             and coalesce(e.run_at, e.created_at) <= now()), 0)::float8
                    as oldest_wait_secs",
    )
    .bind(most)
    .fetch_one(pool)
    .await
}

/// Worker processes seen within the last half minute.
///
/// # Errors
/// The database's.
pub async fn live_workers(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "select count(*) from workers where last_seen_at > now() - interval '30 seconds'",
    )
    .fetch_one(pool)
    .await
}
