//! `registrar healthcheck`: for containers, which have no curl.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{Settings, note};
use crate::{db, schema};

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Ask a running process whether it is ready; exit code 1 when it is not
///
/// Asks the API of this machine. Of a process without an API (`serve --only worker`), --database
/// asks whether what it needs is there: the database, with the schema of this version.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  registrar healthcheck
  registrar healthcheck --url http://127.0.0.1:8080
  registrar healthcheck --database")]
pub struct HealthcheckCommand {
    /// Address of the API [default: http.listen]
    #[arg(long)]
    url: Option<url::Url>,

    /// Check the database instead of the API
    #[arg(long, conflicts_with = "url")]
    database: bool,

    #[command(flatten)]
    settings: Settings,
}

/// Runs `registrar healthcheck`.
///
/// # Errors
/// Nothing answers, or the answer is that it is not ready.
pub async fn run(command: HealthcheckCommand) -> anyhow::Result<ExitCode> {
    let config = command.settings.load()?;
    if command.database {
        let checked = tokio::time::timeout(TIMEOUT, async {
            let pool = db::connect(&config.database).await?;
            anyhow::Ok(schema::check_current(&pool).await?)
        });
        checked.await??;
        return Ok(ExitCode::SUCCESS);
    }
    let url = match command.url {
        Some(url) => url.join("/readyz")?,
        None => format!("http://127.0.0.1:{}/readyz", config.http.listen.port()).parse()?,
    };
    let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
    let response = client.get(url).send().await?;
    if response.status().is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    note(response.text().await.unwrap_or_default());
    Ok(ExitCode::FAILURE)
}
