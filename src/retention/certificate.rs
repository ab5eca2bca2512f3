//! Certificates: the sealed record of an erasure or a run, each naming the one before by its hash.
//!
//! A certificate is written in the transaction that ends what it tells of, and copied to the store
//! afterwards; a copy that is missing because a process died is made by the next one. The chain
//! shows a certificate that was changed, taken out or put in; the seal, made with a key that is not
//! in the database, shows a chain that was made anew. [`verify`] compares all of it: the chain, the
//! copies, the ledger, and what the database says today.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};

use super::keyring::{Key, KeyError, Keyring};
use super::ledger::{self, LedgerError, LedgerObject, Step};
use crate::db::certificates::{self, CertificateRow};
use crate::db::erasures::{self, Erasure, Status, TableCount};
use crate::store::{CERTIFICATE_FOLDER, ObjectKey, Store, StoreError};

/// What the first certificate has for the hash of the one before.
const NOTHING_BEFORE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Certificates read, or copied to the store, in one go.
const PAGE: i64 = 500;

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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The certificate, erasure or object.
    pub what: String,
    /// What is wrong with it.
    pub fault: String,
}

/// What [`verify`] looked at.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// Certificates of the chain.
    pub certificates: u64,
    /// Entries of the ledger.
    pub ledger_entries: u64,
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
    certificates::insert(connection, &row).await?;
    Ok(row)
}

/// Copies certificates to the store that are not known to be there.
///
/// # Errors
/// [`CertificateError`]; what was copied stays.
pub async fn store_pending(db: &PgPool, store: &Store) -> Result<u64, CertificateError> {
    let pending = certificates::list_unstored(db, PAGE).await?;
    let mut copied = 0;
    for row in pending {
        store.put(&key_of(&row).path(), row.to_lines().into()).await?;
        certificates::mark_stored(db, row.id).await?;
        copied += 1;
    }
    Ok(copied)
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
            if let Some(erasure) = erasure_of(&row.subject) {
                certificates::skip_erasure_number(&mut tx, erasure).await?;
            }
            adopted += 1;
        }
        tx.commit().await?;
    }
    Ok(adopted)
}

/// What the database's own record of an erasure says.
pub fn record_of(erasure: &Erasure, rows: &[TableCount]) -> Value {
    json!({
        "table": erasure.subject_table,
        "ledger_token": erasure.ledger_token,
        "requested_at": erasure.requested_at,
        "begun_at": erasure.begun_at,
        "verified_at": erasure.verified_at,
        "completed_at": erasure.completed_at,
        "attempts": erasure.attempt,
        "rows": rows,
    })
}

