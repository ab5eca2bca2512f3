//! What a report must not be able to do, tried with the means that its SQL has.

use std::time::{Duration, Instant};

use registrar::db::executions::{Execution, Status};
use registrar::report::definition::Definition;
use registrar::report::error::ReportError;
use registrar::report::source::SessionLimits;
use serde_json::json;

use crate::support::TestApp;
use crate::support::worker::Worker;

/// An app whose worker runs whatever SQL is given to it as a report.
struct Sandbox {
    /// Dropped first, so that nothing runs when the app looks at what is left.
    _worker: Worker,
    app: TestApp,
}

impl Sandbox {
    async fn open() -> Self {
        Self::around(TestApp::new().await).await
    }

    async fn around(app: TestApp) -> Self {
        Self { _worker: app.start_worker().await, app }
    }

    async fn run(&self, sql: &str) -> Execution {
        self.run_with("", sql).await
    }

    async fn run_with(&self, toml: &str, sql: &str) -> Execution {
        self.app.define_with("attack", toml, sql).await;
        let id = self.app.submit("attack", json!({})).await;
        self.app.wait_until_ended(id).await
    }
}

async fn fails_with(sandbox: &Sandbox, sql: &str, codes: &[&str]) {
    let execution = sandbox.run(sql).await;
    assert_eq!(execution.status, Status::Failed, "{sql}: {execution:#?}");
    let code = execution.error_code.as_deref().unwrap();
    assert!(codes.contains(&code), "{sql}: {code}: {:?}", execution.error_message);
    assert_eq!(execution.attempt, 1, "{sql}: trying again would not help");
}

#[tokio::test]
async fn a_report_cannot_read_secrets() {
    let sandbox = Sandbox::open().await;
    let app = &sandbox.app;
    let token = app.token("admin").await;
    for sql in [
        "select password from users",
        "select users.* from users",
        "select row_to_json(u)::text as x from users u",
        "select count(*) from users where password like 'pbkdf2%'",
        "select prefix from api_tokens",
        "select id from apalis.jobs",
        "select id from report_executions",
        "select query from report_definitions",
        "select idempotency_key from idempotency_keys",
        "select id from workers",
        "select version from _sqlx_migrations",
        "select rolpassword from pg_authid",
        "select passwd from pg_shadow",
        "select pg_read_file('postgresql.conf') as x",
        "select pg_read_binary_file('PG_VERSION') as x",
        "select pg_ls_dir('.') as x",
        "select lo_import('/etc/passwd') as x",
        "select lo_export(1, '/tmp/x') as x",
        "select most_common_vals::text as x from pg_statistic_ext_data, pg_stats",
        "select staattnum from pg_statistic",
    ] {
        fails_with(&sandbox, sql, &["permission_denied"]).await;
    }
    // The columns beside the password are for reports.
    let execution = sandbox.run("select username, email from users where id = 1").await;
    assert_eq!(execution.status, Status::Completed);
    assert!(!app.csv(execution.id).await.contains(&token));
    // Statistics of columns that the role may not read stay hidden.
    let hidden = "select count(*) as n from pg_stats where attname = 'password'";
    let execution = sandbox.run(hidden).await;
    assert_eq!(app.csv(execution.id).await, "n\n0\n");
}

/// SET ROLE is no sandbox, because a query can take it back. A login role has nothing to go back to.
#[tokio::test]
async fn a_report_cannot_become_another_role() {
    let sandbox = Sandbox::open().await;
    let app = &sandbox.app;
    let owner: String =
        sqlx::query_scalar("select current_user::text").fetch_one(&app.services.db).await.unwrap();
    let attempts = ["none".to_owned(), owner.clone(), "postgres".to_owned()];
    for role in attempts {
        for secret in ["password from users", "prefix from api_tokens", "id from apalis.jobs"] {
            let sql = format!(
                "select set_config('role', '{role}', true) as role,
                        query_to_xml('select {secret}', true, false, '')::text as stolen
                   from roles"
            );
            // Whether or not there is such a role: what it would open stays shut.
            let execution = sandbox.run(&sql).await;
            assert_eq!(execution.status, Status::Failed, "{role}, {secret}: {execution:#?}");
            let code = execution.error_code.as_deref().unwrap();
            assert!(["permission_denied", "sql_error"].contains(&code), "{role}, {secret}: {code}");
        }
    }
    // `none` means the login role, which is the report's own: allowed, and no use.
    let none = "select set_config('role', 'none', true) as role,
                       query_to_xml('select password from users', true, false, '')::text as stolen";
    fails_with(&sandbox, none, &["permission_denied"]).await;
    let become_owner = format!("select set_config('role', '{owner}', true) as role");
    fails_with(&sandbox, &become_owner, &["permission_denied"]).await;
    let session = "select set_config('session_authorization', 'postgres', true) as x";
    fails_with(&sandbox, session, &["permission_denied", "sql_error"]).await;
}

