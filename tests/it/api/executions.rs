//! Submitting, cancelling, running again, listing.

use std::collections::BTreeSet;

use registrar::db::executions::Status;
use serde_json::json;

use super::{Answering, Api};
use crate::support::TestApp;

#[tokio::test]
async fn the_catalogue_tells_all_that_a_submit_needs() {
    let api = Api::start(TestApp::new()).await;
    api.app.sync_templates().await;
    let token = api.app.token("ana").await;
    let list = api.get("/v1/reports").bearer_auth(&token).answer().await.json(200);
    let ranking = list["reports"]
        .as_array()
        .unwrap()
        .iter()
        .find(|report| report["slug"] == "gpa-ranking")
        .expect("a template");
    let path = ranking["links"]["self"].as_str().unwrap();
    let report = api.get(path).bearer_auth(&token).answer().await.json(200);
    assert_eq!(report["title"], ranking["title"]);
    let schema = &report["parameters"];
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["min_credits"]["default"], 30);
    assert_eq!(report["formats"], json!(["csv", "xlsx", "parquet", "ndjson"]));
    assert_eq!(report["limits"]["timeout_secs"], 120);
    assert_eq!(report["limits"]["max_rows"], 1_000_000);
    assert_eq!(report["expires_after_days"], 7);
    assert_eq!(report["columns"][2]["label"], "Rank");
    assert_eq!(report["links"]["executions"], "/v1/reports/gpa-ranking/executions");
}

#[tokio::test]
async fn a_submit_is_202_with_the_execution_and_where_to_follow_it() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let path = "/v1/reports/numbers/executions";
    let body = json!({"format": "xlsx", "reader": "spreadsheet"});
    let answer = api.post(path).bearer_auth(&token).json(&body).answer().await;
    let execution = answer.json(202);
    assert_eq!(execution["status"], "pending");
    assert_eq!(execution["format"], "xlsx");
    assert_eq!(execution["options"]["reader"], "spreadsheet");
    assert_eq!(execution["queue_position"], 0);
    let location = answer.header("location");
    assert_eq!(location, format!("/v1/executions/{}", answer.id()));
    assert_eq!(execution["links"]["self"], location);
    assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    let followed = api.get(location).bearer_auth(&token).answer().await.json(200);
    assert_eq!(followed, execution);
    let second = api.submit("numbers", &token).answer().await.json(202);
    assert_eq!(second["queue_position"], 1);
}

#[tokio::test]
async fn a_repeated_submit_gives_the_first_execution_again() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let submit = |body: serde_json::Value, token: &str| {
        api.post("/v1/reports/numbers/executions")
            .bearer_auth(token)
            .header("Idempotency-Key", "monthly-2026-03")
            .json(&body)
    };
    let first = submit(json!({"format": "csv"}), &token).answer().await;
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let again = submit(json!({"format": "csv"}), &token).answer().await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.json(202), first.json(202));
    let other = submit(json!({"format": "xlsx"}), &token).answer().await;
    other.problem(422, "idempotency-mismatch");
    // Keys are each caller's own.
    let lena = api.app.token("lena").await;
    assert_ne!(submit(json!({"format": "csv"}), &lena).answer().await.id(), first.id());
    assert_eq!(api.app.number("select count(*) from report_executions").await, 2);
}

#[tokio::test]
async fn a_key_whose_first_submit_still_runs_is_409_and_asks_for_patience() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    // Another submit that has taken the key and is not committed.
    let mut tx = api.app.services.db.begin().await.unwrap();
    sqlx::query(
        "insert into idempotency_keys (user_id, idempotency_key, request_sha256, expires_at)
         select id, 'slow', sha256(''), now() + interval '1 hour'
           from users
          where username = 'ana'",
    )
    .execute(&mut *tx)
    .await
    .unwrap();
    let answer = api.submit("numbers", &token).header("Idempotency-Key", "slow").answer().await;
    answer.problem(409, "idempotency-in-flight");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_not_one_is_400_and_named() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let long = "k".repeat(256);
    for key in [&b""[..], b"two words", b"caf\xc3\xa9", long.as_bytes()] {
        let key = reqwest::header::HeaderValue::from_bytes(key).unwrap();
        let answer = api.submit("numbers", &token).header("Idempotency-Key", key).answer().await;
        let problem = answer.problem(400, "invalid-header");
        assert_eq!(problem["errors"][0]["header"], "Idempotency-Key");
    }
    let request = api.submit("numbers", &token);
    let twice = request.header("Idempotency-Key", "a").header("Idempotency-Key", "b");
    let problem = twice.answer().await.problem(400, "invalid-header");
    assert_eq!(problem["errors"][0]["header"], "idempotency-key");
}

