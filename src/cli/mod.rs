//! The command line: the composition root, where what a command needs is built.

pub mod postgres;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// Background reports and data lifecycle for PostgreSQL applications.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Postgres(postgres::PostgresCommand),
}

/// Runs the command line: 0 done, 1 failed, 2 usage, 3 refused by a safety rule.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            // Without a stderr there is nobody left to tell.
            let _ = writeln!(io::stderr(), "registrar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match command {
            Command::Postgres(command) => postgres::run(command).await,
        }
    })
}
