//! Reports that are kept over the API: their definitions, for those who may change them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::context;
use serde_json::{Map, Value as Json, json};

use super::Console;
use super::pages::Page;
use super::request::{Change, Name, Query, SignedIn};
use super::response::see_other;
use crate::api::{NewReport, Problem, ProblemKind, definition_body, read_report};
use crate::service::Permission;
use crate::service::sessions::Session;

/// The definition of a report, as the API takes it.
pub async fn show(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Name(slug): Name,
    Query(query): Query,
) -> Result<Response, Problem> {
    // To others a report is shown without its definition, here as by the API.
    session.caller.require(Permission::ReportsManage)?;
    let entry = console.api.services.show_report(&session.caller, &slug).await?;
    let text = pretty(&definition_body(&entry.definition));
    let notice = (query.get("notice") == Some("stored")).then_some("The report is stored.");
    Ok(form(&console, &session, &slug, &text, None, notice, StatusCode::OK))
}

/// Makes a report of a title and a query.
pub async fn create(
    State(console): State<Console>,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    let slug = fields.get("slug").unwrap_or_default().trim();
    let body = json!({
        "title": fields.get("title").unwrap_or_default().trim(),
        "query": fields.get("query").unwrap_or_default(),
    });
    store(&console, &session, slug, &pretty(&body)).await
}

/// Stores a definition.
pub async fn change(
    State(console): State<Console>,
    Name(slug): Name,
    Change { session, fields }: Change,
) -> Result<Response, Problem> {
    store(&console, &session, &slug, fields.get("definition").unwrap_or_default()).await
}

/// Takes a report out of the catalogue.
pub async fn delete(
    State(console): State<Console>,
    Name(slug): Name,
    Change { session, fields: _ }: Change,
) -> Result<Response, Problem> {
    console.api.services.delete_report(&session.caller, &slug).await?;
    Ok(see_other("/reports?notice=deleted"))
}

/// What is refused is told above the text, which stays as it is.
async fn store(
    console: &Console,
    session: &Session,
    slug: &str,
    text: &str,
) -> Result<Response, Problem> {
    // Before what is wrong with the text is told.
    session.caller.require(Permission::ReportsManage)?;
    let stored = match parse(slug, text) {
        Ok(NewReport { slug, spec, query }) => {
            let services = &console.api.services;
            services.put_report(&session.caller, slug, &spec, &query).await.map_err(Problem::from)
        }
        Err(problem) => Err(problem),
    };
    match stored {
        Ok((entry, _)) => {
            let slug = entry.definition.slug();
            Ok(see_other(&format!("/reports/{slug}/definition?notice=stored")))
        }
        Err(problem) if problem.kind().status().is_client_error() => {
            let status = problem.kind().status();
            Ok(form(console, session, slug, text, Some(&problem), None, status))
        }
        Err(problem) => Err(problem),
    }
}

fn parse(slug: &str, text: &str) -> Result<NewReport, Problem> {
    let object: Map<String, Json> = serde_json::from_str(text).map_err(|_| {
        Problem::new(ProblemKind::InvalidInput, "the definition must be a JSON object")
    })?;
    read_report(slug, object)
}

fn pretty(body: &Json) -> String {
    serde_json::to_string_pretty(body).unwrap_or_default()
}

fn form(
    console: &Console,
    session: &Session,
    slug: &str,
    text: &str,
    problem: Option<&Problem>,
    notice: Option<&'static str>,
    status: StatusCode,
) -> Response {
    let faults = problem.map(|problem| {
        let told = problem.errors().iter().map(|error| match error.pointer.as_deref() {
            Some(pointer) if !pointer.is_empty() => format!("{pointer}: {}", error.message),
            _ => error.message.clone(),
        });
        let told: Vec<_> = told.collect();
        if told.is_empty() { vec![problem.detail().to_owned()] } else { told }
    });
    let title = format!("Definition of {slug}");
    let page = Page { template: "definition.html", title: &title, place: "/reports", notice };
    console.pages.show(status, session, &page, context! { slug, text, faults })
}
