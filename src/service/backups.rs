//! Use cases of backups. The work is the engine's ([`crate::backup`]); here are who may, what is
//! recorded, and what a restored database needs before it is ready.

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use secrecy::SecretString;
use serde_json::json;
use sqlx::{PgConnection, PgPool};

use super::backup_policies::tiers;
use super::webhooks::EventType;
use super::{Caller, Permission, ServiceError, Services};
use crate::backup::create::application;
use crate::backup::keep::{Candidate, Decision, Tiers, plan_all};
use crate::backup::manifest::Purpose;
use crate::backup::pgbackrest::{Physical, Repository};
use crate::backup::prune::Pruned;
use crate::backup::seal::{Compression, Encryption, Identities};
use crate::backup::{
    self, BackupError, BackupId, Catalog, CreateOptions, Database, Entry, Manifest, Pin, Scratch,
    Verification, catalog,
};
use crate::config::{BackupConfig, Config};
use crate::db::audit::{self, Actor};
use crate::db::backups::{self, BackupRow};
use crate::db::deliveries;
use crate::db::report_options;
use crate::postgres::Binaries;
use crate::queue::{self, BackupTicket};
use crate::report::source::ReportDatabase;
use crate::schema;
use crate::store::{HOLD_FOLDER, LEDGER_FOLDER, Store};

/// As in the table.
const PGBACKREST: &str = "pgbackrest";

/// What differs from the settings for one verification.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// File of identities.
    pub identity_file: Option<PathBuf>,
    /// Server for the scratch database.
    pub server: Option<SecretString>,
    /// Folder with the programs.
    pub tools_dir: Option<PathBuf>,
}

/// A backup with what would become of it.
#[derive(Debug, serde::Serialize)]
pub struct Listed {
    /// What is known of it.
    #[serde(flatten)]
    pub backup: BackupRow,
    /// Seconds since its snapshot.
    pub age_secs: i64,
    /// Why it is kept; empty: the next prune deletes it.
    pub kept_because: Vec<String>,
}

/// The list, and what is wrong in the store.
#[derive(Debug, serde::Serialize)]
pub struct Listing {
    /// The newest first.
    pub backups: Vec<Listed>,
    /// Folders that cannot be read, and why; only when the store was asked.
    pub unreadable: Vec<(BackupId, String)>,
    /// Being deleted; only when the store was asked.
    pub deleting: Vec<BackupId>,
}

/// How a backup is made according to the settings.
///
/// # Errors
/// [`BackupError::NotEncrypted`] and [`BackupError::BadRecipient`]
pub fn create_options(
    config: &BackupConfig,
    purpose: Purpose,
    plain: bool,
    tools_dir: Option<PathBuf>,
) -> Result<CreateOptions, BackupError> {
    Ok(CreateOptions {
        purpose,
        encryption: Encryption::from_settings(config, plain)?,
        compression: Compression { kind: config.compression, level: config.compression_level },
        tools_dir: tools_dir.or_else(|| config.tools_dir.clone()),
        policy: None,
    })
}

/// The identities of `file` or of the settings; none where neither names a file.
///
/// # Errors
/// [`BackupError::BadIdentities`]
pub fn identities(
    config: &BackupConfig,
    file: Option<&PathBuf>,
) -> Result<Identities, BackupError> {
    let file = file.or(config.identity_file.as_ref());
    file.map_or_else(|| Ok(Identities::default()), |file| Identities::read(file))
}

impl Services {
    /// Makes a backup.
    ///
    /// # Errors
    /// [`ServiceError::Backup`]
    pub async fn create_backup(
        &self,
        actor: &Actor,
        options: &CreateOptions,
    ) -> Result<Manifest, ServiceError> {
        let database = self.application_database()?;
        let manifest = Box::pin(backup::create(&database, &self.store, options)).await?;
        let entry = Entry {
            manifest: manifest.clone(),
            verifications: Vec::new(),
            pins: Vec::new(),
            uses: Vec::new(),
        };
        let details = json!({
            "backup": manifest.id, "purpose": manifest.purpose,
            "size_bytes": manifest.stored.size_bytes, "sha256": manifest.stored.sha256,
            "encrypted": !manifest.stored.encrypted_to.is_empty(),
        });
        self.record(actor, "backup.created", details, Some(&entry)).await?;
        Ok(manifest)
    }

