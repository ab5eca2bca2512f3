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

/// The latest days, oldest first, days without executions included.
///
/// # Errors
/// The database's.
pub async fn days(pool: &PgPool, days: i32) -> Result<Vec<Day>, sqlx::Error> {
    sqlx::query_as(
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
    .fetch_all(pool)
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
