//! How soon a report starts, and how many of one row are executed in a second: with no history,
//! with a million finished executions, and beside the least that a queue in PostgreSQL can do.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use crate::ground::{Ground, RUN, output};
use crate::outcome::median;
use crate::service::{CONCURRENCY, PATIENCE, Service};
use crate::session::{add, say};

/// Executions of which the time from submit to start is taken, one after the other.
const ALONE: usize = 300;
/// Executions that are worked off.
const MANY: usize = 2_000;
/// Submits on their way at once.
const SUBMITTERS: usize = 8;
/// Of an idle queue, in milliseconds.
const START_LIMIT_MS: f64 = 50.0;
/// Finished executions that are kept.
const HISTORY: u64 = 1_000_000;

/// What a claim and a completion cost by themselves.
const CLAIM_COMPLETE: &str = "
update bench_queue set status = 'running', started_at = now()
 where id = (select id from bench_queue where status = 'queued' order by id
              for update skip locked limit 1)
returning id as id \\gset
update bench_queue set status = 'done', completed_at = now() where id = :id;
";

/// Users whose executions wait side by side.
const USERS: u64 = 20;
/// Times that turns and their absence are measured.
const TURNS_RUNS: usize = 5;
/// A claim without turns, caps and lanes: the next of all that wait.
const FIRST_COME: &str = "
create function claim_first_come(
    owner text, lease_secs double precision, user_cap integer, server_cap integer)
returns setof report_executions language sql as $$
    with chosen as (
        select e.id
          from report_executions e
         where e.status || '' = 'pending' and e.run_at <= now()
         order by e.priority desc, e.run_at, e.id
         limit 1
           for update skip locked
    )
    update report_executions e
       set status = 'processing', attempt = e.attempt + 1, lease_owner = owner,
           lease_until = now() + make_interval(secs => lease_secs),
           started_at = clock_timestamp(), progress_rows = 0, progress_bytes = 0,
           backend_pid = null, backend_start = null, ticket_id = null, ticket_at = null
      from chosen
     where e.id = chosen.id and e.status = 'pending'
    returning e.*
$$";
/// There only while it is needed, and in words of its own: by the words of other statements they
/// would read it too, from its beginning.
const FIRST_COME_INDEX: &str = "
create index bench_first_come on report_executions (priority desc, run_at, id)
 where status || '' = 'pending'";
/// How a claim is called by the service.
const CLAIM: &str = "claim_execution";

/// Measures the queue.
pub fn run(ground: &Ground, report: &mut Map<String, Value>) -> anyhow::Result<()> {
    // As the command line does; `Err` only says that it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ground.copy()?;
    ground.sql(RUN, "update users set is_superuser = true where id = 1")?;
    ground.registrar(RUN, &["report", "sync"])?;
    let token =
        ground.registrar(RUN, &["token", "create", "--user", "user1", "--name", "bench"])?;
    let runtime = tokio::runtime::Runtime::new()?;

    say(&format!("{ALONE} executions, one after the other"))?;
    let service = Service::start(ground, None)?;
    runtime.block_on(service.submit("one-row", &token, ALONE, 1, true))?;
    let percentile = |part: f64| -> anyhow::Result<f64> {
        let statement = format!(
            "select percentile_cont({part}) within group
                    (order by extract(epoch from started_at - created_at) * 1000)
               from report_executions where status = 'completed'"
        );
        Ok(ground.sql(RUN, &statement)?.parse()?)
    };
    for (name, part) in [("submit_to_start_p50_ms", 0.5), ("submit_to_start_p99_ms", 0.99)] {
        add(report, name, 1, ALONE, "ms", Some(percentile(part)?), Some(START_LIMIT_MS));
    }
    drop(service);

    let without = work_off(ground, &runtime, &token, 1)?;
    say(&format!("making {HISTORY} finished executions"))?;
    make_history(ground)?;
    let with = work_off(ground, &runtime, &token, 1)?;
    let least = claim_complete(ground)?;
    let rows = MANY as u64;
    add(report, "executions_vs_pgbench_claim_complete", rows, 1, "s", Some(without), Some(least));
    add(report, "executions_with_1m_history", rows, 1, "s", Some(with), Some(without));
    turns(ground, &runtime, &token, report)
}

/// What it costs that users take turns.
fn turns(
    ground: &Ground,
    runtime: &tokio::runtime::Runtime,
    token: &str,
    report: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    ground.sql(RUN, FIRST_COME)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..TURNS_RUNS {
        // In both orders: the table grows, and nothing is vacuumed meanwhile.
        for is_ours in [run % 2 == 0, run % 2 == 1] {
            match is_ours {
                true => ours.push(work_off(ground, runtime, token, USERS)?),
                false => theirs.push(first_come(ground, runtime, token)?),
            }
        }
    }
    let (ours, theirs) = (median(ours.into_iter()), median(theirs.into_iter()));
    add(report, "turns_vs_first_come", MANY as u64, TURNS_RUNS, "s", ours, theirs);
    Ok(())
}

