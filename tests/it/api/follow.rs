//! Following executions cheaply.

use std::time::Duration;

use registrar::db::executions::Status;

use super::{Answering, Api};
use crate::support::TestApp;

#[tokio::test]
async fn what_the_client_has_is_304_until_something_happens() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let path = format!("/v1/executions/{id}");
    let first = api.get(&path).bearer_auth(&token).answer().await;
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "a strong tag: {tag}");
    assert_eq!(first.header("cache-control"), "private, no-cache");
    let known = async |tag: &str| {
        let request = api.get(&path).bearer_auth(&token);
        request.header("if-none-match", tag).answer().await
    };
    for tags in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let answer = known(&tags).await;
        assert_eq!(answer.status, 304, "{tags}");
        assert_eq!(answer.header("etag"), tag);
        assert!(answer.body.is_empty());
        assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    }
    let worker = api.app.start_worker().await;
    api.app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    let ended = known(&tag).await;
    assert_eq!(ended.json(200)["status"], "completed");
    assert_ne!(ended.header("etag"), tag);
    assert!(!ended.headers.contains_key("retry-after"), "there is nothing to wait for");
}

#[tokio::test]
async fn a_completed_execution_tells_its_result_and_where_it_is() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let path = format!("/v1/executions/{id}");
    let execution = api.get(&path).bearer_auth(&token).answer().await.json(200);
    assert_eq!(execution["result"]["rows"], 3);
    assert_eq!(execution["result"]["truncated"], false);
    assert_eq!(execution["result"]["size_bytes"], "n\n1\n2\n3\n".len());
    assert_eq!(execution["links"]["result"], format!("{path}/result"));
    assert_eq!(execution["links"]["manifest"], format!("{path}/manifest"));
    assert_eq!(execution["links"]["cancel"], serde_json::Value::Null);
    assert!(!execution.to_string().contains("results/"), "the place in the store is nobody's");
}

#[tokio::test]
async fn a_failed_execution_tells_why() {
    let api = Api::start(TestApp::new()).await;
    api.app.define("broken", "select 1 / (n - 2) as n from generate_series(1, 3) n").await;
    let token = api.app.token("ana").await;
    let id = api.submit("broken", &token).answer().await.id();
    let worker = api.app.start_worker().await;
    api.app.wait_until(id, Status::Failed).await;
    worker.stop().await;
    let path = format!("/v1/executions/{id}");
    let execution = api.get(&path).bearer_auth(&token).answer().await.json(200);
    assert_eq!(execution["error"]["code"], "sql_error");
    assert_eq!(execution["error"]["message"], "division by zero (SQLSTATE 22012)");
    assert_eq!(execution["result"], serde_json::Value::Null);
    assert_eq!(execution["links"]["retry"], format!("{path}/retry"));
}

#[tokio::test]
async fn a_long_poll_ends_when_the_state_changes() {
    let api = Api::start(TestApp::new()).await;
    api.define_endless().await;
    let token = api.app.token("ana").await;
    let id = api.submit("endless", &token).answer().await.id();
    let path = format!("/v1/executions/{id}");
    let poll = api.get(&path).bearer_auth(&token).header("Prefer", "wait=30");
    let polling = tokio::spawn(poll.answer());
    let worker = api.app.start_worker().await;
    let answer = polling.await.unwrap();
    assert_eq!(answer.json(200)["status"], "processing");
    assert_eq!(answer.header("preference-applied"), "wait=30");
    let cancel = api.post(&format!("{path}/cancel")).bearer_auth(&token);
    cancel.answer().await.json(202);
    api.app.wait_until(id, Status::Cancelled).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_conditional_long_poll_is_304_when_nothing_happened() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let path = format!("/v1/executions/{id}");
    let tag = api.get(&path).bearer_auth(&token).answer().await.header("etag").to_owned();
    let poll = |wait: &'static str| {
        let request = api.get(&path).bearer_auth(&token).header("if-none-match", &tag);
        request.header("Prefer", wait)
    };
    let answer = poll("wait=1").answer().await;
    assert_eq!(answer.status, 304);
    // Anything is news, here the place in the queue.
    let polling = tokio::spawn(poll("wait=30").answer());
    tokio::task::yield_now().await;
    api.app.execute("update report_executions set progress_rows = 7").await;
    assert_eq!(polling.await.unwrap().json(200)["progress"]["rows"], 7);
}

#[tokio::test]
async fn a_long_poll_of_what_is_final_ends_at_once() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let cancel = api.post(&format!("/v1/executions/{id}/cancel")).bearer_auth(&token);
    cancel.answer().await.json(202);
    let request = api.get(&format!("/v1/executions/{id}")).bearer_auth(&token);
    let poll = request.header("Prefer", "wait=30").answer();
    let answer = tokio::time::timeout(Duration::from_secs(20), poll).await.expect("at once");
    assert_eq!(answer.json(200)["status"], "cancelled");
}

#[tokio::test]
async fn a_long_poll_ends_when_the_service_does() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    // A token that was never used: once it is, the poll is open.
    let fresh = api.app.token("ana").await;
    let request = api.get(&format!("/v1/executions/{id}")).bearer_auth(&fresh);
    let polling = tokio::spawn(request.header("Prefer", "wait=30").answer());
    let unused = "select count(*) from api_tokens where last_used_at is null";
    api.app.wait_for("the poll to be open", async || api.app.number(unused).await == 0).await;
    api.http.shutdown.cancel();
    assert_eq!(polling.await.unwrap().json(200)["status"], "pending");
    // The poll is what could have kept it, for half a minute.
    api.http.ended(Duration::from_secs(20)).await;
}
