//! Backups that pgBackRest makes, keeps and restores, for databases larger than `pg_dump` copes with.
//!
//! pgBackRest's repository is its own catalog; what is added in our store is a **checkpoint**: the
//! rows and checksums of all tables at a restore point in the write-ahead log, taken just after the
//! backup. A verification restores into a scratch server up to that point, and compares. pgBackRest's
//! own `verify` is not asked: it reports a bad checksum and exits with 0.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};

use super::create::millis;
use super::database::Database;
use super::error::BackupError;
use super::fingerprint::{self, Table};
use super::manifest::{BackupId, Purpose, Verification};
use super::tool::Tool;
use crate::config::{PgBackRestConfig, PhysicalType};
use crate::postgres::{
    Binaries, Error as Unusable, RestoreInto, RestoredCluster, command_of_server_account,
};
use crate::store::{ObjectKey, ObjectPath, PhysicalFile, Store, physical_folder};

/// What is read of pgBackRest's answers.
const MAX_ANSWER_BYTES: u64 = 64 * 1024 * 1024;
/// Looks for an instant at which nothing is being written, and the pause between two.
const CHECKPOINT_TRIES: u32 = 200;
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(25);
/// Longest wait for the write-ahead log to be archived.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(120);

/// pgBackRest, as the settings name it.
#[derive(Debug, Clone)]
pub struct Repository {
    program: PathBuf,
    config_file: Option<PathBuf>,
    stanza: String,
    kind: PhysicalType,
}

/// A backup in pgBackRest's repository, with what our store knows of it.
#[derive(Debug, Clone, Serialize)]
pub struct Physical {
    /// pgBackRest's name of it.
    pub id: BackupId,
    /// When it was begun.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// Bytes that it added to the repository.
    pub size_bytes: u64,
    /// Bytes of the database.
    pub database_bytes: u64,
    /// The server's major version.
    pub server_version: String,
    /// Whether the repository is encrypted.
    pub encrypted: bool,
    /// Whether pgBackRest found pages with wrong checksums.
    pub has_errors: bool,
    /// What a verification compares with; none where Registrar did not ask for the backup.
    pub checkpoint: Option<Checkpoint>,
    /// The newest verification.
    pub verified: Option<Verification>,
}

/// The state at a restore point.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Name of the restore point; none: the database was never at rest for it.
    pub restore_point: Option<String>,
    /// The database that was counted.
    pub database: String,
    /// Its tables then.
    pub tables: Vec<Table>,
    /// Why the backup was made.
    pub purpose: Purpose,
    /// The policy that asked for it.
    pub policy: Option<String>,
}

impl Repository {
    /// What the settings name; none where they name no stanza.
    ///
    /// # Errors
    /// [`BackupError::BadStanza`]
    pub fn from_settings(config: &PgBackRestConfig) -> Result<Option<Self>, BackupError> {
        let Some(stanza) = config.stanza.clone() else { return Ok(None) };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if stanza.is_empty() || stanza.len() > 64 || !stanza.chars().all(fits) {
            return Err(BackupError::BadStanza);
        }
        let PgBackRestConfig { program, config_file, stanza: _, backup_type } = config.clone();
        Ok(Some(Self { program, config_file, stanza, kind: backup_type }))
    }

    /// Makes a backup, and takes the checkpoint that it can be compared with.
    ///
    /// # Errors
    /// [`BackupError`]; pgBackRest leaves no half backup in its list.
    pub async fn create(
        &self,
        database: &Database,
        store: &Store,
        purpose: Purpose,
        policy: Option<String>,
    ) -> Result<Physical, BackupError> {
        let kind = match self.kind {
            PhysicalType::Full => "full",
            PhysicalType::Diff => "diff",
            PhysicalType::Incr => "incr",
        };
        self.run(vec![format!("--type={kind}"), "backup".to_owned()]).await?;
        let made = self.listed().await?.pop().ok_or_else(|| BackupError::Program {
            program: "pgbackrest",
            message: "it made a backup and does not list it".to_owned(),
        })?;
        let checkpoint = take_checkpoint(database, &made.label, purpose, policy).await?;
        let path = self.path(&made.label, PhysicalFile::Checkpoint);
        let text = serde_json::to_vec_pretty(&checkpoint).expect("plain data is JSON");
        store.put(&path, Bytes::from(text)).await?;
        self.forget_expired(store).await?;
        Ok(made.with(Some(checkpoint), None))
    }

