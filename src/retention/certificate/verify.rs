//! Whether everything is as it was sealed: chain, copies, head, audit log, ledger and records.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::head::{self, ExpectedHead, Head, Stored};
use super::record::{agrees, is_same_run, record_of, record_of_run, status_of};
use super::{
    About, CERTIFICATE_FOLDER, CertificateError, CertificateRow, CertifiedPurges, Document,
    Finding, NOTHING_BEFORE, PAGE, Verification, certificates, key_of, mac, sha256,
};
use crate::db::audit;
use crate::db::erasures::{self, Status};
use crate::retention::keyring::Keyring;
use crate::retention::ledger::{self, Step, Told};
use crate::retention::run::{self, RunFilter};
use crate::store::{ObjectKey, Store};

/// Looks whether chain, copies, head, ledger and records are as they were sealed, and whether the
/// chain still holds `expected`.
///
/// # Errors
/// [`CertificateError`]
pub async fn verify(
    db: &PgPool,
    store: &Store,
    keyring: &Keyring,
    expected: Option<&ExpectedHead>,
) -> Result<Verification, CertificateError> {
    let mut checked = Checked { expected: expected.cloned(), ..Checked::default() };
    // One snapshot, taken before the store is looked at: what it says is stored is there by then.
    let mut tx = db.begin().await?;
    sqlx::query("set transaction isolation level repeatable read, read only")
        .execute(&mut *tx)
        .await?;
    checked.audited = audit::last_certificate(&mut tx)
        .await?
        .map(|(number, sha256)| Head { number, sha256: sha256.unwrap_or_default() });
    let stored = head::stored(store, keyring).await?;
    checked.known = match &stored {
        Stored::Found(head) => Some(head.clone()),
        Stored::Missing | Stored::Broken => None,
    };
    // Hashes, because there may be many.
    let mut copies = BTreeMap::new();
    let head_path = ObjectKey::CertificateHead.path();
    for object in store.list(CERTIFICATE_FOLDER).await? {
        if object.location != head_path {
            let bytes = store.get(&object.location).await?;
            copies.insert(object.location.to_string(), sha256(&bytes));
        }
    }
    let mut entries = Entries::new();
    for (object, entry) in ledger::list(store, keyring).await? {
        checked.verification.ledger_entries += 1;
        if let Err(error) = &entry {
            checked.note(&object.path, error.to_string());
        }
        entries.insert(object.path, (object.sha256, entry.ok()));
    }
    let (mut after, mut previous) = (0, NOTHING_BEFORE.to_owned());
    loop {
        let page = certificates::list_after(&mut *tx, after, PAGE).await?;
        if page.is_empty() {
            break;
        }
        for row in page {
            if row.id != after + 1 {
                checked.note(format!("certificate {}", after + 1), "is missing from the chain");
            }
            checked.certificate(keyring, &row, &previous, &mut copies);
            checked.named_by(&row, &entries);
            checked.record(&mut tx, &row).await?;
            after = row.id;
            previous.clone_from(&row.sha256);
            checked.end = Some(row);
        }
    }
    let sealed_meanwhile = certificates::list_after(db, after, PAGE).await?;
    for row in &sealed_meanwhile {
        copies.remove(&key_of(row).path().to_string());
        checked.remembered(&Head { number: row.id, sha256: row.sha256.clone() });
    }
    for path in copies.into_keys() {
        checked.note(path, "is in the store, but not in the chain");
    }
    checked.head(&mut tx, &stored).await?;
    checked.erasures(&mut tx).await?;
    checked.runs(&mut tx).await?;
    checked.noted(&mut tx, &entries).await?;
    checked.ledger(entries);
    tx.rollback().await?;
    checked.verification.findings.sort();
    Ok(checked.verification)
}

/// Objects of the ledger, by path: SHA-256 and what they tell, where it can be read.
type Entries = BTreeMap<String, (String, Option<Told>)>;

/// The newest certificate of a run.
struct SealedRun {
    certificate: i64,
    record: serde_json::Value,
    is_adopted: bool,
}

