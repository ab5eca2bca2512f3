//! What a submit is refused for before anything runs: choices that a query returns, and estimates.

use registrar::db::executions::Status;
use registrar::service::reports::Validated;
use serde_json::{Value, json};

use crate::support::TestApp;
use crate::support::http::Http;

async fn post(http: &Http, token: &str, path: &str, body: Value) -> (u16, Value) {
    let answer = http.post(path, token, &body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

const BY_ROLE: &str = "
    [[parameter]]
    name = 'role'
    type = 'text'
    choices_query = 'select name, description from roles order by name'
    [[parameter]]
    name = 'ids'
    type = 'integer'
    list = true
    choices_query = 'select id from roles'
";

#[tokio::test]
async fn choices_of_a_query_are_listed_and_checked_at_submit() {
    let app = TestApp::new().await;
    let sql = "select name from roles where name = :role or id = any(:ids) order by id";
    app.define_with("by-role", BY_ROLE, sql).await;
    let (http, ana) = (app.http().await, app.token("ana").await);
    let show = async || -> Value {
        http.get("/v1/reports/by-role", &ana).send().await.unwrap().json().await.unwrap()
    };
    let schema = show().await["parameters"]["properties"].clone();
    let choices = schema["role"]["oneOf"].as_array().unwrap();
    assert_eq!(choices[0]["const"], "admin", "{schema}");
    assert!(choices[0]["title"].as_str().is_some_and(|title| title != "admin"));
    assert_eq!(choices.last().unwrap(), &json!({"type": "null"}), "it may be left out");
    assert_eq!(schema["ids"]["items"]["oneOf"][0]["const"], 1, "{schema}");

    let path = "/v1/reports/by-role/executions";
    let wrong = json!({"parameters": {"role": "nobody's", "ids": [1, 4711, 2, -5]}});
    for path in [path.to_owned(), format!("{path}?validate_only=true")] {
        let (status, problem) = post(&http, &ana, &path, wrong.clone()).await;
        assert_eq!(status, 422, "{problem}");
        let errors = problem["errors"].as_array().unwrap();
        let pointers: Vec<_> = errors.iter().map(|e| e["pointer"].as_str().unwrap()).collect();
        assert_eq!(pointers, ["/parameters/role", "/parameters/ids/1", "/parameters/ids/3"]);
        assert!(errors.iter().all(|error| error["code"] == "choice"), "{problem}");
        assert!(!problem.to_string().contains("nobody's"), "what was given is not repeated");
    }
    // A role of this moment is a choice, although the list of a moment ago does not know it.
    app.execute("insert into roles (id, name) values (77, 'janitor')").await;
    let new = json!({"parameters": {"role": "janitor", "ids": [1, null]}});
    assert_eq!(post(&http, &ana, path, new).await.0, 422, "null is no item");
    let (status, submitted) =
        post(&http, &ana, path, json!({"parameters": {"role": "janitor", "ids": [1]}})).await;
    assert_eq!(status, 202, "{submitted}");
    let worker = app.start_worker().await;
    let id = submitted["id"].as_i64().unwrap();
    app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    assert_eq!(app.csv(id).await, "name\nadmin\njanitor\n");
}

#[tokio::test]
async fn a_long_list_of_choices_is_cut_and_still_checked_whole() {
    let app = TestApp::new().await;
    let parameter = "parameter = [{ name = 'n', type = 'bigint', required = true,
                     choices_query = 'select n::bigint from generate_series(1, 5000) n' }]";
    app.define_with("many", parameter, "select :n as n").await;
    let (http, ana) = (app.http().await, app.token("ana").await);
    let shown: Value =
        http.get("/v1/reports/many", &ana).send().await.unwrap().json().await.unwrap();
    let schema = &shown["parameters"]["properties"]["n"];
    assert!(schema.get("oneOf").is_none(), "{schema}");
    assert_eq!(schema["x-some-choices"].as_array().unwrap().len(), 1000);
    let check = "/v1/reports/many/executions?validate_only=true";
    assert_eq!(post(&http, &ana, check, json!({"parameters": {"n": "4999"}})).await.0, 200);
    assert_eq!(post(&http, &ana, check, json!({"parameters": {"n": "5001"}})).await.0, 422);
}

