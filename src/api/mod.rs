//! HTTP, and nothing else: parse, call one service method, render. No SQL, no rules.
//!
//! Requests pass from the top of [`router`] to its bottom:
//!
//! | layer | what it does |
//! |---|---|
//! | `trace::observe` | trace id, span, access log, histogram |
//! | `problem::render` | bodies of problems |
//! | `caching::forbid_storing` | nothing is stored unless the handler says so |
//! | `limits::catch_panics` | a panic is a 500, and the process goes on |
//! | `limits::shed` | `/v1` only: too many at once is a 503 at once |
//! | `limits::time_out` | `/v1` only: an answer that does not begin in time is a 503 |
//! | body limit | a body too large is a 413 |
//! | handler | caller (401), then path and query, then body, then the service (403, 404, …) |

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::service::Services;

mod audit_trail;
mod backups;
mod caching;
mod certificates;
mod cursor;
mod docs;
mod erasures;
mod error;
mod etag;
mod events;
mod executions;
mod extract;
mod follow;
mod holds;
mod limits;
mod listing;
mod openapi;
mod operations;
mod page;
mod policies;
mod prefer;
mod problem;
mod query;
mod queues;
mod range;
mod reports;
mod resources;
mod results;
mod runs;
mod schedules;
mod server;
mod session;
mod submission;
mod tokens;
mod trace;
mod webhooks;

pub use error::ProblemKind;
pub use etag::ETag;
pub use extract::actor;
pub use holds::{HoldResource, read_hold};
pub use openapi::openapi;
pub use problem::{FieldError, Problem};
pub use reports::{NewReport, definition_body, read_report};
pub use runs::read_restore;
pub use schedules::{ScheduleResource, order as read_schedule, read_backfill};
pub use server::{serve, serve_operations};
pub use session::{SESSION_COOKIE, is_same_site, session_secret};
pub use submission::SubmissionBody;
pub use tokens::{TokenResource, read as read_token};
pub use trace::TraceId;
pub use webhooks::read as read_webhook;

/// What handlers need. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiState {
    /// The use cases.
    pub services: Services,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
    /// Cancelled when the process is asked to stop.
    pub shutdown: CancellationToken,
    in_flight: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    readiness: Arc<operations::Readiness>,
    documents: Arc<docs::Documents>,
}

impl ApiState {
    /// Puts the state together.
    pub fn new(services: Services, metrics: PrometheusHandle, shutdown: CancellationToken) -> Self {
        let in_flight = services.config.http.max_in_flight.get().min(Semaphore::MAX_PERMITS);
        Self {
            services,
            metrics,
            shutdown,
            in_flight: Arc::new(Semaphore::new(in_flight)),
            // Clients that wait are patient by their own wish: they leave half to the others.
            waits: Arc::new(Semaphore::new((in_flight / 2).max(1))),
            readiness: Arc::default(),
            documents: Arc::new(docs::Documents::new(&openapi())),
        }
    }

    /// A place among the clients that wait; `None` while there are too many.
    pub fn place_to_wait(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.waits).try_acquire_owned().ok()
    }

    /// Longest time until an answer begins, waits that the client asked for apart.
    fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.services.config.http.request_timeout_secs.get())
    }
}

/// Everything that this service answers: the API, and the pages beside it.
pub fn router(state: ApiState, pages: Router) -> Router {
    let every_request = ServiceBuilder::new()
        .layer(from_fn(trace::observe))
        .layer(from_fn(problem::render))
        .layer(from_fn(caching::forbid_storing))
        .layer(from_fn(limits::catch_panics));
    let v1 = bound(Router::from(v1()), &state);
    v1.merge(Router::from(operational()))
        .with_state(state)
        .merge(pages)
        .method_not_allowed_fallback(error::method_not_allowed)
        .fallback(error::not_found)
        .layer(every_request)
}

/// Bounds how many requests are in work at once, how long each takes and how large its body is.
pub fn bound<S: Clone + Send + Sync + 'static>(router: Router<S>, state: &ApiState) -> Router<S> {
    let max_body_bytes = state.services.config.http.max_body_bytes.get();
    let bounded = ServiceBuilder::new()
        .layer(from_fn_with_state(state.clone(), limits::shed))
        .layer(from_fn_with_state(state.clone(), limits::time_out))
        .layer(DefaultBodyLimit::max(max_body_bytes));
    router.layer(bounded)
}

