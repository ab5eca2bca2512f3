//! `backup create` into a folder, sealed, beside `pg_dump` through the same compressor into a file,
//! plain.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use crate::ground::{Ground, output};
use crate::outcome::median;
use crate::session::{add, say};

/// What the process may have in memory, in MiB.
const PEAK_LIMIT_MIB: f64 = 64.0;
/// Between two looks at the memory of a process; its peak is kept by the system.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Measures backups of the filled database.
pub fn run(ground: &Ground, runs: usize, report: &mut Map<String, Value>) -> anyhow::Result<()> {
    let database = Ground::original();
    let key = ground.registrar(database, &["backup", "key"])?;
    let recipient = key
        .lines()
        .find_map(|line| line.strip_prefix("# public key: "))
        .context("`backup key` prints a public key")?;
    let store = ground.folder.join("backups");
    let (mut ours, mut theirs, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=runs {
        say(&format!("backup_vs_pg_dump, run {round} of {runs}"))?;
        if store.exists() {
            std::fs::remove_dir_all(&store)?;
        }
        let mut create = ground.command(database)?;
        create.args(["backup", "create"]);
        create.env("REGISTRAR__STORE__URL", &store);
        create.env("REGISTRAR__BACKUP__ENCRYPT_TO", recipient);
        let (taken, peak) = watched(create)?;
        ours.push(taken);
        peaks.extend(peak);

        let mut dump = Command::new("bash");
        dump.args(["-c", "set -o pipefail; pg_dump -Fc -Z0 -d \"$0\" | zstd -q -1 -f -o \"$1\""]);
        dump.arg(ground.url(database)?).arg(ground.folder.join("dump.zst"));
        let began = Instant::now();
        output(dump)?;
        let dumped = began.elapsed().as_secs_f64();
        theirs.push(dumped);
        say(&format!("  backup: {taken:.3} s, pg_dump: {dumped:.3} s"))?;
    }
    let (ours, theirs) = (median(ours.into_iter()), median(theirs.into_iter()));
    add(report, "backup_vs_pg_dump", 1_000_000, runs, "s", ours, theirs);
    let peak = median(peaks.into_iter());
    add(report, "backup_peak_mib", 1_000_000, runs, "MiB", peak, Some(PEAK_LIMIT_MIB));
    Ok(())
}

/// Runs a program to its end, and tells what it took and, where the system tells it, the largest
/// memory of its own process.
fn watched(mut command: Command) -> anyhow::Result<(f64, Option<f64>)> {
    let began = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let path = format!("/proc/{}/status", child.id());
    let mut peak = None;
    let status = loop {
        peak = peak_mib(&path).or(peak);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    ensure!(status.success(), "registrar failed");
    Ok((began.elapsed().as_secs_f64(), peak))
}

fn peak_mib(path: &str) -> Option<f64> {
    let status = std::fs::read_to_string(path).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
