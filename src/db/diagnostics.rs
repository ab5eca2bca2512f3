//! Questions about the whole database that `doctor` asks, over several of our tables.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

/// What the server says of itself.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Server {
    /// `server_version_num`, for example 150018.
    pub version: i32,
    /// The role of the application's connections.
    pub role: String,
    /// The application's role may see and end backends of the report role.
    pub can_end_reports: bool,
}

/// Work that does not move although it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Stuck {
    /// Executions whose lease ran out more than a minute ago and which nobody rescued.
    pub abandoned: i64,
    /// Executions due for more than ten minutes.
    pub waiting: i64,
    /// Executions being cancelled for more than a minute.
    pub cancelling: i64,
    /// Processes seen within the last half minute.
    pub live_workers: i64,
}

/// Asks the server about itself.
///
/// # Errors
/// The database's.
pub async fn server(pool: &PgPool, report_role: &str) -> Result<Server, sqlx::Error> {
    sqlx::query_as(
        "select current_setting('server_version_num')::integer as version,
                current_user::text as role,
                coalesce((select pg_has_role(current_user, r.oid, 'usage')
                              or pg_has_role(current_user, 'pg_signal_backend', 'usage')
                            from pg_roles r where r.rolname = $1), false) as can_end_reports",
    )
    .bind(report_role)
    .fetch_one(pool)
    .await
}

/// The server's clock, at this moment.
///
/// # Errors
/// The database's.
pub async fn clock(pool: &PgPool) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar("select clock_timestamp()").fetch_one(pool).await
}

/// Counts what does not move.
///
/// # Errors
/// The database's.
pub async fn stuck(pool: &PgPool) -> Result<Stuck, sqlx::Error> {
    sqlx::query_as(
        "select
            (select count(*) from report_executions
              where lease_until < now() - interval '1 minute') as abandoned,
            (select count(*) from waiting_executions()
              where run_at < now() - interval '10 minutes') as waiting,
            (select count(*) from report_executions
              where lease_until is not null and status = 'cancelling'
                and cancel_requested_at < now() - interval '1 minute') as cancelling,
            (select count(*) from workers
              where last_seen_at > now() - interval '30 seconds') as live_workers",
    )
    .fetch_one(pool)
    .await
}
