//! What a run took.

use std::io::Write;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// Linux shows processor time in these, whatever its own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process of ours says of itself at its end, as JSON on standard output.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Usage {
    /// The largest resident set, where `/proc` tells it.
    pub peak_mib: Option<f64>,
    /// Processor time, user and system.
    pub cpu_s: Option<f64>,
}

/// One run of one contender.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// From the start of the process to its end.
    pub wall_s: f64,
    /// Of a process of ours.
    pub usage: Option<Usage>,
}

/// Writes this process's [`Usage`] to standard output.
pub fn tell_usage() -> anyhow::Result<()> {
    let usage = Usage { peak_mib: peak_mib(), cpu_s: cpu_s() };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&usage)?)?;
    Ok(())
}

fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

fn cpu_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name in brackets: state is field 3, user and system ticks are 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

/// Runs a command to its end and measures it.
pub fn measure(mut command: Command) -> anyhow::Result<Run> {
    let program = command.get_program().to_string_lossy().into_owned();
    let began = Instant::now();
    let output = command.output().with_context(|| format!("start {program}"))?;
    let wall_s = began.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let usage = serde_json::from_slice(&output.stdout).ok();
    Ok(Run { wall_s, usage })
}

/// The middle one, or the mean of the two middle ones; `None` of nothing.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}
