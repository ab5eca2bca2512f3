//! Tickets may be lost, doubled, late or taken by a worker that dies: each execution runs once.

use std::collections::BTreeMap;

use registrar::db::executions::{self, Caps, NewExecution, Status};
use registrar::queue;
use registrar::writer::Format;
use serde_json::json;

use crate::support::TestApp;
use crate::support::app::submission;

/// Long enough that a worker can be killed in it; nothing is left of it once the role is renamed.
const SLOW: &str = "select pg_sleep(60)::text as slept from roles where name = 'guest'";

async fn tickets(app: &TestApp, status: &str) -> i64 {
    app.number(&format!(
        "select count(*) from apalis.jobs where job_type = 'reports' and status = '{status}'"
    ))
    .await
}

#[tokio::test]
async fn a_ticket_travels_in_the_transaction_of_its_execution() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let mut tx = app.services.db.begin().await.unwrap();
    let definition_id =
        sqlx::query_scalar("select id from report_definitions").fetch_one(&mut *tx).await.unwrap();
    let new = NewExecution {
        definition_id,
        definition_version: 1,
        executed_by: None,
        parameters: &json!({}),
        format: "csv",
        options: &json!({}),
        max_attempts: 3,
        max_concurrent: None,
        format_of: None,
        reuse_key: None,
        shared_from: None,
        trace_id: "trace",
    };
    let id = executions::insert(&mut tx, &new).await.unwrap();
    queue::enqueue_execution(&mut tx, id, 0).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(app.number("select count(*) from report_executions").await, 0);
    assert_eq!(app.number("select count(*) from apalis.jobs").await, 0);

    app.submit("one", json!({})).await;
    assert_eq!(app.number("select count(*) from report_executions").await, 1);
    assert_eq!(tickets(&app, "Pending").await, 1);
    app.leave_unfinished();
}

#[tokio::test]
async fn a_ticket_holds_the_number_of_its_execution_and_nothing_else() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let id = app.submit("one", json!({})).await;
    let ticket: Vec<u8> = sqlx::query_scalar("select job from apalis.jobs")
        .fetch_one(&app.services.db)
        .await
        .unwrap();
    assert_eq!(String::from_utf8(ticket).unwrap(), format!("{{\"execution_id\":{id}}}"));
    app.leave_unfinished();
}

#[tokio::test]
async fn an_execution_with_three_tickets_runs_once() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let id = app.submit("one", json!({})).await;
    let mut connection = app.services.db.acquire().await.unwrap();
    for _ in 0..2 {
        queue::enqueue_execution(&mut connection, id, 0).await.unwrap();
    }
    drop(connection);
    assert_eq!(tickets(&app, "Pending").await, 3);
    let worker = app.start_worker().await;
    app.wait_until(id, Status::Completed).await;
    app.wait_for("the tickets to be used up", async || tickets(&app, "Done").await == 3).await;
    worker.stop().await;
    assert_eq!(app.execution(id).await.attempt, 1);
    assert_eq!(app.audit(id).await, ["execution.submitted", "execution.completed"]);
}

#[tokio::test]
async fn a_ticket_for_an_execution_that_does_not_exist_ends_quietly() {
    let app = TestApp::new().await;
    let mut connection = app.services.db.acquire().await.unwrap();
    queue::enqueue_execution(&mut connection, 4711, 0).await.unwrap();
    drop(connection);
    let worker = app.start_worker().await;
    app.wait_for("the ticket to be used up", async || tickets(&app, "Done").await == 1).await;
    worker.stop().await;
}

#[tokio::test]
async fn an_execution_whose_ticket_got_lost_gets_a_new_one() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let lost = app.submit("one", json!({})).await;
    let never_ticketed = app.submit("one", json!({})).await;
    app.execute("delete from apalis.jobs").await;
    app.execute(&format!(
        "update report_executions
            set ticket_at = now() - interval '31 seconds', run_at = now() - interval '1 minute'
          where id = {lost}"
    ))
    .await;
    app.execute(&format!(
        "update report_executions set ticket_at = null, ticket_id = null
          where id = {never_ticketed}"
    ))
    .await;
    let worker = app.start_worker().await;
    app.wait_until(lost, Status::Completed).await;
    app.wait_until(never_ticketed, Status::Completed).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_ticket_that_is_merely_waiting_is_not_written_again() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    app.submit("one", json!({})).await;
    let context = app.worker_context("reaper");
    for _ in 0..3 {
        let (rescued, reissued) = registrar::worker::reaper::pass(&context).await.unwrap();
        assert_eq!((rescued, reissued), (0, 0));
    }
    assert_eq!(tickets(&app, "Pending").await, 1);
    app.leave_unfinished();
}

#[tokio::test]
async fn a_delayed_execution_is_not_run_before_its_time() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let id = app.submit("one", json!({})).await;
    app.execute("update report_executions set run_at = now() + interval '1 hour'").await;
    let worker = app.start_worker().await;
    app.wait_for("the early ticket to be used up", async || tickets(&app, "Done").await == 1).await;
    worker.stop().await;
    let execution = app.execution(id).await;
    assert_eq!((execution.status, execution.attempt), (Status::Pending, 0));
    app.leave_unfinished();
}

