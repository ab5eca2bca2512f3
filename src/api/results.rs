//! Results: the file and its manifest.

use std::fmt::Write;

use crate::store::ByteRange;
use axum::body::Body;
use axum::extract::{Extension, RawQuery, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, LOCATION, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use serde_json::json;

use super::ApiState;
use super::error::ProblemKind;
use super::etag::ETag;
use super::extract::{Authenticated, ExecutionId};
use super::limits::Place;
use super::problem::Problem;
use super::query::{NoQuery, QueryReader};
use super::range::{Wanted, wanted};
use crate::report::manifest::Manifest;
use crate::service::results::ResultFile;
use crate::writer::Format;

/// RFC 9530: the digest of the whole file, also beside a part of it.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// Download the file of an execution
///
/// Rights are checked now, and the download is recorded.
#[utoipa::path(
    get,
    path = "/v1/executions/{id}/result",
    tag = "results",
    params(
        ("id" = i64, Path, description = "Number of the execution.", example = 71),
        ("format" = Option<Format>, Query,
            description = "The file in this format, made before by `POST …/formats`."),
        ("link" = Option<bool>, Query,
            description = "`true`: where the service allows it, a redirect to the store, by a link \
                           that is good for 60 s; elsewhere the file."),
        ("Range" = Option<String>, Header, description = "One range of bytes.",
            example = "bytes=0-1023"),
        ("If-Range" = Option<String>, Header,
            description = "Answer the range only of the file with this tag."),
        ("If-None-Match" = Option<String>, Header, description = "Tags that you have."),
    ),
    responses(
        (
            status = 200,
            description = "The file.",
            content(
                (String = "text/csv", example = "unit,people\nPhysics,412\n"),
                (Vec<u8> =
                    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
                (Vec<u8> = "application/vnd.apache.parquet"),
                (String = "application/x-ndjson", example = "{\"unit\":\"Physics\",\"people\":412}\n"),
                (Vec<u8> = "application/gzip"),
                (Vec<u8> = "application/zstd"),
            ),
            headers(
                ("Content-Disposition" = String, description = "The file's name."),
                ("Content-Length" = u64, description = "Size in bytes."),
                ("Accept-Ranges" = String, description = "`bytes`"),
                ("ETag" = String, description = "The file's SHA-256, in hex."),
                ("Repr-Digest" = String, description = "The file's SHA-256 (RFC 9530)."),
            ),
        ),
        (
            status = 206,
            description = "A part of the file.",
            content(
                (String = "text/csv", example = "unit,people\n"),
                (Vec<u8> =
                    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
                (Vec<u8> = "application/vnd.apache.parquet"),
                (String = "application/x-ndjson", example = "{\"unit\":"),
                (Vec<u8> = "application/gzip"),
                (Vec<u8> = "application/zstd"),
            ),
            headers(("Content-Range" = String, description = "Which part, of how many bytes.")),
        ),
        (
            status = 302,
            description = "With `link=true`: fetch it there, without your token.",
            headers(("Location" = String, description = "A link signed for 60 s.")),
        ),
        (status = 304, description = "You have it."),
    )
)]
pub async fn download_result(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    RawQuery(query): RawQuery,
    Extension(place): Extension<Place>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let format = query.parse("format", "must be `csv`, `xlsx`, `parquet` or `ndjson`");
    let by_link = query.parse("link", "must be true or false").unwrap_or(false);
    query.finish()?;
    let id = match format {
        Some(format) => state.services.in_format(&caller, id, format).await?,
        None => id,
    };
    let file = state.services.find_result(&caller, id).await?;
    let tag = ETag::from_hex(&file.sha256);
    if tag.is_known_to(&headers) {
        return Ok((StatusCode::NOT_MODIFIED, file_headers(&file, &tag)).into_response());
    }
    if by_link
        && method == Method::GET
        && let Some(link) = state.services.link_result(&file, &disposition(&file.file_name)).await?
    {
        state.services.record_download(&caller, id).await?;
        let headers = [(LOCATION, link), (CACHE_CONTROL, "private, no-store".to_owned())];
        return Ok((StatusCode::FOUND, headers).into_response());
    }
    let range =
        if tag.permits_range(&headers) { wanted(&headers, file.size_bytes) } else { Wanted::Whole };
    let size = file.size_bytes;
    let (status, bytes) = match range {
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(bytes) => (StatusCode::PARTIAL_CONTENT, bytes),
        Wanted::Unsatisfiable => return Err(unsatisfiable(size)),
    };
    let mut answer = file_headers(&file, &tag);
    answer.insert(CONTENT_LENGTH, (bytes.end - bytes.start).into());
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1);
        answer.insert(CONTENT_RANGE, HeaderValue::try_from(value).expect("digits and ASCII"));
    }
    if method == Method::HEAD {
        return Ok((status, answer).into_response());
    }
    state.services.record_download(&caller, id).await?;
    let part = (status == StatusCode::PARTIAL_CONTENT).then_some(ByteRange::Bounded(bytes));
    let reading = state.services.read_result(&file, part).await?;
    let stream = reading.into_stream().map(move |piece| {
        // Moved in: the download holds its place among the requests in work to the last byte.
        let _place = &place;
        piece.inspect_err(|error| {
            // The connection is closed before the promised length, which the client notices.
            tracing::warn!(execution.id = id, %error, "a download broke off");
        })
    });
    Ok((status, answer, Body::from_stream(stream)).into_response())
}

