//! Erasures: requested, taken back, carried out, replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use serde::Serialize;
use serde_json::json;
use sqlx::Row;

use super::{Caller, Permission, ServiceError, Services};
use crate::db::audit::{self, Actor};
use crate::db::erasures::{self, Erasure, Grace, NewErasure, Source, Status, Which};
use crate::policy::{Anonymize, Kind, Policies, Policy};
use crate::retention::account::{self, Kept, ReopenError, sealed_about};
use crate::retention::anonymize::{
    EraseError, Eraser, HoldGate, KAnonymity, Outcome, Plan, PlanError, Settings,
};
use crate::retention::certificate::{self, CertificateError, CertifiedPurges};
use crate::retention::keyring::{KeyError, Keyring};
use crate::retention::ledger::{self, LedgerError, LedgerObject, Purge, Step, Told};
use crate::retention::run;
use crate::retention::sql::{self, TableName};

/// Days of grace where no policy says otherwise.
const DEFAULT_GRACE_DAYS: u32 = 30;
/// Longest key of a person, in characters.
const MAX_KEY_CHARS: usize = 200;

/// What a replay of the ledger did.
#[derive(Debug, Default, Serialize)]
pub struct Replayed {
    /// Entries of the ledger.
    pub entries: u64,
    /// Entries whose seal is broken: they were not replayed.
    pub broken: Vec<String>,
    /// Certificates taken up from the store.
    pub certificates: u64,
    /// People of the ledger that this database still knows.
    pub found: u64,
    /// What was carried out.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Services {
    /// Requests the erasure of a person: the account is closed at once, the rest follows after the
    /// grace. Asking again gives the erasure that is open.
    ///
    /// # Errors
    /// [`ServiceError`]: forbidden, no such person, or not set up.
    pub async fn request_erasure(
        &self,
        caller: &Caller,
        table: Option<&str>,
        subject_id: &str,
    ) -> Result<Erasure, ServiceError> {
        caller.require(Permission::UsersManage)?;
        let (policies, keyring) = self.erasing().await?;
        let subject = subject_of(&policies, table)?;
        let plan = self.plan(&policies, &subject).await?;
        if subject_id.chars().count() > MAX_KEY_CHARS {
            return Err(ServiceError::NotFound { what: "person" });
        }
        let mut tx = self.db.begin().await?;
        let locked = account::lock(&mut tx, &plan, subject_id).await?;
        let locked = locked.ok_or(ServiceError::NotFound { what: "person" })?;
        let grace = grace(&policies, &subject);
        let new =
            Request { subject_id, source: Source::Request, grace, key: None, asked_by_run: None };
        let id = self.close(&mut tx, caller, &plan, &keyring, &locked, new).await?;
        let Some(id) = id else {
            let open = erasures::find_open(&mut tx, &subject.plain(), subject_id).await?;
            return open.ok_or(ServiceError::NotFound { what: "person" });
        };
        let erasure = erasures::find(&mut tx, id).await?;
        tx.commit().await?;
        erasure.ok_or(ServiceError::NotFound { what: "erasure" })
    }

    /// Closes an account and stores its erasure. `None`: one is open already.
    pub(super) async fn close(
        &self,
        connection: &mut sqlx::PgConnection,
        caller: &Caller,
        plan: &Plan,
        keyring: &Keyring,
        locked: &account::Locked,
        request: Request<'_>,
    ) -> Result<Option<i64>, ServiceError> {
        let table = plan.subject.table.plain();
        let key_id = request.key.unwrap_or_else(|| keyring.active_id());
        let key = keyring.key(key_id)?;
        let token = ledger::token(key, &table, request.subject_id, locked.born.as_deref());
        let new = NewErasure {
            subject_table: &table,
            subject_id: request.subject_id,
            source: request.source,
            requested_by: caller.user_id,
            grace: &request.grace,
            key_id,
            ledger_token: &token,
            asked_by_run: request.asked_by_run,
        };
        let Some(id) = erasures::insert(&mut *connection, &new).await? else { return Ok(None) };
        let about = sealed_about(&table, request.subject_id);
        let sealed = key.seal(&about, &locked.kept.to_bytes())?;
        erasures::seal_request(&mut *connection, id, &sealed).await?;
        account::close(&mut *connection, plan, request.subject_id, key).await?;
        let action = match request.source {
            Source::Request | Source::Purge => "erasure.requested",
            Source::Replay => "erasure.replayed",
        };
        record(connection, &caller.actor, action, id).await?;
        Ok(Some(id))
    }

