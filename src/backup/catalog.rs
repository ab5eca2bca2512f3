//! The catalog of backups, which is the store itself: it outlives the database.
//!
//! ```text
//!  started ──► dump ──► manifest: it exists ──► deleting ──► files go ──► deleting goes: no more
//!     └── its process died: swept                  └── its process died: the next run goes on
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::BackupError;
use super::manifest::{
    BackupId, Deleting, FORMAT, LedgerPosition, Manifest, Pin, Started, Use, Verification,
};
use crate::store::key::{BACKUPS, backup_folder};
use crate::store::{
    BackupFile, HOLD_FOLDER, LEDGER_FOLDER, ObjectKey, ObjectPath, Store, StoreError,
};

/// Manifests read at once.
const READS_IN_FLIGHT: usize = 8;
/// The newest verifications that are read of each backup.
const VERIFICATIONS_READ: usize = 3;
/// What another database's process left, or nobody's, is swept after this long.
const ABANDONED_AFTER: TimeDelta = TimeDelta::hours(48);
/// A reader that says nothing for this long is gone; it says so three times in that time.
const USE_LASTS: Duration = Duration::from_secs(15 * 60);

/// A backup and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// As it was made.
    pub manifest: Manifest,
    /// The newest verifications, the oldest of them first.
    pub verifications: Vec<Verification>,
    /// Why it must not be deleted, by people's word.
    pub pins: Vec<Pin>,
    /// Who reads it.
    #[serde(skip)]
    pub uses: Vec<Use>,
}

impl Entry {
    /// The newest verification.
    pub fn verified(&self) -> Option<&Verification> {
        self.verifications.last()
    }

    /// Whether its last verification found it good.
    pub fn is_good(&self) -> bool {
        self.verified().is_some_and(|verification| verification.good)
    }

    /// Whether its last verification found it bad.
    pub fn is_bad(&self) -> bool {
        self.verified().is_some_and(|verification| !verification.good)
    }

    /// Whether somebody reads it at `now`.
    pub fn is_in_use(&self, now: DateTime<Utc>) -> bool {
        self.uses.iter().any(|reader| reader.expires_at > now)
    }
}

/// What the store holds.
#[derive(Debug, Default)]
pub struct Catalog {
    /// The backups, the oldest first.
    pub entries: Vec<Entry>,
    /// Those that are being deleted, whether or not a process is at it.
    pub deleting: Vec<(BackupId, Deleting)>,
    /// Folders without a manifest: being made, or left by a process that died.
    pub unfinished: Vec<BackupId>,
    /// Backups whose manifest or another small file cannot be read, and why. They are kept.
    pub unreadable: Vec<(BackupId, String)>,
}

/// The files of one folder.
#[derive(Debug, Default)]
struct Folder {
    manifest: bool,
    deleting: bool,
    verifications: Vec<ObjectPath>,
    pins: Vec<ObjectPath>,
    uses: Vec<ObjectPath>,
    newest: Option<DateTime<Utc>>,
}

/// Reads the catalog.
///
/// # Errors
/// [`BackupError::Store`]
pub async fn read(store: &Store) -> Result<Catalog, BackupError> {
    let folders = folders(store).await?;
    let read = futures::stream::iter(folders)
        .map(|(id, folder)| async move {
            let found = read_folder(store, &id, folder).await?;
            Ok::<_, BackupError>((id, found))
        })
        .buffered(READS_IN_FLIGHT)
        .try_collect::<Vec<_>>()
        .await?;
    let mut catalog = Catalog::default();
    for (id, found) in read {
        match found {
            Found::Entry(entry) => catalog.entries.push(*entry),
            Found::Deleting(deleting) => catalog.deleting.push((id, deleting)),
            Found::Unfinished => catalog.unfinished.push(id),
            Found::Unreadable(reason) => catalog.unreadable.push((id, reason)),
        }
    }
    Ok(catalog)
}

enum Found {
    Entry(Box<Entry>),
    Deleting(Deleting),
    Unfinished,
    Unreadable(String),
}

