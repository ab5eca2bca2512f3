//! The listener: from the first connection to an orderly end.
//!
//! Connections are bounded in number, and so is the time that a client may take to send the head
//! of a request or to take the next bytes of an answer: whoever is slow costs one place, for a
//! while.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{ApiState, operations_router, router};

/// Most connections, idle ones included. Further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4_096;
/// Longest time until the head of the next request is there; also how long a connection idles.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// Longest time that bytes wait for a client to take them (Linux only).
#[cfg(target_os = "linux")]
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for somebody who reads metrics at the very end.
const OPERATIONS_GRACE: Duration = Duration::from_secs(1);
/// Pause after a failed accept: usually the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often the histograms of the metrics are compacted.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Serves until `state.shutdown` is cancelled: `/readyz` says so from that moment. After
/// `http.shutdown_delay_secs` no connection is accepted any more, and open requests have
/// `http.shutdown_grace_secs` to end.
///
/// # Errors
/// None at present: a failing accept is tried again.
pub async fn serve(listener: TcpListener, state: ApiState, pages: Router) -> io::Result<()> {
    let http = &state.services.config.http;
    let grace = Duration::from_secs(http.shutdown_grace_secs);
    let delay = Duration::from_secs(http.shutdown_delay_secs);
    let (shutdown, closing) = (state.shutdown.clone(), CancellationToken::new());
    let first_stage = async {
        shutdown.cancelled().await;
        tokio::time::sleep(delay).await;
        closing.cancel();
    };
    let metrics = state.metrics.clone();
    let serving = accept_until(listener, router(state, pages), metrics, closing.clone(), grace);
    tokio::join!(first_stage, serving);
    Ok(())
}

/// Serves health and metrics alone, until `closing` is cancelled: also while the process ends what
/// is open, so that whoever watches sees it to the last.
pub async fn serve_operations(listener: TcpListener, state: ApiState, closing: CancellationToken) {
    let metrics = state.metrics.clone();
    accept_until(listener, operations_router(state), metrics, closing, OPERATIONS_GRACE).await;
}

async fn accept_until(
    listener: TcpListener,
    app: Router,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let mut upkeep = tokio::time::interval(METRICS_UPKEEP);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            _ = upkeep.tick() => {
                metrics.run_upkeep();
                continue;
            }
            Some(_) = connections.join_next() => continue,
            place = accept(&listener, &places) => place,
        };
        let Some((stream, address, place)) = place else { continue };
        let (app, shutdown) = (app.clone(), shutdown.clone());
        connections.spawn(async move {
            converse(stream, address, app, shutdown).await;
            drop(place);
        });
    }
    drop(listener);
    end(connections, grace).await;
}

/// A connection with a place of its own; `None` where that did not work, after a pause.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, place)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Answers the requests of a connection, and after `shutdown` only the one that is open.
async fn converse(
    stream: TcpStream,
    address: SocketAddr,
    app: Router,
    shutdown: CancellationToken,
) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "a connection broke off");
        return;
    }
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        // A router is always ready.
        app.clone().call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // The client's doing, nearly always: it went away, or did not speak HTTP.
        tracing::debug!(%error, "a connection broke off");
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let limit_ms = u32::try_from(STALL_LIMIT.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(stream, limit_ms)?;
    }
    Ok(())
}

/// Waits for open connections, at most for `grace`.
async fn end(mut connections: JoinSet<()>, grace: Duration) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all).await.is_err() {
        let open = connections.len();
        tracing::warn!(open, "{open} connections were still open after {} s", grace.as_secs());
        connections.shutdown().await;
    }
}
