//! Results: rights are checked at the moment of the download, and each download is recorded.

use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use serde_json::json;

use super::deletions::Deletions;
use super::executions::{find, typed};
use super::{Caller, Permission, ServiceError, Services};
use crate::db::audit::{self, Actor};
use crate::db::definitions;
use crate::db::executions::{self, Execution, Expiring, Status};
use crate::report::Presentation;
use crate::store::key::execution_folder;
use crate::store::{AttemptKey, ByteRange, ObjectKey, ObjectPath, Reading};
use crate::writer::{FileType, Format};

/// Results listed in one statement, and statements of one pass; the next pass comes soon.
const EXPIRE_BATCH: i64 = 500;
const MAX_EXPIRE_BATCHES: u32 = 200;
/// How long a link to the store is good: long enough to follow it, too short to pass it on.
const LINK_FOR: Duration = Duration::from_secs(60);

/// What a pass of expiry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiredResults {
    /// Results whose files are gone and whose executions say so.
    pub expired: u64,
    /// Results past their time that the store did not delete; the next pass tries again.
    pub stuck: u64,
}

/// A result that may be read.
#[derive(Debug)]
pub struct ResultFile {
    /// Name for the reader's disk; says so if the file was cut.
    pub file_name: String,
    /// Its format and compression: the media type and the extension.
    pub file_type: FileType,
    /// Size of the whole file.
    pub size_bytes: u64,
    /// SHA-256 of the whole file, in hex.
    pub sha256: String,
    path: ObjectPath,
}

impl ResultFile {
    /// Where it is.
    pub(super) fn path(&self) -> &ObjectPath {
        &self.path
    }
}

impl Services {
    /// Finds the result of an execution, and records that the caller fetches it.
    ///
    /// # Errors
    /// [`ServiceError::WrongState`] while there is none, [`ServiceError::Expired`] when it is gone.
    pub async fn result(&self, caller: &Caller, id: i64) -> Result<ResultFile, ServiceError> {
        let file = self.find_result(caller, id).await?;
        self.record_download(caller, id).await?;
        Ok(file)
    }

    /// Finds the result of an execution, without recording anything: for those who only want to
    /// know of it. Who goes on to read it calls [`Services::record_download`] first.
    ///
    /// # Errors
    /// As [`Services::result`].
    pub async fn find_result(&self, caller: &Caller, id: i64) -> Result<ResultFile, ServiceError> {
        let execution = self.readable(caller, id).await?;
        let (Some(path), Some(size), Some(sha256)) =
            (&execution.result_file_path, execution.size_bytes, &execution.sha256)
        else {
            return Err(ServiceError::NotFound { what: "result" });
        };
        let file_type = file_type_of(&execution)?;
        Ok(ResultFile {
            file_name: file_name(&execution.slug, id, file_type, execution.truncated),
            file_type,
            size_bytes: u64::try_from(size).unwrap_or_default(),
            sha256: sha256.clone(),
            path: ObjectPath::from(path.as_str()),
        })
    }

    /// Records that the caller fetches a result.
    ///
    /// # Errors
    /// The database's.
    pub async fn record_download(&self, caller: &Caller, id: i64) -> Result<(), ServiceError> {
        let event = audit::Event {
            action: "execution.downloaded",
            entity_type: "report_executions",
            entity_id: Some(id),
            details: json!({ "trace_id": caller.trace_id }),
        };
        let mut connection = self.db.acquire().await?;
        audit::record(&mut connection, &caller.actor, event).await?;
        Ok(())
    }

    /// Reads a result, or a range of it.
    ///
    /// # Errors
    /// [`ServiceError::StoreUnavailable`], and [`ServiceError::Internal`] when the object is not
    /// as large as the file that was published: better no answer than another file.
    pub async fn read_result(
        &self,
        file: &ResultFile,
        range: Option<ByteRange>,
    ) -> Result<Reading, ServiceError> {
        let reading = self.store.read(&file.path, range).await?;
        let (found, published) = (reading.size_bytes(), file.size_bytes);
        if found != published {
            let fault = anyhow::anyhow!("{} has {found} bytes, not {published}", file.path);
            return Err(ServiceError::Internal(fault));
        }
        Ok(reading)
    }

    /// A link with which anybody fetches a result from the store, for a minute; `None` where the
    /// settings or the store do not allow for links. `disposition` is sent with the file.
    ///
    /// # Errors
    /// As [`Services::read_result`].
    pub async fn link_result(
        &self,
        file: &ResultFile,
        disposition: &str,
    ) -> Result<Option<String>, ServiceError> {
        if !self.config.store.signed_links {
            return Ok(None);
        }
        let media_type = file.file_type.media_type();
        let Some(link) = self.store.link(&file.path, LINK_FOR, disposition, media_type).await?
        else {
            return Ok(None);
        };
        let (found, published) = (self.store.head(&file.path).await?.size, file.size_bytes);
        if found != published {
            let fault = anyhow::anyhow!("{} has {found} bytes, not {published}", file.path);
            return Err(ServiceError::Internal(fault));
        }
        Ok(Some(link))
    }

    /// Reads the manifest of an execution: JSON, see [`crate::report::manifest::Manifest`].
    ///
    /// # Errors
    /// As [`Services::result`].
    pub async fn manifest(&self, caller: &Caller, id: i64) -> Result<Bytes, ServiceError> {
        let execution = self.readable(caller, id).await?;
        // A shared result is described by the manifest of the execution that made it.
        let maker = match execution.shared_from {
            Some(leader) => find(&mut *self.db.acquire().await?, leader).await?,
            None => execution,
        };
        let key = AttemptKey {
            created_at: maker.created_at,
            execution: maker.id,
            attempt: maker.attempt,
            slug: &maker.slug,
        };
        Ok(self.store.get(&ObjectKey::Manifest(key).path()).await?)
    }