    /// Takes an erasure back whose act has not begun: the account is as it was, but for its
    /// tokens, which stay revoked.
    ///
    /// # Errors
    /// [`ServiceError::Refused`] where it has begun, or somebody else has the username by now.
    pub async fn cancel_erasure(&self, caller: &Caller, id: i64) -> Result<Erasure, ServiceError> {
        caller.require(Permission::UsersManage)?;
        let (policies, keyring) = self.erasing().await?;
        let mut tx = self.db.begin().await?;
        let erasure = erasures::find(&mut tx, id).await?;
        let erasure = erasure.ok_or(ServiceError::NotFound { what: "erasure" })?;
        let Some(sealed) = erasures::lock_for_cancel(&mut tx, id).await? else {
            let why = match erasure.status {
                Status::Waiting | Status::Held | Status::Processing => "its act has begun",
                Status::Completed => "it is completed",
                Status::Cancelled => "it is cancelled already",
            };
            return Err(ServiceError::refused(
                "wrong_state",
                format!("erasure {id} cannot be cancelled: {why}"),
            ));
        };
        let subject = subject_of(&policies, Some(&erasure.subject_table))?;
        let plan = self.plan(&policies, &subject).await?;
        let about = sealed_about(&erasure.subject_table, &erasure.subject_id);
        let bytes = sealed.sealed.unwrap_or_default();
        let bytes = keyring.open(&sealed.key_id, &about, &bytes)?;
        let kept = Kept::from_bytes(&bytes).ok_or_else(|| {
            ServiceError::Internal(anyhow::anyhow!("what was sealed is no record"))
        })?;
        match account::reopen(&mut tx, &plan, &erasure.subject_id, &kept).await {
            Ok(()) => {}
            Err(ReopenError::Database(error)) => return Err(error.into()),
            Err(error @ (ReopenError::Taken { .. } | ReopenError::Gone)) => {
                return Err(ServiceError::refused(
                    "names_taken",
                    format!("erasure {id} cannot be cancelled: {error}"),
                ));
            }
        }
        if !erasures::cancel(&mut tx, id).await? {
            return Err(ServiceError::refused("has_begun", format!("erasure {id} has begun")));
        }
        record(&mut tx, &caller.actor, "erasure.cancelled", id).await?;
        let erasure = erasures::find(&mut tx, id).await?;
        tx.commit().await?;
        erasure.ok_or(ServiceError::NotFound { what: "erasure" })
    }

