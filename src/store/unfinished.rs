//! Uploads that were begun and neither completed nor taken back: their process was killed.
//!
//! They are no objects, so no listing of objects shows them, and an S3 server keeps and bills their
//! parts for ever. S3 is asked with `ListMultipartUploads`, a request that object_store does not
//! make: it is signed with its own signer. On a local disk they are staged files beside their
//! target, whose names end in `#` and a number.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use serde::Deserialize;

use super::StoreError;

/// Most that is read of one page of a listing: a page holds at most a thousand uploads.
const MAX_PAGE_BYTES: usize = 8 << 20;
/// Pages of one listing; the next one goes on where these were dealt with.
const MAX_PAGES: usize = 100;
/// For how long the link is signed that tells where the bucket is; nobody follows it.
const LINK_FOR: std::time::Duration = std::time::Duration::from_secs(60);

/// An upload that was begun and not ended.
#[derive(Debug, Clone)]
pub struct UnfinishedUpload {
    /// Of which object.
    pub path: Path,
    /// When it was begun, or last written to, by the store's clock.
    pub since: DateTime<Utc>,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// The server's name of the upload.
    S3(String),
    /// The staged file.
    Staged(PathBuf),
}

/// What can be asked of an S3 server beside object_store's own requests.
#[derive(Debug)]
pub(super) struct S3Uploads {
    pub(super) store: AmazonS3,
    pub(super) client: HttpClient,
    pub(super) region: String,
    /// Prefix of every key, without slashes at its ends.
    pub(super) prefix: String,
}

/// Where unfinished uploads are looked for.
#[derive(Debug, Clone)]
pub(super) enum Uploads {
    /// On a server.
    S3(Arc<S3Uploads>),
    /// In a folder.
    Folder(PathBuf),
    /// Nowhere: a store of a test's own.
    Unknown,
}

impl Uploads {
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        match self {
            Self::S3(s3) => s3.list(folder).await,
            Self::Folder(root) => {
                let (root, folder) = (root.clone(), folder.to_owned());
                let failed = failed("list uploads below", &Path::from(folder.as_str()));
                tokio::task::spawn_blocking(move || {
                    let mut found = Vec::new();
                    staged(&root, &root.join(folder), &mut found)?;
                    Ok(found)
                })
                .await
                .map_err(std::io::Error::other)
                .and_then(|listed: std::io::Result<_>| listed)
                .map_err(failed)
            }
            Self::Unknown => Ok(Vec::new()),
        }
    }

    /// Takes an upload back; one that is gone already is no error.
    pub(super) async fn abort(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        let done = match (self, &upload.place) {
            (Self::S3(s3), Place::S3(id)) => {
                let path = s3.whole(&upload.path);
                s3.store.abort_multipart(&path, id).await
            }
            (Self::Folder(_), Place::Staged(file)) => match tokio::fs::remove_file(file).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed("delete a staged file of", &upload.path)(error));
                }
                _ => Ok(()),
            },
            (Self::S3(_) | Self::Folder(_) | Self::Unknown, _) => Ok(()),
        };
        match done {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::request("take back an upload of", &upload.path, error)),
        }
    }
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StoreError + use<E> {
    let path = path.clone();
    move |error| {
        let source = object_store::Error::Generic { store: "uploads", source: error.into() };
        StoreError::Request { action, path, source }
    }
}

/// Collects the staged files below a folder. What disappears meanwhile was nobody's.
fn staged(
    root: &FilePath,
    folder: &FilePath,
    found: &mut Vec<UnfinishedUpload>,
) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let file = entry.path();
        if entry.file_type()?.is_dir() {
            staged(root, &file, found)?;
            continue;
        }
        let name = entry.file_name();
        let target = name.to_str().and_then(|name| name.rsplit_once('#')).filter(|(_, number)| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        let (Some((target, _)), Ok(metadata)) = (target, entry.metadata()) else { continue };
        let Ok(below) = folder.strip_prefix(root) else { continue };
        found.push(UnfinishedUpload {
            path: Path::from(format!("{}/{target}", below.display())),
            since: metadata.modified()?.into(),
            place: Place::Staged(file),
        });
    }
    Ok(())
}

/// The answer to `ListMultipartUploads`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listing {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
    #[serde(default)]
    upload: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    key: String,
    upload_id: String,
    initiated: DateTime<Utc>,
}

impl S3Uploads {
    pub(super) fn whole(&self, path: &Path) -> Path {
        match self.prefix.as_str() {
            "" => path.clone(),
            prefix => Path::from(format!("{prefix}/{path}")),
        }
    }

    async fn list(&self, folder: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        let below = self.whole(&Path::from(folder));
        let mut found = Vec::new();
        let mut after = (String::new(), String::new());
        for _ in 0..MAX_PAGES {
            let page = self.page(&below, &after).await?;
            for listed in page.upload {
                let key = listed.key.strip_prefix(&self.prefix).unwrap_or(&listed.key);
                // As it is: what a path had to encode is encoded in its key.
                let path = Path::parse(key).map_err(failed("list uploads below", &below))?;
                let (since, place) = (listed.initiated, Place::S3(listed.upload_id));
                found.push(UnfinishedUpload { path, since, place });
            }
            match (page.is_truncated, page.next_key_marker) {
                (true, Some(key)) => after = (key, page.next_upload_id_marker.unwrap_or_default()),
                _ => break,
            }
        }
        Ok(found)
    }

    async fn page(&self, below: &Path, after: &(String, String)) -> Result<Listing, StoreError> {
        let failed_request = |error| StoreError::request("list uploads below", below, error);
        // The link to an object of a one-letter name: without it and the signature, the bucket.
        let mut url = self
            .store
            .signed_url(method_get(), &Path::from("x"), LINK_FOR)
            .await
            .map_err(failed_request)?;
        let bucket = url.path().strip_suffix('x').unwrap_or_default().to_owned();
        url.set_path(bucket.trim_end_matches('/'));
        url.query_pairs_mut()
            .clear()
            .append_pair("uploads", "")
            .append_pair("prefix", &format!("{below}/"));
        if !after.0.is_empty() {
            url.query_pairs_mut()
                .append_pair("key-marker", &after.0)
                .append_pair("upload-id-marker", &after.1);
        }
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(failed("list uploads below", below))?;
        let credential = self.store.credentials().get_credential().await.map_err(failed_request)?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(failed_request)?;
        let answer =
            self.client.execute(request).await.map_err(failed("list uploads below", below))?;
        let status = answer.status();
        if !status.is_success() {
            let error = format!("the server answers {status} to ListMultipartUploads");
            return Err(failed("list uploads below", below)(error));
        }
        let mut body = Vec::new();
        let mut chunks = answer.into_body().bytes_stream();
        while let Some(chunk) =
            chunks.try_next().await.map_err(failed("list uploads below", below))?
        {
            if body.len() + chunk.len() > MAX_PAGE_BYTES {
                return Err(failed("list uploads below", below)("the listing is too large"));
            }
            body.extend_from_slice(&chunk);
        }
        quick_xml::de::from_reader(body.as_slice()).map_err(failed("list uploads below", below))
    }
}

/// `GET`, without naming the crate that types it.
fn method_get<T: for<'a> TryFrom<&'a [u8]>>() -> T {
    match T::try_from(b"GET") {
        Ok(method) => method,
        Err(_) => unreachable!("GET is a method"),
    }
}
