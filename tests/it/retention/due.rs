//! Policies run when their schedule says so: once, whoever looks.

use crate::support::TestApp;

const POLICY: &str = r#"
kind        = "archive"
description = "Audit rows older than five years move to the archive."
owner       = "records-office"

[schedule]
cron     = "* * * * *"
timezone = "Africa/Harare"

[limits]
max_rows = 1_000_000

[approval]
required_for = "over_ceiling"
by           = "retention.approve"

[[table]]
name  = "audit_logs"
age   = "created_at"
after = "5 years"
"#;

#[tokio::test]
async fn a_policy_that_is_due_runs_once_whoever_looks() {
    let jobs = tempfile::tempdir().unwrap();
    std::fs::write(jobs.path().join("archive-audit.toml"), POLICY).unwrap();
    let folder = jobs.path().to_owned();
    let app = TestApp::new().with(move |config| config.lifecycle.jobs_dir = folder).await;
    let runs = "select count(*) from lifecycle_runs where origin = 'schedule'";
    assert_eq!(app.services.start_due_runs().await.unwrap(), 0, "seen for the first time");
    assert_eq!(app.number(runs).await, 0);
    app.execute("update schedule_occurrences set due_at = due_at - interval '10 minutes'").await;
    let looks = (0..6).map(|_| app.services.start_due_runs());
    let started: usize = futures::future::try_join_all(looks).await.unwrap().into_iter().sum();
    // A minute may have passed between two looks; the run before is then not finished.
    assert_eq!(started, 1);
    assert_eq!(app.number(runs).await, 1);
    let old = "select count(*) from audit_logs where created_at < now() - interval '5 years'";
    assert!(app.number(old).await > 0, "the sample data have old rows");
    let _worker = app.start_worker().await;
    app.wait_for("the run to be completed", async || {
        app.number(&format!("{runs} and status = 'completed'")).await == 1
    })
    .await;
    assert_eq!(app.number(old).await, 0);
    assert!(app.number("select count(*) from archive.audit_logs").await > 0);
    let audited = "select count(*) from audit_logs where action = 'run.scheduled'";
    assert_eq!(app.number(audited).await, 1);
}

#[tokio::test]
async fn a_run_of_the_schedule_is_refused_by_what_policy_check_refuses() {
    let jobs = tempfile::tempdir().unwrap();
    std::fs::write(jobs.path().join("archive-audit.toml"), POLICY).unwrap();
    let folder = jobs.path().to_owned();
    let app = TestApp::new().with(move |config| config.lifecycle.jobs_dir = folder).await;
    app.execute("drop index idx_audit_logs_created_at").await;
    assert_eq!(app.services.start_due_runs().await.unwrap(), 0, "seen for the first time");
    app.execute("update schedule_occurrences set due_at = due_at - interval '10 minutes'").await;
    assert_eq!(app.services.start_due_runs().await.unwrap(), 1);
    let _worker = app.start_worker().await;
    let failed = "select count(*) from lifecycle_runs
                   where status = 'failed' and error_code = 'policy_check'
                     and error_message like '%create index concurrently%'";
    app.wait_for("the run to be refused", async || app.number(failed).await == 1).await;
    let gone = "select count(*) from lifecycle_run_tables";
    assert_eq!(app.number(gone).await, 0, "nothing was begun");
}
