//! Further formats of a finished execution, and executions that share one run.

use registrar::db::executions::Status;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::TestApp;
use crate::support::http::Http;

/// Waits until nobody holds the gate's lock alone; then what it reads is seen at once.
const GATED: &str = "select pg_advisory_xact_lock_shared(7)::text as passed, :n as n";
const N: &str = "parameter = [{ name = \"n\", type = \"integer\", default = 1 }]";

async fn close_gate(app: &TestApp) -> PgConnection {
    let mut gate = PgConnection::connect(app.database_url()).await.unwrap();
    sqlx::query("select pg_advisory_lock(7)").execute(&mut gate).await.unwrap();
    gate
}

async fn patient() -> TestApp {
    TestApp::new().with(|config| config.report.lock_timeout_ms = 60_000.try_into().unwrap()).await
}

/// The answer to a POST: status and body.
async fn post(http: &Http, token: &str, path: &str, body: Value) -> (StatusCode, Value) {
    let answer = http.post(path, token, &body).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn submit(http: &Http, token: &str, slug: &str, body: Value) -> Value {
    let (status, body) = post(http, token, &format!("/v1/reports/{slug}/executions"), body).await;
    assert_eq!(status, 202, "{body}");
    body
}

fn id(execution: &Value) -> i64 {
    execution["id"].as_i64().unwrap()
}

async fn fetch(http: &Http, token: &str, path: &str) -> (StatusCode, Vec<u8>) {
    let answer = http.get(path, token).send().await.unwrap();
    (answer.status(), answer.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn a_further_format_is_made_once_of_the_same_version_and_parameters() {
    let app = TestApp::new().await;
    app.define_with("numbers", N, "select n, now() as at from generate_series(1, :n) n").await;
    let (http, ana) = (app.http().await, app.token("ana").await);
    let worker = app.start_worker().await;
    let first = id(&submit(&http, &ana, "numbers", json!({"parameters": {"n": 3}})).await);
    app.wait_until(first, Status::Completed).await;
    // What runs is the version of the first, not today's.
    app.define_with("numbers", N, "select 'other' as n, :n as at").await;

    let path = format!("/v1/executions/{first}");
    let missing = fetch(&http, &ana, &format!("{path}/result?format=ndjson")).await;
    assert_eq!(missing.0, 404, "nobody has made it yet");
    let wanted = json!({"format": "ndjson"});
    let (status, made) = post(&http, &ana, &format!("{path}/formats"), wanted.clone()).await;
    assert_eq!(status, 202, "{made}");
    assert_eq!((made["format_of"].as_i64(), &made["definition_version"]), (Some(first), &json!(1)));
    let second = app.wait_until(id(&made), Status::Completed).await;
    let (status, again) = post(&http, &ana, &format!("{path}/formats"), wanted).await;
    assert_eq!((status, id(&again)), (StatusCode::OK, id(&made)), "asking twice runs once");
    let (status, itself) =
        post(&http, &ana, &format!("{path}/formats"), json!({"format": "csv"})).await;
    assert_eq!((status, id(&itself)), (StatusCode::OK, first), "it has this one already");

    let (status, file) = fetch(&http, &ana, &format!("{path}/result?format=ndjson")).await;
    assert_eq!(status, 200);
    let lines: Vec<Value> =
        file.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect();
    assert_eq!(
        lines.iter().map(|line| line["n"].as_i64()).collect::<Vec<_>>(),
        [1, 2, 3].map(Some)
    );
    let (old, new) = (app.execution(first).await, second);
    assert!(new.snapshot_at > old.snapshot_at, "a snapshot of its own, and it says so");
    let manifest = app.manifest(new.id).await;
    assert_eq!((manifest.format_of, manifest.definition_version), (Some(first), 1));
    assert_eq!(Some(manifest.snapshot_at), new.snapshot_at);
    assert_eq!(manifest.parameters, json!({"n": 3}));

    // Nobody else gets at it, and a body with what is fixed is refused.
    let lena = app.token("lena").await;
    let (status, _) = post(&http, &lena, &format!("{path}/formats"), json!({})).await;
    assert_eq!(status, 404);
    let (status, problem) =
        post(&http, &ana, &format!("{path}/formats"), json!({"parameters": {"n": 9}})).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!("/parameters")));
    worker.stop().await;
}

#[tokio::test]
async fn a_format_of_what_is_not_completed_is_refused() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let (http, ana) = (app.http().await, app.token("ana").await);
    let first = id(&submit(&http, &ana, "one", json!({})).await);
    let path = format!("/v1/executions/{first}/formats");
    let (status, problem) = post(&http, &ana, &path, json!({"format": "xlsx"})).await;
    assert_eq!((status.as_u16(), &problem["execution_status"]), (409, &json!("pending")));
    app.leave_unfinished();
}

