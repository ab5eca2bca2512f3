//! Processes as an operations team sees them: health, metrics, the end, and what logs do not say.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use registrar::db::executions::Status;
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backup::Keys;
use crate::support::process::Process;
use crate::support::{TestApp, eventually, install_crypto};

const LIMIT: Duration = Duration::from_secs(60);
/// Never ends by itself.
const ENDLESS: &str = "select n from generate_series(1, 3) n, pg_sleep(3600)";

/// A port that nobody uses. Another process could take it meanwhile; none of these tests does.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// What a process answers; `None` where it does not.
async fn ask(address: SocketAddr, path: &str) -> Option<(StatusCode, String)> {
    install_crypto();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{address}{path}")).send().await.ok()?;
    Some((answer.status(), answer.text().await.ok()?))
}

async fn ready(address: SocketAddr) {
    eventually("a process to be ready", LIMIT, async || {
        ask(address, "/readyz").await.filter(|(status, _)| *status == 200)
    })
    .await;
}

#[tokio::test]
async fn a_worker_without_the_api_tells_health_and_metrics() {
    let address = free_address();
    let app = TestApp::new().with(|config| config.operations.listen = Some(address)).await;
    app.define("numbers", "select n from generate_series(1, 3) as n").await;
    app.define("broken", "select 1 / (n - 2) as n from generate_series(1, 3) n").await;
    let _worker = app.start_worker_process().await;
    ready(address).await;
    assert_eq!(ask(address, "/healthz").await.unwrap().0, 200);
    assert_eq!(ask(address, "/v1/reports").await.unwrap().0, 404, "no API here");
    let id = app.submit("numbers", json!({})).await;
    app.wait_until(id, Status::Completed).await;
    let id = app.submit("broken", json!({})).await;
    app.wait_until(id, Status::Failed).await;
    let expected = [
        "registrar_executions_finished_total{outcome=\"completed\",code=\"\"} 1",
        "registrar_executions_finished_total{outcome=\"failed\",code=\"sql_error\"} 1",
        "registrar_attempts_total{outcome=\"completed\"} 1",
        "registrar_result_rows_total{format=\"csv\"} 3",
        "registrar_result_bytes_total{format=\"csv\"} 8",
        "registrar_queue_tickets{queue=\"reports\",state=\"waiting\"} 0",
        "registrar_queue_paused{queue=\"reports\"} 0",
        "registrar_workers{state=\"working\"} 1",
        "registrar_pool_connections{pool=\"worker\",state=\"in_use\"}",
        "registrar_queue_executions{state=\"pending\"} 0",
    ];
    eventually("all that is measured", LIMIT, async || {
        let (_, text) = ask(address, "/metrics").await?;
        expected.iter().all(|line| text.contains(line)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_first_signal_turns_readiness_off_and_the_second_ends_at_once() {
    let address = free_address();
    let mut app = TestApp::new()
        .with(|config| {
            config.operations.listen = Some(address);
            config.worker.shutdown_grace_secs = 3_600;
        })
        .await;
    app.leave_unfinished();
    app.define("endless", ENDLESS).await;
    let mut process = app.start_process(&["serve"]).await;
    ready(address).await;
    let id = app.submit("endless", json!({})).await;
    app.wait_until_querying(id).await;
    process.signal(Signal::TERM);
    let said = eventually("readiness to turn", LIMIT, async || {
        ask(address, "/readyz").await.filter(|(status, _)| *status == 503)
    })
    .await;
    assert!(said.1.contains("shutting_down"), "{}", said.1);
    assert_eq!(ask(address, "/healthz").await.unwrap().0, 200, "it lives");
    assert!(process.is_running(), "it waits for the report");
    assert_eq!(app.execution(id).await.status, Status::Processing);
    process.signal(Signal::TERM);
    assert!(!process.ended().await.success(), "ended where it stood");
}

#[tokio::test]
async fn each_part_ends_in_order_and_within_its_bound() {
    for part in ["api", "worker", "scheduler"] {
        let address = free_address();
        let mut app = TestApp::new()
            .with(|config| {
                config.operations.listen = Some(address);
                config.http.shutdown_delay_secs = 1;
                config.worker.shutdown_grace_secs = 1;
            })
            .await;
        app.leave_unfinished();
        app.define("endless", ENDLESS).await;
        let id = app.submit("endless", json!({})).await;
        let mut process = Process::start(&app.config, &["serve", "--only", part]);
        ready(address).await;
        if part == "worker" {
            app.wait_until_querying(id).await;
        }
        process.signal(Signal::TERM);
        assert!(process.ended().await.success(), "{part}: {}", process.log());
        assert_eq!(app.execution(id).await.status, Status::Pending, "{part}: given back");
        assert!(ask(address, "/healthz").await.is_none(), "{part}: nothing listens");
    }
}

/// A collector: takes whatever is posted.
async fn collector() -> (SocketAddr, Arc<Mutex<Vec<Value>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let received = Arc::new(Mutex::new(Vec::new()));
    let documents = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let documents = Arc::clone(&documents);
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while stream.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let head = head.to_ascii_lowercase();
                    let length =
                        head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() < length.unwrap().trim().parse().unwrap() {
                        continue;
                    }
                    assert!(head.starts_with("post /v1/traces "), "{head}");
                    documents.lock().unwrap().push(serde_json::from_str(body).unwrap());
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    stream.write_all(answer).await.unwrap();
                    bytes.clear();
                }
            });
        }
    });
    (address, received)
}