    /// Lists erasures, newest first.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], or the database's.
    pub async fn list_erasures(
        &self,
        caller: &Caller,
        status: Option<Status>,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<Erasure>, ServiceError> {
        caller.require(Permission::UsersManage)?;
        Ok(erasures::list(&self.db, status, before, limit).await?)
    }

    /// One erasure.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], or the database's.
    pub async fn erasure(&self, caller: &Caller, id: i64) -> Result<Erasure, ServiceError> {
        caller.require(Permission::UsersManage)?;
        let mut connection = self.db.acquire().await?;
        let found = erasures::find(&mut connection, id).await?;
        found.ok_or(ServiceError::NotFound { what: "erasure" })
    }

    /// Whether this installation has keys for erasures.
    pub fn can_erase(&self) -> bool {
        !self.config.erasure.keys.is_empty()
    }

    /// Carries out every erasure whose grace is over and that no hold keeps.
    ///
    /// # Errors
    /// [`ServiceError`]; what was not ended is tried again.
    pub async fn carry_out_erasures(&self) -> Result<Outcome, ServiceError> {
        self.carry_out(|_, _| Which::Due).await
    }

    /// The part of it that no schedule does: erasures of people for whom no policy runs by itself,
    /// and those that have begun and were put off.
    ///
    /// # Errors
    /// [`ServiceError`]; what was not ended is tried again.
    pub async fn carry_out_left(&self) -> Result<Outcome, ServiceError> {
        self.carry_out(|policies, subject| {
            let policy = anonymize_policy(policies, subject);
            let runs_by_itself = policy.is_some_and(|(policy, _)| policy.schedule.is_some());
            if runs_by_itself { Which::Begun } else { Which::Due }
        })
        .await
    }

    async fn carry_out(
        &self,
        which: impl Fn(&Policies, &TableName) -> Which,
    ) -> Result<Outcome, ServiceError> {
        let (policies, keyring) = self.erasing().await?;
        let classification = Arc::new(policies.classification.clone());
        let mut total = Outcome::default();
        for subject in Plan::subjects(&policies.classification) {
            let plan = self.plan(&policies, &subject).await?;
            let holds = {
                let mut connection = self.db.acquire().await?;
                let holds = HoldGate::load(&mut connection, Arc::clone(&classification)).await;
                holds.map_err(|error| ServiceError::Internal(error.into()))?
            };
            let k_anonymity = k_anonymity(&policies, &subject);
            let eraser = Eraser {
                db: &self.db,
                store: &self.store,
                keyring: &keyring,
                plan: &plan,
                holds: &holds,
                k_anonymity: k_anonymity.as_ref(),
                settings: self.erasure_settings(),
            };
            total.add(Box::pin(eraser.carry_out(which(&policies, &subject))).await?);
        }
        Ok(total)
    }

    /// Applies the ledger to this database: whoever it says was erased, and is here again after a
    /// restore, is erased again, without a grace. A second replay finds nobody.
    ///
    /// # Errors
    /// [`ServiceError`]; another replay goes on where this one ended.
    pub async fn replay_erasures(&self, caller: &Caller) -> Result<Replayed, ServiceError> {
        caller.require(Permission::RetentionApprove)?;
        let (policies, keyring) = self.erasing().await?;
        let mut replayed = Replayed {
            certificates: certificate::adopt(&self.db, &self.store, &keyring).await?,
            ..Replayed::default()
        };
        let certified = CertifiedPurges::read(&self.db).await?;
        // By table: the tokens of each key.
        let mut erased: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        let mut purges: Vec<(LedgerObject, Purge)> = Vec::new();
        for (object, entry) in ledger::list(&self.store, &keyring).await? {
            replayed.entries += 1;
            match entry {
                Ok(Told::Erasure(entry)) if entry.step == Step::Begun => {
                    let keys = erased.entry(entry.table).or_default();
                    keys.entry(entry.key_id).or_default().insert(entry.token);
                }
                Ok(Told::Purge(purge)) if !certified.is_void(&object.path, &purge) => {
                    let keys = erased.entry(purge.table.clone()).or_default();
                    let tokens = keys.entry(purge.key_id.clone()).or_default();
                    tokens.extend(purge.tokens.iter().cloned());
                    purges.push((object, purge));
                }
                Ok(Told::Erasure(_) | Told::Purge(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, "an entry of the erasure ledger is not replayed");
                    replayed.broken.push(object.path);
                }
            }
        }
        for subject in Plan::subjects(&policies.classification) {
            let Some(tokens) = erased.remove(&subject.plain()) else { continue };
            let plan = self.plan(&policies, &subject).await?;
            for (subject_id, key_id) in self.find_erased(&plan, &keyring, &tokens).await? {
                replayed.found += 1;
                self.erase_again(caller, &plan, &keyring, &subject_id, &key_id).await?;
            }
        }
        replayed.outcome = self.carry_out_erasures().await?;
        for (object, purge) in purges {
            let people = i64::try_from(purge.tokens.len()).unwrap_or(i64::MAX);
            run::note_replayed_purge(&self.db, purge.run, &object, people).await?;
        }
        Ok(replayed)
    }

    /// People of the ledger that are in the table and whose erasure this database does not know
    /// as completed.
    async fn find_erased(
        &self,
        plan: &Plan,
        keyring: &Keyring,
        tokens: &BTreeMap<String, BTreeSet<String>>,
    ) -> Result<Vec<(String, String)>, ServiceError> {
        let table = plan.subject.table.plain();
        let known = erasures::known_tokens(&self.db, &table).await?;
        let done: BTreeSet<_> =
            known.into_iter().filter(|(_, done)| *done).map(|(token, _)| token).collect();
        let mut found = Vec::new();
        let mut tx = self.db.begin().await?;
        sqlx::query(
            "select set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO', true)",
        )
        .execute(&mut *tx)
        .await?;
        let statement = format!(
            "select t.{}::text as id, {} as born from {} t",
            plan.subject.key.name,
            account::born_expression(plan),
            plan.subject.table,
        );
        {
            let mut rows = sqlx::query(sql::dynamic(statement)).fetch(&mut *tx);
            while let Some(row) = rows.try_next().await? {
                let (id, born): (String, Option<String>) =
                    (row.try_get("id")?, row.try_get("born")?);
                for (key_id, tokens) in tokens {
                    let token = ledger::token(keyring.key(key_id)?, &table, &id, born.as_deref());
                    if tokens.contains(&token) && !done.contains(&token) {
                        found.push((id.clone(), key_id.clone()));
                    }
                }
            }
        }
        tx.commit().await?;
        Ok(found)
    }

    async fn erase_again(
        &self,
        caller: &Caller,
        plan: &Plan,
        keyring: &Keyring,
        subject_id: &str,
        key_id: &str,
    ) -> Result<(), ServiceError> {
        let mut tx = self.db.begin().await?;
        let Some(locked) = account::lock(&mut tx, plan, subject_id).await? else { return Ok(()) };
        let request = Request {
            subject_id,
            source: Source::Replay,
            grace: Grace::days(0),
            key: Some(key_id),
            asked_by_run: None,
        };
        if self.close(&mut tx, caller, plan, keyring, &locked, request).await?.is_none() {
            let table = plan.subject.table.plain();
            erasures::hasten(&mut tx, &table, &[subject_id.to_owned()]).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn erasing(&self) -> Result<(Policies, Keyring), ServiceError> {
        let policies = self.policies().await?;
        Ok((policies, self.keyring()?))
    }

    pub(super) async fn plan(
        &self,
        policies: &Policies,
        subject: &TableName,
    ) -> Result<Plan, ServiceError> {
        let mut connection = self.db.acquire().await?;
        Ok(Plan::make(&mut connection, &policies.classification, subject).await?)
    }

    pub(super) fn erasure_settings(&self) -> Settings {
        let config = &self.config.erasure;
        Settings {
            batch: config.batch.get(),
            chunk_rows: config.chunk_rows.get(),
            lease: Duration::from_secs(u64::from(config.lease_secs.get())),
            retry: Duration::from_secs(u64::from(config.retry_secs.get())),
        }
    }
}

/// An erasure to be stored.
pub(super) struct Request<'a> {
    pub(super) subject_id: &'a str,
    pub(super) source: Source,
    pub(super) grace: Grace,
    /// The key of the ledger's entry, where there is one.
    pub(super) key: Option<&'a str>,
    pub(super) asked_by_run: Option<i64>,
}

/// The table of people that is meant: the one named, or the only one.
fn subject_of(policies: &Policies, table: Option<&str>) -> Result<TableName, ServiceError> {
    let subjects = Plan::subjects(&policies.classification);
    match (table, subjects.as_slice()) {
        (Some(table), _) => subjects
            .iter()
            .find(|subject| subject.plain() == table)
            .cloned()
            .ok_or(ServiceError::NotFound { what: "table of people" }),
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(ServiceError::refused(
            "no_account",
            "classification.toml names no table of people: give one an `account`",
        )),
        (None, _) => Err(ServiceError::BadField {
            field: "/table",
            expected: "must name one of the tables of people".to_owned(),
        }),
    }
}

/// The policy that carries out the erasures of a table, with the zone of its calendar.
fn anonymize_policy<'a>(
    policies: &'a Policies,
    subject: &TableName,
) -> Option<(&'a Policy, &'a Anonymize)> {
    let mut enabled = policies.policies.values().filter(|policy| policy.enabled);
    enabled.find_map(|policy| match &policy.kind {
        Kind::Anonymize(anonymize)
            if anonymize.subject.table() == subject.name.as_str()
                && anonymize.subject.schema() == subject.schema.as_str() =>
        {
            Some((policy, anonymize))
        }
        _ => None,
    })
}

/// How long a request can be taken back.
fn grace(policies: &Policies, subject: &TableName) -> Grace {
    match anonymize_policy(policies, subject) {
        Some((policy, anonymize)) => Grace {
            calendar: anonymize.grace.calendar(),
            elapsed: anonymize.grace.elapsed(),
            time_zone: policy.time_zone.name().to_owned(),
        },
        None => Grace::days(DEFAULT_GRACE_DAYS),
    }
}

/// What the policy of this table says of small groups.
pub(super) fn k_anonymity(policies: &Policies, subject: &TableName) -> Option<KAnonymity> {
    let (_, anonymize) = anonymize_policy(policies, subject)?;
    let check = anonymize.k_anonymity.as_ref()?;
    let quasi = check.quasi.iter().map(|column| column.as_str().to_owned()).collect();
    Some(KAnonymity { quasi, k: check.k.get() })
}

async fn record(
    connection: &mut sqlx::PgConnection,
    actor: &Actor,
    action: &str,
    id: i64,
) -> Result<(), sqlx::Error> {
    let event =
        audit::Event { action, entity_type: "erasures", entity_id: Some(id), details: json!({}) };
    audit::record(connection, actor, event).await
}

impl From<KeyError> for ServiceError {
    fn from(error: KeyError) -> Self {
        Self::refused("bad_keys", error.to_string())
    }
}

impl From<PlanError> for ServiceError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Database(error) => error.into(),
            PlanError::Faults(_) => Self::refused("bad_plan", error.to_string()),
        }
    }
}

impl From<LedgerError> for ServiceError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => Self::StoreUnavailable(error),
            LedgerError::Key(error) => error.into(),
            LedgerError::Tampered { .. } => Self::refused("tampered", error.to_string()),
        }
    }
}

impl From<CertificateError> for ServiceError {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::Database(error) => error.into(),
            CertificateError::Store(error) => Self::StoreUnavailable(error),
            CertificateError::Key(error) => error.into(),
            CertificateError::Ledger(error) => error.into(),
        }
    }
}

impl From<EraseError> for ServiceError {
    fn from(error: EraseError) -> Self {
        match error {
            EraseError::Database(error) => error.into(),
            EraseError::Store(error) => Self::StoreUnavailable(error),
            EraseError::Ledger(error) => error.into(),
            EraseError::Certificate(error) => error.into(),
            EraseError::Key(error) => error.into(),
            error @ (EraseError::Holds(_)
            | EraseError::BadSeal
            | EraseError::Names(_)
            | EraseError::LeaseLost) => Self::Internal(error.into()),
        }
    }
}
