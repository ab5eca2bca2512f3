//! `registrar queue` and `registrar worker`: what waits, and who works.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{REFUSED, Settings, command_services, note, operator, say_json, table};
use crate::service::queues::{BulkAction, MAX_BULK, Selection};

/// See, pause and resume queues; run failed executions again, throw away those that wait
#[derive(Debug, Args)]
pub struct QueueCommand {
    #[command(subcommand)]
    verb: QueueVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum QueueVerb {
    /// Show what is in each queue
    #[command(after_help = "Example:\n  registrar queue stats")]
    Stats {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let nothing be taken from a queue, by any worker, until it is resumed
    #[command(after_help = "Example:\n  registrar queue pause reports")]
    Pause {
        /// Its name, as `queue stats` shows it
        queue: String,
    },
    /// Let a paused queue go on
    #[command(after_help = "Example:\n  registrar queue resume reports")]
    Resume {
        /// Its name
        queue: String,
    },
    /// Run failed executions again, at most 1,000 at once
    #[command(after_help = "\
Examples:
  registrar queue retry --code store_unavailable
  registrar queue retry --code store_unavailable --yes")]
    Retry {
        #[command(flatten)]
        bulk: Bulk,
        /// Only those that failed with this code
        #[arg(long, value_name = "CODE")]
        code: Option<String>,
    },
    /// Cancel executions that wait, at most 1,000 at once
    #[command(after_help = "Example:\n  registrar queue discard --report gpa-ranking --yes")]
    Discard {
        #[command(flatten)]
        bulk: Bulk,
    },
}

#[derive(Debug, Args)]
struct Bulk {
    /// Only of the report with this slug
    #[arg(long, value_name = "SLUG")]
    report: Option<String>,
    /// Do it; without this they are only counted
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// See and drain worker processes
#[derive(Debug, Args)]
pub struct WorkerCommand {
    #[command(subcommand)]
    verb: WorkerVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum WorkerVerb {
    /// List worker processes, the newest first
    #[command(after_help = "Example:\n  registrar worker list")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell a process to finish what it has and to take nothing new
    #[command(after_help = "Example:\n  registrar worker drain host-01JB2Z9K7QW0")]
    Drain {
        /// Its name, as `worker list` shows it
        worker: String,
    },
}

/// Runs `registrar queue`.
///
/// # Errors
/// Settings or database cannot be used, or there is no such queue.
pub async fn run(command: QueueCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    let caller = operator();
    match command.verb {
        QueueVerb::Stats { json } => {
            let queues = services.queues(&caller).await?;
            if json {
                say_json(&queues)?;
                return Ok(ExitCode::SUCCESS);
            }
            let rows: Vec<_> = queues
                .iter()
                .map(|queue| {
                    let paused = queue.paused_at.map(|at| at.format("%F %TZ").to_string());
                    vec![
                        queue.name.to_owned(),
                        queue.waiting.to_string(),
                        queue.delayed.to_string(),
                        queue.running.to_string(),
                        format!("{:.0} s", queue.oldest_waiting_seconds),
                        paused.unwrap_or_default(),
                    ]
                })
                .collect();
            table(&["QUEUE", "WAITING", "DELAYED", "RUNNING", "OLDEST", "PAUSED SINCE"], &rows)?;
        }
        QueueVerb::Pause { queue } => {
            services.pause_queue(&caller, &queue).await.with_context(|| format!("`{queue}`"))?;
            note(format!("{queue} is paused; what runs goes on."));
        }
        QueueVerb::Resume { queue } => {
            services.resume_queue(&caller, &queue).await.with_context(|| format!("`{queue}`"))?;
            note(format!("{queue} goes on."));
        }
        QueueVerb::Retry { bulk, code } => {
            return change(&services, BulkAction::Retry, bulk, code).await;
        }
        QueueVerb::Discard { bulk } => {
            return change(&services, BulkAction::Discard, bulk, None).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(
    services: &crate::service::Services,
    action: BulkAction,
    bulk: Bulk,
    error_code: Option<String>,
) -> anyhow::Result<ExitCode> {
    let Bulk { report, yes, json } = bulk;
    let selection = Selection { report, error_code };
    let outcome = services.change_many(&operator(), action, &selection, yes).await?;
    if json {
        say_json(&outcome)?;
    }
    let more = if outcome.selected == MAX_BULK { ", and perhaps more" } else { "" };
    let done = match action {
        BulkAction::Retry => "run again",
        BulkAction::Discard => "cancelled",
    };
    if yes {
        note(format!("{} of {}{more} executions {done}.", outcome.changed, outcome.selected));
        return Ok(ExitCode::SUCCESS);
    }
    note(format!("{}{more} executions would be {done}; add --yes to do it.", outcome.selected));
    Ok(if outcome.selected == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

/// Runs `registrar worker`.
///
/// # Errors
/// Settings or database cannot be used, or there is no such worker.
pub async fn run_worker(command: WorkerCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    let caller = operator();
    match command.verb {
        WorkerVerb::List { json } => {
            let workers = services.workers(&caller).await?;
            if json {
                say_json(&workers)?;
                return Ok(ExitCode::SUCCESS);
            }
            let rows: Vec<_> = workers
                .iter()
                .map(|worker| {
                    let draining = worker.draining_at.map(|at| at.format("%F %TZ").to_string());
                    vec![
                        worker.id.clone(),
                        worker.pid.to_string(),
                        worker.running.to_string(),
                        worker.started_at.format("%F %TZ").to_string(),
                        worker.last_seen_at.format("%F %TZ").to_string(),
                        draining.unwrap_or_default(),
                    ]
                })
                .collect();
            let headings = ["WORKER", "PID", "RUNNING", "STARTED", "LAST SEEN", "DRAINING SINCE"];
            table(&headings, &rows)?;
        }
        WorkerVerb::Drain { worker } => {
            services.drain_worker(&caller, &worker).await.with_context(|| format!("`{worker}`"))?;
            note(format!("{worker} finishes what it has, and takes nothing new."));
        }
    }
    Ok(ExitCode::SUCCESS)
}
