//! The end of the chain, remembered in places of its own.
//!
//! A chain alone does not show that its last certificates were cut off. So the store has an object
//! that names the last one, written over by a guarded write and only forward: the head it has must
//! be in the chain. It is made with the first certificate and never again, because a head that is
//! missing later was taken away, and making it anew would hide that. The audit log remembers each
//! sealing too.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{CertificateError, CertificateRow};
use crate::db::certificates;
use crate::retention::keyring::{Key, Keyring};
use crate::store::{ObjectKey, Store, StoreError};

/// The end of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = CertificateHead)]
pub struct Head {
    /// The number of the last certificate.
    pub number: i64,
    /// Its hash, which holds the hash of the one before, and so of all.
    pub sha256: String,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.sha256)
    }
}

/// A head that was written down elsewhere: the chain must still hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedHead {
    /// The number, where it was written down with the hash.
    pub number: Option<i64>,
    /// The hash.
    pub sha256: String,
}

/// The text is no head.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be `number:hash` as `run verify` prints it, or the hash: 64 hexadecimal digits")]
pub struct BadHead;

impl FromStr for ExpectedHead {
    type Err = BadHead;

    fn from_str(text: &str) -> Result<Self, BadHead> {
        let (number, sha256) = match text.trim().split_once(':') {
            Some((number, sha256)) => (Some(number.parse().map_err(|_| BadHead)?), sha256),
            None => (None, text.trim()),
        };
        let is_hash = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash || number.is_some_and(|number: i64| number < 1) {
            return Err(BadHead);
        }
        Ok(Self { number, sha256: sha256.to_ascii_lowercase() })
    }
}

/// As it lies in the store: with a seal, so that only who has the key can move it.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    #[serde(flatten)]
    head: Head,
    key_id: String,
    mac: String,
}

/// What the store says of the head.
#[derive(Debug)]
pub(super) enum Stored {
    /// There is none.
    Missing,
    /// It is not what this installation writes.
    Broken,
    /// The head.
    Found(Head),
}

/// Moves the store's head on to `last`. Where the head that is there does not lead to it, it stays
/// as it is, for [`super::verify`] to report.
pub(super) async fn advance(
    connection: &mut PgConnection,
    store: &Store,
    keyring: &Keyring,
    is_first: bool,
    last: &CertificateRow,
) -> Result<(), CertificateError> {
    let path = ObjectKey::CertificateHead.path();
    let head = Head { number: last.id, sha256: last.sha256.clone() };
    let mac = mac(keyring.active(), &head);
    let sealed = Sealed { head, key_id: keyring.active_id().to_owned(), mac };
    let bytes = serde_json::to_vec(&sealed).expect("plain data");
    let (known, version) = match store.get_with_version(&path).await {
        Ok((bytes, version)) => (Some(bytes), Some(version)),
        Err(StoreError::NotFound(_)) => (None, None),
        Err(error) => return Err(error.into()),
    };
    let leads_here = match known.map(|known| read(keyring, &known)) {
        None => is_first,
        Some(None) => false,
        Some(Some(known)) if known == sealed.head => return Ok(()),
        Some(Some(known)) if known.number >= last.id => false,
        Some(Some(known)) => {
            let here = certificates::hash_of(connection, known.number).await?;
            here.is_some_and(|sha256| sha256 == known.sha256)
        }
    };
    if !leads_here || !store.put_over(&path, bytes.into(), version).await? {
        tracing::error!(
            certificate = last.id,
            "the store's head of the certificates does not lead here: see `registrar run verify`"
        );
    }
    Ok(())
}

/// Reads the store's head.
pub(super) async fn stored(store: &Store, keyring: &Keyring) -> Result<Stored, StoreError> {
    match store.get(&ObjectKey::CertificateHead.path()).await {
        Ok(bytes) => Ok(read(keyring, &bytes).map_or(Stored::Broken, Stored::Found)),
        Err(StoreError::NotFound(_)) => Ok(Stored::Missing),
        Err(error) => Err(error),
    }
}

fn read(keyring: &Keyring, bytes: &[u8]) -> Option<Head> {
    let sealed: Sealed = serde_json::from_slice(bytes).ok()?;
    let key = keyring.key(&sealed.key_id).ok()?;
    (mac(key, &sealed.head) == sealed.mac).then_some(sealed.head)
}

fn mac(key: &Key, head: &Head) -> String {
    hex::encode(key.mac("certificate head", &[head.to_string().as_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_printed() {
        let head = Head { number: 12, sha256: "ab".repeat(32) };
        let read: ExpectedHead = head.to_string().parse().expect("a head");
        assert_eq!((read.number, read.sha256.as_str()), (Some(12), head.sha256.as_str()));
        let hash: ExpectedHead = "AB".repeat(32).parse().expect("a hash");
        assert_eq!((hash.number, hash.sha256.as_str()), (None, head.sha256.as_str()));
        for wrong in ["", "12:", "12:ab", "x:ab", &format!("0:{}", head.sha256), &"g".repeat(64)] {
            assert!(wrong.parse::<ExpectedHead>().is_err(), "{wrong}");
        }
    }
}
