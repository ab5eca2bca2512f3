//! `registrar run`: proof of what lifecycle runs and erasures did.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{REFUSED, Settings, command_services, note, operator, say, say_json};

/// Show and verify the proof of lifecycle runs and erasures
#[derive(Debug, Args)]
pub struct RunCommand {
    #[command(subcommand)]
    verb: RunVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum RunVerb {
    /// Print a certificate: the sealed text and its seal, a line of JSON each
    #[command(
        after_help = "Examples:\n  registrar run certificate erasure-12\n  registrar run certificate 7"
    )]
    Certificate {
        /// The run's number, or `erasure-` and the erasure's
        id: String,
    },
    /// Compare certificates, their copies, the erasure ledger and the records; exit code 3 where
    /// something is not as it was sealed
    #[command(after_help = "Example:\n  registrar run verify")]
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs `registrar run`.
///
/// # Errors
/// Settings, database or store cannot be used, or there is no such certificate.
pub async fn run(command: RunCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    match command.verb {
        RunVerb::Certificate { id } => {
            let is_number = id.parse::<i64>().is_ok();
            let subject = if is_number { format!("run-{id}") } else { id };
            let certificate = services.certificate(&operator(), &subject).await?;
            say(certificate.to_lines().trim_end())?;
        }
        RunVerb::Verify { json } => {
            let found = match services.verify_certificates(&operator()).await {
                Ok(found) => found,
                Err(error) => return super::erasure::refused(error),
            };
            if json {
                say_json(&found)?;
            } else {
                for finding in &found.findings {
                    say(format!("{}: {}", finding.what, finding.fault))?;
                }
                note(format!(
                    "{} certificates and {} ledger entries, {} findings",
                    found.certificates,
                    found.ledger_entries,
                    found.findings.len()
                ));
            }
            if !found.findings.is_empty() {
                return Ok(ExitCode::from(REFUSED));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
