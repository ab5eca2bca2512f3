//! Health, metrics, limits and the end.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Answering, Api};
use crate::support::app::TestApp;
use crate::support::database::server_url;
use crate::support::eventually;
use crate::support::proxy::PostgresProxy;

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))
}

#[tokio::test]
async fn a_service_with_all_that_it_needs_is_ready() {
    let api = Api::with_numbers().await;
    let report = api.get("/readyz").answer().await.json(200);
    assert_eq!(report["status"], "ready");
    for name in ["database", "schema", "store"] {
        assert_eq!(check(&report, name), &json!({"name": name, "passed": true}));
    }
    assert!(api.app.stored().await.is_empty(), "the probe leaves nothing behind");
}

// The proxy must go on while the app, at its end, waits for its database to be dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_database_it_is_alive_and_not_ready_and_requests_are_503() {
    let proxy = PostgresProxy::start(&server_url());
    let app = TestApp::new().on_server(&proxy.url(&server_url())).with(|config| {
        config.database.acquire_timeout_secs = 1.try_into().unwrap();
    });
    let api = Api::start(app).await;
    let token = api.app.token("ana").await;
    proxy.refuse(true);
    proxy.cut();
    assert_eq!(api.get("/healthz").answer().await.json(200)["status"], "alive");
    let report = api.get("/readyz").answer().await.json(503);
    assert_eq!(report["status"], "not_ready");
    assert_eq!(check(&report, "database")["detail"], "the database does not answer");
    let answer = api.get("/v1/reports").bearer_auth(&token).answer().await;
    answer.problem(503, "unavailable");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    proxy.refuse(false);
    let list = eventually("the database to be back", Duration::from_secs(30), async || {
        let answer = api.get("/v1/reports").bearer_auth(&token).answer().await;
        (answer.status == 200).then_some(answer)
    });
    list.await.json(200);
}

#[tokio::test]
async fn without_the_store_it_is_not_ready_and_downloads_are_503() {
    let mut api = Api::start(TestApp::new().on_s3()).await;
    api.define_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    api.app.s3.as_mut().expect("the test asked for one").stop();
    let report = api.get("/readyz").answer().await.json(503);
    assert_eq!(check(&report, "store")["passed"], false);
    assert_eq!(check(&report, "database")["passed"], true);
    let answer = api.get(&format!("/v1/executions/{id}/result")).bearer_auth(&token).answer().await;
    answer.problem(503, "unavailable");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
}

#[tokio::test]
async fn another_schema_is_not_ready_and_named() {
    let api = Api::with_numbers().await;
    api.app
        .execute(
            "delete from _sqlx_migrations
              where version = (select max(version) from _sqlx_migrations)",
        )
        .await;
    let report = api.get("/readyz").answer().await.json(503);
    let detail = check(&report, "schema")["detail"].as_str().unwrap();
    assert!(detail.contains("is not applied"), "{detail}");
}

#[tokio::test]
async fn readiness_is_remembered_so_that_asking_is_cheap() {
    let api = Api::with_numbers().await;
    assert_eq!(api.get("/readyz").answer().await.status, 200);
    api.app.execute("update _sqlx_migrations set checksum = ''::bytea").await;
    assert_eq!(api.get("/readyz").answer().await.status, 200);
}

