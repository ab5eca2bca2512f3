//! `registrar backup`: make, list, prove, restore, pin and prune backups.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::json;

use super::{REFUSED, Settings, command_services, note, say, say_json, table};
use crate::backup::keep::Reason;
use crate::backup::manifest::Purpose;
use crate::backup::seal::new_key;
use crate::backup::{
    BackupError, BackupId, Database, Manifest, RestoreOptions, Verification, catalog, restore,
};
use crate::config::Config;
use crate::db::audit::Actor;
use crate::service::backup_policies::Made;
use crate::service::backups::{AFTER_RESTORE, Restored, VerifyOptions, create_options, identities};
use crate::service::{ServiceError, Services};
use crate::store::Store;
use crate::{db, telemetry};

/// Make, list, prove, restore, pin and prune backups
#[derive(Debug, Args)]
pub struct BackupCommand {
    #[command(subcommand)]
    verb: BackupVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum BackupVerb {
    /// Make a backup: pg_dump, compressed and encrypted, straight into the store
    #[command(
        after_help = "Examples:\n  registrar backup create --verify\n  registrar backup create --policy back-up-nightly"
    )]
    Create {
        /// Store it without encryption: whoever reads the store reads the database
        #[arg(long)]
        plain: bool,
        /// As this policy of jobs/ says, whose backup it then is
        #[arg(long, value_name = "NAME", conflicts_with = "plain")]
        policy: Option<String>,
        /// Restore it into a scratch database at once and compare
        #[arg(long)]
        verify: bool,
        #[command(flatten)]
        scratch: ScratchArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the backups: age, size, when they were proven, why they are kept
    #[command(after_help = "Example:\n  registrar backup list --refresh")]
    List {
        /// Ask the store, whose manifests are the catalog, and fill the database's copy anew
        #[arg(long)]
        refresh: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Prove a backup: restore it into a scratch database and compare every table; exit code 1 if bad
    #[command(after_help = "\
Examples:
  registrar backup verify latest
  registrar backup verify 20260301T013000Z-1a2b3c4d --server postgres://postgres@127.0.0.1/postgres")]
    Verify {
        /// The backup, or `latest`
        id: Which,
        #[command(flatten)]
        scratch: ScratchArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Restore a backup into an empty database; exit code 3 if it is not empty
    #[command(after_help = "\
Examples:
  createdb tesc_restored
  registrar backup restore latest --to postgres://postgres@127.0.0.1/tesc_restored
  registrar backup restore latest --list
  registrar backup restore latest --to URL --tables users,audit_logs")]
    Restore(RestoreArgs),
    /// Delete backups that have expired, and say why each is kept or goes
    #[command(after_help = "Example:\n  registrar backup prune --dry-run")]
    Prune {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep a backup whatever its age, until it is unpinned
    #[command(after_help = "\
Example:
  registrar backup pin 20260301T013000Z-1a2b3c4d --name case-2026-17 --reason \"legal hold\"")]
    Pin {
        /// The backup
        id: BackupId,
        /// Name of the pin
        #[arg(long, value_parser = pin_name)]
        name: String,
        /// Why
        #[arg(long)]
        reason: String,
    },
    /// Take a pin away
    #[command(
        after_help = "Example:\n  registrar backup unpin 20260301T013000Z-1a2b3c4d --name case-2026-17"
    )]
    Unpin {
        /// The backup
        id: BackupId,
        /// Name of the pin
        #[arg(long, value_parser = pin_name)]
        name: String,
    },
    /// Make a key: print an age identity file, and its recipient for backup.encrypt_to
    #[command(after_help = "Example:\n  (umask 077; registrar backup key > backup.key)")]
    Key,
}

/// Where and with what a backup is tried out.
#[derive(Debug, Args)]
struct ScratchArgs {
    /// File with the age identity that opens it [default: backup.identity_file]
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Server for the scratch database [default: backup.verify_server_url, else a private one]
    #[arg(long, value_name = "URL")]
    server: Option<SecretString>,
    /// Folder with the PostgreSQL programs [default: backup.tools_dir, else searched]
    #[arg(long, env = "REGISTRAR_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
}

