//! Runs of policies beside the single statement that would do the same, while somebody else writes
//! and reads the same table.
//!
//! Of a run counts the time that its account of the table has: from the search for the first row
//! over all chunks, with their checksums and accounts, and the count of what is left, to the end of
//! the `VACUUM (ANALYZE)`. So the statement is followed by the same. What a run does beside
//! that, the preview before and the certificate after it, is left out, as nothing of the kind comes
//! with a statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Map, Value};
use sqlx::{Connection, PgConnection};

use crate::ground::{Ground, RUN};
use crate::outcome::median;
use crate::session::{add, say};

/// How long a writer or a reader beside a run may wait.
const WAIT_LIMIT_MS: f64 = 100.0;
/// Between two statements of a writer or reader.
const PAUSE: Duration = Duration::from_millis(2);

/// What is compared.
struct Pair {
    name: &'static str,
    policy: &'static str,
    rows: u64,
    /// How many rows have gone.
    count: &'static str,
    /// Does the same at once.
    statement: &'static str,
    /// What follows the statement, as it ends the run.
    vacuum: &'static str,
    /// Takes a number that is different each time.
    write: &'static str,
    read: &'static str,
}

const ARCHIVE: Pair = Pair {
    name: "archive_vs_single_statement",
    policy: "archive-audit-logs",
    rows: 1_000_000,
    count: "select count(*) from archive.audit_logs",
    statement: "with moved as (delete from audit_logs
                                where created_at < now() - interval '5 years' returning *)
                insert into archive.audit_logs select moved.*, now(), 1 from moved",
    vacuum: "vacuum (analyze) audit_logs; analyze archive.audit_logs",
    write: "update audit_logs set action = 'user.seen' where id = 1 + $1 * 7919 % 1000000",
    read: "select count(*) from audit_logs where id between $1 * 7919 % 1000000
                                                         and $1 * 7919 % 1000000 + 50",
};

const ANONYMIZE: Pair = Pair {
    name: "anonymize_vs_single_update",
    policy: "anonymize-users",
    rows: 200_000,
    count: "select count(*) from users where email like '%@erased.invalid'",
    statement: "update users
                   set username = left(md5('u' || id), 24),
                       email = left(md5('e' || id), 24) || '@erased.invalid',
                       password = '!' || left(md5('p' || id) || md5('q' || id), 40),
                       first_name = null, last_name = null, last_login = null,
                       phone_number = null, address = null, postal_code = null,
                       profile_picture = null,
                       date_of_birth = date_trunc('year', date_of_birth)::date
                 where date_joined < now() - interval '5 years'",
    vacuum: "vacuum (analyze) users",
    write: "update users set city = 'Harare' where id = 1 + $1 * 7919 % 200000",
    read: "select count(*) from users where id between $1 * 7919 % 200000
                                                    and $1 * 7919 % 200000 + 50",
};

const PURGE: Pair = Pair {
    name: "purge_vs_single_delete",
    policy: "purge-deleted-users",
    rows: 1_000,
    count: "select 200000 - count(*) from users",
    statement: "delete from users where deleted_at < now() - interval '30 days'",
    vacuum: "vacuum (analyze) users",
    write: "update users set last_login = now() where id = 1 + $1 * 7919 % 200000",
    read: "select count(*) from users where id between $1 * 7919 % 200000
                                                    and $1 * 7919 % 200000 + 50",
};

/// Measures the archive of a million audit rows.
pub fn archive(
    ground: &Ground,
    runs: usize,
    report: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    compare(&ARCHIVE, "archive_worst_wait_ms", ground, runs, report)
}

/// Measures that two hundred thousand accounts are made anonymous.
pub fn anonymize(
    ground: &Ground,
    runs: usize,
    report: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    compare(&ANONYMIZE, "anonymize_worst_wait_ms", ground, runs, report)
}

/// Measures the deletion of a thousand accounts.
pub fn purge(ground: &Ground, runs: usize, report: &mut Map<String, Value>) -> anyhow::Result<()> {
    compare(&PURGE, "purge_worst_wait_ms", ground, runs, report)
}

fn compare(
    pair: &Pair,
    wait_name: &str,
    ground: &Ground,
    runs: usize,
    report: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let (mut ours, mut theirs, mut worst) = (Vec::new(), Vec::new(), Duration::ZERO);
    for round in 1..=runs {
        say(&format!("{}, run {round} of {runs}", pair.name))?;
        let (taken, longest) = measure(pair, ground, || {
            ground.run_policy(RUN, pair.policy)?;
            let taken = "select extract(epoch from completed_at - started_at)
                           from lifecycle_run_tables where status = 'completed'
                          order by run_id desc limit 1";
            ground.sql(RUN, taken)?.parse().context("the run's time")
        })?;
        ours.push(taken);
        worst = worst.max(longest);
        say(&format!("  run: {taken:.3} s, others waited {} ms at most", longest.as_millis()))?;
        let (taken, longest) = measure(pair, ground, || {
            let began = Instant::now();
            ground.sql(RUN, pair.statement)?;
            for statement in pair.vacuum.split("; ") {
                ground.sql(RUN, statement)?;
            }
            Ok(began.elapsed().as_secs_f64())
        })?;
        theirs.push(taken);
        let waited = longest.as_millis();
        say(&format!("  statement: {taken:.3} s, others waited {waited} ms at most"))?;
    }
    let (ours, theirs) = (median(ours.into_iter()), median(theirs.into_iter()));
    add(report, pair.name, pair.rows, runs, "s", ours, theirs);
    let worst = Some(worst.as_secs_f64() * 1000.0);
    add(report, wait_name, pair.rows, runs, "ms", worst, Some(WAIT_LIMIT_MS));
    Ok(())
}

/// Does something to a copy of the database while others work there, and tells how long it took and
/// how long the others waited at most.
fn measure(
    pair: &Pair,
    ground: &Ground,
    act: impl FnOnce() -> anyhow::Result<f64>,
) -> anyhow::Result<(f64, Duration)> {
    ground.copy()?;
    let done = Arc::new(AtomicBool::new(false));
    let url = ground.url(RUN)?;
    let others =
        [pair.write, pair.read].map(|statement| watch(url.clone(), statement, Arc::clone(&done)));
    let taken = act();
    done.store(true, Ordering::Relaxed);
    let mut longest = Duration::ZERO;
    for other in others {
        let waited = other.join().map_err(|_| anyhow!("a watcher panicked"))??;
        longest = longest.max(waited);
    }
    let taken = taken?;
    let count: u64 = ground.sql(RUN, pair.count)?.parse()?;
    // The writer may have hold of a row in the moment in which a run comes by.
    ensure!(count >= pair.rows - pair.rows / 100, "only {count} rows have gone");
    Ok((taken, longest))
}

/// Runs a statement again and again until `done`, and tells how long it took at most.
fn watch(
    url: String,
    statement: &'static str,
    done: Arc<AtomicBool>,
) -> JoinHandle<anyhow::Result<Duration>> {
    std::thread::spawn(move || -> anyhow::Result<Duration> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut connection = PgConnection::connect(&url).await?;
            let mut longest = Duration::ZERO;
            let mut turn = 0_i64;
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                sqlx::query(statement).bind(turn).execute(&mut connection).await?;
                // The first one prepares the statement.
                if turn > 0 {
                    longest = longest.max(began.elapsed());
                }
                turn += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Ok::<_, anyhow::Error>(longest)
        })
    })
}
