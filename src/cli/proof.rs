//! The verbs of `registrar run` that prove what lifecycle runs and erasures did.

use std::process::ExitCode;

use clap::Subcommand;

use super::{REFUSED, note, operator, say, say_json};
use crate::retention::certificate::ExpectedHead;
use crate::service::Services;

/// Show and verify the proof of lifecycle runs and erasures
#[derive(Debug, Subcommand)]
pub enum ProofVerb {
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
    #[command(after_help = "\
The end of the chain is printed as `head`. Nothing in database and store shows it when both are set
back to the same earlier state: write the head down elsewhere, and give it to a later verification.

Examples:
  registrar run verify
  registrar run verify --head 12:9f2c…")]
    Verify {
        /// A head that was printed before: the chain must still hold it
        #[arg(long, value_name = "NUMBER:HASH")]
        head: Option<ExpectedHead>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs `registrar run certificate` and `verify`.
///
/// # Errors
/// Database or store cannot be used, or there is no such certificate.
pub async fn run(verb: ProofVerb, services: &Services) -> anyhow::Result<ExitCode> {
    match verb {
        ProofVerb::Certificate { id } => {
            let is_number = id.parse::<i64>().is_ok();
            let subject = if is_number { format!("run-{id}") } else { id };
            let certificate = services.certificate(&operator(), &subject).await?;
            say(certificate.to_lines().trim_end())?;
        }
        ProofVerb::Verify { head, json } => {
            let found = services.verify_certificates(&operator(), head.as_ref()).await?;
            if json {
                say_json(&found)?;
            } else {
                for finding in &found.findings {
                    say(format!("{}: {}", finding.what, finding.fault))?;
                }
                if let Some(head) = &found.head {
                    say(format!("head {head}"))?;
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
