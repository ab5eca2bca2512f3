//! Object storage: a local folder or an S3 server behind one type.
//!
//! What is promised: an object is visible only when it is whole, because uploads are multipart
//! (staged beside the target on a local disk) and are completed in one step; an upload that fails
//! is aborted. What is not: exclusiveness. Some S3 servers ignore conditional puts, so "exactly
//! once" rests on the attempt in the key and on the guarded statement in PostgreSQL.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{HttpConnector, ReqwestConnector};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, RetryConfig, UpdateVersion,
};
use secrecy::ExposeSecret;

use crate::config::StoreConfig;

pub mod key;
mod link;
mod unfinished;
mod upload;

use unfinished::{S3Uploads, Uploads};

/// Bytes of an object to read: from, up to, or the last so many.
pub use object_store::GetRange as ByteRange;
/// Where an object is.
pub use object_store::path::Path as ObjectPath;

pub use key::{
    AttemptKey, BackupFile, CERTIFICATE_FOLDER, HOLD_FOLDER, HoldKey, LEDGER_FOLDER, LedgerKey,
    ObjectKey, PhysicalFile, execution_folder, foreign_object, physical_folder,
};
pub use unfinished::UnfinishedUpload;
pub use upload::Upload;

/// A part of an upload to a folder. A disk has no least size of a part; one that fits into the
/// processor's cache is still there when it is copied, which a large one is not.
const LOCAL_PART_BYTES: usize = 512 * 1024;

/// How long an S3 server may take to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `store.url` or a setting beside it cannot be used.
    #[error("{0}")]
    Settings(String),
    /// No object has this key.
    #[error("no object `{0}`")]
    NotFound(ObjectPath),
    /// The store refused or did not answer.
    #[error("the object store failed to {action} `{path}`")]
    Request {
        /// What was asked.
        action: &'static str,
        /// Of which object.
        path: ObjectPath,
        /// Why.
        #[source]
        source: object_store::Error,
    },
}

impl StoreError {
    /// A listing below a folder broke off.
    pub fn listing(folder: &str, source: object_store::Error) -> Self {
        Self::request("list", &ObjectPath::from(folder), source)
    }

    fn request(action: &'static str, path: &ObjectPath, source: object_store::Error) -> Self {
        match source {
            object_store::Error::NotFound { .. } => Self::NotFound(path.clone()),
            source => Self::Request { action, path: path.clone(), source },
        }
    }
}

/// Object storage. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    part_bytes: usize,
    /// The folder of a local store: uploads that were cut off leave files there that are no
    /// objects.
    local_root: Option<PathBuf>,
    uploads: Uploads,
}

impl Store {
    /// Opens the store that the settings name. A local folder is made when it is missing.
    ///
    /// # Errors
    /// [`StoreError::Settings`] naming the key.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        if let Some(location) = config.url.strip_prefix("s3://") {
            let ((inner, uploads), part_bytes) = (s3(location, config)?, config.part_bytes);
            return Ok(Self { inner, part_bytes, local_root: None, uploads });
        }
        let (inner, root) = local(&config.url)?;
        let part_bytes = config.part_bytes.min(LOCAL_PART_BYTES);
        let uploads = Uploads::Folder(root.clone());
        Ok(Self { inner, part_bytes, local_root: Some(root), uploads })
    }

    /// A store over any implementation: tests put one that fails here.
    pub fn from_object_store(inner: Arc<dyn ObjectStore>, part_bytes: usize) -> Self {
        Self { inner, part_bytes, local_root: None, uploads: Uploads::Unknown }
    }

    /// Size of one part of an upload.
    pub fn part_bytes(&self) -> usize {
        self.part_bytes
    }

    /// Starts an upload. Nothing is visible before [`Upload::complete`].
    pub fn upload(&self, path: ObjectPath) -> Upload {
        Upload::new(Arc::clone(&self.inner), path)
    }

    /// Writes a small object in one request.
    ///
    /// # Errors
    /// [`StoreError::Request`]
    pub async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<(), StoreError> {
        let put = self.inner.put(path, bytes.into()).await;
        put.map(|_| ()).map_err(|error| StoreError::request("write", path, error))
    }

    /// Writes a small object over the version that was read, or anew where none was. `false`:
    /// somebody else was faster. A store that knows no such condition (a folder) just writes: the
    /// caller holds a lock of its own.
    ///
    /// # Errors
    /// [`StoreError::Request`]
    pub async fn put_over(
        &self,
        path: &ObjectPath,
        bytes: Bytes,
        version: Option<Version>,
    ) -> Result<bool, StoreError> {
        let mode = version.map_or(PutMode::Create, |version| PutMode::Update(version.0));
        let put = self.inner.put_opts(path, bytes.clone().into(), PutOptions::from(mode)).await;
        match put {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            Err(object_store::Error::NotImplemented { .. }) => {
                self.put(path, bytes).await.map(|()| true)
            }
            Err(error) => Err(StoreError::request("write", path, error)),
        }
    }

    /// Reads a small object whole, with the version that [`Store::put_over`] takes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] and [`StoreError::Request`]
    pub async fn get_with_version(
        &self,
        path: &ObjectPath,
    ) -> Result<(Bytes, Version), StoreError> {
        let failed = |error| StoreError::request("read", path, error);
        let result = self.inner.get(path).await.map_err(failed)?;
        let meta = &result.meta;
        let version = UpdateVersion { e_tag: meta.e_tag.clone(), version: meta.version.clone() };
        Ok((result.bytes().await.map_err(failed)?, Version(version)))
    }

    /// Reads a small object whole.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] and [`StoreError::Request`]
    pub async fn get(&self, path: &ObjectPath) -> Result<Bytes, StoreError> {
        let failed = |error| StoreError::request("read", path, error);
        self.inner.get(path).await.map_err(failed)?.bytes().await.map_err(failed)
    }

    /// Size and time of an object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] and [`StoreError::Request`]
    pub async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError> {
        self.inner.head(path).await.map_err(|error| StoreError::request("find", path, error))
    }

    /// Reads an object, or `range` of it, as a stream.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] and [`StoreError::Request`]
    pub async fn read(
        &self,
        path: &ObjectPath,
        range: Option<ByteRange>,
    ) -> Result<Reading, StoreError> {
        let options = GetOptions { range, ..GetOptions::default() };
        let result = self
            .inner
            .get_opts(path, options)
            .await
            .map_err(|error| StoreError::request("read", path, error))?;
        Ok(Reading(result))
    }

    /// Deletes an object; one that is gone already is no error.
    ///
    /// # Errors
    /// [`StoreError::Request`]
    pub async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError> {
        match self.inner.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::request("delete", path, error)),
        }
    }

    /// Copies an object inside the store.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn copy(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), StoreError> {
        self.inner.copy(from, to).await.map_err(|source| StoreError::request("copy", from, source))
    }

    /// Deletes every object below a folder, and what uploads that were cut off have left there.
    ///
    /// On S3 those leave parts, which [`Store::list_unfinished`] finds.
    ///
    /// # Errors
    /// [`StoreError::Request`]; what was deleted before stays deleted.
    pub async fn remove_folder(&self, folder: &str) -> Result<(), StoreError> {
        for object in self.list(folder).await? {
            self.delete(&object.location).await?;
        }
        let Some(root) = &self.local_root else { return Ok(()) };
        match tokio::fs::remove_dir_all(root.join(folder)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let source = object_store::Error::Generic { store: "local", source: error.into() };
                Err(StoreError::request("delete", &ObjectPath::from(folder), source))
            }
            _ => Ok(()),
        }
    }

    /// Uploads below a folder that were begun and not ended, those under way among them.
    ///
    /// # Errors
    /// [`StoreError::Request`], also from a server that does not know the request.
    pub async fn list_unfinished(&self, folder: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.uploads.list(folder).await
    }

    /// Takes back an upload that nobody will complete.
    ///
    /// # Errors
    /// [`StoreError::Request`]
    pub async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.uploads.abort(upload).await
    }

    /// The objects below a folder, as they are listed: there may be millions.
    pub fn stream(&self, folder: &str) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(Some(&ObjectPath::from(folder)))
    }

    /// The objects below a folder.
    ///
    /// # Errors
    /// [`StoreError::Request`]
    pub async fn list(&self, folder: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let path = ObjectPath::from(folder);
        self.inner
            .list(Some(&path))
            .try_collect()
            .await
            .map_err(|error| StoreError::request("list", &path, error))
    }
}