/// Health and metrics alone: what a process without the API answers.
fn operations_router(state: ApiState) -> Router {
    Router::from(health()).fallback(error::not_found).with_state(state)
}

/// What callers use: all of it asks for a token.
fn v1() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(reports::list_reports))
        .routes(routes!(reports::show_report))
        .routes(routes!(reports::put_report))
        .routes(routes!(reports::delete_report))
        .routes(routes!(executions::submit_execution))
        .routes(routes!(listing::list_executions))
        .routes(routes!(follow::show_execution))
        .routes(routes!(events::watch_execution))
        .routes(routes!(executions::cancel_execution))
        .routes(routes!(executions::delete_execution))
        .routes(routes!(executions::retry_execution))
        .routes(routes!(executions::request_format))
        .routes(routes!(results::download_result))
        .routes(routes!(results::show_manifest))
        .routes(routes!(schedules::create_schedule))
        .routes(routes!(schedules::list_schedules))
        .routes(routes!(schedules::show_schedule))
        .routes(routes!(schedules::delete_schedule))
        .routes(routes!(schedules::pause_schedule))
        .routes(routes!(schedules::resume_schedule))
        .routes(routes!(schedules::run_schedule))
        .routes(routes!(schedules::backfill_schedule))
        .routes(routes!(schedules::next_times))
        .routes(routes!(policies::list_policies))
        .routes(routes!(policies::show_policy))
        .routes(routes!(policies::count_small_groups))
        .routes(routes!(holds::place_hold))
        .routes(routes!(holds::list_holds))
        .routes(routes!(holds::show_hold))
        .routes(routes!(holds::release_hold))
        .routes(routes!(runs::preview_policy))
        .routes(routes!(runs::start_run))
        .routes(routes!(runs::list_runs))
        .routes(routes!(runs::show_run))
        .routes(routes!(runs::list_exports))
        .routes(routes!(runs::approve_run))
        .routes(routes!(runs::pause_run))
        .routes(routes!(runs::resume_run))
        .routes(routes!(runs::cancel_run))
        .routes(routes!(runs::list_archives))
        .routes(routes!(runs::restore_archive))
        .routes(routes!(erasures::request_erasure))
        .routes(routes!(erasures::list_erasures))
        .routes(routes!(erasures::show_erasure))
        .routes(routes!(erasures::cancel_erasure))
        .routes(routes!(certificates::show_erasure_certificate))
        .routes(routes!(certificates::show_run_certificate))
        .routes(routes!(certificates::verify_certificates))
        .routes(routes!(backups::list_backups))
        .routes(routes!(backups::verify_backup))
        .routes(routes!(webhooks::create_webhook))
        .routes(routes!(webhooks::list_webhooks))
        .routes(routes!(webhooks::show_webhook))
        .routes(routes!(webhooks::update_webhook))
        .routes(routes!(webhooks::delete_webhook))
        .routes(routes!(webhooks::rotate_webhook_secret))
        .routes(routes!(webhooks::disable_webhook))
        .routes(routes!(webhooks::enable_webhook))
        .routes(routes!(webhooks::ping_webhook))
        .routes(routes!(webhooks::list_deliveries))
        .routes(routes!(webhooks::replay_delivery))
        .routes(routes!(webhooks::replay_failed))
        .routes(routes!(tokens::create_token))
        .routes(routes!(tokens::list_tokens))
        .routes(routes!(tokens::show_token))
        .routes(routes!(tokens::revoke_token))
        .routes(routes!(queues::list_queues))
        .routes(routes!(queues::pause_queue))
        .routes(routes!(queues::resume_queue))
        .routes(routes!(queues::list_workers))
        .routes(routes!(queues::drain_worker))
        .routes(routes!(audit_trail::search_audit))
}

/// What orchestrators, collectors and readers use: open, and answered also under load.
fn operational() -> OpenApiRouter<ApiState> {
    health()
        .routes(routes!(docs::show_openapi))
        .routes(routes!(docs::show_docs))
        .routes(routes!(docs::show_problem))
}

fn health() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(operations::healthz))
        .routes(routes!(operations::readyz))
        .routes(routes!(operations::show_metrics))
}
