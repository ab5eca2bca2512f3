//! What policies of kind `backup`, `verify-backup` and `prune-backups` ask for.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, Utc};
use chrono_tz::Tz;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::backups::create_options;
use super::{ServiceError, Services};
use crate::backup::keep::Tiers;
use crate::backup::manifest::Purpose;
use crate::backup::pgbackrest::Physical;
use crate::backup::prune::Pruned;
use crate::backup::{BackupError, BackupId, CreateOptions, Manifest, Verification};
use crate::config::{BackupConfig, KeepConfig};
use crate::db::audit::Actor;
use crate::db::backups::{self, BackupRow};
use crate::policy::{
    Backup, BackupEngine, BackupVerification, Keep, Kind, Overlap, Policies, Policy, PruneBackups,
    VerifyBackup,
};
use crate::queue::{self, BackupTicket};

use super::backups::VerifyOptions;

/// A backup that a policy asked for.
#[derive(Debug, serde::Serialize)]
#[serde(untagged)]
pub enum Made {
    /// By `pg_dump`.
    Dump(Box<Manifest>),
    /// By pgBackRest.
    Physical(Box<Physical>),
}

impl Made {
    /// Its number.
    pub fn id(&self) -> &BackupId {
        match self {
            Self::Dump(manifest) => &manifest.id,
            Self::Physical(physical) => &physical.id,
        }
    }

    /// Bytes stored.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Dump(manifest) => manifest.stored.size_bytes,
            Self::Physical(physical) => physical.size_bytes,
        }
    }

    fn finished_at(&self) -> DateTime<Utc> {
        match self {
            Self::Dump(manifest) => manifest.finished_at,
            Self::Physical(physical) => physical.finished_at,
        }
    }
}

/// What a worker is to do for a policy of backups.
pub(super) fn ticket(policy: &Policy) -> Option<BackupTicket> {
    match &policy.kind {
        Kind::Backup(_) => Some(BackupTicket::Create { policy: policy.name.to_string() }),
        Kind::VerifyBackup(VerifyBackup { backup }) => {
            Some(BackupTicket::Verify { backup_id: None, policy: Some(backup.to_string()) })
        }
        Kind::PruneBackups(PruneBackups { backup }) => {
            Some(BackupTicket::Prune { policy: backup.to_string() })
        }
        Kind::Archive(_)
        | Kind::Anonymize(_)
        | Kind::AnonymizeRows(_)
        | Kind::Purge(_)
        | Kind::ExpireResults(_)
        | Kind::Report(_) => None,
    }
}

/// How many backups are kept: of each policy as it says, of others as the settings say.
pub(super) fn tiers(policies: &Policies, config: &BackupConfig) -> Tiers {
    let of = |keep: Keep| {
        let Keep { daily, weekly, monthly, yearly } = keep;
        let pre_migration_days = config.keep.pre_migration_days;
        KeepConfig { daily, weekly, monthly, yearly, pre_migration_days }
    };
    let by_policy: BTreeMap<_, _> = policies
        .policies
        .values()
        .filter_map(|policy| match &policy.kind {
            Kind::Backup(backup) => Some((policy.name.to_string(), of(backup.keep))),
            _ => None,
        })
        .collect();
    Tiers { settings: config.keep, policies: by_policy, only: None }
}

