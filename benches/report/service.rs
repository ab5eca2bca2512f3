//! The service itself, as a process that is measured over HTTP.

use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use reqwest::Client;
use serde_json::json;

use crate::ground::{Ground, RUN};

/// Executions at once, and clients of pgbench.
pub const CONCURRENCY: usize = 10;
/// Longest wait for a server to be ready, or for the queue to be empty.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A running `registrar serve`, ended in order with this value.
pub struct Service {
    child: Child,
    /// Where it listens.
    pub base: String,
}

impl Service {
    /// Starts it; `only` one of its parts.
    pub fn start(ground: &Ground, only: Option<&str>) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = ground.command(RUN)?;
        command.arg("serve").args(only.map(|part| format!("--only={part}")));
        command
            .env("REGISTRAR__HTTP__LISTEN", address.to_string())
            .env("REGISTRAR__WORKER__CONCURRENCY", CONCURRENCY.to_string())
            .env("REGISTRAR__REPORT__MAX_ACTIVE_PER_USER", "100000")
            .stdout(Stdio::null());
        let service = Self { child: command.spawn()?, base: format!("http://{address}") };
        if only != Some("worker") {
            let began = Instant::now();
            while std::net::TcpStream::connect(address).is_err() {
                ensure!(began.elapsed() < PATIENCE, "the service does not listen");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(service)
    }

    /// Submits `count` executions of a report over `side_by_side` connections, with `wait` each after the end
    /// of the one before.
    pub async fn submit(
        &self,
        slug: &str,
        token: &str,
        count: usize,
        side_by_side: usize,
        wait: bool,
    ) -> anyhow::Result<()> {
        let client = Client::builder().no_proxy().build()?;
        let url = format!("{}/v1/reports/{slug}/executions", self.base);
        let submit = |_| {
            let mut request = client.post(&url).bearer_auth(token).json(&json!({"format": "csv"}));
            if wait {
                request = request.header("Prefer", "wait=10");
            }
            async move {
                let response = request.send().await?;
                if !response.status().is_success() {
                    bail!("submit: {}: {}", response.status(), response.text().await?);
                }
                Ok::<_, anyhow::Error>(())
            }
        };
        futures::TryStreamExt::try_for_each_concurrent(
            futures::stream::iter((0..count).map(Ok::<_, anyhow::Error>)),
            side_by_side,
            submit,
        )
        .await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // In order: what it holds in the database is given back.
        let id = self.child.id().to_string();
        let asked = std::process::Command::new("kill").args(["-TERM", &id]).status();
        if !asked.is_ok_and(|status| status.success()) {
            let _killed = self.child.kill();
        }
        let _ended = self.child.wait();
    }
}