#[tokio::test]
async fn fifty_executions_on_two_workers_run_once_each() {
    let app = TestApp::new().await;
    app.define("numbers", "select n from generate_series(1, 100) n").await;
    let mut ids = Vec::new();
    for _ in 0..25 {
        ids.push(app.submit("numbers", json!({})).await);
    }
    let workers = [app.start_worker().await, app.start_worker().await];
    for _ in 0..25 {
        ids.push(app.submit("numbers", json!({})).await);
    }
    for &id in &ids {
        let execution = app.wait_until(id, Status::Completed).await;
        assert_eq!(execution.attempt, 1);
    }
    for worker in workers {
        worker.stop().await;
    }
    let recorded: Vec<(i64, String)> = sqlx::query_as(
        "select entity_id, action from audit_logs where entity_type = 'report_executions'",
    )
    .fetch_all(&app.services.db)
    .await
    .unwrap();
    let mut counts = BTreeMap::new();
    for recorded in recorded {
        *counts.entry(recorded).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 100, "a submit and an end for each of fifty");
    for id in ids {
        for action in ["execution.submitted", "execution.completed"] {
            assert_eq!(counts[&(id, action.to_owned())], 1, "{action} of {id}");
        }
    }
    assert_eq!(app.stored().await.len(), 100, "a file and a manifest for each of fifty");
}

/// apalis takes the rows of a worker that starts under a used name for those of a living one: they
/// would stay `Running` for ever. So a name is never used twice.
#[tokio::test]
async fn a_worker_that_starts_after_a_crash_has_a_new_name_and_takes_over() {
    let app = TestApp::new().await;
    app.define("slow", SLOW).await;
    let id = app.submit("slow", json!({})).await;
    let first = app.start_worker().await;
    app.wait_until_querying(id).await;
    let crashed = first.id.clone();
    first.kill();
    app.execute("update roles set name = 'visitor' where name = 'guest'").await;

    let second = app.start_worker().await;
    assert_ne!(second.id, crashed);
    let execution = app.wait_until(id, Status::Completed).await;
    second.stop().await;
    assert_eq!(execution.attempt, 2);
    let expected = ["execution.submitted", "execution.rescued", "execution.completed"];
    assert_eq!(app.audit(id).await, expected);
    let names: Vec<String> = sqlx::query_scalar("select id from apalis.workers")
        .fetch_all(&app.services.db)
        .await
        .unwrap();
    assert!(names.iter().any(|name| name.starts_with(&crashed)), "{names:?}");
    // Its old ticket may still be `Running`; nothing waits for it.
    assert_eq!(tickets(&app, "Pending").await, 0);
}

#[tokio::test]
async fn finished_tickets_are_pruned_and_others_are_kept() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    app.run("one", json!({})).await;
    app.submit("one", json!({})).await;
    assert_eq!(queue::prune(&app.services.db, 60, 100).await.unwrap(), 0, "it is too young");
    assert_eq!(queue::prune(&app.services.db, 0, 100).await.unwrap(), 1);
    assert_eq!(tickets(&app, "Pending").await, 1);
    app.leave_unfinished();
}

#[tokio::test]
async fn users_take_turns_whoever_submitted_first() {
    let mut app = TestApp::new().await;
    let db = app.services.db.clone();
    app.define("one", "select 1 as n").await;
    app.leave_unfinished();
    let mut order = Vec::new();
    let request = submission(json!({}), Format::Csv);
    let submit =
        async |user| app.submit_as(&app.caller(user).await, "one", &request).await.unwrap();
    // Ana comes first, with a heap; then three others, with two each.
    for _ in 0..30 {
        submit("ana").await;
    }
    for _ in 0..2 {
        for user in ["rui", "audit", "lena"] {
            submit(user).await;
        }
    }
    for _ in 0..12 {
        let claimed =
            executions::claim_next(&db, "worker", 60, Caps::default()).await.unwrap().unwrap();
        order.push(claimed.executed_by.unwrap());
    }
    let rui = order.iter().filter(|user| **user == 3).count();
    assert_eq!(order[..4].iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{order:?}");
    assert_eq!(rui, 2, "all of Rui's ran among the first twelve: {order:?}");
    assert_eq!(order[8..], [2, 2, 2, 2], "then only Ana waits: {order:?}");
}

#[tokio::test]
async fn claims_at_the_same_instant_take_different_executions() {
    let mut app = TestApp::new().await;
    let db = app.services.db.clone();
    app.define("one", "select 1 as n").await;
    app.leave_unfinished();
    for _ in 0..12 {
        app.submit("one", json!({})).await;
    }
    let claims = (0..12).map(|_| executions::claim_next(&db, "worker", 60, Caps::default()));
    let claimed = futures::future::try_join_all(claims).await.unwrap();
    let distinct: std::collections::BTreeSet<_> = claimed.iter().flatten().map(|c| c.id).collect();
    assert_eq!(distinct.len(), 12, "one each, and none left out");
}
