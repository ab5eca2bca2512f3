//! Makes a backup: dump and checksums of one snapshot, streamed into the store, manifest last.

use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use sqlx::{Connection, PgConnection};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::catalog;
use super::database::Database;
use super::error::BackupError;
use super::fingerprint::{self, Table};
use super::manifest::{
    BackupId, FORMAT, Manifest, Purpose, Snapshot, SourceDatabase, Started, Stored, Timings,
};
use super::seal::{self, Compression, Encryption, PartSink};
use super::tool::Tool;
use crate::postgres::ClientTools;
use crate::store::key::backup_folder;
use crate::store::{BackupFile, ObjectKey, Store, Upload};

/// The newest migration: the table is that of sqlx, which any application with it has.
const SCHEMA_VERSION: &str = "select max(version) from public._sqlx_migrations where success";

/// How a backup is made.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Why.
    pub purpose: Purpose,
    /// For whom.
    pub encryption: Encryption,
    /// How it is compressed.
    pub compression: Compression,
    /// Folder with `pg_dump`; without it that is searched.
    pub tools_dir: Option<std::path::PathBuf>,
    /// The policy that asks for it.
    pub policy: Option<String>,
}

/// Makes a backup of `database` in `store`. On an error nothing is left that looks like one; what
/// a killed process left is taken away by the next call.
///
/// # Errors
/// [`BackupError`]
pub async fn create(
    database: &Database,
    store: &Store,
    options: &CreateOptions,
) -> Result<Manifest, BackupError> {
    let mut connection = database.connect().await?;
    let source = describe(&mut connection).await?;
    let tools = ClientTools::find(options.tools_dir.as_deref(), source.major)?;
    catalog::sweep(store, &mut connection, &source.identity).await?;
    let id = BackupId::new(source.now);
    // Held as long as this process lives: what is locked is being made, and is not swept.
    catalog::lock(&mut connection, &id).await?;
    let started = Started { database: source.identity.clone(), started_at: source.now };
    catalog::put_json(store, &id, BackupFile::Started, &started).await?;
    let making = Making { id: &id, database, store, options, tools: &tools };
    let made = Box::pin(making.run(&mut connection, source)).await;
    if made.is_err() {
        // The better error is the one we have; the next run sweeps what stays.
        if let Err(error) = store.remove_folder(&backup_folder(id.as_str())).await {
            tracing::warn!(backup.id = %id, %error, "cannot delete an unfinished backup");
        }
    }
    // Frees the lock; a connection that is gone has freed it already.
    let _closed = connection.close().await;
    made
}

/// What is read of the source before its snapshot is taken.
struct Source {
    now: DateTime<Utc>,
    name: String,
    /// Cluster and database, the same after a restart.
    identity: String,
    version: String,
    major: u32,
}

async fn describe(connection: &mut PgConnection) -> Result<Source, BackupError> {
    let failed = "read the server's version";
    let (now, name, version, number): (DateTime<Utc>, String, String, i32) = sqlx::query_as(
        "select now(), current_database()::text, current_setting('server_version'),
                current_setting('server_version_num')::int",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(BackupError::database(failed))?;
    let identity = catalog::identity(connection).await?;
    let version = version.split_whitespace().next().unwrap_or_default().to_owned();
    Ok(Source { now, name, identity, version, major: number.unsigned_abs() / 10_000 })
}

/// Everything that the steps share.
struct Making<'a> {
    id: &'a BackupId,
    database: &'a Database,
    store: &'a Store,
    options: &'a CreateOptions,
    tools: &'a ClientTools,
}

