//! `registrar openapi`: the API's document, without a server.

use std::process::ExitCode;

use clap::Args;

/// Print the OpenAPI 3.1 document of the API
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  registrar openapi > openapi.json")]
pub struct OpenapiCommand {}

/// Runs `registrar openapi`.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(_: &OpenapiCommand) -> anyhow::Result<ExitCode> {
    super::say_json(&crate::api::openapi())?;
    Ok(ExitCode::SUCCESS)
}
