//! The sweep: what is in the store for nobody, and what should be there and is not.
//!
//! Whether a file is somebody's is told by its execution's row, not by its age: only the current
//! attempt of a running execution can still be published, and attempts only grow. So what an
//! earlier attempt left goes at once. A file without any row goes when it is older than the safe
//! age, and only while such files are few: where they are many, this is another database's store,
//! or a restored one, and a person must look.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use serde::Serialize;
use serde_json::json;

use super::deletions::Deletions;
use super::{ServiceError, Services};
use crate::db::audit::{self, Actor};
use crate::db::executions::{self, FileOwner, Status};
use crate::store::key::{RESULTS, attempt_of};
use crate::store::{ObjectPath, StoreError};

/// Files, and rows, looked at in one statement.
const BATCH: usize = 1_000;
/// Names that a report of a sweep holds; the counts hold all.
const MAX_NAMED: usize = 100;
/// More files than this without a row, and more than a tenth of all, are not deleted.
const FEW: u64 = 100;

/// What a sweep found, and whether it acted.
#[derive(Debug, Default, Serialize)]
pub struct Swept {
    /// Whether what was found was deleted too.
    pub deleted: bool,
    /// Whether the sweep came to its end; what is below is what it saw until then.
    pub finished: bool,
    /// Files that were looked at.
    pub files: u64,
    /// Files that belong to nobody.
    pub orphaned_files: u64,
    /// Their bytes.
    pub orphaned_bytes: u64,
    /// Files whose execution is not in the database, and that were left because they are too many.
    pub foreign_files: u64,
    /// Files with names that are not ours; never deleted.
    pub unknown_files: u64,
    /// Uploads that were begun and not ended, by nobody who still works.
    pub unfinished_uploads: u64,
    /// Whether the store could tell of unfinished uploads.
    pub uploads_listed: bool,
    /// Files and uploads counted above that the store did not delete; the next sweep tries again.
    pub stuck: u64,
    /// Completed executions whose file is not there.
    pub missing_files: u64,
    /// The first of the files that belong to nobody.
    pub orphans: Vec<String>,
    /// The first of the executions whose file is not there.
    pub missing: Vec<i64>,
}

impl Swept {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.orphaned_files + self.unfinished_uploads + self.missing_files + self.foreign_files == 0
    }
}

/// A file that nobody can publish or read any more.
struct Orphan {
    path: ObjectPath,
    bytes: u64,
    /// Whether its execution is in the database.
    has_row: bool,
}

impl Services {
    /// Looks for files without rows, rows without files and uploads without workers below
    /// `results/`. With `delete`, files and uploads that belong to nobody go.
    ///
    /// What the store does not delete is left, told and counted: the rest is not to wait for it.
    ///
    /// # Errors
    /// The database's, and the store's where it does not tell what it has; what was deleted before
    /// stays deleted.
    pub async fn sweep(&self, actor: &Actor, delete: bool) -> Result<Swept, ServiceError> {
        let mut swept = Swept { deleted: delete, ..Swept::default() };
        let ended = self.sweep_all(&mut swept).await;
        swept.finished = ended.is_ok();
        if let Ok(began) = &ended {
            report(&swept, *began);
        }
        // Also of a sweep that broke off: what it deleted is deleted.
        if !swept.is_clean() {
            let event = audit::Event {
                action: "store.swept",
                entity_type: "report_executions",
                entity_id: None,
                details: json!(swept),
            };
            let recorded = audit::record(&mut *self.db.acquire().await?, actor, event).await;
            ended.and(recorded.map_err(Into::into))?;
        } else {
            ended?;
        }
        Ok(swept)
    }

    /// Returns when it began.
    async fn sweep_all(&self, swept: &mut Swept) -> Result<DateTime<Utc>, ServiceError> {
        let now: DateTime<Utc> = sqlx::query_scalar("select now()").fetch_one(&self.db).await?;
        let old = now - TimeDelta::hours(i64::from(self.config.store.sweep_after_hours.get()));
        let mut listed = HashSet::new();
        let orphans = self.find_orphans(old, swept, &mut listed).await?;
        let mut deletions = self.deletions();
        self.delete_orphans(orphans, swept, &mut deletions).await;
        self.sweep_uploads(old, swept, &mut deletions).await?;
        swept.stuck = deletions.stuck();
        self.find_missing(now, &listed, swept).await?;
        Ok(now)
    }

    async fn find_orphans(
        &self,
        old: DateTime<Utc>,
        swept: &mut Swept,
        listed: &mut HashSet<u64>,
    ) -> Result<Vec<Orphan>, ServiceError> {
        let mut orphans = Vec::new();
        let mut objects = self.store.stream(RESULTS).try_chunks(BATCH);
        while let Some(objects) =
            objects.try_next().await.map_err(|error| StoreError::listing(RESULTS, error.1))?
        {
            let ids: Vec<i64> =
                objects.iter().filter_map(|o| Some(attempt_of(&o.location)?.0)).collect();
            let owners = self.owners(&ids).await?;
            for object in objects {
                swept.files += 1;
                listed.insert(hash(object.location.as_ref()));
                let Some((id, attempt)) = attempt_of(&object.location) else {
                    swept.unknown_files += 1;
                    continue;
                };
                let owner = owners.get(&id);
                let is_orphan = match owner {
                    Some(owner) => !may_be_read(owner, attempt, object.location.as_ref()),
                    None => object.last_modified < old,
                };
                if is_orphan {
                    let has_row = owner.is_some();
                    orphans.push(Orphan { path: object.location, bytes: object.size, has_row });
                }
            }
        }
        Ok(orphans)
    }