#[tokio::test]
async fn one_trace_leads_from_the_request_to_the_file_and_to_the_collector() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let (address, received) = collector().await;
    let http = free_address();
    let app = TestApp::new()
        .with(|config| {
            config.http.listen = http;
            config.operations.otlp_endpoint = Some(format!("http://{address}").parse().unwrap());
        })
        .await;
    app.define("numbers", "select n from generate_series(1, 3) as n").await;
    let token = app.token("ana").await;
    let mut process = app.start_process(&["serve"]).await;
    ready(http).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client
        .post(format!("http://{http}/v1/reports/numbers/executions"))
        .bearer_auth(&token)
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .json(&json!({}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["trace-id"], TRACE);
    let id = answer.json::<Value>().await.unwrap()["id"].as_i64().unwrap();
    app.wait_until(id, Status::Completed).await;
    // The end sends what is left.
    process.signal(Signal::TERM);
    assert!(process.ended().await.success(), "{}", process.log());
    assert_eq!(app.manifest(id).await.trace_id.as_deref(), Some(TRACE));
    let log = process.log();
    let completed = log.lines().find(|line| line.contains("completed execution")).expect("a line");
    assert!(completed.contains(TRACE), "{completed}");
    let documents = received.lock().unwrap().clone();
    let spans: Vec<_> = documents
        .iter()
        .flat_map(|document| document["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array())
        .flatten()
        .filter(|span| span["traceId"] == TRACE)
        .collect();
    let named = |name: &str| {
        let found = spans.iter().find(|span| span["name"] == name);
        found.unwrap_or_else(|| panic!("a span `{name}` in {spans:#?}"))
    };
    let attribute = |span: &Value, key: &str| {
        let list = span["attributes"].as_array().unwrap();
        list.iter().find(|attribute| attribute["key"] == key).map(|one| one["value"].clone())
    };
    let (request, attempt) = (named("request"), named("attempt"));
    assert_eq!(attribute(request, "status"), Some(json!({"intValue": "202"})));
    let route = json!({"stringValue": "/v1/reports/{slug}/executions"});
    assert_eq!(attribute(request, "route"), Some(route));
    assert_eq!(attribute(attempt, "execution.id"), Some(json!({"intValue": id.to_string()})));
    assert_eq!(attribute(attempt, "rows"), Some(json!({"intValue": "3"})));
    let at = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
    assert!(at(request, "startTimeUnixNano") < at(attempt, "endTimeUnixNano"));
}

/// Names of metrics in a text, without what a histogram appends.
fn metric_names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_lowercase() && c != '_')
        .filter(|word| word.starts_with("registrar_") && word.len() > "registrar_".len())
        .map(|word| {
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
            plain.unwrap_or(word).to_owned()
        })
        .collect()
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are_and_every_alert_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let mut code = String::new();
    sources(&root.join("src"), &mut code);
    let dashboard = read("ops/grafana-dashboard.json");
    let alerts = read("ops/prometheus-alerts.yml");
    let parsed: Value = serde_json::from_str(&dashboard).expect("JSON");
    assert!(parsed["panels"].as_array().unwrap().len() > 10);
    for name in metric_names(&dashboard).into_iter().chain(metric_names(&alerts)) {
        assert!(code.contains(&format!("\"{name}\"")), "nobody measures `{name}`");
    }
    let meanings = read("docs/operations.md");
    let names: Vec<_> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 10);
    for name in names {
        assert!(meanings.contains(&format!("| {name} |")), "docs/operations.md on {name}");
    }
}

