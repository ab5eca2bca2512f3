//! The sums at the end: what was promised was kept, once each, and nothing else is left.

use std::collections::BTreeSet;
use std::time::Duration;

use registrar::db::audit::Actor;
use sqlx::PgConnection;

use super::load::{Ledger, OLD_ROWS};
use crate::support::receiver::Receiver;
use crate::support::{TestApp, tell};

/// How long everything that was begun may take to end after the last fault. A schedule works off what
/// it is behind with one by one, so after a quarter of an hour that can be minutes.
const SETTLE: Duration = Duration::from_secs(900);
/// How long nothing at all may come to its end meanwhile.
const STANDSTILL: Duration = Duration::from_secs(120);
/// How long the server may take to notice that somebody is gone.
const GONE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What is still on its way, each with how many there are.
const OPEN: &str = "
    select name, number from (values
        ('executions', (select count(*) from report_executions
                         where status in ('pending', 'processing', 'cancelling'))),
        ('occurrences', (select count(*) from schedule_occurrences o
                           join schedules s on s.name = o.schedule and s.name like 'every-%' where o.status = 'pending')),
        ('runs', (select count(*) from lifecycle_runs where status in ('pending', 'processing'))),
        ('deliveries', (select count(*) from outbox_deliveries
                         where status in ('pending', 'sending')))
    ) open (name, number) where number > 0";

/// Sums that must be 0, with what it means when they are not.
const SUMS: [(&str, &str); 8] = [
    (
        "executions without exactly one outcome",
        "select count(*) from report_executions e
          where (select count(*) from outbox_events o
                  where (o.data->>'execution_id')::bigint = e.id
                    and o.type in ('execution.completed', 'execution.failed',
                                   'execution.cancelled')) <> 1",
    ),
    (
        "executions that neither completed, nor were cancelled, nor had to fail",
        "select count(*) from report_executions e
           join report_definitions d on d.id = e.report_definition_id
          where not (e.status in ('completed', 'cancelled')
                     or e.status = 'failed' and d.slug = 'broken')
             or e.status = 'completed' and d.slug = 'broken'",
    ),
    (
        "executions that were published more than once",
        "select count(*) from (
            select entity_id from audit_logs where action = 'execution.completed'
             group by entity_id having count(*) > 1) more",
    ),
    (
        "due times that were left out",
        "select coalesce(sum(missing), 0)::bigint from (
            select extract(epoch from max(due_at) - min(due_at))::bigint
                       / substring(s.cron from '\\d+')::int + 1 - count(*) as missing
              from schedule_occurrences o join schedules s on s.name = o.schedule and s.name like 'every-%'
             group by s.name, s.cron) counted",
    ),
    (
        "due times that did not start exactly one execution",
        "select count(*) from schedule_occurrences o join schedules s on s.name = o.schedule and s.name like 'every-%'
          where o.status <> 'done' or o.execution_id is null",
    ),
    (
        "executions that two due times point to",
        "select count(*) from (
            select execution_id from schedule_occurrences where execution_id is not null
             group by execution_id having count(*) > 1) more",
    ),
    (
        "executions of schedules beside those of their due times",
        "select abs((select count(*) from report_executions e
                       join report_definitions d on d.id = e.report_definition_id
                      where d.slug = 'tick')
                  - (select count(*) from schedule_occurrences where execution_id is not null))",
    ),
    (
        "deliveries that were given up",
        "select count(*) from outbox_deliveries where status <> 'delivered'",
    ),
];