#[tokio::test]
async fn a_report_cannot_write() {
    let sandbox = Sandbox::open().await;
    let app = &sandbox.app;
    let before = app.number("select count(*) from roles").await;
    app.execute("create sequence numbers").await;
    app.execute("grant usage on sequence numbers to registrar_report").await;
    app.execute(
        "create function sneak() returns int language sql as
         $$ insert into roles (name) values ('sneaked') returning 1 $$",
    )
    .await;
    app.execute("grant insert, update, delete on roles to registrar_report").await;
    app.execute("grant usage on sequence roles_id_seq to registrar_report").await;
    let refused = ["permission_denied", "read_only", "sql_error"];
    for sql in [
        "insert into roles (name) values ('x') returning id",
        "update roles set name = name || 'x' returning id",
        "delete from roles returning id",
        "with gone as (delete from roles returning id) select id from gone",
        "with new as (insert into roles (name) values ('x') returning id) select id from new",
        "select id from roles for update",
        "create table stolen as select 1 as one",
        "drop table roles",
        "truncate roles",
        "copy roles to stdout",
        "do $$ begin null; end $$",
        "set transaction read write",
        "select sneak() as x",
        "select nextval('numbers') as x",
        "select setval('numbers', 1) as x",
        "select set_config('transaction_read_only', 'off', false) as x, sneak() as y",
        "select pg_notify('reports', 'x')::text as x, sneak() as y",
    ] {
        fails_with(&sandbox, sql, &refused).await;
    }
    assert_eq!(app.number("select count(*) from roles").await, before);
    assert_eq!(app.number("select last_value from numbers where not is_called").await, 1);
}

/// Some of this older servers let a read-only transaction do, but it is always rolled back, and
/// its connection is never used again.
#[tokio::test]
async fn what_a_report_may_do_leaves_nothing_behind() {
    let sandbox = Sandbox::open().await;
    let app = &sandbox.app;
    for sql in [
        "select lo_creat(-1) as x",
        "select lo_from_bytea(0, 'x') as x",
        "select set_config('work_mem', '1GB', false) as x",
        "select pg_advisory_lock(4711)::text as x",
        "select pg_notify('report', 'hello')::text as x",
    ] {
        let execution = sandbox.run(sql).await;
        let code = execution.error_code.as_deref();
        assert!(matches!(code, None | Some("permission_denied" | "read_only")), "{sql}: {code:?}");
        app.wait_for("its connection to be gone", async || app.report_backends().await == 0).await;
    }
    assert_eq!(app.number("select count(*) from pg_largeobject_metadata").await, 0);
    assert_eq!(app.number("select count(*) from pg_locks where objid = 4711").await, 0);
}

#[tokio::test]
async fn a_report_cannot_reach_other_servers_or_sessions() {
    let sandbox = Sandbox::open().await;
    let app = &sandbox.app;
    for sql in [
        "select * from dblink('dbname=postgres', 'select 1') as t (x int)",
        "select pg_terminate_backend(pid)::text as x from pg_stat_activity
          where usename <> current_user",
        "select pg_reload_conf() as x",
        "select pg_switch_wal() as x",
    ] {
        fails_with(&sandbox, sql, &["permission_denied", "sql_error", "read_only"]).await;
    }
    // Queries of others, which hold their parameters, are hidden.
    let others = "select count(*) as n from pg_stat_activity
                   where usename <> current_user and query not like '<insufficient privilege>'
                     and query <> ''";
    let execution = sandbox.run(others).await;
    assert_eq!(app.csv(execution.id).await, "n\n0\n");
}

