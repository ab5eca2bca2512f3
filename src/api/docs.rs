//! The OpenAPI document, and the page that people read: made from it, and from nothing else.

use std::fmt::Write;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::Value;
use utoipa::openapi::OpenApi;

use super::ApiState;
use super::error::ProblemKind;
use super::problem::Problem;

/// Nothing is loaded from anywhere: the page works offline, and can leak nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
const STYLE: &str = include_str!("docs.css");

/// Both documents, made once.
#[derive(Debug)]
pub struct Documents {
    openapi: Bytes,
    page: Bytes,
}

impl Documents {
    /// Renders both.
    pub fn new(openapi: &OpenApi) -> Self {
        let document = serde_json::to_value(openapi).expect("the document is JSON");
        let json = serde_json::to_vec_pretty(&document).expect("the document is JSON");
        Self { openapi: json.into(), page: page(&document).into() }
    }
}

/// The OpenAPI document
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "documentation",
    responses((
        status = 200,
        description = "OpenAPI 3.1.",
        content((Object = "application/json", example = json!({"openapi": "3.1.0"}))),
    ))
)]
pub async fn show_openapi(State(state): State<ApiState>) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")];
    (headers, state.documents.openapi.clone()).into_response()
}

/// This document for people
#[utoipa::path(
    get,
    path = "/docs",
    tag = "documentation",
    responses((
        status = 200,
        description = "A page that loads nothing.",
        content((String = "text/html", example = "<!doctype html>…")),
    ))
)]
pub async fn show_docs(State(state): State<ApiState>) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
    ];
    (headers, state.documents.page.clone()).into_response()
}

/// What a type of problem means
///
/// The `type` of each problem leads here.
#[utoipa::path(
    get,
    path = "/problems/{name}",
    tag = "documentation",
    params(("name" = String, Path, description = "Name of the type.", example = "wrong-state")),
    responses((status = 303, description = "Where `/docs` explains it.",
        headers(("Location" = String, description = "`/docs#problem-wrong-state`"))))
)]
pub async fn show_problem(
    name: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Redirect, Problem> {
    let known = |name: &str| ProblemKind::ALL.into_iter().find(|kind| kind.name() == name);
    match name.ok().and_then(|Path(name)| known(&name)) {
        Some(kind) => Ok(Redirect::to(&format!("/docs#problem-{}", kind.name()))),
        None => Err(Problem::new(ProblemKind::NotFound, "there is no such type of problem")),
    }
}

fn page(document: &Value) -> String {
    let text = |pointer: &str| escape(document.pointer(pointer).and_then(Value::as_str));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title} API</title>\
         <style>{STYLE}</style></head>\n<body><main>\n<h1>{title} API <small>{version}</small></h1>\
         \n<p>{description}</p>\n<p><a href=\"/openapi.json\">openapi.json</a></p>\n",
        title = text("/info/title"),
        version = text("/info/version"),
        description = text("/info/description"),
    );
    let paths = document["paths"].as_object();
    for (path, item) in paths.into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            operation_section(&mut html, path, method, operation);
        }
    }
    html.push_str("<h2 id=\"problems\">Problems</h2>\n<table>");
    for kind in ProblemKind::ALL {
        let (name, status) = (kind.name(), kind.status().as_u16());
        let title = escape(Some(kind.title()));
        line(
            &mut html,
            &format!(
                "<tr id=\"problem-{name}\"><td>{status}</td><td><code>/problems/{name}</code></td>\
             <td>{title}.</td></tr>"
            ),
        );
    }
    html.push_str("</table>\n</main></body></html>\n");
    html
}

fn operation_section(html: &mut String, path: &str, method: &str, operation: &Value) {
    let text = |key: &str| escape(operation[key].as_str());
    line(
        html,
        &format!(
            "<section id=\"{id}\"><h2><code><b>{method}</b> {path}</code></h2>\n<p>{summary}. \
         {description}</p>",
            id = text("operationId"),
            method = escape(Some(&method.to_uppercase())),
            path = escape(Some(path)),
            summary = text("summary"),
            description = text("description"),
        ),
    );
    let parameters = operation["parameters"].as_array();
    if let Some(parameters) = parameters.filter(|all| !all.is_empty()) {
        html.push_str("<table>");
        for parameter in parameters {
            let text = |key: &str| escape(parameter[key].as_str());
            line(
                html,
                &format!(
                    "<tr><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                    text("name"),
                    text("in"),
                    text("description"),
                ),
            );
        }
        html.push_str("</table>\n");
    }
    if let Some(content) = operation.pointer("/requestBody/content") {
        examples(html, "Body", content);
    }
    let responses = operation["responses"].as_object();
    let statuses: Vec<_> = responses.into_iter().flat_map(|all| all.keys()).collect();
    let list: Vec<_> = statuses.iter().map(|status| escape(Some(status.as_str()))).collect();
    line(html, &format!("<p>Answers: {}</p>", list.join(", ")));
    for (status, response) in responses.into_iter().flatten() {
        examples(html, &format!("Answer {status}"), &response["content"]);
    }
    html.push_str("</section>\n");
}

/// Every example of a body, folded.
fn examples(html: &mut String, label: &str, content: &Value) {
    for (media, content) in content.as_object().into_iter().flatten() {
        let named = content["examples"].as_object().into_iter().flat_map(|all| all.values());
        let values = content.get("example").into_iter().chain(named.map(|named| &named["value"]));
        for value in values {
            let shown = match value.as_str() {
                Some(text) => text.to_owned(),
                None => serde_json::to_string_pretty(value).unwrap_or_default(),
            };
            line(
                html,
                &format!(
                    "<details><summary>{} <code>{}</code></summary><pre>{}</pre></details>",
                    escape(Some(label)),
                    escape(Some(media)),
                    escape(Some(&shown)),
                ),
            );
        }
    }
}

fn line(html: &mut String, text: &str) {
    writeln!(html, "{text}").expect("a String takes all");
}

fn escape(text: Option<&str>) -> String {
    text.unwrap_or_default()
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_and_lists_everything() {
        let openapi = super::super::openapi();
        let documents = Documents::new(&openapi);
        let page = std::str::from_utf8(&documents.page).expect("UTF-8");
        // An address in an example is text; what a browser would fetch or follow is not there.
        for needle in ["=\"http", "='http", "=http", "url(", "<script", "<link", "<img", "@import"]
        {
            assert!(!page.contains(needle), "{needle}");
        }
        for path in openapi.paths.paths.keys() {
            assert!(page.contains(path.as_str()), "{path}");
        }
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape(Some("<a href=\"&\">")), "&lt;a href=&quot;&amp;&quot;&gt;");
    }
}
