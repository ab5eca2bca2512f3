//! Which server a report is read from, where reports have a replica of their own.
//!
//! A replica that is too far behind would give answers of the past, and one that is away would give
//! none: then the report is read from the primary, under the same role and the same caps. How far
//! behind it is, is measured with the primary's clock: a replica that has replayed all that the
//! primary has written is not behind, however long ago that was.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use super::ReportDatabase;

/// Longest time to find out. A server that takes longer is no help to a report.
const CHOICE_LIMIT: Duration = Duration::from_secs(5);
/// What is taken for the lag of a replica that has replayed nothing yet.
const UNKNOWN_LAG_SECS: f64 = 1e9;

/// Where reports are read instead.
#[derive(Debug)]
pub(super) struct Fallback {
    primary: PgConnectOptions,
    max_lag: Duration,
}

impl ReportDatabase {
    /// Reports are read from `primary` instead, while the replica is more than `max_lag` behind it
    /// or does not answer.
    #[must_use]
    pub fn or_primary(self, primary: PgConnectOptions, max_lag: Duration) -> Self {
        let primary = Self::new(primary).options;
        Self { fallback: Some(Arc::new(Fallback { primary, max_lag })), ..self }
    }

    /// The server for one report: all its connections go there.
    pub async fn choose(&self) -> Self {
        let Some(fallback) = &self.fallback else { return self.clone() };
        let measured = tokio::time::timeout(CHOICE_LIMIT, lag_secs(&self.options, fallback)).await;
        let is_fit = match measured {
            Ok(Ok(lag_secs)) => {
                metrics::gauge!("registrar_replica_lag_seconds").set(lag_secs);
                let is_fit = lag_secs <= fallback.max_lag.as_secs_f64();
                if !is_fit {
                    tracing::warn!(lag_secs, "the replica is behind: reading from the primary");
                }
                is_fit
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("the replica does not answer: reading from the primary");
                false
            }
        };
        let (server, options) = match is_fit {
            true => ("replica", &self.options),
            false => ("primary", &fallback.primary),
        };
        metrics::counter!("registrar_report_reads_total", "server" => server).increment(1);
        Self {
            options: options.clone(),
            choices: Arc::clone(&self.choices),
            fallback: None,
            is_elsewhere: is_fit,
        }
    }
}

async fn lag_secs(replica: &PgConnectOptions, fallback: &Fallback) -> Result<f64, sqlx::Error> {
    let mut primary = PgConnection::connect_with(&fallback.primary).await?;
    let (now, written): (DateTime<Utc>, String) =
        sqlx::query_as("select clock_timestamp(), pg_current_wal_lsn()::text")
            .fetch_one(&mut primary)
            .await?;
    primary.close().await?;
    let mut replica = PgConnection::connect_with(replica).await?;
    let lag: Option<f64> = sqlx::query_scalar(
        "select case when not pg_is_in_recovery()
                       or pg_last_wal_replay_lsn() >= $1::text::pg_lsn then 0
                     else extract(epoch from $2 - pg_last_xact_replay_timestamp()) end::float8",
    )
    .bind(written)
    .bind(now)
    .fetch_one(&mut replica)
    .await?;
    replica.close().await?;
    Ok(lag.unwrap_or(UNKNOWN_LAG_SECS))
}
