//! The listener: from the first connection to an orderly end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use super::{ApiState, router};

/// How often the histograms of the metrics are compacted.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Serves until `state.shutdown` is cancelled: `/readyz` says so from that moment, no connection
/// is accepted any more, and open requests have `http.shutdown_grace_secs` to end.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, state: ApiState) -> std::io::Result<()> {
    let shutdown = state.shutdown.clone();
    let grace = Duration::from_secs(state.services.config.http.shutdown_grace_secs);
    let upkeep = tokio::spawn(compact_metrics(state.clone()));
    let app = router(state).into_make_service_with_connect_info::<SocketAddr>();
    let stop = shutdown.clone().cancelled_owned();
    let serving = axum::serve(listener, app).with_graceful_shutdown(stop);
    let overtime = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    let served = tokio::select! {
        served = serving => served,
        () = overtime => {
            tracing::warn!("requests were still open {} s after the stop", grace.as_secs());
            Ok(())
        }
    };
    upkeep.abort();
    served
}

async fn compact_metrics(state: ApiState) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    loop {
        tokio::select! {
            () = state.shutdown.cancelled() => return,
            _ = ticks.tick() => state.metrics.run_upkeep(),
        }
    }
}