    /// Proves a backup by restoring it.
    ///
    /// # Errors
    /// [`ServiceError::Backup`] where it could not be tried. That it is bad is an outcome.
    pub async fn verify_backup(
        &self,
        actor: &Actor,
        id: &BackupId,
        options: VerifyOptions,
    ) -> Result<Verification, ServiceError> {
        let config = &self.config.backup;
        let identities = identities(config, options.identity_file.as_ref())?;
        let server = options.server.as_ref().or(config.verify_server_url.as_ref());
        let scratch = match server {
            Some(url) => {
                let server = Database::new("the server for the scratch database", url)?;
                Scratch::Server(Box::new(server))
            }
            None => Scratch::Private(options.tools_dir.or_else(|| config.tools_dir.clone())),
        };
        let now = self.database_now().await?;
        let outcome = match self.repository_of(id)? {
            Some(repository) => {
                let dir = config.tools_dir.as_deref();
                let binaries = Binaries::find(dir).map_err(BackupError::from)?;
                let database = self.application_database()?;
                let verifying = repository.verify(&self.store, id, &database, binaries, now);
                Box::pin(verifying).await?
            }
            None => Box::pin(backup::verify(&self.store, id, &identities, &scratch, now)).await?,
        };
        let details = json!({
            "backup": id, "good": outcome.good, "problem": outcome.problem,
            "rows": outcome.rows, "duration_ms": outcome.duration_ms,
        });
        self.refresh_backups().await?;
        let (event, code) = match outcome.good {
            true => (EventType::BackupVerified, None),
            false => (EventType::BackupFailed, Some("bad")),
        };
        let told = Told { event, job: "verify", id: Some(id.clone()), code };
        self.record_and_tell(actor, "backup.verified", details, None, Some(told)).await?;
        Ok(outcome)
    }

    /// Tells webhooks that a job of backups failed; why is in the log.
    ///
    /// # Errors
    /// The database's.
    pub async fn tell_of_failed_backup(&self, job: &'static str) -> Result<(), ServiceError> {
        let told = Told { event: EventType::BackupFailed, job, id: None, code: Some("failed") };
        let mut connection = self.db.acquire().await?;
        Ok(told.publish(&mut connection).await?)
    }

    /// Lists the backups. `refresh` asks the store and fills the table anew.
    ///
    /// # Errors
    /// The database's and the store's.
    pub async fn list_backups(&self, refresh: bool) -> Result<Listing, ServiceError> {
        let (mut deleting, mut unreadable) = (Vec::new(), Vec::new());
        if refresh {
            let catalog = self.refresh_backups().await?;
            deleting = catalog.deleting.into_iter().map(|(id, _)| id).collect();
            unreadable = catalog.unreadable;
        }
        let rows = backups::list(&self.db).await?;
        let now = self.database_now().await?;
        let candidates: Vec<_> = rows.iter().filter_map(candidate).collect();
        let tiers = tiers(&self.policies().await?, &self.config.backup);
        let decisions = plan_all(&candidates, &tiers, now);
        let why = |id: &str| -> Vec<String> {
            let decision = decisions.iter().find(|decision: &&Decision| decision.id.as_str() == id);
            decision.map_or_else(Vec::new, |d| d.keep.iter().map(|reason| reason.told()).collect())
        };
        let backups = rows
            .into_iter()
            .map(|backup| Listed {
                age_secs: (now - backup.taken_at).num_seconds(),
                kept_because: match backup.engine == PGBACKREST {
                    true => vec!["as pgbackrest is set".to_owned()],
                    false => why(&backup.id),
                },
                backup,
            })
            .collect();
        Ok(Listing { backups, unreadable, deleting })
    }