    /// The backups of the repository, the oldest first.
    ///
    /// # Errors
    /// [`BackupError`]
    pub async fn list(&self, store: &Store) -> Result<Vec<Physical>, BackupError> {
        let mut all = Vec::new();
        for listed in self.listed().await? {
            let checkpoint = self.checkpoint(store, &listed.label).await?;
            let folder =
                format!("{}/{}/verifications", physical_folder(&self.stanza), listed.label);
            let newest = store.list(&folder).await?.into_iter().map(|object| object.location).max();
            let verified = match newest {
                Some(path) => serde_json::from_slice(&store.get(&path).await?).ok(),
                None => None,
            };
            all.push(listed.with(checkpoint, verified));
        }
        Ok(all)
    }

    /// Restores a backup into a scratch server, up to its checkpoint, starts it and compares every
    /// table. `database` says as whom and into which database one connects there.
    ///
    /// # Errors
    /// [`BackupError`] where it could not be tried. That it is bad is an outcome.
    pub async fn verify(
        &self,
        store: &Store,
        id: &BackupId,
        database: &Database,
        binaries: Binaries,
        now: DateTime<Utc>,
    ) -> Result<Verification, BackupError> {
        let listed = self.listed().await?;
        let known = listed.iter().any(|listed| listed.label == id.as_str());
        if !known {
            return Err(BackupError::NotFound(id.to_string()));
        }
        let begun = Instant::now();
        let checkpoint = self.checkpoint(store, id.as_str()).await?;
        let tried = self.try_out(id, checkpoint.as_ref(), database, binaries).await;
        let (problem, found, server_version) = match tried {
            Ok((found, version)) => {
                let expected = checkpoint.filter(|checkpoint| checkpoint.restore_point.is_some());
                let differs = expected.and_then(|c| fingerprint::difference(&c.tables, &found));
                (differs, found, version)
            }
            // What pgBackRest cannot restore, or what does not start, is none.
            Err(BackupError::Postgres(
                error @ (Unusable::Restore(_)
                | Unusable::Start { .. }
                | Unusable::StartTimeout { .. }),
            )) => (Some(error.to_string()), Vec::new(), String::new()),
            Err(error) => return Err(error),
        };
        let outcome = Verification {
            id: id.clone(),
            verified_at: now + begun.elapsed(),
            good: problem.is_none(),
            problem,
            tables: found.len(),
            rows: found.iter().map(|table| table.rows).sum(),
            duration_ms: millis(begun.elapsed()),
            server_version,
        };
        let at = outcome.verified_at.format("%Y%m%dT%H%M%S%.6fZ").to_string();
        let text = serde_json::to_vec_pretty(&outcome).expect("plain data is JSON");
        store
            .put(&self.path(id.as_str(), PhysicalFile::Verification(&at)), Bytes::from(text))
            .await?;
        Ok(outcome)
    }

    async fn try_out(
        &self,
        id: &BackupId,
        checkpoint: Option<&Checkpoint>,
        database: &Database,
        binaries: Binaries,
    ) -> Result<(Vec<Table>, String), BackupError> {
        let target = checkpoint.and_then(|checkpoint| checkpoint.restore_point.clone());
        let (repository, label) = (self.clone(), id.to_string());
        let cluster = RestoredCluster::start(binaries, move |into| {
            repository.restore(&label, target.as_deref(), into).map_err(|error| error.to_string())
        })
        .await?;
        let compared = async {
            let scratch = database.at_socket(cluster.socket_dir(), cluster.port());
            let mut connection = scratch.connect().await?;
            let tables = read_all(&mut connection).await?;
            let version: String = sqlx::query_scalar("select current_setting('server_version')")
                .fetch_one(&mut connection)
                .await
                .map_err(BackupError::database("read the server's version"))?;
            let _closed = connection.close().await;
            Ok((tables, version.split_whitespace().next().unwrap_or_default().to_owned()))
        };
        let compared = compared.await;
        cluster.stop().await?;
        compared
    }

    /// Blocks.
    fn restore(
        &self,
        label: &str,
        restore_point: Option<&str>,
        into: &RestoreInto,
    ) -> Result<(), BackupError> {
        let mut command = into.command(&self.program);
        self.name_to(&mut command);
        command.arg(format!("--set={label}")).arg(format!("--pg1-path={}", into.data.display()));
        match restore_point {
            Some(name) => command.args(["--type=name", &format!("--target={name}")]),
            None => command.arg("--type=immediate"),
        };
        command.args(["--target-action=promote", "--archive-mode=off"]);
        // It would name the folder of now, which is another one when the server starts.
        let config = self.config_file.as_ref().map(|file| format!("--config={}", file.display()));
        command.arg(format!(
            "--recovery-option=restore_command={} {} --stanza={} --pg1-path={} archive-get %f \"%p\"",
            self.program.display(),
            config.unwrap_or_default(),
            self.stanza,
            into.data_later.display(),
        ));
        command.arg("restore");
        Tool::start("pgbackrest", &mut command, Stdio::null(), Stdio::null())?.finish()
    }

