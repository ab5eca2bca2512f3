//! Archived rows, and bringing them back.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::context;
use serde_json::{Map, json};

use super::Console;
use super::pages::{Page, of};
use super::request::{Change, Fields, Name, SignedIn, keys};
use crate::api::{Problem, read_restore};
use crate::retention::restore::Restored;
use crate::service::Permission;
use crate::service::sessions::Session;

/// The tables with archived rows.
pub async fn list(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
) -> Result<Response, Problem> {
    page(&console, &session, None).await
}

/// Brings rows back, and tells of those that stay.
pub async fn restore(
    State(console): State<Console>,
    Name(table): Name,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let (table, which) = read_restore(&table, body(&fields))?;
    let restored = console.api.services.restore_archive(&session.caller, &table, &which).await?;
    page(&console, &session, Some(restored)).await
}

/// The same body as a client of the API would send.
fn body(fields: &Fields) -> Map<String, serde_json::Value> {
    let (name, value) = match fields.get("which").unwrap_or_default() {
        "all" => ("all", json!(true)),
        "keys" => ("keys", json!(keys(fields))),
        _ => {
            let text = fields.get("run_id").unwrap_or_default().trim();
            ("run_id", text.parse::<i64>().map_or_else(|_| json!(text), |id| json!(id)))
        }
    };
    Map::from_iter([(name.to_owned(), value)])
}

async fn page(
    console: &Console,
    session: &Session,
    restored: Option<Restored>,
) -> Result<Response, Problem> {
    let archives = console.api.services.list_archives(&session.caller).await?;
    let content = context! {
        conflicts => restored.as_ref().map_or(0, Restored::conflicts),
        restored => of(restored),
        archives => of(archives),
        may_restore => session.caller.may(Permission::RetentionRun.codename()),
    };
    let page =
        Page { template: "archives.html", title: "Archives", place: "/archives", notice: None };
    Ok(console.pages.show(StatusCode::OK, session, &page, content))
}
