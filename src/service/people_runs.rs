//! Runs of policies that deal with people: who is due is made anonymous, and a purge asks for the
//! erasure of accounts that it must keep.

use std::num::NonZeroU32;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::erasures::{Request, k_anonymity};
use super::{Caller, Permission, ServiceError, Services};
use crate::db::erasures::{Grace, Source, Which};
use crate::policy::{Anonymize, IfReferenced, Kind, OnFewerThanK, Policies, Policy, Purge};
use crate::retention::account;
use crate::retention::anonymize::{
    self, EraseError, Eraser, HoldGate, KAnonymity, Plan, Scope, SmallGroups, count_referenced,
    lock_referenced,
};
use crate::retention::catalog::Catalog;
use crate::retention::certificate::CertificateError;
use crate::retention::chunk::{Attempt, ChunkLoop};
use crate::retention::engine::{self, Outcome};
use crate::retention::error::RetentionError;
use crate::retention::guard::Guard;
use crate::retention::keyring::{KeyError, Keyring};
use crate::retention::ledger::LedgerError;
use crate::retention::plan::{self, Preview};
use crate::retention::run::{self, Claimed};
use crate::retention::sql::TableName;

/// Accounts closed in one transaction.
const ACCOUNTS_PER_CHUNK: i64 = 50;
/// The place of the people among a run's tables.
const PEOPLE: i32 = 0;

impl Services {
    /// Works on a run, whatever its policy's kind.
    ///
    /// # Errors
    /// [`RetentionError`]; everything committed so far stays done and accounted for.
    pub async fn work_on_run(
        &self,
        policies: &Policies,
        policy: &Policy,
        claimed: &Claimed,
        attempt: &Attempt,
    ) -> Result<Outcome, RetentionError> {
        let mut connection = self.db.acquire().await?;
        let has_begun = !run::tables_of(&mut connection, claimed.id).await?.is_empty();
        drop(connection);
        // Nobody looked at a run of the schedule, and of others things may have changed since.
        if !has_begun {
            self.require_fit(policies, policy).await.map_err(of_service)?;
        }
        let classification = Arc::new(policies.classification.clone());
        let keyring = self.keyring().ok();
        let engine = engine::run(
            &self.db,
            &self.store,
            keyring.as_ref(),
            policy,
            &classification,
            claimed,
            attempt,
        );
        match &policy.kind {
            Kind::Anonymize(anonymize) => {
                Box::pin(self.run_anonymize(policies, policy, anonymize, claimed, attempt)).await
            }
            Kind::Purge(purge) => {
                let outcome = Box::pin(engine).await?;
                if outcome == Outcome::Completed {
                    self.erase_referenced(policies, policy, purge, claimed, attempt).await?;
                }
                Ok(outcome)
            }
            Kind::Archive(_)
            | Kind::AnonymizeRows(_)
            | Kind::ExpireResults(_)
            | Kind::Backup(_)
            | Kind::VerifyBackup(_)
            | Kind::PruneBackups(_)
            | Kind::Report(_) => Box::pin(engine).await,
        }
    }

    /// Who is due, held or cannot be told.
    pub(super) async fn preview_people(
        &self,
        connection: &mut PgConnection,
        policies: &Policies,
        policy: &Policy,
        anonymize: &Anonymize,
        as_of: Option<DateTime<Utc>>,
    ) -> Result<Preview, ServiceError> {
        let keyring = self.keyring()?;
        let plan = self.plan(policies, &subject_of(anonymize)).await?;
        let found = self.people(connection, policies, policy, &plan, &keyring, as_of).await?;
        Ok(found)
    }

    async fn people(
        &self,
        connection: &mut PgConnection,
        policies: &Policies,
        policy: &Policy,
        plan: &Plan,
        keyring: &Keyring,
        as_of: Option<DateTime<Utc>>,
    ) -> Result<Preview, RetentionError> {
        let as_of = match as_of {
            Some(as_of) => as_of,
            None => sqlx::query_scalar("select now()").fetch_one(&mut *connection).await?,
        };
        let classification = Arc::new(policies.classification.clone());
        let guard = Guard::load(&mut *connection, &classification).await?;
        let scope = Scope {
            plan,
            guard: &guard,
            keys: keyring.ids().map(str::to_owned).collect(),
            batch: self.config.erasure.batch.get(),
        };
        anonymize::preview(connection, policy, &scope, as_of).await
    }

