//! Certificates: the sealed record of an erasure or a run, each naming the one before by its hash.
//!
//! A certificate is written, with its audit row, in the transaction that ends what it tells of, and
//! copied to the store afterwards; a copy that is missing because a process died is made by the
//! next one. The chain shows a certificate that was changed, taken out or put in; the seal, made
//! with a key that is not in the database, shows a chain that was made anew; and the `head`,
//! which audit log and store remember each for itself, shows one whose end was cut off.
//! [`verify`] compares all of it, the ledger, and what the database says today.
//!
//! What no installation can see by itself: every place set back to the same earlier state, by
//! somebody who reaches the database and the store. Only a head that was written down elsewhere
//! shows that (`registrar run verify --head`).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};

use super::keyring::{Key, KeyError, Keyring};
use super::ledger::{LedgerError, LedgerObject};
use crate::db::audit::{self, Actor};
use crate::db::certificates::{self, CertificateRow};
use crate::store::{CERTIFICATE_FOLDER, ObjectKey, Store, StoreError};

mod head;
mod purges;
mod record;
mod verify;

pub use head::{BadHead, ExpectedHead, Head};
pub use purges::CertifiedPurges;
pub use record::{record_of, record_of_run};
pub use verify::verify;

/// What the first certificate has for the hash of the one before.
const NOTHING_BEFORE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Certificates read, or copied to the store, in one go.
const PAGE: i64 = 500;
/// Goes of one call: a million certificates.
const MAX_PAGES: u32 = 2_000;
/// Copies that are written at once.
const WRITES_IN_FLIGHT: usize = 16;

/// What is certified.
#[derive(Debug)]
pub struct NewCertificate<'a> {
    /// `erasure-12` or `run-7`.
    pub subject: String,
    /// What was done, in a word.
    pub kind: &'a str,
    /// SHA-256 of the policy that said so.
    pub policy_digest: &'a str,
    /// What the database's own record of it says: compared again by [`verify`].
    pub record: Value,
    /// What else is worth knowing.
    pub findings: Value,
    /// Entries of the ledger that belong to it.
    pub ledger: Vec<LedgerObject>,
}

/// The text that is sealed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// Its place in the chain.
    pub number: i64,
    /// What it is about.
    pub subject: String,
    /// What was done, in a word.
    pub kind: String,
    /// The version of the program.
    pub code_version: String,
    /// SHA-256 of the policy.
    pub policy_digest: String,
    /// When it was sealed: the end of what it tells of.
    pub sealed_at: DateTime<Utc>,
    /// The hash of the one before.
    pub previous_sha256: String,
    /// The database's record.
    pub record: Value,
    /// What else is worth knowing.
    pub findings: Value,
    /// Entries of the ledger that belong to it.
    pub ledger: Vec<LedgerObject>,
}

/// The second line of a certificate's copy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seal {
    /// SHA-256 of the first line.
    pub sha256: String,
    /// The key of the seal.
    pub key_id: String,
    /// HMAC-SHA-256 of the first line.
    pub mac: String,
}

/// Something that is not as it was sealed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[schema(as = CertificateFinding)]
pub struct Finding {
    /// The certificate, erasure or object.
    pub what: String,
    /// What is wrong with it.
    pub fault: String,
}

/// What [`verify`] looked at.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
#[schema(as = CertificateVerification)]
pub struct Verification {
    /// Certificates of the chain.
    pub certificates: u64,
    /// Entries of the ledger.
    pub ledger_entries: u64,
    /// The end of the chain: worth writing down where neither database nor store is.
    pub head: Option<Head>,
    /// What is not as it was sealed; empty where all is well.
    pub findings: Vec<Finding>,
}