    /// Deletes the result of a completed execution before its time. The row stays, as expired. The
    /// state turns first, so that nobody shares a result that is going; a file that a crash leaves
    /// then is the sweep's.
    ///
    /// # Errors
    /// [`ServiceError::WrongState`] where there is no result to delete.
    pub async fn delete_result(&self, caller: &Caller, id: i64) -> Result<Execution, ServiceError> {
        caller.require_following()?;
        let mut tx = self.db.begin().await?;
        let execution = self.visible(&mut tx, caller, id).await?;
        if execution.executed_by.is_none() || execution.executed_by != caller.user_id {
            caller.require(Permission::ExecutionsCancelAll)?;
        }
        match execution.status {
            Status::Completed | Status::Expired => {}
            status @ (Status::Pending
            | Status::Processing
            | Status::Cancelling
            | Status::Failed
            | Status::Cancelled) => return Err(ServiceError::WrongState { status }),
        }
        executions::lock_sharing(&mut tx, id).await?;
        if executions::expire_now(&mut tx, id).await? {
            let event = audit::Event {
                action: "execution.result_deleted",
                entity_type: "report_executions",
                entity_id: Some(id),
                details: json!({ "trace_id": caller.trace_id }),
            };
            audit::record(&mut tx, &caller.actor, event).await?;
        }
        let maker = find(&mut tx, execution.shared_from.unwrap_or(id)).await?;
        let is_shared = executions::is_shared(&mut tx, maker.id).await?;
        let execution = find(&mut tx, id).await?;
        tx.commit().await?;
        if !is_shared {
            self.store.remove_folder(&execution_folder(maker.created_at, maker.id)).await?;
        }
        self.remove_copies(id).await?;
        Ok(execution)
    }

    /// Deletes results whose time is over: the files first, then the state, so that a crash in
    /// between leaves nothing orphaned. A result that the store does not delete stays, and does not
    /// keep those behind it.
    ///
    /// # Errors
    /// The database's; what was done before stays done.
    pub async fn expire_results(&self) -> Result<ExpiredResults, ServiceError> {
        let mut deletions = self.deletions();
        let mut expired = 0;
        let mut after = None;
        for _ in 0..MAX_EXPIRE_BATCHES {
            let batch = executions::list_expiring(&self.db, after, EXPIRE_BATCH).await?;
            let Some(last) = batch.last() else { break };
            after = Some((last.expires_at, last.id));
            for due in batch {
                expired += u64::from(self.expire_result(&due, &mut deletions).await?);
            }
        }
        Ok(ExpiredResults { expired, stuck: deletions.stuck() })
    }

    async fn expire_result(
        &self,
        due: &Expiring,
        deletions: &mut Deletions,
    ) -> Result<bool, ServiceError> {
        let mut folders = vec![execution_folder(due.created_at, due.id)];
        folders.extend(self.copy_folders(due.id).await?);
        for folder in folders {
            if !deletions.try_one(self.store.remove_folder(&folder)).await {
                return Ok(false);
            }
        }
        let mut tx = self.db.begin().await?;
        let is_expired = executions::expire(&mut tx, due.id).await?;
        if is_expired {
            let event = audit::Event {
                action: "execution.expired",
                entity_type: "report_executions",
                entity_id: Some(due.id),
                details: json!({}),
            };
            audit::record(&mut tx, &Actor::system(), event).await?;
        }
        tx.commit().await?;
        Ok(is_expired)
    }

    pub(super) fn deletions(&self) -> Deletions {
        Deletions::new(Duration::from_secs(self.config.store.request_timeout_secs.get()))
    }

    /// A completed execution whose result the caller may read now: it is theirs or they may see
    /// all, and they still hold the permission that the report asks for.
    pub(super) async fn readable(
        &self,
        caller: &Caller,
        id: i64,
    ) -> Result<Execution, ServiceError> {
        caller.require_following()?;
        let mut connection = self.db.acquire().await?;
        let execution = self.visible(&mut connection, caller, id).await?;
        if let Some(stored) = definitions::find_by_slug(&mut connection, &execution.slug).await?
            && let Some(permission) = typed(&stored)?.permission()
        {
            caller.require_codename(permission)?;
        }
        match execution.status {
            Status::Completed => Ok(execution),
            Status::Expired => Err(ServiceError::Expired),
            status @ (Status::Pending
            | Status::Processing
            | Status::Cancelling
            | Status::Failed
            | Status::Cancelled) => Err(ServiceError::WrongState { status }),
        }
    }
}

/// The name of a result for people: `gpa-ranking-71.csv`, `gpa-ranking-71.truncated.csv.gz`.
pub fn file_name(slug: &str, id: i64, file_type: FileType, truncated: bool) -> String {
    let cut = if truncated { ".truncated" } else { "" };
    format!("{slug}-{id}{cut}.{}", file_type.extension())
}

fn file_type_of(execution: &Execution) -> Result<FileType, ServiceError> {
    let stored = |error: anyhow::Error| ServiceError::Internal(error.context("stored file type"));
    let format: Format = execution.format.parse().map_err(|error| stored(anyhow!("{error}")))?;
    let presentation: Presentation =
        serde_json::from_value(execution.options.clone()).map_err(|error| stored(error.into()))?;
    presentation.file_type(format).map_err(|error| stored(error.into()))
}
