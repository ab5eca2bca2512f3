//! Dates and instants that are told from the day of the run: `today - 30 days`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use chrono::{
    DateTime, Datelike, Days, Months, NaiveDate, NaiveDateTime, NaiveTime, Offset, SubsecRound,
    TimeDelta, TimeZone, Utc,
};
use chrono_tz::Tz;

use super::value::{day_text, instant_text};

/// The largest count of units: 99,999 days are 273 years.
const MAX_COUNT: i32 = 99_999;

/// What relative values are told from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// The day in the definition's time zone.
    pub(super) today: NaiveDate,
    pub(super) now: DateTime<Utc>,
    pub(super) time_zone: Tz,
}

/// `today`, `today - 30 days`, `now + 1 month`, ….
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relative {
    anchor: Anchor,
    /// How many units later; negative for earlier.
    count: i32,
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    /// The day of the run; as an instant, its start.
    Today,
    /// The instant of the run.
    Now,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Only from `now`: sixty minutes of elapsed time, whatever the clocks do.
    Hour,
    Day,
    Week,
    Month,
    Year,
}

/// Where a declared bound or value is fixed, and where it moves with the day of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Moment<T> {
    Fixed(T),
    Relative(Relative),
}

/// The text is not a relative date.
#[derive(Debug)]
pub(super) struct NotRelative;

impl Relative {
    pub(super) fn anchor(self) -> Anchor {
        self.anchor
    }

    /// The day it means; `None` outside of the years 1 to 9999, and from `now`.
    pub(super) fn date(self, today: NaiveDate) -> Option<NaiveDate> {
        match self.anchor {
            Anchor::Today => self.shift(today),
            Anchor::Now => None,
        }
    }

    /// The instant it means, in whole microseconds; `None` outside of the years 1 to 9999.
    ///
    /// Days, weeks, months and years are calendar units of the time zone: `now - 1 day` is the
    /// same time on the clock of the day before.
    pub(super) fn instant(self, clock: &Clock) -> Option<DateTime<Utc>> {
        let instant = match (self.anchor, self.unit) {
            (Anchor::Today, _) => {
                let midnight = self.shift(clock.today)?.and_time(NaiveTime::MIN);
                first_instant(midnight, clock.time_zone)
            }
            (Anchor::Now, Unit::Hour) => {
                clock.now.checked_add_signed(TimeDelta::try_hours(self.count.into())?)?
            }
            (Anchor::Now, _) if self.count == 0 => clock.now,
            (Anchor::Now, _) => {
                let local = clock.now.with_timezone(&clock.time_zone).naive_local();
                first_instant(self.shift(local.date())?.and_time(local.time()), clock.time_zone)
            }
        };
        is_in_range(instant.date_naive()).then(|| instant.trunc_subsecs(6))
    }

    fn shift(self, day: NaiveDate) -> Option<NaiveDate> {
        let days = |each: u64| {
            let days = Days::new(u64::from(self.count.unsigned_abs()) * each);
            if self.count < 0 { day.checked_sub_days(days) } else { day.checked_add_days(days) }
        };
        // A day that the month does not have becomes its last: 31 January + 1 month is the 28th
        // or 29th of February.
        let months = |each: u32| {
            let months = Months::new(self.count.unsigned_abs() * each);
            if self.count < 0 {
                day.checked_sub_months(months)
            } else {
                day.checked_add_months(months)
            }
        };
        match self.unit {
            Unit::Hour => None,
            Unit::Day => days(1),
            Unit::Week => days(7),
            Unit::Month => months(1),
            Unit::Year => months(12),
        }
        .filter(|day| is_in_range(*day))
    }
}

impl FromStr for Relative {
    type Err = NotRelative;

    fn from_str(text: &str) -> Result<Self, NotRelative> {
        let (anchor, rest) = if let Some(rest) = text.strip_prefix("today") {
            (Anchor::Today, rest)
        } else if let Some(rest) = text.strip_prefix("now") {
            (Anchor::Now, rest)
        } else {
            return Err(NotRelative);
        };
        let rest = rest.trim();
        if rest.is_empty() {
            return Ok(Self { anchor, count: 0, unit: Unit::Day });
        }
        let (sign, rest) = match (rest.strip_prefix('+'), rest.strip_prefix('-')) {
            (Some(rest), _) => (1, rest.trim_start()),
            (None, Some(rest)) => (-1, rest.trim_start()),
            (None, None) => return Err(NotRelative),
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(NotRelative)?;
        let count: i32 = rest[..digits].parse().map_err(|_| NotRelative)?;
        let unit = match rest[digits..].trim_start() {
            "hour" | "hours" if anchor == Anchor::Now => Unit::Hour,
            "day" | "days" => Unit::Day,
            "week" | "weeks" => Unit::Week,
            "month" | "months" => Unit::Month,
            "year" | "years" => Unit::Year,
            _ => return Err(NotRelative),
        };
        if count > MAX_COUNT {
            return Err(NotRelative);
        }
        // One form for what is the same: `today + 0 weeks` is `today`.
        let unit = if count == 0 { Unit::Day } else { unit };
        Ok(Self { anchor, count: sign * count, unit })
    }
}

impl fmt::Display for Relative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.anchor {
            Anchor::Today => "today",
            Anchor::Now => "now",
        })?;
        if self.count == 0 {
            return Ok(());
        }
        let unit = match self.unit {
            Unit::Hour => "hour",
            Unit::Day => "day",
            Unit::Week => "week",
            Unit::Month => "month",
            Unit::Year => "year",
        };
        let sign = if self.count < 0 { '-' } else { '+' };
        let count = self.count.unsigned_abs();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, " {sign} {count} {unit}{plural}")
    }
}

impl fmt::Display for Moment<NaiveDate> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(day) => f.write_str(&day_text(*day)),
            Self::Relative(relative) => relative.fmt(f),
        }
    }
}

impl fmt::Display for Moment<DateTime<Utc>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(instant) => f.write_str(&instant_text(*instant)),
            Self::Relative(relative) => relative.fmt(f),
        }
    }
}

/// Which of two is the later is known before any run only if both are fixed.
impl<T: PartialOrd> PartialOrd for Moment<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Fixed(a), Self::Fixed(b)) => a.partial_cmp(b),
            (Self::Relative(a), Self::Relative(b)) => (a == b).then_some(Ordering::Equal),
            (Self::Fixed(_), Self::Relative(_)) | (Self::Relative(_), Self::Fixed(_)) => None,
        }
    }
}

/// True in the years that are written with four digits, which every format and driver can hold.
pub(super) fn is_in_range(day: NaiveDate) -> bool {
    (1..=9999).contains(&day.year())
}

/// The instant of a local time. In the hour that clocks repeat it is the first of the two, and for
/// a time that they skip it is the instant of the change: midnight does not exist everywhere.
fn first_instant(local: NaiveDateTime, time_zone: Tz) -> DateTime<Utc> {
    time_zone.from_local_datetime(&local).earliest().map_or_else(
        || {
            // No offset of a zone is larger than a day, so this one was in force before the change.
            let before = time_zone.offset_from_utc_datetime(&(local - TimeDelta::days(1)));
            (local - before.fix()).and_utc()
        },
        |instant| instant.to_utc(),
    )
}
