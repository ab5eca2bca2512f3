use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const KEEP: KeepConfig =
    KeepConfig { daily: 3, weekly: 2, monthly: 2, yearly: 2, pre_migration_days: 30 };

fn at(text: &str) -> DateTime<Utc> {
    format!("{text}:00Z").parse().unwrap()
}

fn candidate(taken_at: DateTime<Utc>) -> Candidate {
    Candidate {
        id: BackupId::new(taken_at),
        taken_at,
        good: None,
        pre_migration: false,
        pins: Vec::new(),
        in_use: false,
        policy: None,
    }
}

fn daily(days: i64, until: DateTime<Utc>) -> Vec<Candidate> {
    (0..days).rev().map(|ago| candidate(until - TimeDelta::days(ago))).collect()
}

fn kept(candidates: &[Candidate], keep: KeepConfig, now: DateTime<Utc>) -> Vec<(String, String)> {
    let told = |decision: Decision| {
        let day = decision.id.as_str()[..8].to_owned();
        (day, decision.keep.iter().map(Reason::told).collect::<Vec<_>>().join("; "))
    };
    plan(candidates, keep, now).into_iter().filter(Decision::is_kept).map(told).collect()
}

#[test]
fn each_tier_keeps_the_last_of_its_periods_and_says_so() {
    let now = at("2026-03-18T12:00");
    let kept = kept(&daily(800, at("2026-03-18T02:00")), KEEP, now);
    let expected = [
        ("20251231", "last of 2025"),
        ("20260228", "last of 2026-02"),
        ("20260315", "last of week 2026-W11"),
        ("20260316", "last of 2026-03-16"),
        ("20260317", "last of 2026-03-17"),
        (
            "20260318",
            "newest; last of 2026-03-18; last of week 2026-W12; last of 2026-03; last of 2026",
        ),
    ];
    let expected: Vec<_> = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    assert_eq!(kept, expected);
}

#[test]
fn the_oldest_is_kept_until_every_tier_is_full() {
    let now = at("2026-03-18T12:00");
    let decisions = plan(&daily(40, at("2026-03-18T02:00")), KEEP, now);
    assert_eq!(decisions[0].keep, [Reason::OldestUntilFull { tier: Tier::Yearly }]);
    assert!(decisions[1].expired.is_some());
}

#[test]
fn seven_years_of_daily_backups_shrink_to_the_tiers() {
    let keep = KeepConfig { daily: 14, weekly: 8, monthly: 24, yearly: 7, pre_migration_days: 30 };
    // Pruned every day, as it would be, not once at the end.
    let (mut all, first) = (Vec::new(), at("2018-01-01T02:00"));
    for day in 0..(8 * 365 + 2) {
        let now = first + TimeDelta::days(day);
        all.push(candidate(now));
        let kept: BTreeSet<_> =
            plan(&all, keep, now).into_iter().filter(Decision::is_kept).map(|d| d.id).collect();
        all.retain(|candidate| kept.contains(&candidate.id));
    }
    let years: BTreeSet<_> = all.iter().map(|candidate| candidate.taken_at.year()).collect();
    assert_eq!(years, (2019..=2025).collect::<BTreeSet<_>>());
    assert!(all.len() <= 14 + 8 + 24 + 7, "{}", all.len());
}

#[test]
fn pins_readers_migrations_and_the_last_verified_stay() {
    let now = at("2026-03-18T12:00");
    let mut all = daily(400, at("2026-03-18T02:00"));
    all[5].pins = vec!["hold-7".to_owned()];
    all[6].in_use = true;
    all[7].good = Some(true);
    all[8].pre_migration = true;
    let long_ago = all.len() - 31;
    all[long_ago].pre_migration = true;
    let recent = all.len() - 11;
    all[recent].pre_migration = true;
    let decisions = plan(&all, KEEP, now);
    assert_eq!(decisions[5].keep, [Reason::Pinned { names: "hold-7".to_owned() }]);
    assert_eq!(decisions[6].keep, [Reason::InUse]);
    assert_eq!(decisions[7].keep, [Reason::LastVerified]);
    assert!(!decisions[8].is_kept(), "a migration's backup is pinned for a time");
    assert!(!decisions[long_ago].is_kept(), "30 days ago to the hour is over");
    assert_eq!(decisions[recent].keep, [Reason::PreMigration]);
}

