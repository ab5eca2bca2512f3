//! Queues and workers: `/v1/queues`, `/v1/workers`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::extract::{Authenticated, PathText};
use super::problem::Problem;
use super::query::NoQuery;
use crate::db::workers::WorkerRow;
use crate::service::queues::QueueState;

/// Every queue.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueList {
    /// What is in each.
    pub queues: Vec<QueueState>,
}

/// Worker processes.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerList {
    /// The newest first.
    pub workers: Vec<WorkerResource>,
}

/// A worker process.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerResource {
    /// Its name in leases.
    pub id: String,
    /// Its machine.
    pub host: String,
    /// Its process number there.
    pub pid: i32,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it last said that it lives; it does every second.
    pub last_seen_at: DateTime<Utc>,
    /// Since when it takes nothing new.
    pub draining_at: Option<DateTime<Utc>>,
    /// Executions and runs that it has in hand.
    pub running: i64,
}

impl From<WorkerRow> for WorkerResource {
    fn from(row: WorkerRow) -> Self {
        let WorkerRow { id, host, pid, started_at, last_seen_at, draining_at, running } = row;
        Self { id, host, pid, started_at, last_seen_at, draining_at, running }
    }
}

/// List queues
#[utoipa::path(
    get,
    path = "/v1/queues",
    tag = "operations",
    responses((
        status = 200,
        description = "Every queue with what is in it.",
        body = QueueList,
        example = json!({"queues": [queue_example()]}),
    ))
)]
pub async fn list_queues(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
) -> Result<Json<QueueList>, Problem> {
    Ok(Json(QueueList { queues: state.services.queues(&caller).await? }))
}

/// Pause a queue
///
/// No worker takes anything from it until it is resumed, also after a restart. What runs goes on.
#[utoipa::path(
    post,
    path = "/v1/queues/{name}/pause",
    tag = "operations",
    params(("name" = String, Path, description = "Name of the queue.", example = "reports")),
    responses((
        status = 200,
        description = "Paused.",
        body = QueueList,
        example = json!({"queues": [queue_example()]}),
    ))
)]
pub async fn pause_queue(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(name): PathText,
    _: NoQuery,
) -> Result<Json<QueueList>, Problem> {
    state.services.pause_queue(&caller, &name).await?;
    one(&state, &caller, &name).await
}

/// Resume a queue
///
/// Workers take from it again, within a minute at the latest.
#[utoipa::path(
    post,
    path = "/v1/queues/{name}/resume",
    tag = "operations",
    params(("name" = String, Path, description = "Name of the queue.", example = "reports")),
    responses((
        status = 200,
        description = "It goes on.",
        body = QueueList,
        example = json!({"queues": [queue_example()]}),
    ))
)]
pub async fn resume_queue(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(name): PathText,
    _: NoQuery,
) -> Result<Json<QueueList>, Problem> {
    state.services.resume_queue(&caller, &name).await?;
    one(&state, &caller, &name).await
}

/// List worker processes
#[utoipa::path(
    get,
    path = "/v1/workers",
    tag = "operations",
    responses((
        status = 200,
        description = "Those that live, and for a day those that vanished.",
        body = WorkerList,
        example = json!({"workers": [worker_example()]}),
    ))
)]
pub async fn list_workers(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
) -> Result<Json<WorkerList>, Problem> {
    let workers = state.services.workers(&caller).await?;
    Ok(Json(WorkerList { workers: workers.into_iter().map(WorkerResource::from).collect() }))
}

/// Drain a worker process
///
/// It finishes what it has and takes nothing new; then it stands still until it is ended.
#[utoipa::path(
    post,
    path = "/v1/workers/{id}/drain",
    tag = "operations",
    params(("id" = String, Path, description = "Name of the worker.",
        example = "host-01JB2Z9K7Q")),
    responses((
        status = 202,
        description = "It takes nothing new.",
        body = WorkerList,
        example = json!({"workers": [worker_example()]}),
    ))
)]
pub async fn drain_worker(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(id): PathText,
    _: NoQuery,
) -> Result<(StatusCode, Json<WorkerList>), Problem> {
    state.services.drain_worker(&caller, &id).await?;
    let mut workers = state.services.workers(&caller).await?;
    workers.retain(|worker| worker.id == id);
    let workers = workers.into_iter().map(WorkerResource::from).collect();
    Ok((StatusCode::ACCEPTED, Json(WorkerList { workers })))
}

async fn one(
    state: &ApiState,
    caller: &crate::service::Caller,
    name: &str,
) -> Result<Json<QueueList>, Problem> {
    let mut queues = state.services.queues(caller).await?;
    queues.retain(|queue| queue.name == name);
    Ok(Json(QueueList { queues }))
}

fn queue_example() -> Value {
    json!({
        "name": "reports",
        "paused_at": "2026-11-22T09:30:00Z",
        "waiting": 12,
        "delayed": 0,
        "running": 4,
        "oldest_waiting_seconds": 31.5
    })
}

fn worker_example() -> Value {
    json!({
        "id": "host-01JB2Z9K7Q",
        "host": "host",
        "pid": 71,
        "started_at": "2026-11-22T09:30:00Z",
        "last_seen_at": "2026-11-22T10:02:07Z",
        "draining_at": null,
        "running": 2
    })
}
