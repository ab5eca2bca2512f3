//! Style, script and icon: inside the program, with a tag each.

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::api::{ETag, Problem, ProblemKind};

struct Asset {
    name: &'static str,
    media_type: &'static str,
    content: &'static str,
}

const ASSETS: [Asset; 3] = [
    Asset {
        name: "console.css",
        media_type: "text/css; charset=utf-8",
        content: include_str!("assets/console.css"),
    },
    Asset {
        name: "console.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_str!("assets/console.js"),
    },
    Asset {
        name: "icon.svg",
        media_type: "image/svg+xml",
        content: include_str!("assets/icon.svg"),
    },
];

/// Changes with any asset: pages name it, so that a browser never mixes two versions.
pub fn version() -> String {
    let mut hash = Sha256::new();
    for asset in &ASSETS {
        hash.update(asset.content);
    }
    hex::encode(&hash.finalize()[..6])
}

/// One of the files.
pub async fn serve(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let asset =
        asset.ok_or_else(|| Problem::new(ProblemKind::NotFound, "there is no such file"))?;
    let tag = ETag::of(asset.content.as_bytes());
    let common = [
        (ETAG, tag.header()),
        (CACHE_CONTROL, "public, max-age=3600".parse().expect("ASCII")),
        (CONTENT_TYPE, asset.media_type.parse().expect("ASCII")),
    ];
    if tag.is_known_to(&headers) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    Ok((common, asset.content).into_response())
}
