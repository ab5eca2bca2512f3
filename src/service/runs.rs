//! Lifecycle runs: preview, start, approve, pause, resume, cancel; and taking archived rows back.

use std::sync::Arc;

use serde_json::json;
use sqlx::PgConnection;

use super::{Caller, Permission, ServiceError, Services};
use crate::db::{audit, sqlstate};
use crate::policy::{ApprovalRule, Kind, Policies, Policy};
use crate::queue;
use crate::retention::catalog::Catalog;
use crate::retention::check::{self, Severity};
use crate::retention::engine;
use crate::retention::error::RetentionError;
use crate::retention::export;
use crate::retention::people_ledger::deletes_people;
use crate::retention::plan::{self, Preview};
use crate::retention::restore::{self, ArchiveTable, Restored, Which, keys_fit, restore_table};
use crate::retention::run::{self, NewRun, Origin, Run, RunExport, RunFilter, RunStatus, RunTable};
use crate::retention::sql::TableName;

/// How old a preview may be that a run is started from.
const MAX_PREVIEW_AGE_HOURS: i64 = 24;
const STALE: &str = "the rows or the policy have changed since the preview: look at a new one";
/// A preview reads whole tables, but not for ever.
const PREVIEW_TIMEOUT: &str = "10min";

/// A run with its tables.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct RunDetail {
    /// The run.
    #[serde(flatten)]
    pub run: Run,
    /// Its tables, in order; none before it has begun.
    pub tables: Vec<RunTable>,
    /// Seconds until it is done, as far as one can tell.
    pub estimated_secs_left: Option<i64>,
}

impl From<RetentionError> for ServiceError {
    fn from(error: RetentionError) -> Self {
        match error {
            RetentionError::Refused { code, message } => Self::Refused { code, message },
            RetentionError::Database(error) => match sqlstate(&error).as_deref() {
                // Names and types that the database does not know: an operator's condition.
                Some(code) if code.starts_with("42") => {
                    let said = error.as_database_error().map(|e| e.message().to_owned());
                    Self::Refused {
                        code: "bad_condition",
                        message: format!(
                            "the database refuses the policy's conditions: {}",
                            said.unwrap_or_default()
                        ),
                    }
                }
                _ => error.into(),
            },
            RetentionError::Store(error) => error.into(),
            other @ (RetentionError::Lost
            | RetentionError::Stopped
            | RetentionError::Locked { .. }
            | RetentionError::Busy { .. }
            | RetentionError::SlowStore { .. }
            | RetentionError::Unavailable { .. }
            | RetentionError::Unequal { .. }) => {
                Self::Refused { code: other.code(), message: other.to_string() }
            }
        }
    }
}

