//! `policy_backlogs`: what each policy had before it when somebody last looked, for metrics. A look
//! reads whole tables, so scrapes read this instead.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

/// What a look at a policy found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBacklog<'a> {
    /// The policy's name.
    pub policy: &'a str,
    /// Rows that would go.
    pub eligible: i64,
    /// Old enough, but held.
    pub held: i64,
    /// Without an age.
    pub indeterminate: i64,
    /// Old enough, but referenced by rows that stay.
    pub blocked: i64,
    /// Age of the oldest row that would go.
    pub oldest_at: Option<DateTime<Utc>>,
    /// Whether a run would be above a ceiling.
    pub is_over_ceiling: bool,
}

/// A policy as metrics tell of it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct PolicyState {
    /// Its name.
    pub policy: String,
    /// When somebody looked, in seconds since 1970.
    pub taken_at: f64,
    /// Rows that would go.
    pub eligible: i64,
    /// Old enough, but held.
    pub held: i64,
    /// Without an age.
    pub indeterminate: i64,
    /// Old enough, but referenced by rows that stay.
    pub blocked: i64,
    /// Age of the oldest row that would go, in seconds.
    pub oldest_age: Option<f64>,
    /// Whether a run would be above a ceiling.
    pub is_over_ceiling: bool,
    /// When a run of it last completed, in seconds since 1970.
    pub last_success: Option<f64>,
    /// Rows that run did.
    pub last_rows: Option<i64>,
    /// Rows it did in a second.
    pub last_rate: Option<f64>,
    /// Whether a run of it waits: for load to pass, or for a person.
    pub is_waiting: bool,
}

/// Stores what a look found.
///
/// # Errors
/// The database's.
pub async fn store(pool: &PgPool, new: &NewBacklog<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into policy_backlogs
                (policy, taken_at, eligible, held, indeterminate, blocked, oldest_at,
                 is_over_ceiling)
         values ($1, now(), $2, $3, $4, $5, $6, $7)
         on conflict (policy) do update
            set taken_at = excluded.taken_at, eligible = excluded.eligible, held = excluded.held,
                indeterminate = excluded.indeterminate, blocked = excluded.blocked,
                oldest_at = excluded.oldest_at, is_over_ceiling = excluded.is_over_ceiling",
    )
    .bind(new.policy)
    .bind(new.eligible)
    .bind(new.held)
    .bind(new.indeterminate)
    .bind(new.blocked)
    .bind(new.oldest_at)
    .bind(new.is_over_ceiling)
    .execute(pool)
    .await?;
    Ok(())
}

/// Stores what a run has left, from its own account: no row is read again.
///
/// # Errors
/// The database's.
pub async fn store_after_run(
    connection: &mut PgConnection,
    policy: &str,
    run_id: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into policy_backlogs
                (policy, taken_at, eligible, held, indeterminate, blocked, is_over_ceiling)
         select $1, now(), coalesce(sum(greatest(eligible - done, 0)), 0)::bigint,
                coalesce(sum(held), 0)::bigint, coalesce(sum(indeterminate), 0)::bigint,
                coalesce(sum(blocked), 0)::bigint, false
           from lifecycle_run_tables
          where run_id = $2 and cutoff is not null
         on conflict (policy) do update
            set taken_at = excluded.taken_at, eligible = excluded.eligible, held = excluded.held,
                indeterminate = excluded.indeterminate, blocked = excluded.blocked,
                oldest_at = case when excluded.eligible > 0 then policy_backlogs.oldest_at end,
                is_over_ceiling = false",
    )
    .bind(policy)
    .bind(run_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets policies that are not there any more.
///
/// # Errors
/// The database's.
pub async fn keep_only(pool: &PgPool, policies: &[String]) -> Result<u64, sqlx::Error> {
    let forgotten = sqlx::query("delete from policy_backlogs where policy <> all ($1)")
        .bind(policies)
        .execute(pool)
        .await?;
    Ok(forgotten.rows_affected())
}

/// At most `limit` policies, each with its last run: a look-up by index for each.
///
/// # Errors
/// The database's.
pub async fn states(pool: &PgPool, limit: i64) -> Result<Vec<PolicyState>, sqlx::Error> {
    sqlx::query_as(
        "select b.policy, extract(epoch from b.taken_at)::float8 as taken_at, b.eligible, b.held,
                b.indeterminate, b.blocked,
                extract(epoch from now() - b.oldest_at)::float8 as oldest_age, b.is_over_ceiling,
                extract(epoch from r.completed_at)::float8 as last_success, t.rows as last_rows,
                t.rows / nullif(extract(epoch from t.ended - t.began), 0)::float8 as last_rate,
                exists (select from lifecycle_runs w
                         where w.policy = b.policy
                           and (w.status = 'needs_approval'
                                or w.status = 'processing' and w.waiting_for is not null))
                    as is_waiting
           from policy_backlogs b
           left join lateral (select id, completed_at
                                from lifecycle_runs
                               where policy = b.policy and status = 'completed'
                               order by id desc
                               limit 1) r on true
           left join lateral (select sum(done)::bigint as rows, min(started_at) as began,
                                     max(completed_at) as ended
                                from lifecycle_run_tables
                               where run_id = r.id) t on true
          order by b.policy
          limit $1",
    )
    .bind(limit)
    .fetch_all(pool)
    .await
}