#[tokio::test]
async fn validate_only_estimates_and_stores_nothing() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let path = "/v1/reports/numbers/executions?validate_only=true";
    let request = api.post(path).bearer_auth(&token).json(&json!({}));
    let estimate = request.answer().await.json(200);
    assert_eq!(estimate["estimated_rows"], 3.0);
    assert!(estimate["estimated_cost"].as_f64().unwrap() > 0.0);
    assert!(estimate["max_rows"].as_u64().unwrap() > 0);
    assert_eq!(api.app.number("select count(*) from report_executions").await, 0);
}

#[tokio::test]
async fn validate_only_tells_what_the_server_will_not_run() {
    let api = Api::start(TestApp::new()).await;
    api.app.define("forbidden", "select password from users").await;
    let integer = "[[parameter]]\nname = \"by\"\ntype = \"integer\"\n";
    api.app.define_with("ratio", integer, "select 1 / :by as ratio").await;
    let token = api.app.token("ana").await;
    let check = |slug: &str, parameters: serde_json::Value| {
        let path = format!("/v1/reports/{slug}/executions?validate_only=true");
        api.post(&path).bearer_auth(&token).json(&json!({"parameters": parameters}))
    };
    let problem = check("forbidden", json!({})).answer().await.problem(422, "report-fails");
    assert_eq!(problem["errors"][0]["code"], "permission_denied");
    // The planner divides; the caller's zero is the caller's to mend.
    let answer = check("ratio", json!({"by": 0})).answer().await;
    let problem = answer.problem(422, "invalid-input");
    assert_eq!(super::pointers(&problem), ["/parameters"]);
    assert_eq!(check("ratio", json!({"by": 2})).answer().await.status, 200);
}

#[tokio::test]
async fn prefer_wait_answers_a_submit_when_it_has_ended() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let worker = api.app.start_worker().await;
    let answer = api.submit("numbers", &token).header("Prefer", "wait=30").answer().await;
    let execution = answer.json(200);
    assert_eq!(execution["status"], "completed");
    assert_eq!(execution["result"]["rows"], 3);
    assert_eq!(answer.header("preference-applied"), "wait=30");
    assert_eq!(answer.header("location"), execution["links"]["self"].as_str().unwrap());
    worker.stop().await;
}

#[tokio::test]
async fn prefer_wait_gives_up_in_time() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let answer = api.submit("numbers", &token).header("Prefer", "wait=1").answer().await;
    assert_eq!(answer.json(202)["status"], "pending");
    assert_eq!(answer.header("preference-applied"), "wait=1");
}

#[tokio::test]
async fn too_many_unfinished_executions_are_429_with_the_policy() {
    let app = TestApp::new().with(|config| {
        config.report.max_active_per_user = 2.try_into().unwrap();
    });
    let mut api = Api::start(app).await;
    api.app.leave_unfinished();
    api.define_numbers().await;
    let token = api.app.token("ana").await;
    for _ in 0..2 {
        assert_eq!(api.submit("numbers", &token).answer().await.status, 202);
    }
    let answer = api.submit("numbers", &token).answer().await;
    answer.problem(429, "too-many-active");
    let seconds: u32 = answer.header("retry-after").parse().unwrap();
    assert_eq!(answer.header("ratelimit-policy"), "\"active\";q=2");
    assert_eq!(answer.header("ratelimit"), format!("\"active\";r=0;t={seconds}"));
}

#[tokio::test]
async fn a_waiting_execution_is_cancelled_at_once_and_only_once() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let path = format!("/v1/executions/{id}/cancel");
    let answer = api.post(&path).bearer_auth(&token).answer().await;
    let execution = answer.json(202);
    assert_eq!(execution["status"], "cancelled");
    assert_eq!(execution["links"]["retry"], format!("/v1/executions/{id}/retry"));
    assert_eq!(answer.header("location"), format!("/v1/executions/{id}"));
    assert!(!answer.headers.contains_key("retry-after"), "it is final");
    let problem = api.post(&path).bearer_auth(&token).answer().await.problem(409, "wrong-state");
    assert_eq!(problem["execution_status"], "cancelled");
}