/// Looks whether chain, copies, ledger and records are as they were sealed.
///
/// # Errors
/// [`CertificateError`]
pub async fn verify(
    db: &PgPool,
    store: &Store,
    keyring: &Keyring,
) -> Result<Verification, CertificateError> {
    let mut checked = Checked::default();
    let mut copies = BTreeMap::new();
    for object in store.list(CERTIFICATE_FOLDER).await? {
        copies.insert(object.location.to_string(), store.get(&object.location).await?);
    }
    let mut entries = BTreeMap::new();
    for (object, entry) in ledger::list(store, keyring).await? {
        checked.verification.ledger_entries += 1;
        if let Err(error) = &entry {
            checked.note(&object.path, error.to_string());
        }
        entries.insert(object.path, (object.sha256, entry.ok()));
    }
    let (mut after, mut previous) = (0, NOTHING_BEFORE.to_owned());
    loop {
        let page = certificates::list_after(db, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        let end = last.id;
        for row in page {
            if row.id != after + 1 {
                checked.note(format!("certificate {}", after + 1), "is missing from the chain");
            }
            checked.certificate(keyring, &row, &previous, &mut copies);
            checked.named_by(&row, &mut entries);
            checked.record(db, &row).await?;
            after = row.id;
            previous = row.sha256;
        }
        after = end;
    }
    for path in copies.into_keys() {
        checked.note(path, "is in the store, but not in the chain");
    }
    checked.loose_ends(db, entries).await?;
    checked.verification.findings.sort();
    Ok(checked.verification)
}

#[derive(Default)]
struct Checked {
    verification: Verification,
    /// Erasures whose record is as it was sealed.
    certified: BTreeSet<i64>,
    /// What the ledger calls the people of certificates.
    tokens: BTreeSet<String>,
}

impl Checked {
    fn note(&mut self, what: impl Into<String>, fault: impl Into<String>) {
        self.verification.findings.push(Finding { what: what.into(), fault: fault.into() });
    }

    fn certificate(
        &mut self,
        keyring: &Keyring,
        row: &CertificateRow,
        previous: &str,
        copies: &mut BTreeMap<String, bytes::Bytes>,
    ) {
        self.verification.certificates += 1;
        let what = format!("certificate {} ({})", row.id, row.subject);
        if sha256(&row.document) != row.sha256 {
            self.note(&what, "was changed: its hash is another");
        }
        match keyring.key(&row.key_id) {
            Ok(key) if mac(key, &row.document) == row.mac => {}
            Ok(_) => self.note(&what, "was changed: its seal is broken"),
            Err(error) => self.note(&what, error.to_string()),
        }
        let agrees = serde_json::from_str::<Document>(&row.document).is_ok_and(|document| {
            document.number == row.id
                && document.subject == row.subject
                && document.sealed_at == row.sealed_at
                && document.previous_sha256 == row.previous_sha256
        });
        if !agrees {
            self.note(&what, "does not say what its row says");
        }
        if row.previous_sha256 != previous {
            self.note(&what, "does not follow the one before it");
        }
        match copies.remove(&key_of(row).path().to_string()) {
            Some(copy) if copy == row.to_lines() => {}
            Some(_) => self.note(&what, "has another copy in the store"),
            None if row.stored_at.is_none() => {}
            None => self.note(&what, "has no copy in the store"),
        }
    }

    /// Entries of the ledger that a certificate names are there, as they were.
    fn named_by(
        &mut self,
        row: &CertificateRow,
        entries: &mut BTreeMap<String, (String, Option<ledger::Entry>)>,
    ) {
        let Ok(document) = serde_json::from_str::<Document>(&row.document) else { return };
        for named in document.ledger {
            match entries.remove(&named.path) {
                Some((sha256, _)) if sha256 == named.sha256 => {}
                Some(_) => {
                    self.note(named.path, format!("was changed since certificate {}", row.id));
                }
                None => {
                    self.note(named.path, format!("is gone, and certificate {} names it", row.id));
                }
            }
        }
    }

    /// The database's record says today what was sealed. A restored database does not know the
    /// erasures of certificates that it adopted, or knows them as they were before.
    async fn record(&mut self, db: &PgPool, row: &CertificateRow) -> Result<(), CertificateError> {
        let Some(id) = erasure_of(&row.subject) else { return Ok(()) };
        let Ok(document) = serde_json::from_str::<Document>(&row.document) else { return Ok(()) };
        if let Some(token) = document.record["ledger_token"].as_str() {
            self.tokens.insert(token.to_owned());
        }
        let mut connection = db.acquire().await?;
        let fault = match erasures::find(&mut connection, id).await? {
            None => Some(format!("is gone, and certificate {} tells of it", row.id)),
            Some(erasure) => {
                let rows = erasures::counts(&mut connection, id).await?;
                let is_same = erasure.status == Status::Completed
                    && record_of(&erasure, &rows) == document.record;
                if is_same {
                    self.certified.insert(id);
                }
                (!is_same).then(|| format!("was changed since certificate {}", row.id))
            }
        };
        if let Some(fault) = fault.filter(|_| row.adopted_at.is_none()) {
            self.note(format!("erasure {id}"), fault);
        }
        Ok(())
    }

    /// Completed erasures without a certificate, and entries of the ledger that belong to none.
    async fn loose_ends(
        &mut self,
        db: &PgPool,
        entries: BTreeMap<String, (String, Option<ledger::Entry>)>,
    ) -> Result<(), CertificateError> {
        let mut before = None;
        loop {
            let page = erasures::list(db, None, before, PAGE).await?;
            let Some(last) = page.last() else { break };
            before = Some(last.id);
            for erasure in page {
                let is_completed = erasure.status == Status::Completed;
                if is_completed && !self.certified.contains(&erasure.id) {
                    self.note(
                        format!("erasure {}", erasure.id),
                        "is completed, but no certificate says so",
                    );
                }
                if erasure.status != Status::Cancelled {
                    self.tokens.insert(erasure.ledger_token);
                }
            }
        }
        for (path, (_, entry)) in entries {
            let Some(entry) = entry else { continue }; // told above
            if !self.tokens.contains(&entry.token) {
                let step = match entry.step {
                    Step::Begun => "has begun",
                    Step::Completed => "was completed",
                };
                self.note(
                    path,
                    format!("says that an erasure {step} that nobody knows: replay the ledger"),
                );
            }
        }
        Ok(())
    }
}

fn erasure_of(subject: &str) -> Option<i64> {
    subject.strip_prefix("erasure-")?.parse().ok()
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

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

fn mac(key: &Key, text: &str) -> String {
    hex::encode(key.mac("certificate", &[text.as_bytes()]))
}