    async fn checkpoint(
        &self,
        store: &Store,
        label: &str,
    ) -> Result<Option<Checkpoint>, BackupError> {
        match store.get(&self.path(label, PhysicalFile::Checkpoint)).await {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                BackupError::Manifest { id: label.to_owned(), reason: error.to_string() }
            }),
            Err(crate::store::StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes away what is kept of backups that pgBackRest has expired.
    async fn forget_expired(&self, store: &Store) -> Result<(), BackupError> {
        let listed = self.listed().await?;
        for object in store.list(&physical_folder(&self.stanza)).await? {
            let path = object.location.to_string();
            let label = path.split('/').nth(2).unwrap_or_default();
            if !listed.iter().any(|listed| listed.label == label) {
                store.delete(&object.location).await?;
            }
        }
        Ok(())
    }

    async fn listed(&self) -> Result<Vec<Listed>, BackupError> {
        let answer = self.run(vec!["--output=json".to_owned(), "info".to_owned()]).await?;
        let bad = |reason: String| BackupError::Program { program: "pgbackrest", message: reason };
        let stanzas: Vec<Stanza> = serde_json::from_str(&answer)
            .map_err(|error| bad(format!("its info cannot be read: {error}")))?;
        let stanza = stanzas.into_iter().find(|stanza| stanza.name == self.stanza);
        let stanza = stanza.ok_or_else(|| bad(format!("it has no stanza `{}`", self.stanza)))?;
        let Stanza { name: _, backup, cipher, db } = stanza;
        let version = |id: u32| {
            db.iter().find(|db| db.id == id).map_or_else(String::new, |db| db.version.clone())
        };
        let encrypted = cipher.as_deref().is_some_and(|cipher| cipher != "none");
        let listed = backup
            .into_iter()
            .map(|backup| Listed {
                server_version: version(backup.database.id),
                encrypted,
                label: backup.label,
                times: backup.timestamp,
                sizes: backup.info,
                has_errors: backup.error.unwrap_or(false),
            })
            .filter(|listed| listed.label.parse::<BackupId>().is_ok())
            .collect();
        Ok(listed)
    }

    async fn run(&self, arguments: Vec<String>) -> Result<String, BackupError> {
        let mut command = command_of_server_account(&self.program);
        self.name_to(&mut command);
        command.args(arguments);
        let ran = tokio::task::spawn_blocking(move || {
            let mut tool = Tool::start("pgbackrest", &mut command, Stdio::null(), Stdio::piped())?;
            let mut answer = String::new();
            let read = tool.stdout().take(MAX_ANSWER_BYTES).read_to_string(&mut answer);
            tool.finish()?;
            read.map_err(BackupError::io("read what pgbackrest says"))?;
            Ok(answer)
        });
        ran.await.unwrap_or_else(|_| {
            Err(BackupError::Program { program: "pgbackrest", message: "it was lost".to_owned() })
        })
    }

    fn name_to(&self, command: &mut std::process::Command) {
        if let Some(file) = &self.config_file {
            command.arg(format!("--config={}", file.display()));
        }
        command.arg(format!("--stanza={}", self.stanza)).arg("--log-level-console=error");
        command.arg("--log-level-stderr=error");
    }

    fn path(&self, label: &str, file: PhysicalFile<'_>) -> ObjectPath {
        ObjectKey::Physical { stanza: &self.stanza, label, file }.path()
    }
}

/// Rows and checksums at a restore point: no transaction may end between the snapshot and the
/// point, so both are taken at an instant at which none is under way.
async fn take_checkpoint(
    database: &Database,
    label: &str,
    purpose: Purpose,
    policy: Option<String>,
) -> Result<Checkpoint, BackupError> {
    let failed = "take the checkpoint of a backup";
    let mut reader = database.connect().await?;
    let mut marker = database.connect().await?;
    let name: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&mut marker)
        .await
        .map_err(BackupError::database(failed))?;
    let mut checkpoint =
        Checkpoint { restore_point: None, database: name, tables: Vec::new(), purpose, policy };
    for attempt in 0..CHECKPOINT_TRIES {
        let mut tx = reader
            .begin_with("begin isolation level repeatable read read only")
            .await
            .map_err(BackupError::database(failed))?;
        let before = running(&mut tx).await?;
        let point = format!("registrar-{label}-{attempt}");
        let file: String =
            sqlx::query_scalar("select pg_walfile_name(pg_create_restore_point($1))")
                .bind(&point)
                .fetch_one(&mut marker)
                .await
                .map_err(BackupError::database("create a restore point"))?;
        let after = running(&mut marker).await?;
        // `xmin:xmax:` and nothing after it: none is under way. The same: none began or ended.
        if before == after && before.ends_with(':') {
            fingerprint::fix_settings(&mut tx).await?;
            checkpoint.tables = fingerprint::tables(&mut tx).await?;
            tx.rollback().await.map_err(BackupError::database(failed))?;
            wait_for_archive(&mut marker, &file).await?;
            checkpoint.restore_point = Some(point);
            return Ok(checkpoint);
        }
        tx.rollback().await.map_err(BackupError::database(failed))?;
        tokio::time::sleep(CHECKPOINT_PAUSE).await;
    }
    tracing::warn!(
        backup.id = label,
        "the database was never at rest: a verification restores the backup and compares nothing"
    );
    Ok(checkpoint)
}

