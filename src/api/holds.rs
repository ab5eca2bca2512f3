//! Legal holds: `/v1/holds`.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::extract::{Authenticated, ExecutionId, JsonObject};
use super::page;
use super::problem::{FieldError, Problem};
use super::query::{NoQuery, QueryReader};
use super::submission::{field, pointer};
use crate::db::holds::{HoldFilter, HoldRow};
use crate::policy::Condition;
use crate::retention::hold::Placement;
use crate::retention::sql::TableName;
use crate::service::holds::Reason;

/// What a hold is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoldScope {
    /// Rows by key.
    Rows,
    /// A person, with every row that is theirs.
    Subject,
    /// All rows of a table.
    Table,
    /// The rows for which a condition is true.
    Query,
}

const SCOPES: &str = "must be `rows`, `subject`, `table` or `query`";
const KEYS: &str = "must be an array of arrays of texts, one text for each column of the key";

/// A hold to place.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub struct HoldBody {
    /// What it is over.
    scope: HoldScope,
    /// The table; for a subject, that of people.
    table: String,
    /// For rows and for a subject: primary keys, each with a text for each column.
    keys: Option<Vec<Vec<String>>>,
    /// For a query: a condition in SQL over the table's columns.
    r#where: Option<String>,
    /// Why.
    reason: String,
    /// When it ends by itself.
    until: Option<DateTime<Utc>>,
}

/// What a hold is released with.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub struct ReleaseBody {
    /// Why.
    reason: String,
}

/// A hold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hold)]
pub struct HoldResource {
    /// Its number.
    pub id: i64,
    /// `rows`, `subject`, `table` or `query`.
    pub scope: String,
    /// The table.
    pub table: String,
    /// Columns of the keys.
    pub key_columns: Option<Vec<String>>,
    /// Which rows, or who.
    #[schema(value_type = Option<Vec<Vec<String>>>)]
    pub keys: Option<Value>,
    /// The condition.
    pub r#where: Option<String>,
    /// Why.
    pub reason: String,
    /// Whether it is in force.
    pub in_force: bool,
    /// The account that placed it; none for the operator.
    pub placed_by: Option<i32>,
    /// When.
    pub placed_at: DateTime<Utc>,
    /// When it ends by itself.
    pub until: Option<DateTime<Utc>>,
    /// The account that released it.
    pub released_by: Option<i32>,
    /// When.
    pub released_at: Option<DateTime<Utc>>,
    /// Why.
    pub release_reason: Option<String>,
    /// Its path.
    #[serde(rename = "self")]
    pub itself: String,
}

/// A page of holds.
#[derive(Debug, Serialize, ToSchema)]
pub struct HoldPage {
    /// Newest first.
    pub holds: Vec<HoldResource>,
    /// Path of the next page; none on the last.
    pub next: Option<String>,
}

impl From<HoldRow> for HoldResource {
    fn from(row: HoldRow) -> Self {
        Self {
            id: row.id,
            scope: row.scope,
            table: row.table_name,
            key_columns: row.key_columns,
            keys: row.keys,
            r#where: row.condition,
            reason: row.reason,
            in_force: row.in_force,
            placed_by: row.placed_by,
            placed_at: row.placed_at,
            until: row.until,
            released_by: row.released_by,
            released_at: row.released_at,
            release_reason: row.release_reason,
            itself: format!("/v1/holds/{}", row.id),
        }
    }
}

