//! NDJSON: each row is one JSON object (RFC 8259) on a line of its own, in UTF-8.
//!
//! Values look as PostgreSQL's `row_to_json` writes them, which is RFC 3339 for dates and times
//! (`timestamptz` in the report's zone) and `\x…` for bytes, with these differences:
//!
//! - A number that a reader would round by making an `f64` of it is a string: whole numbers beyond
//!   ±2 ^ 53, and decimals of more than 15 significant digits. Both are counted, as are NaN and the
//!   infinities, for which JSON has no numbers.
//! - A line end inside a JSON value, where it can only be white space, becomes a space.
//! - Of two columns of one name the second is called `name_2`: readers keep one key of two alike.
//!
//! NULL is `null`, and so is a JSON value that is `null`. A file cut at a limit looks like any
//! other: each line is a row, and there is no place for a remark.

use std::collections::BTreeMap;
use std::io::Write;

use super::calendar::{Style, Zone, push_timestamp, push_timestamp_tz};
use super::encoder::EncodedRows;
use super::number::{held_decimal, push_float, push_int};
use super::output::Output;
use super::text::push_text;
use super::{
    Adjustment, Cell, Column, Numeric, Options, RowWriter, Summary, WriteError, unique_names,
};

#[cfg(test)]
mod tests;

/// What is gathered before it goes to the sink, in bytes.
const BLOCK: usize = 128 * 1024;
/// A cell that makes the buffer longer than this is written at once, in bytes.
const LARGE: usize = 4 * BLOCK;
/// Whole numbers up to here have an `f64` of their own, and so have their neighbours' texts
/// (RFC 8259, section 6).
const LAST_EXACT: u64 = 1 << 53;

/// Writes NDJSON to `W` in blocks of at least 128 KiB.
#[derive(Debug)]
pub struct NdjsonWriter<W> {
    out: Output<W>,
    lines: Lines,
    rows: u64,
    /// Numbers in the rows that were appended.
    numbers_as_text: u64,
}

/// Lines of a file, in memory.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    pub buffer: Vec<u8>,
    /// `{"a":` for the first column, `,"b":` for those after it.
    keys: Vec<Box<[u8]>>,
    next_column: usize,
    zone: Zone,
    pub numbers_as_text: u64,
}

impl<W: Write> NdjsonWriter<W> {
    /// Opens a file on `out`. It has no header.
    ///
    /// # Errors
    /// [`WriteError::Io`] when there is no memory for a compressor.
    #[expect(clippy::needless_pass_by_value, reason = "every writer takes its columns")]
    pub fn new(columns: Vec<Column>, options: Options, out: W) -> Result<Self, WriteError> {
        let out = Output::new(out, options.compression)?;
        Ok(Self { out, lines: Lines::new(&columns, &options), rows: 0, numbers_as_text: 0 })
    }
}

impl Lines {
    pub fn new(columns: &[Column], options: &Options) -> Self {
        let keys = unique_names(columns).into_iter().enumerate().map(|(index, name)| {
            let mut key = vec![if index == 0 { b'{' } else { b',' }];
            push_string(&mut key, &name);
            key.push(b':');
            key.into_boxed_slice()
        });
        Self {
            buffer: Vec::with_capacity(BLOCK + BLOCK / 8),
            keys: keys.collect(),
            next_column: 0,
            zone: Zone::new(options.time_zone),
            numbers_as_text: 0,
        }
    }

    /// Writes what a string without anything to escape holds.
    fn push_quoted(&mut self, push: impl FnOnce(&mut Vec<u8>, &mut Zone)) {
        self.buffer.push(b'"');
        push(&mut self.buffer, &mut self.zone);
        self.buffer.push(b'"');
    }

    fn push_number_as_text(&mut self, cell: Cell<'_>) {
        self.numbers_as_text += 1;
        self.push_quoted(|out, zone| push_text(out, cell, zone));
    }

    fn push_numeric(&mut self, cell: Numeric<'_>) {
        let start = self.buffer.len();
        push_text(&mut self.buffer, Cell::Numeric(cell), &mut self.zone);
        if !is_exact_number(&self.buffer[start..]) {
            self.numbers_as_text += 1;
            self.buffer.insert(start, b'"');
            self.buffer.push(b'"');
        }
    }