impl ScratchArgs {
    fn options(&self) -> VerifyOptions {
        VerifyOptions {
            identity_file: self.identity.clone(),
            server: self.server.clone(),
            tools_dir: tools_dir(self.postgres_bin.as_ref()),
        }
    }
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// The backup, or `latest`
    id: Which,
    /// The empty database
    #[arg(long, value_name = "URL", required_unless_present = "list")]
    to: Option<SecretString>,
    /// Print the backup's table of contents, and restore nothing
    #[arg(long, conflicts_with_all = ["to", "tables", "dry_run"])]
    list: bool,
    /// Only these tables: columns and rows, without indexes, constraints and rights
    #[arg(long, value_delimiter = ',', value_name = "TABLES")]
    tables: Vec<String>,
    /// Check everything that can be checked without writing
    #[arg(long)]
    dry_run: bool,
    /// Jobs of pg_restore; more than one needs --spool, and is not one transaction
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Folder for the opened dump while several jobs read it
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// File with the age identity that opens it [default: backup.identity_file]
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Folder with pg_restore [default: backup.tools_dir, else searched]
    #[arg(long, env = "REGISTRAR_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A backup, or the newest.
#[derive(Debug, Clone)]
enum Which {
    Latest,
    Id(BackupId),
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "latest" => Ok(Self::Latest),
            id => id.parse().map(Self::Id),
        }
    }
}

impl Which {
    async fn find(&self, store: &Store) -> Result<BackupId, BackupError> {
        match self {
            Self::Latest => catalog::newest(store).await,
            Self::Id(id) => Ok(id.clone()),
        }
    }
}

/// Runs `registrar backup`.
///
/// # Errors
/// Settings, database, store or programs cannot be used.
pub async fn run(command: BackupCommand) -> anyhow::Result<ExitCode> {
    let BackupCommand { verb, settings } = command;
    let done = match verb {
        BackupVerb::Key => return key(),
        // Without the application's database, which may be what was lost.
        BackupVerb::Restore(args) => Box::pin(run_restore(&settings, args)).await,
        verb => {
            let services = command_services(&settings).await?;
            Box::pin(with_services(&services, verb)).await
        }
    };
    done.or_else(refused)
}

/// A safety rule that refuses has an exit code of its own.
fn refused(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    let backup = match error.downcast_ref::<ServiceError>() {
        Some(ServiceError::Backup(error)) => Some(&**error),
        _ => error.downcast_ref::<BackupError>(),
    };
    match backup {
        Some(refusal) if refusal.is_refusal() => {
            note(format!("registrar: {refusal}"));
            Ok(ExitCode::from(REFUSED))
        }
        _ => Err(error),
    }
}

async fn with_services(services: &Services, verb: BackupVerb) -> anyhow::Result<ExitCode> {
    let actor = Actor::system();
    match verb {
        BackupVerb::Create { plain, policy, verify, scratch, json } => {
            let manifest = match policy {
                Some(name) => {
                    let made = services.back_up_by_policy(&actor, &name, Purpose::Manual).await?;
                    let Some(made) = made else {
                        note(format!("The backup of {name} before this one is not finished."));
                        return Ok(ExitCode::from(REFUSED));
                    };
                    match made {
                        Made::Dump(manifest) => *manifest,
                        Made::Physical(made) => {
                            return physical_made(services, &made.id, verify, scratch, json).await;
                        }
                    }
                }
                None => {
                    let tools_dir = tools_dir(scratch.postgres_bin.as_ref());
                    let config = &services.config.backup;
                    let options = create_options(config, Purpose::Manual, plain, tools_dir)?;
                    services.create_backup(&actor, &options).await?
                }
            };
            tell_created(&manifest, json && !verify)?;
            if verify {
                let outcome =
                    services.verify_backup(&actor, &manifest.id, scratch.options()).await?;
                return tell_verified(&outcome, json);
            }
        }
        BackupVerb::List { refresh, json } => list(services, refresh, json).await?,
        BackupVerb::Verify { id, scratch, json } => {
            let id = id.find(&services.store).await?;
            let outcome = services.verify_backup(&actor, &id, scratch.options()).await?;
            return tell_verified(&outcome, json);
        }
        BackupVerb::Prune { dry_run, json } => return prune(services, dry_run, json).await,
        BackupVerb::Pin { id, name, reason } => {
            services.pin_backup(&actor, &id, &name, &reason).await?;
            note(format!("{id} is pinned."));
        }
        BackupVerb::Unpin { id, name } => {
            services.unpin_backup(&actor, &id, &name).await?;
            note(format!("{id} is no longer pinned as {name}."));
        }
        BackupVerb::Restore(_) | BackupVerb::Key => unreachable!("they need no database"),
    }
    Ok(ExitCode::SUCCESS)
}

