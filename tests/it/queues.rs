//! What operators do to queues and workers.

use registrar::db::audit::AuditFilter;
use registrar::db::executions::Status;
use registrar::queue::{self, BackupTicket, Queue};
use registrar::service::ServiceError;
use registrar::service::queues::{BulkAction, BulkOutcome, QueueState, Selection};
use registrar::worker::reaper;
use serde_json::{Value, json};

use crate::support::TestApp;
use crate::support::process::Process;

const DONE: &str = "select count(*) from apalis.jobs where status = 'Done' and job_type = ";

async fn state(app: &TestApp, name: &str) -> QueueState {
    let queues = app.services.queues(&app.operator()).await.unwrap();
    queues.into_iter().find(|queue| queue.name == name).expect("the queue")
}

async fn actions(app: &TestApp, entity_type: &str) -> Vec<String> {
    let filter = AuditFilter { entity_type: Some(entity_type.to_owned()), ..Default::default() };
    let rows = app.services.search_audit(&app.operator(), &filter, 50).await.unwrap();
    rows.into_iter().rev().map(|row| row.action).collect()
}

#[tokio::test]
async fn a_paused_queue_starts_nothing_on_any_worker_until_it_is_resumed() {
    let app = TestApp::new().await;
    app.define("numbers", "select n from generate_series(1, 3) as n").await;
    let operator = app.operator();
    app.services.pause_queue(&operator, "reports").await.unwrap();
    app.services.pause_queue(&operator, "reports").await.unwrap();
    assert!(state(&app, "reports").await.paused_at.is_some());
    let id = app.submit("numbers", json!({})).await;
    for _ in 0..2 {
        // The second one stands for a restart: the pause is not in anybody's memory.
        let worker = app.start_worker().await;
        app.wait_for("the ticket to be used up", async || {
            app.number(&format!("{DONE} 'reports'")).await == 1
        })
        .await;
        worker.stop().await;
        assert_eq!(app.execution(id).await.status, Status::Pending);
        let reissued = reaper::reissue(&app.worker_context("tests")).await.unwrap();
        assert_eq!(reissued, 0, "a ticket would be used up for nothing");
    }
    let worker = app.start_worker().await;
    app.services.resume_queue(&operator, "reports").await.unwrap();
    app.services.resume_queue(&operator, "reports").await.unwrap();
    let execution = app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    assert_eq!(execution.attempt, 1, "no attempt was begun before");
    assert_eq!(actions(&app, "queues").await, ["queue.paused", "queue.resumed"]);
}

#[tokio::test]
async fn a_ticket_that_is_all_there_is_waits_for_its_queue() {
    let app = TestApp::new().await;
    let operator = app.operator();
    app.services.pause_queue(&operator, "backups").await.unwrap();
    let mut connection = app.services.db.acquire().await.unwrap();
    queue::enqueue_backup(&mut connection, &BackupTicket::Create { policy: "none".to_owned() })
        .await
        .unwrap();
    drop(connection);
    let worker = app.start_worker().await;
    let done = format!("{DONE} 'backups'");
    app.wait_for("the ticket to be parked", async || app.number(&done).await == 1).await;
    assert_eq!(state(&app, "backups").await.waiting, 1);
    app.services.resume_queue(&operator, "backups").await.unwrap();
    app.wait_for("the ticket to be done", async || app.number(&done).await == 2).await;
    worker.stop().await;
    let Queue::Backups = Queue::ALL[4] else { panic!("the list of queues has changed") };
}

#[tokio::test]
async fn a_drained_worker_finishes_and_takes_nothing_new() {
    let app = TestApp::new().await;
    app.define("slow", "select n from generate_series(1, 3) as n, pg_sleep(2)").await;
    app.define("numbers", "select n from generate_series(1, 3) as n").await;
    let first = app.submit("slow", json!({})).await;
    let mut drained = app.start_worker().await;
    app.wait_until(first, Status::Processing).await;
    app.services.drain_worker(&app.operator(), &drained.id).await.unwrap();
    app.services.drain_worker(&app.operator(), &drained.id).await.unwrap();
    let second = app.submit("numbers", json!({})).await;
    app.wait_until(first, Status::Completed).await;
    assert_eq!(app.execution(second).await.status, Status::Pending);
    let other = app.start_worker().await;
    app.wait_until(second, Status::Completed).await;
    assert_eq!(app.manifest(first).await.worker, drained.id);
    assert_eq!(app.manifest(second).await.worker, other.id);
    let workers = app.services.workers(&app.operator()).await.unwrap();
    let row = workers.iter().find(|worker| worker.id == drained.id).expect("it is on the list");
    assert!(row.draining_at.is_some() && row.running == 0, "{row:?}");
    other.stop().await;
    // It stands still, and ends when it is told to.
    drained.ask_to_stop();
    drained.ended().await;
    assert_eq!(actions(&app, "queues").await, ["worker.drained"]);
    let gone = app.services.drain_worker(&app.operator(), "nobody").await;
    assert!(matches!(gone, Err(ServiceError::NotFound { what: "worker" })), "{gone:?}");
}

