//! `registrar migrate`: bring the schema up, take it down, see where it stands.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use sqlx::PgPool;

use super::{REFUSED, Settings, note, say, say_json, table};
use crate::backup::manifest::Purpose;
use crate::backup::{self, BackupError, BackupId, Database};
use crate::config::Config;
use crate::schema::{
    self, Guard, LockWaits, MigrationState, REPORT_ROLE_SQL, ReportRole, SchemaError,
};
use crate::service::backups::create_options;
use crate::store::Store;
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
    ///
    /// A database that holds something is backed up first. Each migration is applied in its
    /// transaction and committed only after constraints, checks and row counts were looked at.
    #[command(after_help = "Example:\n  registrar migrate up")]
    Up {
        /// Make no backup first
        #[arg(long)]
        no_backup: bool,
        /// If one fails, take back those that this call had applied
        #[arg(long)]
        undo_on_failure: bool,
    },
    /// Take back every migration above a version, newest first
    #[command(after_help = "Example:\n  registrar migrate down --to 5")]
    Down {
        /// The version that stays the newest; 0 takes back all
        #[arg(long, value_name = "VERSION")]
        to: i64,
        /// Make no backup first
        #[arg(long)]
        no_backup: bool,
    },
    /// Look at the schema: as described, constraints valid, checks hold; exit code 1 unless so
    #[command(after_help = "Example:\n  registrar migrate verify")]
    Verify {
        /// Print the description of the schema as it is, for migrations/expected_schema.txt
        #[arg(long)]
        describe: bool,
        /// Print JSON
        #[arg(long, conflicts_with = "describe")]
        json: bool,
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
    let done = match command.verb {
        MigrateVerb::Status { json } => return status(&pool, json).await,
        MigrateVerb::Verify { describe: true, json: _ } => return describe(&pool).await,
        MigrateVerb::Verify { describe: false, json } => return verify(&pool, json).await,
        MigrateVerb::Up { no_backup, undo_on_failure } => {
            Box::pin(up(&pool, &config, no_backup, undo_on_failure)).await
        }
        MigrateVerb::Down { to, no_backup } => Box::pin(down(&pool, &config, to, no_backup)).await,
    };
    done.or_else(refused)
}

/// What a safety rule refuses has an exit code of its own.
fn refused(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    let refuses = matches!(
        error.downcast_ref::<SchemaError>(),
        Some(SchemaError::Drift(_) | SchemaError::Busy { .. })
    ) || error.downcast_ref::<BackupError>().is_some_and(BackupError::is_refusal);
    if !refuses {
        return Err(error);
    }
    note(format!("registrar: {error:#}"));
    Ok(ExitCode::from(REFUSED))
}

async fn up(
    pool: &PgPool,
    config: &Config,
    no_backup: bool,
    undo_on_failure: bool,
) -> anyhow::Result<ExitCode> {
    let mut guard = guard(pool, config).await?;
    let pending = guard.pending(pool).await?;
    let backup = match pending.is_empty() || no_backup {
        true => None,
        false => back_up_first(pool, config).await?,
    };
    let password = config.database.report_password.as_ref();
    let done = match guard.up(pool, password).await {
        Err(SchemaError::Failed { applied, reached, version, description, reason })
            if undo_on_failure && !applied.is_empty() =>
        {
            let start = applied[0];
            let before = schema::status(pool).await?;
            let target = before.iter().map(|m| m.version).filter(|v| *v < start).max().unwrap_or(0);
            guard.down(pool, target).await.context("take back what this call had applied")?;
            note(format!("What this call had applied is taken back (from {reached} to {target})."));
            let applied = Vec::new();
            Err(SchemaError::Failed { version, description, reason, reached: target, applied })
        }
        done => done,
    };
    guard.release().await;
    if let (Err(_), Some(id)) = (&done, &backup) {
        how_to_restore(id);
    }
    if done? == ReportRole::NeedsAdministrator {
        note(
            "This user may not create the report role or its grants. \
             Have an administrator run, in this database:\n",
        );
        say(REPORT_ROLE_SQL)?;
        return Ok(ExitCode::from(REFUSED));
    }
    if backup.is_some() {
        // The list was not there, or of an older schema, when the backup was made.
        super::services(config.clone()).await?.refresh_backups().await?;
    }
    note(match pending.len() {
        0 => "The schema is current.".to_owned(),
        count => format!("{count} migrations applied and verified. The schema is current."),
    });
    Ok(ExitCode::SUCCESS)
}