fn key() -> anyhow::Result<ExitCode> {
    use secrecy::ExposeSecret;
    let (text, recipient) = new_key();
    say(text.expose_secret().trim_end())?;
    note(format!(
        "Keep this file where the database and the store are not: without it no backup opens.\n\
         Set backup.encrypt_to = [\"{recipient}\"]"
    ));
    Ok(ExitCode::SUCCESS)
}

async fn physical_made(
    services: &Services,
    id: &BackupId,
    verify: bool,
    scratch: ScratchArgs,
    json: bool,
) -> anyhow::Result<ExitCode> {
    if verify {
        let outcome = services.verify_backup(&Actor::system(), id, scratch.options()).await?;
        return tell_verified(&outcome, json);
    }
    if json {
        say_json(&json!({ "id": id }))?;
    } else {
        say(id)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tell_created(manifest: &Manifest, json: bool) -> anyhow::Result<()> {
    if json {
        return say_json(manifest);
    }
    let rows: i64 = manifest.tables.iter().map(|table| table.rows).sum();
    note(format!(
        "{} tables, {rows} rows: {} stored in {:.1} s{}.",
        manifest.tables.len(),
        bytes(manifest.stored.size_bytes),
        seconds(manifest.timings.total_ms),
        if manifest.stored.encrypted_to.is_empty() { ", not encrypted" } else { ", encrypted" },
    ));
    say(&manifest.id)
}

fn tell_verified(outcome: &Verification, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        say_json(outcome)?;
    } else {
        match &outcome.problem {
            None => note(format!(
                "{} is good: {} tables and {} rows are those of its snapshot ({:.1} s).",
                outcome.id,
                outcome.tables,
                outcome.rows,
                seconds(outcome.duration_ms)
            )),
            Some(problem) => note(format!("{} is BAD: {problem}", outcome.id)),
        }
    }
    Ok(if outcome.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn list(services: &Services, refresh: bool, json: bool) -> anyhow::Result<()> {
    let listing = services.list_backups(refresh).await?;
    if json {
        return say_json(&listing);
    }
    let rows: Vec<_> = listing
        .backups
        .iter()
        .map(|listed| {
            let backup = &listed.backup;
            let verified = match (backup.verified_good, backup.verified_at) {
                (Some(true), Some(at)) => at.format("%Y-%m-%d %H:%M").to_string(),
                (Some(false), _) => "BAD".to_owned(),
                _ => "never".to_owned(),
            };
            let why = match listed.kept_because.is_empty() {
                true => "EXPIRED".to_owned(),
                false => listed.kept_because.join("; "),
            };
            vec![
                backup.id.clone(),
                age(listed.age_secs),
                bytes(backup.size_bytes.unsigned_abs()),
                backup.purpose.clone(),
                backup.engine.clone(),
                if backup.encrypted { "yes" } else { "no" }.to_owned(),
                verified,
                why,
            ]
        })
        .collect();
    table(
        &["BACKUP", "AGE", "SIZE", "PURPOSE", "ENGINE", "ENCRYPTED", "VERIFIED (UTC)", "KEPT"],
        &rows,
    )?;
    for (id, reason) in &listing.unreadable {
        note(format!("{id} cannot be read, and is kept: {reason}"));
    }
    for id in &listing.deleting {
        note(format!("{id} is being deleted; `registrar backup prune` goes on with it"));
    }
    Ok(())
}

async fn prune(services: &Services, dry_run: bool, json: bool) -> anyhow::Result<ExitCode> {
    let pruned = services.prune_backups(&Actor::system(), dry_run).await?;
    if json {
        say_json(&pruned)?;
    } else {
        let rows: Vec<_> = pruned
            .decisions
            .iter()
            .map(|decision| {
                let why: Vec<_> = decision.keep.iter().map(Reason::told).collect();
                let what = if decision.is_kept() { "keep" } else { "delete" };
                let expired = decision.expired.clone();
                vec![
                    decision.id.to_string(),
                    what.to_owned(),
                    expired.unwrap_or_else(|| why.join("; ")),
                ]
            })
            .collect();
        table(&["BACKUP", "", "WHY"], &rows)?;
        if dry_run {
            note("Nothing was deleted.");
        } else {
            note(format!("{} deleted.", pruned.deleted.len()));
        }
        for (id, why) in pruned.failed.iter().chain(&pruned.unreadable) {
            note(format!("{id}: {why}"));
        }
    }
    Ok(if pruned.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_restore(settings: &Settings, args: RestoreArgs) -> anyhow::Result<ExitCode> {
    let mut config = settings.load()?;
    "warn".clone_into(&mut config.log.filter);
    telemetry::init_logging(&config.log)?;
    let store = Store::open(&config.store)?;
    let id = args.id.find(&store).await?;
    let parallel = match (args.jobs, &args.spool) {
        (1, _) => None,
        (jobs, Some(folder)) => Some((usize::from(jobs), folder.clone())),
        (_, None) => anyhow::bail!(
            "--jobs needs --spool DIR: several jobs jump about in a file, and a stream has none; \
             the opened dump lies there until the restore ends"
        ),
    };
    let options = RestoreOptions {
        tables: args.tables.clone(),
        parallel,
        dry_run: args.dry_run,
        identities: identities(&config.backup, args.identity.as_ref())?,
        tools_dir: tools_dir(args.postgres_bin.as_ref())
            .or_else(|| config.backup.tools_dir.clone()),
    };
    let Some(target) = args.to.filter(|_| !args.list) else {
        say(restore::contents(&store, &id, &options).await?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    };
    let database = Database::new("--to", &target)?;
    let restored = Box::pin(crate::backup::restore(&store, &id, &database, &options)).await?;
    let is_whole = !restored.dry_run && args.tables.is_empty();
    // What opened the backup opens the copies of holds.
    config.backup.identity_file = args.identity.or(config.backup.identity_file);
    let steps =
        if is_whole { after_restore(config, target, store, &id).await? } else { Vec::new() };
    if args.json {
        say_json(&json!({ "restored": restored, "steps": steps }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = if restored.dry_run { "could be restored" } else { "are restored and compared" };
    note(format!(
        "{} tables and {} rows of {id} {what} ({:.1} s).",
        restored.tables,
        restored.rows,
        seconds(restored.duration_ms)
    ));
    if !restored.missing_roles.is_empty() {
        note(format!(
            "Rights were not restored, because the server lacks these roles: {}",
            restored.missing_roles.join(", ")
        ));
    }
    for (name, told) in &steps {
        note(format!("{name}: {told}"));
    }
    if is_whole {
        note("The database is ready.");
    }
    Ok(ExitCode::SUCCESS)
}

async fn after_restore(
    mut config: Config,
    target: SecretString,
    store: Store,
    id: &BackupId,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    config.database.url = Some(target);
    let pool = db::connect(&config.database).await?;
    let manifest = catalog::manifest(&store, id).await?;
    let restored = Restored { db: pool.clone(), store, config, manifest };
    let mut told = Vec::with_capacity(AFTER_RESTORE.len());
    for (name, step) in AFTER_RESTORE {
        told.push((*name, step(restored.clone()).await?));
    }
    pool.close().await;
    Ok(told)
}

fn tools_dir(named: Option<&PathBuf>) -> Option<PathBuf> {
    // An empty variable is how some tools unset one.
    named.filter(|dir| !dir.as_os_str().is_empty()).cloned()
}

fn pin_name(text: &str) -> Result<String, &'static str> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !text.is_empty() && text.len() <= 64 && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 lower-case letters, digits and hyphens")
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "for people, one digit after the point")]
    let mut size = count as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

fn age(secs: i64) -> String {
    match secs {
        ..120 => format!("{secs} s"),
        120..7_200 => format!("{} min", secs / 60),
        7_200..172_800 => format!("{} h", secs / 3_600),
        _ => format!("{} d", secs / 86_400),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people, one digit after the point")]
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1_000.0
}