#[tokio::test]
async fn metrics_show_requests_by_route_and_never_by_path() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    api.get("/v1/executions/4711?x=1").bearer_auth(&token).answer().await;
    api.get("/some/where?secret=1").answer().await;
    let answer = api.get("/metrics").answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    let counted = |route: &str, status: &str| {
        text.lines().any(|line| {
            line.starts_with("registrar_http_request_duration_seconds_count")
                && line.contains(&format!("route=\"{route}\""))
                && line.contains("method=\"GET\"")
                && line.contains(&format!("status=\"{status}\""))
        })
    };
    assert!(counted("/v1/executions/{id}", "400"), "{text}");
    assert!(counted("unmatched", "404"), "{text}");
    assert!(!text.contains("4711") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn too_many_requests_at_once_are_503_at_once_and_health_still_answers() {
    let app = TestApp::new().with(|config| {
        config.http.max_in_flight = 1.try_into().unwrap();
    });
    let mut api = Api::start(app).await;
    api.app.leave_unfinished();
    api.define_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let request = api.get(&format!("/v1/executions/{id}")).bearer_auth(&token);
    let request = request.header("Prefer", "wait=30");
    // Whichever of the two comes first takes the place; the poll insists.
    let poll = eventually("a place for the poll", Duration::from_secs(20), async || {
        let answer = request.try_clone().expect("it has no body").answer().await;
        (answer.status != 503).then_some(answer)
    });
    let meanwhile = async {
        let refused = eventually("a refusal", Duration::from_secs(20), async || {
            let answer = api.get("/v1/reports").bearer_auth(&token).answer().await;
            (answer.status != 200).then_some(answer)
        })
        .await;
        refused.problem(503, "overloaded");
        assert!(refused.header("retry-after").parse::<u32>().unwrap() >= 1);
        assert_eq!(api.get("/healthz").answer().await.status, 200);
        assert_eq!(api.get("/readyz").answer().await.status, 200);
        api.app.execute("update report_executions set status = 'cancelled'").await;
    };
    let (polled, ()) = tokio::join!(poll, meanwhile);
    assert_eq!(polled.json(200)["status"], "cancelled");
    // The place is free again.
    assert_eq!(api.get("/v1/reports").bearer_auth(&token).answer().await.status, 200);
}

#[tokio::test]
async fn clients_that_wait_leave_room_for_the_others() {
    let app = TestApp::new().with(|config| {
        config.http.max_in_flight = 2.try_into().unwrap();
    });
    let mut api = Api::start(app).await;
    api.app.leave_unfinished();
    api.define_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let poll = || {
        let request = api.get(&format!("/v1/executions/{id}")).bearer_auth(&token);
        request.header("Prefer", "wait=30").answer()
    };
    // Of two that wait, one is answered at once; then there is room.
    let (mut first, mut second) = (Box::pin(poll()), Box::pin(poll()));
    let (at_once, waiting) = tokio::select! {
        answer = &mut first => (answer, second),
        answer = &mut second => (answer, first),
    };
    assert_eq!(at_once.json(200)["status"], "pending");
    assert!(!at_once.headers.contains_key("preference-applied"), "no wait was granted");
    assert_eq!(api.get("/v1/reports").bearer_auth(&token).answer().await.status, 200);
    api.app.execute("update report_executions set status = 'cancelled'").await;
    let waited = waiting.await;
    assert_eq!(waited.json(200)["status"], "cancelled");
    assert_eq!(waited.header("preference-applied"), "wait=30");
}

#[tokio::test]
async fn a_download_keeps_its_place_until_its_last_byte() {
    let app = TestApp::new().with(|config| {
        config.http.max_in_flight = 1.try_into().unwrap();
    });
    let api = Api::start(app).await;
    let sql = "select n, repeat('x', 1000) as x from generate_series(1, 30000) n";
    api.app.define("large", sql).await;
    let token = api.app.token("ana").await;
    let id = api.completed("large", &token).await;
    // 30 MB do not fit into socket buffers: the answer is open until somebody reads it.
    let request = api.get(&format!("/v1/executions/{id}/result")).bearer_auth(&token);
    let download = request.send().await.unwrap();
    let answer = api.get("/v1/reports").bearer_auth(&token).answer().await;
    answer.problem(503, "overloaded");
    assert!(download.bytes().await.unwrap().len() > 30_000_000);
    eventually("the place to be free", Duration::from_secs(20), async || {
        let answer = api.get("/v1/reports").bearer_auth(&token).answer().await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_503() {
    let app = TestApp::new().with(|config| {
        config.http.request_timeout_secs = 1.try_into().unwrap();
    });
    let api = Api::start(app).await;
    let token = api.app.token("ana").await;
    let mut tx = api.app.services.db.begin().await.unwrap();
    sqlx::query("lock table report_executions").execute(&mut *tx).await.unwrap();
    let answer = api.get("/v1/executions").bearer_auth(&token).answer().await;
    answer.problem(503, "timeout");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn a_stopping_service_is_not_ready_and_finishes_what_is_open() {
    let mut api = Api::start(TestApp::new()).await;
    let sql = "select n, repeat('x', 1000) as x from generate_series(1, 30000) n";
    api.app.define("large", sql).await;
    let token = api.app.token("ana").await;
    let id = api.completed("large", &token).await;
    let request = api.get(&format!("/v1/executions/{id}/result")).bearer_auth(&token);
    let download = request.send().await.unwrap();
    // A connection that is accepted and has sent half of its request.
    let address = api.http.base.strip_prefix("http://").unwrap().to_owned();
    let mut half = TcpStream::connect(&address).await.unwrap();
    half.write_all(b"GET /readyz HTTP/1.1\r\nhost: registrar\r\n").await.unwrap();
    // Accepted for certain once a later connection was answered.
    assert_eq!(api.get("/healthz").answer().await.status, 200);
    api.http.shutdown.cancel();
    half.write_all(b"connection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("shutting_down"), "{answer}");
    assert!(download.bytes().await.unwrap().len() > 30_000_000);
    api.http.ended(Duration::from_secs(15)).await;
    assert!(TcpStream::connect(address).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_the_end_only_as_long_as_it_may() {
    let app = TestApp::new().with(|config| config.http.shutdown_grace_secs = 1);
    let mut api = Api::start(app).await;
    let sql = "select n, repeat('x', 1000) as x from generate_series(1, 30000) n";
    api.app.define("large", sql).await;
    let token = api.app.token("ana").await;
    let id = api.completed("large", &token).await;
    let request = api.get(&format!("/v1/executions/{id}/result")).bearer_auth(&token);
    let download = request.send().await.unwrap();
    api.http.shutdown.cancel();
    api.http.ended(Duration::from_secs(15)).await;
    assert!(download.bytes().await.is_err(), "the client notices that the file is not whole");
}