    /// Carries out the erasures that were due when the run was asked for, go after go.
    async fn run_anonymize(
        &self,
        policies: &Policies,
        policy: &Policy,
        anonymize: &Anonymize,
        claimed: &Claimed,
        attempt: &Attempt,
    ) -> Result<Outcome, RetentionError> {
        engine::check_unchanged(policy, claimed)?;
        let keyring = self.keyring().map_err(|error| bad_keys(&error))?;
        let subject = subject_of(anonymize);
        let plan = self.plan(policies, &subject).await.map_err(of_service)?;
        let mut connection = self.db.acquire().await?;
        let known = run::tables_of(&mut connection, claimed.id).await?;
        drop(connection);
        if known.is_empty() {
            let mut tx = self.db.begin().await?;
            sqlx::query("set transaction isolation level repeatable read")
                .execute(&mut *tx)
                .await?;
            let as_of = Some(claimed.as_of);
            let found = self.people(&mut tx, policies, policy, &plan, &keyring, as_of).await?;
            tx.commit().await?;
            if let Some(why) = engine::admit(&self.db, &found, policy, claimed, attempt).await? {
                return Ok(Outcome::NeedsApproval(why));
            }
        }
        let k_anonymity = k_anonymity(policies, &subject);
        let classification = Arc::new(policies.classification.clone());
        let holds = {
            let mut connection = self.db.acquire().await?;
            HoldGate::load(&mut connection, classification).await
        };
        let holds = holds.map_err(|error| RetentionError::refused("holds", error.to_string()))?;
        let eraser = Eraser {
            db: &self.db,
            store: &self.store,
            keyring: &keyring,
            plan: &plan,
            holds: &holds,
            k_anonymity: k_anonymity.as_ref(),
            settings: self.erasure_settings(),
        };
        self.erase_people(&eraser, policy, claimed, attempt).await?;
        self.end_people(&subject, attempt).await?;
        if let (Some(check), Some(declared)) = (&k_anonymity, &anonymize.k_anonymity)
            && declared.on_fail == OnFewerThanK::Fail
        {
            let small = check.small_groups(&self.db, &plan).await?;
            if small.groups > 0 {
                let message = format!(
                    "the people are anonymous, but {} groups by {} are smaller than k = {}, with \
                     {} people in all: coarsen a column in classification.toml",
                    small.groups,
                    check.quasi.join(", "),
                    small.k,
                    small.people,
                );
                return Err(RetentionError::refused("small_groups", message));
            }
        }
        Ok(Outcome::Completed)
    }

    async fn erase_people(
        &self,
        eraser: &Eraser<'_>,
        policy: &Policy,
        claimed: &Claimed,
        attempt: &Attempt,
    ) -> Result<(), RetentionError> {
        let mut calm = ChunkLoop::new(attempt, policy.limits, policy.time_zone);
        let mut tx = self.begin_for(attempt).await?;
        run::begin_table(&mut tx, attempt.run_id, PEOPLE).await?;
        tx.commit().await?;
        let which = Which::ForRun { run_id: claimed.id, as_of: claimed.as_of };
        // Each go ends erasures or puts them off behind the run's instant: there is a last one.
        loop {
            if attempt.stop.is_cancelled() {
                return Err(RetentionError::Stopped);
            }
            calm.wait_for_calm(&mut *self.db.acquire().await?).await?;
            // A run that was paused or cancelled begins no further go.
            self.begin_for(attempt).await?.commit().await?;
            let Some(outcome) = eraser.next_go(which).await.map_err(of_erasure)? else {
                return Ok(());
            };
            metrics::counter!("registrar_lifecycle_rows_total", "action" => "anonymize")
                .increment(outcome.completed);
            let mut tx = self.begin_for(attempt).await?;
            run::store_people(&mut tx, attempt.run_id, PEOPLE).await?;
            tx.commit().await?;
        }
    }