async fn folders(store: &Store) -> Result<BTreeMap<BackupId, Folder>, BackupError> {
    let mut folders: BTreeMap<BackupId, Folder> = BTreeMap::new();
    for object in store.list(BACKUPS).await? {
        let path = object.location.to_string();
        let mut parts = path.splitn(3, '/');
        let (Some(_), Some(id), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let Ok(id) = id.parse::<BackupId>() else { continue };
        let folder = folders.entry(id).or_default();
        folder.newest = folder.newest.max(Some(object.last_modified));
        match file.split_once('/') {
            None if file == "manifest.json" => folder.manifest = true,
            None if file == "deleting.json" => folder.deleting = true,
            Some(("verifications", _)) => folder.verifications.push(object.location),
            Some(("pins", _)) => folder.pins.push(object.location),
            Some(("uses", _)) => folder.uses.push(object.location),
            _ => {}
        }
    }
    Ok(folders)
}

async fn read_folder(
    store: &Store,
    id: &BackupId,
    mut folder: Folder,
) -> Result<Found, BackupError> {
    if folder.deleting {
        let key = ObjectKey::Backup { id: id.as_str(), file: BackupFile::Deleting };
        return Ok(match get_json(store, id, &key.path()).await {
            Ok(Some(deleting)) => Found::Deleting(deleting),
            // It went while we looked.
            Ok(None) => Found::Unfinished,
            Err(BackupError::Manifest { reason, .. }) => Found::Unreadable(reason),
            Err(error) => return Err(error),
        });
    }
    if !folder.manifest {
        return Ok(Found::Unfinished);
    }
    folder.verifications.sort();
    let newest = folder.verifications.len().saturating_sub(VERIFICATIONS_READ);
    let whole = async {
        Ok::<_, BackupError>(Entry {
            manifest: manifest(store, id).await?,
            verifications: all_json(store, id, &folder.verifications[newest..]).await?,
            pins: all_json(store, id, &folder.pins).await?,
            uses: all_json(store, id, &folder.uses).await?,
        })
    };
    match whole.await {
        Ok(entry) => Ok(Found::Entry(Box::new(entry))),
        Err(BackupError::Manifest { reason, .. }) => Ok(Found::Unreadable(reason)),
        Err(BackupError::NotFound(_)) => Ok(Found::Unfinished),
        Err(error) => Err(error),
    }
}

/// The manifest of one backup.
///
/// # Errors
/// [`BackupError::NotFound`] and [`BackupError::Manifest`]
pub async fn manifest(store: &Store, id: &BackupId) -> Result<Manifest, BackupError> {
    let key = ObjectKey::Backup { id: id.as_str(), file: BackupFile::Manifest };
    let found: Option<Manifest> = get_json(store, id, &key.path()).await?;
    let manifest = found.ok_or_else(|| BackupError::NotFound(id.to_string()))?;
    let bad = |reason: String| BackupError::Manifest { id: id.to_string(), reason };
    if manifest.format != FORMAT {
        let format = manifest.format;
        return Err(bad(format!("it has the form {format}, and this version reads {FORMAT}")));
    }
    if manifest.id != *id || manifest.stored.object.contains('/') {
        return Err(bad("it is that of another backup".to_owned()));
    }
    Ok(manifest)
}

/// The newest backup.
///
/// # Errors
/// [`BackupError::NotFound`] where there is none.
pub async fn newest(store: &Store) -> Result<BackupId, BackupError> {
    let folders = folders(store).await?;
    let usable = folders.into_iter().rev().find(|(_, folder)| folder.manifest && !folder.deleting);
    usable.map(|(id, _)| id).ok_or_else(|| BackupError::NotFound("latest".to_owned()))
}

/// Takes away what processes that died left of backups that they were making. Two processes that
/// sweep at once do no harm.
pub(super) async fn sweep(
    store: &Store,
    connection: &mut PgConnection,
    identity: &str,
) -> Result<(), BackupError> {
    let now: DateTime<Utc> = now(connection).await?;
    for (id, folder) in folders(store).await? {
        if folder.manifest || folder.deleting {
            continue;
        }
        let key = ObjectKey::Backup { id: id.as_str(), file: BackupFile::Started };
        let started: Option<Started> = get_json(store, &id, &key.path()).await.unwrap_or_default();
        let is_ours = started.is_some_and(|started| started.database == identity);
        let is_old = folder.newest.is_none_or(|newest| newest + ABANDONED_AFTER < now);
        if !(is_ours || is_old) || !try_lock(connection, &id).await? {
            continue;
        }
        // Its maker may have ended well between our look and our lock.
        let finished = match manifest(store, &id).await {
            Ok(_) | Err(BackupError::Manifest { .. }) => true,
            Err(BackupError::NotFound(_)) => false,
            Err(error) => return Err(error),
        };
        if !finished {
            tracing::warn!(backup.id = %id, "deleting what is left of an unfinished backup");
            abort_uploads(store, &backup_folder(id.as_str())).await;
            store.remove_folder(&backup_folder(id.as_str())).await?;
        }
        unlock(connection, &id).await?;
    }
    Ok(())
}

/// Takes back parts that a killed process has uploaded. Some servers do not know the request: the
/// rest of the sweep is worth it, and the bucket's own rule for such parts is the net.
async fn abort_uploads(store: &Store, folder: &str) {
    let aborted = async {
        for upload in store.list_unfinished(folder).await? {
            store.abort_unfinished(&upload).await?;
        }
        Ok::<_, StoreError>(())
    };
    if let Err(error) = aborted.await {
        tracing::warn!(%error, folder, "cannot take back unfinished uploads");
    }
}

/// What tells one database from another.
pub(super) async fn identity(connection: &mut PgConnection) -> Result<String, BackupError> {
    sqlx::query_scalar(
        "select system_identifier::text || '/' || current_database() from pg_control_system()",
    )
    .fetch_one(connection)
    .await
    .map_err(BackupError::database("read the database's identity"))
}

/// How far the ledger is.
///
/// # Errors
/// [`BackupError::Store`]
pub async fn ledger_position(store: &Store) -> Result<LedgerPosition, BackupError> {
    let (erasures, holds) = (store.list(LEDGER_FOLDER).await?, store.list(HOLD_FOLDER).await?);
    Ok(LedgerPosition { erasures: erasures.len(), holds: holds.len() })
}

/// The database's time.
pub(super) async fn now(connection: &mut PgConnection) -> Result<DateTime<Utc>, BackupError> {
    sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(connection)
        .await
        .map_err(BackupError::database("read the clock"))
}

/// Locks a backup for the session: the server frees it when this process is gone.
pub(super) async fn lock(connection: &mut PgConnection, id: &BackupId) -> Result<(), BackupError> {
    sqlx::query("select pg_advisory_lock(hashtextextended('registrar backup ' || $1, 0))")
        .bind(id.as_str())
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(BackupError::database("lock the backup"))
}

pub(super) async fn try_lock(
    connection: &mut PgConnection,
    id: &BackupId,
) -> Result<bool, BackupError> {
    sqlx::query_scalar(
        "select pg_try_advisory_lock(hashtextextended('registrar backup ' || $1, 0))",
    )
    .bind(id.as_str())
    .fetch_one(connection)
    .await
    .map_err(BackupError::database("lock the backup"))
}

pub(super) async fn unlock(
    connection: &mut PgConnection,
    id: &BackupId,
) -> Result<(), BackupError> {
    sqlx::query("select pg_advisory_unlock(hashtextextended('registrar backup ' || $1, 0))")
        .bind(id.as_str())
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(BackupError::database("unlock the backup"))
}

/// Marks a backup as being read, until the value is dropped or the process is gone.
#[derive(Debug)]
pub(super) struct Reader {
    store: Store,
    path: ObjectPath,
    _renewing: DropGuard,
}

impl Reader {
    /// Marks it. `now` is the database's time.
    ///
    /// # Errors
    /// [`BackupError::Deleting`]
    pub(super) async fn enter(
        store: &Store,
        id: &BackupId,
        by: &'static str,
        now: DateTime<Utc>,
    ) -> Result<Self, BackupError> {
        let who = uuid::Uuid::new_v4().simple().to_string();
        let path = ObjectKey::Backup { id: id.as_str(), file: BackupFile::Use(&who) }.path();
        let begun = Instant::now();
        let mark = move || Use { by: by.to_owned(), expires_at: now + begun.elapsed() + USE_LASTS };
        put(store, &path, &mark()).await?;
        // Whoever deletes looks for readers after saying so, and we for that after the mark: one
        // of us sees the other.
        let ended = CancellationToken::new();
        let reader = Self {
            store: store.clone(),
            path: path.clone(),
            _renewing: ended.clone().drop_guard(),
        };
        if is_deleting(store, id).await? {
            reader.leave().await;
            return Err(BackupError::Deleting(id.clone()));
        }
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = ended.cancelled() => return,
                    () = tokio::time::sleep(USE_LASTS / 3) => {}
                }
                if let Err(error) = put(&store, &path, &mark()).await {
                    tracing::warn!(%error, "cannot renew the mark of a reader");
                }
            }
        });
        Ok(reader)
    }

    /// Takes the mark away.
    pub(super) async fn leave(self) {
        if let Err(error) = self.store.delete(&self.path).await {
            tracing::warn!(%error, "cannot take away the mark of a reader; it expires");
        }
    }
}

