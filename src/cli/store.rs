//! `registrar store`: look after what is in the object store.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Settings, command_services, operator, say, say_json};
use crate::service::sweep::Swept;

/// Look after the object store
#[derive(Debug, Args)]
pub struct StoreCommand {
    #[command(subcommand)]
    verb: StoreVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum StoreVerb {
    /// Find files without executions, executions without files, and uploads that nobody ended
    ///
    /// Looks only, unless --delete is given; housekeeping deletes four times a day. Exit code 1
    /// when a completed execution has no file: nothing can be done about that here; and when the
    /// store did not delete what it was told to: the next sweep tries again.
    #[command(after_help = "\
Examples:
  registrar store sweep
  registrar store sweep --delete")]
    Sweep {
        /// Delete files and uploads that belong to nobody
        #[arg(long)]
        delete: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs `registrar store`.
///
/// # Errors
/// Settings, database or store cannot be used.
pub async fn run(command: StoreCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    match command.verb {
        StoreVerb::Sweep { delete, json } => {
            let swept = services.sweep(&operator().actor, delete).await?;
            if json {
                say_json(&swept)?;
            } else {
                show(&swept)?;
            }
            let is_done = swept.missing_files + swept.stuck == 0;
            Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn show(swept: &Swept) -> anyhow::Result<()> {
    let done = if swept.deleted { "deleted" } else { "not deleted: give --delete" };
    say(format!("{} files looked at", swept.files))?;
    let (orphans, bytes) = (swept.orphaned_files, swept.orphaned_bytes);
    say(format!("{orphans} files of nobody, {bytes} bytes ({done})"))?;
    for path in &swept.orphans {
        say(format!("  {path}"))?;
    }
    match swept.uploads_listed {
        true => say(format!("{} unfinished uploads ({done})", swept.unfinished_uploads))?,
        false => say("unfinished uploads: this store does not tell; see the log")?,
    }
    if swept.stuck > 0 {
        say(format!("{} of these the store did not delete: see the log", swept.stuck))?;
    }
    if swept.foreign_files > 0 {
        let many = swept.foreign_files;
        say(format!("{many} files of executions that this database does not know: left alone"))?;
    }
    if swept.unknown_files > 0 {
        say(format!("{} files with names that are not ours: left alone", swept.unknown_files))?;
    }
    say(format!("{} completed executions without their file", swept.missing_files))?;
    for id in &swept.missing {
        say(format!("  execution {id}"))?;
    }
    Ok(())
}