    /// Fills the table of backups from the store.
    ///
    /// # Errors
    /// The database's and the store's.
    pub async fn refresh_backups(&self) -> Result<Catalog, ServiceError> {
        let mut tx = self.db.begin().await?;
        backups::take_turn(&mut tx).await?;
        let catalog = catalog::read(&self.store).await?;
        let mut rows: Vec<_> = catalog.entries.iter().map(row).collect();
        let mut ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
        if let Some(repository) = self.repository()? {
            match repository.list(&self.store).await {
                Ok(listed) => {
                    rows.extend(listed.iter().map(physical_row));
                    ids.extend(listed.iter().map(|physical| physical.id.to_string()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot ask pgbackrest for its backups");
                    let known = backups::list(&mut *tx).await?;
                    let known = known.into_iter().filter(|row| row.engine == PGBACKREST);
                    ids.extend(known.map(|row| row.id));
                }
            }
        }
        backups::keep_only(&mut tx, &ids).await?;
        for row in &rows {
            backups::put(&mut tx, row).await?;
        }
        tx.commit().await?;
        Ok(catalog)
    }

    /// Deletes what has expired, or with `dry_run` only decides.
    ///
    /// # Errors
    /// The database's and the store's.
    pub async fn prune_backups(
        &self,
        actor: &Actor,
        dry_run: bool,
    ) -> Result<Pruned, ServiceError> {
        let tiers = tiers(&self.policies().await?, &self.config.backup);
        self.prune_with(actor, &tiers, dry_run).await
    }

    pub(super) async fn prune_with(
        &self,
        actor: &Actor,
        tiers: &Tiers,
        dry_run: bool,
    ) -> Result<Pruned, ServiceError> {
        let now = self.database_now().await?;
        let pruned = backup::prune::prune(&self.store, tiers, now, dry_run).await?;
        if !dry_run {
            self.refresh_backups().await?;
            let failed: Vec<_> = pruned.failed.iter().map(|(id, _)| id).collect();
            let details = json!({ "deleted": pruned.deleted, "failed": failed });
            self.record(actor, "backup.pruned", details, None).await?;
        }
        Ok(pruned)
    }

    /// Pins a backup, so that no prune deletes it.
    ///
    /// # Errors
    /// [`ServiceError::Backup`] where there is no such backup.
    pub async fn pin_backup(
        &self,
        actor: &Actor,
        id: &BackupId,
        name: &str,
        reason: &str,
    ) -> Result<(), ServiceError> {
        let created_at = self.database_now().await?;
        let pin = Pin { name: name.to_owned(), reason: reason.to_owned(), created_at };
        catalog::pin(&self.store, id, &pin).await?;
        self.refresh_backups().await?;
        self.record(actor, "backup.pinned", json!({ "backup": id, "pin": name }), None).await
    }

    /// Takes a pin away.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] where the backup has none of this name.
    pub async fn unpin_backup(
        &self,
        actor: &Actor,
        id: &BackupId,
        name: &str,
    ) -> Result<(), ServiceError> {
        if !catalog::unpin(&self.store, id, name).await? {
            return Err(ServiceError::NotFound { what: "pin" });
        }
        self.refresh_backups().await?;
        self.record(actor, "backup.unpinned", json!({ "backup": id, "pin": name }), None).await
    }

    /// Lists the backups for a caller.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn show_backups(&self, caller: &Caller) -> Result<Listing, ServiceError> {
        caller.require(Permission::BackupsView)?;
        self.list_backups(false).await
    }

    /// Asks a worker to prove a backup.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], and [`ServiceError::NotFound`] where there is no such backup.
    pub async fn request_verification(
        &self,
        caller: &Caller,
        id: &BackupId,
    ) -> Result<(), ServiceError> {
        caller.require(Permission::BackupsVerify)?;
        let mut tx = self.db.begin().await?;
        if !backups::exists(&mut tx, id.as_str()).await? {
            return Err(ServiceError::NotFound { what: "backup" });
        }
        let backup_id = Some(id.as_str().to_owned());
        let ticket = BackupTicket::Verify { backup_id, policy: None };
        queue::enqueue_backup(&mut tx, &ticket).await?;
        let event = audit::Event {
            action: "backup.verification_requested",
            entity_type: "backups",
            entity_id: None,
            details: json!({ "backup": id }),
        };
        audit::record(&mut tx, &caller.actor, event).await?;
        Ok(tx.commit().await?)
    }

    /// pgBackRest, where the settings name a stanza.
    pub(super) fn repository(&self) -> Result<Option<Repository>, BackupError> {
        Repository::from_settings(&self.config.backup.pgbackrest)
    }

    fn repository_of(&self, id: &BackupId) -> Result<Option<Repository>, BackupError> {
        if !id.is_physical() {
            return Ok(None);
        }
        self.repository()?.map(Some).ok_or(BackupError::NoStanza)
    }

    pub(super) fn application_database(&self) -> Result<Database, BackupError> {
        let url = self.config.database.url.as_ref();
        url.map_or(Err(BackupError::BadUrl("database.url")), application)
    }

    async fn database_now(&self) -> Result<chrono::DateTime<chrono::Utc>, ServiceError> {
        Ok(sqlx::query_scalar("select now()").fetch_one(&self.db).await?)
    }

    pub(super) async fn record(
        &self,
        actor: &Actor,
        action: &'static str,
        details: serde_json::Value,
        entry: Option<&Entry>,
    ) -> Result<(), ServiceError> {
        self.record_and_tell(actor, action, details, entry, None).await
    }

    async fn record_and_tell(
        &self,
        actor: &Actor,
        action: &'static str,
        details: serde_json::Value,
        entry: Option<&Entry>,
        told: Option<Told>,
    ) -> Result<(), ServiceError> {
        let mut tx = self.db.begin().await?;
        if let Some(told) = told {
            told.publish(&mut tx).await?;
        }
        if let Some(entry) = entry {
            backups::take_turn(&mut tx).await?;
            backups::put(&mut tx, &row(entry)).await?;
        }
        let event = audit::Event { action, entity_type: "backups", entity_id: None, details };
        audit::record(&mut tx, actor, event).await?;
        Ok(tx.commit().await?)
    }
}

/// What webhooks are told of a backup.
struct Told {
    event: EventType,
    job: &'static str,
    id: Option<BackupId>,
    code: Option<&'static str>,
}

impl Told {
    async fn publish(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Self { event, job, id, code } = self;
        let data = json!({ "backup": id, "job": job, "error_code": code });
        deliveries::publish(connection, event.as_str(), &data).await
    }
}

fn row(entry: &Entry) -> BackupRow {
    let Entry { manifest, pins, verifications: _, uses: _ } = entry;
    let bounded = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let verified = entry.verified();
    BackupRow {
        id: manifest.id.to_string(),
        taken_at: manifest.snapshot.taken_at,
        finished_at: manifest.finished_at,
        purpose: manifest.purpose.name().to_owned(),
        engine: "pg_dump".to_owned(),
        policy: manifest.policy.clone(),
        database_name: manifest.database.name.clone(),
        server_version: manifest.database.server_version.clone(),
        schema_version: manifest.database.schema_version,
        size_bytes: bounded(manifest.stored.size_bytes),
        dump_bytes: bounded(manifest.stored.dump_bytes),
        row_count: manifest.tables.iter().map(|table| table.rows).sum(),
        duration_ms: bounded(manifest.timings.total_ms),
        encrypted: !manifest.stored.encrypted_to.is_empty(),
        pins: pins.iter().map(|pin| pin.name.clone()).collect(),
        verified_at: verified.map(|v| v.verified_at),
        verified_good: verified.map(|v| v.good),
        verify_duration_ms: verified.map(|v| bounded(v.duration_ms)),
        verify_problem: verified.and_then(|v| v.problem.clone()),
    }
}

fn physical_row(physical: &Physical) -> BackupRow {
    let bounded = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let Physical { id, started_at, finished_at, checkpoint, verified, .. } = physical;
    let took = (*finished_at - *started_at).num_milliseconds();
    BackupRow {
        id: id.to_string(),
        taken_at: *finished_at,
        finished_at: *finished_at,
        purpose: checkpoint.as_ref().map_or(Purpose::Manual, |c| c.purpose).name().to_owned(),
        engine: PGBACKREST.to_owned(),
        policy: checkpoint.as_ref().and_then(|c| c.policy.clone()),
        database_name: checkpoint.as_ref().map_or_else(String::new, |c| c.database.clone()),
        server_version: physical.server_version.clone(),
        schema_version: None,
        size_bytes: bounded(physical.size_bytes),
        dump_bytes: bounded(physical.database_bytes),
        row_count: checkpoint.iter().flat_map(|c| &c.tables).map(|table| table.rows).sum(),
        duration_ms: took.max(0),
        encrypted: physical.encrypted,
        pins: Vec::new(),
        verified_at: verified.as_ref().map(|v| v.verified_at),
        verified_good: verified.as_ref().map(|v| v.good),
        verify_duration_ms: verified.as_ref().map(|v| bounded(v.duration_ms)),
        verify_problem: verified.as_ref().and_then(|v| v.problem.clone()),
    }
}

/// For the list. Whether somebody reads a backup is only known to the store, and to prune.
fn candidate(row: &BackupRow) -> Option<Candidate> {
    if row.engine == PGBACKREST {
        return None;
    }
    Some(Candidate {
        id: row.id.parse().ok()?,
        taken_at: row.taken_at,
        good: row.verified_good,
        pre_migration: row.purpose == Purpose::PreMigration.name(),
        pins: row.pins.clone(),
        in_use: false,
        policy: row.policy.clone(),
    })
}

/// What a step after a restore works with.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The restored database.
    pub db: PgPool,
    /// The store of the backup.
    pub store: Store,
    /// Settings.
    pub config: Config,
    /// What was restored.
    pub manifest: Manifest,
}

