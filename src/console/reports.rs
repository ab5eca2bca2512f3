//! The catalogue and the form of a report.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use minijinja::{Value, context};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use super::Console;
use super::form::{self, Choice, Field};
use super::pages::{Page, of};
use super::request::{Change, Fields, Name, Query, SignedIn};
use super::response::{html, see_other};
use crate::api::{Problem, SubmissionBody, read_schedule};
use crate::service::executions::Submission;
use crate::service::reports::CatalogueEntry;
use crate::service::sessions::Session;
use crate::service::{Permission, ServiceError, Services};

/// A report in the catalogue.
#[derive(Debug, Serialize)]
pub struct Tile {
    slug: String,
    title: String,
    description: String,
    tags: Vec<String>,
}

/// The reports that the caller may run, for lists and filters.
pub async fn tiles(services: &Services, session: &Session) -> Result<Vec<Tile>, Problem> {
    let entries = services.list_reports(&session.caller).await?;
    let tile = |entry: &CatalogueEntry| Tile {
        slug: entry.definition.slug().to_string(),
        title: entry.definition.title().to_owned(),
        description: entry.definition.description().to_owned(),
        tags: entry.definition.tags().to_vec(),
    };
    Ok(entries.iter().map(tile).collect())
}

/// The catalogue.
pub async fn list(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Query(query): Query,
) -> Result<Response, Problem> {
    let q = query.get("q").unwrap_or_default().to_lowercase();
    let mut reports = tiles(&console.api.services, &session).await?;
    reports.retain(|tile| {
        let text = format!("{} {} {}", tile.title, tile.description, tile.tags.join(" "));
        q.split_whitespace().all(|word| text.to_lowercase().contains(word))
    });
    let notice = (query.get("notice") == Some("deleted")).then_some("The report is deleted.");
    let page = Page { template: "reports.html", title: "Reports", place: "/reports", notice };
    let may_manage = may_manage(&session);
    let content = context! { reports => of(reports), q, may_manage };
    Ok(console.pages.show(StatusCode::OK, &session, &page, content))
}

fn may_manage(session: &Session) -> bool {
    session.caller.may(Permission::ReportsManage.codename())
}

/// The form, filled with the defaults, or with what another execution was given.
pub async fn show(
    State(console): State<Console>,
    SignedIn(session): SignedIn,
    Name(slug): Name,
    Query(query): Query,
) -> Result<Response, Problem> {
    let services = &console.api.services;
    let entry = services.show_report(&session.caller, &slug).await?;
    let before = match query.get("from").and_then(|id| id.parse().ok()) {
        Some(id) => Some(services.follow(&session.caller, id).await?.execution),
        None => None,
    };
    let values = before.and_then(|execution| execution.parameters);
    let fields = form::fields(&schema(&entry), values.as_ref().and_then(Json::as_object));
    let given = Fields::default();
    Ok(form_page(&console, &session, &entry, fields, &given, StatusCode::OK, None))
}

/// Submits. What is refused is shown in the form.
pub async fn submit(
    State(console): State<Console>,
    Name(slug): Name,
    Change { session, fields: given }: Change,
) -> Result<Response, Problem> {
    let services = &console.api.services;
    let entry = services.show_report(&session.caller, &slug).await?;
    let submission = match submission(&entry, &given) {
        Ok(submission) => submission,
        Err(problem) => return Ok(refused(&console, &session, &entry, &given, &problem)),
    };
    match services.submit(&session.caller, &slug, &submission).await {
        Ok(submitted) => Ok(see_other(&format!("/executions/{}", submitted.execution.id))),
        Err(error) => shown(&console, &session, &entry, &given, error),
    }
}

/// What a submit would take, as a part of the page. Faults are told at the submit.
pub async fn estimate(
    State(console): State<Console>,
    Name(slug): Name,
    Change { session, fields: given }: Change,
) -> Result<Response, Problem> {
    let services = &console.api.services;
    let entry = services.show_report(&session.caller, &slug).await?;
    let submission = submission(&entry, &given)?;
    let estimate = services.estimate(&session.caller, &slug, &submission).await?;
    let part = context! {
        rows => estimate.rows,
        max_rows => estimate.max_rows,
        over => estimate.excess.is_some(),
        refused => estimate.refused,
    };
    Ok(html(StatusCode::OK, console.pages.render("estimate.html", part)))
}

/// Makes a schedule of what is filled in.
pub async fn schedule(
    State(console): State<Console>,
    Name(slug): Name,
    Change { session, fields: given }: Change,
) -> Result<Response, Problem> {
    let services = &console.api.services;
    let entry = services.show_report(&session.caller, &slug).await?;
    let order = match read_schedule(schedule_body(&entry, &given)) {
        Ok(order) => order,
        Err(problem) => return Ok(refused(&console, &session, &entry, &given, &problem)),
    };
    match services.create_schedule(&session.caller, order).await {
        Ok(_) => Ok(see_other("/schedules?notice=scheduled")),
        Err(error) => shown(&console, &session, &entry, &given, error),
    }
}

