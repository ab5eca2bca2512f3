//! Cron patterns in a real time zone: when something is due, across changes of the clocks.
//!
//! Patterns are matched on the clock on the wall, by croner, and the wall's times are then placed
//! in time by the zone's own rules at that date:
//! - a time that the spring change leaves out happens once, right after the change;
//! - a time that the autumn change repeats happens once, the first time;
//! - a pattern of every hour happens in every real hour: not in the one that is left out, and in
//!   both that bear one name.

use std::str::FromStr;

use chrono::{
    DateTime, LocalResult, NaiveDate, NaiveDateTime, SubsecRound, TimeDelta, TimeZone, Utc,
};
use chrono_tz::Tz;
use croner::Cron;

/// Longer than any change of the clocks.
const CHANGE: TimeDelta = TimeDelta::hours(3);
/// Wall times that are looked at for one answer: three hours of seconds, and as many again.
const MAX_STEPS: usize = 25_000;
/// Days in a row that can be excluded.
const MAX_EXCLUDED: usize = 4_000;

/// When something is due.
#[derive(Debug, Clone)]
pub struct Calendar {
    cron: Cron,
    every_hour: bool,
    zone: Tz,
    excluded: Vec<NaiveDate>,
}

/// The pattern or the zone cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// Not a cron pattern.
    #[error("must be a cron pattern of five fields, or six with seconds, like `30 2 * * SUN`")]
    Pattern,
    /// Not a zone.
    #[error("must be an IANA time zone like `Africa/Harare`")]
    Zone,
    /// A pattern of a day that does not come, like the 30th of February.
    #[error("must be a cron pattern that comes to pass")]
    Never,
}

impl Calendar {
    /// Reads a pattern of five or six fields and the name of a zone.
    ///
    /// # Errors
    /// [`CalendarError`]
    pub fn parse(pattern: &str, zone: &str) -> Result<Self, CalendarError> {
        let zone = Tz::from_str(zone).map_err(|_| CalendarError::Zone)?;
        let fields: Vec<&str> = pattern.split_whitespace().collect();
        let hours = match fields.len() {
            5 => fields[1],
            6 => fields[2],
            _ => return Err(CalendarError::Pattern),
        };
        let cron = Cron::from_str(pattern).map_err(|_| CalendarError::Pattern)?;
        let every_hour = matches!(hours, "*" | "?" | "*/1" | "0-23");
        let calendar = Self { cron, every_hour, zone, excluded: Vec::new() };
        match calendar.after(DateTime::UNIX_EPOCH) {
            Some(_) => Ok(calendar),
            None => Err(CalendarError::Never),
        }
    }

    /// Without these days of the zone.
    pub fn without(mut self, days: Vec<NaiveDate>) -> Self {
        self.excluded = days;
        self
    }

