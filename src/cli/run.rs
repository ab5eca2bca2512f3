//! `registrar run`, and the verbs of `registrar policy` and `registrar archive` that make runs,
//! steer them and take archived rows back.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::proof::{self, ProofVerb};
use super::{REFUSED, Settings, command_services, note, operator, say_json, table};
use crate::retention::plan::Preview;
use crate::retention::restore::Which;
use crate::retention::run::{RunFilter, RunStatus};
use crate::retention::sql::TableName;
use crate::service::Services;
use crate::service::runs::RunDetail;
use crate::worker::lifecycle;

/// Time between two looks at a run that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Verbs of `registrar policy` about runs
#[derive(Debug, Subcommand)]
pub enum PolicyRunVerb {
    /// Show what a policy would do, and do nothing
    #[command(after_help = "Example:\n  registrar policy preview archive-audit-logs")]
    Preview {
        /// The policy
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a policy now, here; needs the digest of a fresh preview, or --yes
    #[command(after_help = "Example:\n  registrar policy run archive-audit-logs --digest 0006…")]
    Run {
        /// The policy
        name: String,
        /// What the preview ended with
        #[arg(long, conflicts_with = "yes")]
        digest: Option<String>,
        /// Run whatever a preview would find now
        #[arg(long)]
        yes: bool,
        /// Leave the work to a worker and return
        #[arg(long)]
        detach: bool,
    },
    /// Go on with a paused or failed run, here
    #[command(after_help = "Example:\n  registrar policy resume 12")]
    Resume {
        /// The run
        id: i64,
        /// Leave the work to a worker and return
        #[arg(long)]
        detach: bool,
    },
    /// Stop a run after the chunk at work
    #[command(after_help = "Example:\n  registrar policy pause 12")]
    Pause {
        /// The run
        id: i64,
    },
    /// End a run after the chunk at work; what was done stays done
    #[command(after_help = "Example:\n  registrar policy cancel 12")]
    Cancel {
        /// The run
        id: i64,
    },
    /// Approve a run that another person asked for
    #[command(after_help = "Example:\n  registrar policy approve 12")]
    Approve {
        /// The run
        id: i64,
    },
}

/// Look at lifecycle runs, and at the proof of what was done
#[derive(Debug, Args)]
pub struct RunCommand {
    #[command(subcommand)]
    verb: RunVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum RunVerb {
    /// List runs, newest first
    #[command(after_help = "Example:\n  registrar run list --status needs_approval")]
    List {
        /// Only of this policy
        #[arg(long)]
        policy: Option<String>,
        /// Only in this state
        #[arg(long)]
        status: Option<RunStatus>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=200))]
        limit: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a run with its tables
    #[command(after_help = "Example:\n  registrar run show 12")]
    Show {
        /// The run
        id: i64,
    },
    /// List the files that a run wrote to the store before rows left
    #[command(after_help = "Example:\n  registrar run exports 12")]
    Exports {
        /// The run
        id: i64,
        /// Leave the first so many out
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
        skip: i64,
        /// At most this many
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(i64).range(1..=200))]
        limit: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Proof(ProofVerb),
}

