//! `registrar erasure`: the ending of people's data.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Settings, command_services, note, operator, say, say_json, table};
use crate::db::erasures::{Erasure, Status};

/// Request, cancel, list, carry out and replay erasures of people
#[derive(Debug, Args)]
pub struct ErasureCommand {
    #[command(subcommand)]
    verb: ErasureVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum ErasureVerb {
    /// Close an account at once, and erase the person's data when the grace is over
    #[command(after_help = "Example:\n  registrar erasure request 4711")]
    Request {
        /// The person's key
        subject: String,
        /// The table of people, where there are several
        #[arg(long)]
        table: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take an erasure back and open the account again; exit code 3 where that cannot be
    #[command(after_help = "Example:\n  registrar erasure cancel 12")]
    Cancel {
        /// The erasure
        id: i64,
    },
    /// List erasures, newest first
    #[command(after_help = "Example:\n  registrar erasure list --status held")]
    List {
        /// Only in this state
        #[arg(long)]
        status: Option<Status>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=200))]
        limit: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Carry out what is due now; a worker does so every ten minutes
    #[command(after_help = "Example:\n  registrar erasure run")]
    Run {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// After a restore: erase again whoever the ledger in the store says was erased
    #[command(after_help = "Example:\n  registrar erasure replay")]
    Replay {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs `registrar erasure`.
///
/// # Errors
/// Settings, database or store cannot be used, or there is no such person or erasure.
pub async fn run(command: ErasureCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    let done = match command.verb {
        ErasureVerb::Request { subject, table, json } => {
            match services.request_erasure(&operator(), table.as_deref(), &subject).await {
                Ok(erasure) if json => say_json(&erasure),
                Ok(erasure) => {
                    note("The account is closed, and its tokens are revoked.");
                    say(format!("erasure {} is due on {}", erasure.id, erasure.due_at))
                }
                Err(error) => return Err(error.into()),
            }
        }
        ErasureVerb::Cancel { id } => match services.cancel_erasure(&operator(), id).await {
            Ok(_) => say(format!("erasure {id} is cancelled, and the account open again")),
            Err(error) => return Err(error.into()),
        },
        ErasureVerb::List { status, limit, json } => {
            let all = services.list_erasures(&operator(), status, None, limit).await?;
            if json { say_json(&all) } else { list(&all) }
        }
        ErasureVerb::Run { json } => match services.carry_out_erasures().await {
            Ok(outcome) if json => say_json(&outcome),
            Ok(outcome) => say(format!(
                "{} completed, {} held, {} to be tried again",
                outcome.completed, outcome.held, outcome.postponed
            )),
            Err(error) => return Err(error.into()),
        },
        ErasureVerb::Replay { json } => match Box::pin(services.replay_erasures(&operator())).await
        {
            Ok(replayed) => {
                let is_whole = replayed.broken.is_empty() && replayed.outcome.postponed == 0;
                if json {
                    say_json(&replayed)?;
                } else {
                    for path in &replayed.broken {
                        note(format!("{path} is broken, and was not replayed"));
                    }
                    say(format!(
                        "{} entries, {} people found again: {} completed, {} held, {} to be tried \
                         again",
                        replayed.entries,
                        replayed.found,
                        replayed.outcome.completed,
                        replayed.outcome.held,
                        replayed.outcome.postponed
                    ))?;
                }
                return Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Err(error) => return Err(error.into()),
        },
    };
    done?;
    Ok(ExitCode::SUCCESS)
}

fn list(all: &[Erasure]) -> anyhow::Result<()> {
    let rows: Vec<_> = all
        .iter()
        .map(|erasure| {
            vec![
                erasure.id.to_string(),
                erasure.subject_table.clone(),
                erasure.subject_id.clone(),
                erasure.status.to_string(),
                erasure.requested_at.format("%Y-%m-%d %H:%M").to_string(),
                erasure.due_at.format("%Y-%m-%d %H:%M").to_string(),
                erasure.waits_because.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["ID", "TABLE", "KEY", "STATUS", "REQUESTED (UTC)", "DUE (UTC)", "WAITS FOR"], &rows)
}
