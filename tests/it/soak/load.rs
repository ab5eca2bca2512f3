//! What clients do: submit, cancel, run policies, make backups; and what they were promised.
//!
//! A client does what the API tells it to: after no answer, 503 or 429 it sends the same again with
//! the same key, to whichever API answers. Any other answer is a finding.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use registrar::config::Config;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::chance::Chance;
use crate::support::process::Process;
use crate::support::{eventually, tell};

/// How long a client tries to get an answer: longer than any fault lasts.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest single request.
const REQUEST: Duration = Duration::from_secs(10);
const BETWEEN_TRIES: Duration = Duration::from_millis(150);
/// Rows for the policy to move, in one batch.
pub const OLD_ROWS: i64 = 40;

/// What was promised, and what should not have been answered.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Accepted submits, by key, with their report.
    submits: Mutex<BTreeMap<String, (i64, &'static str)>>,
    findings: Mutex<Vec<String>>,
    pub retried: AtomicUsize,
    pub cancels: AtomicUsize,
    /// Batches of rows that were given to the policy, and of which that is certain.
    batches: Mutex<Vec<i64>>,
    pub runs: AtomicUsize,
    pub backups: AtomicUsize,
    pub killed_backups: AtomicUsize,
}

impl std::fmt::Display for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} submits, {} requests sent again, {} cancels, {} batches of old rows, {} runs, \
             {} backups, {} of them killed",
            self.submits().len(),
            count(&self.retried),
            count(&self.cancels),
            self.batches().len(),
            count(&self.runs),
            count(&self.backups) + count(&self.killed_backups),
            count(&self.killed_backups)
        )
    }
}

impl Ledger {
    pub fn submits(&self) -> Vec<(i64, &'static str)> {
        self.submits.lock().unwrap().values().copied().collect()
    }

    pub fn batches(&self) -> Vec<i64> {
        self.batches.lock().unwrap().clone()
    }

    pub fn find(&self, finding: String) {
        tell(&format!("finding: {finding}"));
        self.findings.lock().unwrap().push(finding);
    }

    pub fn findings(&self) -> Vec<String> {
        self.findings.lock().unwrap().clone()
    }
}

/// A client of the fleet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    bases: Arc<Vec<String>>,
    token: Arc<str>,
    pub ledger: Arc<Ledger>,
}

impl Api {
    pub fn new(bases: Vec<String>, token: &str) -> Self {
        let client = Client::builder().no_proxy().timeout(REQUEST).build().unwrap();
        Self { client, bases: Arc::new(bases), token: token.into(), ledger: Arc::default() }
    }

    /// Asks until there is an answer that says something.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> (StatusCode, Value) {
        let mut turn = 0;
        eventually(&format!("an answer to {method} {path}"), PATIENCE, async || {
            let base = &self.bases[turn % self.bases.len()];
            if turn > 0 {
                self.ledger.retried.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            turn += 1;
            let request = self.client.request(method.clone(), format!("{base}{path}"));
            let answer = finish(request.bearer_auth(&self.token)).send().await.ok()?;
            let status = answer.status();
            let body: Value = answer.json().await.ok()?;
            let in_flight = body["type"] == "/problems/idempotency-in-flight";
            let later = status == StatusCode::SERVICE_UNAVAILABLE
                || status == StatusCode::TOO_MANY_REQUESTS
                || in_flight;
            (!later).then_some((status, body))
        })
        .await
    }

    /// Submits once, however often that takes.
    pub async fn submit(&self, report: &'static str, key: &str, body: &Value) -> i64 {
        let path = format!("/v1/reports/{report}/executions");
        let with_key = |request: RequestBuilder| request.header("Idempotency-Key", key).json(body);
        let (status, answer) = self.ask(Method::POST, &path, with_key).await;
        let Some(id) = answer["id"].as_i64().filter(|_| status == StatusCode::ACCEPTED) else {
            self.ledger.find(format!("a submit of {report} was answered {status}: {answer}"));
            return 0;
        };
        let known = self.ledger.submits.lock().unwrap().insert(key.to_owned(), (id, report));
        if known.is_some_and(|(known, _)| known != id) {
            self.ledger.find(format!("the key {key} was answered {known:?}, then {id}"));
        }
        id
    }

    /// Makes something that has a name, and is there already if an answer got lost.
    pub async fn make(&self, path: &str, body: &Value) {
        let (status, answer) = self.ask(Method::POST, path, |request| request.json(body)).await;
        let is_taken =
            status == StatusCode::UNPROCESSABLE_ENTITY && answer["errors"][0]["pointer"] == "/name";
        assert!(status == StatusCode::CREATED || is_taken, "{path}: {status} {answer}");
    }

