//! The entry of a purge: everybody whom one chunk of a run deletes, in one object.
//!
//! It is written while the rows are locked and before they go, and noted in the transaction in which
//! they go. It is named by its own SHA-256: neither a chunk that is tried again nor a worker that
//! comes too late writes over the entry of another. What a killed worker left tells of rows that may
//! have stayed; once the run has ended, its certificate names the entries that count.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{LedgerError, LedgerObject, Sealed, object, sha256};
use crate::retention::keyring::{Key, Keyring};
use crate::store::{ObjectKey, Store};

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// The table of people.
    pub table: String,
    /// The people, in an order that says nothing of them.
    pub tokens: Vec<String>,
    /// The key of the tokens.
    pub key_id: String,
    /// The run that deletes them.
    pub run: i64,
    /// The instant that its cutoffs are counted from: with the number it names the run, also where
    /// a restored database gives the number again.
    pub as_of: DateTime<Utc>,
    /// The run's attempt.
    pub attempt: i32,
    /// SHA-256 of the policy.
    pub policy_digest: String,
    /// When the chunk began.
    pub begun_at: DateTime<Utc>,
}

/// Writes an entry. Its people are put in the order of their tokens.
///
/// # Errors
/// [`LedgerError`]
pub async fn write_purge(
    store: &Store,
    keyring: &Keyring,
    mut purge: Purge,
) -> Result<LedgerObject, LedgerError> {
    purge.tokens.sort_unstable();
    let mac = mac(keyring.key(&purge.key_id)?, &purge);
    let begun_at = purge.begun_at;
    let bytes = serde_json::to_vec(&Sealed { entry: purge, mac }).expect("plain data");
    let path = ObjectKey::PurgeLedger { begun_at, sha256: &sha256(&bytes) }.path();
    let written = object(path.as_ref(), &bytes);
    store.put(&path, bytes.into()).await?;
    Ok(written)
}

/// Whether an object of the ledger is the entry of a purge.
pub(super) fn is_purge(path: &str) -> bool {
    path.split('/').nth_back(1) == Some("purges")
}

pub(super) fn read(keyring: &Keyring, path: &str, bytes: &[u8]) -> Result<Purge, LedgerError> {
    let tampered = |fault| LedgerError::Tampered { path: path.to_owned(), fault };
    let Sealed::<Purge> { entry, mac: sealed } =
        serde_json::from_slice(bytes).map_err(|_| tampered("is no entry"))?;
    if mac(keyring.key(&entry.key_id)?, &entry) != sealed {
        return Err(tampered("was changed: its seal is broken"));
    }
    let key = ObjectKey::PurgeLedger { begun_at: entry.begun_at, sha256: &sha256(bytes) };
    if key.path().to_string() != path {
        return Err(tampered("is not where it belongs"));
    }
    Ok(entry)
}

fn mac(key: &Key, purge: &Purge) -> String {
    let bytes = serde_json::to_vec(purge).expect("plain data");
    hex::encode(key.mac("ledger purge", &[&bytes]))
}
