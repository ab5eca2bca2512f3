//! CSV, for programs and for people's spreadsheets.
//!
//! For a program the bytes are those of PostgreSQL's `COPY … TO STDOUT (FORMAT csv, HEADER)` with
//! the report's time zone: NULL is nothing and an empty string is `""`, so the two stay apart, and
//! lines end in LF where RFC 4180 has CRLF. For a spreadsheet lines end in CRLF, the header holds
//! the labels, booleans read `TRUE` and `FALSE`, and text that a spreadsheet would run as a formula
//! is guarded by an apostrophe. Numbers are never touched, nor is JSON: no JSON text begins a
//! formula, because what may stand at its start is `{`, `[`, `"`, a number, a word or white space.

use std::collections::BTreeMap;
use std::io::Write;

use super::calendar::Zone;
use super::encoder::EncodedRows;
use super::output::Output;
use super::text::push_text;
use super::{Adjustment, Cell, Column, Options, Reader, RowWriter, Summary, WriteError};

/// What is gathered before it goes to the sink, in bytes.
const BLOCK: usize = 128 * 1024;
/// A cell that makes the buffer longer than this is written at once, in bytes.
const LARGE: usize = 4 * BLOCK;

/// Bytes that are quoted at a time.
const PIECE: usize = 128;

/// Writes CSV to `W` in blocks of at least 128 KiB.
///
/// A file cut at a limit looks like any other: CSV has no place for a remark that a program would
/// not take for a row.
#[derive(Debug)]
pub struct CsvWriter<W> {
    out: Output<W>,
    lines: Lines,
    rows: u64,
    /// Cells in the rows that were appended.
    guarded: u64,
}

/// Lines of a file, in memory.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    pub buffer: Vec<u8>,
    zone: Zone,
    reader: Reader,
    delimiter: u8,
    /// `COPY` quotes the marker `\.` when it would stand alone on its line.
    single_column: bool,
    row_is_empty: bool,
    /// Cells below the header that were guarded.
    pub guarded: u64,
}

impl<W: Write> CsvWriter<W> {
    /// Opens a file on `out` and writes its header.
    ///
    /// # Errors
    /// [`WriteError::Io`] when `out` fails.
    #[expect(clippy::needless_pass_by_value, reason = "every writer takes its columns")]
    pub fn new(columns: Vec<Column>, options: Options, out: W) -> Result<Self, WriteError> {
        let out = Output::new(out, options.compression)?;
        let mut lines = Lines::new(&columns, &options);
        if options.byte_order_mark {
            lines.buffer.extend_from_slice("\u{feff}".as_bytes());
        }
        for column in &columns {
            lines.begin_cell();
            lines.push_string(if lines.for_spreadsheet() { &column.label } else { &column.name });
        }
        lines.end_line();
        let mut writer = Self { out, lines: Lines { guarded: 0, ..lines }, rows: 0, guarded: 0 };
        writer.out.take(&mut writer.lines.buffer, BLOCK)?;
        Ok(writer)
    }
}

impl Lines {
    pub fn new(columns: &[Column], options: &Options) -> Self {
        Self {
            buffer: Vec::with_capacity(BLOCK + BLOCK / 8),
            zone: Zone::new(options.time_zone),
            reader: options.reader,
            delimiter: options.delimiter,
            single_column: columns.len() == 1,
            row_is_empty: true,
            guarded: 0,
        }
    }

    fn for_spreadsheet(&self) -> bool {
        self.reader == Reader::Spreadsheet
    }

    #[inline]
    fn begin_cell(&mut self) {
        if !self.row_is_empty {
            self.buffer.push(self.delimiter);
        }
        self.row_is_empty = false;
    }

