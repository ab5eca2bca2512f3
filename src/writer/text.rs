//! Values as PostgreSQL's output functions write them, with `DateStyle = ISO`,
//! `bytea_output = hex` and `extra_float_digits = 1` (its default).

use super::Cell;
use super::calendar::{Style, Zone, push_date, push_time, push_timestamp, push_timestamp_tz};
use super::number::{push_float, push_int, push_numeric};

/// Appends the text of a value; nothing for NULL.
#[inline]
pub(super) fn push_text(out: &mut Vec<u8>, cell: Cell<'_>, zone: &mut Zone) {
    match cell {
        Cell::Null => {}
        Cell::Bool(value) => out.push(if value { b't' } else { b'f' }),
        Cell::Int(value) => push_int(out, value),
        Cell::Float4(value) => push_float(out, value),
        Cell::Float8(value) => push_float(out, value),
        Cell::Numeric(value) => push_numeric(out, &value),
        Cell::Text(value) | Cell::Json(value) => out.extend_from_slice(value.as_bytes()),
        Cell::Bytes(value) => {
            out.extend_from_slice(b"\\x");
            push_hex(out, value);
        }
        Cell::Date(days) => push_date(out, days),
        Cell::Timestamp(micros) => push_timestamp(out, micros, Style::Text),
        Cell::TimestampTz(micros) => push_timestamp_tz(out, micros, zone, Style::Text),
        Cell::Time(micros) => push_time(out, micros),
        Cell::Uuid(value) => push_uuid(out, value),
    }
}

fn push_uuid(out: &mut Vec<u8>, value: [u8; 16]) {
    let [time_low, time_mid, time_high, clock, node] =
        [&value[..4], &value[4..6], &value[6..8], &value[8..10], &value[10..]];
    push_hex(out, time_low);
    for group in [time_mid, time_high, clock, node] {
        out.push(b'-');
        push_hex(out, group);
    }
}

fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(
        bytes
            .iter()
            .flat_map(|&byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]),
    );
}
