//! Logs and metrics of a process.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};

mod otlp;

pub use otlp::OtlpExporter;
use otlp::OtlpLayer;

/// Starts logging to standard error, so that standard output stays for data.
///
/// # Errors
/// When the filter cannot be read, or logging was started before.
pub fn init_logging(config: &LogConfig) -> anyhow::Result<()> {
    init(config, None)
}

/// The same, with spans sent to the collector at `endpoint`, if there is one. Whoever ends the
/// process finishes the exporter.
///
/// # Errors
/// As [`init_logging`].
pub fn init_tracing(
    config: &LogConfig,
    endpoint: Option<&url::Url>,
) -> anyhow::Result<Option<OtlpExporter>> {
    let Some(endpoint) = endpoint else {
        init(config, None)?;
        return Ok(None);
    };
    let (layer, exporter) = otlp::start(endpoint)?;
    init(config, Some(layer))?;
    Ok(Some(exporter))
}

fn init(config: &LogConfig, otlp: Option<OtlpLayer>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|error| anyhow::anyhow!("log.filter: {error}"))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE);
    let registry = tracing_subscriber::registry().with(filter).with(otlp);
    match config.format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
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

const QUEUE_GAUGES: [(&str, &str); 5] = [
    ("registrar_queue_tickets", "Tickets in a queue, by queue and state."),
    ("registrar_queue_oldest_ticket_seconds", "How long the oldest ticket of a queue waits."),
    ("registrar_queue_paused", "1 while an operator has paused the queue."),
    ("registrar_workers", "Worker processes: working, draining, or silent for half a minute."),
    ("registrar_pool_connections", "Connections of a pool to the database, by pool and state."),
];

const WORK_COUNTERS: [(&str, &str); 4] = [
    ("registrar_report_reads_total", "Reports that were read where there is a replica, by server."),
    ("registrar_attempts_total", "Attempts that ended, by outcome."),
    ("registrar_result_rows_total", "Rows in published results, by format."),
    ("registrar_result_bytes_total", "Bytes of published results, by format."),
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
    for (name, about) in QUEUE_GAUGES {
        metrics::describe_gauge!(name, about);
    }
    for (name, about) in WORK_COUNTERS {
        metrics::describe_counter!(name, about);
    }
    for (name, about) in BACKUP_GAUGES {
        metrics::describe_gauge!(name, about);
    }
    Ok(handle)
}