/// What the server itself takes away, moments after whoever had it is gone.
const LEFT: [(&str, &str); 4] = [
    (
        "leases that nobody gave back",
        "select (select count(*) from report_executions where lease_until is not null)
              + (select count(*) from lifecycle_runs where lease_until is not null)
              + (select count(*) from outbox_deliveries where lease_until is not null)",
    ),
    (
        "connections of reports",
        "select count(*) from pg_stat_activity where usename = 'registrar_report'",
    ),
    (
        "transactions that stand open, and locks of processes that are gone",
        "select (select count(*) from pg_stat_activity
                  where datname = current_database() and state like 'idle in transaction%')
              + (select count(*) from pg_prepared_xacts)
              + (select count(*) from pg_locks l join pg_database d on d.oid = l.database
                  where d.datname = current_database() and l.locktype = 'advisory')",
    ),
    (
        "scratch databases",
        "select count(*) from pg_database where datname like 'registrar_verify%'",
    ),
];

/// Waits until all that was begun has ended. Messages that wait for another try get it now: hours
/// pass for them.
pub async fn settle(app: &TestApp) {
    let db = &app.services.db;
    let mut open = Vec::new();
    let mut changed = tokio::time::Instant::now();
    let settled = tokio::time::timeout(SETTLE, async {
        loop {
            for hurry in [
                "update outbox_deliveries set next_attempt_at = now()
                  where status = 'pending' and next_attempt_at > now()",
                "update lifecycle_runs set run_at = now(), ticket_at = null
                  where status = 'pending' and run_at > now()",
            ] {
                sqlx::query(hurry).execute(db).await.unwrap();
            }
            let before = std::mem::take(&mut open);
            open = sqlx::query_as::<_, (String, i64)>(OPEN).fetch_all(db).await.unwrap();
            if open.is_empty() {
                return;
            }
            if open != before {
                changed = tokio::time::Instant::now();
            }
            assert!(changed.elapsed() < STANDSTILL, "nothing ends any more: {open:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    assert!(settled.await.is_ok(), "after {SETTLE:?} there are still open: {open:?}");
}

/// Looks through everything and returns what is wrong. No process of the service runs any more.
pub async fn audit(app: &TestApp, ledger: &Ledger, receiver: &Receiver) -> Vec<String> {
    let mut wrong = ledger.findings();
    for (meaning, sum) in SUMS {
        let found = app.number(sum).await;
        if found != 0 {
            wrong.push(format!("{found} {meaning}"));
        }
    }
    for (meaning, sum) in LEFT {
        let mut found = 0;
        let gone = tokio::time::timeout(GONE, async {
            loop {
                found = app.number(sum).await;
                if found == 0 {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        if gone.await.is_err() {
            wrong.push(format!("{found} {meaning}"));
        }
    }
    wrong.extend(submits(app, ledger).await);
    wrong.extend(messages(app, receiver).await);
    wrong.extend(runs(app).await);
    wrong.extend(moved_rows(app, ledger).await);
    wrong.extend(files(app).await);
    wrong
}

/// Connections of reports on the replica.
pub async fn reports_on(replica: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from pg_stat_activity where usename = 'registrar_report'")
        .fetch_one(replica)
        .await
        .unwrap()
}

/// Each run completed, however often it was broken off, or found other rows than its preview.
async fn runs(app: &TestApp) -> Vec<String> {
    sqlx::query_scalar(
        "select format('run %s is %s after %s failed attempts: %s, %s', id, status,
                       failed_attempts, error_code, error_message)
           from lifecycle_runs
          where status <> 'completed' and error_code is distinct from 'stale_digest'",
    )
    .fetch_all(&app.services.db)
    .await
    .unwrap()
}

/// Each accepted submit is one execution, there are no others, and each result is whole.
async fn submits(app: &TestApp, ledger: &Ledger) -> Vec<String> {
    let mut wrong = Vec::new();
    let accepted = ledger.submits();
    let ids: BTreeSet<i64> = accepted.iter().map(|(id, _)| *id).collect();
    if ids.len() != accepted.len() {
        wrong.push(format!("{} keys have {} executions", accepted.len(), ids.len()));
    }
    let stored: Vec<(i64, String, String, String)> = sqlx::query_as(
        "select e.id, d.slug::text, e.status::text, e.format::text
           from report_executions e
           join report_definitions d on d.id = e.report_definition_id
          where d.slug <> 'tick'",
    )
    .fetch_all(&app.services.db)
    .await
    .unwrap();
    let stored_ids: BTreeSet<i64> = stored.iter().map(|(id, ..)| *id).collect();
    for id in ids.symmetric_difference(&stored_ids) {
        wrong
            .push(format!("execution {id} was accepted and is not stored, or the other way round"));
    }
    for (id, slug, status, format) in stored {
        if status != "completed" {
            continue;
        }
        let lines = match slug.as_str() {
            "load" => 201,
            "slow" => 6,
            "large" => 40_001,
            other => panic!("a completed execution of {other}"),
        };
        // Checks the SHA-256 of the row too.
        let file = app.result(id).await;
        let found = file.iter().filter(|byte| **byte == b'\n').count();
        if format == "csv" && found != lines {
            wrong.push(format!("the result of {id} has {found} lines instead of {lines}"));
        }
    }
    wrong
}

/// Each event reached the receiver, under its one id, and nothing else did.
async fn messages(app: &TestApp, receiver: &Receiver) -> Vec<String> {
    let events: Vec<String> =
        sqlx::query_scalar("select 'msg_' || replace(id::text, '-', '') from outbox_events")
            .fetch_all(&app.services.db)
            .await
            .unwrap();
    let events: BTreeSet<_> = events.into_iter().collect();
    let received: Vec<_> = receiver.received();
    let ids: BTreeSet<_> =
        received.iter().map(|message| message.header("webhook-id").to_owned()).collect();
    tell(&format!("{} events came in {} messages", events.len(), received.len()));
    let missing = events.difference(&ids).count();
    let unknown = ids.difference(&events).count();
    match (missing, unknown) {
        (0, 0) => Vec::new(),
        _ => vec![format!("{missing} events were never received, {unknown} messages are of none")],
    }
}

/// What the policy was given to move is in one place each: a batch is there as a whole, or, where
/// nobody was told that it is, not at all.
async fn moved_rows(app: &TestApp, ledger: &Ledger) -> Vec<String> {
    if ledger.batches().is_empty() {
        return Vec::new();
    }
    let found: Vec<(i64, i64, i64, i64)> = sqlx::query_as(
        "select entity_id / $1, count(*), count(distinct entity_id), count(*) filter (where live)
           from (select true as live, entity_id from audit_logs where action = 'soak.old'
                 union all
                 select false, entity_id from archive.audit_logs where action = 'soak.old') as of_both
          group by 1",
    )
    .bind(OLD_ROWS)
    .fetch_all(&app.services.db)
    .await
    .unwrap();
    let mut wrong = Vec::new();
    for (batch, rows, apart, _) in &found {
        if (*rows, *apart) != (OLD_ROWS, OLD_ROWS) {
            wrong.push(format!("batch {batch} has {rows} rows, {apart} different ones"));
        }
    }
    let known: BTreeSet<i64> = found.iter().map(|(batch, ..)| *batch).collect();
    let lost = ledger.batches().into_iter().filter(|batch| !known.contains(batch));
    wrong.extend(lost.map(|batch| format!("batch {batch} is gone")));
    let live: i64 = found.iter().map(|(.., live)| live).sum();
    let archived = OLD_ROWS * i64::try_from(found.len()).unwrap() - live;
    tell(&format!("{archived} rows were archived, {live} wait"));
    wrong
}

/// Files and uploads: what killed processes left goes in one sweep, and then all is in order.
async fn files(app: &TestApp) -> Vec<String> {
    let actor = Actor::system();
    let first = app.services.sweep(&actor, true).await.unwrap();
    tell(&format!(
        "the sweep took away {} files and {} uploads",
        first.orphaned_files, first.unfinished_uploads
    ));
    let second = app.services.sweep(&actor, false).await.unwrap();
    let mut wrong = Vec::new();
    if first.missing_files > 0 || !second.is_clean() || !second.uploads_listed {
        wrong.push(format!("the store is not in order: {first:?}, then {second:?}"));
    }
    wrong
}
