//! One key, one submit: however often and however concurrently it is sent.

use futures::future::join_all;
use registrar::service::executions::{IdempotencyKey, Submission};
use registrar::service::{Caller, ServiceError};
use registrar::writer::Format;
use serde_json::{Value, json};

use crate::support::TestApp;
use crate::support::app::submission;

const REPORT: &str = "roles";

async fn app() -> (TestApp, Caller) {
    let mut app = TestApp::new().await;
    app.define_with(
        REPORT,
        "[[parameter]]\nname = \"first\"\ntype = \"integer\"\ndefault = 1\n\
         [[parameter]]\nname = \"last\"\ntype = \"integer\"\ndefault = 2\n",
        "select name from roles where id between :first and :last order by id",
    )
    .await;
    app.leave_unfinished(); // submitting is all that is tested here
    let ana = app.caller("ana").await;
    (app, ana)
}

fn with_key(key: &str, parameters: Value) -> Submission {
    Submission {
        idempotency_key: Some(key.parse().unwrap()),
        ..submission(parameters, Format::Csv)
    }
}

async fn executions(app: &TestApp) -> i64 {
    app.number("select count(*) from report_executions").await
}

#[tokio::test]
async fn the_same_submit_with_the_same_key_is_one_execution() {
    let (app, ana) = app().await;
    let first =
        app.submit_as(&ana, REPORT, &with_key("k", json!({"first": 1, "last": 3}))).await.unwrap();
    assert!(!first.replayed);
    // The order of the parameters is not part of what is asked.
    for parameters in [json!({"first": 1, "last": 3}), json!({"last": 3, "first": 1})] {
        let again = app.submit_as(&ana, REPORT, &with_key("k", parameters)).await.unwrap();
        assert!(again.replayed);
        assert_eq!(again.execution.id, first.execution.id);
    }
    assert_eq!(executions(&app).await, 1);
    assert_eq!(app.number("select count(*) from apalis.jobs").await, 1);
    assert_eq!(app.audit(first.execution.id).await, ["execution.submitted"]);
}

#[tokio::test]
async fn another_submit_with_the_same_key_is_refused() {
    let (app, ana) = app().await;
    app.define("other", "select 1 as one").await;
    app.submit_as(&ana, REPORT, &with_key("k", json!({"first": 1}))).await.unwrap();
    let other_format = Submission { format: Format::Xlsx, ..with_key("k", json!({"first": 1})) };
    for (slug, submission) in [
        (REPORT, with_key("k", json!({"first": 2}))),
        (REPORT, with_key("k", json!({}))),
        (REPORT, other_format),
        ("other", with_key("k", json!({}))),
    ] {
        let refused = app.submit_as(&ana, slug, &submission).await;
        assert!(matches!(refused, Err(ServiceError::IdempotencyMismatch)), "{refused:?}");
    }
    assert_eq!(executions(&app).await, 1);
}

#[tokio::test]
async fn twenty_submits_at_once_with_one_key_are_one_execution() {
    let (app, ana) = app().await;
    let submission = with_key("once", json!({"first": 1}));
    let submits = (0..20).map(|_| app.submit_as(&ana, REPORT, &submission));
    let mut fresh = 0;
    let mut ids = Vec::new();
    for submitted in join_all(submits).await {
        let submitted = submitted.unwrap();
        fresh += usize::from(!submitted.replayed);
        ids.push(submitted.execution.id);
    }
    ids.dedup();
    assert_eq!((fresh, ids.len()), (1, 1));
    assert_eq!(executions(&app).await, 1);
}

#[tokio::test]
async fn a_submit_that_waits_too_long_for_another_is_told_so() {
    let (app, ana) = app().await;
    // Another request holds the key and does not end.
    let mut tx = app.services.db.begin().await.unwrap();
    let sha256 = [0; 32];
    let user_id = ana.user_id.unwrap();
    registrar::db::idempotency::take(&mut tx, user_id, "slow", &sha256, 1).await.unwrap();
    let refused = app.submit_as(&ana, REPORT, &with_key("slow", json!({}))).await;
    assert!(matches!(refused, Err(ServiceError::IdempotencyInFlight)), "{refused:?}");
    tx.rollback().await.unwrap();
    app.submit_as(&ana, REPORT, &with_key("slow", json!({}))).await.expect("the key is free again");
}

#[tokio::test]
async fn a_key_whose_time_is_over_is_free() {
    let (app, ana) = app().await;
    let first = app.submit_as(&ana, REPORT, &with_key("k", json!({"first": 1}))).await.unwrap();
    app.execute("update idempotency_keys set expires_at = now()").await;
    let second = app.submit_as(&ana, REPORT, &with_key("k", json!({"first": 2}))).await.unwrap();
    assert!(!second.replayed);
    assert_ne!(second.execution.id, first.execution.id);
}

#[tokio::test]
async fn a_key_belongs_to_its_caller() {
    let (app, ana) = app().await;
    let rui = app.caller("rui").await;
    let of_ana = app.submit_as(&ana, REPORT, &with_key("k", json!({"first": 1}))).await.unwrap();
    let of_rui = app.submit_as(&rui, REPORT, &with_key("k", json!({"first": 2}))).await.unwrap();
    assert!(!of_rui.replayed);
    assert_ne!(of_ana.execution.id, of_rui.execution.id);
}

#[tokio::test]
async fn a_refused_submit_does_not_use_up_its_key() {
    let (app, ana) = app().await;
    let refused = app.submit_as(&ana, REPORT, &with_key("k", json!({"first": "x"}))).await;
    assert!(matches!(refused, Err(ServiceError::BadParameters(_))), "{refused:?}");
    app.submit_as(&ana, REPORT, &with_key("k", json!({"first": 1}))).await.expect("a fresh key");
}

#[test]
fn a_key_is_1_to_255_visible_characters() {
    for (key, is_legal) in [
        ("k".to_owned(), true),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324".to_owned(), true),
        ("x".repeat(255), true),
        ("x".repeat(256), false),
        (String::new(), false),
        ("two words".to_owned(), false),
        ("clé".to_owned(), false),
        ("line\nbreak".to_owned(), false),
    ] {
        assert_eq!(key.parse::<IdempotencyKey>().is_ok(), is_legal, "{key:?}");
    }
}
