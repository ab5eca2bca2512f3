//! Deletes backups that have expired.
//!
//! A deletion is decided by an object, `deleting.json`, which is written before the first file
//! goes and deleted after the last: from then on the backup is none, and whoever prunes next goes
//! on where a killed process or an ill store stopped.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::catalog::{self, Catalog};
use super::error::BackupError;
use super::keep::{self, Candidate, Decision, Tiers};
use super::manifest::{BackupId, Deleting};
use crate::store::key::backup_folder;
use crate::store::{BackupFile, ObjectKey, Store};

/// Deletions that one run begins; the rest is the next one's.
const MAX_DELETIONS: usize = 1_000;

/// What a run decided and did.
#[derive(Debug, Default, Serialize)]
pub struct Pruned {
    /// About every backup, the oldest first.
    pub decisions: Vec<Decision>,
    /// Those that are gone now.
    pub deleted: Vec<BackupId>,
    /// Those that could not be deleted yet, and why: the next run tries again.
    pub failed: Vec<(BackupId, String)>,
    /// Those that could not be read; they are kept.
    pub unreadable: Vec<(BackupId, String)>,
    /// Nothing was deleted.
    pub dry_run: bool,
}

/// Decides, and deletes what has expired. `now` is the database's time.
///
/// # Errors
/// The catalog cannot be read. That something could not be deleted is in [`Pruned::failed`].
pub async fn prune(
    store: &Store,
    tiers: &Tiers,
    now: DateTime<Utc>,
    dry_run: bool,
) -> Result<Pruned, BackupError> {
    let Catalog { entries, deleting, unfinished: _, unreadable } = catalog::read(store).await?;
    let candidates: Vec<_> = entries.iter().map(|entry| Candidate::new(entry, now)).collect();
    let decisions = keep::plan_all(&candidates, tiers, now);
    let mut pruned = Pruned { unreadable, dry_run, ..Pruned::default() };
    if !dry_run {
        for (id, state) in deleting {
            pruned.note(&id, go_on(store, &id, state).await);
        }
        let expired = decisions.iter().filter(|decision| !decision.is_kept()).take(MAX_DELETIONS);
        for decision in expired {
            let reason = decision.expired.clone().unwrap_or_default();
            let state = Deleting { decided_at: now, reason, attempts: 0, last_error: None };
            pruned.note(&decision.id, begin(store, &decision.id, state, now).await);
        }
    }
    pruned.decisions = decisions;
    Ok(pruned)
}

impl Pruned {
    fn note(&mut self, id: &BackupId, outcome: Result<bool, BackupError>) {
        match outcome {
            Ok(true) => self.deleted.push(id.clone()),
            Ok(false) => {}
            Err(error) => self.failed.push((id.clone(), error.to_string())),
        }
    }
}

/// Decides a deletion, and carries it out unless somebody began to read meanwhile.
async fn begin(
    store: &Store,
    id: &BackupId,
    state: Deleting,
    now: DateTime<Utc>,
) -> Result<bool, BackupError> {
    catalog::put_json(store, id, BackupFile::Deleting, &state).await?;
    let readers = catalog::uses(store, id).await?;
    if readers.iter().any(|reader| reader.expires_at > now) {
        store
            .delete(&ObjectKey::Backup { id: id.as_str(), file: BackupFile::Deleting }.path())
            .await?;
        return Ok(false);
    }
    go_on(store, id, state).await
}

/// Deletes the files, the mark last.
async fn go_on(store: &Store, id: &BackupId, state: Deleting) -> Result<bool, BackupError> {
    match delete_files(store, id).await {
        Ok(()) => Ok(true),
        Err(error) => {
            let state = Deleting {
                attempts: state.attempts + 1,
                last_error: Some(error.to_string()),
                ..state
            };
            // The mark is there already; only its count would be old.
            if let Err(error) = catalog::put_json(store, id, BackupFile::Deleting, &state).await {
                tracing::warn!(backup.id = %id, %error, "cannot note a failed deletion");
            }
            Err(error)
        }
    }
}

async fn delete_files(store: &Store, id: &BackupId) -> Result<(), BackupError> {
    let folder = backup_folder(id.as_str());
    let mark = ObjectKey::Backup { id: id.as_str(), file: BackupFile::Deleting }.path();
    for object in store.list(&folder).await? {
        if object.location != mark {
            store.delete(&object.location).await?;
        }
    }
    store.delete(&mark).await?;
    // A folder on a disk, and what cut-off uploads left in it.
    Ok(store.remove_folder(&folder).await?)
}