async fn running(connection: &mut PgConnection) -> Result<String, BackupError> {
    sqlx::query_scalar("select pg_current_snapshot()::text")
        .fetch_one(connection)
        .await
        .map_err(BackupError::database("look which transactions are under way"))
}

/// A restore needs the write-ahead log up to the restore point.
async fn wait_for_archive(connection: &mut PgConnection, file: &str) -> Result<(), BackupError> {
    let failed = "have the write-ahead log archived";
    sqlx::query("select pg_switch_wal()")
        .execute(&mut *connection)
        .await
        .map_err(BackupError::database(failed))?;
    let deadline = Instant::now() + ARCHIVE_LIMIT;
    loop {
        let archived: bool = sqlx::query_scalar(
            "select coalesce(last_archived_wal >= $1, false) from pg_stat_archiver",
        )
        .bind(file)
        .fetch_one(&mut *connection)
        .await
        .map_err(BackupError::database(failed))?;
        if archived {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(BackupError::NotArchived { file: file.to_owned() });
        }
        tokio::time::sleep(CHECKPOINT_PAUSE).await;
    }
}

async fn read_all(connection: &mut PgConnection) -> Result<Vec<Table>, BackupError> {
    let failed = "read the restored tables";
    let mut tx = connection
        .begin_with("begin isolation level repeatable read read only")
        .await
        .map_err(BackupError::database(failed))?;
    fingerprint::fix_settings(&mut tx).await?;
    let tables = fingerprint::tables(&mut tx).await?;
    tx.rollback().await.map_err(BackupError::database(failed))?;
    Ok(tables)
}

/// What is used of `pgbackrest info --output=json`.
#[derive(Debug, Deserialize)]
struct Stanza {
    name: String,
    #[serde(default)]
    backup: Vec<InfoBackup>,
    cipher: Option<String>,
    #[serde(default)]
    db: Vec<InfoDatabase>,
}

#[derive(Debug, Deserialize)]
struct InfoDatabase {
    id: u32,
    version: String,
}

#[derive(Debug, Deserialize)]
struct InfoBackup {
    label: String,
    timestamp: InfoTimes,
    info: InfoSizes,
    error: Option<bool>,
    database: InfoDatabaseNumber,
}

#[derive(Debug, Deserialize)]
struct InfoDatabaseNumber {
    id: u32,
}

#[derive(Debug, Deserialize)]
struct InfoTimes {
    start: i64,
    stop: i64,
}

#[derive(Debug, Deserialize)]
struct InfoSizes {
    size: u64,
    repository: InfoRepository,
}

#[derive(Debug, Deserialize)]
struct InfoRepository {
    delta: u64,
}

/// A backup as pgBackRest lists it.
#[derive(Debug)]
struct Listed {
    label: String,
    times: InfoTimes,
    sizes: InfoSizes,
    server_version: String,
    encrypted: bool,
    has_errors: bool,
}

impl Listed {
    fn with(self, checkpoint: Option<Checkpoint>, verified: Option<Verification>) -> Physical {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        Physical {
            id: self.label.parse().expect("it was looked at"),
            started_at: at(self.times.start),
            finished_at: at(self.times.stop),
            size_bytes: self.sizes.repository.delta,
            database_bytes: self.sizes.size,
            server_version: self.server_version,
            encrypted: self.encrypted,
            has_errors: self.has_errors,
            checkpoint,
            verified,
        }
    }
}
