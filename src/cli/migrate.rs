//! `registrar migrate`: bring the schema up, take it down, see where it stands.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Settings, note, say, say_json, table};
use crate::schema::{self, MigrationState, REPORT_ROLE_SQL, ReportRole};
use crate::{db, telemetry};

/// Bring the schema up or down, or see where it stands
#[derive(Debug, Args)]
pub struct MigrateCommand {
    #[command(subcommand)]
    verb: MigrateVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum MigrateVerb {
    /// List the migrations and whether they are applied; exit code 1 unless all are
    #[command(after_help = "Example:\n  registrar migrate status --json")]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Apply what is missing, the queue's tables and the report role included
    #[command(after_help = "Example:\n  registrar migrate up")]
    Up,
    /// Take back every migration above a version, newest first
    #[command(after_help = "Example:\n  registrar migrate down --to 5")]
    Down {
        /// The version that stays the newest; 0 takes back all
        #[arg(long, value_name = "VERSION")]
        to: i64,
    },
}

/// Runs `registrar migrate`.
///
/// # Errors
/// Settings or database cannot be used, or a migration fails.
pub async fn run(command: MigrateCommand) -> anyhow::Result<ExitCode> {
    let mut config = command.settings.load()?;
    "warn".clone_into(&mut config.log.filter);
    telemetry::init_logging(&config.log)?;
    let pool = db::connect(&config.database).await?;
    match command.verb {
        MigrateVerb::Status { json } => return status(&pool, json).await,
        MigrateVerb::Up => {
            let role = schema::up(&pool, config.database.report_password.as_ref()).await?;
            if role == ReportRole::NeedsAdministrator {
                note(
                    "This user may not create the report role or its grants. \
                     Have an administrator run, in this database:\n",
                );
                say(REPORT_ROLE_SQL)?;
                return Ok(ExitCode::from(super::REFUSED));
            }
            note("The schema is current.");
        }
        MigrateVerb::Down { to } => {
            schema::down(&pool, to).await?;
            note(format!("The schema is at version {to}."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(pool: &sqlx::PgPool, json: bool) -> anyhow::Result<ExitCode> {
    let all = schema::status(pool).await?;
    if json {
        say_json(&all)?;
    } else {
        let rows: Vec<_> = all
            .iter()
            .map(|m| {
                let applied = m.applied_at.map(|at| at.format("%Y-%m-%d %H:%M:%S").to_string());
                let state = format!("{:?}", m.state).to_lowercase();
                vec![
                    format!("{:04}", m.version),
                    m.description.clone(),
                    state,
                    applied.unwrap_or_default(),
                ]
            })
            .collect();
        table(&["VERSION", "DESCRIPTION", "STATE", "APPLIED (UTC)"], &rows)?;
    }
    let current = all.iter().all(|migration| migration.state == MigrationState::Applied);
    Ok(if current { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