impl Services {
    /// Makes a backup as a policy says, has it proven where that is due, and deletes those of the
    /// policy that have expired, unless another policy does. `None`: the one before is still being
    /// made, and this one is left out.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] where there is no such policy, and as
    /// [`Services::create_backup`].
    pub async fn back_up_by_policy(
        &self,
        actor: &Actor,
        name: &str,
        purpose: Purpose,
    ) -> Result<Option<Made>, ServiceError> {
        let policies = self.policies().await?;
        let (policy, backup) = find(&policies, name)?;
        let Some(turn) = self.turn(policy).await? else {
            tracing::info!(policy = name, "the backup before is not finished");
            return Ok(None);
        };
        let made = match backup.engine {
            BackupEngine::PgDump => {
                let options = self.options_of(policy, backup, purpose)?;
                let made = Box::pin(self.create_backup(actor, &options)).await;
                made.map(|manifest| Made::Dump(Box::new(manifest)))
            }
            BackupEngine::PgBackRest => {
                let made = Box::pin(self.create_physical(actor, policy, purpose)).await;
                made.map(|physical| Made::Physical(Box::new(physical)))
            }
        };
        end(turn, policy).await;
        let made = made?;
        self.verify_where_due(policy, backup, &made).await?;
        if matches!(made, Made::Physical(_)) {
            // pgBackRest expires by its own settings, with each backup.
            return Ok(Some(made));
        }
        let is_pruned_apart = policies.policies.values().any(|other| {
            let PruneBackups { backup } = match &other.kind {
                Kind::PruneBackups(prune) if other.enabled => prune,
                _ => return false,
            };
            backup.as_str() == name
        });
        // Only after a new one is there, so that an ill database never ends with none.
        if !is_pruned_apart {
            let pruned = self.prune_by_policy(actor, name).await?;
            for (id, error) in &pruned.failed {
                tracing::warn!(backup.id = %id, error, "cannot delete an expired backup yet");
            }
        }
        Ok(Some(made))
    }

    async fn create_physical(
        &self,
        actor: &Actor,
        policy: &Policy,
        purpose: Purpose,
    ) -> Result<Physical, ServiceError> {
        let repository = self.repository()?.ok_or(BackupError::NoStanza)?;
        let database = self.application_database()?;
        let policy = Some(policy.name.to_string());
        let made = repository.create(&database, &self.store, purpose, policy).await?;
        self.refresh_backups().await?;
        let details = json!({
            "backup": made.id, "purpose": purpose, "size_bytes": made.size_bytes,
            "encrypted": made.encrypted, "engine": "pgbackrest",
        });
        self.record(actor, "backup.created", details, None).await?;
        Ok(made)
    }

    /// The same, asked for by the policy's schedule.
    ///
    /// # Errors
    /// As [`Services::back_up_by_policy`].
    pub async fn back_up_on_schedule(&self, name: &str) -> Result<Option<Made>, ServiceError> {
        self.back_up_by_policy(&Actor::system(), name, Purpose::Scheduled).await
    }

    fn options_of(
        &self,
        policy: &Policy,
        backup: &Backup,
        purpose: Purpose,
    ) -> Result<CreateOptions, ServiceError> {
        let mut config = self.config.backup.clone();
        if !backup.encrypt_to.is_empty() {
            config.encrypt_to.clone_from(&backup.encrypt_to);
        }
        let policy = Some(policy.name.to_string());
        Ok(CreateOptions { policy, ..create_options(&config, purpose, false, None)? })
    }

    /// Deletes backups of a policy that have expired.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], and as [`Services::prune_backups`].
    pub async fn prune_by_policy(&self, actor: &Actor, name: &str) -> Result<Pruned, ServiceError> {
        let policies = self.policies().await?;
        find(&policies, name)?;
        let tiers = Tiers { only: Some(name.to_owned()), ..tiers(&policies, &self.config.backup) };
        self.prune_with(actor, &tiers, false).await
    }

    /// Proves the backup of this number, or the newest of a policy, as the settings say.
    ///
    /// # Errors
    /// As [`Services::verify_backup`].
    pub async fn verify_named_backup(
        &self,
        id: Option<&str>,
        policy: Option<&str>,
    ) -> Result<Verification, ServiceError> {
        let missing = |name: &str| BackupError::NotFound(name.to_owned());
        let id: BackupId = match id {
            Some(id) => id.parse().map_err(|_| missing(id))?,
            None => {
                self.refresh_backups().await?;
                let rows = backups::list(&self.db).await?; // the newest first
                let is_ours =
                    |row: &&BackupRow| policy.is_none() || row.policy.as_deref() == policy;
                let newest = rows.iter().find(is_ours).ok_or_else(|| missing("latest"))?;
                newest.id.parse().map_err(|_| missing(&newest.id))?
            }
        };
        self.verify_backup(&Actor::system(), &id, VerifyOptions::default()).await
    }

