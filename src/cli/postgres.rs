//! `registrar postgres`: a private PostgreSQL for the length of one command.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};

use crate::postgres::{Binaries, ClusterOptions, DataDir, Error, PrivateCluster, run_with_cluster};

/// What shells answer when a command does not exist or cannot be run.
const COMMAND_NOT_FOUND: u8 = 127;
const COMMAND_NOT_RUNNABLE: u8 = 126;

/// Commands around a private PostgreSQL server.
#[derive(Debug, Args)]
pub struct PostgresCommand {
    #[command(subcommand)]
    verb: PostgresVerb,
}

#[derive(Debug, Subcommand)]
enum PostgresVerb {
    /// Run a command with DATABASE_URL of a private PostgreSQL server
    ///
    /// Makes a cluster, starts it on a free port of the loopback address, runs CMD, and stops
    /// the server when CMD ends, whatever the reason. The exit code is that of CMD. Works
    /// offline and as any user; as root the server runs as an unprivileged user.
    ///
    /// If DATABASE_URL is set already, CMD runs with that server and none is started.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunCommand),
}

const RUN_EXAMPLES: &str = "\
Examples:
  registrar postgres run -- sh -c 'psql \"$DATABASE_URL\"'
  registrar postgres run --temporary -- cargo test
  registrar postgres run --data .registrar/postgres -- registrar serve";

/// The arguments of `registrar postgres run`.
#[derive(Debug, Args)]
struct RunCommand {
    /// Keep the cluster in this folder, and use it again if it is there
    #[arg(long, value_name = "DIR", conflicts_with = "temporary")]
    data: Option<PathBuf>,

    /// Use a new cluster with fast settings and remove it afterwards (the default)
    #[arg(long)]
    temporary: bool,

    /// A setting for the server, as in postgresql.conf; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,

    #[command(flatten)]
    binaries: BinariesArgs,

    /// The server to use instead of a private one
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<SecretString>,

    /// The command to run
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Where the PostgreSQL server programs are; for every command that starts a private server.
#[derive(Debug, Args)]
pub struct BinariesArgs {
    /// Folder with the PostgreSQL programs initdb, pg_ctl and postgres [default: searched]
    #[arg(long, env = "REGISTRAR_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
}

impl BinariesArgs {
    /// Finds the programs.
    ///
    /// # Errors
    /// As [`Binaries::find`].
    pub fn find(&self) -> Result<Binaries, Error> {
        // An empty variable is how some tools unset one.
        let named = self.postgres_bin.as_deref().filter(|dir| !dir.as_os_str().is_empty());
        Binaries::find(named)
    }
}

/// Runs a `registrar postgres` command.
///
/// # Errors
/// The private server cannot be found, made, started or stopped.
pub async fn run(command: PostgresCommand) -> anyhow::Result<ExitCode> {
    let PostgresCommand { verb: PostgresVerb::Run(command) } = command;
    let RunCommand { data, temporary: _, settings, binaries, database_url, command } = command;
    let mut words = command.into_iter();
    let program = words.next().context("no command to run")?;
    let arguments: Vec<OsString> = words.collect();

    // An empty variable is how some tools unset one.
    let given = database_url.filter(|url| !url.expose_secret().is_empty());
    let result = if let Some(url) = given {
        say("DATABASE_URL is set: using that server, starting none")?;
        Err(become_command(&program, &arguments, &url))
    } else {
        let data = data.map_or(DataDir::Temporary, DataDir::Keep);
        let options = ClusterOptions { data, binaries: binaries.find()?, settings };
        run_with_cluster(options, program, arguments, tell_where).await
    };
    match result {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(Error::Command { program, source }) => {
            say(&format!("cannot run `{program}`: {source}"))?;
            Ok(ExitCode::from(code_without_command(&source)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs the command in our place, so that its signals and exit code need no care of ours;
/// returns only if that fails.
fn become_command(program: &OsStr, arguments: &[OsString], url: &SecretString) -> Error {
    let source = std::process::Command::new(program)
        .args(arguments)
        .env("DATABASE_URL", url.expose_secret())
        .exec();
    Error::Command { program: program.to_string_lossy().into_owned(), source }
}

fn code_without_command(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::NotFound => COMMAND_NOT_FOUND,
        _ => COMMAND_NOT_RUNNABLE,
    }
}

/// Says so when the cluster is not where it was asked for.
fn tell_where(cluster: &PrivateCluster) {
    let Some(wanted) = cluster.relocated_from() else { return };
    // The command matters more than this line.
    let _ = say(&format!(
        "the cluster is in {}, because the unprivileged user that runs the server for root \
         cannot reach {}",
        cluster.home().display(),
        wanted.display()
    ));
}

/// A line for the person, on stderr because stdout is CMD's.
fn say(line: &str) -> io::Result<()> {
    writeln!(io::stderr(), "registrar: {line}")
}

fn parse_setting(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE, like work_mem=64MB"),
    }
}
