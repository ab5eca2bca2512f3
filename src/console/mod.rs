//! The console: pages for people, over the same services as the API.
//!
//! Server-rendered, with a little JavaScript that pages do without. A handler parses, calls a
//! service and renders: rights and rules are the services', errors are the API's problems, shown
//! as pages. Everything that pages need is inside the program; the content security policy lets
//! nothing else in and no inline script run. What comes from the database is escaped by the
//! templates (their names end in `.html`).

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

use crate::api::{self, ApiState};

mod archives;
mod assets;
mod chart;
mod definitions;
mod events;
mod executions;
mod form;
mod lifecycle;
mod navigation;
mod operations;
mod overview;
mod pages;
mod reports;
mod request;
mod response;
mod safety;
mod schedules;
mod sign_in;
mod tokens;
mod webhooks;

use pages::Pages;

/// What handlers need. Cheap to clone.
#[derive(Debug, Clone)]
struct Console {
    api: ApiState,
    pages: Arc<Pages>,
}

/// Every page.
pub fn router(api: &ApiState) -> Router {
    let console = Console { api: api.clone(), pages: Arc::new(Pages::new()) };
    let pages = Router::new()
        .route("/", get(navigation::home))
        .route("/sign-in", get(sign_in::show).post(sign_in::sign_in))
        .route("/sign-out", post(sign_in::sign_out))
        .route("/reports", get(reports::list))
        .route("/reports/{slug}", get(reports::show).post(reports::submit))
        .route("/definitions", post(definitions::create))
        .route("/reports/{slug}/definition", get(definitions::show).post(definitions::change))
        .route("/reports/{slug}/delete", post(definitions::delete))
        .route("/reports/{slug}/estimate", post(reports::estimate))
        .route("/reports/{slug}/schedules", post(reports::schedule))
        .route("/executions", get(executions::list))
        .route("/executions/bulk", post(executions::bulk))
        .route("/executions/{id}", get(executions::show))
        .route("/executions/{id}/events", get(executions::events))
        .route("/executions/{id}/cancel", post(executions::cancel))
        .route("/executions/{id}/retry", post(executions::retry))
        .route("/executions/{id}/delete", post(executions::delete))
        .route("/executions/{id}/formats", post(executions::request_format))
        .route("/schedules", get(schedules::list))
        .route("/schedules/{name}", get(schedules::show))
        .route("/schedules/{name}/{verb}", post(schedules::change))
        .merge(operators());
    api::bound(pages, api)
        .layer(from_fn_with_state(console.clone(), response::problems_as_pages))
        .route("/assets/{name}", get(assets::serve))
        .layer(from_fn(response::protect))
        .with_state(console)
}

/// What operators do beside reports.
fn operators() -> Router<Console> {
    Router::new()
        .route("/overview", get(overview::show))
        .route("/policies", get(lifecycle::policies))
        .route("/policies/{name}", get(lifecycle::policy))
        .route("/policies/{name}/runs", post(lifecycle::start))
        .route("/runs", get(lifecycle::runs))
        .route("/runs/{id}", get(lifecycle::run))
        .route("/runs/{id}/events", get(lifecycle::run_events))
        .route("/runs/{id}/{verb}", post(lifecycle::change_run))
        .route("/archives", get(archives::list))
        .route("/archives/{table}/restore", post(archives::restore))
        .route("/holds", get(safety::holds).post(safety::place_hold))
        .route("/holds/{id}/release", post(safety::release_hold))
        .route("/erasures", get(safety::erasures).post(safety::request_erasure))
        .route("/erasures/{id}/cancel", post(safety::cancel_erasure))
        .route("/queues", get(operations::queues))
        .route("/queues/{name}/{verb}", post(operations::change_queue))
        .route("/workers/{id}/drain", post(operations::drain_worker))
        .route("/webhooks", get(webhooks::list).post(webhooks::create))
        .route("/webhooks/{name}", get(webhooks::show))
        .route("/webhooks/{name}/{verb}", post(webhooks::change))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{prefix}/revoke", post(tokens::revoke))
        .route("/audit", get(operations::audit))
        .route("/backups", get(safety::backups))
        .route("/backups/{id}/verify", post(safety::verify_backup))
}
