//! Erasures over HTTP and from the command line.

use reqwest::Method;
use serde_json::{Value, json};

use super::{PERSON, People};
use crate::support::process::Process;

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[tokio::test]
async fn an_erasure_is_requested_followed_and_proven_over_http() {
    let people = People::new().await;
    let http = people.app.http().await;
    let (admin, ana) = (people.app.token("admin").await, people.app.token("ana").await);
    let body = json!({ "subject": PERSON });
    let (status, problem) = answer(http.post("/v1/erasures", &ana, &body)).await;
    assert_eq!((status, problem["type"].as_str()), (403, Some("/problems/forbidden")));
    let (status, erasure) = answer(http.post("/v1/erasures", &admin, &body)).await;
    assert_eq!((status, erasure["status"].as_str()), (202, Some("waiting")));
    let path = format!("/v1/erasures/{}", erasure["id"]);
    let cancel = || http.request(Method::POST, &format!("{path}/cancel")).bearer_auth(&admin);
    let (status, cancelled) = answer(cancel()).await;
    assert_eq!((status, cancelled["status"].as_str()), (200, Some("cancelled")));
    let (status, problem) = answer(cancel()).await;
    assert_eq!((status, problem["type"].as_str()), (409, Some("/problems/refused")));

    let body = json!({ "subject": 1007, "table": "users" });
    let (status, erasure) = answer(http.post("/v1/erasures", &admin, &body)).await;
    assert_eq!(status, 202, "{erasure}");
    people.end_grace().await;
    people.carry_out().await;
    let path = format!("/v1/erasures/{}", erasure["id"]);
    let (status, erasure) = answer(http.get(&path, &admin)).await;
    assert_eq!((status, erasure["status"].as_str()), (200, Some("completed")));
    let (status, certificate) = answer(http.get(&format!("{path}/certificate"), &admin)).await;
    assert_eq!(status, 200);
    assert!(certificate.as_str().unwrap().contains("\"kind\":\"anonymize\""), "{certificate}");
    let (status, page) = answer(http.get("/v1/erasures?limit=1", &admin)).await;
    assert_eq!((status, page["erasures"].as_array().unwrap().len()), (200, 1));
    let (status, page) = answer(http.get(page["next"].as_str().unwrap(), &admin)).await;
    assert_eq!((status, page["erasures"][0]["status"].as_str()), (200, Some("cancelled")));
    assert!(page["next"].is_null());
    for (request, expected) in [
        (http.get("/v1/erasures/99", &admin), 404),
        (http.get("/v1/erasures/99/certificate", &admin), 404),
        (http.get("/v1/runs/1/certificate", &admin), 404),
        (http.get("/v1/erasures?status=gone", &admin), 400),
        (http.get("/v1/erasures?limit=0", &admin), 400),
        (http.post("/v1/erasures", &admin, &json!({})), 422),
        (http.post("/v1/erasures", &admin, &json!({ "subject": {}, "x": 1 })), 422),
        (http.post("/v1/erasures", &admin, &json!({ "subject": "a\u{0}b" })), 404),
        (http.post("/v1/erasures", &admin, &json!({ "subject": "0" })), 404),
        (http.post("/v1/erasures", &admin, &json!({ "subject": "1", "table": "roles" })), 404),
    ] {
        let (status, problem) = answer(request).await;
        assert_eq!(status, expected, "{problem}");
    }
}

#[tokio::test]
async fn an_erasure_is_requested_carried_out_and_verified_from_the_command_line() {
    let people = People::new().await;
    let run = async |arguments: &[&str]| {
        let mut process = Process::start(&people.app.config, arguments);
        let code = process.ended().await.code();
        (code, process.log())
    };
    let (code, log) = run(&["erasure", "request", PERSON]).await;
    assert!(code == Some(0) && log.contains("erasure 1 is due on"), "{log}");
    let (code, log) = run(&["erasure", "cancel", "1"]).await;
    assert!(code == Some(0) && log.contains("open again"), "{log}");
    let (code, log) = run(&["erasure", "cancel", "1"]).await;
    assert!(code == Some(3) && log.contains("cancelled already"), "{log}");
    let (code, log) = run(&["erasure", "request", PERSON, "--json"]).await;
    assert!(code == Some(0) && log.contains("\"status\": \"waiting\""), "{log}");
    people.end_grace().await;
    let (code, log) = run(&["erasure", "run"]).await;
    assert!(code == Some(0) && log.contains("1 completed, 0 held"), "{log}");
    let (code, log) = run(&["erasure", "list", "--status", "completed"]).await;
    assert!(code == Some(0) && log.contains("1007"), "{log}");
    let (code, log) = run(&["run", "certificate", "erasure-2"]).await;
    assert!(code == Some(0) && log.lines().count() == 2, "{log}");
    let (code, log) = run(&["run", "verify"]).await;
    assert!(code == Some(0) && log.contains("1 certificates and 2 ledger entries"), "{log}");
    let (code, log) = run(&["erasure", "replay"]).await;
    assert!(code == Some(0) && log.contains("0 people found again"), "{log}");
    people.app.execute("update erasure_tables set rows_changed = 99").await;
    let (code, log) = run(&["run", "verify"]).await;
    assert!(code == Some(3) && log.contains("was changed since certificate 1"), "{log}");
}

#[tokio::test]
async fn a_worker_carries_out_what_is_due() {
    let people = People::new().await;
    let erasure = people.request(PERSON).await;
    people.end_grace().await;
    let worker = people.app.start_worker().await;
    let db = &people.app.services.db;
    registrar::scheduler::tick(db).await.unwrap();
    people
        .app
        .wait_for("the erasure to end", async || {
            people.status(erasure.id).await == registrar::db::erasures::Status::Completed
        })
        .await;
    worker.stop().await;
}
