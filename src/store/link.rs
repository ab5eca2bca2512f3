//! Links with which anybody reads one object for a while: signed by us, checked by the S3 server.

use std::time::Duration;

use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};

use super::unfinished::Uploads;
use super::{Store, StoreError};

impl Store {
    /// A link that reads an object for as long as `good_for`, with these values of
    /// `Content-Disposition` and `Content-Type`. `None` where the store is a folder.
    ///
    /// # Errors
    /// [`StoreError::Request`] when there are no keys to sign with.
    pub async fn link(
        &self,
        path: &Path,
        good_for: Duration,
        disposition: &str,
        media_type: &str,
    ) -> Result<Option<String>, StoreError> {
        let Uploads::S3(s3) = &self.uploads else { return Ok(None) };
        let key = s3.whole(path);
        let options = SignedUrlOptions::default().with_query([
            ("response-content-disposition", disposition),
            ("response-content-type", media_type),
        ]);
        let signed = s3.store.signed_url_opts(Method::GET, &key, good_for, &options).await;
        signed
            .map(|url| Some(url.into()))
            .map_err(|error| StoreError::request("sign a link to", path, error))
    }
}