#[test]
fn the_last_backup_before_a_migration_stays_however_old() {
    let mut all = daily(400, at("2026-03-18T02:00"));
    all[8].pre_migration = true;
    let decisions = plan(&all, KEEP, at("2026-03-18T12:00"));
    assert_eq!(decisions[8].keep, [Reason::PreMigration]);
}

#[test]
fn a_backup_found_bad_fills_no_tier() {
    let mut all = daily(10, at("2026-03-18T02:00"));
    all[9].good = Some(false);
    let decisions = plan(&all, KEEP, at("2026-03-18T12:00"));
    assert!(decisions[9].expired.as_deref().unwrap().contains("verification failed"));
    assert_eq!(decisions[8].keep[0], Reason::Newest);
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0_i64..4_000 * 24, prop::option::of(any::<bool>()), 0_u8..20);
    prop::collection::vec(one, 0..120).prop_map(|all| {
        all.into_iter()
            .map(|(hours, good, mark)| Candidate {
                good,
                pre_migration: mark == 1,
                pins: if mark == 2 { vec!["hold".to_owned()] } else { Vec::new() },
                in_use: mark == 3,
                ..candidate(at("2015-01-01T00:00") + TimeDelta::hours(hours))
            })
            .collect()
    })
}

fn any_keep() -> impl Strategy<Value = KeepConfig> {
    (0_u32..20, 0_u32..10, 0_u32..30, 0_u32..8).prop_map(|(daily, weekly, monthly, yearly)| {
        KeepConfig { daily, weekly, monthly, yearly, pre_migration_days: 30 }
    })
}

proptest! {
    #[test]
    fn nothing_that_must_stay_is_let_go(all in any_candidates(), keep in any_keep()) {
        let now = at("2026-06-30T00:00");
        let decisions = plan(&all, keep, now);
        prop_assert_eq!(decisions.len(), all.len());
        let stays = |id: &BackupId| decisions.iter().any(|d| d.id == *id && d.is_kept());
        for candidate in &all {
            if candidate.in_use || !candidate.pins.is_empty() {
                prop_assert!(stays(&candidate.id));
            }
        }
        let newest = |keep: &dyn Fn(&&Candidate) -> bool| {
            all.iter().filter(keep).max_by_key(|c| (c.taken_at, c.id.clone()))
        };
        if let Some(verified) = newest(&|c| c.good == Some(true)) {
            prop_assert!(stays(&verified.id), "the last verified");
        }
        if let Some(usable) = newest(&|c| c.good != Some(false)) {
            prop_assert!(stays(&usable.id), "the newest");
        }
    }

    #[test]
    fn what_is_kept_once_is_kept_again_and_is_bounded(all in any_candidates(), keep in any_keep()) {
        let now = at("2026-06-30T00:00");
        let first: BTreeSet<_> =
            plan(&all, keep, now).into_iter().filter(Decision::is_kept).map(|d| d.id).collect();
        let left: Vec<_> = all.iter().filter(|c| first.contains(&c.id)).cloned().collect();
        let second: BTreeSet<_> =
            plan(&left, keep, now).into_iter().filter(Decision::is_kept).map(|d| d.id).collect();
        prop_assert_eq!(&first, &second, "pruning twice is pruning once");
        let special = all.iter().filter(|c| c.pre_migration || c.in_use || !c.pins.is_empty());
        let most = (keep.daily + keep.weekly + keep.monthly + keep.yearly) as usize;
        prop_assert!(first.len() <= most + special.count() + 3);
    }

    #[test]
    fn giving_a_tier_more_never_keeps_less(all in any_candidates(), keep in any_keep()) {
        let now = at("2026-06-30T00:00");
        let count = |keep| plan(&all, keep, now).iter().filter(|d| d.is_kept()).count();
        let more = KeepConfig { daily: keep.daily + 1, ..keep };
        // The oldest may no longer be needed to fill the tier.
        prop_assert!(count(more) + 1 >= count(keep));
    }
}