/// Show how the file was made
#[utoipa::path(
    get,
    path = "/v1/executions/{id}/manifest",
    tag = "results",
    params(("id" = i64, Path, description = "Number of the execution.", example = 71)),
    responses((
        status = 200,
        description = "Definition, parameters, snapshot, columns, counts and digest.",
        body = Manifest,
        example = json!(manifest_example()),
    ))
)]
pub async fn show_manifest(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Response, Problem> {
    let manifest = state.services.manifest(&caller, id).await?;
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "private, no-store")];
    Ok((headers, manifest).into_response())
}

fn unsatisfiable(size: u64) -> Problem {
    let value = HeaderValue::try_from(format!("bytes */{size}")).expect("digits and ASCII");
    Problem::new(ProblemKind::RangeNotSatisfiable, format!("the file has {size} bytes"))
        .with_header(CONTENT_RANGE, value)
}

/// What describes the file, whichever part of it is sent.
fn file_headers(file: &ResultFile, tag: &ETag) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.file_type.media_type()));
    let name = HeaderValue::try_from(disposition(&file.file_name));
    headers.insert(CONTENT_DISPOSITION, name.expect("everything else was replaced"));
    headers.insert(ETAG, tag.header());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(digest) = hex::decode(&file.sha256) {
        let value = format!("sha-256=:{}:", STANDARD.encode(digest));
        headers.insert(REPR_DIGEST, HeaderValue::try_from(value).expect("base64 is ASCII"));
    }
    headers
}

/// `attachment` with the name for old readers in ASCII, and for all others as it is (RFC 6266).
fn disposition(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%') { c } else { '_' })
        .collect();
    let mut encoded = String::new();
    for byte in name.bytes() {
        // attr-char of RFC 8187.
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes all");
        }
    }
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

fn manifest_example() -> serde_json::Value {
    json!({
        "execution_id": 71,
        "attempt": 1,
        "format_of": null,
        "report": "gpa-ranking",
        "definition_version": 2,
        "definition_sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        "parameters": {"rank_within": "unit", "min_results": 30},
        "file_name": "gpa-ranking-71.csv",
        "format": "csv",
        "reader": "machine",
        "time_zone": "Africa/Harare",
        "columns": [
            {"name": "gpa", "label": "GPA", "postgres_type": "numeric", "kind": "number"}
        ],
        "row_count": 20000,
        "sheets": 1,
        "sheet_list": [
            {
                "name": "GPA ranking", "rows": 20000, "header_row": null, "columns": [
                    {"name": "gpa", "label": "GPA", "postgres_type": "numeric", "kind": "number"}
                ]
            }
        ],
        "sheets_left_out": [],
        "size_bytes": 1835008,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "truncated": null,
        "adjusted_cells": {},
        "snapshot_at": "2026-03-01T08:00:01Z",
        "snapshot_lsn": "0/1A2B3C4D",
        "started_at": "2026-03-01T08:00:01Z",
        "duration_ms": 2871,
        "worker": "worker-1",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "peak_memory_bytes": 83886080,
        "registrar_version": "0.1.0"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_sent_in_both_forms() {
        assert_eq!(
            disposition("gpa ranking \"é\".csv"),
            "attachment; filename=\"gpa_ranking____.csv\"; \
             filename*=UTF-8''gpa%20ranking%20%22%C3%A9%22.csv"
        );
    }

    proptest! {
        #[test]
        fn any_name_is_a_legal_header(name in ".{0,80}") {
            prop_assert!(HeaderValue::try_from(disposition(&name)).is_ok());
        }
    }
}