/// The same without turns.
fn first_come(
    ground: &Ground,
    runtime: &tokio::runtime::Runtime,
    token: &str,
) -> anyhow::Result<f64> {
    let rename = |from: &str, to: &str| {
        ground.sql(RUN, &format!("alter function {from} rename to {to}")).map(drop)
    };
    ground.sql(RUN, FIRST_COME_INDEX)?;
    rename(CLAIM, "claim_in_turn")?;
    rename("claim_first_come", CLAIM)?;
    let taken = work_off(ground, runtime, token, USERS)?;
    rename(CLAIM, "claim_first_come")?;
    rename("claim_in_turn", CLAIM)?;
    ground.sql(RUN, "drop index bench_first_come")?;
    Ok(taken)
}

/// Seconds in which a worker executes what waits for it, of so many users.
fn work_off(
    ground: &Ground,
    runtime: &tokio::runtime::Runtime,
    token: &str,
    users: u64,
) -> anyhow::Result<f64> {
    say(&format!("{MANY} executions at once, of {users} users"))?;
    let newest = ground.sql(RUN, "select coalesce(max(id), 0) from report_executions")?;
    let api = Service::start(ground, Some("api"))?;
    let began = Instant::now();
    runtime.block_on(api.submit("one-row", token, MANY, SUBMITTERS, false))?;
    let per_second = MANY as f64 / began.elapsed().as_secs_f64();
    drop(api);
    if users > 1 {
        let spread = format!(
            "update report_executions set executed_by = 1 + id % {users} where id > {newest}"
        );
        ground.sql(RUN, &spread)?;
    }
    let worker = Service::start(ground, Some("worker"))?;
    let began = Instant::now();
    let left = format!(
        "select count(*) from report_executions
                         where id > {newest} and status <> 'completed'"
    );
    while ground.sql(RUN, &left)? != "0" {
        ensure!(began.elapsed() < PATIENCE, "the worker did not end in time");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(worker);
    let taken = format!(
        "select extract(epoch from max(completed_at) - min(started_at))
                           from report_executions where id > {newest}"
    );
    let taken: f64 = ground.sql(RUN, &taken)?.parse()?;
    say(&format!("  submitted {per_second:.0}/s, executed {:.0}/s", MANY as f64 / taken))?;
    Ok(taken)
}

/// Copies of an execution that has ended.
fn make_history(ground: &Ground) -> anyhow::Result<()> {
    let columns = ground.sql(
        RUN,
        "select string_agg(quote_ident(attname), ', ') from pg_attribute
          where attrelid = 'report_executions'::regclass and attnum > 0 and not attisdropped
            and attname not in ('id', 'reuse_key')",
    )?;
    let copies = format!(
        "insert into report_executions ({columns})
         select {columns}
           from (select * from report_executions where status = 'completed' limit 1) e
          cross join generate_series(1, {HISTORY})"
    );
    for statement in [copies.as_str(), "vacuum (analyze) report_executions", "checkpoint"] {
        ground.sql(RUN, statement)?;
    }
    Ok(())
}

/// Seconds in which ten clients claim and complete as many rows of a table, and do nothing else.
fn claim_complete(ground: &Ground) -> anyhow::Result<f64> {
    say("pgbench: claim and complete")?;
    for statement in [
        "create table bench_queue (id bigint generated always as identity primary key,
            status text not null default 'queued', started_at timestamptz,
            completed_at timestamptz)",
        "create index on bench_queue (id) where status = 'queued'",
        "insert into bench_queue (status) select 'queued' from generate_series(1, 20000)",
        "vacuum (analyze) bench_queue",
    ] {
        ground.sql(RUN, statement)?;
    }
    let script = ground.folder.join("claim_complete.sql");
    std::fs::write(&script, CLAIM_COMPLETE)?;
    let mut pgbench = std::process::Command::new("pgbench");
    let clients = CONCURRENCY.to_string();
    pgbench.args(["--no-vacuum", "--client", &clients, "--jobs", "2"]);
    pgbench.args(["--transactions", &(MANY / CONCURRENCY).to_string(), "--file"]);
    pgbench.arg(&script).arg(ground.url(RUN)?);
    let said = output(pgbench)?;
    let per_second: f64 = said
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next())
        .context("pgbench says how many transactions it did in a second")?
        .parse()?;
    Ok(MANY as f64 / per_second)
}