/// Whether a deletion was decided.
pub(super) async fn is_deleting(store: &Store, id: &BackupId) -> Result<bool, BackupError> {
    let key = ObjectKey::Backup { id: id.as_str(), file: BackupFile::Deleting };
    match store.head(&key.path()).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Who reads a backup just now.
pub(super) async fn uses(store: &Store, id: &BackupId) -> Result<Vec<Use>, BackupError> {
    let folder = folders(store).await?.remove(id).unwrap_or_default();
    all_json(store, id, &folder.uses).await
}

/// Adds a verification to a backup.
pub(super) async fn record(store: &Store, outcome: &Verification) -> Result<(), BackupError> {
    let at = outcome.verified_at.format("%Y%m%dT%H%M%S%.6fZ").to_string();
    put_json(store, &outcome.id, BackupFile::Verification(&at), outcome).await
}

/// Pins a backup.
///
/// # Errors
/// [`BackupError::NotFound`] and [`BackupError::Store`]
pub async fn pin(store: &Store, id: &BackupId, pin: &Pin) -> Result<(), BackupError> {
    manifest(store, id).await?;
    put_json(store, id, BackupFile::Pin(&pin.name), pin).await
}

/// Takes a pin away; `false`: there was none of this name.
///
/// # Errors
/// [`BackupError::Store`]
pub async fn unpin(store: &Store, id: &BackupId, name: &str) -> Result<bool, BackupError> {
    let path = ObjectKey::Backup { id: id.as_str(), file: BackupFile::Pin(name) }.path();
    match store.head(&path).await {
        Ok(_) => {
            store.delete(&path).await?;
            Ok(true)
        }
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn put_json<T: Serialize>(
    store: &Store,
    id: &BackupId,
    file: BackupFile<'_>,
    value: &T,
) -> Result<(), BackupError> {
    put(store, &ObjectKey::Backup { id: id.as_str(), file }.path(), value).await
}

async fn put<T: Serialize>(store: &Store, path: &ObjectPath, value: &T) -> Result<(), BackupError> {
    let text = serde_json::to_vec_pretty(value).expect("plain data is JSON");
    Ok(store.put(path, Bytes::from(text)).await?)
}

async fn get_json<T: DeserializeOwned>(
    store: &Store,
    id: &BackupId,
    path: &ObjectPath,
) -> Result<Option<T>, BackupError> {
    let bytes = match store.get(path).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let reason = |error: serde_json::Error| BackupError::Manifest {
        id: id.to_string(),
        reason: error.to_string(),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(reason)
}

async fn all_json<T: DeserializeOwned>(
    store: &Store,
    id: &BackupId,
    paths: &[ObjectPath],
) -> Result<Vec<T>, BackupError> {
    let mut all = Vec::with_capacity(paths.len());
    for path in paths {
        all.extend(get_json(store, id, path).await?);
    }
    Ok(all)
}