impl Restored {
    /// Use cases over the restored database.
    fn services(&self) -> Result<Services, ServiceError> {
        let reports = report_options(&self.config.database)
            .map_err(|error| ServiceError::Internal(error.into()))?;
        Ok(Services {
            db: self.db.clone(),
            reports: ReportDatabase::new(reports),
            store: self.store.clone(),
            config: Arc::new(self.config.clone()),
            passwords: Default::default(),
            days_seen: Default::default(),
        })
    }
}

fn operator() -> Caller {
    Caller::operator(uuid::Uuid::new_v4().simple().to_string())
}

/// A step: its name, and what it did, in words.
pub type AfterRestore =
    (&'static str, fn(Restored) -> BoxFuture<'static, Result<String, ServiceError>>);

/// What a restored database needs before it is ready, in this order.
pub const AFTER_RESTORE: &[AfterRestore] = &[
    ("queue", |restored| Box::pin(forget_tickets(restored))),
    ("report-role", |restored| Box::pin(give_rights(restored))),
    ("catalog", |restored| Box::pin(refill_catalog(restored))),
    // Before the erasures, which leave held people alone.
    ("holds", |restored| Box::pin(replay_holds(restored))),
    ("erasures", |restored| Box::pin(replay_ledger(restored))),
];

/// Tickets of the past: the reaper writes new ones for what is pending.
async fn forget_tickets(restored: Restored) -> Result<String, ServiceError> {
    let forgotten = queue::forget_tickets(&restored.db).await?;
    Ok(format!("{forgotten} tickets forgotten; workers write new ones for what is pending"))
}

