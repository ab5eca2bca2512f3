//! Tokens: who may call, with which rights, and until when.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::extract::{Authenticated, JsonObject, PathText};
use super::page;
use super::problem::{FieldError, Problem};
use super::query::{NoQuery, QueryReader};
use super::submission::{field, pointer, required};
use crate::db::tokens::TokenRow;
use crate::service::Caller;
use crate::service::tokens::{TokenFilter, TokenOrder};

/// A token to be made.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub struct TokenBody {
    /// What it is for.
    #[schema(max_length = 100)]
    name: String,
    /// Username of the owner, with `tokens.manage`; you, where it is not given.
    #[schema(required = false)]
    user: Option<String>,
    /// Permissions that it is limited to, each of which you have yourself; all that the owner has,
    /// where they are not given.
    #[schema(required = false, max_items = 50)]
    scopes: Option<Vec<String>>,
    /// Days until it expires. Without `tokens.manage` it does not outlive the token that you use.
    #[schema(required = false, minimum = 1, maximum = 3650)]
    expires_after_days: Option<i32>,
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Token)]
pub struct TokenResource {
    /// Its visible beginning, which names it.
    pub prefix: String,
    /// Username of the owner.
    pub user: String,
    /// What it is for.
    pub name: String,
    /// Permissions that it is limited to; null for all that the owner has.
    pub scopes: Option<Vec<String>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends; null for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was used last, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was taken back.
    pub revoked_at: Option<DateTime<Utc>>,
    /// Whether it opens anything now: neither ended nor taken back, and its owner active.
    pub valid: bool,
    /// Whether it is the one that this request came with.
    pub current: bool,
    /// `rgs_…`: only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Its path.
    #[serde(rename = "self")]
    pub itself: String,
}

/// A page of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenPage {
    /// Newest first.
    pub tokens: Vec<TokenResource>,
    /// Path of the next page; none on the last.
    pub next: Option<String>,
}

impl TokenResource {
    /// As the caller sees it.
    pub fn new(row: TokenRow, caller: &Caller) -> Self {
        let TokenRow {
            id,
            username,
            name,
            prefix,
            scopes,
            created_at,
            expires_at,
            last_used_at,
            revoked_at,
            is_valid,
        } = row;
        Self {
            itself: format!("/v1/tokens/{prefix}"),
            prefix,
            user: username,
            name,
            scopes,
            created_at,
            expires_at,
            last_used_at,
            revoked_at,
            valid: is_valid,
            current: caller.token_id == Some(id),
            token: None,
        }
    }
}

/// Make a token
///
/// For you, or with `tokens.manage` for others. The answer holds it: it can be read this once. It
/// can never do more than you can.
#[utoipa::path(
    post,
    path = "/v1/tokens",
    tag = "tokens",
    request_body(
        content = TokenBody,
        example = json!({"name": "nightly job", "scopes": ["reports.run"],
                         "expires_after_days": 90}),
    ),
    responses((
        status = 201,
        description = "Stored, as a hash.",
        body = TokenResource,
        headers(("Location" = String, description = "Path of the token.")),
        example = json!(made_example()),
    ))
)]
pub async fn create_token(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let order = read(object)?;
    let made = state.services.create_token(&caller, order).await?;
    let token = TokenResource { token: Some(made.token), ..TokenResource::new(made.row, &caller) };
    let location = HeaderValue::try_from(token.itself.as_str()).expect("a path of ASCII");
    let mut response = (StatusCode::CREATED, Json(token)).into_response();
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// List tokens
///
/// Yours; with `tokens.manage` everybody's. With a token that has scopes, only that one.
#[utoipa::path(
    get,
    path = "/v1/tokens",
    tag = "tokens",
    params(
        ("user" = Option<String>, Query, description = "Only of this user."),
        ("mine" = Option<bool>, Query, description = "Only yours."),
        ("limit" = Option<i64>, Query, description = "Tokens on a page; 50 if not given.",
            minimum = 1, maximum = 200),
        ("cursor" = Option<i64>, Query, description = "From `next` of the page before."),
    ),
    responses((
        status = 200,
        description = "A page, newest first.",
        body = TokenPage,
        example = json!({"tokens": [token_example()], "next": null}),
    ))
)]
pub async fn list_tokens(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    RawQuery(query): RawQuery,
) -> Result<Json<TokenPage>, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let username = query.take("user");
    let mine = query.parse("mine", "must be true or false").unwrap_or(false);
    let before: Option<i64> = query.parse("cursor", "must be from `next` of the page before");
    let limit = page::limit(&mut query);
    query.finish()?;
    let filter = TokenFilter { username: username.clone(), mine, before, limit: limit + 1 };
    let mut found = state.services.list_tokens(&caller, filter).await?;
    let next = page::cut(&mut found, limit).map(|last| {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &limit.to_string());
        query.append_pair("cursor", &last.id.to_string());
        if mine {
            query.append_pair("mine", "true");
        }
        if let Some(username) = &username {
            query.append_pair("user", username);
        }
        format!("/v1/tokens?{}", query.finish())
    });
    let tokens = found.into_iter().map(|row| TokenResource::new(row, &caller)).collect();
    Ok(Json(TokenPage { tokens, next }))
}