/// Look at archives, and take rows back
#[derive(Debug, Args)]
pub struct ArchiveCommand {
    #[command(subcommand)]
    verb: ArchiveVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum ArchiveVerb {
    /// List archive tables
    #[command(after_help = "Example:\n  registrar archive list")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring archived rows back; exit code 1 if some do not fit
    #[command(after_help = "Example:\n  registrar archive restore audit_logs --run 12")]
    Restore {
        /// The live table
        table: TableName,
        /// Rows that this run archived
        #[arg(long, value_name = "ID", required_unless_present_any = ["key", "all"])]
        run: Option<i64>,
        /// The row with this key; columns of a composite key joined by commas
        #[arg(long, value_name = "KEY", conflicts_with = "run")]
        key: Vec<String>,
        /// Every row
        #[arg(long, conflicts_with_all = ["run", "key"])]
        all: bool,
    },
}

/// Runs a verb of `registrar policy`.
///
/// # Errors
/// Settings or database cannot be used, or a safety rule refuses it.
pub async fn run_policy(verb: PolicyRunVerb, settings: &Settings) -> anyhow::Result<ExitCode> {
    let services = command_services(settings).await?;
    match verb {
        PolicyRunVerb::Preview { name, json } => {
            let preview = services.preview_run(&operator(), &name).await?;
            if json { say_json(&preview)? } else { show_preview(&preview)? }
        }
        PolicyRunVerb::Run { name, digest, yes, detach } => {
            let digest = match digest {
                None if yes => Some(services.preview_run(&operator(), &name).await?.digest),
                given => given,
            };
            let started = services.start_run(&operator(), &name, digest.as_deref()).await?;
            return follow(&services, started, detach).await;
        }
        PolicyRunVerb::Resume { id, detach } => {
            let resumed = services.resume_run(&operator(), id).await?;
            return follow(&services, resumed, detach).await;
        }
        PolicyRunVerb::Pause { id } => say_state(&services.pause_run(&operator(), id).await?),
        PolicyRunVerb::Cancel { id } => say_state(&services.cancel_run(&operator(), id).await?),
        PolicyRunVerb::Approve { id } => say_state(&services.approve_run(&operator(), id).await?),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `registrar run`.
///
/// # Errors
/// Settings or database cannot be used, or there is no such run.
pub async fn run(command: RunCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    match command.verb {
        RunVerb::List { policy, status, limit, json } => {
            let filter = RunFilter { policy, status, before: None };
            let runs = services.list_runs(&operator(), &filter, limit).await?;
            if json {
                say_json(&runs)?;
            } else {
                let rows: Vec<_> = runs
                    .iter()
                    .map(|run| {
                        vec![
                            run.id.to_string(),
                            run.policy.clone(),
                            run.kind.clone(),
                            run.status.to_string(),
                            run.created_at.format("%Y-%m-%d %H:%M:%S").to_string(),
                            run.error_code.clone().unwrap_or_default(),
                        ]
                    })
                    .collect();
                table(&["ID", "POLICY", "KIND", "STATUS", "ASKED FOR (UTC)", "ERROR"], &rows)?;
            }
        }
        RunVerb::Show { id } => say_json(&services.show_run(&operator(), id).await?)?,
        RunVerb::Exports { id, skip, limit, json } => {
            let exports = services.list_exports(&operator(), id, skip, limit).await?;
            if json {
                say_json(&exports)?;
            } else {
                let rows: Vec<_> = exports
                    .iter()
                    .map(|file| {
                        vec![
                            file.table_name.clone(),
                            file.row_count.to_string(),
                            file.size_bytes.to_string(),
                            file.object_path.clone(),
                        ]
                    })
                    .collect();
                table(&["TABLE", "ROWS", "BYTES", "FILE"], &rows)?;
            }
        }
        RunVerb::Proof(verb) => return proof::run(verb, &services).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `registrar archive`.
///
/// # Errors
/// Settings or database cannot be used, or a safety rule refuses it.
pub async fn run_archive(command: ArchiveCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    match command.verb {
        ArchiveVerb::List { json } => {
            let archives = services.list_archives(&operator()).await?;
            if json {
                say_json(&archives)?;
            } else {
                let rows: Vec<_> = archives
                    .iter()
                    .map(|archive| {
                        let rows = archive.estimated_rows.map(|rows| rows.to_string());
                        let rows = rows.unwrap_or_else(|| "not analysed".to_owned());
                        vec![archive.table.clone(), rows, archive.size_bytes.to_string()]
                    })
                    .collect();
                table(&["TABLE", "ROWS (ABOUT)", "BYTES"], &rows)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        ArchiveVerb::Restore { table, run, key, all } => {
            let which = match run {
                Some(run) => Which::Run(run),
                None if all => Which::All,
                None => Which::Keys(
                    key.iter().map(|key| key.split(',').map(str::to_owned).collect()).collect(),
                ),
            };
            let restored = services.restore_archive(&operator(), &table, &which).await?;
            say_json(&restored)?;
            let fits = restored.conflicts() == 0;
            Ok(if fits { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Works on a run in this process, unless a worker was faster, and tells how it gets on.
async fn follow(services: &Services, started: RunDetail, detach: bool) -> anyhow::Result<ExitCode> {
    let id = started.run.id;
    if detach || started.run.status != RunStatus::Pending {
        say_state(&started);
        let waits = started.run.status == RunStatus::NeedsApproval;
        return Ok(if waits { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS });
    }
    let owner = format!("cli-{}", ulid::Ulid::generate());
    let abort = CancellationToken::new();
    let (worker, stop) = (services.clone(), abort.clone());
    let mut work =
        tokio::spawn(async move { lifecycle::run_here(&worker, id, &owner, &stop).await });
    let mut told = String::new();
    let mut is_worked_here = true;
    loop {
        tokio::select! {
            joined = &mut work, if is_worked_here => {
                joined??;
                is_worked_here = false;
            }
            signal = tokio::signal::ctrl_c(), if is_worked_here && !abort.is_cancelled() => {
                signal?;
                note("Stopping after the chunk at work; a worker or `policy resume` goes on.");
                abort.cancel();
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = services.show_run(&operator(), id).await?;
        let line = progress(&now);
        if line != told {
            note(&line);
            told = line;
        }
        match now.run.status {
            RunStatus::Completed => return Ok(ExitCode::SUCCESS),
            RunStatus::NeedsApproval => return Ok(ExitCode::from(REFUSED)),
            RunStatus::Failed => {
                bail!("run {id} failed: {}", now.run.error_message.unwrap_or_default())
            }
            RunStatus::Paused | RunStatus::Cancelled => return Ok(ExitCode::FAILURE),
            RunStatus::Pending if abort.is_cancelled() => return Ok(ExitCode::FAILURE),
            RunStatus::Pending | RunStatus::Processing => {}
        }
    }
}

fn progress(detail: &RunDetail) -> String {
    let tables: Vec<_> = detail
        .tables
        .iter()
        .map(|table| format!("{} {}/{}", table.table_name, table.done, table.eligible))
        .collect();
    let mut line = format!("run {}: {} {}", detail.run.id, detail.run.status, tables.join(", "));
    if let Some(reason) = &detail.run.waiting_for {
        line.push_str(&format!(" (waits: {reason})"));
    }
    if let Some(error) = &detail.run.error_message {
        line.push_str(&format!(" ({error})"));
    }
    line
}

fn say_state(detail: &RunDetail) {
    note(progress(detail));
}

fn show_preview(preview: &Preview) -> anyhow::Result<()> {
    let rows: Vec<_> = preview
        .tables
        .iter()
        .map(|t| {
            vec![
                t.table.clone(),
                t.action.to_owned(),
                t.cutoff.format("%Y-%m-%d %H:%M:%S").to_string(),
                t.eligible.to_string(),
                t.held.to_string(),
                t.blocked.to_string(),
                t.indeterminate.to_string(),
                t.along
                    .iter()
                    .map(|a| format!("{} {}", a.rows, a.table))
                    .collect::<Vec<_>>()
                    .join(", "),
                if t.indexes.is_empty() { "none".to_owned() } else { t.indexes.join(", ") },
                format!("{:.0} s", t.estimated_secs),
            ]
        })
        .collect();
    let headings = [
        "TABLE",
        "ACTION",
        "CUTOFF (UTC)",
        "GO",
        "HELD",
        "REFERENCED",
        "NO AGE",
        "ALONG",
        "INDEX",
        "ABOUT",
    ];
    table(&headings, &rows)?;
    for warning in &preview.warnings {
        note(format!("warning: {warning}"));
    }
    for table in &preview.tables {
        let treats = table.treats.iter().map(|t| format!("{} ({})", t.column, t.treat));
        let treats: Vec<_> = treats.collect();
        if !treats.is_empty() {
            note(format!("rows of `{}` stay: {}", table.table, treats.join(", ")));
        }
        if let Some(people) = table.to_erase.filter(|people| *people > 0) {
            note(format!(
                "{people} of `{}` that others reference are kept, and their erasure is asked for",
                table.table
            ));
        }
    }
    for ceiling in &preview.over_ceiling {
        note(format!("over a ceiling: {ceiling}; a run asks for approval"));
    }
    note(format!(
        "To run exactly this: registrar policy run {} --digest {}",
        preview.policy, preview.digest
    ));
    Ok(())
}
