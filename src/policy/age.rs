//! Ages: how old a row must be, and which column tells it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::name::{ColumnName, NameError};

/// No rule looks back further than this, and the database's calendar reaches that far.
const MAX_MONTHS: u32 = 12 * 1_000;
const MAX_DAYS: u32 = 366 * 1_000;
const MAX_HOURS: u32 = 24 * 366_000;

/// A calendar interval: `5 years`, `1 year 6 months`, `30 days`. Never zero.
///
/// The *database* subtracts it from its own clock, once per run. Years, months, weeks and days are
/// units of the policy's calendar, hours are elapsed time, so the cutoff of a run is
///
/// ```sql
/// ((now() at time zone $zone) - $calendar::interval) at time zone $zone - $elapsed::interval
/// ```
///
/// with [`Age::calendar`] and [`Age::elapsed`]. A row is eligible when its age is strictly before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    months: u32,
    days: u32,
    hours: u32,
}

impl Age {
    /// Months and days, as PostgreSQL reads an interval.
    pub fn calendar(self) -> String {
        format!("{} months {} days", self.months, self.days)
    }

    /// Hours, as PostgreSQL reads an interval.
    pub fn elapsed(self) -> String {
        format!("{} hours", self.hours)
    }

    /// Whether every row that is older than `self` is older than `other`, whatever the day.
    pub fn is_at_least(self, other: Self) -> bool {
        self.least_hours() >= other.most_hours() || self == other || self.each_at_least(other)
    }

    fn each_at_least(self, other: Self) -> bool {
        self.months >= other.months && self.days >= other.days && self.hours >= other.hours
    }

    // A year has 365 or 366 days, a month 28 to 31, and a day 23 to 25 hours.
    fn least_hours(self) -> u64 {
        let (years, months) = (u64::from(self.months / 12), u64::from(self.months % 12));
        (years * 365 + months * 28 + u64::from(self.days)) * 24 + u64::from(self.hours)
            - u64::from(self.months > 0 || self.days > 0)
    }

    fn most_hours(self) -> u64 {
        let (years, months) = (u64::from(self.months / 12), u64::from(self.months % 12));
        (years * 366 + months * 31 + u64::from(self.days)) * 24
            + u64::from(self.hours)
            + u64::from(self.months > 0 || self.days > 0)
    }
}

impl FromStr for Age {
    type Err = AgeError;

    fn from_str(text: &str) -> Result<Self, AgeError> {
        let mut age = Self { months: 0, days: 0, hours: 0 };
        let words: Vec<_> = text.split(' ').collect();
        if words.len() > 10 {
            return Err(AgeError);
        }
        let (pairs, rest) = words.as_chunks::<2>();
        for [count, unit] in pairs {
            let digits = count.bytes().all(|byte| byte.is_ascii_digit()) && count.len() <= 8;
            let count: u32 = count.parse().ok().filter(|_| digits).ok_or(AgeError)?;
            let (sum, factor) = match unit.strip_suffix('s').unwrap_or(unit) {
                "year" => (&mut age.months, 12),
                "month" => (&mut age.months, 1),
                "week" => (&mut age.days, 7),
                "day" => (&mut age.days, 1),
                "hour" => (&mut age.hours, 1),
                _ => return Err(AgeError),
            };
            let more = count.checked_mul(factor).and_then(|more| sum.checked_add(more));
            *sum = more.ok_or(AgeError)?;
        }
        let bounded = age.months <= MAX_MONTHS && age.days <= MAX_DAYS && age.hours <= MAX_HOURS;
        let zero = age.months == 0 && age.days == 0 && age.hours == 0;
        if rest.is_empty() && bounded && !zero { Ok(age) } else { Err(AgeError) }
    }
}

/// In normal form, which is read back as the same age.
impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.months / 12, "year"),
            (self.months % 12, "month"),
            (self.days, "day"),
            (self.hours, "hour"),
        ];
        let mut space = "";
        for (count, unit) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{space}{count} {unit}{}", if count == 1 { "" } else { "s" })?;
            space = " ";
        }
        Ok(())
    }
}

impl Serialize for Age {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no [`Age`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a calendar interval of years, months, weeks, days or hours, more than none and at \
     most 1,000 years, like `5 years` or `1 year 6 months`"
)]
pub struct AgeError;

/// Which column tells how old a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgePath {
    /// One of the row itself: `created_at`.
    Own(ColumnName),
    /// One of a parent: `sessions.end_date`.
    Parent {
        /// The parent table, or the foreign key's column where several lead to that table.
        parent: ColumnName,
        /// The parent's column.
        column: ColumnName,
    },
}

impl FromStr for AgePath {
    type Err = AgePathError;

    fn from_str(text: &str) -> Result<Self, AgePathError> {
        let name = |part: &str| part.parse().map_err(|_: NameError| AgePathError);
        match text.split_once('.') {
            None => Ok(Self::Own(name(text)?)),
            Some((parent, column)) => {
                Ok(Self::Parent { parent: name(parent)?, column: name(column)? })
            }
        }
    }
}

impl fmt::Display for AgePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(column) => column.fmt(f),
            Self::Parent { parent, column } => write!(f, "{parent}.{column}"),
        }
    }
}

impl Serialize for AgePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no [`AgePath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a column of the table, or `parent.column` with a table that a foreign key leads to"
)]
pub struct AgePathError;

/// Elapsed time: `150ms`, `5s`, `10m`, `24h`, `7d`. Never zero, at most a year.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timespan(Duration);

impl Timespan {
    pub(super) const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// As the machine counts.
    pub fn duration(self) -> Duration {
        self.0
    }
}

const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];
const MAX_MILLIS: u64 = 366 * 86_400_000;

impl FromStr for Timespan {
    type Err = TimespanError;

    fn from_str(text: &str) -> Result<Self, TimespanError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (count, unit) = text.split_at(digits);
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        let millis = count.parse::<u64>().ok().zip(factor);
        let millis = millis.and_then(|(count, factor)| count.checked_mul(factor));
        match millis {
            Some(millis @ 1..=MAX_MILLIS) => Ok(Self::from_millis(millis)),
            _ => Err(TimespanError),
        }
    }
}

impl fmt::Display for Timespan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let order = ["d", "h", "m", "s", "ms"];
        let units = order.iter().filter_map(|unit| UNITS.iter().find(|(name, _)| name == unit));
        for (name, factor) in units {
            let factor = u128::from(*factor);
            if millis.is_multiple_of(factor) {
                return write!(f, "{}{name}", millis / factor);
            }
        }
        Ok(())
    }
}

impl Serialize for Timespan {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no [`Timespan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a time of one unit, more than none and at most a year: `150ms`, `5s`, `10m`, `24h` or `7d`"
)]
pub struct TimespanError;
