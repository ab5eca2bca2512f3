//! Which backups are kept, and why: a pure function, so that every rule can be tried.
//!
//! Each tier keeps the last backup of each of its newest periods (a day, an ISO week, a month, a
//! year, in UTC) until it has as many as it is given. While a tier is not full it also keeps the
//! oldest backup of all, so that the history reaches back as far as it can from the first day.
//! What the last verification found bad fills no tier. Backups of one policy are decided on by its
//! tiers and without regard to others; those of none, by the settings'.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde::Serialize;

use super::catalog::Entry;
use super::manifest::{BackupId, Purpose};
use crate::config::KeepConfig;

/// What is known of a backup when the decision is made.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its number.
    pub id: BackupId,
    /// The time of its snapshot.
    pub taken_at: DateTime<Utc>,
    /// What its last verification found; `None`: it had none.
    pub good: Option<bool>,
    /// Whether it was made before a migration.
    pub pre_migration: bool,
    /// Names of its pins.
    pub pins: Vec<String>,
    /// Whether somebody reads it.
    pub in_use: bool,
    /// The policy that asked for it.
    pub policy: Option<String>,
}

/// How many are kept.
#[derive(Debug, Clone)]
pub struct Tiers {
    /// Of backups that no policy asked for, or one that is gone.
    pub settings: KeepConfig,
    /// Of those of a policy.
    pub policies: BTreeMap<String, KeepConfig>,
    /// Only backups of this policy are decided on.
    pub only: Option<String>,
}

impl From<KeepConfig> for Tiers {
    fn from(settings: KeepConfig) -> Self {
        Self { settings, policies: BTreeMap::new(), only: None }
    }
}

impl Candidate {
    /// From the catalog, at `now`.
    pub fn new(entry: &Entry, now: DateTime<Utc>) -> Self {
        Self {
            id: entry.manifest.id.clone(),
            taken_at: entry.manifest.snapshot.taken_at,
            good: entry.verified().map(|verification| verification.good),
            pre_migration: entry.manifest.purpose == Purpose::PreMigration,
            pins: entry.pins.iter().map(|pin| pin.name.clone()).collect(),
            in_use: entry.is_in_use(now),
            policy: entry.manifest.policy.clone(),
        }
    }
}

/// A length of time that keeps its last backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// A day.
    Daily,
    /// An ISO week.
    Weekly,
    /// A month.
    Monthly,
    /// A year.
    Yearly,
}

impl Tier {
    /// From the shortest to the longest.
    pub const ALL: [Self; 4] = [Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];

    /// How many it keeps.
    pub fn kept(self, keep: KeepConfig) -> usize {
        let KeepConfig { daily, weekly, monthly, yearly, pre_migration_days: _ } = keep;
        let kept = match self {
            Self::Daily => daily,
            Self::Weekly => weekly,
            Self::Monthly => monthly,
            Self::Yearly => yearly,
        };
        usize::try_from(kept).unwrap_or(usize::MAX)
    }

    /// The period that a time is in; later ones compare greater.
    fn period(self, at: DateTime<Utc>) -> (i32, u32) {
        match self {
            Self::Daily => (at.year(), at.ordinal()),
            Self::Weekly => (at.iso_week().year(), at.iso_week().week()),
            Self::Monthly => (at.year(), at.month()),
            Self::Yearly => (at.year(), 0),
        }
    }

    fn name(self, at: DateTime<Utc>) -> String {
        match self {
            Self::Daily => at.format("last of %Y-%m-%d").to_string(),
            Self::Weekly => at.format("last of week %G-W%V").to_string(),
            Self::Monthly => at.format("last of %Y-%m").to_string(),
            Self::Yearly => at.format("last of %Y").to_string(),
        }
    }
}

/// Why a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Reason {
    /// It is the newest.
    Newest,
    /// It is the newest that a verification found good.
    LastVerified,
    /// It is the last of a period.
    Tier {
        /// Of which length.
        tier: Tier,
        /// Of which period.
        period: String,
    },
    /// The tier is not full yet, and this is the oldest there is.
    OldestUntilFull {
        /// The first of the tiers that are not full.
        tier: Tier,
    },
    /// It was made before a migration, not long ago or as the last one.
    PreMigration,
    /// A person pinned it.
    Pinned {
        /// Names of the pins.
        names: String,
    },
    /// Somebody reads it.
    InUse,
}

impl Reason {
    /// In words.
    pub fn told(&self) -> String {
        match self {
            Self::Newest => "newest".to_owned(),
            Self::LastVerified => "last verified".to_owned(),
            Self::Tier { tier: _, period } => period.clone(),
            Self::OldestUntilFull { tier } => {
                format!("oldest, until {} is full", format!("{tier:?}").to_lowercase())
            }
            Self::PreMigration => "before a migration".to_owned(),
            Self::Pinned { names } => format!("pinned: {names}"),
            Self::InUse => "in use".to_owned(),
        }
    }
}

/// What becomes of a backup. Without a reason to keep it, it has expired.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    /// Which.
    pub id: BackupId,
    /// Why it is kept.
    pub keep: Vec<Reason>,
    /// Why it is not.
    pub expired: Option<String>,
}