#[tokio::test]
async fn validate_checks_queries_for_choices_as_the_report_role() {
    let app = TestApp::new().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |slug: &str, query: &str| {
        let toml = format!(
            "title = 'x'\n[[parameter]]\nname = 'p'\ntype = 'integer'\nchoices_query = '{query}'\n"
        );
        std::fs::write(folder.path().join(format!("{slug}.toml")), toml).unwrap();
        std::fs::write(folder.path().join(format!("{slug}.sql")), "select :p as p").unwrap();
    };
    write("good", "select id, name from roles");
    write("no-table", "select id from nowhere");
    write("secret", "select id, password from users");
    write("three", "select id, name, name as again from roles");
    write("typed", "select name from roles");
    let validated = app.services.validate_templates(folder.path()).await.unwrap();
    let problems = |slug: &str| -> String {
        let Validated { problems, .. } = validated.iter().find(|v| v.slug == slug).unwrap();
        problems.join("\n")
    };
    assert_eq!(problems("good"), "");
    for (slug, expected) in [
        ("no-table", "parameter `p` choices_query"),
        ("secret", "parameter `p` choices_query"),
        ("three", "one or two columns"),
        ("typed", "must return `int4` in its first column, not `varchar`"),
    ] {
        assert!(problems(slug).contains(expected), "{slug}: {}", problems(slug));
    }
    let refused = registrar::report::definition::Definition::from_template(
        "x".parse().unwrap(),
        "title = 'x'\n[[parameter]]\nname = 'p'\ntype = 'date'\nchoices_query = 'select :q'",
        "select :p",
    );
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("only text, integer, bigint and uuid"), "{text}");
    assert!(text.contains("must not use parameters"), "{text}");
}

#[tokio::test]
async fn what_is_expected_to_be_too_much_is_refused_where_the_report_says_so() {
    let app = TestApp::new().await;
    let refuse = "limits = { max_rows = 100, over_estimate = 'refuse' }";
    let sql = "select n from generate_series(1, 1000) n";
    app.define_with("refusing", refuse, sql).await;
    app.define_with("running", "limits = { max_rows = 100 }", sql).await;
    let wide = "limits = { over_estimate = 'refuse' }";
    app.define_with("wide", wide, "select n from generate_series(1, 1100000) n").await;
    let (http, ana) = (app.http().await, app.token("ana").await);
    let path = |slug: &str| format!("/v1/reports/{slug}/executions");
    let check = |slug: &str| format!("/v1/reports/{slug}/executions?validate_only=true");

    let (status, problem) = post(&http, &ana, &path("refusing"), json!({})).await;
    assert_eq!((status, &problem["type"]), (422, &json!("/problems/estimate-over-limit")));
    assert_eq!(problem["errors"][0]["code"], "estimate_over_max_rows", "{problem}");
    let (status, estimate) = post(&http, &ana, &check("refusing"), json!({})).await;
    assert_eq!((status, &estimate["refused"]), (200, &json!(true)), "{estimate}");
    assert_eq!(estimate["over_limit"], "estimate_over_max_rows");
    let (_, estimate) = post(&http, &ana, &check("running"), json!({})).await;
    assert_eq!(
        (&estimate["over_limit"], &estimate["refused"]),
        (&json!("estimate_over_max_rows"), &json!(false))
    );
    // More than a sheet is a matter of workbooks alone.
    let xlsx = json!({"format": "xlsx"});
    let (status, problem) = post(&http, &ana, &path("wide"), xlsx.clone()).await;
    assert_eq!(status, 422, "{problem}");
    assert_eq!(problem["errors"][0]["code"], "estimate_over_sheet_rows", "{problem}");
    let (_, estimate) = post(&http, &ana, &check("wide"), json!({})).await;
    assert_eq!((&estimate["over_limit"], &estimate["refused"]), (&Value::Null, &json!(false)));
    assert_eq!(app.number("select count(*) from report_executions").await, 0, "nothing is queued");
}
