//! The erasure ledger: who was erased, kept outside the database, so that a restored database can
//! be told to forget them again.
//!
//! It names nobody: a person is a keyed hash of their table and key, which only an installation
//! with the key can make again from the row. An entry `begun` is written before the first act, an
//! entry `completed` after the verification. Whom a purge deletes stands in [`Purge`] entries, chunk
//! by chunk. Entries are never changed: an erasure writes the same bytes however often it is tried.
//! Keep them longer than any backup.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keyring::{Key, KeyError, Keyring};
use crate::store::{LEDGER_FOLDER, LedgerKey, ObjectKey, Store, StoreError};

mod purge;

pub use purge::{Purge, write_purge};

/// Which moment of an erasure an entry tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Nothing is erased yet.
    Begun,
    /// No trace was found any more.
    Completed,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Completed => "completed",
        }
    }
}

/// An entry about one person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The moment.
    pub step: Step,
    /// The table of people.
    pub table: String,
    /// The person.
    pub token: String,
    /// The key of the token.
    pub key_id: String,
    /// SHA-256 of the classification at the time of the first act. Not in `completed`, which may
    /// be written by another process after a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_digest: Option<String>,
    /// When it was asked for.
    pub requested_at: DateTime<Utc>,
    /// When the act began.
    pub begun_at: DateTime<Utc>,
    /// When no trace was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<DateTime<Utc>>,
}

/// An entry as it lies in the store: with a seal over all of it.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed<T> {
    #[serde(flatten)]
    entry: T,
    mac: String,
}

/// What an object of the ledger tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// An erasure.
    Erasure(Entry),
    /// People whom a run deletes.
    Purge(Purge),
}

/// The ledger cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store's.
    #[error("the erasure ledger cannot be reached")]
    Store(#[from] StoreError),
    /// A key's.
    #[error("the erasure ledger cannot be sealed")]
    Key(#[from] KeyError),
    /// An object is not what it should be.
    #[error("the ledger's object `{path}` {fault}")]
    Tampered {
        /// Its path.
        path: String,
        /// What is wrong with it.
        fault: &'static str,
    },
}

/// An object of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct LedgerObject {
    /// Its path in the store.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// What the ledger calls a person. `born` tells them from a later person with the same key.
pub fn token(key: &Key, table: &str, id: &str, born: Option<&str>) -> String {
    let parts = [table, id, born.unwrap_or_default()];
    hex::encode(key.mac("ledger token", &parts.map(str::as_bytes)))
}

/// Writes an entry; writing it again changes nothing.
///
/// # Errors
/// [`LedgerError`]
pub async fn write(
    store: &Store,
    keyring: &Keyring,
    entry: Entry,
) -> Result<LedgerObject, LedgerError> {
    let path = path_of(&entry).path();
    let mac = mac(keyring.key(&entry.key_id)?, &entry);
    let bytes = serde_json::to_vec(&Sealed { entry, mac }).expect("plain data");
    // Read first: some stores cannot refuse to overwrite, and one version of an entry is enough
    // for a bucket with versions.
    match store.get(&path).await {
        Ok(known) if known == bytes => {}
        Ok(known) if read(keyring, path.as_ref(), &known).is_ok() => {
            // Written by an attempt before, under an older classification: the first one counts.
            return Ok(object(path.as_ref(), &known));
        }
        Ok(_) => {
            return Err(LedgerError::Tampered {
                path: path.to_string(),
                fault: "was changed by somebody else",
            });
        }
        Err(StoreError::NotFound(_)) => store.put(&path, bytes.clone().into()).await?,
        Err(error) => return Err(error.into()),
    }
    Ok(object(path.as_ref(), &bytes))
}

/// Whether an entry has been written.
///
/// # Errors
/// [`LedgerError::Store`]
pub async fn has_begun(
    store: &Store,
    token: &str,
    begun_at: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let key = LedgerKey { token, begun_at, step: Step::Begun.name() };
    match store.head(&ObjectKey::Ledger(key).path()).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Every entry, with its object. One whose seal is broken is an error of its own.
///
/// # Errors
/// [`LedgerError::Store`]
pub async fn list(
    store: &Store,
    keyring: &Keyring,
) -> Result<Vec<(LedgerObject, Result<Told, LedgerError>)>, LedgerError> {
    let mut entries = Vec::new();
    let mut objects = store.list(LEDGER_FOLDER).await?;
    objects.sort_by(|a, b| a.location.cmp(&b.location));
    for found in objects {
        let bytes = store.get(&found.location).await?;
        let path = found.location.to_string();
        let told = if purge::is_purge(&path) {
            purge::read(keyring, &path, &bytes).map(Told::Purge)
        } else {
            read(keyring, &path, &bytes).map(Told::Erasure)
        };
        entries.push((object(&path, &bytes), told));
    }
    Ok(entries)
}

fn read(keyring: &Keyring, path: &str, bytes: &[u8]) -> Result<Entry, LedgerError> {
    let tampered = |fault| LedgerError::Tampered { path: path.to_owned(), fault };
    let Sealed::<Entry> { entry, mac: sealed } =
        serde_json::from_slice(bytes).map_err(|_| tampered("is no entry"))?;
    if mac(keyring.key(&entry.key_id)?, &entry) != sealed {
        return Err(tampered("was changed: its seal is broken"));
    }
    if path_of(&entry).path().to_string() != path {
        return Err(tampered("is not where it belongs"));
    }
    Ok(entry)
}

fn object(path: &str, bytes: &[u8]) -> LedgerObject {
    LedgerObject { path: path.to_owned(), sha256: sha256(bytes) }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn path_of(entry: &Entry) -> ObjectKey<'_> {
    ObjectKey::Ledger(LedgerKey {
        token: &entry.token,
        begun_at: entry.begun_at,
        step: entry.step.name(),
    })
}

fn mac(key: &Key, entry: &Entry) -> String {
    let bytes = serde_json::to_vec(entry).expect("plain data");
    hex::encode(key.mac("ledger entry", &[&bytes]))
}
