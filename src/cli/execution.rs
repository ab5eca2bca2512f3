//! `registrar execution`: look at, wait for, end and fetch executions, as an operator.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use futures::TryStreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::{Settings, command_services, note, operator, say, say_json, table};
use crate::db::executions::{Execution, Filter, Status};
use crate::report::Presentation;
use crate::service::Services;
use crate::writer::Format;

/// Time between two looks of `execution wait`.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Look at, wait for, cancel, retry and download executions
#[derive(Debug, Args)]
pub struct ExecutionCommand {
    #[command(subcommand)]
    verb: ExecutionVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum ExecutionVerb {
    /// List executions, newest first
    #[command(after_help = "Example:\n  registrar execution list --status failed")]
    List {
        /// Only in this state
        #[arg(long)]
        status: Option<Status>,
        /// Only of this report
        #[arg(long, value_name = "SLUG")]
        report: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=200))]
        limit: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show an execution
    #[command(after_help = "Example:\n  registrar execution show 71")]
    Show {
        /// The execution
        id: i64,
    },
    /// Wait until an execution has ended; exit code 1 unless it completed
    #[command(after_help = "Example:\n  registrar execution wait 71 --timeout-secs 600")]
    Wait {
        /// The execution
        id: i64,
        /// Give up after this time
        #[arg(long, default_value_t = 3600)]
        timeout_secs: u64,
    },
    /// Cancel an execution; its query is ended on the server
    #[command(after_help = "Example:\n  registrar execution cancel 71")]
    Cancel {
        /// The execution
        id: i64,
    },
    /// Run a failed or cancelled execution again
    #[command(after_help = "Example:\n  registrar execution retry 71")]
    Retry {
        /// The execution
        id: i64,
    },
    /// Delete the result of a completed execution before its time; the execution stays, as expired
    #[command(after_help = "Example:\n  registrar execution delete 71")]
    Delete {
        /// The execution
        id: i64,
    },
    /// Fetch the result of an execution and check its SHA-256
    #[command(after_help = "\
Examples:
  registrar execution download 71 --output ranking.csv
  registrar execution download 71 --format xlsx

