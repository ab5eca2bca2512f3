//! The manners that every client of the API may rely on: 21 rules, and for each the test that holds
//! it. Those that have no better place are here.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use registrar::db::executions::Status;
use serde_json::Value;

use super::{Answering, Api};
use crate::support::TestApp;

/// Rule, file below `tests/it/api/`, test.
const MANNERS: [(&str, &str, &str); 21] = [
    (
        "an error is a problem with pointers and a trace id",
        "errors",
        "every_field_of_a_submission_that_is_wrong_is_named",
    ),
    (
        "401 comes before 403 before 404, and 404 hides what is not yours",
        "errors",
        "without_the_permission_403_comes_before_404",
    ),
    (
        "a trace is continued and told",
        "errors",
        "a_trace_goes_through_answer_problem_execution_and_audit",
    ),
    ("a body has a limit: 413", "errors", "a_body_that_is_too_large_is_413"),
    (
        "a submit is 202 with Location and Retry-After",
        "executions",
        "a_submit_is_202_with_the_execution_and_where_to_follow_it",
    ),
    (
        "a key gives the same answer again, and another body is 422",
        "executions",
        "a_repeated_submit_gives_the_first_execution_again",
    ),
    (
        "a key whose submit still runs is 409",
        "executions",
        "a_key_whose_first_submit_still_runs_is_409_and_asks_for_patience",
    ),
    (
        "Prefer: wait may answer a submit finished",
        "executions",
        "prefer_wait_answers_a_submit_when_it_has_ended",
    ),
    (
        "validate_only estimates and runs nothing",
        "executions",
        "validate_only_estimates_and_stores_nothing",
    ),
    (
        "too much is 429 with Retry-After and RateLimit",
        "executions",
        "too_many_unfinished_executions_are_429_with_the_policy",
    ),
    ("a cursor is opaque and of its filter", "executions", "a_cursor_belongs_to_its_filter"),
    (
        "a wrong state is 409 with the current one",
        "executions",
        "a_cancelled_execution_can_be_run_again_and_no_other",
    ),
    (
        "ETag and 304, and Retry-After while it is on its way",
        "follow",
        "what_the_client_has_is_304_until_something_happens",
    ),
    ("Prefer: wait is a long poll", "follow", "a_long_poll_ends_when_the_state_changes"),
    (
        "events go on where Last-Event-ID says",
        "manners",
        "events_go_on_where_the_last_event_id_says",
    ),
    (
        "a result has its name, its digest and its length",
        "results",
        "a_result_comes_whole_with_all_that_describes_it",
    ),
    ("Range gives exactly these bytes", "results", "a_range_gives_exactly_these_bytes"),
    ("rights are checked at the download", "results", "rights_are_checked_at_the_download"),
    ("an expired result is 410", "results", "an_expired_result_is_410_and_its_execution_stays"),
    ("a result may be a link for 60 s", "manners", "a_result_may_be_a_link_signed_for_a_minute"),
    (
        "a token is stored as a hash, scoped, expiring, revocable at once",
        "manners",
        "a_token_is_a_hash_with_scopes_an_end_and_no_second_life",
    ),
];

#[test]
fn each_manner_has_a_test_of_its_own() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/api");
    let mut tests = BTreeSet::new();
    for (rule, file, test) in MANNERS {
        let text = std::fs::read_to_string(folder.join(file).with_extension("rs")).unwrap();
        assert!(text.contains(&format!("async fn {test}()")), "{rule}: {file}::{test}");
        assert!(tests.insert(test), "{test} holds two rules");
    }
}

/// Reads events until `enough` of them are there or the stream ends.
async fn events(response: reqwest::Response, enough: usize) -> Vec<(String, Value)> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut stream = response.bytes_stream();
    let mut text = String::new();
    while text.matches("\n\n").count() < enough {
        let piece = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
        let Some(piece) = piece.expect("an event in time") else { break };
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    text.split("\n\n")
        .filter_map(|event| Some((field(event, "id")?, field(event, "data")?)))
        .map(|(id, data)| (id, serde_json::from_str(&data).unwrap()))
        .collect()
}

