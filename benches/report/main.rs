//! `make bench`: our exports and those of others, side by side on one server and one query; then
//! what works on whole tables and on the queue, through the program `registrar` itself.
//!
//! What is measured is whole processes, from their start to their end, because that is what a
//! person waits for and because it is the same for all. Runs alternate, so that whatever else the
//! machine does hits everybody; what counts are medians. Each of our runs is a process of its own
//! through the real engine and the real store, so its peak memory is that of this one export.
//!
//! `DATABASE_URL` must name a server on this machine whose superuser we are: `script/bench` starts
//! one. The schema `bench` of that database is made anew.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod backup;
mod contender;
mod data;
mod ground;
mod history;
mod lifecycle;
mod ours;
mod outcome;
mod pages;
mod queue;
mod rust_xlsxwriter;
mod s3;
mod service;
mod session;

/// Measures the export of reports against what others offer.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    session: SessionArgs,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What is measured, and how often.
#[derive(Debug, Args)]
struct SessionArgs {
    /// The database in which the tables are made.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    database_url: Option<String>,
    /// Alternating runs of everything at full size.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Rows of the large export.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Rows of the small export, which is also what the slow ones are measured with.
    #[arg(long, default_value_t = 100_000)]
    small_rows: u64,
    /// One run with a tenth of the rows: shows that everything works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Only these, by name; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Python with XlsxWriter, openpyxl and psycopg. Without it they are left out.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Folder for the files that are written, and for `bench.json`.
    #[arg(long, default_value = "target")]
    target: PathBuf,
}

/// The processes that the benchmark is made of.
#[derive(Debug, Subcommand)]
enum Role {
    /// One export through our engine.
    #[command(hide = true)]
    Ours(ours::OursArgs),
    /// One export with the library alone.
    #[command(hide = true)]
    RustXlsxwriter(rust_xlsxwriter::LibraryArgs),
    /// An S3 server over a folder.
    #[command(hide = true)]
    S3 { folder: PathBuf },
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    match cli.role {
        None => session::run(&cli.session)?,
        // On a thread of the runtime, where the worker has its attempts.
        Some(Role::Ours(arguments)) => runtime.block_on(runtime.spawn(ours::run(arguments)))??,
        Some(Role::RustXlsxwriter(arguments)) => {
            runtime.block_on(rust_xlsxwriter::run(&arguments))?;
        }
        Some(Role::S3 { folder }) => runtime.block_on(s3::serve(&folder))?,
    }
    Ok(ExitCode::SUCCESS)
}
