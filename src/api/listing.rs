//! Lists of executions, page by page.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderValue;
use axum::http::header::LINK;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use super::cursor;
use super::extract::Authenticated;
use super::page;
use super::problem::Problem;
use super::query::QueryReader;
use super::resources::{ExecutionResource, completed_example};
use crate::db::executions::{Filter, Status, UnknownStatus};
use crate::report::definition::Slug;
use crate::service::Caller;

/// A page of executions.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExecutionPage {
    /// Newest first; without queue position and outlook.
    pub executions: Vec<ExecutionResource>,
    /// Path of the next page; none on the last.
    pub next: Option<String>,
}

/// List executions
///
/// Newest first: your own, or everybody's with the permission to see them.
#[utoipa::path(
    get,
    path = "/v1/executions",
    tag = "executions",
    params(
        ("status" = Option<Status>, Query, description = "Only in this state."),
        ("report" = Option<String>, Query, description = "Only of the report with this slug.",
            example = "gpa-ranking"),
        ("mine" = Option<bool>, Query, description = "Only your own."),
        ("limit" = Option<i64>, Query, description = "Executions on a page; 50 if not given.",
            minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query,
            description = "From `next` of the page before, with the same filter.",
            pattern = "^01[0-9a-f]{32}$"),
    ),
    responses((
        status = 200,
        description = "A page.",
        body = ExecutionPage,
        headers(("Link" = String, description = "The next page, as `rel=\"next\"`.")),
        example = json!({"executions": [completed_example()],
            "next": "/v1/executions?limit=1&cursor=01000000000000004749d2a1b1c0ffee00"}),
    ))
)]
pub async fn list_executions(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (filter, limit) = page_query(&caller, query.as_deref())?;
    let mut executions = state.services.list_executions(&caller, filter.clone(), limit + 1).await?;
    let next =
        page::cut(&mut executions, limit).map(|last| next_page(&filter, &caller, limit, last.id));
    let executions = executions.into_iter().map(ExecutionResource::from).collect();
    let link = next.as_ref().map(|path| format!("<{path}>; rel=\"next\""));
    let mut response = Json(ExecutionPage { executions, next }).into_response();
    if let Some(link) = link {
        let value = HeaderValue::try_from(link).expect("a path of ASCII");
        response.headers_mut().insert(LINK, value);
    }
    Ok(response)
}

fn page_query(caller: &Caller, query: Option<&str>) -> Result<(Filter, i64), Problem> {
    let mut query = QueryReader::new(query);
    let states = UnknownStatus.to_string();
    let status = query.parse("status", &states);
    let slug = query.parse::<Slug>("report", "must be the slug of a report");
    let mine = query.parse("mine", "must be true or false").unwrap_or(false);
    let mut filter = Filter {
        executed_by: if mine { caller.user_id } else { None },
        status,
        slug: slug.map(|slug| slug.to_string()),
        before: None,
    };
    let limit = page::limit(&mut query);
    if let Some(text) = query.take("cursor") {
        filter.before = cursor::decode(&filter, &text);
        if filter.before.is_none() {
            query.refuse("cursor", "invalid", "must be from a page with the same filter");
        }
    }
    query.finish()?;
    Ok((filter, limit))
}

fn next_page(filter: &Filter, caller: &Caller, limit: i64, last: i64) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    if let Some(status) = filter.status {
        query.append_pair("status", status.as_str());
    }
    if let Some(slug) = &filter.slug {
        query.append_pair("report", slug);
    }
    if filter.executed_by.is_some() && filter.executed_by == caller.user_id {
        query.append_pair("mine", "true");
    }
    query.append_pair("limit", &limit.to_string());
    query.append_pair("cursor", &cursor::encode(filter, last));
    format!("/v1/executions?{}", query.finish())
}