    #[inline]
    pub fn cell(&mut self, cell: Cell<'_>) {
        self.begin_cell();
        match cell {
            Cell::Text(text) => self.push_string(text),
            Cell::Json(text) => self.push_quotable("", text),
            Cell::Bool(value) if self.for_spreadsheet() => {
                self.buffer.extend_from_slice(if value { b"TRUE" } else { b"FALSE" });
            }
            // The text of these holds neither a quote, a line end nor one of the delimiters.
            Cell::Null
            | Cell::Bool(_)
            | Cell::Int(_)
            | Cell::Float4(_)
            | Cell::Float8(_)
            | Cell::Numeric(_)
            | Cell::Bytes(_)
            | Cell::Date(_)
            | Cell::Timestamp(_)
            | Cell::TimestampTz(_)
            | Cell::Time(_)
            | Cell::Uuid(_) => push_text(&mut self.buffer, cell, &mut self.zone),
        }
    }

    #[inline]
    pub fn end_line(&mut self) {
        self.row_is_empty = true;
        self.buffer.extend_from_slice(if self.for_spreadsheet() { b"\r\n" } else { b"\n" });
    }

    /// Writes a text of the user's, which can be mistaken for a formula.
    #[inline]
    fn push_string(&mut self, text: &str) {
        if self.for_spreadsheet() && text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
            self.guarded += 1;
            self.push_quotable("'", text);
        } else {
            self.push_quotable("", text);
        }
    }

    /// Writes `prefix` and `text` as one field, quoted by the rules of `CopyAttributeOutCSV`.
    #[inline]
    fn push_quotable(&mut self, prefix: &str, text: &str) {
        let delimiter = self.delimiter;
        // Without a branch in the loop the compiler compares 16 or 32 bytes at a time.
        let special = text.bytes().fold(false, |found, byte| {
            found | (byte == delimiter) | (byte == b'"') | (byte == b'\n') | (byte == b'\r')
        });
        let quoted = special || text.is_empty() || self.single_column && text == "\\.";
        if !quoted {
            self.buffer.extend_from_slice(prefix.as_bytes());
            self.buffer.extend_from_slice(text.as_bytes());
            return;
        }
        self.buffer.push(b'"');
        self.buffer.extend_from_slice(prefix.as_bytes());
        push_doubled(&mut self.buffer, text.as_bytes());
        self.buffer.push(b'"');
    }
}

/// Appends `text` with every quote twice.
///
/// JSON has a quote every few bytes: looking for the next one costs more than writing each byte
/// where it belongs, a second time over when it is a quote.
fn push_doubled(out: &mut Vec<u8>, text: &[u8]) {
    for piece in text.chunks(PIECE) {
        let mut doubled = [0; 2 * PIECE];
        let mut length = 0;
        for &byte in piece {
            doubled[length] = byte;
            // Overwritten by the next byte, unless this one is a quote.
            doubled[length + 1] = byte;
            length += 1 + usize::from(byte == b'"');
        }
        out.extend_from_slice(&doubled[..length]);
    }
}

impl<W: Write + Send> RowWriter for CsvWriter<W> {
    fn cell(&mut self, cell: Cell<'_>) -> Result<(), WriteError> {
        self.lines.cell(cell);
        Ok(self.out.take(&mut self.lines.buffer, LARGE)?)
    }

    fn end_row(&mut self) -> Result<(), WriteError> {
        self.rows += 1;
        self.lines.end_line();
        Ok(self.out.take(&mut self.lines.buffer, BLOCK)?)
    }

    fn append(&mut self, mut rows: EncodedRows) -> Result<(), WriteError> {
        self.rows += rows.rows() as u64;
        self.guarded += rows.adjusted();
        self.out.take(&mut self.lines.buffer, 0)?;
        Ok(self.out.take(&mut rows.bytes, 0)?)
    }

    fn finish(mut self: Box<Self>, _truncated: Option<&str>) -> Result<Summary, WriteError> {
        self.out.take(&mut self.lines.buffer, 0)?;
        self.out.finish()?;
        let mut adjusted = BTreeMap::new();
        let guarded = self.guarded + self.lines.guarded;
        if guarded > 0 {
            adjusted.insert(Adjustment::FormulaGuarded, guarded);
        }
        Ok(Summary { rows: self.rows, sheets: 1, adjusted, ..Summary::default() })
    }
}