impl Services {
    /// What a policy would do now.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], [`ServiceError::Refused`]
    pub async fn preview_run(&self, caller: &Caller, name: &str) -> Result<Preview, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let policies = self.policies().await?;
        let policy = find(&policies, name)?;
        let preview = self.preview_at(&policies, policy, None).await?;
        self.note_backlog(&preview).await?;
        Ok(preview)
    }

    async fn preview_at(
        &self,
        policies: &Policies,
        policy: &Policy,
        as_of: Option<chrono::DateTime<chrono::Utc>>,
    ) -> Result<Preview, ServiceError> {
        self.preview_within(policies, policy, as_of, PREVIEW_TIMEOUT).await
    }

    pub(super) async fn preview_within(
        &self,
        policies: &Policies,
        policy: &Policy,
        as_of: Option<chrono::DateTime<chrono::Utc>>,
        timeout: &str,
    ) -> Result<Preview, ServiceError> {
        let classification = Arc::new(policies.classification.clone());
        let mut tx = self.db.begin().await?;
        // One snapshot for all tables.
        sqlx::query("set transaction isolation level repeatable read, read only")
            .execute(&mut *tx)
            .await?;
        sqlx::query("select set_config('statement_timeout', $1, true)")
            .bind(timeout)
            .execute(&mut *tx)
            .await?;
        let preview = match &policy.kind {
            Kind::Anonymize(anonymize) => {
                self.preview_people(&mut tx, policies, policy, anonymize, as_of).await?
            }
            _ => {
                let keyring = self.keyring().ok();
                let keyring = keyring.as_ref();
                engine::preview_policy(&mut tx, keyring, policy, &classification, as_of).await?
            }
        };
        let mut preview = preview;
        if let Kind::Purge(purge) = &policy.kind {
            self.preview_referenced(&mut tx, policies, policy, purge, &mut preview).await?;
        }
        tx.rollback().await?;
        Ok(preview)
    }

    /// Stores a run of what the caller has seen in a preview, with its ticket.
    ///
    /// # Errors
    /// [`ServiceError::Refused`]: without a digest, with a stale one, or while another run of the
    /// policy is not finished.
    pub async fn start_run(
        &self,
        caller: &Caller,
        name: &str,
        digest: Option<&str>,
    ) -> Result<RunDetail, ServiceError> {
        caller.require(Permission::RetentionRun)?;
        let policies = self.policies().await?;
        let policy = find(&policies, name)?;
        if !policy.enabled {
            return Err(ServiceError::refused(
                "disabled",
                format!("policy `{name}` is not enabled"),
            ));
        }
        self.require_fit(&policies, policy).await?;
        let digest = digest.ok_or_else(|| {
            let message = "a run by hand needs the digest of a fresh preview: look at one first";
            ServiceError::refused("needs_digest", message)
        })?;
        let as_of = plan::instant_of(digest).ok_or_else(|| {
            ServiceError::refused("stale_digest", "this is not the digest of a preview")
        })?;
        let is_fresh: bool =
            sqlx::query_scalar("select $1 between now() - make_interval(hours => $2) and now()")
                .bind(as_of)
                .bind(i32::try_from(MAX_PREVIEW_AGE_HOURS).unwrap_or(i32::MAX))
                .fetch_one(&self.db)
                .await?;
        let current = if is_fresh {
            Some(self.preview_at(&policies, policy, Some(as_of)).await?)
        } else {
            None
        };
        let current = current.filter(|current| current.digest == digest);
        let current = current.ok_or_else(|| ServiceError::refused("stale_digest", STALE))?;
        if policy.approval.required_for == ApprovalRule::Never && !current.over_ceiling.is_empty() {
            let why = current.over_ceiling.join("; ");
            return Err(ServiceError::refused(
                "over_ceiling",
                format!("{why}: nothing was done; raise the limit if that is right"),
            ));
        }
        let needs_approval = match policy.approval.required_for {
            ApprovalRule::Never | ApprovalRule::OverCeiling => false,
            ApprovalRule::Manual | ApprovalRule::Always => true,
        };
        let new = NewRun {
            policy: name,
            kind: policy.kind.name(),
            policy_digest: &policy.digest(),
            as_of: Some(as_of),
            origin: caller.user_id.map_or(Origin::Operator, Origin::User),
            preview_digest: Some(digest),
            needs_approval,
        };
        let mut tx = self.db.begin().await?;
        let Some(id) = run::insert(&mut tx, &new).await? else {
            drop(tx);
            let active = run::find_active(&self.db, name).await?;
            let which = active.map(|run| format!("run {} is {}", run.id, run.status));
            return Err(ServiceError::refused(
                "already_running",
                format!("another run of `{name}` is not finished: {}", which.unwrap_or_default()),
            ));
        };
        if !needs_approval {
            push_ticket(&mut tx, id).await?;
        }
        record(&mut tx, caller, id, "run.requested", json!({ "policy": name, "digest": digest }))
            .await?;
        let detail = detail(&mut tx, id).await?;
        tx.commit().await?;
        Ok(detail)
    }

    /// A run of a policy that `policy check` would refuse does not begin: a missing index makes
    /// every chunk read the whole table, and a column that nobody classed may name people. One that
    /// deletes people needs the keys of the ledger.
    pub(super) async fn require_fit(
        &self,
        policies: &Policies,
        policy: &Policy,
    ) -> Result<(), ServiceError> {
        if deletes_people(policy, &policies.classification) {
            self.keyring()?;
        }
        let mut connection = self.db.acquire().await?;
        let findings = check::check_policy(&mut connection, policies, policy).await?;
        let errors: Vec<_> = findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(|finding| finding.to_string())
            .collect();
        let Some(first) = errors.first() else { return Ok(()) };
        let more = match errors.len() {
            1 => String::new(),
            count => format!(" (and {} more: see `registrar policy check`)", count - 1),
        };
        Err(ServiceError::refused("policy_check", format!("{first}{more}")))
    }

    /// A run with its tables.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`]
    pub async fn show_run(&self, caller: &Caller, id: i64) -> Result<RunDetail, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let mut connection = self.db.acquire().await?;
        detail(&mut connection, id).await
    }

    /// At most `limit` files that a run wrote to the store, behind the first `skipped`.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`]
    pub async fn list_exports(
        &self,
        caller: &Caller,
        id: i64,
        skipped: i64,
        limit: i64,
    ) -> Result<Vec<RunExport>, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let mut connection = self.db.acquire().await?;
        run::find(&mut connection, id).await?.ok_or(NO_RUN)?;
        drop(connection);
        Ok(run::exports_of(&self.db, id, skipped, limit).await?)
    }

    /// Runs, newest first.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn list_runs(
        &self,
        caller: &Caller,
        filter: &RunFilter,
        limit: i64,
    ) -> Result<Vec<Run>, ServiceError> {
        caller.require(Permission::RetentionView)?;
        Ok(run::list(&self.db, filter, limit).await?)
    }

    /// Approves a run that waits for it. Never the one who asked for it.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::Refused`]
    pub async fn approve_run(&self, caller: &Caller, id: i64) -> Result<RunDetail, ServiceError> {
        let mut tx = self.db.begin().await?;
        let found = run::find(&mut tx, id).await?.ok_or(NO_RUN)?;
        let policies = self.policies().await?;
        caller.require_codename(&find(&policies, &found.policy)?.approval.by)?;
        let is_same_person = match caller.user_id {
            Some(user_id) => found.requested_by == Some(user_id),
            // Who types commands cannot be told from another who does.
            None => found.origin == Origin::Operator.as_str(),
        };
        if is_same_person {
            return Err(ServiceError::refused(
                "second_person",
                "another person must approve: over HTTP with their own token, if you are the \
                 operator",
            ));
        }
        let changed = run::approve(&mut tx, id, caller.user_id).await?;
        self.changed(tx, caller, id, changed, "run.approved", true).await
    }

    /// Stops a run after the chunk at work; it can go on later.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], [`ServiceError::Refused`]
    pub async fn pause_run(&self, caller: &Caller, id: i64) -> Result<RunDetail, ServiceError> {
        caller.require(Permission::RetentionRun)?;
        let mut tx = self.db.begin().await?;
        let changed = run::pause(&mut tx, id).await?;
        self.changed(tx, caller, id, changed, "run.paused", false).await
    }

    /// Lets a paused or failed run go on where it stopped.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], [`ServiceError::Refused`]
    pub async fn resume_run(&self, caller: &Caller, id: i64) -> Result<RunDetail, ServiceError> {
        caller.require(Permission::RetentionRun)?;
        let mut tx = self.db.begin().await?;
        let has_failed = run::lock(&mut tx, id).await? == Some(RunStatus::Failed);
        let changed = match run::resume(&mut tx, id).await {
            Err(error) if sqlstate(&error).as_deref() == Some("23505") => {
                let message = "another run of the policy is not finished: end that first";
                return Err(ServiceError::refused("already_running", message));
            }
            changed => changed?,
        };
        if changed && has_failed {
            // The certificate of its failure holds no longer; this one says so.
            self.seal_run(&mut tx, id).await?;
        }
        let resumed = self.changed(tx, caller, id, changed, "run.resumed", true).await?;
        self.store_certificates().await;
        Ok(resumed)
    }

    /// Ends a run after the chunk at work. What was done stays done.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], [`ServiceError::Refused`]
    pub async fn cancel_run(&self, caller: &Caller, id: i64) -> Result<RunDetail, ServiceError> {
        caller.require(Permission::RetentionRun)?;
        let mut tx = self.db.begin().await?;
        let changed = run::cancel(&mut tx, id).await?;
        if changed {
            self.seal_run(&mut tx, id).await?;
        }
        let cancelled = self.changed(tx, caller, id, changed, "run.cancelled", false).await?;
        self.sweep_exports(id).await;
        self.store_certificates().await;
        Ok(cancelled)
    }

    /// Removes what an ended run has left in the store beside its files; one that cannot be
    /// removed does no harm.
    pub(crate) async fn sweep_exports(&self, id: i64) {
        if let Err(error) = export::sweep_ended(&self.db, &self.store, id).await {
            let code = error.code();
            tracing::warn!(run.id = id, code, "files that no row left for may be in the store");
        }
    }

    async fn changed(
        &self,
        mut tx: sqlx::Transaction<'static, sqlx::Postgres>,
        caller: &Caller,
        id: i64,
        changed: bool,
        action: &str,
        needs_ticket: bool,
    ) -> Result<RunDetail, ServiceError> {
        let detail = detail(&mut tx, id).await?;
        if !changed {
            return Err(ServiceError::refused(
                "wrong_state",
                format!("run {id} is {}", detail.run.status),
            ));
        }
        if needs_ticket {
            push_ticket(&mut tx, id).await?;
        }
        record(&mut tx, caller, id, action, json!({ "policy": detail.run.policy })).await?;
        tx.commit().await?;
        Ok(detail)
    }

    /// The archive tables.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn list_archives(&self, caller: &Caller) -> Result<Vec<ArchiveTable>, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let mut connection = self.db.acquire().await?;
        Ok(restore::archives(&Catalog::read(&mut connection).await?))
    }

    /// Brings archived rows of one table back.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::Refused`], [`ServiceError::BadField`]
    pub async fn restore_archive(
        &self,
        caller: &Caller,
        table: &TableName,
        which: &Which,
    ) -> Result<Restored, ServiceError> {
        caller.require(Permission::RetentionRun)?;
        let mut connection = self.db.acquire().await?;
        let catalog = Catalog::read(&mut connection).await?;
        drop(connection);
        if let (Which::Keys(keys), Some(live)) = (which, catalog.table(table))
            && (!keys_fit(live, keys) || keys.len() > restore::MAX_KEYS)
        {
            let expected = format!(
                "must be 1 to {} arrays of {} texts: the columns of the primary key",
                restore::MAX_KEYS,
                live.primary_key.len()
            );
            return Err(ServiceError::BadField { field: "/keys", expected });
        }
        // The intent first: a restore that is killed half-way has left its trace.
        let scope = match which {
            Which::All => json!("all"),
            Which::Run(id) => json!({ "run": id }),
            Which::Keys(keys) => json!({ "keys": keys.len() }),
        };
        let details = json!({ "table": table, "which": scope });
        self.record_archive(caller, "archive.restore_requested", details).await?;
        let restored = restore_table(&self.db, &catalog, table, which).await?;
        self.record_archive(caller, "archive.restored", json!(restored)).await?;
        Ok(restored)
    }

    async fn record_archive(
        &self,
        caller: &Caller,
        action: &str,
        details: serde_json::Value,
    ) -> Result<(), ServiceError> {
        let mut connection = self.db.acquire().await?;
        let event = audit::Event { action, entity_type: "archive", entity_id: None, details };
        Ok(audit::record(&mut connection, &caller.actor, event).await?)
    }
}

