//! Certificates, and whether they are as they were sealed.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::ApiState;
use super::extract::{Authenticated, ExecutionId};
use super::problem::Problem;
use super::query::{NoQuery, QueryReader};
use crate::retention::certificate::{BadHead, Verification};

/// Verify the certificates
///
/// Compares the chain of certificates, their copies in the store, the audit log, the erasure ledger
/// and the records of runs and erasures. Write the `head` down elsewhere and give it to a later
/// verification: nothing else shows a database and a store that were both set back.
#[utoipa::path(
    get,
    path = "/v1/certificates/verification",
    tag = "lifecycle",
    params(("head" = Option<String>, Query,
        description = "A head that was told before, as `number:hash`: the chain must still hold it.",
        pattern = "^([1-9][0-9]{0,15}:)?[0-9a-f]{64}$")),
    responses((
        status = 200,
        description = "What was looked at, and what is not as it was sealed.",
        body = Verification,
        example = json!({
            "certificates": 12, "ledger_entries": 4,
            "head": {"number": 12, "sha256": "9f2c…"},
            "findings": [{"what": "run 7", "fault": "was changed since certificate 9"}],
        }),
    ))
)]
pub async fn verify_certificates(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let head = query.parse("head", &BadHead.to_string());
    query.finish()?;
    let found = state.services.verify_certificates(&caller, head.as_ref()).await?;
    Ok(Json(found).into_response())
}

/// Read the certificate of an erasure
///
/// Two lines of JSON: what was sealed, and its seal.
#[utoipa::path(
    get,
    path = "/v1/erasures/{id}/certificate",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the erasure.", example = 12)),
    responses((
        status = 200,
        description = "The certificate.",
        content((String = "application/jsonl", example = "{\"number\":1}\n{\"sha256\":\"…\"}\n")),
    ))
)]
pub async fn show_erasure_certificate(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    certificate(&state, &caller, &format!("erasure-{id}")).await
}

/// Read the certificate of a lifecycle run
///
/// Two lines of JSON: what was sealed, and its seal.
#[utoipa::path(
    get,
    path = "/v1/runs/{id}/certificate",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the run.", example = 7)),
    responses((
        status = 200,
        description = "The certificate.",
        content((String = "application/jsonl", example = "{\"number\":1}\n{\"sha256\":\"…\"}\n")),
    ))
)]
pub async fn show_run_certificate(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    certificate(&state, &caller, &format!("run-{id}")).await
}

async fn certificate(
    state: &ApiState,
    caller: &crate::service::Caller,
    subject: &str,
) -> Result<Response, Problem> {
    let certificate = state.services.certificate(caller, subject).await?;
    Ok(([(CONTENT_TYPE, "application/jsonl")], certificate.to_lines()).into_response())
}
