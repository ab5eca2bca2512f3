//! What a report cannot do, whatever its SQL says, and what it may not exceed.

use registrar::db::executions::{Execution, Status};
use serde_json::json;

use crate::support::TestApp;

/// Runs SQL as a report, and expects it to fail.
async fn fails(app: &TestApp, sql: &str) -> Execution {
    app.define("probe", sql).await;
    let execution = app.run("probe", json!({})).await;
    assert_eq!(execution.status, Status::Failed, "{sql}");
    assert_eq!(execution.attempt, 1, "an error in the SQL is not tried again: {sql}");
    execution
}

#[tokio::test]
async fn secrets_are_out_of_reach() {
    let app = TestApp::new().await;
    for sql in [
        "select password from users",
        "select * from users",
        "select token_sha256 from api_tokens",
        "select * from apalis.jobs",
        "select * from report_executions",
        "select * from idempotency_keys",
        "select rolpassword from pg_authid",
        "select * from pg_read_file('/etc/passwd') f",
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'registrar'",
    ] {
        let execution = fails(&app, sql).await;
        assert_eq!(execution.error_code.as_deref(), Some("permission_denied"), "{sql}");
    }
}

#[tokio::test]
async fn a_query_cannot_become_somebody_else() {
    let app = TestApp::new().await;
    for role in ["none", "registrar", "postgres"] {
        for secret in
            ["password from users", "token_sha256 from api_tokens", "job from apalis.jobs"]
        {
            let sql = format!(
                "select set_config('role', '{role}', true) as became,
                        query_to_xml('select {secret}', true, false, '')::text as secret"
            );
            let execution = fails(&app, &sql).await;
            let code = execution.error_code.unwrap();
            // Either it may not take the role, or, as itself, it may not read.
            let refused =
                code == "permission_denied" || execution.error_message.unwrap().contains("22023");
            assert!(refused, "{sql}: {code}");
        }
    }
}

#[tokio::test]
async fn set_role_to_none_and_query_to_xml_is_permission_denied() {
    let app = TestApp::new().await;
    let sql = "select set_config('role', 'none', true),
                      query_to_xml('select password from users', true, false, '')::text
                 from roles";
    let execution = fails(&app, sql).await;
    assert_eq!(execution.error_code.as_deref(), Some("permission_denied"));
}

#[tokio::test]
async fn nothing_can_be_written() {
    let app = TestApp::new().await;
    let before = app.number("select count(*) from roles").await;
    let large_objects = "select count(*) from pg_largeobject_metadata";
    for sql in [
        "with gone as (delete from roles returning id) select * from gone",
        "insert into roles (name) values ('x') returning id",
        "update roles set name = 'x' returning id",
        "select nextval('roles_id_seq')",
        "select * into loot from roles",
    ] {
        fails(&app, sql).await;
    }
    // A large object could be made in a read-only transaction of PostgreSQL 15; nothing of it
    // stays, because the transaction is always rolled back.
    app.define("probe", "select lo_creat(-1)::bigint as made").await;
    app.run("probe", json!({})).await;
    assert_eq!(app.number(large_objects).await, 0);
    assert_eq!(app.number("select count(*) from roles").await, before);
}

#[tokio::test]
async fn a_definition_of_two_statements_is_refused() {
    use registrar::report::definition::Definition;
    let slug = "two".parse().unwrap();
    let refused = Definition::from_template(slug, "title = \"Two\"", "select 1; select 2");
    assert!(refused.unwrap_err().to_string().contains("two.sql"));
    let slug = "out".parse().unwrap();
    let out_of_the_brackets = "select 1) as report; delete from roles; select * from (select 1";
    let refused = Definition::from_template(slug, "title = \"Out\"", out_of_the_brackets);
    assert!(refused.unwrap_err().to_string().contains("out.sql"));
}

#[tokio::test]
async fn a_query_ends_at_its_time() {
    let app = TestApp::new().await;
    app.define_with("slow", "[limits]\ntimeout_secs = 1", "select pg_sleep(60)::text as slept")
        .await;
    let began = std::time::Instant::now();
    let execution = app.run("slow", json!({})).await;
    assert_eq!(execution.error_code.as_deref(), Some("timeout"));
    assert!(began.elapsed().as_secs() < 30, "it ended at its limit, not at the query's end");
    app.wait_for("its server process to go", async || app.report_backends().await == 0).await;
}

#[tokio::test]
async fn over_a_limit_a_report_fails_with_a_code() {
    let app = TestApp::new().await;
    let rows = "select n, repeat('x', 1000) as filler from generate_series(1, 30000) n";
    app.define_with("rows", "[limits]\nmax_rows = 29999", rows).await;
    let execution = app.run("rows", json!({})).await;
    assert_eq!(execution.error_code.as_deref(), Some("row_limit"));
    app.define_with("bytes", "[limits]\nmax_bytes = 1000000", rows).await;
    let execution = app.run("bytes", json!({})).await;
    assert_eq!(execution.error_code.as_deref(), Some("byte_limit"));
    assert!(app.stored().await.is_empty(), "nothing of either file is left");
}

#[tokio::test]
async fn exactly_at_its_limit_a_report_is_whole() {
    let app = TestApp::new().await;
    let rows = "select n from generate_series(1, 1000) n";
    app.define_with("rows", "[limits]\nmax_rows = 1000", rows).await;
    let execution = app.run("rows", json!({})).await;
    assert_eq!((execution.status, execution.truncated), (Status::Completed, false));
    assert_eq!(execution.row_count, Some(1000));
}

#[tokio::test]
async fn a_cut_is_marked_everywhere() {
    let app = TestApp::new().await;
    let limits = "[limits]\nmax_rows = 1000\non_limit = \"truncate\"";
    app.define_with("rows", limits, "select n from generate_series(1, 1001) n").await;
    let execution = app.run("rows", json!({})).await;
    assert_eq!((execution.status, execution.truncated), (Status::Completed, true));
    assert_eq!(execution.row_count, Some(1000));
    let manifest = app.manifest(execution.id).await;
    assert!(manifest.truncated.unwrap().contains("1000 rows"));
    assert!(manifest.file_name.contains(".truncated."), "{}", manifest.file_name);
    assert_eq!(app.csv(execution.id).await.lines().count(), 1001, "a header and 1000 rows");
}
