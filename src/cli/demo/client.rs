//! The demo's client: what any program would do over HTTP, and nothing else.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, Response};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::cli::{say, table};

/// Longest wait for one execution.
const PATIENCE: Duration = Duration::from_secs(600);
/// Executions followed at once.
const FOLLOWED_AT_ONCE: usize = 8;

/// A finished file.
struct Fetched {
    report: String,
    rows: u64,
    size_bytes: u64,
    secs: f64,
    file: PathBuf,
}

/// Submits every report in both formats, waits, downloads, checks and prints a table.
///
/// # Errors
/// A report fails, or a file is not what its manifest says.
pub async fn run_reports(base: &str, token: &str, folder: &Path) -> anyhow::Result<()> {
    tokio::fs::create_dir_all(folder).await?;
    let api = Api { client: Client::new(), base, token };
    let reports = api.get_json("/v1/reports").await?;
    let reports = reports["reports"].as_array().context("a list of reports")?;
    let mut submissions = Vec::new();
    for report in reports {
        let slug = report["slug"].as_str().context("a slug")?;
        for format in ["csv", "xlsx"] {
            let location = api.submit(slug, format).await?;
            submissions.push((slug.to_owned(), location));
        }
    }
    let bar = ProgressBar::new(submissions.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} reports {elapsed}")?);
    let mut fetched: Vec<Fetched> = Vec::new();
    let mut following = futures::stream::iter(submissions)
        .map(|(slug, location)| {
            let api = &api;
            async move { api.follow(&slug, &location, folder).await.context(slug) }
        })
        .buffer_unordered(FOLLOWED_AT_ONCE);
    while let Some(file) = following.next().await {
        fetched.push(file?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    fetched.sort_by(|a, b| (&a.report, &a.file).cmp(&(&b.report, &b.file)));
    print(&fetched)
}

fn print(fetched: &[Fetched]) -> anyhow::Result<()> {
    let rows: Vec<_> = fetched
        .iter()
        .map(|file| {
            vec![
                file.report.clone(),
                file.rows.to_string(),
                file.size_bytes.to_string(),
                format!("{:.2}", file.secs),
                file.file.display().to_string(),
            ]
        })
        .collect();
    table(&["REPORT", "ROWS", "BYTES", "SECONDS", "FILE"], &rows)?;
    say(format!("\n{} files, each with the SHA-256 that its manifest names.", fetched.len()))
}

struct Api<'a> {
    client: Client,
    base: &'a str,
    token: &'a str,
}

impl Api<'_> {
    async fn get(&self, path: &str) -> anyhow::Result<Response> {
        let url = self.url(path);
        accepted(self.client.get(url).bearer_auth(self.token).send().await?).await
    }

    async fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.get(path).await?.json().await?)
    }

    /// Locations may be absolute.
    fn url(&self, path: &str) -> String {
        if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) }
    }

    /// Submits a report with its defaults, and with the examples of what it requires.
    async fn submit(&self, slug: &str, format: &str) -> anyhow::Result<String> {
        let report = self.get_json(&format!("/v1/reports/{slug}")).await?;
        let body = json!({ "parameters": examples(&report["parameters"]), "format": format });
        let url = self.url(&format!("/v1/reports/{slug}/executions"));
        let key = uuid::Uuid::new_v4().to_string();
        let request = self.client.post(url).bearer_auth(self.token);
        let request = request.header("Idempotency-Key", key).json(&body);
        let response = accepted(request.send().await?).await?;
        let location = response.headers().get("location").context("a Location")?;
        Ok(location.to_str()?.to_owned())
    }

    async fn follow(&self, slug: &str, location: &str, folder: &Path) -> anyhow::Result<Fetched> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let url = self.url(location);
            let request = self.client.get(url).bearer_auth(self.token).header("Prefer", "wait=10");
            let execution: Value = accepted(request.send().await?).await?.json().await?;
            match execution["status"].as_str() {
                Some("completed") => break,
                Some("pending" | "processing") if Instant::now() < give_up => {}
                _ => bail!("ended as {execution}"),
            }
        }
        let manifest = self.get_json(&format!("{location}/manifest")).await?;
        let bytes = self.get(&format!("{location}/result")).await?.bytes().await?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        ensure!(
            manifest["sha256"].as_str() == Some(&sha256),
            "the file's SHA-256 is {sha256}, its manifest says {}",
            manifest["sha256"]
        );
        let name = manifest["file_name"].as_str().context("a file name")?;
        let file = folder.join(Path::new(name).file_name().context("a plain file name")?);
        tokio::fs::write(&file, &bytes).await?;
        Ok(Fetched {
            report: slug.to_owned(),
            rows: manifest["row_count"].as_u64().context("a row count")?,
            size_bytes: bytes.len() as u64,
            secs: manifest["duration_ms"].as_f64().unwrap_or_default() / 1000.0,
            file,
        })
    }
}

/// The examples that a schema gives for what it requires.
fn examples(schema: &Value) -> Map<String, Value> {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    required
        .filter_map(|name| {
            let example = schema["properties"][name]["examples"].get(0)?;
            Some((name.to_owned(), example.clone()))
        })
        .collect()
}

async fn accepted(response: Response) -> anyhow::Result<Response> {
    if response.status().is_success() {
        return Ok(response);
    }
    bail!("{} {}", response.status(), response.text().await.unwrap_or_default())
}
