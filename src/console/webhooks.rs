//! Webhooks, and what became of the messages to them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::{Value, context};
use serde_json::{Map, json};

use super::Console;
use super::pages::{Page, of};
use super::request::{Action, Change, Name, Query, SignedIn};
use super::response::see_other;
use crate::api::{Problem, ProblemKind, read_webhook};
use crate::service::sessions::Session;
use crate::service::webhooks::{DeliveryFilter, EventType, WebhookWithSecret};

/// Deliveries on a page.
const PAGE: i64 = 50;

/// Every webhook, and the form for another.
pub async fn list(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let webhooks = console.api.services.list_webhooks(&session.caller).await?;
    let notice = (query.get("notice") == Some("deleted")).then_some("The webhook is deleted.");
    let content = context! {
        webhooks => of(webhooks),
        events => EventType::ALL.map(EventType::as_str).to_vec(),
    };
    let page = Page { template: "webhooks.html", title: "Webhooks", place: "/webhooks", notice };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

/// Makes a webhook, read by the same rules as the API's body. Its secret is shown this once.
pub async fn create(
    State(console): State<Console>,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let mut body = Map::new();
    for name in ["name", "url"] {
        body.insert(name.to_owned(), json!(fields.filled(name).unwrap_or_default()));
    }
    body.insert("events".to_owned(), json!(fields.all("events").collect::<Vec<_>>()));
    let (name, order) = read_webhook(body)?;
    let made = console.api.services.create_webhook(&session.caller, &name, order).await?;
    with_secret(&console, &session, made).await
}

/// A webhook with its latest deliveries.
pub async fn show(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Name(name): Name,
    Query(query): Query,
) -> Result<Response, Problem> {
    let notice = match query.get("notice") {
        Some("ping") => Some("A message to try it out is on its way."),
        Some("replay") => Some("It is sent again."),
        Some("enable" | "disable") => Some("The webhook is changed."),
        _ => None,
    };
    page(&console, &session, &name, notice, None).await
}

/// Tries it out, disables, enables, deletes, makes a new secret, or sends again what failed.
pub async fn change(
    State(console): State<Console>,
    Action(name, verb): Action,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    match verb.as_str() {
        "ping" => drop(services.ping_webhook(caller, &name).await?),
        "disable" => drop(services.disable_webhook(caller, &name).await?),
        "enable" => drop(services.enable_webhook(caller, &name).await?),
        "replay" => {
            // 0, which nothing has, for other text: a slip must not send everything again.
            let one = fields.filled("delivery").map(|text| text.parse().unwrap_or(0));
            services.replay_deliveries(caller, &name, one).await?;
        }
        "delete" => {
            services.delete_webhook(caller, &name).await?;
            return Ok(see_other("/webhooks?notice=deleted"));
        }
        "secret" => {
            let made = services.rotate_webhook_secret(caller, &name).await?;
            return with_secret(&console, &session, made).await;
        }
        _ => return Err(Problem::new(ProblemKind::NotFound, "there is no such action")),
    }
    // It was found by this name, so it is one: small letters, digits and hyphens.
    Ok(see_other(&format!("/webhooks/{name}?notice={verb}")))
}

async fn with_secret(
    console: &Console,
    session: &Session,
    made: WebhookWithSecret,
) -> Result<Response, Problem> {
    let WebhookWithSecret { webhook, secret } = made;
    let notice = "This is the only time that the secret is shown.";
    page(console, session, &webhook.name, Some(notice), Some(secret)).await
}

async fn page(
    console: &Console,
    session: &Session,
    name: &str,
    notice: Option<&'static str>,
    secret: Option<String>,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    let webhook = services.show_webhook(caller, name).await?;
    let filter = DeliveryFilter { limit: PAGE, ..DeliveryFilter::default() };
    let deliveries = services.list_deliveries(caller, name, filter).await?;
    let title = webhook.name.clone();
    let content = context! {
        w => of(webhook),
        deliveries => of(deliveries),
        secret => secret.map_or(Value::from(()), Value::from),
    };
    let page = Page { template: "webhook.html", title: &title, place: "/webhooks", notice };
    Ok(console.pages.show(StatusCode::OK, session, &page, content))
}