fn schema(entry: &CatalogueEntry) -> Json {
    entry.definition.json_schema_with(&entry.choices)
}

fn given_parameters(entry: &CatalogueEntry, given: &Fields) -> Map<String, Json> {
    form::parameters(&form::fields(&schema(entry), None), given)
}

/// The same body as a client of the API would send.
fn submission_body(entry: &CatalogueEntry, given: &Fields) -> Map<String, Json> {
    let mut body = text_fields(given, &[("format", "format"), ("reader", "reader")]);
    body.insert("parameters".to_owned(), Json::Object(given_parameters(entry, given)));
    body
}

fn submission(entry: &CatalogueEntry, given: &Fields) -> Result<Submission, Problem> {
    let body = submission_body(entry, given);
    // One key for a form as it is filled in: a double click runs once, a change runs again.
    let nonce = given.filled("nonce").unwrap_or_default();
    let request = format!("{nonce}\n{}", Json::Object(body.clone()));
    let key = (!nonce.is_empty()).then(|| hex::encode(Sha256::digest(request)));
    let key = key.map(|key| key.parse()).transpose()?;
    Ok(SubmissionBody::read(body)?.into_submission(key))
}

fn schedule_body(entry: &CatalogueEntry, given: &Fields) -> Map<String, Json> {
    let mut body = submission_body(entry, given);
    body.insert("report".to_owned(), json!(entry.definition.slug()));
    let named = [("schedule_name", "name"), ("cron", "cron"), ("time_zone", "time_zone")];
    body.append(&mut text_fields(given, &named));
    let mut deliver = text_fields(given, &[("webhook", "webhook"), ("copy_to", "copy_to")]);
    if let Some(mail) = given.filled("email") {
        deliver.insert("email".to_owned(), json!({ "attach": mail == "attach" }));
    }
    body.insert("deliver".to_owned(), Json::Object(deliver));
    body
}

/// What is filled in, by the names of the API's fields.
fn text_fields(given: &Fields, names: &[(&str, &str)]) -> Map<String, Json> {
    let filled = names.iter().filter_map(|(field, name)| {
        given.filled(field).map(|text| ((*name).to_owned(), json!(text)))
    });
    filled.collect()
}

/// What people can mend is shown in the form, the rest as a page of its own.
fn shown(
    console: &Console,
    session: &Session,
    entry: &CatalogueEntry,
    given: &Fields,
    error: ServiceError,
) -> Result<Response, Problem> {
    let problem = Problem::from(error);
    if problem.kind().status().is_client_error() && problem.kind().status() != StatusCode::NOT_FOUND
    {
        return Ok(refused(console, session, entry, given, &problem));
    }
    Err(problem)
}

fn refused(
    console: &Console,
    session: &Session,
    entry: &CatalogueEntry,
    given: &Fields,
    problem: &Problem,
) -> Response {
    let values = given_parameters(entry, given);
    let mut fields = form::fields(&schema(entry), Some(&values));
    let fault = form::note_faults(&mut fields, problem);
    form_page(console, session, entry, fields, given, problem.kind().status(), fault)
}

fn form_page(
    console: &Console,
    session: &Session,
    entry: &CatalogueEntry,
    fields: Vec<Field>,
    given: &Fields,
    status: StatusCode,
    fault: Option<String>,
) -> Response {
    let title = entry.definition.title();
    let page = Page { template: "report.html", title, place: "/reports", notice: None };
    let content = context! {
        slug => entry.definition.slug().as_str(),
        description => entry.definition.description(),
        fields => of(fields),
        fault,
        formats => formats(),
        format => given.filled("format").unwrap_or("csv"),
        reader => given.filled("reader").unwrap_or("spreadsheet"),
        schedule => context! {
            name => given.get("schedule_name").unwrap_or_default(),
            cron => given.get("cron").unwrap_or_default(),
            time_zone => given.filled("time_zone").unwrap_or(entry.definition.time_zone().name()),
            email => given.get("email").unwrap_or_default(),
            webhook => given.get("webhook").unwrap_or_default(),
            copy_to => given.get("copy_to").unwrap_or_default(),
            is_open => given.get("schedule_name").is_some_and(|name| !name.is_empty()),
        },
        may_manage => may_manage(session),
        nonce => uuid::Uuid::new_v4().simple().to_string(),
    };
    console.pages.show(status, session, &page, content)
}

/// Formats, as people call them.
pub fn formats() -> Value {
    of([
        Choice::new("csv", "CSV"),
        Choice::new("xlsx", "Excel workbook"),
        Choice::new("parquet", "Parquet"),
        Choice::new("ndjson", "NDJSON"),
    ])
}
