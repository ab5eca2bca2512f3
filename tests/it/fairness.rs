//! Caps and turns: nobody waits longer than the rules say, and nobody gets more.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use registrar::db::executions::{self, Caps, Status};
use registrar::writer::Format;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::TestApp;
use crate::support::app::submission;

/// Waits until nobody holds the gate's lock alone.
const GATED: &str = "select pg_advisory_xact_lock_shared(7)::text as passed";

fn cap(number: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(number)
}

/// Closed, it stops every report of [`GATED`]; dropped, it lets them pass.
async fn close_gate(app: &TestApp) -> PgConnection {
    let mut gate = PgConnection::connect(app.database_url()).await.unwrap();
    sqlx::query("select pg_advisory_lock(7)").execute(&mut gate).await.unwrap();
    gate
}

async fn submit(app: &TestApp, user: &str, slug: &str) -> i64 {
    let submission = submission(json!({}), Format::Csv);
    app.submit_as(&app.caller(user).await, slug, &submission).await.unwrap().execution.id
}

async fn tickets_used(app: &TestApp) -> i64 {
    app.number("select count(*) from apalis.jobs where job_type = 'reports' and status = 'Done'")
        .await
}

#[tokio::test]
async fn a_definitions_cap_per_user_holds_and_keeps_back_nobody_else() {
    let app = TestApp::new().with(|config| config.report.lock_timeout_ms = cap(60_000).unwrap());
    let app = app.await;
    app.define_with("gated", "limits = { max_concurrent_per_user = 1 }", GATED).await;
    app.define("one", "select 1 as one").await;
    let gate = close_gate(&app).await;
    let mut of_ana = Vec::new();
    for _ in 0..4 {
        of_ana.push(submit(&app, "ana", "gated").await);
    }
    let (other, of_rui) = (submit(&app, "ana", "one").await, submit(&app, "rui", "gated").await);
    let workers = [app.start_worker().await, app.start_worker().await];
    // Her other report passes what the cap keeps back, and so does another user's.
    app.wait_until(other, Status::Completed).await;
    app.wait_until_querying(of_rui).await;
    app.wait_until_querying(of_ana[0]).await;
    // Two run; the other four tickets have found a report, or nothing that may start.
    app.wait_for("the tickets to be used", async || tickets_used(&app).await == 4).await;
    for id in &of_ana[1..] {
        assert_eq!(app.execution(*id).await.status, Status::Pending, "{id}");
    }

    gate.close().await.unwrap();
    for id in of_ana.iter().chain([&of_rui]) {
        app.wait_until(*id, Status::Completed).await;
    }
    for worker in workers {
        worker.stop().await;
    }
    let overlapping = "select count(*)
                         from report_executions a
                         join report_executions b on a.id < b.id and a.executed_by = b.executed_by
                          and a.report_definition_id = b.report_definition_id
                        where a.completed_at > b.started_at and b.completed_at > a.started_at";
    assert_eq!(app.number(overlapping).await, 0, "never two of one user's at once");
    // Whoever was kept back is called when a place is free, not when a ticket is missed.
    let waited = "select extract(epoch from max(completed_at) - min(completed_at))::int8
                    from report_executions where executed_by = 2";
    assert!(app.number(waited).await < 20, "{} s", app.number(waited).await);
}

#[tokio::test]
async fn caps_hold_for_claims_at_the_same_instant() {
    let mut app = TestApp::new().await;
    app.leave_unfinished();
    app.define("one", "select 1 as one").await;
    for user in ["ana", "rui"] {
        for _ in 0..8 {
            submit(&app, user, "one").await;
        }
    }
    let db = app.services.db.clone();
    let claim = async |caps: Caps, times: usize| {
        let claims = (0..times).map(|_| executions::claim_next(&db, "worker", 60, caps));
        let claimed = futures::future::try_join_all(claims).await.unwrap();
        claimed.into_iter().flatten().map(|claimed| claimed.executed_by).collect::<Vec<_>>()
    };
    let of_users = claim(Caps { per_user: cap(2), in_all: None }, 12).await;
    assert_eq!(of_users.len(), 4, "two of each: {of_users:?}");
    assert_eq!(of_users.iter().collect::<BTreeSet<_>>().len(), 2);
    let in_all = claim(Caps { per_user: None, in_all: cap(7) }, 12).await;
    assert_eq!(in_all.len(), 3, "four were running: {in_all:?}");
}

#[tokio::test]
async fn what_a_cap_keeps_back_does_not_hide_what_is_behind_it() {
    let mut app = TestApp::new().await;
    app.leave_unfinished();
    app.define_with("capped", "limits = { max_concurrent_per_user = 2 }", "select 1 as n").await;
    app.define("one", "select 1 as one").await;
    // More than a claim looks at.
    for _ in 0..40 {
        submit(&app, "ana", "capped").await;
    }
    let behind = submit(&app, "ana", "one").await;
    let mut claimed = Vec::new();
    while let Some(next) =
        executions::claim_next(&app.services.db, "worker", 60, Caps::default()).await.unwrap()
    {
        claimed.push(next.id);
    }
    assert_eq!(claimed.len(), 3, "{claimed:?}");
    assert_eq!(claimed.last(), Some(&behind));
}

#[tokio::test]
async fn the_place_in_the_queue_is_the_order_of_the_claims() {
    let mut app = TestApp::new().await;
    app.leave_unfinished();
    app.define("one", "select 1 as one").await;
    let http = app.http().await;
    let mut ids = Vec::new();
    for user in ["ana", "ana", "ana", "rui", "rui", "lena"] {
        ids.push((user, submit(&app, user, "one").await));
    }
    let mut places = Vec::new();
    for (user, id) in &ids {
        let token = app.token(user).await;
        let answer = http.get(&format!("/v1/executions/{id}"), &token).send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        places.push((body["queue_position"].as_u64().unwrap(), *id));
    }
    places.sort_unstable();
    let places: Vec<i64> = places.into_iter().map(|(_, id)| id).collect();
    let mut claimed = Vec::new();
    while let Some(next) =
        executions::claim_next(&app.services.db, "worker", 60, Caps::default()).await.unwrap()
    {
        claimed.push(next.id);
    }
    assert_eq!(claimed, places);
}