impl Making<'_> {
    async fn run(
        &self,
        connection: &mut PgConnection,
        source: Source,
    ) -> Result<Manifest, BackupError> {
        let begun = Instant::now();
        let ledger = catalog::ledger_position(self.store).await?;
        let mut tx = connection
            .begin_with("begin isolation level repeatable read read only")
            .await
            .map_err(BackupError::database("begin the snapshot"))?;
        fingerprint::fix_settings(&mut tx).await?;
        let (exported, snapshot) = export_snapshot(&mut tx).await?;
        let (schema_version, roles) = (schema_version(&mut tx).await?, roles(&mut tx).await?);
        // Side by side on the one snapshot, which this transaction keeps until both are done.
        let stop = CancellationToken::new();
        let counting = async {
            let counted = fingerprint_timed(&mut tx).await;
            if counted.is_err() {
                stop.cancel(); // what it would belong to need not be stored
            }
            counted
        };
        let (stored, counted) = tokio::join!(Box::pin(self.store_dump(&exported, &stop)), counting);
        let (tables, checksums) = counted?;
        let (stored, dump_time) = stored?;
        tx.rollback().await.map_err(BackupError::database("end the snapshot"))?;
        let finished_at: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()")
            .fetch_one(connection)
            .await
            .map_err(BackupError::database("read the clock"))?;
        let manifest = Manifest {
            format: FORMAT,
            id: self.id.clone(),
            registrar_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: source.now,
            finished_at,
            purpose: self.options.purpose,
            database: SourceDatabase {
                name: source.name,
                server_version: source.version,
                server_major: source.major,
                schema_version,
                pg_dump_version: self.tools.version().to_owned(),
                roles,
            },
            snapshot,
            stored,
            timings: Timings {
                dump_ms: millis(dump_time),
                checksums_ms: millis(checksums),
                total_ms: millis(begun.elapsed()),
            },
            tables,
            policy: self.options.policy.clone(),
            ledger,
        };
        catalog::put_json(self.store, self.id, BackupFile::Manifest, &manifest).await?;
        Ok(manifest)
    }

    /// Runs `pg_dump` on the snapshot and streams what it writes into the store.
    async fn store_dump(
        &self,
        snapshot: &str,
        stop: &CancellationToken,
    ) -> Result<(Stored, Duration), BackupError> {
        let begun = Instant::now();
        let CreateOptions { encryption, compression, .. } = self.options;
        let object = format!("database.dump.{}", seal::extension(compression.kind, encryption));
        let key = ObjectKey::Backup { id: self.id.as_str(), file: BackupFile::Dump(&object) };
        let mut upload = self.store.upload(key.path());
        match self.pump(snapshot, stop, &mut upload).await {
            Ok((dump_bytes, size_bytes, sha256)) => {
                let stored = Stored {
                    object,
                    size_bytes,
                    sha256,
                    dump_bytes,
                    compression: compression.kind,
                    encrypted_to: encryption.names(),
                };
                Ok((stored, begun.elapsed()))
            }
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    async fn pump(
        &self,
        snapshot: &str,
        stop: &CancellationToken,
        upload: &mut Upload,
    ) -> Result<(u64, u64, String), BackupError> {
        let mut command = self.tools.pg_dump();
        // Custom format, not compressed: its own gzip is one slow thread, and 15 has no zstd.
        command.args(["--format=custom", "--compress=0", "--snapshot"]).arg(snapshot);
        self.database.name_to(&mut command);
        let mut dump = Tool::start("pg_dump", &mut command, Stdio::null(), Stdio::piped())?;
        let stdout = dump.stdout();
        let (parts, mut outgoing) = mpsc::channel::<Bytes>(1);
        let sink = PartSink::new(parts, self.store.part_bytes());
        let (compression, encryption) = (self.options.compression, self.options.encryption.clone());
        let sealing = tokio::task::spawn_blocking(move || {
            let (dump_bytes, sink) = seal::seal(stdout, sink, compression, &encryption)?;
            let (size_bytes, sha256) = sink.finish()?;
            Ok::<_, std::io::Error>((dump_bytes, size_bytes, sha256))
        });
        let mut sent = Ok(());
        while let Some(part) = tokio::select! {
            part = outgoing.recv() => part,
            () = stop.cancelled() => None,
        } {
            sent = upload.put(part).await;
            if sent.is_err() {
                break;
            }
        }
        drop(outgoing); // an upload that ended early ends the sealing, and that the dump
        let sealed = sealing.await.unwrap_or_else(|_| Err(std::io::Error::other("it panicked")));
        sent?;
        // A dump that ends early looks like the end of its output: only its exit code knows.
        let ended = tokio::task::spawn_blocking(move || dump.finish()).await;
        let sealed = sealed.map_err(BackupError::io("compress and encrypt the dump"))?;
        ended.unwrap_or_else(|_| {
            Err(BackupError::Program { program: "pg_dump", message: "it was lost".to_owned() })
        })?;
        upload.complete().await?;
        Ok(sealed)
    }
}

async fn fingerprint_timed(
    connection: &mut PgConnection,
) -> Result<(Vec<Table>, Duration), BackupError> {
    let begun = Instant::now();
    let tables = fingerprint::tables(connection).await?;
    Ok((tables, begun.elapsed()))
}

async fn export_snapshot(connection: &mut PgConnection) -> Result<(String, Snapshot), BackupError> {
    let (exported, taken_at, lsn): (String, DateTime<Utc>, String) = sqlx::query_as(
        "select pg_export_snapshot(), clock_timestamp(),
                (case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                      else pg_current_wal_lsn() end)::text",
    )
    .fetch_one(connection)
    .await
    .map_err(BackupError::database("export the snapshot"))?;
    Ok((exported, Snapshot { taken_at, lsn }))
}

async fn schema_version(connection: &mut PgConnection) -> Result<Option<i64>, BackupError> {
    let failed = "read the schema's version";
    let known: bool =
        sqlx::query_scalar("select to_regclass('public._sqlx_migrations') is not null")
            .fetch_one(&mut *connection)
            .await
            .map_err(BackupError::database(failed))?;
    if !known {
        return Ok(None);
    }
    sqlx::query_scalar(SCHEMA_VERSION)
        .fetch_one(connection)
        .await
        .map_err(BackupError::database(failed))
}

/// Roles named in rights of what is dumped.
async fn roles(connection: &mut PgConnection) -> Result<Vec<String>, BackupError> {
    sqlx::query_scalar(
        "select distinct r.rolname::text
           from pg_shdepend d
           join pg_roles r on r.oid = d.refobjid
          where d.dbid = (select oid from pg_database where datname = current_database())
            and d.refclassid = 'pg_authid'::regclass and d.deptype = 'a'
          order by 1",
    )
    .fetch_all(connection)
    .await
    .map_err(BackupError::database("read the roles"))
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The application's database from its setting.
///
/// # Errors
/// [`BackupError::BadUrl`]
pub fn application(url: &SecretString) -> Result<Database, BackupError> {
    Database::new("database.url", url)
}