#[tokio::test]
async fn the_command_line_fetches_another_format() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let first = app.submit("one", json!({})).await;
    let worker = app.start_worker().await;
    app.wait_until(first, Status::Completed).await;
    let id = first.to_string();
    let arguments = ["execution", "download", &id, "--format", "ndjson", "--output", "one.ndjson"];
    let mut process = crate::support::process::Process::start(&app.config, &arguments);
    let status = process.ended().await;
    assert!(status.success(), "{}", process.log());
    assert_eq!(process.file("one.ndjson"), "{\"one\":1}\n");
    assert!(process.log().contains("A snapshot of its own"), "{}", process.log());
    worker.stop().await;
}

#[tokio::test]
async fn identical_submits_share_one_run_and_a_fresh_result() {
    let app = patient().await;
    app.define_with("gated", N, GATED).await;
    let (http, ana, lena) = (app.http().await, app.token("ana").await, app.token("lena").await);
    let gate = close_gate(&app).await;
    let worker = app.start_worker().await;
    let reuse = json!({"parameters": {"n": 5}, "reuse": {"max_age_secs": 600}});
    let leader = submit(&http, &ana, "gated", json!({"parameters": {"n": 5}})).await;
    app.wait_until_querying(id(&leader)).await;
    let followers = [
        submit(&http, &lena, "gated", reuse.clone()).await,
        submit(&http, &ana, "gated", reuse.clone()).await,
    ];
    for follower in &followers {
        assert_eq!((&follower["shared"], &follower["status"]), (&json!(true), &json!("pending")));
    }
    // Not the same: other parameters, another file, or nobody asked to share.
    let other = json!({"parameters": {"n": 6}, "reuse": {"max_age_secs": 600}});
    let file = json!({"parameters": {"n": 5}, "delimiter": ";", "reuse": {"max_age_secs": 600}});
    for body in [other, file, json!({"parameters": {"n": 5}})] {
        let alone = submit(&http, &lena, "gated", body).await;
        assert_eq!(alone["shared"], false, "{alone}");
        app.services.cancel(&app.operator(), id(&alone)).await.unwrap();
        app.wait_until(id(&alone), Status::Cancelled).await;
    }
    // One sharer leaves; nobody else notices.
    let left = id(&followers[1]);
    let (status, _) = post(&http, &ana, &format!("/v1/executions/{left}/cancel"), json!({})).await;
    assert_eq!(status, 202);

    gate.close().await.unwrap();
    let done = app.wait_until(id(&leader), Status::Completed).await;
    let shared = app.wait_until(id(&followers[0]), Status::Completed).await;
    assert_eq!((shared.sha256, shared.snapshot_at), (done.sha256, done.snapshot_at));
    assert_eq!(shared.expires_at, done.expires_at, "the file goes for all at one time");
    assert_eq!(app.execution(left).await.status, Status::Cancelled);
    // Fresh enough, it is there at once; a result that is too old is not taken.
    let (status, fresh) = post(&http, &lena, "/v1/reports/gated/executions", reuse).await;
    assert_eq!((status.as_u16(), &fresh["status"]), (202, &json!("completed")), "{fresh}");
    app.execute("update report_executions set snapshot_at = snapshot_at - interval '1 hour'").await;
    let stale = json!({"parameters": {"n": 5}, "reuse": {"max_age_secs": 600}});
    let stale = submit(&http, &lena, "gated", stale).await;
    assert_eq!(stale["shared"], false);
    app.wait_until(id(&stale), Status::Completed).await;
    worker.stop().await;

    // Each reads it as their own: file, manifest, audit; and nobody that of another.
    for (token, execution) in [(&lena, shared.id), (&lena, id(&fresh))] {
        let path = format!("/v1/executions/{execution}");
        let (status, file) = fetch(&http, token, &format!("{path}/result")).await;
        assert_eq!((status.as_u16(), file.as_slice()), (200, b"passed,n\n\"\",5\n".as_slice()));
        let (status, manifest) = fetch(&http, token, &format!("{path}/manifest")).await;
        assert_eq!(status, 200);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["execution_id"], id(&leader), "it says who made it");
    }
    let (status, _) = fetch(&http, &lena, &format!("/v1/executions/{}/result", id(&leader))).await;
    assert_eq!(status, 404, "the leader's own row stays the leader's");
    assert_eq!(
        app.audit(shared.id).await,
        ["execution.submitted", "execution.completed", "execution.downloaded"]
    );
}