Another format than the execution's own is a new run of the same version with the same parameters,
on a snapshot of its own; a worker makes it, and it is fetched from there the next time.")]
    Download {
        /// The execution
        id: i64,
        /// The file in another format: csv, xlsx, parquet or ndjson
        #[arg(long, value_name = "FORMAT")]
        format: Option<Format>,
        /// Give up waiting for another format after this time
        #[arg(long, default_value_t = 3600)]
        timeout_secs: u64,
        /// The file [default: the result's own name]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// Runs `registrar execution`.
///
/// # Errors
/// Settings or database cannot be used, or the execution does not allow it.
pub async fn run(command: ExecutionCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    match command.verb {
        ExecutionVerb::List { status, report, limit, json } => {
            let filter = Filter { status, slug: report, ..Filter::default() };
            let all = services.list_executions(&operator(), filter, limit).await?;
            if json {
                say_json(&all.iter().map(shown).collect::<Vec<_>>())?;
            } else {
                list(&all)?;
            }
        }
        ExecutionVerb::Show { id } => {
            let followed = services.follow(&operator(), id).await?;
            say_json(&shown(&followed.execution))?;
        }
        ExecutionVerb::Wait { id, timeout_secs } => {
            return wait(&services, id, Duration::from_secs(timeout_secs)).await;
        }
        ExecutionVerb::Cancel { id } => {
            let execution = services.cancel(&operator(), id).await?;
            note(format!("Execution {id} is {}.", execution.status));
        }
        ExecutionVerb::Retry { id } => {
            services.retry(&operator(), id).await?;
            note(format!("Execution {id} is pending again."));
        }
        ExecutionVerb::Delete { id } => {
            services.delete_result(&operator(), id).await?;
            note(format!("The result of execution {id} is gone."));
        }
        ExecutionVerb::Download { id, format, timeout_secs, output } => {
            let id = match format {
                Some(format) => {
                    made(&services, id, format, Duration::from_secs(timeout_secs)).await?
                }
                None => id,
            };
            download(&services, id, output).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(all: &[Execution]) -> anyhow::Result<()> {
    let rows: Vec<_> = all
        .iter()
        .map(|execution| {
            vec![
                execution.id.to_string(),
                execution.slug.clone(),
                execution.format.clone(),
                execution.status.to_string(),
                execution.attempt.to_string(),
                execution.row_count.map(|rows| rows.to_string()).unwrap_or_default(),
                execution.created_at.format("%Y-%m-%d %H:%M:%S").to_string(),
                execution.error_code.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let headings =
        ["ID", "REPORT", "FORMAT", "STATUS", "ATTEMPT", "ROWS", "SUBMITTED (UTC)", "ERROR"];
    table(&headings, &rows)
}

fn shown(execution: &Execution) -> Value {
    json!({
        "id": execution.id,
        "report": execution.slug,
        "definition_version": execution.definition_version,
        "format": execution.format,
        "status": execution.status,
        "attempt": execution.attempt,
        "max_attempts": execution.max_attempts,
        "executed_by": execution.executed_by,
        "created_at": execution.created_at,
        "started_at": execution.started_at,
        "completed_at": execution.completed_at,
        "progress_rows": execution.progress_rows,
        "progress_bytes": execution.progress_bytes,
        "row_count": execution.row_count,
        "size_bytes": execution.size_bytes,
        "sha256": execution.sha256,
        "truncated": execution.truncated,
        "error_code": execution.error_code,
        "error_message": execution.error_message,
        "expires_at": execution.expires_at,
        "format_of": execution.format_of,
        "shared_from": execution.shared_from,
        "trace_id": execution.trace_id,
    })
}

/// The execution that has the file in a format, once it is there.
async fn made(
    services: &Services,
    id: i64,
    format: Format,
    timeout: Duration,
) -> anyhow::Result<i64> {
    let source = services.follow(&operator(), id).await?.execution;
    if source.format == format.extension() {
        return Ok(id);
    }
    let made = services.request_format(&operator(), id, format, Presentation::default()).await?;
    let made = until_final(services, made.id, timeout).await?;
    if made.status != Status::Completed {
        let code = made.error_code.unwrap_or_default();
        bail!("execution {} that makes it is {} {code}", made.id, made.status);
    }
    if let (Some(now), Some(then)) = (made.snapshot_at, source.snapshot_at) {
        note(format!("A snapshot of its own: {now}; that of execution {id} is {then}."));
    }
    Ok(made.id)
}

async fn wait(services: &Services, id: i64, timeout: Duration) -> anyhow::Result<ExitCode> {
    let execution = until_final(services, id, timeout).await?;
    say(execution.status)?;
    let completed = execution.status == Status::Completed;
    Ok(if completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn until_final(services: &Services, id: i64, timeout: Duration) -> anyhow::Result<Execution> {
    let give_up = Instant::now() + timeout;
    loop {
        let execution = services.follow(&operator(), id).await?.execution;
        if execution.status.is_final() {
            return Ok(execution);
        }
        if Instant::now() > give_up {
            bail!("execution {id} is still {} after {} s", execution.status, timeout.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn download(services: &Services, id: i64, output: Option<PathBuf>) -> anyhow::Result<()> {
    let file = services.result(&operator(), id).await?;
    let output = output.unwrap_or_else(|| PathBuf::from(&file.file_name));
    let mut bytes = services.read_result(&file, None).await?.into_stream();
    let mut target = tokio::fs::File::create(&output)
        .await
        .with_context(|| format!("create {}", output.display()))?;
    let mut hash = Sha256::new();
    while let Some(chunk) = bytes.try_next().await? {
        hash.update(&chunk);
        target.write_all(&chunk).await?;
    }
    target.flush().await?;
    let found = hex::encode(hash.finalize());
    if found != file.sha256 {
        bail!("the file's SHA-256 is {found}, its execution says {}", file.sha256);
    }
    note(format!("{} ({} bytes, SHA-256 {found})", output.display(), file.size_bytes));
    Ok(())
}