/// Show a token
#[utoipa::path(
    get,
    path = "/v1/tokens/{prefix}",
    tag = "tokens",
    params(("prefix" = String, Path, description = "Its visible beginning.", example = "rgs_1a2b3c4d")),
    responses((
        status = 200,
        description = "The token.",
        body = TokenResource,
        example = json!(token_example()),
    ))
)]
pub async fn show_token(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(prefix): PathText,
    _: NoQuery,
) -> Result<Json<TokenResource>, Problem> {
    let row = state.services.show_token(&caller, &prefix).await?;
    Ok(Json(TokenResource::new(row, &caller)))
}

/// Take a token back
///
/// At once; the one that you use too. The answer is the token as it is now.
#[utoipa::path(
    delete,
    path = "/v1/tokens/{prefix}",
    tag = "tokens",
    params(("prefix" = String, Path, description = "Its visible beginning.", example = "rgs_1a2b3c4d")),
    responses((
        status = 200,
        description = "It opens nothing any more.",
        body = TokenResource,
        example = json!(revoked_example()),
    ))
)]
pub async fn revoke_token(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    PathText(prefix): PathText,
    _: NoQuery,
) -> Result<Json<TokenResource>, Problem> {
    let row = state.services.revoke_token(&caller, &prefix).await?;
    Ok(Json(TokenResource::new(row, &caller)))
}

/// Reads a token to be made.
///
/// # Errors
/// A [`Problem`] with a pointer to each field that is missing, unknown or wrong.
pub fn read(mut object: Map<String, Value>) -> Result<TokenOrder, Problem> {
    const LIST: &str = "must be a list of permissions, or null";
    const DAYS: &str = "must be a whole number of days, or null";
    let mut errors = Vec::new();
    let name = required(&mut object, "name", "must be text", &mut errors);
    let owner: Option<Option<String>> =
        field(&mut object, "user", "must be a username, or null", &mut errors);
    let scopes: Option<Option<Vec<String>>> = field(&mut object, "scopes", LIST, &mut errors);
    let days: Option<Option<i32>> = field(&mut object, "expires_after_days", DAYS, &mut errors);
    let unknown =
        |name: &String| FieldError::at(pointer(name), "unknown", "a token has no such field");
    errors.extend(object.keys().map(unknown));
    match (name, errors.is_empty()) {
        (Some(name), true) => Ok(TokenOrder {
            owner: owner.flatten(),
            name,
            scopes: scopes.flatten(),
            expires_after_days: days.flatten(),
        }),
        _ => Err(Problem::with_errors(ProblemKind::InvalidInput, errors)),
    }
}

fn token_example() -> Value {
    json!({
        "prefix": "rgs_1a2b3c4d", "user": "ana", "name": "nightly job",
        "scopes": ["reports.run"], "created_at": "2026-03-02T07:12:44.120531Z",
        "expires_at": "2026-05-31T07:12:44.120531Z",
        "last_used_at": "2026-03-03T01:00:02.004711Z", "revoked_at": null, "valid": true,
        "current": false, "self": "/v1/tokens/rgs_1a2b3c4d",
    })
}

fn made_example() -> Value {
    let mut example = token_example();
    example["last_used_at"] = Value::Null;
    example["token"] = json!("rgs_1a2b3c4d…");
    example
}

fn revoked_example() -> Value {
    let mut example = token_example();
    example["revoked_at"] = json!("2026-03-04T09:30:00.500000Z");
    example["valid"] = json!(false);
    example
}