#[tokio::test]
async fn when_the_one_who_runs_is_cancelled_the_next_takes_over() {
    let app = patient().await;
    app.define_with("gated", N, GATED).await;
    let (http, ana, lena) = (app.http().await, app.token("ana").await, app.token("lena").await);
    let gate = close_gate(&app).await;
    let worker = app.start_worker().await;
    let reuse = json!({"reuse": {"max_age_secs": 600}});
    let leader = id(&submit(&http, &ana, "gated", reuse.clone()).await);
    app.wait_until_querying(leader).await;
    let second = id(&submit(&http, &lena, "gated", reuse.clone()).await);
    let third = id(&submit(&http, &lena, "gated", reuse).await);
    let path = format!("/v1/executions/{leader}/cancel");
    assert_eq!(post(&http, &ana, &path, json!({})).await.0, 202);
    app.wait_until(leader, Status::Cancelled).await;
    app.wait_until_querying(second).await;
    assert_eq!(app.execution(third).await.shared_from, Some(second));
    gate.close().await.unwrap();
    for id in [second, third] {
        app.wait_until(id, Status::Completed).await;
    }
    worker.stop().await;
    assert_eq!(app.stored().await.len(), 2, "one file and its manifest");
}

#[tokio::test]
async fn a_run_that_fails_fails_for_all_who_share_it() {
    let app = TestApp::new().await;
    app.define_with("divided", N, "select 1 / (:n - 1) as n").await;
    let (http, ana) = (app.http().await, app.token("ana").await);
    let reuse = json!({"reuse": {"max_age_secs": 0}});
    let leader = id(&submit(&http, &ana, "divided", reuse.clone()).await);
    let follower = submit(&http, &ana, "divided", reuse).await;
    assert_eq!(follower["shared"], true, "what has not begun is new enough for anybody");
    let worker = app.start_worker().await;
    let failed = app.wait_until(leader, Status::Failed).await;
    let too = app.wait_until(id(&follower), Status::Failed).await;
    assert_eq!((too.error_code, too.error_message), (failed.error_code, failed.error_message));
    // By hand it runs on its own.
    app.services.retry(&app.operator(), id(&follower)).await.unwrap();
    let alone = app.wait_until(id(&follower), Status::Failed).await;
    assert_eq!((alone.attempt, alone.shared_from), (1, None));
    worker.stop().await;
}

#[tokio::test]
async fn a_result_is_never_shared_across_rights() {
    let app = TestApp::new().await;
    let guarded = format!("permission = \"reports.secret\"\n{N}");
    app.define_with("secret", &guarded, "select :n as n").await;
    app.execute("insert into permissions (codename, name) values ('reports.secret', 'x')").await;
    let grant = "insert into role_permissions (role_id, permission_id)
                 select ur.role_id, p.id from user_roles ur, permissions p
                  where ur.user_id = 2 and p.codename = 'reports.secret' limit 1";
    app.execute(grant).await;
    let (http, ana, lena) = (app.http().await, app.token("ana").await, app.token("lena").await);
    let worker = app.start_worker().await;
    let reuse = json!({"reuse": {"max_age_secs": 600}});
    let first = id(&submit(&http, &ana, "secret", reuse.clone()).await);
    app.wait_until(first, Status::Completed).await;
    let path = "/v1/reports/secret/executions";
    assert_eq!(post(&http, &lena, path, reuse.clone()).await.0, 403);
    let (_, shared) = post(&http, &ana, path, reuse.clone()).await;
    assert_eq!((&shared["shared"], &shared["status"]), (&json!(true), &json!("completed")));
    // Another right to ask for is another version, and its results another's.
    app.define_with("secret", N, "select :n as n").await;
    let open = submit(&http, &lena, "secret", reuse).await;
    assert_eq!(open["shared"], false);
    app.wait_until(id(&open), Status::Completed).await;
    // A right that is gone is gone for what was shared, too.
    app.define_with("secret", &guarded, "select :n as n").await;
    app.execute("delete from role_permissions using permissions p where p.id = permission_id and p.codename = 'reports.secret'").await;
    let result = format!("/v1/executions/{}/result", id(&shared));
    assert_eq!(fetch(&http, &ana, &result).await.0, 403);
    worker.stop().await;
}