/// Place a hold
///
/// From the moment of the answer on, no lifecycle run archives, anonymizes or deletes the rows,
/// live or archived.
#[utoipa::path(
    post,
    path = "/v1/holds",
    tag = "lifecycle",
    request_body(
        content = HoldBody,
        example = json!({"scope": "subject", "table": "users", "keys": [["1042"]],
                         "reason": "Appeal 2026/17", "until": "2027-12-31T00:00:00Z"}),
    ),
    responses((
        status = 201,
        description = "In force.",
        body = HoldResource,
        headers(("Location" = String, description = "Path of the hold.")),
        example = json!(hold_example()),
    ))
)]
pub async fn place_hold(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let (placement, reason, until) = read_hold(object)?;
    let row = state.services.place_hold(&caller, placement, &reason, until).await?;
    let hold = HoldResource::from(row);
    let location = HeaderValue::try_from(hold.itself.as_str()).expect("a path of ASCII");
    let mut response = (StatusCode::CREATED, Json(hold)).into_response();
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// List holds
#[utoipa::path(
    get,
    path = "/v1/holds",
    tag = "lifecycle",
    params(
        ("in_force" = Option<bool>, Query, description = "Only those in force, or only others."),
        ("table" = Option<String>, Query, description = "Only those of this table.",
            pattern = r"^[^.\u0000]+(\.[^.\u0000]+)?$"),
        ("limit" = Option<i64>, Query, description = "Holds on a page; 50 if not given.",
            minimum = 1, maximum = 200),
        ("cursor" = Option<i64>, Query, description = "From `next` of the page before."),
    ),
    responses((
        status = 200,
        description = "A page, newest first.",
        body = HoldPage,
        example = json!({"holds": [hold_example()], "next": null}),
    ))
)]
pub async fn list_holds(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    RawQuery(query): RawQuery,
) -> Result<Json<HoldPage>, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let in_force: Option<bool> = query.parse("in_force", "must be true or false");
    let table: Option<TableName> = query.parse("table", "must be the name of a table");
    let before: Option<i64> = query.parse("cursor", "must be from a page before");
    let limit = page::limit(&mut query);
    query.finish()?;
    let table = table.map(|table| table.plain());
    let filter = HoldFilter { in_force, table_name: table.as_deref(), before };
    let mut rows = state.services.list_holds(&caller, filter, limit + 1).await?;
    let next = page::cut(&mut rows, limit)
        .map(|last| next_page(in_force, table.as_deref(), limit, last.id));
    Ok(Json(HoldPage { holds: rows.into_iter().map(HoldResource::from).collect(), next }))
}

/// Show a hold
#[utoipa::path(
    get,
    path = "/v1/holds/{id}",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the hold.", example = 3)),
    responses((
        status = 200,
        description = "The hold.",
        body = HoldResource,
        example = json!(hold_example()),
    ))
)]
pub async fn show_hold(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
) -> Result<Json<HoldResource>, Problem> {
    Ok(Json(state.services.find_hold(&caller, id).await?.into()))
}

/// Release a hold
///
/// What it kept can go with the next run; erasures that waited for it go on. The hold itself stays
/// on record.
#[utoipa::path(
    post,
    path = "/v1/holds/{id}/release",
    tag = "lifecycle",
    params(("id" = i64, Path, description = "Number of the hold.", example = 3)),
    request_body(content = ReleaseBody, example = json!({"reason": "The appeal was decided"})),
    responses((
        status = 200,
        description = "Released.",
        body = HoldResource,
        example = json!(released_example()),
    ))
)]
pub async fn release_hold(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ExecutionId(id): ExecutionId,
    _: NoQuery,
    JsonObject(mut object): JsonObject,
) -> Result<Json<HoldResource>, Problem> {
    let mut errors = Vec::new();
    let reason = read_reason(&mut object, &mut errors);
    let reason = finish(&object, errors, reason)?;
    Ok(Json(state.services.release_hold(&caller, id, &reason).await?.into()))
}

/// A hold to be placed, why, and until when.
pub type NewHold = (Placement, Reason, Option<DateTime<Utc>>);

