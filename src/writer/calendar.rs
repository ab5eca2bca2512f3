//! Dates and times as PostgreSQL writes them, and the offsets of a zone.
//!
//! Days and microseconds count from 2000-01-01, PostgreSQL's epoch; the calendar is the proleptic
//! Gregorian one. Years before the first are written with `BC`, as PostgreSQL does.

use chrono::{DateTime, Offset, TimeZone};
use chrono_tz::Tz;

use super::number::{pair, push_int, quad};

/// Microseconds in a day.
pub(super) const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Microseconds in a second.
const MICROS_PER_SECOND: i64 = 1_000_000;
/// Days from 1970-01-01 to 2000-01-01.
pub(super) const EPOCH_DAYS: i64 = 10_957;
const SECONDS_PER_DAY: i64 = 86_400;

/// How a moment is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// As text with `DateStyle = ISO`: `2024-03-01 09:30:00+01`.
    Text,
    /// As `to_json` does, which is RFC 3339 in the years that it has: `2024-03-01T09:30:00+01:00`.
    Json,
}

impl Style {
    const fn separator(self) -> u8 {
        match self {
            Self::Text => b' ',
            Self::Json => b'T',
        }
    }
}

/// A day of the proleptic Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Day {
    /// Astronomical: 0 is 1 BC.
    pub year: i64,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
}

impl Day {
    /// The day that is `days` after 2000-01-01.
    ///
    /// The algorithm is Howard Hinnant's `civil_from_days`: years begin in March, so that the
    /// leap day is a year's last.
    pub fn after_epoch(days: i64) -> Self {
        // From 2000-03-01, the start of a cycle of 400 years.
        let shifted = days - 60;
        let cycle = shifted.div_euclid(146_097);
        let day_of_cycle = shifted.rem_euclid(146_097);
        let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524
            - day_of_cycle / 146_096)
            / 365;
        let day_of_year =
            day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = 2000 + cycle * 400 + year_of_cycle + i64::from(month <= 2);
        Self { year, month: month as u32, day }
    }

    /// Days from 2000-01-01 to this day.
    pub fn days(self) -> i64 {
        let year = self.year - 2000 - i64::from(self.month <= 2);
        let cycle = year.div_euclid(400);
        let year_of_cycle = year.rem_euclid(400);
        let shifted_month = (i64::from(self.month) + 9) % 12;
        let day_of_year = (153 * shifted_month + 2) / 5 + i64::from(self.day) - 1;
        let day_of_cycle =
            year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year;
        cycle * 146_097 + day_of_cycle + 60
    }

    /// Appends year, month and day. The caller ends the value with [`Self::push_era`].
    fn push(self, out: &mut Vec<u8>) {
        let year = if self.year > 0 { self.year } else { 1 - self.year };
        let [m1, m0] = pair(self.month);
        let [d1, d0] = pair(self.day);
        if year <= 9999 {
            let [y3, y2, y1, y0] = quad(year as u32);
            out.extend_from_slice(&[y3, y2, y1, y0, b'-', m1, m0, b'-', d1, d0]);
        } else {
            push_int(out, year);
            out.extend_from_slice(&[b'-', m1, m0, b'-', d1, d0]);
        }
    }

    fn push_era(self, out: &mut Vec<u8>) {
        if self.year <= 0 {
            out.extend_from_slice(b" BC");
        }
    }
}

/// Appends a `date`.
pub(super) fn push_date(out: &mut Vec<u8>, days: i32) {
    match days {
        i32::MAX => out.extend_from_slice(b"infinity"),
        i32::MIN => out.extend_from_slice(b"-infinity"),
        _ => {
            let day = Day::after_epoch(i64::from(days));
            day.push(out);
            day.push_era(out);
        }
    }
}

/// Appends a `timestamp`.
pub(super) fn push_timestamp(out: &mut Vec<u8>, micros: i64, style: Style) {
    if !push_infinity(out, micros) {
        let day = push_day_and_time(out, micros, style);
        day.push_era(out);
    }
}

/// Appends a `timestamptz` as it reads in `zone`, with the offset of the moment.
pub(super) fn push_timestamp_tz(out: &mut Vec<u8>, micros: i64, zone: &mut Zone, style: Style) {
    if push_infinity(out, micros) {
        return;
    }
    let offset = zone.offset_at(micros);
    let local = micros.saturating_add(i64::from(offset) * MICROS_PER_SECOND);
    let day = push_day_and_time(out, local, style);
    out.push(if offset < 0 { b'-' } else { b'+' });
    let size = offset.unsigned_abs();
    let (hours, minutes, seconds) = (size / 3_600, size / 60 % 60, size % 60);
    out.extend_from_slice(&pair(hours));
    if minutes != 0 || seconds != 0 || style == Style::Json {
        out.push(b':');
        out.extend_from_slice(&pair(minutes));
    }
    if seconds != 0 {
        out.push(b':');
        out.extend_from_slice(&pair(seconds));
    }
    day.push_era(out);
}