#[tokio::test]
async fn a_running_execution_is_cancelled_on_the_server_too() {
    let api = Api::start(TestApp::new()).await;
    api.define_endless().await;
    let token = api.app.token("ana").await;
    let worker = api.app.start_worker().await;
    let id = api.submit("endless", &token).answer().await.id();
    api.app.wait_until_querying(id).await;
    let path = format!("/v1/executions/{id}");
    let answer = api.post(&format!("{path}/cancel")).bearer_auth(&token).answer().await;
    assert_eq!(answer.json(202)["status"], "cancelling");
    api.app.wait_until(id, Status::Cancelled).await;
    assert_eq!(api.app.report_backends().await, 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_cancelled_execution_can_be_run_again_and_no_other() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let retry = || api.post(&format!("/v1/executions/{id}/retry")).bearer_auth(&token);
    let problem = retry().answer().await.problem(409, "wrong-state");
    assert_eq!(problem["execution_status"], "pending");
    let cancel = api.post(&format!("/v1/executions/{id}/cancel")).bearer_auth(&token);
    cancel.answer().await.json(202);
    let answer = retry().answer().await;
    assert_eq!(answer.json(202)["status"], "pending");
    assert_eq!(answer.header("location"), format!("/v1/executions/{id}"));
    let worker = api.app.start_worker().await;
    api.app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    retry().answer().await.problem(409, "wrong-state");
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repetition() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    api.app.define("letters", "select 'a' as a").await;
    let (ana, lena) = (api.app.token("ana").await, api.app.token("lena").await);
    let mut own = BTreeSet::new();
    for _ in 0..5 {
        own.insert(api.submit("numbers", &ana).answer().await.id());
        api.submit("numbers", &lena).answer().await.id();
        api.submit("letters", &ana).answer().await.id();
    }
    let mut seen = Vec::new();
    let mut next = Some("/v1/executions?report=numbers&status=pending&limit=2".to_owned());
    let mut pages = 0;
    while let Some(path) = next {
        let answer = api.get(&path).bearer_auth(&ana).answer().await;
        let page = answer.json(200);
        let executions = page["executions"].as_array().unwrap();
        seen.extend(executions.iter().map(|execution| execution["id"].as_i64().unwrap()));
        next = page["next"].as_str().map(str::to_owned);
        match &next {
            Some(next) => assert_eq!(answer.header("link"), format!("<{next}>; rel=\"next\"")),
            None => assert!(!answer.headers.contains_key("link")),
        }
        pages += 1;
        assert!(pages <= 3, "no empty last page");
    }
    let newest_first: Vec<_> = own.into_iter().rev().collect();
    assert_eq!(seen, newest_first);
}

#[tokio::test]
async fn a_cursor_belongs_to_its_filter() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    for _ in 0..2 {
        api.submit("numbers", &token).answer().await;
    }
    let page = api.get("/v1/executions?limit=1").bearer_auth(&token).answer().await.json(200);
    let next = page["next"].as_str().unwrap();
    let other = format!("{next}&status=pending");
    let problem = api.get(&other).bearer_auth(&token).answer().await.problem(400, "invalid-query");
    assert_eq!(problem["errors"][0]["parameter"], "cursor");
    assert_eq!(api.get(next).bearer_auth(&token).answer().await.status, 200);
}

#[tokio::test]
async fn lists_show_ones_own_or_everybodys_to_those_who_see_all() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let (ana, rui) = (api.app.token("ana").await, api.app.token("rui").await);
    let first = api.submit("numbers", &ana).answer().await.id();
    let second = api.submit("numbers", &rui).answer().await.id();
    let list = async |path: &str, token: &str| -> Vec<i64> {
        let page = api.get(path).bearer_auth(token).answer().await.json(200);
        let executions = page["executions"].as_array().unwrap();
        executions.iter().map(|execution| execution["id"].as_i64().unwrap()).collect()
    };
    assert_eq!(list("/v1/executions", &ana).await, [first]);
    assert_eq!(list("/v1/executions", &rui).await, [second, first]);
    assert_eq!(list("/v1/executions?mine=true", &rui).await, [second]);
    assert_eq!(list("/v1/executions?status=completed", &rui).await, Vec::<i64>::new());
}
