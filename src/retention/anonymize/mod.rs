//! Carrying out erasures: nobody is left who should be gone, and nobody else is touched.
//!
//! ```text
//! claim → holds → ledger: begun → names kept, sealed → satellites, archives
//!       → mentions elsewhere → the person's row → results expire → verification
//!       → ledger: completed → certificate, audit row and marker in one transaction
//! ```
//!
//! Any of these steps may be the last before a crash. Each is done again from its beginning by the
//! attempt that takes over, and changes nothing where it was done before: treatments are fixed
//! points, ledger entries are the same bytes, deleting what is gone succeeds. The person's own row
//! comes last of all rows, so that the links to everything else lead somewhere until then; what the
//! person was called by survives it sealed, for the verification, and goes with the marker.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{PgPool, Row};
use tokio_util::sync::CancellationToken;

use super::account::{self, Kept, sealed_about};
use super::certificate::{self, CertificateError, NewCertificate};
use super::hold::HoldError;
use super::keyring::{Key, KeyError, Keyring};
use super::ledger::{self, Entry, LedgerError, LedgerObject, Step};
use super::run;
use super::sql;
use super::treatment::Treatment;
use crate::db::audit::{self, Actor};
use crate::db::erasures::{self, Claimed, Status, Which};
use crate::store::{Store, StoreError};

mod chunk;
mod holds;
mod k_anonymity;
mod link;
mod names;
mod plan;
mod preview;
mod referenced;
mod results;
mod search;

pub(super) use chunk::set_forms;
pub use holds::HoldGate;
pub use k_anonymity::{KAnonymity, SmallGroups};
pub use names::{Identity, Strength};
pub use plan::{Plan, PlanError, PlanFault, Subject};
pub(super) use plan::{find_classified, live_name, print_constant};
pub use preview::{Scope, preview};
pub use referenced::{count_referenced, lock_referenced};

/// Entries of the ledger that are written at once.
const WRITES_IN_FLIGHT: usize = 16;
/// Addresses of a person that are remembered for the verification.
const MAX_ADDRESSES: usize = 1_000;

/// How erasures are carried out.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// People in one go.
    pub batch: u32,
    /// Rows in one transaction.
    pub chunk_rows: u32,
    /// Length of a lease.
    pub lease: Duration,
    /// Pause before what could not be ended is tried again.
    pub retry: Duration,
}

/// What carries erasures out.
#[derive(Debug)]
pub struct Eraser<'a> {
    /// The database.
    pub db: &'a PgPool,
    /// The store: results and the ledger.
    pub store: &'a Store,
    /// Keys.
    pub keyring: &'a Keyring,
    /// What to do.
    pub plan: &'a Plan,
    /// What must not be touched.
    pub holds: &'a HoldGate,
    /// Which groups are too small to hide in.
    pub k_anonymity: Option<&'a KAnonymity>,
    /// How.
    pub settings: Settings,
}

/// What one go did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// Erasures that were ended.
    pub completed: u64,
    /// Erasures that a hold keeps.
    pub held: u64,
    /// Erasures to be tried again later.
    pub postponed: u64,
}

impl Outcome {
    /// Counts what another go did.
    pub fn add(&mut self, other: Self) {
        self.completed += other.completed;
        self.held += other.held;
        self.postponed += other.postponed;
    }
}

