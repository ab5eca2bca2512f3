//! Tokens: one's own, or everybody's with the right to manage them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::{Value, context};
use serde_json::{Map, json};

use super::Console;
use super::pages::{Page, of};
use super::request::{Change, Name, Query, SignedIn};
use super::response::see_other;
use crate::api::{Problem, TokenResource, read_token};
use crate::service::Permission;
use crate::service::sessions::Session;
use crate::service::tokens::TokenFilter;

/// Tokens on a page.
const PAGE: i64 = 200;

/// The newest tokens, and the form for another.
pub async fn list(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let notice = (query.get("notice") == Some("revoked")).then_some("The token opens nothing now.");
    page(&console, &session, query.filled("user"), notice, None).await
}

/// Makes a token, read by the same rules as the API's body. It is shown this once.
pub async fn create(
    State(console): State<Console>,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let mut body = Map::new();
    body.insert("name".to_owned(), json!(fields.filled("name").unwrap_or_default()));
    if let Some(user) = fields.filled("user") {
        body.insert("user".to_owned(), json!(user));
    }
    if let Some(days) = fields.filled("expires_after_days") {
        let days = days.parse::<i32>().map_or_else(|_| json!(days), |days| json!(days));
        body.insert("expires_after_days".to_owned(), days);
    }
    let scopes: Vec<_> = fields.all("scopes").filter(|scope| !scope.is_empty()).collect();
    if !scopes.is_empty() {
        body.insert("scopes".to_owned(), json!(scopes));
    }
    let made = console.api.services.create_token(&session.caller, read_token(body)?).await?;
    let notice = "This is the only time that the token is shown.";
    page(&console, &session, None, Some(notice), Some(made.token)).await
}

/// Takes a token back.
pub async fn revoke(
    State(console): State<Console>,
    Name(prefix): Name,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    console.api.services.revoke_token(&session.caller, &prefix).await?;
    Ok(see_other("/tokens?notice=revoked"))
}

async fn page(
    console: &Console,
    session: &Session,
    username: Option<&str>,
    notice: Option<&'static str>,
    secret: Option<String>,
) -> Result<Response, Problem> {
    let (services, caller) = (&console.api.services, &session.caller);
    let filter = TokenFilter {
        username: username.map(str::to_owned),
        mine: false,
        before: None,
        limit: PAGE,
    };
    let tokens = services.list_tokens(caller, filter).await?;
    let tokens: Vec<_> = tokens.into_iter().map(|row| TokenResource::new(row, caller)).collect();
    let mine =
        Permission::ALL.map(Permission::codename).into_iter().filter(|name| caller.may(name));
    let content = context! {
        tokens => of(tokens),
        scopes => mine.collect::<Vec<_>>(),
        manages => caller.may(Permission::TokensManage.codename()),
        user => username.unwrap_or_default(),
        secret => secret.map_or(Value::from(()), Value::from),
    };
    let page = Page { template: "tokens.html", title: "Tokens", place: "/tokens", notice };
    Ok(console.pages.show(StatusCode::OK, session, &page, content))
}
