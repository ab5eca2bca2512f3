//! What orchestrators and collectors ask: is it alive, is it ready, what does it measure.
//!
//! Liveness does not look at the database: restarting this process mends no database. Readiness
//! looks at everything that a request needs, and remembers the answer for some seconds, so that
//! asking often costs nothing.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::ApiState;

/// How long an answer of the database is good.
const DATABASE_FRESH: Duration = Duration::from_secs(2);
/// How long an answer about schema and store is good: they cost more and change less.
const SLOW_FRESH: Duration = Duration::from_secs(10);
/// Longest check. An orchestrator waits seconds, not minutes.
const CHECK_LIMIT: Duration = Duration::from_secs(4);

/// The process answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Liveness {
    /// Always `alive`.
    pub status: &'static str,
    /// Version of Registrar.
    pub version: &'static str,
}

/// What requests need, and whether it is there.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadinessReport {
    /// `ready` where every check passed.
    pub status: ReadinessStatus,
    /// Each check.
    pub checks: Vec<Check>,
}

/// The sum of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadinessStatus {
    /// Send requests.
    Ready,
    /// Send them elsewhere.
    NotReady,
    /// Send them elsewhere: the process ends.
    ShuttingDown,
}

/// One thing that requests need.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Check {
    /// `database`, `schema` or `store`.
    pub name: &'static str,
    /// Whether it is there.
    pub passed: bool,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What was found out last.
#[derive(Debug, Default)]
pub struct Readiness {
    database: Remembered,
    schema: Remembered,
    store: Remembered,
}

/// The last answer of one check. One caller asks, the others wait for its answer.
#[derive(Debug, Default)]
struct Remembered(Mutex<Option<(Instant, Check)>>);

impl Remembered {
    async fn check(
        &self,
        name: &'static str,
        fresh: Duration,
        ask: impl Future<Output = Result<(), String>>,
    ) -> Check {
        let mut last = self.0.lock().await;
        if let Some((at, check)) = &*last
            && at.elapsed() < fresh
        {
            return check.clone();
        }
        let answer = tokio::time::timeout(CHECK_LIMIT, ask).await;
        let answer =
            answer.unwrap_or_else(|_| Err(format!("no answer within {} s", CHECK_LIMIT.as_secs())));
        let check = Check { name, passed: answer.is_ok(), detail: answer.err() };
        *last = Some((Instant::now(), check.clone()));
        check
    }
}

/// Whether the process answers
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "operations",
    responses((
        status = 200,
        description = "It does.",
        body = Liveness,
        example = json!({"status": "alive", "version": "0.1.0"}),
    ))
)]
pub async fn healthz() -> Response {
    let liveness = Liveness { status: "alive", version: env!("CARGO_PKG_VERSION") };
    ([(CACHE_CONTROL, "no-store")], Json(liveness)).into_response()
}

/// Whether requests should be sent here
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "operations",
    responses(
        (
            status = 200,
            description = "Yes.",
            body = ReadinessReport,
            example = json!({"status": "ready", "checks": [
                {"name": "database", "passed": true}, {"name": "schema", "passed": true},
                {"name": "store", "passed": true}]}),
        ),
        (
            status = 503,
            description = "No: something is away, or the process ends.",
            body = ReadinessReport,
            example = json!({"status": "not_ready", "checks": [
                {"name": "database", "passed": true}, {"name": "schema", "passed": true},
                {"name": "store", "passed": false, "detail": "the store cannot be written"}]}),
        ),
    )
)]
pub async fn readyz(State(state): State<ApiState>) -> Response {
    let report = if state.shutdown.is_cancelled() {
        ReadinessReport { status: ReadinessStatus::ShuttingDown, checks: Vec::new() }
    } else {
        readiness(&state).await
    };
    let status = match report.status {
        ReadinessStatus::Ready => StatusCode::OK,
        ReadinessStatus::NotReady | ReadinessStatus::ShuttingDown => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    (status, [(CACHE_CONTROL, "no-store")], Json(report)).into_response()
}

async fn readiness(state: &ApiState) -> ReadinessReport {
    let Readiness { database, schema, store } = &*state.readiness;
    let services = &state.services;
    let (database, schema, store) = tokio::join!(
        database.check("database", DATABASE_FRESH, services.check_database()),
        schema.check("schema", SLOW_FRESH, services.check_schema()),
        store.check("store", SLOW_FRESH, services.check_store()),
    );
    let checks = vec![database, schema, store];
    let ready = checks.iter().all(|check| check.passed);
    let status = if ready { ReadinessStatus::Ready } else { ReadinessStatus::NotReady };
    ReadinessReport { status, checks }
}

/// Metrics for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses((
        status = 200,
        description = "Text format 0.0.4.",
        content((String = "text/plain",
            example = "registrar_executions_submitted_total 71\n")),
    ))
)]
pub async fn show_metrics(State(state): State<ApiState>) -> Response {
    let headers =
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    (headers, state.metrics.render()).into_response()
}