#[derive(Default)]
struct Checked {
    verification: Verification,
    /// The last certificate of the chain.
    end: Option<CertificateRow>,
    /// The last one that was sealed here, and the last that is in the store.
    last_own: Option<CertificateRow>,
    last_stored: Option<i64>,
    /// The store's head, the audit log's and the one that was written down elsewhere; each is in
    /// the chain, or something was cut off.
    known: Option<Head>,
    audited: Option<Head>,
    expected: Option<ExpectedHead>,
    has_known: bool,
    has_audited: bool,
    has_expected: bool,
    /// Erasures whose record is as it was sealed.
    certified: BTreeSet<i64>,
    runs: BTreeMap<i64, SealedRun>,
    /// What the ledger calls the people of certificates.
    tokens: BTreeSet<String>,
    /// Objects of the ledger that a certificate names.
    named: BTreeSet<String>,
    /// Runs of this database.
    known_runs: BTreeSet<(i64, DateTime<Utc>)>,
    purges: CertifiedPurges,
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
        copies: &mut BTreeMap<String, String>,
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
            Some(copy) if copy == sha256(row.to_lines()) => {}
            Some(_) => self.note(&what, "has another copy in the store"),
            None if row.stored_at.is_none() => {}
            None => self.note(&what, "has no copy in the store"),
        }
        self.remembered(&Head { number: row.id, sha256: row.sha256.clone() });
        if row.stored_at.is_some() {
            self.last_stored = Some(row.id);
        }
        if row.adopted_at.is_none() {
            self.last_own = Some(row.clone());
        }
    }

    fn remembered(&mut self, here: &Head) {
        self.has_known |= self.known.as_ref() == Some(here);
        self.has_audited |= self.audited.as_ref() == Some(here);
        self.has_expected |= self.expected.as_ref().is_some_and(|expected| {
            expected.sha256 == here.sha256
                && expected.number.is_none_or(|number| number == here.number)
        });
    }

    /// Entries of the ledger that a certificate names are there, as they were.
    fn named_by(&mut self, row: &CertificateRow, entries: &Entries) {
        let Ok(document) = serde_json::from_str::<Document>(&row.document) else { return };
        for named in document.ledger {
            self.named.insert(named.path.clone());
            match entries.get(&named.path) {
                Some((sha256, _)) if *sha256 == named.sha256 => {}
                Some(_) => {
                    self.note(named.path, format!("was changed since certificate {}", row.id));
                }
                None => {
                    self.note(named.path, format!("is gone, and certificate {} names it", row.id));
                }
            }
        }
    }

    /// So are those that runs have noted, also of runs that have not ended.
    async fn noted(
        &mut self,
        connection: &mut PgConnection,
        entries: &Entries,
    ) -> Result<(), CertificateError> {
        let mut after = String::new();
        loop {
            let page = run::purges_after(&mut *connection, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after.clone_from(&last.path);
            for noted in page {
                if !self.named.insert(noted.path.clone()) {
                    continue; // told of with its certificate
                }
                match entries.get(&noted.path) {
                    Some((sha256, _)) if *sha256 == noted.sha256 => {}
                    Some(_) => self.note(noted.path, "was changed since a run noted it"),
                    None => self.note(noted.path, "is gone, and a run has noted it"),
                }
            }
        }
    }

    /// The database's record says today what was sealed. A restored database does not know the
    /// erasures and runs of certificates that it adopted, or knows them as they were before.
    async fn record(
        &mut self,
        connection: &mut PgConnection,
        row: &CertificateRow,
    ) -> Result<(), CertificateError> {
        let Ok(document) = serde_json::from_str::<Document>(&row.document) else { return Ok(()) };
        match About::read(&row.subject) {
            Some(About::Erasure(id)) => self.erasure(connection, id, row, &document).await,
            Some(About::Run(id)) => {
                self.purges.add(id, &document);
                self.run(id, row, document);
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn erasure(
        &mut self,
        connection: &mut PgConnection,
        id: i64,
        row: &CertificateRow,
        document: &Document,
    ) -> Result<(), CertificateError> {
        if let Some(token) = document.record["ledger_token"].as_str() {
            self.tokens.insert(token.to_owned());
        }
        let fault = match erasures::find(&mut *connection, id).await? {
            None => Some(format!("is gone, and certificate {} tells of it", row.id)),
            Some(erasure) => {
                let rows = erasures::counts(&mut *connection, id).await?;
                let is_same = erasure.status == Status::Completed
                    && agrees(&document.record, &record_of(&erasure, &rows));
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

    /// Remembers the newest certificate of a run. One that was taken up again after it failed has
    /// several: nothing may have happened to it between its failure and that.
    fn run(&mut self, id: i64, row: &CertificateRow, document: Document) {
        let new = SealedRun {
            certificate: row.id,
            record: document.record,
            is_adopted: row.adopted_at.is_some(),
        };
        let before = self.runs.get(&id).filter(|before| !before.is_adopted);
        let was_reopened = status_of(&new.record).is_some_and(|status| !status.is_final());
        let fault = before.and_then(|before| {
            let is_same = is_same_run(&before.record, &new.record)
                && (!was_reopened || before.record["tables"] == new.record["tables"]);
            (!is_same).then(|| {
                format!(
                    "was changed between certificates {} and {}",
                    before.certificate, new.certificate
                )
            })
        });
        if let Some(fault) = fault {
            self.note(format!("run {id}"), fault);
        }
        self.runs.insert(id, new);
    }

    /// Every place that remembers an end of the chain remembers one that is still in it.
    async fn head(
        &mut self,
        connection: &mut PgConnection,
        stored: &Stored,
    ) -> Result<(), CertificateError> {
        let end = self.end.as_ref().map_or(0, |row| row.id);
        let path = ObjectKey::CertificateHead.path().to_string();
        let cut = |head: &Head| {
            if head.number > end {
                format!("tells of certificate {}, and the chain ends with {end}", head.number)
            } else {
                format!("tells of another certificate {}", head.number)
            }
        };
        match (stored, &self.known) {
            (Stored::Broken, _) => self.note(path, "was changed: its seal is broken"),
            (Stored::Missing, _) if self.last_stored.is_some() => self.note(path, "is gone"),
            (Stored::Found(_), Some(head)) if !self.has_known => self.note(path, cut(head)),
            (Stored::Found(_), Some(head)) => {
                let behind = self
                    .last_own
                    .as_ref()
                    .filter(|own| own.stored_at.is_some() && own.id > head.number);
                if let Some(own) = behind {
                    let fault = format!("was set back from {} to {}", own.id, head.number);
                    self.note(path, fault);
                }
            }
            (Stored::Missing | Stored::Found(_), _) => {}
        }
        match &self.audited {
            Some(head) if !self.has_audited => self.note("the audit log", cut(head)),
            _ => {}
        }
        let audited = self.audited.as_ref().map_or(0, |head| head.number);
        if let Some(own) = self.last_own.as_ref().filter(|own| own.id > audited)
            // Old audit rows are archived; this one was not, where an older one is still there.
            && audit::reaches_back_to(connection, own.sealed_at).await?
        {
            let fault = format!("does not tell of certificate {}", own.id);
            self.note("the audit log", fault);
        }
        if let Some(expected) = self.expected.as_ref().filter(|_| !self.has_expected) {
            let what = match expected.number {
                Some(number) => format!("the expected head {number}:{}", expected.sha256),
                None => format!("the expected head {}", expected.sha256),
            };
            self.note(what, format!("is not in the chain, which ends with {end}"));
        }
        self.verification.head =
            self.end.as_ref().map(|row| Head { number: row.id, sha256: row.sha256.clone() });
        Ok(())
    }

    /// Completed erasures without a certificate.
    async fn erasures(&mut self, connection: &mut PgConnection) -> Result<(), CertificateError> {
        let mut before = None;
        loop {
            let page = erasures::list(&mut *connection, None, before, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
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
    }

    /// Entries of the ledger that belong to no erasure and to no run.
    fn ledger(&mut self, entries: Entries) {
        for (path, (_, told)) in entries {
            if self.named.contains(&path) {
                continue;
            }
            let what = match told {
                None => continue, // told above
                Some(Told::Erasure(entry)) if self.tokens.contains(&entry.token) => continue,
                Some(Told::Erasure(entry)) => match entry.step {
                    Step::Begun => "an erasure has begun",
                    Step::Completed => "an erasure was completed",
                },
                // Left by a worker that was killed, or written just now.
                Some(Told::Purge(purge))
                    if self.known_runs.contains(&(purge.run, purge.as_of))
                        || self.purges.is_void(&path, &purge) =>
                {
                    continue;
                }
                Some(Told::Purge(_)) => "a run deletes people",
            };
            self.note(path, format!("says that {what} that nobody knows: replay the ledger"));
        }
    }

    /// Runs are as their newest certificates say, and each that has ended has one.
    async fn runs(&mut self, connection: &mut PgConnection) -> Result<(), CertificateError> {
        let mut filter = RunFilter::default();
        let mut known = BTreeSet::new();
        loop {
            let page = run::list(&mut *connection, &filter, PAGE).await?;
            let Some(last) = page.last() else { break };
            filter.before = Some(last.id);
            for found in page {
                known.insert(found.id);
                self.known_runs.insert((found.id, found.as_of));
                let tables = run::tables_of(&mut *connection, found.id).await?;
                let asked = erasures::count_asked_by(&mut *connection, found.id).await?;
                let now = record_of_run(&found, &tables, asked);
                let sealed = self.runs.get(&found.id).filter(|sealed| !sealed.is_adopted);
                let uncertified = || format!("is {}, but no certificate says so", found.status);
                let fault = match sealed {
                    None if self.runs.contains_key(&found.id) => None,
                    None => found.status.is_final().then(uncertified),
                    Some(sealed) => {
                        let was_final =
                            status_of(&sealed.record).is_some_and(|status| status.is_final());
                        let changed =
                            format!("was changed since certificate {}", sealed.certificate);
                        if was_final {
                            (!agrees(&sealed.record, &now)).then_some(changed)
                        } else if !is_same_run(&sealed.record, &now) {
                            Some(changed)
                        } else {
                            found.status.is_final().then(uncertified)
                        }
                    }
                };
                if let Some(fault) = fault {
                    self.note(format!("run {}", found.id), fault);
                }
            }
        }
        let gone: Vec<_> = self
            .runs
            .iter()
            .filter(|(id, sealed)| !sealed.is_adopted && !known.contains(id))
            .map(|(id, sealed)| (*id, sealed.certificate))
            .collect();
        for (id, certificate) in gone {
            let fault = format!("is gone, and certificate {certificate} tells of it");
            self.note(format!("run {id}"), fault);
        }
        Ok(())
    }
}
