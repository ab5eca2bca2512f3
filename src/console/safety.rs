//! Holds, erasures and backups.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::context;
use serde_json::{Map, json};

use super::Console;
use super::overview::sizes;
use super::pages::{Page, of};
use super::request::{Change, Name, Number, Query, SignedIn, keys};
use super::response::see_other;
use crate::api::{HoldResource, Problem, ProblemKind, read_hold};
use crate::db::erasures::{Erasure, Status};
use crate::db::holds::HoldFilter;
use crate::service::{Permission, ServiceError};

/// Rows on a page.
const PAGE: i64 = 200;

/// Holds, newest first.
pub async fn holds(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let filter = HoldFilter { in_force: None, table_name: None, before: None };
    let holds = console.api.services.list_holds(&session.caller, filter, PAGE).await?;
    let holds: Vec<_> = holds.into_iter().map(HoldResource::from).collect();
    let may_manage = session.caller.may(Permission::HoldsManage.codename());
    let notice = match query.get("notice") {
        Some("placed") => Some("The hold is in force."),
        Some("released") => Some("The hold is released."),
        _ => None,
    };
    let page = Page { template: "holds.html", title: "Holds", place: "/holds", notice };
    let content = context! { holds => of(holds), may_manage };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

/// Places a hold, read by the same rules as the API's body.
pub async fn place_hold(
    State(console): State<Console>,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let mut body = Map::new();
    let scope = fields.filled("scope").unwrap_or_default();
    for name in ["scope", "table", "reason"] {
        if let Some(text) = fields.filled(name) {
            body.insert(name.to_owned(), json!(text));
        }
    }
    match scope {
        "rows" | "subject" => {
            body.insert("keys".to_owned(), json!(keys(&fields)));
        }
        "query" => {
            body.insert("where".to_owned(), json!(fields.get("where").unwrap_or_default()));
        }
        _ => {}
    }
    if let Some(day) = fields.filled("until") {
        body.insert("until".to_owned(), json!(format!("{day}T00:00:00Z")));
    }
    let (placement, reason, until) = read_hold(body)?;
    console.api.services.place_hold(&session.caller, placement, &reason, until).await?;
    Ok(see_other("/holds?notice=placed"))
}

/// Releases a hold.
pub async fn release_hold(
    State(console): State<Console>,
    Number(id): Number,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let reason = fields.get("reason").unwrap_or_default().parse().map_err(|error| {
        ServiceError::BadField { field: "/reason", expected: format!("{error}") }
    })?;
    console.api.services.release_hold(&session.caller, id, &reason).await?;
    Ok(see_other("/holds?notice=released"))
}

/// Erasures, newest first.
pub async fn erasures(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let erasures = console.api.services.list_erasures(&session.caller, None, None, PAGE).await?;
    let shown = |e: &Erasure| {
        context! {
            can_cancel => matches!(e.status, Status::Waiting),
            ..of(e)
        }
    };
    let notice = match query.get("notice") {
        Some("requested") => Some("The account is closed; the rest follows after the grace."),
        Some("cancelled") => Some("The erasure is called back."),
        _ => None,
    };
    let page = Page { template: "erasures.html", title: "Erasures", place: "/erasures", notice };
    let erasures: Vec<_> = erasures.iter().map(shown).collect();
    Ok(console.pages.show(StatusCode::OK, &session, &page, context! { erasures }))
}

/// Requests an erasure.
pub async fn request_erasure(
    State(console): State<Console>,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let subject = fields.filled("subject_id").unwrap_or_default();
    console.api.services.request_erasure(&session.caller, None, subject).await?;
    Ok(see_other("/erasures?notice=requested"))
}

/// Calls an erasure back.
pub async fn cancel_erasure(
    State(console): State<Console>,
    Number(id): Number,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    console.api.services.cancel_erasure(&session.caller, id).await?;
    Ok(see_other("/erasures?notice=cancelled"))
}

/// Backups, newest first.
pub async fn backups(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let backups = console.api.services.show_backups(&session.caller).await?.backups;
    let notice = (query.get("notice") == Some("asked")).then_some("A worker will prove it.");
    let page = Page { template: "backups.html", title: "Backups", place: "/backups", notice };
    let content = context! {
        may_verify => session.caller.may(Permission::BackupsVerify.codename()),
        sizes => sizes(&backups),
        backups => of(backups),
    };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

/// Asks for a proof.
pub async fn verify_backup(
    State(console): State<Console>,
    Name(id): Name,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    let id =
        id.parse().map_err(|_| Problem::new(ProblemKind::NotFound, "there is no such backup"))?;
    console.api.services.request_verification(&session.caller, &id).await?;
    Ok(see_other("/backups?notice=asked"))
}