#[tokio::test]
async fn events_go_on_where_the_last_event_id_says() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let path = format!("/v1/executions/{id}/events");
    let watch = || api.get(&path).bearer_auth(&token);
    let first = events(watch().send().await.unwrap(), 1).await;
    assert_eq!(first[0].1["status"], "pending");
    // Who comes back waits for news, and the stream ends with the execution.
    let watching = watch().header("Last-Event-ID", &first[0].0).send().await.unwrap();
    let worker = api.app.start_worker().await;
    api.app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    let news = events(watching, usize::MAX).await;
    assert!(news.iter().all(|(id, _)| *id != first[0].0), "{news:?}");
    let (last_id, last) = news.last().expect("there was news");
    assert_eq!(last["status"], "completed");
    let whole = api.get(&format!("/v1/executions/{id}")).bearer_auth(&token).answer().await;
    assert_eq!(whole.json(200), *last, "an event is what the resource shows");
    assert_eq!(whole.header("etag"), format!("\"{last_id}\""));
    // Who has the end is told not to come back.
    assert_eq!(watch().header("Last-Event-ID", last_id).answer().await.status, 204);
    let lena = api.app.token("lena").await;
    api.get(&path).bearer_auth(&lena).answer().await.problem(404, "not-found");
}

#[tokio::test]
async fn a_stream_of_events_ends_when_the_service_does() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let path = format!("/v1/executions/{id}/events");
    let watching = api.get(&path).bearer_auth(&token).send().await.unwrap();
    api.http.shutdown.cancel();
    assert_eq!(events(watching, usize::MAX).await.len(), 1);
    api.http.ended(Duration::from_secs(20)).await;
}

#[tokio::test]
async fn a_result_may_be_a_link_signed_for_a_minute() {
    let app = TestApp::new().on_s3().with(|config| config.store.signed_links = true);
    let api = Api::start(app).await;
    api.define_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let path = format!("/v1/executions/{id}/result?link=true");
    let answer = api.get(&path).bearer_auth(&token).answer().await;
    assert_eq!(answer.status, 302, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), "private, no-store");
    let link = answer.header("location");
    assert!(link.contains("X-Amz-Expires=60&") && link.contains("numbers-"), "{link}");
    // Without a token, as whoever has the link does.
    let fetched = api.http.client.get(link).send().await.unwrap();
    assert_eq!(fetched.status(), 200);
    assert_eq!(fetched.headers()["content-type"], "text/csv; charset=utf-8");
    let name = fetched.headers()["content-disposition"].to_str().unwrap().to_owned();
    assert!(name.contains(&format!("filename*=UTF-8''numbers-{id}.csv")), "{name}");
    assert_eq!(fetched.bytes().await.unwrap(), "n\n1\n2\n3\n");
    let changed = link.replace("numbers-", "others-");
    assert_eq!(api.http.client.get(changed).send().await.unwrap().status(), 403);
    let downloads =
        api.app.audit(id).await.iter().filter(|action| *action == "execution.downloaded").count();
    assert_eq!(downloads, 1, "a link is a download");
}

#[tokio::test]
async fn where_no_links_are_allowed_the_file_comes_itself() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let path = format!("/v1/executions/{id}/result?link=true");
    let answer = api.get(&path).bearer_auth(&token).answer().await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "n\n1\n2\n3\n"));
}

#[tokio::test]
async fn a_token_is_a_hash_with_scopes_an_end_and_no_second_life() {
    let api = Api::with_numbers().await;
    let made = api.app.limited_token("ana", Some(&["reports.view"]), Some(1)).await;
    let list = || api.get("/v1/reports").bearer_auth(&made.token).answer();
    assert_eq!(list().await.status, 200);
    api.submit("numbers", &made.token).answer().await.problem(403, "forbidden");
    let stored: String = sqlx::query_scalar("select string_agg(t::text, ',') from api_tokens t")
        .fetch_one(&api.app.services.db)
        .await
        .unwrap();
    assert!(stored.contains(&made.row.prefix) && !stored.contains(&made.token[20..]), "{stored}");
    api.app.execute("update api_tokens set expires_at = now()").await;
    list().await.problem(401, "unauthenticated");
    api.app.execute("update api_tokens set expires_at = null").await;
    assert_eq!(list().await.status, 200);
    api.app.services.revoke_token(&api.app.operator(), &made.row.prefix).await.unwrap();
    list().await.problem(401, "unauthenticated");
}