    /// Asks for a verification of a new backup, unless one of the policy was proven good in this
    /// period already.
    async fn verify_where_due(
        &self,
        policy: &Policy,
        backup: &Backup,
        made: &Made,
    ) -> Result<(), ServiceError> {
        let name = policy.name.as_str();
        let rows = backups::list(&self.db).await?;
        let is_ours = |row: &&BackupRow| {
            row.policy.as_deref() == Some(name) && row.verified_good == Some(true)
        };
        let last = rows.iter().filter(is_ours).filter_map(|row| row.verified_at).max();
        if !is_due(backup.verify, policy.time_zone, last, made.finished_at()) {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        let ticket = BackupTicket::Verify {
            backup_id: Some(made.id().to_string()),
            policy: Some(name.to_owned()),
        };
        queue::enqueue_backup(&mut tx, &ticket).await?;
        Ok(tx.commit().await?)
    }

    /// The right to back up for a policy, held by a connection: the server frees it when the
    /// process is gone. `None`: another has it, and the policy does not wait.
    async fn turn(&self, policy: &Policy) -> Result<Option<PgConnection>, ServiceError> {
        let mut connection = self.db.acquire().await?.detach();
        let waits = policy.schedule.as_ref().is_some_and(|s| s.overlap == Overlap::Queue);
        let locked: bool = sqlx::query_scalar(
            "select case when $2 then pg_advisory_lock(
                                hashtextextended('registrar backup policy ' || $1, 0)) is not null
                         else pg_try_advisory_lock(
                                hashtextextended('registrar backup policy ' || $1, 0)) end",
        )
        .bind(policy.name.as_str())
        .bind(waits)
        .fetch_one(&mut connection)
        .await?;
        Ok(locked.then_some(connection))
    }
}

/// Gives the turn back before the server has noticed that the connection is closed. One that is gone
/// has given it back already.
async fn end(mut turn: PgConnection, policy: &Policy) {
    let _freed = sqlx::query(
        "select pg_advisory_unlock(hashtextextended('registrar backup policy ' || $1, 0))",
    )
    .bind(policy.name.as_str())
    .execute(&mut turn)
    .await;
    let _closed = turn.close().await;
}

fn find<'a>(policies: &'a Policies, name: &str) -> Result<(&'a Policy, &'a Backup), ServiceError> {
    let policy = policies.get(name).ok_or(ServiceError::NotFound { what: "policy" })?;
    match &policy.kind {
        Kind::Backup(backup) => Ok((policy, backup)),
        _ => Err(ServiceError::NotFound { what: "policy of kind `backup`" }),
    }
}

/// Whether the last good verification is of an earlier day, ISO week or month of the policy's zone.
fn is_due(
    frequency: BackupVerification,
    zone: Tz,
    last: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> bool {
    let period = |at: DateTime<Utc>| {
        let day = at.with_timezone(&zone).date_naive();
        match frequency {
            BackupVerification::Never | BackupVerification::Always => None,
            BackupVerification::Daily => Some((day.year(), day.ordinal())),
            BackupVerification::Weekly => Some((day.iso_week().year(), day.iso_week().week())),
            BackupVerification::Monthly => Some((day.year(), day.month())),
        }
    };
    match frequency {
        BackupVerification::Never => false,
        BackupVerification::Always => true,
        BackupVerification::Daily | BackupVerification::Weekly | BackupVerification::Monthly => {
            last.is_none_or(|last| period(last) < period(now))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verification_is_due_once_in_a_period_of_the_policys_zone() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("an instant");
        let due = |frequency, last: Option<&str>, now: &str| {
            is_due(frequency, Tz::Africa__Harare, last.map(at), at(now))
        };
        let now = "2026-03-01T22:30:00Z"; // in Harare it is Monday, 2 March
        for frequency in [BackupVerification::Daily, BackupVerification::Weekly] {
            assert!(due(frequency, None, now));
            assert!(due(frequency, Some("2026-03-01T21:59:59Z"), now));
            assert!(!due(frequency, Some("2026-03-01T22:00:00Z"), now));
        }
        assert!(!due(BackupVerification::Monthly, Some("2026-03-01T00:00:00Z"), now));
        assert!(due(BackupVerification::Monthly, Some("2026-02-28T21:59:59Z"), now));
        assert!(due(BackupVerification::Always, Some(now), now));
        assert!(!due(BackupVerification::Never, None, now));
    }
}