    pub fn cell(&mut self, cell: Cell<'_>) -> Result<(), WriteError> {
        let Some(key) = self.keys.get(self.next_column) else {
            return Err(WriteError::TooManyCells { columns: self.keys.len() });
        };
        self.buffer.extend_from_slice(key);
        self.next_column += 1;
        match cell {
            Cell::Null => self.buffer.extend_from_slice(b"null"),
            Cell::Bool(value) => {
                self.buffer.extend_from_slice(if value { b"true" } else { b"false" });
            }
            Cell::Int(value) if value.unsigned_abs() <= LAST_EXACT => {
                push_int(&mut self.buffer, value);
            }
            Cell::Float4(value) if value.is_finite() => push_float(&mut self.buffer, value),
            Cell::Float8(value) if value.is_finite() => push_float(&mut self.buffer, value),
            Cell::Int(_) | Cell::Float4(_) | Cell::Float8(_) => self.push_number_as_text(cell),
            Cell::Numeric(value) => self.push_numeric(value),
            Cell::Text(text) => push_string(&mut self.buffer, text),
            Cell::Json(text) => push_json(&mut self.buffer, text),
            Cell::Bytes(_) => self.push_quoted(|out, zone| {
                out.push(b'\\'); // the backslash of `\x` is escaped
                push_text(out, cell, zone);
            }),
            Cell::Timestamp(micros) => {
                self.push_quoted(|out, _| push_timestamp(out, micros, Style::Json));
            }
            Cell::TimestampTz(micros) => {
                self.push_quoted(|out, zone| push_timestamp_tz(out, micros, zone, Style::Json));
            }
            Cell::Date(_) | Cell::Time(_) | Cell::Uuid(_) => {
                self.push_quoted(|out, zone| push_text(out, cell, zone));
            }
        }
        Ok(())
    }

    pub fn end_line(&mut self) {
        self.buffer.extend_from_slice(if self.next_column == 0 { b"{}\n" } else { b"}\n" });
        self.next_column = 0;
    }
}

impl<W: Write + Send> RowWriter for NdjsonWriter<W> {
    fn cell(&mut self, cell: Cell<'_>) -> Result<(), WriteError> {
        self.lines.cell(cell)?;
        Ok(self.out.take(&mut self.lines.buffer, LARGE)?)
    }

    fn end_row(&mut self) -> Result<(), WriteError> {
        self.rows += 1;
        self.lines.end_line();
        Ok(self.out.take(&mut self.lines.buffer, BLOCK)?)
    }

    fn append(&mut self, mut rows: EncodedRows) -> Result<(), WriteError> {
        self.rows += rows.rows() as u64;
        self.numbers_as_text += rows.adjusted();
        self.out.take(&mut self.lines.buffer, 0)?;
        Ok(self.out.take(&mut rows.bytes, 0)?)
    }

    fn finish(mut self: Box<Self>, _truncated: Option<&str>) -> Result<Summary, WriteError> {
        self.out.take(&mut self.lines.buffer, 0)?;
        self.out.finish()?;
        let mut adjusted = BTreeMap::new();
        let numbers_as_text = self.numbers_as_text + self.lines.numbers_as_text;
        if numbers_as_text > 0 {
            adjusted.insert(Adjustment::NumberAsText, numbers_as_text);
        }
        Ok(Summary { rows: self.rows, sheets: 1, adjusted, ..Summary::default() })
    }
}

/// Whether the text of a `numeric` is a JSON number of which a reader keeps every digit. A server
/// sends no leading zeros, but JSON would not be JSON with them.
fn is_exact_number(text: &[u8]) -> bool {
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    let padded = matches!(unsigned, [b'0', b'0'..=b'9', ..]);
    !padded && held_decimal(text).is_some()
}

/// Appends a string with the escapes of RFC 8259, section 7.
fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    push_escaped(out, text.as_bytes());
    out.push(b'"');
}

fn push_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    // Without a branch in the loop the compiler compares 16 or 32 bytes at a time; most texts
    // hold none of these.
    let must = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    if !bytes.iter().fold(false, |found, &byte| found | must(byte)) {
        return out.extend_from_slice(bytes);
    }
    let mut copied = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if must(byte) {
            out.extend_from_slice(&bytes[copied..index]);
            push_escape(out, byte);
            copied = index + 1;
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let letter = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0C => b'f',
        b'\r' => b'r',
        control => {
            let (high, low) = (control >> 4, control & 15);
            let digits = [DIGITS[usize::from(high)], DIGITS[usize::from(low)]];
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digits[0], digits[1]]);
        }
    };
    out.extend_from_slice(&[b'\\', letter]);
}

/// Appends a JSON value as it is, but on one line: strings in it hold no line ends.
fn push_json(out: &mut Vec<u8>, text: &str) {
    let start = out.len();
    out.extend_from_slice(text.as_bytes());
    for byte in &mut out[start..] {
        *byte = if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte };
    }
}