/// The chain cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The database's.
    #[error("the certificates cannot be read")]
    Database(#[from] sqlx::Error),
    /// The store's.
    #[error("the certificates' copies cannot be reached")]
    Store(#[from] StoreError),
    /// A key's.
    #[error("the certificate cannot be sealed")]
    Key(#[from] KeyError),
    /// The ledger's.
    #[error("the ledger cannot be read")]
    Ledger(#[from] LedgerError),
}

/// Adds a certificate to the chain, in the caller's transaction.
///
/// # Errors
/// [`CertificateError`]
pub async fn seal(
    connection: &mut PgConnection,
    keyring: &Keyring,
    new: NewCertificate<'_>,
) -> Result<CertificateRow, CertificateError> {
    let (last, now) = certificates::lock_end(&mut *connection).await?;
    let (number, previous) = match last {
        Some((number, sha256)) => (number + 1, sha256),
        None => (1, NOTHING_BEFORE.to_owned()),
    };
    let document = Document {
        number,
        subject: new.subject,
        kind: new.kind.to_owned(),
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        policy_digest: new.policy_digest.to_owned(),
        sealed_at: now,
        previous_sha256: previous,
        record: new.record,
        findings: new.findings,
        ledger: new.ledger,
    };
    let text = serde_json::to_string(&document).expect("plain data");
    let row = CertificateRow {
        id: number,
        subject: document.subject,
        sha256: sha256(&text),
        previous_sha256: document.previous_sha256,
        key_id: keyring.active_id().to_owned(),
        mac: mac(keyring.active(), &text),
        document: text,
        sealed_at: now,
        stored_at: None,
        adopted_at: None,
    };
    certificates::insert(&mut *connection, &row).await?;
    let event = audit::Event {
        action: audit::CERTIFICATE_SEALED,
        entity_type: audit::CERTIFICATES,
        entity_id: Some(row.id),
        details: json!({ "about": row.subject, "sha256": row.sha256 }),
    };
    audit::record(connection, &Actor::system(), event).await?;
    Ok(row)
}

/// Copies certificates to the store that are not known to be there, and moves the store's head. One
/// process does so at a time; another one finds nothing to do.
///
/// # Errors
/// [`CertificateError`]; what was copied stays, and is copied again.
pub async fn store_pending(
    db: &PgPool,
    store: &Store,
    keyring: &Keyring,
) -> Result<u64, CertificateError> {
    let mut copied = 0;
    for _ in 0..MAX_PAGES {
        let mut tx = db.begin().await?;
        if !certificates::try_lock_copies(&mut tx).await? {
            break;
        }
        let pending = certificates::list_unstored(&mut tx, PAGE).await?;
        let (Some(first), Some(last)) = (pending.first(), pending.last()) else { break };
        for some in pending.chunks(WRITES_IN_FLIGHT) {
            let writes: Vec<_> = some.iter().map(|row| store_copy(store, row)).collect();
            futures::future::try_join_all(writes).await?;
        }
        // Before the copies count as stored: a head that is gone later was taken away.
        head::advance(&mut tx, store, keyring, first.id == 1, last).await?;
        let numbers: Vec<_> = pending.iter().map(|row| row.id).collect();
        certificates::mark_stored(&mut tx, &numbers).await?;
        tx.commit().await?;
        copied += numbers.len() as u64;
    }
    Ok(copied)
}

async fn store_copy(store: &Store, row: &CertificateRow) -> Result<(), StoreError> {
    store.put(&key_of(row).path(), row.to_lines().into()).await
}

/// Takes up certificates of the store that a restored database does not know, so that the chain
/// goes on where it ended. Those with a broken seal are left for [`verify`] to report.
///
/// # Errors
/// [`CertificateError`]
pub async fn adopt(db: &PgPool, store: &Store, keyring: &Keyring) -> Result<u64, CertificateError> {
    let mut objects = store.list(CERTIFICATE_FOLDER).await?;
    objects.sort_by(|a, b| a.location.cmp(&b.location));
    let mut adopted = 0;
    for object in objects {
        let bytes = store.get(&object.location).await?;
        let Some((document, row)) = parse_copy(keyring, &bytes) else { continue };
        let mut tx = db.begin().await?;
        let (last, now) = certificates::lock_end(&mut tx).await?;
        let (number, previous) = last.unwrap_or((0, NOTHING_BEFORE.to_owned()));
        if document.number == number + 1 && document.previous_sha256 == previous {
            let row = CertificateRow { stored_at: Some(now), adopted_at: Some(now), ..row };
            certificates::insert(&mut tx, &row).await?;
            // What is new here must not be taken for what the store's certificates tell of.
            match About::read(&row.subject) {
                Some(About::Erasure(id)) => certificates::skip_erasure_number(&mut tx, id).await?,
                Some(About::Run(id)) => certificates::skip_run_number(&mut tx, id).await?,
                None => {}
            }
            adopted += 1;
        }
        tx.commit().await?;
    }
    Ok(adopted)
}

/// What a certificate is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Erasure(i64),
    Run(i64),
}

impl About {
    fn read(subject: &str) -> Option<Self> {
        let (kind, number) = subject.split_once('-')?;
        match (kind, number.parse().ok()?) {
            ("erasure", id) => Some(Self::Erasure(id)),
            ("run", id) => Some(Self::Run(id)),
            _ => None,
        }
    }
}

fn key_of(row: &CertificateRow) -> ObjectKey<'_> {
    ObjectKey::Certificate { number: row.id, sha256: &row.sha256 }
}

fn parse_copy(keyring: &Keyring, bytes: &[u8]) -> Option<(Document, CertificateRow)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (line, seal) = text.split_once('\n')?;
    let seal: Seal = serde_json::from_str(seal.trim_end()).ok()?;
    let document: Document = serde_json::from_str(line).ok()?;
    let key = keyring.key(&seal.key_id).ok()?;
    if sha256(line) != seal.sha256 || mac(key, line) != seal.mac {
        return None;
    }
    let row = CertificateRow {
        id: document.number,
        subject: document.subject.clone(),
        document: line.to_owned(),
        sha256: seal.sha256,
        previous_sha256: document.previous_sha256.clone(),
        key_id: seal.key_id,
        mac: seal.mac,
        sealed_at: document.sealed_at,
        stored_at: None,
        adopted_at: None,
    };
    Some((document, row))
}

fn sha256(text: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(text))
}

fn mac(key: &Key, text: &str) -> String {
    hex::encode(key.mac("certificate", &[text.as_bytes()]))
}