/// An erasure could not be carried out. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The database's.
    #[error("the database failed while erasures were carried out")]
    Database(#[from] sqlx::Error),
    /// The store's.
    #[error("the store failed while erasures were carried out")]
    Store(#[from] StoreError),
    /// The ledger's.
    #[error("the ledger failed while erasures were carried out")]
    Ledger(#[from] LedgerError),
    /// The chain's.
    #[error("the erasure cannot be certified")]
    Certificate(#[from] CertificateError),
    /// A key's.
    #[error("a key is missing")]
    Key(#[from] KeyError),
    /// What is held cannot be told.
    #[error("the holds cannot be read")]
    Holds(#[from] HoldError),
    /// What was sealed is not readable.
    #[error("what was sealed with an erasure is not what was sealed")]
    BadSeal,
    /// The names are too many.
    #[error("the names cannot be searched for")]
    Names(#[from] aho_corasick::BuildError),
    /// Another process has taken over.
    #[error("another process has taken the erasures over")]
    LeaseLost,
}

impl EraseError {
    /// Whether the fault lies with what is kept of one person.
    fn is_of_one(&self) -> bool {
        matches!(self, Self::BadSeal | Self::Key(_) | Self::Ledger(LedgerError::Tampered { .. }))
    }
}

/// The people of one go.
#[derive(Debug)]
pub(super) struct People<'a> {
    claimed: Vec<Claimed>,
    ids: Vec<String>,
    keys: Vec<&'a Key>,
    positions: BTreeMap<String, usize>,
}

impl<'a> People<'a> {
    fn new(claimed: Vec<Claimed>, keyring: &'a Keyring) -> Result<Self, KeyError> {
        let ids: Vec<_> = claimed.iter().map(|claim| claim.subject_id.clone()).collect();
        let keys = claimed.iter().map(|claim| keyring.key(&claim.key_id));
        let keys = keys.collect::<Result<_, _>>()?;
        let positions = ids.iter().cloned().zip(0..).collect();
        Ok(Self { claimed, ids, keys, positions })
    }

    fn position(&self, id: Option<String>) -> Option<usize> {
        self.positions.get(&id?).copied()
    }

    fn key(&self, person: usize) -> &'a Key {
        self.keys[person]
    }
}

impl Eraser<'_> {
    /// Carries out what is due, go after go, until nothing is.
    ///
    /// # Errors
    /// [`EraseError`]: the go is given back and tried again after a pause.
    pub async fn carry_out(&self, which: Which) -> Result<Outcome, EraseError> {
        let mut total = Outcome::default();
        certificate::store_pending(self.db, self.store, self.keyring).await?;
        while let Some(outcome) = self.next_go(which).await? {
            total.add(outcome);
        }
        Ok(total)
    }

    /// Carries out the next people in one go. `None`: nobody is left.
    ///
    /// # Errors
    /// [`EraseError`]: the go is given back and tried again after a pause.
    pub async fn next_go(&self, which: Which) -> Result<Option<Outcome>, EraseError> {
        let table = self.plan.subject.table.plain();
        let lease = self.settings.lease.as_secs_f64();
        let batch = i64::from(self.settings.batch);
        let claimed = erasures::claim(self.db, &table, which, batch, lease).await?;
        if claimed.is_empty() {
            return Ok(None);
        }
        let mut total = Outcome::default();
        let beat = CancellationToken::new();
        let _stops = beat.clone().drop_guard();
        tokio::spawn(keep_leases(self.db.clone(), claimed.clone(), self.settings.lease, beat));
        let mut goes = vec![claimed];
        while let Some(claimed) = goes.pop() {
            match self.go(claimed.clone()).await {
                Ok(outcome) => total.add(outcome),
                // One person's fault must not keep the others waiting.
                Err(error) if error.is_of_one() && claimed.len() > 1 => {
                    goes.extend(claimed.into_iter().map(|claim| vec![claim]));
                }
                Err(error) if error.is_of_one() => {
                    tracing::error!(%error, "an erasure cannot be carried out");
                    self.postpone(&claimed, Status::Waiting, "sealed", true).await?;
                    total.postponed += 1;
                }
                Err(error) => {
                    goes.push(claimed);
                    for claim in goes.into_iter().flatten() {
                        // Where the ledger does not say, it may have begun.
                        let begun =
                            ledger::has_begun(self.store, &claim.ledger_token, claim.begun_at)
                                .await
                                .unwrap_or(true);
                        self.postpone(&[claim], Status::Waiting, "failed", begun).await?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(Some(total))
    }

    async fn go(&self, claimed: Vec<Claimed>) -> Result<Outcome, EraseError> {
        let mut outcome = Outcome::default();
        let claimed = self.without_held(claimed, &mut outcome).await?;
        if claimed.is_empty() {
            return Ok(outcome);
        }
        let people = People::new(claimed, self.keyring)?;
        let begun = self.write_ledger(&people, Step::Begun, &BTreeMap::new()).await?;
        let identities = self.keep_names(&people).await?;
        let names = names::Names::new(&identities)?;
        let (own, satellites): (Vec<_>, Vec<_>) =
            self.plan.visits.iter().partition(|v| v.table.name == self.plan.subject.table.name);
        for visit in satellites {
            self.visit(&people, visit, true).await?;
        }
        self.search(&people, &names, &self.plan.searched, true).await?;
        let mut changed = 0;
        for visit in own {
            changed += self.visit(&people, visit, true).await?.changed;
        }
        let acted_at = self.mark_acted(&people, changed > 0).await?;
        self.expire_results(&people, acted_at).await?;
        let verified = self.verify(&people, &names, acted_at).await?;
        self.end(&people, verified, acted_at, &begun, &mut outcome).await?;
        certificate::store_pending(self.db, self.store, self.keyring).await?;
        Ok(outcome)
    }

    /// Gives back those whose own row is held. Rows elsewhere may be held too: the verification
    /// finds them, and the erasure waits for them then.
    async fn without_held(
        &self,
        claimed: Vec<Claimed>,
        outcome: &mut Outcome,
    ) -> Result<Vec<Claimed>, EraseError> {
        let subject = &self.plan.subject;
        let ids: Vec<_> = claimed.iter().map(|claim| claim.subject_id.clone()).collect();
        let mut tx = self.db.begin().await?;
        let held = self.holds.predicate(&mut tx, &subject.table, "t").await?;
        let statement = format!(
            "select t.{key}::text from {} t where t.{key} = any ($1::text[]::{}[]) and {held}",
            subject.table,
            subject.key.type_name,
            key = subject.key.name,
        );
        let held: Vec<String> =
            sqlx::query_scalar(sql::dynamic(statement)).bind(&ids).fetch_all(&mut *tx).await?;
        tx.commit().await?;
        let (held, free): (Vec<_>, Vec<_>) =
            claimed.into_iter().partition(|claim| held.contains(&claim.subject_id));
        for claim in held {
            let begun = ledger::has_begun(self.store, &claim.ledger_token, claim.begun_at).await?;
            self.postpone(&[claim], Status::Held, "held", begun).await?;
            outcome.held += 1;
        }
        Ok(free)
    }

    async fn write_ledger(
        &self,
        people: &People<'_>,
        step: Step,
        verified: &BTreeMap<usize, DateTime<Utc>>,
    ) -> Result<Vec<Option<LedgerObject>>, EraseError> {
        let entries: Vec<_> = (0..people.claimed.len())
            .map(|person| self.entry_of(&people.claimed[person], step, verified.get(&person)))
            .collect();
        let mut objects = Vec::new();
        for some in entries.chunks(WRITES_IN_FLIGHT) {
            let writes: Vec<_> =
                some.iter().map(|entry| self.write_entry(entry.as_ref())).collect();
            objects.extend(futures::future::try_join_all(writes).await?);
        }
        Ok(objects)
    }

    async fn write_entry(
        &self,
        entry: Option<&Entry>,
    ) -> Result<Option<LedgerObject>, LedgerError> {
        match entry {
            Some(entry) => ledger::write(self.store, self.keyring, entry.clone()).await.map(Some),
            None => Ok(None),
        }
    }

    /// What the ledger is told; `None`: this person's erasure is not verified.
    fn entry_of(
        &self,
        claim: &Claimed,
        step: Step,
        verified_at: Option<&DateTime<Utc>>,
    ) -> Option<Entry> {
        if step == Step::Completed && verified_at.is_none() {
            return None;
        }
        Some(Entry {
            step,
            table: claim.subject_table.clone(),
            token: claim.ledger_token.clone(),
            key_id: claim.key_id.clone(),
            policy_digest: (step == Step::Begun).then(|| self.plan.digest.clone()),
            requested_at: claim.requested_at,
            begun_at: claim.begun_at,
            verified_at: verified_at.copied(),
        })
    }

    /// Remembers what people are called by, in the row, the seal of the request and the addresses
    /// in rows that are tied to them: before anything is erased, and sealed for later attempts.
    async fn keep_names(&self, people: &People<'_>) -> Result<Vec<Identity>, EraseError> {
        let mut kept: Vec<Kept> = Vec::new();
        for claim in &people.claimed {
            let about = sealed_about(&claim.subject_table, &claim.subject_id);
            kept.push(match &claim.sealed {
                Some(sealed) => {
                    let bytes = self.keyring.open(&claim.key_id, &about, sealed)?;
                    Kept::from_bytes(&bytes).ok_or(EraseError::BadSeal)?
                }
                None => Kept::default(),
            });
        }
        let mut tx = self.db.begin().await?;
        set_forms(&mut tx).await?;
        let subject = &self.plan.subject;
        let statement = format!(
            "select t.{key}::text as id, {} from {} t where t.{key} = any ($1::text[]::{}[])",
            account::name_columns(self.plan),
            subject.table,
            subject.key.type_name,
            key = subject.key.name,
        );
        let rows =
            sqlx::query(sql::dynamic(statement)).bind(&people.ids).fetch_all(&mut *tx).await?;
        for row in &rows {
            let id: String = row.try_get("id")?;
            let Some(person) = people.position(Some(id.clone())) else { continue };
            let found = account::identity(row, self.plan, Some((people.key(person), &id)))?;
            kept[person].identity.extend(found);
        }
        for (person, address) in self.addresses(&mut tx, people).await? {
            kept[person].identity.add(Strength::Tied, &address);
        }
        for ((person, claim), kept) in people.claimed.iter().enumerate().zip(&kept) {
            let about = sealed_about(&claim.subject_table, &claim.subject_id);
            let sealed = people.key(person).seal(&about, &kept.to_bytes())?;
            if !erasures::seal(&mut tx, claim.id, claim.attempt, &sealed).await? {
                return Err(EraseError::LeaseLost);
            }
        }
        tx.commit().await?;
        Ok(kept.into_iter().map(|kept| kept.identity).collect())
    }

    /// Addresses in columns that keep the network only, of rows that are tied to people.
    async fn addresses(
        &self,
        connection: &mut sqlx::PgConnection,
        people: &People<'_>,
    ) -> Result<Vec<(usize, String)>, EraseError> {
        let mut addresses = Vec::new();
        for visit in &self.plan.visits {
            for column in &visit.columns {
                if !matches!(column.treatment, Treatment::Network(_)) {
                    continue;
                }
                let statement = format!(
                    "select person, address
                       from (select person, address, row_number() over (partition by person) as n
                               from (select distinct {} as person, t.{}::text as address
                                       from {} t
                                      where {}) as tied) as numbered
                      where n <= {MAX_ADDRESSES} and address is not null",
                    visit.link.person, column.name, visit.table, visit.link.condition,
                );
                let rows: Vec<(Option<String>, String)> = sqlx::query_as(sql::dynamic(statement))
                    .bind(&people.ids)
                    .fetch_all(&mut *connection)
                    .await?;
                for (person, address) in rows {
                    let Some(person) = people.position(person) else { continue };
                    let row = [];
                    let place = super::treatment::Place {
                        table: visit.origin.name.as_str(),
                        column: column.name.as_str(),
                        row: &row,
                    };
                    let key = people.key(person);
                    let treated = column.treatment.apply(key, place, Some(&address));
                    if treated.as_deref() != Some(&address) {
                        addresses.push((person, address));
                    }
                }
            }
        }
        Ok(addresses)
    }

    /// When the last row was changed: reports that read before then may name the people.
    async fn mark_acted(
        &self,
        people: &People<'_>,
        is_now: bool,
    ) -> Result<DateTime<Utc>, EraseError> {
        let ids: Vec<_> = people.claimed.iter().map(|claim| claim.id).collect();
        let attempts: Vec<_> = people.claimed.iter().map(|claim| claim.attempt).collect();
        let acted_at = erasures::mark_acted(self.db, &ids, &attempts, is_now).await?;
        acted_at.ok_or(EraseError::LeaseLost)
    }

    /// Looks for every person whether anything is left, and says why where it is.
    async fn verify(
        &self,
        people: &People<'_>,
        names: &names::Names,
        acted_at: DateTime<Utc>,
    ) -> Result<Verified, EraseError> {
        let mut verified = Verified::default();
        for visit in &self.plan.visits {
            let visited = self.visit(people, visit, false).await?;
            verified.undone += visited.changed;
            for person in visited.held.into_keys() {
                verified.because.insert(person, (Status::Held, "held"));
            }
        }
        let traces = self.search(people, names, &self.plan.searched, false).await?;
        for person in traces.removable.into_keys() {
            verified.because.entry(person).or_insert((Status::Waiting, "traces_remain"));
        }
        for person in traces.held.into_keys() {
            verified.because.insert(person, (Status::Held, "held"));
        }
        verified.residue = traces.residue;
        if verified.undone > 0 || self.results_remain(people, acted_at).await? {
            for person in 0..people.claimed.len() {
                let because = if verified.undone > 0 { "rows_changed" } else { "report_running" };
                verified.because.entry(person).or_insert((Status::Waiting, because));
            }
        }
        Ok(verified)
    }

    async fn end(
        &self,
        people: &People<'_>,
        verified: Verified,
        acted_at: DateTime<Utc>,
        begun: &[Option<LedgerObject>],
        outcome: &mut Outcome,
    ) -> Result<(), EraseError> {
        let mut verified_at = BTreeMap::new();
        for (person, claim) in people.claimed.iter().enumerate() {
            if let Some((status, because)) = verified.because.get(&person) {
                self.postpone(std::slice::from_ref(claim), *status, because, true).await?;
                match status {
                    Status::Held => outcome.held += 1,
                    _ => outcome.postponed += 1,
                }
                continue;
            }
            let at = erasures::mark_verified(self.db, claim.id, claim.attempt).await?;
            verified_at.insert(person, at.ok_or(EraseError::LeaseLost)?);
        }
        let completed = self.write_ledger(people, Step::Completed, &verified_at).await?;
        let groups = match self.k_anonymity {
            Some(check) => Some(check.small_groups(self.db, self.plan).await?),
            None => None,
        };
        // Files are not rewritten: what could be in them is said, and for how long.
        let tables = self.plan.tables();
        let exported = run::kept_exports(self.db, &tables, acted_at).await?;
        for person in verified_at.into_keys() {
            let ledger = [&begun[person], &completed[person]];
            let residue = verified.residue.get(&person).cloned().unwrap_or_default();
            let findings = json!({
                "residue": residue,
                "exported_files": exported,
                "pseudonymous_columns": self.pseudonymous_columns(),
                "small_groups": groups,
            });
            let ledger = ledger.into_iter().flatten().cloned().collect();
            self.complete(&people.claimed[person], findings, ledger).await?;
            outcome.completed += 1;
        }
        Ok(())
    }

    /// The marker, with its certificate and its audit row.
    async fn complete(
        &self,
        claim: &Claimed,
        findings: serde_json::Value,
        ledger: Vec<LedgerObject>,
    ) -> Result<(), EraseError> {
        let mut tx = self.db.begin().await?;
        let done = erasures::complete(&mut tx, claim.id, claim.attempt).await?;
        done.ok_or(EraseError::LeaseLost)?;
        let erasure = erasures::find(&mut tx, claim.id).await?.ok_or(EraseError::LeaseLost)?;
        let rows = erasures::counts(&mut tx, claim.id).await?;
        let new = NewCertificate {
            subject: format!("erasure-{}", claim.id),
            kind: "anonymize",
            policy_digest: &self.plan.digest,
            record: certificate::record_of(&erasure, &rows),
            findings,
            ledger,
        };
        let sealed = certificate::seal(&mut tx, self.keyring, new).await?;
        let event = audit::Event {
            action: "erasure.completed",
            entity_type: "erasures",
            entity_id: Some(claim.id),
            details: json!({ "certificate": sealed.id, "sha256": sealed.sha256 }),
        };
        audit::record(&mut tx, &Actor::system(), event).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn postpone(
        &self,
        claimed: &[Claimed],
        status: Status,
        because: &str,
        has_begun: bool,
    ) -> Result<(), EraseError> {
        let pause = self.settings.retry.as_secs_f64();
        let mut tx = self.db.begin().await?;
        for claim in claimed {
            erasures::unmark_verified(&mut tx, claim.id, claim.attempt).await?;
            let given =
                erasures::give_back(&mut tx, claim, status, because, pause, has_begun).await?;
            if given && status == Status::Held {
                let event = audit::Event {
                    action: "erasure.held",
                    entity_type: "erasures",
                    entity_id: Some(claim.id),
                    details: json!({}),
                };
                audit::record(&mut tx, &Actor::system(), event).await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    fn pseudonymous_columns(&self) -> Vec<String> {
        let columns = self.plan.visits.iter().flat_map(|visit| {
            let pseudonymous =
                |c: &&plan::Treated| c.anonymity() == super::treatment::Anonymity::Pseudonymous;
            let table = visit.table.plain();
            let named = visit.columns.iter().filter(pseudonymous);
            named.map(move |column| format!("{table}.{}", column.name.as_str()))
        });
        columns.collect()
    }
}

/// What the verification found.
#[derive(Debug, Default)]
struct Verified {
    /// Rows that are not as they should be.
    undone: u64,
    /// Why a person's erasure cannot end.
    because: BTreeMap<usize, (Status, &'static str)>,
    /// What stays by declaration.
    residue: BTreeMap<usize, BTreeMap<String, u64>>,
}

/// Renews leases until the go ends. A lease that is lost is found out by the next chunk's count.
async fn keep_leases(db: PgPool, claimed: Vec<Claimed>, lease: Duration, end: CancellationToken) {
    let ids: Vec<_> = claimed.iter().map(|claim| claim.id).collect();
    let attempts: Vec<_> = claimed.iter().map(|claim| claim.attempt).collect();
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(lease / 3) => {}
        }
        let renewed = async {
            let mut connection = db.acquire().await?;
            erasures::renew(&mut connection, &ids, &attempts, lease.as_secs_f64()).await
        };
        if let Err(error) = renewed.await {
            tracing::warn!(error = %error.to_string().lines().next().unwrap_or_default(),
                "cannot renew the leases of erasures");
        }
    }
}