/// Reads a hold field by field, so that every fault is told at once.
///
/// # Errors
/// A [`Problem`] with a pointer to each field that is missing, unknown or wrong.
pub fn read_hold(mut object: Map<String, Value>) -> Result<NewHold, Problem> {
    let mut errors = Vec::new();
    let scope: Option<HoldScope> = required(&mut object, "scope", SCOPES, &mut errors);
    let table: Option<String> =
        required(&mut object, "table", "must be the name of a table", &mut errors);
    let table = table.and_then(|text| parsed::<TableName>(&text, "table", &mut errors));
    let reason = read_reason(&mut object, &mut errors);
    let instant = "must be an instant like 2027-12-31T00:00:00Z, or null";
    let until: Option<Option<DateTime<Utc>>> = field(&mut object, "until", instant, &mut errors);
    let placement = match scope {
        Some(HoldScope::Rows) => required(&mut object, "keys", KEYS, &mut errors)
            .zip(table)
            .map(|(keys, table)| Placement::Rows { table, keys }),
        Some(HoldScope::Subject) => read_person(&mut object, &mut errors)
            .zip(table)
            .map(|(key, table)| Placement::Subject { table, key }),
        Some(HoldScope::Table) => table.map(|table| Placement::Table { table }),
        Some(HoldScope::Query) => {
            let text: Option<String> =
                required(&mut object, "where", "must be a condition in SQL", &mut errors);
            text.and_then(|text| parsed::<Condition>(&text, "where", &mut errors))
                .zip(table)
                .map(|(condition, table)| Placement::Query { table, condition })
        }
        None => None,
    };
    // Of a hold without a scope, nobody can say what it may have.
    if scope.is_none() {
        object.retain(|name, _| !["keys", "where"].contains(&name.as_str()));
    }
    finish(&object, errors, placement.zip(reason))
        .map(|(placement, reason)| (placement, reason, until.flatten()))
}

fn read_person(
    object: &mut Map<String, Value>,
    errors: &mut Vec<FieldError>,
) -> Option<Vec<String>> {
    let keys: Vec<Vec<String>> = required(object, "keys", KEYS, errors)?;
    let one = <[Vec<String>; 1]>::try_from(keys).ok();
    if one.is_none() {
        errors.push(FieldError::at("/keys", "invalid", "must be the key of one person"));
    }
    one.map(|[key]| key)
}

fn read_reason(object: &mut Map<String, Value>, errors: &mut Vec<FieldError>) -> Option<Reason> {
    let text: Option<String> = required(object, "reason", "must be a text", errors);
    parsed(&text?, "reason", errors)
}

fn required<T: serde::de::DeserializeOwned>(
    object: &mut Map<String, Value>,
    name: &'static str,
    expected: &str,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    if !object.contains_key(name) {
        errors.push(FieldError::at(pointer(name), "missing", expected));
    }
    field(object, name, expected, errors)
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
    name: &'static str,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    text.parse()
        .map_err(|error: T::Err| {
            errors.push(FieldError::at(pointer(name), "invalid", error.to_string()));
        })
        .ok()
}

fn finish<T>(
    rest: &Map<String, Value>,
    mut errors: Vec<FieldError>,
    read: Option<T>,
) -> Result<T, Problem> {
    errors.extend(
        rest.keys()
            .map(|name| FieldError::at(pointer(name), "unknown", "there is no such field here")),
    );
    match read {
        Some(read) if errors.is_empty() => Ok(read),
        _ => Err(Problem::with_errors(ProblemKind::InvalidInput, errors)),
    }
}

fn next_page(in_force: Option<bool>, table: Option<&str>, limit: i64, last: i64) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    if let Some(in_force) = in_force {
        query.append_pair("in_force", if in_force { "true" } else { "false" });
    }
    if let Some(table) = table {
        query.append_pair("table", table);
    }
    query.append_pair("limit", &limit.to_string());
    query.append_pair("cursor", &last.to_string());
    format!("/v1/holds?{}", query.finish())
}

fn hold_example() -> Value {
    json!({
        "id": 3,
        "scope": "subject",
        "table": "users",
        "key_columns": ["id"],
        "keys": [["1042"]],
        "where": null,
        "reason": "Appeal 2026/17",
        "in_force": true,
        "placed_by": 3,
        "placed_at": "2026-11-22T09:30:00Z",
        "until": "2027-12-31T00:00:00Z",
        "released_by": null,
        "released_at": null,
        "release_reason": null,
        "self": "/v1/holds/3"
    })
}

fn released_example() -> Value {
    let mut hold = hold_example();
    hold["in_force"] = json!(false);
    hold["released_by"] = json!(3);
    hold["released_at"] = json!("2027-02-01T08:00:00Z");
    hold["release_reason"] = json!("The appeal was decided");
    hold
}
