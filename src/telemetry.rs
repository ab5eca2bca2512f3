//! Logs and metrics of a process.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{LogConfig, LogFormat};

/// Starts logging to standard error, so that standard output stays for data.
///
/// # Errors
/// When the filter cannot be read, or logging was started before.
pub fn init_logging(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|error| anyhow::anyhow!("log.filter: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE);
    match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// Upper bounds in seconds of the histogram of durations: from one page to a long report.
const DURATION_BUCKETS: [f64; 12] =
    [0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];

const BACKUP_GAUGES: [(&str, &str); 5] = [
    ("registrar_backups", "Backups that could be restored."),
    ("registrar_backup_last_success_timestamp_seconds", "When the newest backup was stored."),
    ("registrar_backup_last_verified_timestamp_seconds", "When a backup was last proven good."),
    ("registrar_backup_last_size_bytes", "Bytes stored of the newest backup."),
    ("registrar_backup_last_duration_seconds", "Time that the newest backup took."),
];

/// Starts the metrics recorder of this process.
///
/// # Errors
/// When a recorder was installed before.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new().set_buckets(&DURATION_BUCKETS)?.install_recorder()?;
    metrics::describe_counter!(
        "registrar_executions_finished_total",
        "Executions that ended, by outcome and error code."
    );
    metrics::describe_histogram!(
        "registrar_execution_duration_seconds",
        "Time from claim to the end of an attempt, by format and outcome."
    );
    metrics::describe_histogram!(
        "registrar_http_request_duration_seconds",
        "Time of a request, by method, route and status."
    );
    metrics::describe_gauge!(
        "registrar_queue_executions",
        "Executions in the database by state that is not final."
    );
    metrics::describe_gauge!(
        "registrar_queue_oldest_pending_seconds",
        "Age of the oldest execution that waits for a worker."
    );
    for (name, about) in BACKUP_GAUGES {
        metrics::describe_gauge!(name, about);
    }
    Ok(handle)
}