    async fn cancel(&self, id: i64) {
        let path = format!("/v1/executions/{id}/cancel");
        let (status, answer) = self.ask(Method::POST, &path, |request| request).await;
        match status {
            // Too late, or an answer before this one got lost.
            StatusCode::ACCEPTED | StatusCode::CONFLICT => {
                self.ledger.cancels.fetch_add(1, Ordering::Relaxed);
            }
            status => self.ledger.find(format!("a cancel was answered {status}: {answer}")),
        }
    }
}

/// Clients at work until `stop`; then each finishes what it is at.
pub async fn work(
    api: &Api,
    config: &Config,
    db: &PgPool,
    policy: &str,
    seed: u64,
    stop: &CancellationToken,
) {
    let submitting = (0..3).map(|client| {
        let chance = Chance::new(seed ^ (client + 1));
        submit(api, stop, chance, client)
    });
    let chance = Chance::new(seed ^ 99);
    tokio::join!(
        futures::future::join_all(submitting),
        run_policy(api, stop, db, policy),
        back_up(&api.ledger, stop, config, chance),
    );
}

/// Waits, unless it is time to stop. Answers whether to go on.
async fn pause(stop: &CancellationToken, pause: Duration) -> bool {
    tokio::time::timeout(pause, stop.cancelled()).await.is_err()
}

async fn submit(api: &Api, stop: &CancellationToken, mut chance: Chance, client: u64) {
    for number in 0_u64.. {
        let millis = chance.between(300, 900);
        if !pause(stop, Duration::from_millis(millis)).await {
            return;
        }
        let key = format!("client-{client}-{number}");
        let report = match chance.between(0, 19) {
            0..=11 => "load",
            12..=16 => "slow",
            17..=18 => "broken",
            _ => "large",
        };
        let format = if report == "load" && chance.one_in(5) { "xlsx" } else { "csv" };
        let body = json!({ "format": format });
        let id = api.submit(report, &key, &body).await;
        if chance.one_in(10) {
            // What a client does that lost the answer.
            api.submit(report, &key, &body).await;
        }
        if id > 0 && chance.one_in(8) {
            api.cancel(id).await;
        }
    }
}

/// Makes rows that are old enough, and has the policy move them.
async fn run_policy(api: &Api, stop: &CancellationToken, db: &PgPool, policy: &str) {
    let path = format!("/v1/policies/{policy}");
    let mut batch = 0_i64;
    while pause(stop, Duration::from_secs(4)).await {
        batch += 1;
        // One statement: all of these rows, or none of them. A number is used once, because an
        // answer that is lost can be either.
        let inserted = sqlx::query(
            "insert into audit_logs (action, entity_type, entity_id, created_at)
             select 'soak.old', 'soak', $1 * $2 + n, now() - interval '6 years'
               from generate_series(0, $2 - 1) as n",
        )
        .bind(batch)
        .bind(OLD_ROWS)
        .execute(db)
        .await;
        if inserted.is_ok() {
            api.ledger.batches.lock().unwrap().push(batch);
        }
        let (status, preview) =
            api.ask(Method::GET, &format!("{path}/preview"), |request| request).await;
        let Some(digest) = preview["digest"].as_str().filter(|_| status == StatusCode::OK) else {
            api.ledger.find(format!("a preview was answered {status}: {preview}"));
            continue;
        };
        let body = json!({ "digest": digest });
        let runs = format!("{path}/runs");
        let (status, answer) = api.ask(Method::POST, &runs, |request| request.json(&body)).await;
        match status {
            StatusCode::ACCEPTED => {
                api.ledger.runs.fetch_add(1, Ordering::Relaxed);
            }
            // The run before is not done, or the rows are others meanwhile.
            StatusCode::CONFLICT => {}
            status => api.ledger.find(format!("a run was answered {status}: {answer}")),
        }
    }
}

/// Makes backups by the command line, some of which are killed in the middle.
async fn back_up(ledger: &Ledger, stop: &CancellationToken, config: &Config, mut chance: Chance) {
    while pause(stop, Duration::from_secs(chance.between(8, 16))).await {
        let mut backup = Process::start(config, &["backup", "create"]);
        if chance.one_in(3) {
            pause(stop, Duration::from_millis(chance.between(500, 3_000))).await;
            if backup.is_running() {
                backup.signal(Signal::KILL);
                backup.ended().await;
                ledger.killed_backups.fetch_add(1, Ordering::Relaxed);
            }
        } else if backup.ended().await.success() {
            ledger.backups.fetch_add(1, Ordering::Relaxed);
        }
    }
}
