//! The server against its document, by Schemathesis: a stranger's tool, with the token of each role.

use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use crate::support::TestApp;

/// Names the program of `script/bootstrap contract`; `script/test` sets it. Without it, this is
/// left out.
const PROGRAM: &str = "REGISTRAR_SCHEMATHESIS";
/// Time for each role, in seconds.
const SECS: u64 = 25;
/// What is sent follows from it, so that a fault comes back in every run. Another one is tried by
/// `REGISTRAR_CONTRACT_SEED`.
const SEED: &str = "1";
/// Beyond that time the phases that do not repeat may take this long on a busy machine.
const GRACE: Duration = Duration::from_secs(240);

/// Sends what the document allows and what it does not, to every operation.
async fn agrees_for(role: &str) {
    let Some(program) = std::env::var_os(PROGRAM) else { return };
    let mut app = TestApp::new().await;
    app.leave_unfinished();
    app.sync_templates().await;
    let http = app.http().await;
    let worker = app.start_worker().await;
    let username: String = sqlx::query_scalar(
        "select u.username
           from users u
           join user_roles ur on ur.user_id = u.id
           join roles r on r.id = ur.role_id
          where r.name = $1 and u.is_active and u.deleted_at is null
          order by u.id
          limit 1",
    )
    .bind(role)
    .fetch_one(&app.services.db)
    .await
    .unwrap();
    let token = app.token(&username).await;
    let folder = tempfile::TempDir::new().unwrap();
    let settings = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis.toml");
    let run = Command::new(program)
        .arg("--config-file")
        .arg(settings)
        .args(["run", &format!("{}/openapi.json", http.base)])
        .args(["-H", &format!("Authorization: Bearer {token}")])
        .args(["--checks", "all", "--max-examples", "5", "--max-time", &SECS.to_string()])
        .arg("--seed")
        .arg(std::env::var_os("REGISTRAR_CONTRACT_SEED").unwrap_or(SEED.into()))
        .args(["--request-timeout", "90", "--generation-database", "none"])
        .current_dir(folder.path())
        .kill_on_drop(true)
        .output();
    let run = tokio::time::timeout(Duration::from_secs(SECS) + GRACE, run).await;
    let output = run.expect("it ends in time").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "for {role}: {said}");
    worker.stop().await;
}

#[tokio::test]
async fn the_server_is_as_its_document_says_for_an_admin() {
    agrees_for("admin").await;
}

#[tokio::test]
async fn the_server_is_as_its_document_says_for_an_operator() {
    agrees_for("operator").await;
}

#[tokio::test]
async fn the_server_is_as_its_document_says_for_a_registrar() {
    agrees_for("registrar").await;
}

#[tokio::test]
async fn the_server_is_as_its_document_says_for_an_analyst() {
    agrees_for("analyst").await;
}

#[tokio::test]
async fn the_server_is_as_its_document_says_for_an_auditor() {
    agrees_for("auditor").await;
}

#[tokio::test]
async fn the_server_is_as_its_document_says_for_who_may_nothing() {
    agrees_for("student").await;
}
