//! The OpenAPI document and what the server does are the same.

use std::path::Path;

use registrar::api::openapi;
use reqwest::Method;
use serde_json::Value;

use super::{Answering, Api};
use crate::support::TestApp;

fn document() -> Value {
    serde_json::to_value(openapi()).unwrap()
}

/// Method, path and operation of all that the document describes.
fn operations(document: &Value) -> Vec<(Method, String, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().expect("operations").iter().map(move |(method, operation)| {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                (method, path.clone(), operation)
            })
        })
        .collect()
}

#[test]
fn the_document_is_as_reviewed() {
    insta::assert_snapshot!("openapi", serde_json::to_string_pretty(&document()).unwrap());
}

#[test]
fn every_route_of_the_router_is_in_the_document() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    let mut handlers = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            // `routes!` puts a handler into router and document at once; nothing else may.
            for call in [".route(", ".nest(", ".route_service(", ".nest_service("] {
                assert!(!text.contains(call), "{call} in {}", path.display());
            }
            handlers.extend(text.split("routes!(").skip(1).map(|rest| {
                let path = rest.split(')').next().unwrap();
                path.rsplit("::").next().unwrap().to_owned()
            }));
        }
    }
    handlers.sort();
    let document = document();
    let mut documented: Vec<_> = operations(&document)
        .iter()
        .map(|(_, _, operation)| operation["operationId"].as_str().unwrap().to_owned())
        .collect();
    documented.sort();
    assert_eq!(handlers, documented);
}

#[test]
fn every_operation_has_examples_and_every_reference_leads_somewhere() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let named = format!("{method} {path}");
        let successes = operation["responses"].as_object().unwrap().iter();
        let shown = successes
            .filter(|(status, _)| status.starts_with(['2', '3']))
            .flat_map(|(_, response)| response["content"].as_object().into_iter().flatten())
            .any(|(_, content)| content.get("example").or(content.get("examples")).is_some());
        let is_redirect = operation["responses"]["303"].is_object();
        assert!(shown || is_redirect, "{named} has no example of an answer");
        if let Some(body) = operation["requestBody"]["content"].as_object() {
            assert!(body.values().all(|content| content.get("example").is_some()), "{named}");
        }
        for key in ["summary", "operationId"] {
            assert!(operation[key].is_string(), "{named} has no {key}");
        }
        let secured = path.starts_with("/v1/");
        assert_eq!(operation.get("security").is_some(), secured, "{named}");
        for status in ["401", "403", "503"].iter().filter(|_| secured) {
            assert!(operation["responses"].get(status).is_some(), "{named} without {status}");
        }
    }
    check_references(&document, &document);
}

fn check_references(value: &Value, document: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                let pointer = reference.strip_prefix('#').expect("a reference inside");
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            map.values().for_each(|value| check_references(value, document));
        }
        Value::Array(list) => list.iter().for_each(|value| check_references(value, document)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn the_server_knows_every_operation_of_its_document_and_no_other_method() {
    let api = Api::start(TestApp::new()).await;
    let answer = api.get("/openapi.json").answer().await;
    let document = answer.json(200);
    assert_eq!(document, self::document());
    for (method, path, operation) in operations(&document) {
        let path = path.replace("{slug}", "numbers").replace("{id}", "1");
        let path = path.replace("{name}", "wrong-state").replace("{prefix}", "rgs_0");
        let answer = api.request(method.clone(), &path).answer().await;
        let status = answer.status.as_u16().to_string();
        assert!(
            operation["responses"].get(&status).is_some(),
            "{method} {path} answered {status}, which is not in the document"
        );
        let answer = api.request(Method::PATCH, &path).answer().await;
        answer.problem(405, "method-not-allowed");
    }
}

#[tokio::test]
async fn real_answers_have_the_fields_of_the_document() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let document = document();
    for (path, schema) in [
        (format!("/v1/executions/{id}"), "Execution"),
        (format!("/v1/executions/{id}/manifest"), "Manifest"),
        ("/v1/executions".to_owned(), "ExecutionPage"),
        ("/v1/reports".to_owned(), "ReportList"),
        ("/readyz".to_owned(), "ReadinessReport"),
        ("/healthz".to_owned(), "Liveness"),
    ] {
        let answer = api.get(&path).bearer_auth(&token).answer().await.json(200);
        let properties = &document["components"]["schemas"][schema]["properties"];
        let described: Vec<_> = properties.as_object().expect(schema).keys().collect();
        for key in answer.as_object().unwrap().keys() {
            assert!(described.contains(&key), "{schema} lacks {key}");
        }
        for required in document["components"]["schemas"][schema]["required"].as_array().unwrap() {
            assert!(answer.get(required.as_str().unwrap()).is_some(), "{path} lacks {required}");
        }
    }
}

#[tokio::test]
async fn the_page_for_people_loads_nothing_and_explains_every_problem() {
    let api = Api::start(TestApp::new()).await;
    let answer = api.get("/docs").answer().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    assert!(answer.header("content-security-policy").starts_with("default-src 'none'"));
    let page = answer.text();
    for (_, path, _) in operations(&document()) {
        assert!(page.contains(&path), "{path}");
    }
    let leads = api.get("/problems/wrong-state").answer().await;
    assert_eq!(leads.status, 303);
    let (path, anchor) = leads.header("location").split_once('#').unwrap();
    assert_eq!(path, "/docs");
    assert!(page.contains(&format!("id=\"{anchor}\"")), "{anchor}");
}
