//! What Excel's cells can hold: its serial dates and its 15 digits.

use super::super::calendar::MICROS_PER_DAY;

/// 1900-01-01 in days since 2000-01-01.
const FIRST_DAY: i64 = -36_524;
/// 9999-12-31 in days since 2000-01-01.
const LAST_DAY: i64 = 2_921_939;
/// 1900-03-01: Excel believes that 1900 had a 29th of February, so later days count one more.
const AFTER_FALSE_LEAP_DAY: i64 = FIRST_DAY + 59;

/// The serial number of a day, `None` outside of 1900-01-01 to 9999-12-31.
pub(super) fn of_day(days: i64) -> Option<i64> {
    (FIRST_DAY..=LAST_DAY)
        .contains(&days)
        .then(|| days - FIRST_DAY + 1 + i64::from(days >= AFTER_FALSE_LEAP_DAY))
}

/// The serial number of a moment given in microseconds since 2000-01-01 00:00 local time.
pub(super) fn of_moment(micros: i64) -> Option<f64> {
    let day = of_day(micros.div_euclid(MICROS_PER_DAY))?;
    let serial = day as f64 + of_time(micros.rem_euclid(MICROS_PER_DAY));
    // The last microseconds of the last day round up to a day that does not exist.
    (serial < (LAST_DAY - FIRST_DAY + 3) as f64).then_some(serial)
}

/// The fraction of a day.
pub(super) fn of_time(micros: i64) -> f64 {
    micros as f64 / MICROS_PER_DAY as f64
}

/// Whether Excel keeps all the digits of a whole number.
pub(super) fn holds_int(value: i64) -> bool {
    let mut value = value.unsigned_abs();
    while value >= 1_000_000_000_000_000 && value.is_multiple_of(10) {
        value /= 10;
    }
    value < 1_000_000_000_000_000
}

/// Excel has no infinities, no NaN and no numbers that are too small to be normal.
pub(super) fn holds_float(value: f64) -> bool {
    value == 0.0 || value.is_normal()
}