impl Decision {
    /// Whether it stays.
    pub fn is_kept(&self) -> bool {
        !self.keep.is_empty()
    }
}

/// Decides about every backup, the oldest first.
pub fn plan_all(candidates: &[Candidate], tiers: &Tiers, now: DateTime<Utc>) -> Vec<Decision> {
    let known = |candidate: &Candidate| {
        candidate.policy.clone().filter(|policy| tiers.policies.contains_key(policy))
    };
    let mut groups: BTreeMap<Option<String>, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        groups.entry(known(candidate)).or_default().push(candidate.clone());
    }
    let mut decisions = Vec::with_capacity(candidates.len());
    for (policy, group) in groups {
        if tiers.only.is_some() && tiers.only != policy {
            continue;
        }
        let keep = policy.and_then(|policy| tiers.policies.get(&policy).copied());
        decisions.extend(plan(&group, keep.unwrap_or(tiers.settings), now));
    }
    decisions.sort_by(|a, b| a.id.cmp(&b.id));
    decisions
}

/// Decides about the backups of one policy.
pub fn plan(candidates: &[Candidate], keep: KeepConfig, now: DateTime<Utc>) -> Vec<Decision> {
    let mut ordered: Vec<&Candidate> = candidates.iter().collect();
    ordered.sort_by_key(|candidate| (candidate.taken_at, candidate.id.clone()));
    let fill: Vec<&Candidate> =
        ordered.iter().copied().filter(|candidate| candidate.good != Some(false)).collect();
    let tiers: Vec<(Tier, BTreeSet<&BackupId>)> =
        Tier::ALL.iter().map(|tier| (*tier, last_of_periods(*tier, &fill, keep))).collect();
    let full = |tier: &Tier, kept: &BTreeSet<&BackupId>| kept.len() >= tier.kept(keep);
    let wanting = tiers.iter().find(|(tier, kept)| !full(tier, kept)).map(|(tier, _)| *tier);
    let marks = Marks {
        newest: fill.last().or(ordered.last()).map(|c| &c.id),
        oldest: fill.first().map(|c| &c.id),
        last_verified: ordered.iter().rev().find(|c| c.good == Some(true)).map(|c| &c.id),
        last_pre_migration: ordered.iter().rev().find(|c| c.pre_migration).map(|c| &c.id),
        wanting,
    };
    let decide = |candidate: &&Candidate| {
        let reasons = reasons(candidate, &tiers, &marks, keep, now);
        let expired = reasons.is_empty().then(|| match candidate.good {
            Some(false) => "its verification failed, and nothing keeps it".to_owned(),
            _ => "a later backup of its periods is kept, or they are too old".to_owned(),
        });
        Decision { id: candidate.id.clone(), keep: reasons, expired }
    };
    ordered.iter().map(decide).collect()
}

struct Marks<'a> {
    newest: Option<&'a BackupId>,
    oldest: Option<&'a BackupId>,
    last_verified: Option<&'a BackupId>,
    last_pre_migration: Option<&'a BackupId>,
    /// The first tier that is not full.
    wanting: Option<Tier>,
}

/// The last backup of each of the newest periods.
fn last_of_periods<'a>(
    tier: Tier,
    oldest_first: &[&'a Candidate],
    keep: KeepConfig,
) -> BTreeSet<&'a BackupId> {
    let mut kept = BTreeSet::new();
    let mut previous = None;
    for candidate in oldest_first.iter().rev() {
        if kept.len() == tier.kept(keep) {
            break;
        }
        let period = tier.period(candidate.taken_at);
        if previous != Some(period) {
            previous = Some(period);
            kept.insert(&candidate.id);
        }
    }
    kept
}

fn reasons(
    candidate: &Candidate,
    tiers: &[(Tier, BTreeSet<&BackupId>)],
    marks: &Marks<'_>,
    keep: KeepConfig,
    now: DateTime<Utc>,
) -> Vec<Reason> {
    let is = |marked: Option<&BackupId>| marked == Some(&candidate.id);
    let mut reasons = Vec::new();
    if is(marks.newest) {
        reasons.push(Reason::Newest);
    }
    if is(marks.last_verified) {
        reasons.push(Reason::LastVerified);
    }
    for (tier, kept) in tiers {
        if kept.contains(&candidate.id) {
            reasons.push(Reason::Tier { tier: *tier, period: tier.name(candidate.taken_at) });
        }
    }
    if let Some(tier) = marks.wanting.filter(|_| is(marks.oldest)) {
        reasons.push(Reason::OldestUntilFull { tier });
    }
    let pinned_until = candidate.taken_at + TimeDelta::days(keep.pre_migration_days.into());
    if candidate.pre_migration && (is(marks.last_pre_migration) || pinned_until > now) {
        reasons.push(Reason::PreMigration);
    }
    if !candidate.pins.is_empty() {
        reasons.push(Reason::Pinned { names: candidate.pins.join(", ") });
    }
    if candidate.in_use {
        reasons.push(Reason::InUse);
    }
    reasons
}

#[cfg(test)]
#[path = "keep/tests.rs"]
mod tests;
