//! The API over real HTTP: a server on a port of its own, over a [`TestApp`].

mod backups;
mod contract;
mod definitions;
mod document;
mod errors;
mod executions;
mod follow;
mod holds;
mod manners;
mod operations;
mod results;
mod tokens;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::TestApp;
use crate::support::app::Builder;
use crate::support::http::Http;

/// A served app.
struct Api {
    http: Http,
    app: TestApp,
}

impl Api {
    async fn start(app: Builder) -> Self {
        let app = app.await;
        Self { http: app.http().await, app }
    }

    /// With sample data and the report `numbers`: three rows.
    async fn with_numbers() -> Self {
        let api = Self::start(TestApp::new()).await;
        api.define_numbers().await;
        api
    }

    async fn define_numbers(&self) {
        self.app.define("numbers", "select n from generate_series(1, 3) as n").await;
    }

    /// A report that never ends by itself.
    async fn define_endless(&self) {
        self.app.define("endless", "select n from generate_series(1, 3) n, pg_sleep(3600)").await;
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, path)
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// A submit of `numbers` or another report without parameters.
    fn submit(&self, slug: &str, token: &str) -> RequestBuilder {
        self.post(&format!("/v1/reports/{slug}/executions")).bearer_auth(token).json(&json!({}))
    }

    /// Submits a report, runs it and returns its number.
    async fn completed(&self, slug: &str, token: &str) -> i64 {
        let id = self.submit(slug, token).answer().await.id();
        let worker = self.app.start_worker().await;
        self.app.wait_until(id, registrar::db::executions::Status::Completed).await;
        worker.stop().await;
        id
    }
}

/// What came back, whole.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

trait Answering {
    async fn answer(self) -> Answer;
}

impl Answering for RequestBuilder {
    async fn answer(self) -> Answer {
        let response = self.send().await.expect("the server answers");
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.expect("the answer is whole").to_vec();
        Answer { status, headers, body }
    }
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("{name} in {self:?}"))
            .to_str()
            .expect("ASCII")
    }

    /// The body of a success.
    fn json(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The number of the execution that a submit answered with.
    fn id(&self) -> i64 {
        let body: Value = serde_json::from_slice(&self.body).expect("JSON");
        body["id"].as_i64().unwrap_or_else(|| panic!("an execution in {body}"))
    }

    /// Checks all that every problem must have, and returns its body.
    fn problem(&self, status: u16, name: &str) -> Value {
        let text = self.text();
        assert_eq!(self.status.as_u16(), status, "{text}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{text}");
        let body: Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!(body["type"], format!("/problems/{name}"), "{text}");
        assert_eq!(body["status"], status, "{text}");
        for key in ["title", "detail", "instance"] {
            assert!(body[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {text}");
        }
        assert_eq!(body["trace_id"], self.header("trace-id"), "{text}");
        body
    }
}

/// Pointers of a problem's errors.
fn pointers(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().expect("errors");
    errors.iter().filter_map(|error| error["pointer"].as_str()).collect()
}
