//! `doctor` finds what is wrong, and nothing where nothing is.

use registrar::service::doctor::{Finding, Outcome};
use serde_json::json;

use crate::support::TestApp;
use crate::support::process::Process;

fn outcome<'a>(findings: &'a [Finding], check: &str) -> (Outcome, &'a str) {
    let found = findings.iter().find(|finding| finding.check == check);
    let finding = found.unwrap_or_else(|| panic!("no check `{check}` in {findings:#?}"));
    (finding.outcome, &finding.message)
}

#[tokio::test]
async fn nothing_is_found_where_all_is_well() {
    let app = TestApp::new().on_s3().await;
    let _worker = app.start_worker().await;
    let findings = app.services.examine().await;
    assert!(findings.iter().all(|one| one.outcome == Outcome::Ok), "{findings:#?}");
    assert!(findings.len() >= 12, "{findings:#?}");
    assert_eq!(app.stored().await, Vec::<String>::new(), "it leaves nothing behind");
    assert_eq!(app.s3.as_ref().unwrap().leftover_parts(), Vec::<String>::new());
}

#[tokio::test]
async fn every_door_that_stands_open_is_named() {
    let app = TestApp::new().await;
    for (door, words) in [
        ("grant select on api_tokens to registrar_report", "can read API tokens"),
        ("grant select on report_executions to registrar_report", "can read executions"),
        (
            "grant usage on schema apalis to registrar_report;
             grant select on apalis.jobs to registrar_report",
            "can read the queue",
        ),
    ] {
        for statement in door.split(';') {
            app.execute(statement).await;
        }
        let findings = app.services.examine().await;
        let (found, message) = outcome(&findings, "report role");
        assert_eq!(found, Outcome::Failed, "{door}: {message}");
        assert!(message.contains(words), "{door}: {message}");
        assert!(message.contains("migrate up"), "it says what to do: {message}");
    }
}

#[tokio::test]
async fn a_store_that_fails_is_told_from_a_database_that_works() {
    let mut app = TestApp::new().on_s3().await;
    app.s3.as_mut().unwrap().stop();
    let findings = app.services.examine().await;
    for check in ["store", "uploads", "clocks"] {
        assert_eq!(outcome(&findings, check).0, Outcome::Failed, "{findings:#?}");
    }
    for check in ["server", "migrations", "report role", "ending reports"] {
        assert_eq!(outcome(&findings, check).0, Outcome::Ok, "{findings:#?}");
    }
}

#[tokio::test]
async fn work_that_does_not_move_is_counted() {
    let mut app = TestApp::new().await;
    app.leave_unfinished();
    app.define("slow", "select 1 as n").await;
    let id = app.submit("slow", json!({})).await;
    app.execute("update report_executions set run_at = now() - interval '11 minutes'").await;
    let findings = app.services.examine().await;
    let (found, message) = outcome(&findings, "work");
    assert_eq!(found, Outcome::Warning, "execution {id}: {message}");
    assert!(message.contains("1 executions wait for over ten minutes"), "{message}");
    assert!(message.contains("no worker is running"), "{message}");
}

#[tokio::test]
async fn a_migration_that_this_version_does_not_know_is_found() {
    let app = TestApp::new().await;
    app.execute(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
         values (9999, 'of the future', true, '\\x00', 0)",
    )
    .await;
    let findings = app.services.examine().await;
    let (found, message) = outcome(&findings, "migrations");
    assert_eq!(found, Outcome::Failed, "{message}");
    assert!(message.contains("9999 (of the future) is unknown to this version"), "{message}");
}

#[tokio::test]
async fn the_command_ends_with_a_code_for_scripts() {
    let app = TestApp::new().await;
    let code = async |arguments: &[&str]| {
        let mut doctor = Process::start(&app.config, arguments);
        let code = doctor.ended().await.code();
        (code, doctor.log())
    };
    let (passed, log) = code(&["doctor", "--json"]).await;
    assert_eq!(passed, Some(0), "that no worker runs is a warning: {log}");
    let findings: serde_json::Value = serde_json::from_str(&log).unwrap();
    assert_eq!(findings[0]["check"], "server");
    assert_eq!(findings[0]["outcome"], "ok");
    assert_eq!(code(&["doctor", "--strict"]).await.0, Some(1));
    app.execute("grant select on api_tokens to registrar_report").await;
    let (failed, log) = code(&["doctor"]).await;
    assert_eq!(failed, Some(1), "{log}");
    assert!(log.contains("FAILED"), "{log}");
}
