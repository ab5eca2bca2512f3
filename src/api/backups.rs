//! Backups: what there is, and having one proven. Restoring is for the command line alone.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::extract::Authenticated;
use super::problem::Problem;
use super::query::NoQuery;
use crate::backup::BackupId;
use crate::service::backups::Listed;

/// A backup.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Backup)]
pub struct BackupResource {
    /// Its number.
    pub id: String,
    /// The instant whose state it holds.
    pub taken_at: DateTime<Utc>,
    /// `manual`, `scheduled` or `pre-migration`.
    pub purpose: String,
    /// `pg_dump` or `pgbackrest`.
    pub engine: String,
    /// The policy that asked for it.
    pub policy: Option<String>,
    /// Bytes stored.
    pub size_bytes: i64,
    /// Rows of all tables.
    pub row_count: i64,
    /// The newest migration of its schema.
    pub schema_version: Option<i64>,
    /// Milliseconds that it took.
    pub duration_ms: i64,
    /// Whether a key is needed to read it.
    pub encrypted: bool,
    /// Why it is kept; empty: the next prune deletes it.
    pub kept_because: Vec<String>,
    /// When it was last restored to prove it.
    pub verified_at: Option<DateTime<Utc>>,
    /// Whether every table came back as it was.
    pub verified_good: Option<bool>,
    /// What was wrong.
    pub verify_problem: Option<String>,
}

impl From<Listed> for BackupResource {
    fn from(listed: Listed) -> Self {
        let Listed { backup, age_secs: _, kept_because } = listed;
        Self {
            id: backup.id,
            taken_at: backup.taken_at,
            purpose: backup.purpose,
            engine: backup.engine,
            policy: backup.policy,
            size_bytes: backup.size_bytes,
            row_count: backup.row_count,
            schema_version: backup.schema_version,
            duration_ms: backup.duration_ms,
            encrypted: backup.encrypted,
            kept_because,
            verified_at: backup.verified_at,
            verified_good: backup.verified_good,
            verify_problem: backup.verify_problem,
        }
    }
}

/// The backups.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupList {
    /// The newest first. Pruning bounds how many there are.
    pub backups: Vec<BackupResource>,
}

/// A verification that a worker will do.
#[derive(Debug, Serialize, ToSchema)]
pub struct VerificationRequested {
    /// The backup.
    pub id: String,
    /// Always `requested`: the list shows the outcome.
    pub status: &'static str,
}

fn example() -> serde_json::Value {
    json!({
        "id": "20260301T013000Z-1a2b3c4d", "taken_at": "2026-03-01T01:30:00Z",
        "purpose": "scheduled", "engine": "pg_dump", "policy": "back-up-nightly",
        "size_bytes": 153_092_013, "row_count": 4_112_385,
        "schema_version": 15, "duration_ms": 8_190, "encrypted": true,
        "kept_because": ["newest", "last of 2026-03-01"], "verified_at": "2026-03-01T03:00:00Z",
        "verified_good": true, "verify_problem": null,
    })
}

/// List the backups
#[utoipa::path(
    get,
    path = "/v1/backups",
    tag = "backups",
    responses((
        status = 200,
        description = "The newest first.",
        body = BackupList,
        example = json!({"backups": [example()]}),
    ))
)]
pub async fn list_backups(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NoQuery: NoQuery,
) -> Result<Json<BackupList>, Problem> {
    let listing = state.services.show_backups(&caller).await?;
    Ok(Json(BackupList { backups: listing.backups.into_iter().map(Into::into).collect() }))
}

/// Have a backup proven
///
/// A worker restores it into a scratch database and compares every table with the snapshot. The
/// list shows the outcome.
#[utoipa::path(
    post,
    path = "/v1/backups/{id}/verify",
    tag = "backups",
    params(("id" = String, Path, description = "The backup.", example = "20260301T013000Z-1a2b3c4d")),
    responses((
        status = 202,
        description = "A worker will do it.",
        body = VerificationRequested,
        example = json!({"id": "20260301T013000Z-1a2b3c4d", "status": "requested"}),
    ))
)]
pub async fn verify_backup(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    id: Result<Path<String>, PathRejection>,
    NoQuery: NoQuery,
) -> Result<Response, Problem> {
    let unknown = || Problem::new(ProblemKind::NotFound, "there is no such backup");
    let Path(id) = id.map_err(|_| unknown())?;
    // Who may not ask learns nothing of which numbers there are: 403 comes before 404.
    let parsed: Result<BackupId, _> = id.parse();
    let id = match parsed {
        Ok(id) => id,
        Err(_) => {
            caller.require(crate::service::Permission::BackupsVerify)?;
            return Err(unknown());
        }
    };
    state.services.request_verification(&caller, &id).await?;
    let body = VerificationRequested { id: id.to_string(), status: "requested" };
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}
