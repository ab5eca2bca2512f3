//! Reports that are kept over the API.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, Answering, Api, pointers};
use crate::support::TestApp;

async fn put(api: &Api, token: &str, slug: &str, body: &Value) -> Answer {
    let path = format!("/v1/reports/{slug}");
    api.request(Method::PUT, &path).bearer_auth(token).json(body).answer().await
}

async fn get(api: &Api, token: &str, path: &str) -> Answer {
    api.get(path).bearer_auth(token).answer().await
}

async fn delete(api: &Api, token: &str, slug: &str) -> Answer {
    let path = format!("/v1/reports/{slug}");
    api.request(Method::DELETE, &path).bearer_auth(token).answer().await
}

fn body() -> Value {
    json!({
        "title": "Numbers", "query": "select n from generate_series(1, :up_to::int) n",
        "parameter": [{"name": "up_to", "type": "integer", "default": 2}],
        "column": [{"name": "n", "label": "Number"}],
    })
}

#[tokio::test]
async fn a_report_is_stored_run_changed_and_deleted_over_the_api() {
    let api = Api::start(TestApp::new()).await;
    let (ana, rui) = (api.app.token("ana").await, api.app.token("rui").await);
    let made = put(&api, &rui, "up-to", &body()).await.json(201);
    assert_eq!((&made["slug"], &made["version"]), (&json!("up-to"), &json!(1)));
    let id = api.completed("up-to", &ana).await;
    assert_eq!(api.app.csv(id).await, "n\n1\n2\n");

    // The same is no new version; what can be read can be stored again.
    let again = put(&api, &rui, "up-to", &made["definition"]).await.json(200);
    assert_eq!(again["version"], 1);
    let mut changed = body();
    changed["query"] = "select n from generate_series(1, :up_to::int + 1) n".into();
    let changed = put(&api, &rui, "up-to", &changed).await.json(200);
    assert_eq!(changed["version"], 2);
    let second = api.completed("up-to", &ana).await;
    assert_eq!(api.app.csv(second).await, "n\n1\n2\n3\n");
    let shown = get(&api, &ana, "/v1/reports/up-to").await.json(200);
    assert!(shown.get("definition").is_none(), "who runs it does not see its SQL");

    delete(&api, &rui, "up-to").await.json(200);
    get(&api, &ana, "/v1/reports/up-to").await.problem(404, "not-found");
    api.submit("up-to", &ana).answer().await.problem(404, "not-found");
    delete(&api, &rui, "up-to").await.problem(404, "not-found");
    let result = get(&api, &ana, &format!("/v1/executions/{id}/result")).await;
    assert_eq!(result.text(), "n\n1\n2\n", "results stay");
    let back = put(&api, &rui, "up-to", &body()).await.json(200);
    assert_eq!(back["version"], 3, "and versions go on");
    let audited = "select count(*) from audit_logs a join users u on u.id = a.user_id
                    where u.username = 'rui' and a.action in ('report.stored', 'report.deleted')";
    assert_eq!(api.app.number(audited).await, 4);
}

#[tokio::test]
async fn a_report_that_could_not_run_is_refused_where_it_is_wrong() {
    let api = Api::start(TestApp::new()).await;
    let rui = api.app.token("rui").await;
    let with = |key: &str, value: Value| {
        let mut body = body();
        body[key] = value;
        body
    };
    for (body, pointer) in [
        (json!({"query": "select 1"}), ""),
        (json!({"title": "No query"}), "/query"),
        (with("title", json!("")), "/title"),
        (with("colour", json!("red")), ""),
        (with("time_zone", json!("Mars/Olympus")), "/time_zone"),
        (with("query", json!("select :other")), "/query"),
        (with("query", json!("select 'not closed")), "/query"),
        (with("query", json!("select '\0', :up_to")), "/"),
        (with("column", json!([{"name": "m", "format": "integer"}])), "/query"),
    ] {
        let refused = put(&api, &rui, "wrong", &body).await;
        let refused = refused.problem(422, "invalid-input");
        assert!(pointers(&refused).contains(&pointer), "{body}: {refused}");
    }
    for query in [
        "select nothing from nowhere where :up_to = 1",
        "delete from users where id = :up_to",
        "select token_sha256 from api_tokens where id = :up_to",
        "select 1 where :up_to = 1; select 2",
    ] {
        let refused = put(&api, &rui, "wrong", &with("query", json!(query))).await;
        assert_eq!(refused.status, 422, "{query}: {}", refused.text());
    }
    get(&api, &rui, "/v1/reports/wrong").await.problem(404, "not-found");
    let refused = put(&api, &rui, "Not%20A%20Slug", &body()).await;
    refused.problem(422, "invalid-input");
}

#[tokio::test]
async fn reports_are_kept_by_those_who_may_and_templates_in_their_files() {
    let api = Api::start(TestApp::new()).await;
    api.app.sync_templates().await;
    let (ana, rui) = (api.app.token("ana").await, api.app.token("rui").await);
    put(&api, &ana, "mine", &body()).await.problem(403, "forbidden");
    delete(&api, &ana, "gpa-ranking").await.problem(403, "forbidden");
    for answer in
        [put(&api, &rui, "gpa-ranking", &body()).await, delete(&api, &rui, "gpa-ranking").await]
    {
        assert_eq!(answer.problem(409, "refused")["errors"][0]["code"], "is_template");
    }
    get(&api, &ana, "/v1/reports/gpa-ranking").await.json(200);
}
