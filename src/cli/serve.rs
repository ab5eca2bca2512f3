//! `registrar serve`: API, worker and scheduler, together or apart.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Settings;
use crate::api::{self, ApiState};
use crate::service::Services;
use crate::{console, db, scheduler, schema, telemetry, worker};

/// How often the use of pools is told.
const POOL_TICK: Duration = Duration::from_secs(5);

/// Run the service until SIGTERM or SIGINT
///
/// Without --only: API, worker and scheduler in one process. SIGTERM first turns readiness off and
/// stops taking work, then waits for what is open; a second signal ends at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  registrar serve
  registrar serve --only api
  registrar serve --only worker,scheduler")]
pub struct ServeCommand {
    /// Run only these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,

    #[command(flatten)]
    settings: Settings,
}

/// A part of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The HTTP API.
    Api,
    /// Runs reports.
    Worker,
    /// Fires schedules.
    Scheduler,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 3] = [Self::Api, Self::Worker, Self::Scheduler];
}

/// Runs `registrar serve`.
///
/// # Errors
/// Settings, database, schema, store or port cannot be used.
pub async fn run(command: ServeCommand) -> anyhow::Result<ExitCode> {
    let config = command.settings.load()?;
    let endpoint = config.operations.otlp_endpoint.clone();
    let exporter = telemetry::init_tracing(&config.log, endpoint.as_ref())?;
    let metrics = telemetry::init_metrics()?;
    crate::service::backlogs::describe_metrics();
    let services = super::services(config).await?;
    schema::check_current(&services.db).await?;
    let parts = if command.only.is_empty() { Part::ALL.to_vec() } else { command.only };
    let shutdown = CancellationToken::new();
    end_on_signal(shutdown.clone())?;
    let listener = match parts.contains(&Part::Api) {
        true => Some(bind(&services).await?),
        false => None,
    };
    if let Some(listener) = &listener {
        tracing::info!("listening on http://{}", listener.local_addr()?);
    }
    let closing = CancellationToken::new();
    let operations = match services.config.operations.listen {
        Some(address) => {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("operations.listen: cannot use {address}"))?;
            tracing::info!("health and metrics on http://{}", listener.local_addr()?);
            let state = ApiState::new(services.clone(), metrics.clone(), shutdown.clone());
            Some(tokio::spawn(api::serve_operations(listener, state, closing.clone())))
        }
        None => None,
    };
    let outcome = run_parts(services, &parts, listener, metrics, shutdown).await;
    closing.cancel();
    if let Some(operations) = operations {
        operations.await.context("the listener of operations panicked")?;
    }
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// Tells now and then how the connections of a pool are used, until `ended`.
async fn watch_pool(name: &'static str, pool: sqlx::PgPool, ended: CancellationToken) {
    let mut ticks = tokio::time::interval(POOL_TICK);
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
        let in_use = pool.size().saturating_sub(idle);
        for (state, count) in [("idle", idle), ("in_use", in_use)] {
            metrics::gauge!("registrar_pool_connections", "pool" => name, "state" => state)
                .set(f64::from(count));
        }
    }
}

/// Takes the configured address.
///
/// # Errors
/// It is in use, or not ours.
pub async fn bind(services: &Services) -> anyhow::Result<TcpListener> {
    let address = services.config.http.listen;
    TcpListener::bind(address).await.with_context(|| format!("http.listen: cannot use {address}"))
}

/// Runs parts until `shutdown`. When one breaks, the others are ended in order, so that whoever
/// watches the process sees it end.
///
/// # Errors
/// Those of the part that broke.
pub async fn run_parts(
    services: Services,
    parts: &[Part],
    listener: Option<TcpListener>,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut others = tokio::task::JoinSet::new();
    tokio::spawn(watch_pool("service", services.db.clone(), shutdown.clone()));
    if let Some(listener) = listener {
        let state = ApiState::new(services.clone(), metrics, shutdown.clone());
        let ended = shutdown.clone().drop_guard();
        others.spawn(async move {
            let pages = console::router(&state);
            let served = api::serve(listener, state, pages).await.context("serve the API");
            drop(ended);
            served
        });
    }
    if parts.contains(&Part::Scheduler) {
        let (db, shutdown) = (services.db.clone(), shutdown.clone());
        let ended = shutdown.clone().drop_guard();
        others.spawn(async move {
            let ran = scheduler::run(db, shutdown).await;
            drop(ended);
            ran
        });
    }
    // On this task: the queue's workers cannot be moved to another. What they run is spawned.
    let mut outcome = Ok(());
    if parts.contains(&Part::Worker) {
        // A pool of its own: a rush of requests must not keep a heartbeat waiting.
        let db = db::connect_lazily(&services.config.database)?;
        tokio::spawn(watch_pool("worker", db.clone(), shutdown.clone()));
        outcome = worker::run(Services { db, ..services }, shutdown.clone()).await;
        shutdown.cancel();
    }
    while let Some(ended) = others.join_next().await {
        outcome = outcome.and(ended.context("a part of the service panicked").flatten());
    }
    outcome
}

/// SIGTERM or SIGINT ends the service in order; a second one ends it at once, and leases do the
/// rest.
fn end_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        tracing::info!("asked to end: finishing what is open");
        shutdown.cancel();
        next().await;
        tracing::warn!("asked again: ending at once");
        let pid = rustix::process::getpid();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    });
    Ok(())
}
