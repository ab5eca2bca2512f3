//! Caps and turns: nobody waits longer than the rules say, and nobody gets more.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use futures::StreamExt;
use registrar::db::executions::{self, Caps, Status};
use registrar::service::ServiceError;
use registrar::writer::Format;
use rustix::process::Signal;
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
async fn what_others_hold_locked_is_passed_over() {
    let mut app = TestApp::new().await;
    app.leave_unfinished();
    app.define("one", "select 1 as one").await;
    let mut ids = Vec::new();
    for user in ["ana", "ana", "ana", "rui", "rui"] {
        ids.push(submit(&app, user, "one").await);
    }
    // As cancelling does, before it commits: the first two of each user.
    let mut cancelling = app.services.db.begin().await.unwrap();
    for id in [ids[0], ids[1], ids[3], ids[4]] {
        let locked = sqlx::query("select from report_executions where id = $1 for update");
        locked.bind(id).execute(&mut *cancelling).await.unwrap();
    }
    let claim = || executions::claim_next(&app.services.db, "worker", 60, Caps::default());
    // The first claim looks at everything before it tries, the second begins where that one did.
    for expected in [Some(ids[2]), None] {
        assert_eq!(claim().await.unwrap().map(|next| next.id), expected);
    }
    cancelling.rollback().await.unwrap();
    assert!(ids.contains(&claim().await.unwrap().unwrap().id));
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

#[tokio::test]
async fn a_single_place_goes_round_the_users() {
    let mut app = TestApp::new().await;
    app.leave_unfinished();
    app.define("one", "select 1 as one").await;
    let http = app.http().await;
    let mut ids = Vec::new();
    for (user, count) in [("ana", 6), ("rui", 2), ("lena", 2)] {
        for _ in 0..count {
            ids.push(submit(&app, user, "one").await);
        }
    }
    // One at a time: nobody ever has more running than another, and still nobody waits for the
    // heap of the one who came first.
    let mut served = Vec::new();
    let mut connection = app.services.db.acquire().await.unwrap();
    let token = app.token("ana").await;
    while let Some(next) =
        executions::claim_next(&app.services.db, "worker", 60, Caps::default()).await.unwrap()
    {
        served.push(next.executed_by.unwrap());
        executions::fail(&mut connection, next.id, next.attempt, "x", "x").await.unwrap();
        if served.len() == 1 {
            // Behind her first: one of Rui's, one of Lena's.
            let path = format!("/v1/executions/{}", ids[1]);
            let body: Value = http.get(&path, &token).send().await.unwrap().json().await.unwrap();
            assert_eq!(body["queue_position"], 2);
        }
    }
    assert_eq!(served, [2, 3, 5, 2, 3, 5, 2, 2, 2, 2]);
}

#[tokio::test]
async fn two_hundred_executions_of_five_users_end_in_the_bound_of_round_robin() {
    let app =
        TestApp::new().with(|config| config.report.max_active_per_user = cap(200).unwrap()).await;
    app.define("numbers", "select n from generate_series(1, 10) n").await;
    let heap = app.caller("ana").await;
    let request = submission(json!({}), Format::Csv);
    for _ in 0..150 {
        app.submit_as(&heap, "numbers", &request).await.unwrap();
    }
    let mut others = Vec::new();
    let names = ["rui", "lena", "audit", "admin"];
    for user in names {
        let caller = app.caller(user).await;
        for _ in 0..12 {
            let submitted = app.submit_as(&caller, "numbers", &request).await.unwrap();
            others.push(submitted.execution.id);
        }
    }
    let workers = [app.start_worker().await, app.start_worker().await];
    for &id in &others {
        app.wait_until(id, Status::Completed).await;
    }
    // Twelve rounds of five, and what ran at the same time as the last of them.
    let of_the_heap = app
        .number(
            "select count(*)
               from report_executions h
              where h.executed_by = 2 and h.started_at <= (
                    select max(o.started_at) from report_executions o where o.executed_by <> 2)",
        )
        .await;
    assert!(of_the_heap <= 12 + 8, "{of_the_heap} of the heap went before");
    app.wait_for("the heap to be done", async || {
        app.number("select count(*) from report_executions where status <> 'completed'").await == 0
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_users_limit_holds_for_submits_at_the_same_instant() {
    let mut app =
        TestApp::new().with(|config| config.report.max_active_per_user = cap(7).unwrap()).await;
    app.leave_unfinished();
    app.define("one", "select 1 as one").await;
    // The application's own work on the user's row is nothing that a submit waits for.
    let mut application = PgConnection::connect(app.database_url()).await.unwrap();
    let changing = "begin; update users set last_name = last_name where username = 'ana'";
    sqlx::raw_sql(changing).execute(&mut application).await.unwrap();
    let ana = app.caller("ana").await;
    let request = submission(json!({}), Format::Csv);
    let submits = (0..16).map(|_| app.submit_as(&ana, "one", &request));
    let (accepted, refused): (Vec<_>, Vec<_>) =
        futures::future::join_all(submits).await.into_iter().partition(Result::is_ok);
    assert_eq!(accepted.len(), 7);
    for refusal in refused {
        assert!(matches!(refusal, Err(ServiceError::TooManyActive { limit: 7 })), "{refusal:?}");
    }
    application.close().await.unwrap();
}

#[expect(clippy::print_stdout, reason = "a figure for whoever measures")]
fn tell(line: &str) {
    println!("{line}");
}

#[tokio::test]
async fn a_thousand_submits_in_flight_are_run_once_each_and_looked_at_quickly() {
    let app =
        TestApp::new().with(|config| config.report.max_active_per_user = cap(300).unwrap()).await;
    app.define("one", "select 1 as one").await;
    let http = app.http().await;
    let mut submits = Vec::new();
    for user in ["ana", "rui", "lena", "audit", "admin"] {
        let token = app.token(user).await;
        for _ in 0..200 {
            let submit = http.post("/v1/reports/one/executions", &token, &json!({}));
            submits.push(async move {
                let answer = submit.send().await.unwrap();
                assert_eq!(answer.status(), 202);
            });
        }
    }
    futures::stream::iter(submits).buffer_unordered(16).collect::<Vec<()>>().await;
    assert_eq!(app.number("select count(*) from report_executions").await, 1000);
    let mut workers = [app.start_worker_process().await, app.start_worker_process().await];

    let token = app.token("admin").await;
    let mut reads = Vec::new();
    let unfinished = "select count(*) from report_executions where status <> 'completed'";
    let give_up = Instant::now() + Duration::from_secs(150);
    let mut id = 0;
    while app.number(unfinished).await > 0 {
        assert!(Instant::now() < give_up, "{} are unfinished", app.number(unfinished).await);
        for _ in 0..5 {
            id = (id + 37) % 1000;
            let asked = Instant::now();
            let path = format!("/v1/executions/{}", id + 1);
            let answer = http.get(&path, &token).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            reads.push(asked.elapsed());
        }
        // As a client that follows: the rest of the machine is the workers'.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for worker in &mut workers {
        worker.signal(Signal::TERM);
        assert!(worker.ended().await.success());
    }
    let once = "select count(*) from report_executions where attempt = 1 and failed_attempts = 0";
    assert_eq!(app.number(once).await, 1000, "none twice");
    let recorded = "select count(distinct entity_id) from audit_logs
                     where action = 'execution.completed'";
    assert_eq!(app.number(recorded).await, 1000);
    let recorded = "select count(*) from audit_logs where action = 'execution.completed'";
    assert_eq!(app.number(recorded).await, 1000, "none lost");
    let both = "select count(distinct lease_owner) from report_executions";
    assert_eq!(app.number(both).await, 2);
    reads.sort_unstable();
    let median = reads[reads.len() / 2];
    tell(&format!("median of {} status reads: {median:?}", reads.len()));
    assert!(median < Duration::from_millis(50), "{median:?}");
}
