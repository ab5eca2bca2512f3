//! `registrar doctor`: whether everything that Registrar stands on is as it must be.

use std::process::ExitCode;

use clap::Args;

use super::{Settings, command_services, say_json, table};
use crate::service::doctor::Outcome;

/// Try everything that Registrar needs, and what must be refused; exit code 1 when a check fails
///
/// Looks at the server and its version, the migrations, the report role (what it must not be able
/// to do is tried), the store (write, read, list, delete, multipart, abort), the clocks of host,
/// database and store, and at work that does not move. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  registrar doctor
  registrar doctor --json | jq '.[] | select(.outcome != \"ok\")'
  registrar doctor --strict          # warnings fail too: for deployment gates")]
pub struct DoctorCommand {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Exit with 1 for warnings too
    #[arg(long)]
    strict: bool,

    #[command(flatten)]
    settings: Settings,
}

/// Runs `registrar doctor`.
///
/// # Errors
/// Settings cannot be used, or the database cannot be reached at all.
pub async fn run(command: DoctorCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    let findings = services.examine().await;
    if command.json {
        say_json(&findings)?;
    } else {
        let word = |outcome| match outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED",
        };
        let rows: Vec<_> = findings
            .iter()
            .map(|f| vec![f.check.to_owned(), word(f.outcome).to_owned(), f.message.clone()])
            .collect();
        table(&["CHECK", "OUTCOME", "FOUND"], &rows)?;
    }
    let worst = findings.iter().map(|finding| finding.outcome).max();
    let passed = match worst {
        None | Some(Outcome::Ok) => true,
        Some(Outcome::Warning) => !command.strict,
        Some(Outcome::Failed) => false,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