#[tokio::test]
async fn failed_executions_run_again_and_waiting_ones_are_thrown_away_in_bulk() {
    let app = TestApp::new().await;
    app.define("broken", "select 1 / (n - 2) as n from generate_series(1, 3) n").await;
    app.define("numbers", "select n from generate_series(1, 3) as n").await;
    let worker = app.start_worker().await;
    for _ in 0..3 {
        let id = app.submit("broken", json!({})).await;
        app.wait_until(id, Status::Failed).await;
    }
    worker.stop().await;
    let operator = app.operator();
    let change = async |action, code: Option<&str>, report: Option<&str>, act| {
        let selection =
            Selection { report: report.map(str::to_owned), error_code: code.map(str::to_owned) };
        app.services.change_many(&operator, action, &selection, act).await.unwrap()
    };
    let outcome = |selected, changed| BulkOutcome { selected, changed };
    let retry = BulkAction::Retry;
    assert_eq!(change(retry, Some("timeout"), None, true).await, outcome(0, 0));
    assert_eq!(change(retry, Some("sql_error"), None, false).await, outcome(3, 0));
    assert_eq!(change(retry, Some("sql_error"), None, true).await, outcome(3, 3));
    assert_eq!(change(retry, None, None, true).await, outcome(0, 0));
    app.submit("numbers", json!({})).await;
    let discard = BulkAction::Discard;
    assert_eq!(change(discard, None, Some("broken"), true).await, outcome(3, 3));
    assert_eq!(change(discard, None, None, true).await, outcome(1, 1));
    let lena = app.caller("lena").await;
    let refused = app.services.change_many(&lena, retry, &Selection::default(), false).await;
    assert!(matches!(refused, Err(ServiceError::Forbidden { .. })), "{refused:?}");
}

#[tokio::test]
async fn queues_workers_and_audit_are_handled_over_http_by_those_who_may() {
    let app = TestApp::new().await;
    let http = app.http().await;
    let (olga, ana, audit) =
        (app.token("olga").await, app.token("ana").await, app.token("audit").await);
    let paths = ["/v1/queues/reports/pause", "/v1/queues/reports/resume"];
    for path in paths {
        let refused = http.post(path, &ana, &json!({})).send().await.unwrap();
        assert_eq!(refused.status(), 403);
        let answer = http.post(path, &olga, &json!({})).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["queues"][0]["name"], "reports");
        assert_eq!(body["queues"][0]["paused_at"].is_null(), path.ends_with("resume"));
    }
    for path in ["/v1/queues/nothing/pause", "/v1/workers/nobody/drain"] {
        let answer = http.post(path, &olga, &json!({})).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
    }
    let list = async |path: &str, token: &str| {
        let answer = http.get(path, token).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap())
    };
    assert_eq!(list("/v1/workers", &olga).await.0, 200);
    assert_eq!(list("/v1/audit", &ana).await.0, 403);
    // Page by page, as one would read it.
    let mut path = "/v1/audit?entity_type=queues&limit=1".to_owned();
    let mut found = Vec::new();
    loop {
        let (status, page) = list(&path, &audit).await;
        assert_eq!(status, 200, "{page}");
        found.extend(page["entries"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        path = next.to_owned();
    }
    let actions: Vec<_> = found.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["queue.resumed", "queue.paused"]);
    assert_eq!(found[0]["fields"], json!(["queue"]));
    let other = path.replace("entity_type=queues", "entity_type=users");
    assert_eq!(list(&other, &audit).await.0, 400, "a cursor belongs to its filter");
    for wrong in ["user_id=x", "from=yesterday", "limit=0", "action=", "colour=red"] {
        assert_eq!(list(&format!("/v1/audit?{wrong}"), &audit).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn the_command_line_pauses_shows_and_resumes() {
    let app = TestApp::new().await;
    let run = async |arguments: &[&str], code| {
        let mut process = Process::start(&app.config, arguments);
        assert_eq!(process.ended().await.code(), Some(code), "{arguments:?}");
        process.log()
    };
    run(&["queue", "pause", "lifecycle"], 0).await;
    let stats: Value = serde_json::from_str(&run(&["queue", "stats", "--json"], 0).await).unwrap();
    let lifecycle = stats.as_array().unwrap().iter().find(|queue| queue["name"] == "lifecycle");
    assert!(lifecycle.expect("the queue")["paused_at"].is_string(), "{stats}");
    run(&["queue", "resume", "lifecycle"], 0).await;
    run(&["queue", "pause", "nothing"], 1).await;
    let listed = run(&["audit", "list", "--entity-type", "queues"], 0).await;
    assert!(listed.contains("queue.resumed"), "{listed}");
    assert!(run(&["worker", "list"], 0).await.contains("LAST SEEN"));
    run(&["queue", "retry"], 0).await;
}
