//! The API on a real socket, and a client for it.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use registrar::api::{self, ApiState};
use registrar::console;
use registrar::service::Services;
use registrar::telemetry;
use reqwest::{Client, Method, RequestBuilder};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running API. It ends with this value.
#[derive(Debug)]
pub struct Http {
    /// `http://127.0.0.1:port`
    pub base: String,
    /// Follows no redirects: what the API answers is what a test sees.
    pub client: Client,
    /// Cancelled, the API stops in order.
    pub shutdown: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Http {
    pub(super) async fn start(services: Services) -> Self {
        super::install_crypto();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let state = ApiState::new(services, metrics(), shutdown.clone());
        let pages = console::router(&state);
        let serving = tokio::spawn(api::serve(listener, state, pages));
        let redirects = reqwest::redirect::Policy::none();
        let client = Client::builder().redirect(redirects).no_proxy().build().unwrap();
        Self { base, client, shutdown, serving }
    }

    /// A request without a token.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    /// Waits until the API has ended after `shutdown`.
    ///
    /// # Panics
    /// When it does not end within `limit`, or not in order.
    pub async fn ended(&mut self, limit: Duration) {
        let ended = tokio::time::timeout(limit, &mut self.serving).await;
        ended.expect("the API ends in time").unwrap().expect("the API ends in order");
    }

    /// GET with a token.
    pub fn get(&self, path: &str, token: &str) -> RequestBuilder {
        self.request(Method::GET, path).bearer_auth(token)
    }

    /// POST of a JSON document with a token.
    pub fn post(&self, path: &str, token: &str, body: &serde_json::Value) -> RequestBuilder {
        self.request(Method::POST, path).bearer_auth(token).json(body)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A process has one recorder, and `cargo test` runs all tests in one process.
fn metrics() -> PrometheusHandle {
    static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
    METRICS.get_or_init(|| telemetry::init_metrics().expect("no other recorder")).clone()
}