const NO_RUN: ServiceError = ServiceError::NotFound { what: "run" };

fn find<'a>(policies: &'a Policies, name: &str) -> Result<&'a Policy, ServiceError> {
    policies.get(name).ok_or(ServiceError::NotFound { what: "policy" })
}

async fn detail(connection: &mut PgConnection, id: i64) -> Result<RunDetail, ServiceError> {
    let run = run::find(connection, id).await?.ok_or(NO_RUN)?;
    let tables = run::tables_of(connection, id).await?;
    let elapsed: Option<f64> = sqlx::query_scalar(
        "select extract(epoch from now() - min(started_at))::float8
           from lifecycle_run_tables
          where run_id = $1",
    )
    .bind(id)
    .fetch_one(connection)
    .await?;
    let done: i64 = tables.iter().map(|table| table.done).sum();
    let left: i64 = tables.iter().map(|table| (table.eligible - table.done).max(0)).sum();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "an estimate; a cast from a float saturates"
    )]
    let estimate = elapsed
        .filter(|_| done > 0 && !run.status.is_final())
        .map(|secs| (secs * left as f64 / done as f64) as i64);
    Ok(RunDetail { run, tables, estimated_secs_left: estimate })
}

pub(super) async fn push_ticket(connection: &mut PgConnection, id: i64) -> Result<(), sqlx::Error> {
    let ticket = queue::enqueue_run(connection, id, 0).await?;
    run::note_ticket(connection, id, &ticket).await
}

pub(super) async fn record(
    connection: &mut PgConnection,
    caller: &Caller,
    id: i64,
    action: &str,
    details: serde_json::Value,
) -> Result<(), sqlx::Error> {
    let event =
        audit::Event { action, entity_type: "lifecycle_runs", entity_id: Some(id), details };
    audit::record(connection, &caller.actor, event).await
}