    /// The zone.
    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// The first due time later than `instant`; `None` when there is none before croner's horizon.
    pub fn after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut instant = instant;
        for _ in 0..MAX_EXCLUDED {
            let due = self.first_after(instant)?;
            let day = due.with_timezone(&self.zone).date_naive();
            if !self.excluded.contains(&day) {
                return Some(due);
            }
            // On from the day's last moment, so that an excluded day of seconds is one step.
            let end = day.succ_opt()?.and_hms_opt(0, 0, 0)? - TimeDelta::seconds(1);
            instant = self.place(end).last().copied().unwrap_or(due).max(due);
        }
        None
    }

    fn first_after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = |at: DateTime<Utc>| at.with_timezone(&self.zone).naive_local();
        let shift = |at: DateTime<Utc>| local(at) - at.naive_utc();
        let is_near_change = shift(instant - CHANGE) != shift(instant + CHANGE);
        let mut wall = if is_near_change { local(instant) - CHANGE } else { local(instant) };
        let mut best: Option<DateTime<Utc>> = None;
        for _ in 0..MAX_STEPS {
            wall = self.next_on_wall(wall)?;
            let placed = self.place(wall);
            // First placements only grow with the wall's time: nothing better can follow.
            if best.is_some_and(|best| placed.first().is_some_and(|first| *first >= best)) {
                break;
            }
            let later = placed.into_iter().filter(|due| *due > instant).min();
            best = [best, later].into_iter().flatten().min();
            if best.is_some() && !is_near_change && !self.every_hour {
                break;
            }
        }
        best
    }

    /// The next match on a clock that knows no changes.
    fn next_on_wall(&self, wall: NaiveDateTime) -> Option<NaiveDateTime> {
        // croner keeps a fraction of a second: two who ask would be told two due times.
        let whole = wall.trunc_subsecs(0).and_utc();
        let next = self.cron.find_next_occurrence(&whole, false).ok()?;
        Some(next.naive_utc())
    }

    /// When the clock on the wall shows a matching time, in order.
    fn place(&self, wall: NaiveDateTime) -> Vec<DateTime<Utc>> {
        match self.zone.from_local_datetime(&wall) {
            LocalResult::Single(at) => vec![at.to_utc()],
            LocalResult::Ambiguous(first, second) if self.every_hour => {
                vec![first.to_utc(), second.to_utc()]
            }
            LocalResult::Ambiguous(first, _) => vec![first.to_utc()],
            LocalResult::None if self.every_hour => Vec::new(),
            LocalResult::None => self.end_of_gap(wall).into_iter().collect(),
        }
    }

    /// The moment after the change that leaves `wall` out.
    fn end_of_gap(&self, wall: NaiveDateTime) -> Option<DateTime<Utc>> {
        // What the clock would have shown without the change lies before it in the old offset;
        // the change is the first moment whose offset is the new one.
        let before = self.zone.from_local_datetime(&(wall - CHANGE)).earliest()?.to_utc();
        let after = self.zone.from_local_datetime(&(wall + CHANGE)).latest()?.to_utc();
        let shift = |at: DateTime<Utc>| at.with_timezone(&self.zone).naive_local() - at.naive_utc();
        let (mut low, mut high) = (before.timestamp(), after.timestamp());
        let new = shift(after);
        while high - low > 1 {
            let middle = low.midpoint(high);
            let at = DateTime::from_timestamp(middle, 0)?;
            if shift(at) == new { high = middle } else { low = middle }
        }
        DateTime::from_timestamp(high, 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::Timelike;
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    fn calendar(pattern: &str, zone: &str) -> Calendar {
        Calendar::parse(pattern, zone).expect("a calendar")
    }

    fn from(calendar: &Calendar, start: &str, count: usize) -> Vec<String> {
        let mut instant = at(start);
        let mut all = Vec::new();
        for _ in 0..count {
            instant = calendar.after(instant).expect("another one");
            all.push(instant.format("%FT%RZ").to_string());
        }
        all
    }

    #[test]
    fn a_time_that_is_left_out_comes_once_right_after() {
        // Berlin: 02:00 → 03:00 on 29 March 2026, at 01:00 UTC.
        let nightly = calendar("30 2 * * *", "Europe/Berlin");
        assert_eq!(
            from(&nightly, "2026-03-27T12:00:00Z", 4),
            ["2026-03-28T01:30Z", "2026-03-29T01:00Z", "2026-03-30T00:30Z", "2026-03-31T00:30Z"]
        );
    }

    #[test]
    fn a_time_that_is_repeated_comes_once() {
        // Berlin: 03:00 → 02:00 on 25 October 2026, at 01:00 UTC.
        let nightly = calendar("30 2 * * *", "Europe/Berlin");
        assert_eq!(
            from(&nightly, "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30Z", "2026-10-26T01:30Z"]
        );
        // Asked in the repeated hour, too.
        assert_eq!(from(&nightly, "2026-10-25T01:10:00Z", 1), ["2026-10-26T01:30Z"]);
    }

    #[test]
    fn a_pattern_of_every_hour_comes_in_every_real_hour() {
        let hourly = calendar("15 * * * *", "Europe/Berlin");
        assert_eq!(
            from(&hourly, "2026-10-24T23:30:00Z", 4),
            ["2026-10-25T00:15Z", "2026-10-25T01:15Z", "2026-10-25T02:15Z", "2026-10-25T03:15Z"]
        );
        assert_eq!(
            from(&hourly, "2026-03-29T00:00:00Z", 3),
            ["2026-03-29T00:15Z", "2026-03-29T01:15Z", "2026-03-29T02:15Z"]
        );
        // An offset of half an hour keeps the minutes of its own clock.
        let kolkata = calendar("15 * * * *", "Asia/Kolkata");
        assert_eq!(
            from(&kolkata, "2026-01-01T00:00:00Z", 2),
            ["2026-01-01T00:45Z", "2026-01-01T01:45Z"]
        );
    }

    #[test]
    fn a_due_time_is_the_same_whenever_one_asks() {
        let hourly = calendar("0 * * * *", "Africa/Harare");
        for asked in ["03:00:00", "03:00:00.000001", "03:59:59.123456", "03:59:59.999999"] {
            let due = hourly.after(at(&format!("2026-03-01T{asked}Z")));
            assert_eq!(due, Some(at("2026-03-01T04:00:00Z")), "{asked}");
        }
    }

    #[test]
    fn leap_days_and_excluded_days() {
        let leap = calendar("0 0 29 2 *", "UTC");
        assert_eq!(
            from(&leap, "2026-01-01T00:00:00Z", 2),
            ["2028-02-29T00:00Z", "2032-02-29T00:00Z"]
        );
        let days = ["2026-12-25", "2026-12-26"].map(|day| day.parse().expect("a day"));
        let daily = calendar("0 6 * * *", "UTC").without(days.to_vec());
        assert_eq!(
            from(&daily, "2026-12-24T00:00:00Z", 2),
            ["2026-12-24T06:00Z", "2026-12-27T06:00Z"]
        );
        let seconds = calendar("* * * * * *", "UTC").without(days.to_vec());
        assert_eq!(seconds.after(at("2026-12-24T23:59:59Z")), Some(at("2026-12-27T00:00:00Z")));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for pattern in ["", "* * *", "61 * * * *", "@daily", "* * * * * * *", "a b c d e"] {
            assert_eq!(
                Calendar::parse(pattern, "UTC").unwrap_err(),
                CalendarError::Pattern,
                "{pattern}"
            );
        }
        assert_eq!(Calendar::parse("0 0 * * *", "Mars").unwrap_err(), CalendarError::Zone);
        assert_eq!(Calendar::parse("0 0 30 2 *", "UTC").unwrap_err(), CalendarError::Never);
    }

    const ZONES: [&str; 8] = [
        "UTC",
        "Africa/Harare",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kolkata",
        "America/Sao_Paulo",
        "Pacific/Apia",
    ];

    proptest! {
        #[test]
        fn a_daily_time_comes_once_on_every_day_of_the_zone(
            zone in proptest::sample::select(ZONES.to_vec()),
            hour in 0u32..24,
            minute in 0u32..60,
            start in 1_262_304_000i64..1_830_297_600,
        ) {
            let calendar = calendar(&format!("{minute} {hour} * * *"), zone);
            let mut instant = DateTime::from_timestamp(start, 0).expect("an instant");
            let mut days = BTreeMap::new();
            for _ in 0..400 {
                let due = calendar.after(instant).expect("another day");
                prop_assert!(due > instant);
                instant = due;
                let local = due.with_timezone(&calendar.zone());
                *days.entry(local.date_naive()).or_insert(0) += 1;
                // Where the time exists on that day, that is when.
                let wall = local.date_naive().and_hms_opt(hour, minute, 0).expect("a time");
                if calendar.zone().from_local_datetime(&wall).earliest().is_some() {
                    prop_assert_eq!((local.hour(), local.minute()), (hour, minute));
                }
            }
            for (day, count) in &days {
                prop_assert_eq!(*count, 1, "{}", day);
            }
            let (first, last) = (days.keys().next().expect("a day"), days.keys().last().expect("a day"));
            let span = (*last - *first).num_days() + 1;
            // Apia left out a whole day in 2011.
            prop_assert!(span - days.len() as i64 <= i64::from(zone == "Pacific/Apia"));
        }

        #[test]
        fn an_hourly_time_comes_every_3600_seconds(
            zone in proptest::sample::select(ZONES.to_vec()),
            minute in 0u32..60,
            start in 1_262_304_000i64..1_830_297_600,
        ) {
            // Where the clocks change by less than an hour the minute comes at another distance.
            prop_assume!(zone != "Australia/Lord_Howe");
            let calendar = calendar(&format!("{minute} * * * *"), zone);
            let mut instant =
                calendar.after(DateTime::from_timestamp(start, 0).expect("an instant")).expect("one");
            for _ in 0..300 {
                let due = calendar.after(instant).expect("another hour");
                prop_assert_eq!((due - instant).num_seconds(), 3_600);
                instant = due;
            }
        }
    }
}
