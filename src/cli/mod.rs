//! The command line: the composition root, where what a command needs is built.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::config::{Config, Overrides};
use crate::db;
use crate::service::{Caller, ServiceError, Services, report_database};
use crate::store::Store;
use crate::telemetry;

pub mod audit;
pub mod backup;
pub mod demo;
pub mod doctor;
pub mod erasure;
pub mod execution;
pub mod healthcheck;
pub mod hold;
pub mod migrate;
pub mod openapi;
pub mod policy;
pub mod postgres;
pub mod proof;
pub mod queue;
pub mod report;
pub mod run;
pub mod schedule;
pub mod serve;
pub mod store;
pub mod token;
pub mod webhook;

/// Refused by a safety rule.
pub const REFUSED: u8 = 3;

/// Background reports and data lifecycle for PostgreSQL applications.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeCommand),
    Demo(demo::DemoCommand),
    Postgres(postgres::PostgresCommand),
    Migrate(migrate::MigrateCommand),
    Report(report::ReportCommand),
    Execution(execution::ExecutionCommand),
    Store(store::StoreCommand),
    Schedule(schedule::ScheduleCommand),
    Policy(policy::PolicyCommand),
    Hold(hold::HoldCommand),
    Run(run::RunCommand),
    Archive(run::ArchiveCommand),
    Erasure(erasure::ErasureCommand),
    Queue(queue::QueueCommand),
    Worker(queue::WorkerCommand),
    Audit(audit::AuditCommand),
    Token(token::TokenCommand),
    Webhook(webhook::WebhookCommand),
    Doctor(doctor::DoctorCommand),
    Backup(backup::BackupCommand),
    Openapi(openapi::OpenapiCommand),
    Healthcheck(healthcheck::HealthcheckCommand),
}

/// Where the settings come from.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Settings file [default: registrar.toml, if it is there]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// The application's database, where neither file nor REGISTRAR__DATABASE__URL names it
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true, global = true)]
    database_url: Option<String>,
}

impl Settings {
    /// Reads and checks the settings.
    ///
    /// # Errors
    /// See [`crate::config::ConfigError`].
    pub fn load(&self) -> anyhow::Result<Config> {
        // An empty variable is how some tools unset one.
        let database_url = self.database_url.clone().filter(|url| !url.is_empty());
        let overrides = Overrides { file: self.config.clone(), database_url };
        Ok(Config::load(&overrides)?)
    }
}

/// Runs the command line: 0 done, 1 failed, 2 usage, 3 refused by a safety rule.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match run(command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a stderr there is nobody left to tell.
            let _ = writeln!(io::stderr(), "registrar: {error:#}");
            match error.downcast_ref() {
                Some(ServiceError::Refused { .. }) => ExitCode::from(REFUSED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// How long the process waits at its end for threads that are blocked by a file or a name server.
const END_LIMIT: Duration = Duration::from_secs(5);

fn run(command: Command) -> anyhow::Result<ExitCode> {
    // One TLS stack for the store and for PostgreSQL; `Err` only says that it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Serve(command) => serve::run(command).await,
            Command::Demo(command) => Box::pin(demo::run(command)).await,
            Command::Postgres(command) => Box::pin(postgres::run(command)).await,
            Command::Migrate(command) => migrate::run(command).await,
            Command::Report(command) => Box::pin(report::run(command)).await,
            Command::Execution(command) => execution::run(command).await,
            Command::Store(command) => store::run(command).await,
            Command::Schedule(command) => schedule::run(command).await,
            Command::Policy(command) => Box::pin(policy::run(command)).await,
            Command::Hold(command) => hold::run(command).await,
            Command::Run(command) => run::run(command).await,
            Command::Archive(command) => Box::pin(run::run_archive(command)).await,
            Command::Erasure(command) => Box::pin(erasure::run(command)).await,
            Command::Queue(command) => queue::run(command).await,
            Command::Worker(command) => queue::run_worker(command).await,
            Command::Audit(command) => audit::run(command).await,
            Command::Token(command) => token::run(command).await,
            Command::Webhook(command) => webhook::run(command).await,
            Command::Doctor(command) => doctor::run(command).await,
            Command::Backup(command) => Box::pin(backup::run(command)).await,
            Command::Openapi(command) => openapi::run(&command),
            Command::Healthcheck(command) => healthcheck::run(command).await,
        }
    });
    // What still blocks a thread has nobody who waits for it.
    runtime.shutdown_timeout(END_LIMIT);
    outcome
}

/// Builds what use cases need, from settings. Logs go to stderr at the level of a command: only
/// what a person must know.
///
/// # Errors
/// Settings, database or store cannot be used.
pub async fn services(config: Config) -> anyhow::Result<Services> {
    let db = db::connect(&config.database).await?;
    let reports = report_database(&config.database)?;
    let store = Store::open(&config.store)?;
    Ok(Services {
        db,
        reports,
        store,
        config: Arc::new(config),
        passwords: Default::default(),
        days_seen: Default::default(),
    })
}

/// The same for a command that a person types.
async fn command_services(settings: &Settings) -> anyhow::Result<Services> {
    let mut config = settings.load()?;
    "warn".clone_into(&mut config.log.filter);
    telemetry::init_logging(&config.log)?;
    services(config).await
}

/// Whoever types a command.
fn operator() -> Caller {
    Caller::operator(uuid::Uuid::new_v4().simple().to_string())
}

/// Writes a line of data to standard output.
fn say(line: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// Writes data as JSON to standard output.
fn say_json<T: Serialize + ?Sized>(data: &T) -> anyhow::Result<()> {
    say(serde_json::to_string_pretty(data)?)
}

/// Writes a note for the person to standard error, which data never share.
fn note(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// `registrar report list | head` is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints rows under headings, each column as wide as its widest cell.
fn table(headings: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain(headings.get(column).map(|heading| heading.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    say(line(headings.to_vec()))?;
    for row in rows {
        say(line(row.iter().map(String::as_str).collect()))?;
    }
    Ok(())
}