async fn down(
    pool: &PgPool,
    config: &Config,
    to: i64,
    no_backup: bool,
) -> anyhow::Result<ExitCode> {
    let mut guard = guard(pool, config).await?;
    guard.pending(pool).await?;
    let backup = if no_backup { None } else { back_up_first(pool, config).await? };
    let done = guard.down(pool, to).await;
    guard.release().await;
    if let (Err(_), Some(id)) = (&done, &backup) {
        how_to_restore(id);
    }
    done?;
    note(format!("The schema is at version {to}."));
    Ok(ExitCode::SUCCESS)
}

async fn guard(pool: &PgPool, config: &Config) -> Result<Guard, SchemaError> {
    let timeout = u64::from(config.backup.migration_lock_timeout_secs.get());
    let tries = config.backup.migration_lock_tries;
    Guard::acquire(pool, LockWaits { timeout: Duration::from_secs(timeout), tries }).await
}

/// Backs up a database that holds something. The backup is pinned by its purpose.
async fn back_up_first(pool: &PgPool, config: &Config) -> anyhow::Result<Option<BackupId>> {
    if is_empty(pool).await? {
        return Ok(None);
    }
    let made = async {
        let options = create_options(&config.backup, Purpose::PreMigration, false, None)?;
        let url = config.database.url.as_ref().ok_or(BackupError::BadUrl("database.url"))?;
        let database = Database::new("database.url", url)?;
        let store = Store::open(&config.store).map_err(BackupError::from)?;
        note("Making a backup first …");
        Box::pin(backup::create(&database, &store, &options)).await
    };
    let manifest = made.await.context(
        "no backup could be made, so nothing was migrated; --no-backup migrates without one",
    )?;
    note(format!("Backup {} is there and pinned.", manifest.id));
    Ok(Some(manifest.id))
}

/// Whether there is nothing to lose.
async fn is_empty(pool: &PgPool) -> anyhow::Result<bool> {
    Ok(sqlx::query_scalar(
        "select not exists (
                select from pg_class c
                  join pg_namespace n on n.oid = c.relnamespace
                 where c.relkind in ('r', 'p') and n.nspname !~ '^pg_'
                   and n.nspname not in ('information_schema', 'apalis')
                   and c.relname <> '_sqlx_migrations')",
    )
    .fetch_one(pool)
    .await?)
}

fn how_to_restore(id: &BackupId) {
    note(format!(
        "The backup made before is {id}. To go back to it: createdb NEW, then\n  \
         registrar backup restore {id} --to postgres://…/NEW"
    ));
}

async fn status(pool: &PgPool, json: bool) -> anyhow::Result<ExitCode> {
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

async fn describe(pool: &PgPool) -> anyhow::Result<ExitCode> {
    let mut tx = pool.begin().await?;
    for line in schema::describe(&mut tx).await? {
        say(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(pool: &PgPool, json: bool) -> anyhow::Result<ExitCode> {
    let problems = match schema::verify(pool).await {
        Ok(()) => Vec::new(),
        Err(SchemaError::Unsound(problems)) => problems,
        Err(error @ SchemaError::NotCurrent(_)) => vec![error.to_string()],
        Err(error) => return Err(error.into()),
    };
    if json {
        say_json(&json!({ "sound": problems.is_empty(), "problems": problems }))?;
    } else if problems.is_empty() {
        note("The schema is as the migrations make it; constraints are valid, checks hold.");
    }
    for problem in problems.iter().filter(|_| !json) {
        say(problem)?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