/// Nothing that is not one statement, and whole, becomes a definition. If it got into the database
/// in another way, the server refuses it.
#[tokio::test]
async fn two_statements_are_refused_when_they_are_read_and_by_the_server() {
    let app = TestApp::new().await;
    let limits = SessionLimits {
        timeout: Duration::from_secs(10),
        lock_timeout: Duration::from_secs(1),
        time_zone: "UTC".to_owned(),
    };
    for sql in [
        "select 1 as one; select 2 as two",
        "select 1 as one) as report; drop table roles; select * from (select 1 as one",
        "select 1 as one; commit; drop table roles --",
    ] {
        let definition = Definition::from_template("two".parse().unwrap(), "title = \"x\"", sql);
        assert!(definition.expect_err(sql).to_string().contains("two.sql"));
        let mut session = app.services.reports.begin(&limits, "test").await.unwrap();
        let error = session.check(sql).await.expect_err(sql);
        assert!(
            matches!(&error, ReportError::Sql { sqlstate, .. } if sqlstate == "42601"),
            "{sql}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_report_ends_at_its_time_limit_and_its_query_with_it() {
    let sandbox = Sandbox::open().await;
    let app = &sandbox.app;
    let toml = "[limits]\ntimeout_secs = 2";
    for sql in [
        "select pg_sleep(600)::text as slept",
        "select count(*) from generate_series(1, 20000000000) n",
        "select n, md5(n::text) as hash from generate_series(1, 2000000000) n",
        "select set_config('statement_timeout', '0', false) as off, pg_sleep(600)::text as slept",
    ] {
        let began = Instant::now();
        let execution = sandbox.run_with(toml, sql).await;
        assert_eq!(execution.error_code.as_deref(), Some("timeout"), "{sql}: {execution:#?}");
        assert_eq!((execution.status, execution.attempt), (Status::Failed, 1), "{sql}");
        assert!(began.elapsed() < Duration::from_secs(20), "{sql}: {:?}", began.elapsed());
        app.wait_for("its query to be gone", async || app.report_backends().await == 0).await;
    }
    assert_eq!(app.stored().await, [""; 0]);
}

#[tokio::test]
async fn a_lower_limit_of_the_service_wins() {
    let app = TestApp::new()
        .with(|config| {
            config.report.max_rows = 10.try_into().unwrap();
            config.report.timeout_secs = 2.try_into().unwrap();
        })
        .await;
    let sandbox = Sandbox::around(app).await;
    let toml = "[limits]\ntimeout_secs = 3600\nmax_rows = 1000";
    let execution = sandbox.run_with(toml, "select n from generate_series(1, 11) n").await;
    assert_eq!(execution.error_code.as_deref(), Some("row_limit"));
    let execution = sandbox.run_with(toml, "select pg_sleep(60)::text as slept").await;
    assert_eq!(execution.error_code.as_deref(), Some("timeout"));
}

#[tokio::test]
async fn a_report_with_exactly_as_many_rows_as_it_may_have_is_whole() {
    let sandbox = Sandbox::open().await;
    let sql = "select n from generate_series(1, 1000) n";
    for on_limit in ["fail", "truncate"] {
        let toml = format!("[limits]\nmax_rows = 1000\non_limit = \"{on_limit}\"");
        let execution = sandbox.run_with(&toml, sql).await;
        assert_eq!((execution.status, execution.truncated), (Status::Completed, false));
        assert_eq!(execution.row_count, Some(1000));
    }
}

#[tokio::test]
async fn a_report_over_a_limit_fails_with_a_code_and_leaves_no_file() {
    let sandbox = Sandbox::open().await;
    let app = &sandbox.app;
    let cases = [
        ("max_rows = 999", "select n from generate_series(1, 1000) n", "row_limit"),
        // The file is measured while it is written, so it must be larger than a buffer.
        (
            "max_bytes = 100000",
            "select repeat('x', 1000) as x from generate_series(1, 10000) n",
            "byte_limit",
        ),
    ];
    for (limit, sql, code) in cases {
        let execution = sandbox.run_with(&format!("[limits]\n{limit}"), sql).await;
        assert_eq!(execution.status, Status::Failed);
        assert_eq!(execution.error_code.as_deref(), Some(code));
        let number = limit.rsplit(' ').next().unwrap();
        let message = execution.error_message.unwrap();
        assert!(message.contains(number), "the limit is told: {message}");
    }
    assert_eq!(app.stored().await, [""; 0]);
}

#[tokio::test]
async fn a_cut_report_says_so_everywhere() {
    let sandbox = Sandbox::open().await;
    let app = &sandbox.app;
    let rows = "[limits]\nmax_rows = 10\non_limit = \"truncate\"";
    let execution = sandbox.run_with(rows, "select n from generate_series(1, 11) n").await;
    assert_eq!((execution.status, execution.truncated), (Status::Completed, true));
    assert_eq!(execution.row_count, Some(10));
    let csv = app.csv(execution.id).await;
    assert_eq!(csv.lines().take(11).last(), Some("10"));
    assert!(!csv.contains("11"), "{csv}");
    let manifest = app.manifest(execution.id).await;
    assert_eq!(manifest.truncated.as_deref(), Some("Cut at the limit of 10 rows: there are more."));
    let file = app.services.result(&app.operator(), execution.id).await.unwrap();
    let expected = format!("attack-{}.truncated.csv", execution.id);
    assert_eq!((file.file_name, manifest.file_name), (expected.clone(), expected));

    let bytes = "[limits]\nmax_bytes = 100000\non_limit = \"truncate\"";
    let sql = "select n, repeat('x', 1000) as x from generate_series(1, 10000) n";
    let execution = sandbox.run_with(bytes, sql).await;
    assert_eq!((execution.status, execution.truncated), (Status::Completed, true));
    let rows = execution.row_count.unwrap();
    assert!((99..10_000).contains(&rows), "{rows} rows");
    assert_eq!(app.csv(execution.id).await.lines().count() as i64, rows + 1, "no row is in part");
}
