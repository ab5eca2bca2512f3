//! A streamed upload with a bounded number of parts in flight.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
use tokio::task::JoinSet;

use super::StoreError;

/// Parts on their way at once: one is sent while the next is being made. More would only cost
/// memory, because the writer is one thread.
const MAX_PARTS_IN_FLIGHT: usize = 2;
/// How long parts on their way may take to arrive before their upload is taken back: a part that
/// arrives during the abort may be kept (and billed) for ever.
const ABORT_PATIENCE: Duration = Duration::from_secs(3);

/// An upload under way. [`Upload::complete`] makes the object visible; anything else must end in
/// [`Upload::abort`], because S3 keeps (and bills) the parts of an upload that is just dropped.
pub struct Upload {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// Held back: an object of one part is written by a single request.
    first: Option<Bytes>,
    multipart: Option<Box<dyn MultipartUpload>>,
    /// Tasks of their own, so that parts travel while the next one is being made.
    in_flight: JoinSet<object_store::Result<()>>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) fn new(store: Arc<dyn ObjectStore>, path: Path) -> Self {
        Self { store, path, first: None, multipart: None, in_flight: JoinSet::new() }
    }

    /// Where the object will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a part. Every part but the last must have the store's `part_bytes`. Returns when at
    /// most `MAX_PARTS_IN_FLIGHT` are on their way.
    ///
    /// # Errors
    /// The failure of this part or of an earlier one; the upload must then be aborted.
    pub async fn put(&mut self, part: Bytes) -> Result<(), StoreError> {
        if self.multipart.is_none() && self.first.is_none() {
            self.first = Some(part);
            return Ok(());
        }
        if self.multipart.is_none() {
            let multipart = self.store.put_multipart(&self.path).await;
            self.multipart = Some(multipart.map_err(|error| self.failed(error))?);
        }
        if let Some(first) = self.first.take() {
            self.send(first).await?;
        }
        self.send(part).await
    }

    async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        let multipart = self.multipart.as_mut().expect("put made the upload before sending");
        self.in_flight.spawn(multipart.put_part(part.into()));
        while self.in_flight.len() > MAX_PARTS_IN_FLIGHT {
            self.settle_one().await?;
        }
        Ok(())
    }

    async fn settle_one(&mut self) -> Result<(), StoreError> {
        match self.in_flight.join_next().await {
            Some(Ok(sent)) => sent.map_err(|error| self.failed(error)),
            Some(Err(source)) => Err(self.failed(object_store::Error::JoinError { source })),
            None => Ok(()),
        }
    }

    /// Sends what remains and makes the object visible.
    ///
    /// # Errors
    /// [`StoreError::Request`]; the object is then not there, and the upload must be aborted.
    pub async fn complete(&mut self) -> Result<(), StoreError> {
        while !self.in_flight.is_empty() {
            self.settle_one().await?;
        }
        let done = match self.multipart.as_mut() {
            Some(multipart) => multipart.complete().await,
            None => {
                let whole = self.first.take().unwrap_or_default();
                self.store.put(&self.path, whole.into()).await
            }
        };
        done.map(|_| ()).map_err(|error| self.failed(error))
    }

    /// Takes back what was sent. Failures are logged: the caller has a better error to report.
    pub async fn abort(&mut self) {
        let arriving = async { while self.in_flight.join_next().await.is_some() {} };
        let _all_arrived = tokio::time::timeout(ABORT_PATIENCE, arriving).await;
        self.in_flight.shutdown().await;
        if let Some(mut multipart) = self.multipart.take()
            && let Err(error) = multipart.abort().await
        {
            tracing::warn!(path = %self.path, %error, "cannot abort an upload");
        }
    }

    fn failed(&self, error: object_store::Error) -> StoreError {
        StoreError::request("write", &self.path, error)
    }
}
