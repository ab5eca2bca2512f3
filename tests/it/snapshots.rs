//! A backup keeps a snapshot open for as long as it runs: the queue must not become slower by that.

use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::support::TestApp;
use crate::support::database::sql;

/// Executions and tickets that are done while the snapshot is open.
const CYCLES: i64 = 2_000;
/// How many more pages a claim may read then. Where it reads dead rows it is more than one for each
/// ten executions that were done meanwhile.
const MORE_PAGES: i64 = 60;

/// Submits, claims and completes, each in a transaction of its own, so that dead rows pile up.
const WORK: &str = "
    do $$
    declare claimed bigint; ticket text;
    begin
        for n in 1..CYCLES loop
            insert into report_executions (report_definition_id, status, run_at, ticket_at)
            values ((select min(id) from report_definitions), 'pending', now(), now());
            insert into apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at)
            values ('cycle-' || START || n, 'reports', '{}', 'Pending', 0, 1, now());
            commit;
            select id into claimed from claim_execution('tests', 10, null, null);
            select id into ticket from apalis.get_jobs('tests', 'reports', 1);
            commit;
            update report_executions
               set status = 'completed', completed_at = now(), lease_until = null,
                   lease_owner = null
             where id = claimed;
            update apalis.jobs set status = 'Done', done_at = now() where id = ticket;
            commit;
        end loop;
    end $$";

#[tokio::test]
async fn claims_read_no_more_while_a_snapshot_is_open() {
    let mut app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    app.execute(
        "insert into report_executions (report_definition_id, status, run_at, attempt, started_at,
                                        completed_at)
         select (select min(id) from report_definitions), 'completed', now() - interval '1 day', 1,
                now() - interval '1 day', now() - interval '1 day'
           from generate_series(1, 30000)",
    )
    .await;
    app.execute(
        "insert into apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at, done_at)
         select 'old-' || g, 'reports', '{}', 'Done', 1, 1, now(), now()
           from generate_series(1, 30000) g",
    )
    .await;
    app.execute(
        "insert into apalis.workers (id, worker_type, storage_name, layers, last_seen, started_at)
         values ('tests', 'reports', 'x', 'x', now(), now())",
    )
    .await;
    let mut queue = PgConnection::connect(app.database_url()).await.unwrap();
    sqlx::raw_sql("vacuum analyze report_executions, apalis.jobs")
        .execute(&mut queue)
        .await
        .unwrap();
    work(&mut queue, "1").await;
    let before = pages(&app, &mut queue).await;

    let mut snapshot = PgConnection::connect(app.database_url()).await.unwrap();
    sqlx::raw_sql("begin isolation level repeatable read; select count(*) from users")
        .execute(&mut snapshot)
        .await
        .unwrap();
    work(&mut queue, "2").await;
    let after = pages(&app, &mut queue).await;
    for (what, before, after) in [("claim", before.0, after.0), ("ticket", before.1, after.1)] {
        assert!(after <= before + MORE_PAGES, "a {what} reads {after} pages instead of {before}");
    }
    app.leave_unfinished();
}

async fn work(queue: &mut PgConnection, start: &str) {
    let work = WORK.replace("CYCLES", &CYCLES.to_string()).replace("START", start);
    sqlx::raw_sql(sql(work)).execute(queue).await.unwrap();
}

/// Pages that a claim and the taking of a ticket read, when nothing before the work waits.
async fn pages(app: &TestApp, queue: &mut PgConnection) -> (i64, i64) {
    let context = app.worker_context("reaper");
    let newest = "select (extract(epoch from max(run_at)) * 1000)::bigint from apalis.jobs";
    let newest = app.number(newest).await;
    app.wait_for("the mark of tickets to pass the work", async || {
        registrar::worker::reaper::pass(&context).await.unwrap();
        let reached = "select last_value from apalis.registrar_mark_reports";
        app.number(reached).await > newest
    })
    .await;
    // Each looks or does not, and the first plans: what the cheapest reads is what a claim costs.
    let mut least = (i64::MAX, i64::MAX);
    for n in 0..8 {
        let probe = format!(
            "insert into report_executions (report_definition_id, status, run_at, ticket_at)
             values ((select min(id) from report_definitions), 'pending', now(), now());
             insert into apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at)
             values ('probe-{newest}-{n}', 'reports', '{{}}', 'Pending', 0, 1, now())"
        );
        sqlx::raw_sql(sql(probe)).execute(&mut *queue).await.unwrap();
        let claim = "select * from claim_execution('tests', 10, null, null)";
        let ticket = "select * from apalis.get_jobs('tests', 'reports', 1)";
        let (claim, ticket) = (explained(queue, claim).await, explained(queue, ticket).await);
        least = (least.0.min(claim), least.1.min(ticket));
    }
    least
}

async fn explained(connection: &mut PgConnection, query: &str) -> i64 {
    let explain = format!("explain (analyze, buffers, format json) {query}");
    let plan: Value = sqlx::query_scalar(sql(explain)).fetch_one(connection).await.unwrap();
    let plan = &plan[0]["Plan"];
    assert_eq!(plan["Actual Rows"], 1, "it takes something: {plan}");
    let of = |key: &str| plan[key].as_i64().unwrap();
    of("Shared Hit Blocks") + of("Shared Read Blocks")
}