/// Appends a `time`; the last microsecond's successor is 24:00:00.
pub(super) fn push_time(out: &mut Vec<u8>, micros: i64) {
    let seconds = micros.div_euclid(MICROS_PER_SECOND).rem_euclid(100 * 3_600) as u32;
    let [h1, h0] = pair(seconds / 3_600);
    let [m1, m0] = pair(seconds / 60 % 60);
    let [s1, s0] = pair(seconds % 60);
    out.extend_from_slice(&[h1, h0, b':', m1, m0, b':', s1, s0]);
    let fraction = micros.rem_euclid(MICROS_PER_SECOND) as u32;
    if fraction != 0 {
        let [f5, f4, f3, f2] = quad(fraction / 100);
        let [f1, f0] = pair(fraction % 100);
        let text = [b'.', f5, f4, f3, f2, f1, f0];
        let len = text.iter().rposition(|&digit| digit != b'0').map_or(0, |last| last + 1);
        out.extend_from_slice(&text[..len]);
    }
}

fn push_day_and_time(out: &mut Vec<u8>, micros: i64, style: Style) -> Day {
    let day = Day::after_epoch(micros.div_euclid(MICROS_PER_DAY));
    day.push(out);
    out.push(style.separator());
    push_time(out, micros.rem_euclid(MICROS_PER_DAY));
    day
}

fn push_infinity(out: &mut Vec<u8>, micros: i64) -> bool {
    match micros {
        i64::MAX => out.extend_from_slice(b"infinity"),
        i64::MIN => out.extend_from_slice(b"-infinity"),
        _ => return false,
    }
    true
}

/// Days that [`Zone`] remembers: 11 years, 32 KiB.
const REMEMBERED_DAYS: usize = 4_096;
/// The database of zones has no transition before this moment (1800-01-01), in Unix seconds.
const FIRST_TRANSITION: i64 = -5_364_662_400;
/// The tables of `chrono-tz` end before this year; seasonal zones go on by their rule.
const TABLE_END: i64 = 2_100;

/// The offsets from UTC of one time zone.
///
/// A search of the zone's transitions costs more than writing the timestamp, so whole UTC days
/// are remembered. A day is remembered when its first and last second have the same offset; no
/// zone has ever had two transitions within 24 hours (in tzdata 2025b the least is 95 hours), so
/// such a day has none.
///
/// The offsets are those of the database built into this program (`chrono-tz`). A server built
/// with the older "backzone" data shows other ones for some zones before 1970.
#[derive(Debug, Clone)]
pub(super) struct Zone {
    zone: Tz,
    /// Whether the clock still changes twice a year when the tables end.
    seasonal: bool,
    /// `(day since 1970, offset in seconds)`, by the low bits of the day.
    days: Box<[(i64, i32)]>,
}

impl Zone {
    pub fn new(zone: Tz) -> Self {
        let [winter, summer] = [1, 7].map(|month| {
            let day = Day { year: TABLE_END - 1, month, day: 15 };
            table_offset(zone, (day.days() + EPOCH_DAYS) * SECONDS_PER_DAY)
        });
        let days = vec![(i64::MIN, 0); REMEMBERED_DAYS].into_boxed_slice();
        Self { zone, seasonal: winter != summer, days }
    }

    /// Seconds east of UTC at a moment given in microseconds since 2000-01-01 UTC.
    pub fn offset_at(&mut self, micros: i64) -> i32 {
        let seconds = micros.div_euclid(MICROS_PER_SECOND) + EPOCH_DAYS * SECONDS_PER_DAY;
        let day = seconds.div_euclid(SECONDS_PER_DAY);
        let slot = day.rem_euclid(REMEMBERED_DAYS as i64) as usize;
        let (remembered, offset) = self.days[slot];
        if remembered == day {
            return offset;
        }
        let first = self.search(day * SECONDS_PER_DAY);
        if first == self.search((day + 1) * SECONDS_PER_DAY - 1) {
            self.days[slot] = (day, first);
            first
        } else {
            self.search(seconds)
        }
    }

    fn search(&self, seconds: i64) -> i32 {
        let year = Day::after_epoch(seconds.div_euclid(SECONDS_PER_DAY) - EPOCH_DAYS).year;
        if year < TABLE_END || !self.seasonal {
            return table_offset(self.zone, seconds);
        }
        // A year with the same weekdays has its transitions on the same days; there are 14 kinds
        // of years, and the last 28 before a century's end hold each of them.
        let start = |year| Day { year, month: 1, day: 1 }.days();
        let kind = |year| (start(year).rem_euclid(7), start(year + 1) - start(year));
        let alike = (TABLE_END - 28..TABLE_END).rev().find(|&alike| kind(alike) == kind(year));
        let shift = start(alike.unwrap_or(TABLE_END - 1)) - start(year);
        table_offset(self.zone, seconds + shift * SECONDS_PER_DAY)
    }
}

fn table_offset(zone: Tz, seconds: i64) -> i32 {
    let last = (Day { year: TABLE_END, month: 1, day: 1 }.days() + EPOCH_DAYS) * SECONDS_PER_DAY;
    let seconds = seconds.clamp(FIRST_TRANSITION, last - 1);
    DateTime::from_timestamp(seconds, 0).map_or(0, |moment| {
        zone.offset_from_utc_datetime(&moment.naive_utc()).fix().local_minus_utc()
    })
}