    /// Closes the account of the run: people, then what was changed for them, table by table.
    async fn end_people(
        &self,
        subject: &TableName,
        attempt: &Attempt,
    ) -> Result<(), RetentionError> {
        let mut tx = self.begin_for(attempt).await?;
        run::store_people(&mut tx, attempt.run_id, PEOPLE).await?;
        run::store_people_tables(&mut tx, attempt.run_id, &subject.plain()).await?;
        let size: Option<i64> =
            sqlx::query_scalar("select pg_total_relation_size(to_regclass($1))")
                .bind(subject.to_string())
                .fetch_one(&mut *tx)
                .await?;
        run::end_table(&mut tx, attempt.run_id, PEOPLE, size.unwrap_or_default()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// A transaction that holds the run's row, if it is ours still.
    async fn begin_for(
        &self,
        attempt: &Attempt,
    ) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, RetentionError> {
        let mut tx = self.db.begin().await?;
        let Attempt { run_id, number, lease_secs, .. } = *attempt;
        if !run::fence(&mut tx, run_id, number, lease_secs).await? {
            return Err(RetentionError::Lost);
        }
        Ok(tx)
    }

    /// Asks for the erasure of accounts that the purge has left because others reference them:
    /// one erasure for each, without a grace, because theirs is over.
    async fn erase_referenced(
        &self,
        policies: &Policies,
        policy: &Policy,
        purge: &Purge,
        claimed: &Claimed,
        attempt: &Attempt,
    ) -> Result<(), RetentionError> {
        let tables = erased_tables(purge);
        if tables.is_empty() {
            return Ok(());
        }
        let mut connection = self.db.acquire().await?;
        let catalog = Catalog::read(&mut connection).await?;
        let classification = Arc::new(policies.classification.clone());
        let rules =
            plan::Plan::compile(&mut connection, &catalog, &classification, policy, claimed.as_of)
                .await?;
        let mut guard = Guard::load(&mut connection, &classification).await?;
        drop(connection);
        let system = Caller::operator(String::new());
        for rule in rules.rules().filter(|rule| tables.contains(&rule.table)) {
            let mut tools: Option<(Plan, Keyring)> = None;
            loop {
                if attempt.stop.is_cancelled() {
                    return Err(RetentionError::Stopped);
                }
                let mut tx = self.begin_for(attempt).await?;
                engine::set_zone(&mut tx, policy.time_zone).await?;
                let people =
                    lock_referenced(&mut tx, &catalog, &mut guard, rule, ACCOUNTS_PER_CHUNK)
                        .await?;
                if people.is_empty() {
                    break;
                }
                if tools.is_none() {
                    let plan = self.people_plan(policies, &rule.table).await?;
                    tools = Some((plan, self.keyring().map_err(|error| bad_keys(&error))?));
                }
                let Some((plan, keyring)) = &tools else { break };
                for subject_id in &people {
                    let locked = account::lock(&mut tx, plan, subject_id).await?;
                    let Some(locked) = locked else { continue };
                    let request = Request {
                        subject_id,
                        source: Source::Purge,
                        grace: Grace::days(0),
                        key: None,
                        asked_by_run: Some(claimed.id),
                    };
                    self.close(&mut tx, &system, plan, keyring, &locked, request)
                        .await
                        .map_err(of_service)?;
                }
                tx.commit().await?;
            }
        }
        Ok(())
    }

    async fn people_plan(
        &self,
        policies: &Policies,
        table: &TableName,
    ) -> Result<Plan, RetentionError> {
        if !Plan::subjects(&policies.classification).contains(table) {
            let message = format!(
                "`if_referenced = \"anonymize\"` needs an `account` for [{}] in classification.toml",
                table.plain()
            );
            return Err(RetentionError::refused("no_account", message));
        }
        self.plan(policies, table).await.map_err(of_service)
    }

    /// Counts groups of people who look alike and are fewer than k: the policy's, or another.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], [`ServiceError::Refused`] for a
    /// policy that names no columns to look at.
    pub async fn count_small_groups(
        &self,
        caller: &Caller,
        name: &str,
        k: Option<NonZeroU32>,
    ) -> Result<SmallGroups, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let policies = self.policies().await?;
        let policy = policies.get(name).ok_or(ServiceError::NotFound { what: "policy" })?;
        let declared = match &policy.kind {
            Kind::Anonymize(anonymize) => anonymize.k_anonymity.as_ref().zip(Some(anonymize)),
            _ => None,
        };
        let Some((declared, anonymize)) = declared else {
            let message = format!(
                "policy `{name}` has no `k_anonymity = {{ quasi = [\"column\"], k = 5, on_fail = \
                 \"report\" }}`: give it one"
            );
            return Err(ServiceError::refused("no_k_anonymity", message));
        };
        let plan = self.plan(&policies, &subject_of(anonymize)).await?;
        let quasi = declared.quasi.iter().map(|column| column.as_str().to_owned()).collect();
        let check = KAnonymity { quasi, k: k.unwrap_or(declared.k).get() };
        Ok(check.small_groups(&self.db, &plan).await?)
    }

    /// Adds to a purge's preview how many accounts would be erased instead of deleted.
    pub(super) async fn preview_referenced(
        &self,
        connection: &mut PgConnection,
        policies: &Policies,
        policy: &Policy,
        purge: &Purge,
        preview: &mut Preview,
    ) -> Result<(), RetentionError> {
        let tables = erased_tables(purge);
        if tables.is_empty() {
            return Ok(());
        }
        let catalog = Catalog::read(&mut *connection).await?;
        let classification = Arc::new(policies.classification.clone());
        let rules =
            plan::Plan::compile(&mut *connection, &catalog, &classification, policy, preview.as_of)
                .await?;
        let guard = Guard::load(&mut *connection, &classification).await?;
        for rule in rules.rules().filter(|rule| tables.contains(&rule.table)) {
            let count = count_referenced(&mut *connection, &catalog, &guard, rule).await?;
            let name = rule.table.plain();
            if let Some(table) = preview.tables.iter_mut().find(|table| table.table == name) {
                table.to_erase = Some(count);
            }
        }
        Ok(())
    }
}

fn subject_of(anonymize: &Anonymize) -> TableName {
    TableName::new(anonymize.subject.schema(), anonymize.subject.table())
}

/// Tables whose referenced rows are people to be erased.
fn erased_tables(purge: &Purge) -> Vec<TableName> {
    let tables = purge.tables.iter().filter(|t| t.if_referenced == IfReferenced::Anonymize);
    tables.map(|table| TableName::new(table.name.schema(), table.name.table())).collect()
}

fn bad_keys(error: &KeyError) -> RetentionError {
    RetentionError::refused("bad_keys", error.to_string())
}

fn of_erasure(error: EraseError) -> RetentionError {
    match error {
        EraseError::Database(error)
        | EraseError::Certificate(CertificateError::Database(error)) => error.into(),
        EraseError::Store(_)
        | EraseError::Ledger(LedgerError::Store(_))
        | EraseError::Certificate(
            CertificateError::Store(_) | CertificateError::Ledger(LedgerError::Store(_)),
        ) => RetentionError::Unavailable { what: "the object store" },
        EraseError::LeaseLost => RetentionError::Unavailable { what: "the lease of an erasure" },
        error @ (EraseError::Ledger(_)
        | EraseError::Certificate(_)
        | EraseError::Key(_)
        | EraseError::Holds(_)
        | EraseError::BadSeal
        | EraseError::Names(_)) => RetentionError::refused("erasure_failed", error.to_string()),
    }
}

fn of_service(error: ServiceError) -> RetentionError {
    match error {
        ServiceError::Refused { code, message } => RetentionError::Refused { code, message },
        ServiceError::DatabaseUnavailable(error) => error.into(),
        ServiceError::StoreUnavailable(_) => {
            RetentionError::Unavailable { what: "the object store" }
        }
        error => {
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "a run failed");
            RetentionError::refused("internal", "the run failed for a reason that is in the log")
        }
    }
}