async fn give_rights(restored: Restored) -> Result<String, ServiceError> {
    if schema::check_current(&restored.db).await.is_err() {
        return Ok("left for `registrar migrate up`, which the schema needs first".to_owned());
    }
    let password = restored.config.database.report_password.as_ref();
    match schema::prepare_report_role(&restored.db, password).await {
        Ok(schema::ReportRole::Ready) => Ok("the report role has its rights".to_owned()),
        Ok(schema::ReportRole::NeedsAdministrator) => {
            Ok("an administrator must run `registrar migrate up`".to_owned())
        }
        Err(error) => Err(ServiceError::Internal(error.into())),
    }
}

/// Places again the holds that are younger than the backup, and releases those that were.
async fn replay_holds(restored: Restored) -> Result<String, ServiceError> {
    if restored.store.list(HOLD_FOLDER).await?.is_empty() {
        return Ok("no hold was ever placed".to_owned());
    }
    let not_ready = |what: String| {
        let then = "then `registrar hold replay` and `registrar erasure replay`: until then rows \
                    under a hold are not kept, and people who were erased are back";
        ServiceError::refused("holds_not_replayed", format!("{what}, {then}"))
    };
    if schema::check_current(&restored.db).await.is_err() {
        return Err(not_ready("run `registrar migrate up`".to_owned()));
    }
    let replayed = restored.services()?.replay_holds(&operator()).await?;
    if let [first, ..] = replayed.broken.as_slice() {
        return Err(not_ready(format!(
            "{} copies of holds cannot be opened, such as {first}: name the file with the age \
             identity as backup.identity_file",
            replayed.broken.len()
        )));
    }
    Ok(format!(
        "{} holds in the store: {} placed again, {} released again",
        replayed.found, replayed.placed, replayed.released
    ))
}

