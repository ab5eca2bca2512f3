//! What of a schedule fires now, what is left out, and when it is due next.

use chrono::{DateTime, TimeDelta, Utc};

use crate::calendar::Calendar;
use crate::db::schedules::CatchUp;

/// An occurrence that is this late has been missed; the ticker itself takes some seconds.
const LATE: TimeDelta = TimeDelta::seconds(60);
/// Occurrences that are looked at in one go. A schedule of every second that was away for a year
/// works its way through the missed ones over several ticks.
const MAX_LOOKED_AT: usize = 1_000;

/// What to do with a schedule that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    /// Due times that fire.
    pub(super) fire: Vec<DateTime<Utc>>,
    /// Due times that are left out because they were missed.
    pub(super) missed: Vec<DateTime<Utc>>,
    /// When to look again.
    pub(super) next: Option<DateTime<Utc>>,
}

/// Decides over everything that is due from `first` until `now`.
pub(super) fn decide(
    calendar: &Calendar,
    catch_up: CatchUp,
    window: TimeDelta,
    first: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Decision {
    let mut due = vec![first];
    let mut next = calendar.after(first);
    while let Some(time) = next.filter(|time| *time <= now && due.len() < MAX_LOOKED_AT) {
        due.push(time);
        next = calendar.after(time);
    }
    // With more to come the last one looked at is not the latest.
    let latest = if next.is_some_and(|next| next <= now) { None } else { due.last().copied() };
    let fires = |time: &DateTime<Utc>| {
        let late = now - *time;
        match catch_up {
            CatchUp::None => late <= LATE,
            CatchUp::Latest => late <= LATE || (Some(*time) == latest && late <= window),
            CatchUp::All => late <= LATE.max(window),
        }
    };
    let (fire, missed) = due.into_iter().partition(fires);
    Decision { fire, missed, next }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    fn hourly(catch_up: CatchUp, now: &str) -> Decision {
        let calendar = Calendar::parse("0 * * * *", "UTC").expect("a calendar");
        decide(&calendar, catch_up, TimeDelta::hours(2), at("2026-01-01T10:00:00Z"), at(now))
    }

    #[test]
    fn what_is_due_in_time_fires() {
        for catch_up in [CatchUp::None, CatchUp::Latest, CatchUp::All] {
            let decision = hourly(catch_up, "2026-01-01T10:00:04Z");
            assert_eq!(decision.fire, [at("2026-01-01T10:00:00Z")], "{catch_up:?}");
            assert!(decision.missed.is_empty(), "{catch_up:?}");
            assert_eq!(decision.next, Some(at("2026-01-01T11:00:00Z")));
        }
    }

    #[test]
    fn what_was_missed_follows_the_rule() {
        let now = "2026-01-01T14:30:00Z";
        assert!(hourly(CatchUp::None, now).fire.is_empty());
        assert_eq!(hourly(CatchUp::Latest, now).fire, [at("2026-01-01T14:00:00Z")]);
        assert_eq!(
            hourly(CatchUp::All, now).fire,
            [at("2026-01-01T13:00:00Z"), at("2026-01-01T14:00:00Z")]
        );
        assert_eq!(hourly(CatchUp::All, now).missed.len(), 3);
    }

    #[test]
    fn exactly_at_the_window_still_fires() {
        let decide_at = |now| hourly(CatchUp::Latest, now).fire.len();
        let daily = Calendar::parse("0 10 * * *", "UTC").expect("a calendar");
        let first = at("2026-01-01T10:00:00Z");
        let fires = |now: DateTime<Utc>| {
            decide(&daily, CatchUp::Latest, TimeDelta::hours(2), first, now).fire.len()
        };
        assert_eq!(fires(at("2026-01-01T12:00:00Z")), 1);
        assert_eq!(fires(at("2026-01-01T12:00:00Z") + TimeDelta::microseconds(1)), 0);
        assert_eq!(decide_at("2026-01-01T10:01:00Z"), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn each_due_time_is_fired_or_missed_once_whenever_it_is_looked_at(
            looks in proptest::collection::vec(1i64..40_000, 1..20),
            catch_up in proptest::sample::select(vec![CatchUp::None, CatchUp::Latest, CatchUp::All]),
        ) {
            let calendar = Calendar::parse("*/7 * * * *", "Europe/Berlin").expect("a calendar");
            let mut now = at("2026-03-28T22:00:00Z");
            let start = now;
            let mut next = calendar.after(now);
            let mut seen = Vec::new();
            for pause in looks {
                now += TimeDelta::seconds(pause);
                while let Some(first) = next.filter(|next| *next <= now) {
                    let decision = decide(&calendar, catch_up, TimeDelta::hours(1), first, now);
                    seen.extend(decision.fire);
                    seen.extend(decision.missed);
                    next = decision.next;
                }
            }
            seen.sort();
            let mut expected = Vec::new();
            let mut time = calendar.after(start);
            while let Some(due) = time.filter(|due| *due <= now) {
                expected.push(due);
                time = calendar.after(due);
            }
            prop_assert_eq!(seen, expected);
        }
    }
}