/// Everything in the tables of people that says who they are.
const PERSONAL: &str = "
    select text from (
        select email as text from users
        union all select phone_number from users
        union all select address from users
        union all select username from users where length(username) > 8
        union all select first_name || ' ' || last_name from users
        union all select last_name from users where length(last_name) > 7
    ) t where length(text) > 6 group by text";

/// A run over everything that touches people, with the log as talkative as it can be.
#[tokio::test]
async fn no_log_and_no_metric_holds_what_the_tables_of_people_hold() {
    let (operations, http) = (free_address(), free_address());
    let keys = Keys::new();
    let app = TestApp::new()
        .with(|config| {
            keys.use_in(config);
            config.operations.listen = Some(operations);
            config.http.listen = http;
            config.log.filter = "debug".to_owned();
        })
        .await;
    app.sync_templates().await;
    app.define("people", "select username, email, first_name, last_name from users").await;
    // PostgreSQL quotes the value in its message, and the row in its DETAIL.
    app.define("quoting", "select email::integer as n from users").await;
    let name = "[[parameter]]\nname = \"who\"\ntype = \"text\"\nrequired = true\n";
    app.define_with("named", name, "select count(*) as n from users where email = :who").await;
    let personal: Vec<String> =
        sqlx::query_scalar(PERSONAL).fetch_all(&app.services.db).await.unwrap();
    assert!(personal.len() > 300, "{}", personal.len());
    let email: String = sqlx::query_scalar("select email from users where id = 1007")
        .fetch_one(&app.services.db)
        .await
        .unwrap();

    let process = app.start_process(&["serve"]).await;
    ready(operations).await;
    for (slug, parameters, status) in [
        ("people", json!({}), Status::Completed),
        ("quoting", json!({}), Status::Failed),
        ("named", json!({"who": email}), Status::Completed),
    ] {
        let id = app.submit(slug, parameters).await;
        app.wait_until(id, status).await;
    }
    let token = app.token("ana").await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for body in [json!({"parameters": {"who": 7, "other": email}}), json!({"format": email})] {
        let url = format!("http://{http}/v1/reports/named/executions?who={email}");
        let answer = client.post(url).bearer_auth(&token).json(&body).send().await.unwrap();
        assert!(answer.status().is_client_error());
    }
    let url = format!("http://{http}/v1/reports/{email}");
    client.get(url).bearer_auth(&token).send().await.unwrap();
    // An erasure, with its grace over, carried out by the process; then a backup.
    let operator = app.operator();
    app.services.request_erasure(&operator, None, "1007").await.unwrap();
    let mut logs = String::new();
    app.execute("update erasures set due_at = now(), run_at = now()").await;
    for arguments in [
        &["erasure", "run"][..],
        &["backup", "create", "--verify"],
        &["policy", "preview", "archive-audit-logs"],
        &["audit", "list"],
        &["doctor"],
    ] {
        let mut command = Process::start(&app.config, arguments);
        command.ended().await;
        logs.push_str(&command.log());
    }
    let (_, metrics) = ask(operations, "/metrics").await.unwrap();
    logs.push_str(&process.log());
    logs.push_str(&metrics);
    assert!(logs.contains("completed execution") && logs.contains("sql_error"), "it was logged");
    let found: Vec<_> = personal.iter().filter(|text| logs.contains(text.as_str())).collect();
    assert!(found.is_empty(), "{found:?} in\n{logs}");
    let stored = "select count(*) from report_executions where error_message like '%@%'";
    assert_eq!(app.number(stored).await, 0, "nor does a stored error");
}