/// Which version of an object was read.
#[derive(Debug, Clone)]
pub struct Version(UpdateVersion);

/// An object being read.
#[derive(Debug)]
pub struct Reading(GetResult);

impl Reading {
    /// Size of the whole object in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.0.meta.size
    }

    /// The bytes that are read, of the whole object.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.0.range.clone()
    }

    /// The bytes, as they come.
    pub fn into_stream(self) -> BoxStream<'static, object_store::Result<Bytes>> {
        self.0.into_stream()
    }
}

fn local(url: &str) -> Result<(Arc<dyn ObjectStore>, PathBuf), StoreError> {
    let folder = match url.strip_prefix("file://") {
        Some(path) => PathBuf::from(path),
        None if url.contains("://") => {
            return Err(StoreError::Settings(
                "store.url must be a folder, file:///… or s3://bucket/prefix".to_owned(),
            ));
        }
        None => PathBuf::from(url),
    };
    let failed = |error: &dyn std::fmt::Display| {
        StoreError::Settings(format!("store.url: cannot use {}: {error}", folder.display()))
    };
    std::fs::create_dir_all(&folder).map_err(|error| failed(&error))?;
    let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| failed(&error))?;
    Ok((Arc::new(store.with_automatic_cleanup(true)), folder))
}

fn s3(location: &str, config: &StoreConfig) -> Result<(Arc<dyn ObjectStore>, Uploads), StoreError> {
    let (bucket, prefix) = location.split_once('/').unwrap_or((location, ""));
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(3),
            base: 2.,
        },
        max_retries: 10,
        retry_timeout: Duration::from_secs(config.retry_secs.get()),
    };
    let client = ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(Duration::from_secs(config.request_timeout_secs.get()));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client.clone())
        .with_retry(retry);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let Some(key) = &config.access_key_id {
        builder = builder.with_access_key_id(key);
    }
    if let Some(secret) = &config.secret_access_key {
        builder = builder.with_secret_access_key(secret.expose_secret());
    }
    let settings = |error| StoreError::Settings(format!("store: {error}"));
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
    let store = builder.build().map_err(settings)?;
    let prefix = prefix.trim_matches('/');
    let uploads = S3Uploads {
        store: store.clone(),
        client: ReqwestConnector::default().connect(&client).map_err(settings)?,
        // As object_store has it.
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        prefix: prefix.to_owned(),
    };
    let inner: Arc<dyn ObjectStore> = match prefix {
        "" => Arc::new(store),
        prefix => Arc::new(PrefixStore::new(store, prefix)),
    };
    Ok((inner, Uploads::S3(Arc::new(uploads))))
}