    async fn owners(&self, ids: &[i64]) -> Result<BTreeMap<i64, FileOwner>, ServiceError> {
        let owners = executions::find_file_owners(&self.db, ids).await?;
        Ok(owners.into_iter().map(|owner| (owner.id, owner)).collect())
    }

    async fn delete_orphans(
        &self,
        orphans: Vec<Orphan>,
        swept: &mut Swept,
        deletions: &mut Deletions,
    ) {
        let without_row = orphans.iter().filter(|orphan| !orphan.has_row).count() as u64;
        let are_foreign = without_row > FEW && without_row > swept.files / 10;
        for orphan in orphans {
            if !orphan.has_row && are_foreign {
                swept.foreign_files += 1;
                continue;
            }
            swept.orphaned_files += 1;
            swept.orphaned_bytes += orphan.bytes;
            if swept.orphans.len() < MAX_NAMED {
                swept.orphans.push(orphan.path.to_string());
            }
            if swept.deleted {
                deletions.try_one(self.store.delete(&orphan.path)).await;
            }
        }
    }

    async fn sweep_uploads(
        &self,
        old: DateTime<Utc>,
        swept: &mut Swept,
        deletions: &mut Deletions,
    ) -> Result<(), ServiceError> {
        let uploads = match self.store.list_unfinished(RESULTS).await {
            Ok(uploads) => uploads,
            Err(error) => {
                // Some servers do not know the request: the rest of the sweep is worth it.
                let why = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, why, "cannot list unfinished uploads");
                return Ok(());
            }
        };
        swept.uploads_listed = true;
        for uploads in uploads.chunks(BATCH) {
            let ids: Vec<i64> =
                uploads.iter().filter_map(|upload| Some(attempt_of(&upload.path)?.0)).collect();
            let owners = self.owners(&ids).await?;
            for upload in uploads {
                let is_orphan = match attempt_of(&upload.path) {
                    Some((id, attempt)) => match owners.get(&id) {
                        Some(owner) => !is_running(owner, attempt),
                        None => upload.since < old,
                    },
                    None => false,
                };
                if is_orphan {
                    swept.unfinished_uploads += 1;
                    if swept.deleted {
                        deletions.try_one(self.store.abort_unfinished(upload)).await;
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks for completed executions whose file was not listed, and is not there when asked for.
    async fn find_missing(
        &self,
        began: DateTime<Utc>,
        listed: &HashSet<u64>,
        swept: &mut Swept,
    ) -> Result<(), ServiceError> {
        let mut after = 0;
        loop {
            let results = executions::list_results(&self.db, after, began, BATCH).await?;
            let Some((last, _)) = results.last() else { return Ok(()) };
            after = *last;
            for (id, path) in results {
                if listed.contains(&hash(&path)) {
                    continue;
                }
                match self.store.head(&ObjectPath::from(path.as_str())).await {
                    Ok(_) => {}
                    Err(StoreError::NotFound(_)) => {
                        swept.missing_files += 1;
                        if swept.missing.len() < MAX_NAMED {
                            swept.missing.push(id);
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

fn is_running(owner: &FileOwner, attempt: i32) -> bool {
    match owner.status {
        Status::Processing | Status::Cancelling => owner.attempt == attempt,
        Status::Pending
        | Status::Completed
        | Status::Failed
        | Status::Cancelled
        | Status::Expired => false,
    }
}

/// Whether a file of an attempt is published, or may still be.
fn may_be_read(owner: &FileOwner, attempt: i32, path: &str) -> bool {
    let folder = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    is_running(owner, attempt)
        || owner.paths.iter().any(|published| folder(published) == folder(path))
}

fn hash(path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn report(swept: &Swept, began: DateTime<Utc>) {
    let gauge = |found: &'static str, count: u64| {
        metrics::gauge!("registrar_sweep_found", "what" => found).set(count as f64);
    };
    gauge("orphaned_files", swept.orphaned_files);
    gauge("foreign_files", swept.foreign_files);
    gauge("unfinished_uploads", swept.unfinished_uploads);
    gauge("missing_files", swept.missing_files);
    // Tells which worker's look is the newest: each keeps what it saw last.
    metrics::gauge!("registrar_sweep_timestamp_seconds").set(began.timestamp() as f64);
    metrics::counter!("registrar_sweeps_total").increment(1);
    let &Swept { files, orphaned_files, unfinished_uploads, stuck, .. } = swept;
    let &Swept { missing_files, foreign_files, .. } = swept;
    if swept.is_clean() {
        tracing::debug!(files, "swept the store: all is in order");
    } else {
        tracing::warn!(
            files,
            orphaned_files,
            unfinished_uploads,
            stuck,
            missing_files,
            foreign_files,
            deleted = swept.deleted,
            "swept the store"
        );
    }
}