/// Erases again whoever the ledger says was erased: a backup from before brings them back.
async fn replay_ledger(restored: Restored) -> Result<String, ServiceError> {
    let Restored { db, store, config, manifest } = &restored;
    let entries = store.list(LEDGER_FOLDER).await?.len();
    let at_backup = manifest.ledger.erasures;
    if entries < at_backup {
        let told = format!(
            "the ledger in this store has {entries} entries and had {at_backup} when the backup was \
             made: bring back what is missing, then `registrar erasure replay`"
        );
        return Err(ServiceError::refused("ledger_incomplete", told));
    }
    if entries == 0 {
        return Ok("the ledger of erasures is empty".to_owned());
    }
    let not_ready = |what: &str| {
        let then = "then `registrar erasure replay`: until then people who were erased are back";
        ServiceError::refused("ledger_not_replayed", format!("{what}, {then}"))
    };
    if schema::check_current(db).await.is_err() {
        return Err(not_ready("run `registrar migrate up`"));
    }
    if config.erasure.keys.is_empty() {
        return Err(not_ready("set erasure.keys"));
    }
    let replayed = restored.services()?.replay_erasures(&operator()).await?;
    if !replayed.broken.is_empty() || replayed.outcome.postponed > 0 {
        return Err(not_ready(&format!(
            "{} entries of the ledger are broken and {} people could not be erased yet: see the log",
            replayed.broken.len(),
            replayed.outcome.postponed
        )));
    }
    Ok(format!(
        "{} entries of the ledger, {} people found again: {} erased, {} held",
        replayed.entries, replayed.found, replayed.outcome.completed, replayed.outcome.held
    ))
}

async fn refill_catalog(restored: Restored) -> Result<String, ServiceError> {
    let known: bool = sqlx::query_scalar("select to_regclass('public.backups') is not null")
        .fetch_one(&restored.db)
        .await?;
    if !known {
        return Ok("the restored schema has no list of backups yet".to_owned());
    }
    let catalog = catalog::read(&restored.store).await?;
    let mut tx = restored.db.begin().await?;
    let rows: Vec<_> = catalog.entries.iter().map(row).collect();
    let ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
    backups::keep_only(&mut tx, &ids).await?;
    for row in &rows {
        backups::put(&mut tx, row).await?;
    }
    let event = audit::Event {
        action: "backup.restored",
        entity_type: "backups",
        entity_id: None,
        details: json!({ "backup": restored.manifest.id }),
    };
    audit::record(&mut tx, &Actor::system(), event).await?;
    tx.commit().await?;
    Ok(format!("{} backups are listed", rows.len()))
}
