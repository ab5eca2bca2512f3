//! A streamed upload with a bounded number of parts in flight.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
use tokio::sync::Mutex;
use tokio::task::{JoinError, JoinHandle, JoinSet};

use super::StoreError;

/// Parts on their way at once: one is sent while the next is being made. More would only cost
/// memory, because the writer is one thread.
const MAX_PARTS_IN_FLIGHT: usize = 2;
/// How long requests on their way may take before their upload is taken back: a part that arrives
/// during the abort may be kept (and billed) for ever, and an object that is completed after it
/// would be there for nobody.
const ABORT_PATIENCE: Duration = Duration::from_secs(3);

/// An upload under way. [`Upload::complete`] makes the object visible; anything else must end in
/// [`Upload::abort`], because S3 keeps (and bills) the parts of an upload that is just dropped.
///
/// Every request is a task of its own. A caller may drop [`Upload::put`] and [`Upload::complete`]
/// at any moment; the server would go on with a request whose client has left, so the abort waits
/// for what it did.
pub struct Upload {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// Held back: an object of one part is written by a single request.
    first: Option<Bytes>,
    beginning: Option<JoinHandle<object_store::Result<Box<dyn MultipartUpload>>>>,
    /// Shared with the task that completes it.
    multipart: Option<Arc<Mutex<Box<dyn MultipartUpload>>>>,
    /// Parts travel while the next one is being made.
    in_flight: JoinSet<object_store::Result<()>>,
    completing: Option<JoinHandle<object_store::Result<()>>>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) fn new(store: Arc<dyn ObjectStore>, path: Path) -> Self {
        Self {
            store,
            path,
            first: None,
            beginning: None,
            multipart: None,
            in_flight: JoinSet::new(),
            completing: None,
        }
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
            self.begin().await?;
        }
        if let Some(first) = self.first.take() {
            self.send(first).await?;
        }
        self.send(part).await
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        let (store, path) = (Arc::clone(&self.store), self.path.clone());
        let beginning = tokio::spawn(async move { store.put_multipart(&path).await });
        let begun = self.beginning.insert(beginning).await;
        self.beginning = None;
        let multipart = outcome(begun).map_err(|error| self.failed(error))?;
        self.multipart = Some(Arc::new(Mutex::new(multipart)));
        Ok(())
    }

    async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        let multipart = self.multipart.as_ref().expect("put made the upload before sending");
        self.in_flight.spawn(multipart.lock().await.put_part(part.into()));
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
        let completing = match &self.multipart {
            Some(multipart) => {
                let multipart = Arc::clone(multipart);
                tokio::spawn(async move { multipart.lock().await.complete().await.map(|_| ()) })
            }
            None => {
                let whole = self.first.take().unwrap_or_default();
                let (store, path) = (Arc::clone(&self.store), self.path.clone());
                tokio::spawn(async move { store.put(&path, whole.into()).await.map(|_| ()) })
            }
        };
        let completed = self.completing.insert(completing).await;
        self.completing = None;
        outcome(completed).map_err(|error| self.failed(error))
    }

    /// Takes back what was sent. An object that is whole stays: its caller knows whether it is
    /// wanted. Failures are logged: the caller has a better error to report.
    pub async fn abort(&mut self) {
        let is_whole = tokio::time::timeout(ABORT_PATIENCE, self.arrived()).await.unwrap_or(false);
        if let Some(beginning) = self.beginning.take() {
            beginning.abort();
        }
        if let Some(completing) = self.completing.take() {
            completing.abort();
        }
        self.in_flight.shutdown().await;
        if let Some(multipart) = self.multipart.take()
            && !is_whole
            && let Err(error) = multipart.lock().await.abort().await
        {
            tracing::warn!(path = %self.path, %error, "cannot abort an upload");
        }
    }

    /// Waits for every request on its way. Answers whether one of them completed the object.
    async fn arrived(&mut self) -> bool {
        if let Some(beginning) = &mut self.beginning
            && let Ok(Ok(multipart)) = beginning.await
        {
            self.multipart = Some(Arc::new(Mutex::new(multipart)));
        }
        self.beginning = None;
        while self.in_flight.join_next().await.is_some() {}
        match &mut self.completing {
            Some(completing) => {
                let completed = completing.await;
                self.completing = None;
                matches!(completed, Ok(Ok(())))
            }
            None => false,
        }
    }

    fn failed(&self, error: object_store::Error) -> StoreError {
        StoreError::request("write", &self.path, error)
    }
}

/// What a task of an upload came to. A panic in it is a panic here, as if it were no task.
fn outcome<T>(joined: Result<object_store::Result<T>, JoinError>) -> object_store::Result<T> {
    match joined {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(source) => Err(object_store::Error::JoinError { source }),
    }
}
