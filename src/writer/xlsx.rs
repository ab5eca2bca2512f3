//! Office Open XML workbooks, written as the rows come.
//!
//! The package is made by a library ([`package`]); the rows are written here, straight into the
//! compressed sheet, so that no scratch file is needed and memory does not grow with the rows.
//! Apart from what is said below, a sheet is byte for byte what the library writes.
//!
//! - Strings stand in their cells ("inline"), because a table of shared strings would have to be
//!   held in memory. An empty string is a cell with an empty text; NULL is no cell.
//! - `<dimension>` is left out: it would have to be known before the first row.
//! - The parts that depend on the number of sheets come last, `[Content_Types].xml` among them.
//!   The standard (ISO/IEC 29500-2) leaves the order free.
//! - No part says when the file was made: the same rows give the same file.
//!
//! The header holds the labels, whoever reads: a workbook is for people. What a cell cannot hold
//! is written as text or escaped, and counted.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zip::result::ZipError;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, DateTime, ZipWriter};

use self::package::{Package, Parts, Styles, sheet_path};
use super::calendar::Zone;
use super::number::push_int;
use super::text::push_text;
use super::{Adjustment, Cell, Column, Format, Options, RowWriter, Summary, WriteError};

mod markup;
mod package;
mod serial;
#[cfg(test)]
mod tests;

/// Excel's columns, `A` to `XFD`.
const MAX_COLUMNS: usize = 16_384;
/// What is gathered before it is compressed, in bytes.
const BLOCK: usize = 64 * 1024;
/// A buffer that one large row made longer than this is given back.
const KEPT: usize = 4 * BLOCK;
/// Parts written before the sheets, in an order by which `file` knows a workbook.
const FIRST_PARTS: [&str; 4] =
    ["_rels/.rels", "docProps/core.xml", "xl/theme/theme1.xml", "xl/styles.xml"];

/// When a sheet is full and the next one begins.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Rows of a sheet, with the header.
    rows: u32,
    /// Bytes of a sheet's XML.
    bytes: u64,
}

impl Limits {
    /// Excel's rows, and a size at which the widest row of PostgreSQL's (1,664 columns of 32,767
    /// characters that are escaped to 7 bytes each) still fits below the 4 GiB of a zip entry
    /// without ZIP64, which some readers lack.
    const EXCEL: Self = Self { rows: 1_048_576, bytes: (4 << 30) - (512 << 20) };
}

/// Writes a workbook to `W` while its rows come.
///
/// Dropped before it is finished, it writes nothing more to `W`, so that a file abandoned half
/// way does not look like a whole one.
#[derive(Debug)]
pub struct XlsxWriter<W: Write> {
    package: Package,
    zip: Option<ZipWriter<StreamWriter<Sink<W>>>>,
    abandoned: Arc<AtomicBool>,
    options: Options,
    limits: Limits,
    zone: Zone,
    styles: Styles,
    /// XML before the rows of the first and of every further sheet.
    heads: [String; 2],
    markup: Vec<ColumnMarkup>,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    row: Row,
    /// Bytes of the current sheet that have left the buffer.
    sheet_bytes: u64,
    /// The last row of each full sheet.
    full_sheets: Vec<u32>,
    rows: u64,
    adjusted: BTreeMap<Adjustment, u64>,
}

/// What stands around a column's cells.
#[derive(Debug)]
struct ColumnMarkup {
    /// `<c r="AB`
    start: Vec<u8>,
    /// `"` or `" s="3"`
    style: Vec<u8>,
}

/// The row being written.
#[derive(Debug, Default)]
struct Row {
    /// From 1, within the sheet.
    number: u32,
    digits: Vec<u8>,
    next_column: usize,
    has_cells: bool,
}

impl<W: Write> XlsxWriter<W> {
    /// Opens a workbook on `out` and writes the header of its first sheet.
    ///
    /// # Errors
    /// [`WriteError::TooManyColumns`] beyond 16,384 columns, [`WriteError::Workbook`] when the
    /// library refuses a format, [`WriteError::Io`] when `out` fails.
    pub fn new(columns: Vec<Column>, options: Options, out: W) -> Result<Self, WriteError> {
        Self::with_limits(columns, options, out, Limits::EXCEL)
    }

    fn with_limits(
        columns: Vec<Column>,
        options: Options,
        out: W,
        limits: Limits,
    ) -> Result<Self, WriteError> {
        if columns.len() > MAX_COLUMNS {
            let (format, max, columns) = (Format::Xlsx, MAX_COLUMNS, columns.len());
            return Err(WriteError::TooManyColumns { format, max, columns });
        }
        let package = Package::new(columns, &options.sheet_name);
        let mut parts = package.parts(&[1, 1])?;
        let styles = parts.styles(package.columns().len())?;
        let abandoned = Arc::new(AtomicBool::new(false));
        let sink = Sink { out, abandoned: Arc::clone(&abandoned) };
        let mut writer = Self {
            zip: Some(ZipWriter::new_stream(sink)),
            abandoned,
            limits,
            zone: Zone::new(options.time_zone),
            heads: [parts.around_rows(1)?.0, parts.around_rows(2)?.0],
            markup: styles.columns.iter().enumerate().map(ColumnMarkup::new).collect(),
            styles,
            package,
            buffer: Vec::with_capacity(BLOCK + BLOCK / 8),
            scratch: Vec::new(),
            row: Row::default(),
            sheet_bytes: 0,
            full_sheets: Vec::new(),
            rows: 0,
            adjusted: BTreeMap::new(),
            options,
        };
        for name in FIRST_PARTS {
            writer.copy_part(&mut parts, name)?;
        }
        writer.begin_sheet()?;
        Ok(writer)
    }

    fn zip(&mut self) -> &mut ZipWriter<StreamWriter<Sink<W>>> {
        self.zip.as_mut().expect("the archive is taken only when the writer is finished")
    }

    fn begin_part(&mut self, name: &str) -> Result<(), WriteError> {
        let level = self.options.compression_level.clamp(1, 9);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(i64::from(level)))
            .unix_permissions(0o600)
            .last_modified_time(DateTime::default());
        self.zip().start_file(name, options).map_err(zip_failed)
    }

    fn copy_part(&mut self, parts: &mut Parts, name: &str) -> Result<(), WriteError> {
        let part = parts.read(name)?;
        self.begin_part(name)?;
        Ok(self.zip().write_all(part.as_bytes())?)
    }

    fn begin_sheet(&mut self) -> Result<(), WriteError> {
        let index = self.full_sheets.len();
        self.begin_part(&sheet_path(index + 1))?;
        self.sheet_bytes = 0;
        self.buffer.extend_from_slice(self.heads[index.min(1)].as_bytes());
        self.row = Row::default();
        self.begin_row();
        for (column, index) in self.package.columns().iter().zip(0..) {
            let markup = ColumnMarkup::new((index, &self.styles.header));
            markup.push(&mut self.buffer, &self.row, b" t=\"inlineStr\"><is><t");
            push_inline(&mut self.buffer, &column.label);
        }
        self.buffer.extend_from_slice(b"</row>");
        self.row.next_column = 0;
        self.flush_from(BLOCK)
    }

    /// Ends the current sheet, whose header and data end in row `last`.
    fn end_sheet(&mut self, last: u32) -> Result<(), WriteError> {
        self.full_sheets.push(last);
        let (_, tail) = self.package.parts(&[last])?.around_rows(1)?;
        self.buffer.extend_from_slice(tail.as_bytes());
        self.flush_from(0)
    }

    /// Begins a row on a sheet that has room for it.
    fn begin_row_with_room(&mut self) -> Result<(), WriteError> {
        if self.row.number >= self.limits.rows || self.sheet_bytes >= self.limits.bytes {
            self.end_sheet(self.row.number)?;
            self.begin_sheet()?;
        }
        self.begin_row();
        Ok(())
    }

    fn begin_row(&mut self) {
        self.row.number += 1;
        self.row.digits.clear();
        push_int(&mut self.row.digits, i64::from(self.row.number));
        self.row.has_cells = false;
        self.buffer.extend_from_slice(b"<row r=\"");
        self.buffer.extend_from_slice(&self.row.digits);
        self.buffer.extend_from_slice(b"\">");
    }

    fn begin_cell(&mut self, column: usize, kind_and_start: &[u8]) {
        self.row.has_cells = true;
        self.markup[column].push(&mut self.buffer, &self.row, kind_and_start);
    }

    fn push_value(&mut self, column: usize, cell: Cell<'_>) {
        match cell {
            Cell::Null => {}
            Cell::Bool(value) => {
                self.begin_cell(column, b" t=\"b\"><v>");
                self.buffer.push(if value { b'1' } else { b'0' });
                self.buffer.extend_from_slice(b"</v></c>");
            }
            Cell::Int(value) if serial::holds_int(value) => self.push_int(column, value),
            Cell::Float8(value) if holds_float(value) => self.push_number(column, value),
            Cell::Float4(value) if value.is_finite() => self.push_number(column, value),
            Cell::Numeric(_) => {
                self.push_to_scratch(cell);
                let scratch = std::mem::take(&mut self.scratch);
                if let Some(decimal) = serial::held_decimal(&scratch) {
                    self.begin_cell(column, b"><v>");
                    self.buffer.extend_from_slice(decimal);
                    self.buffer.extend_from_slice(b"</v></c>");
                    self.scratch = scratch;
                } else {
                    self.push_scratch(column, scratch, Some(Adjustment::NumberAsText));
                }
            }
            Cell::Int(_) | Cell::Float4(_) | Cell::Float8(_) => {
                self.push_as_text(column, cell, Some(Adjustment::NumberAsText));
            }
            Cell::Text(text) | Cell::Json(text) => self.push_string(column, text),
            // Two digits a byte: what is beyond would be cut in any case.
            Cell::Bytes(bytes) if bytes.len() > markup::MAX_TEXT => {
                self.push_as_text(column, Cell::Bytes(&bytes[..markup::MAX_TEXT]), None);
            }
            Cell::Bytes(_) | Cell::Uuid(_) => self.push_as_text(column, cell, None),
            Cell::Date(_) | Cell::Timestamp(_) | Cell::TimestampTz(_) | Cell::Time(_) => {
                self.push_date(column, cell);
            }
        }
    }

    fn push_date(&mut self, column: usize, cell: Cell<'_>) {
        // Infinities lie outside of Excel's years as well.
        let serial = match cell {
            Cell::Date(days) => match serial::of_day(i64::from(days)) {
                Some(serial) => return self.push_int(column, serial),
                None => None,
            },
            Cell::Timestamp(micros) => serial::of_moment(micros),
            Cell::TimestampTz(micros) => {
                let offset = i64::from(self.zone.offset_at(micros)) * 1_000_000;
                serial::of_moment(micros.saturating_add(offset))
            }
            Cell::Time(micros) => Some(serial::of_time(micros)).filter(|&serial| serial < 1.0),
            _ => None,
        };
        match serial {
            Some(serial) => self.push_number(column, serial),
            None => self.push_as_text(column, cell, Some(Adjustment::DateAsText)),
        }
    }

    fn push_int(&mut self, column: usize, value: i64) {
        self.begin_cell(column, b"><v>");
        push_int(&mut self.buffer, value);
        self.buffer.extend_from_slice(b"</v></c>");
    }

    fn push_number(&mut self, column: usize, value: impl std::fmt::Display) {
        self.begin_cell(column, b"><v>");
        write!(self.buffer, "{value}").expect("writing to memory cannot fail");
        self.buffer.extend_from_slice(b"</v></c>");
    }

    fn push_string(&mut self, column: usize, text: &str) {
        self.begin_cell(column, b" t=\"inlineStr\"><is><t");
        let pushed = push_inline(&mut self.buffer, text);
        if pushed.cut {
            self.count(Adjustment::TextCut);
        }
        if pushed.escaped {
            self.count(Adjustment::CharacterEscaped);
        }
    }

    fn push_as_text(&mut self, column: usize, cell: Cell<'_>, adjustment: Option<Adjustment>) {
        self.push_to_scratch(cell);
        let scratch = std::mem::take(&mut self.scratch);
        self.push_scratch(column, scratch, adjustment);
    }

    fn push_to_scratch(&mut self, cell: Cell<'_>) {
        self.scratch.clear();
        push_text(&mut self.scratch, cell, &mut self.zone);
    }

    fn push_scratch(&mut self, column: usize, text: Vec<u8>, adjustment: Option<Adjustment>) {
        self.push_string(column, str::from_utf8(&text).expect("all but text and JSON is ASCII"));
        if let Some(adjustment) = adjustment {
            self.count(adjustment);
        }
        self.scratch = text;
    }

    fn count(&mut self, adjustment: Adjustment) {
        *self.adjusted.entry(adjustment).or_default() += 1;
    }

    fn push_remark(&mut self, text: &str) -> Result<(), WriteError> {
        self.begin_row_with_room()?;
        let markup = ColumnMarkup::new((0, &self.styles.remark));
        markup.push(&mut self.buffer, &self.row, b" t=\"inlineStr\"><is><t");
        push_inline(&mut self.buffer, text);
        self.buffer.extend_from_slice(b"</row>");
        Ok(())
    }

    fn flush_from(&mut self, size: usize) -> Result<(), WriteError> {
        if self.buffer.len() >= size {
            self.sheet_bytes += self.buffer.len() as u64;
            let buffer = std::mem::take(&mut self.buffer);
            let written = self.zip().write_all(&buffer);
            self.buffer = buffer;
            self.buffer.clear();
            self.buffer.shrink_to(KEPT);
            written?;
        }
        Ok(())
    }
}

impl<W: Write + Send> RowWriter for XlsxWriter<W> {
    fn cell(&mut self, cell: Cell<'_>) -> Result<(), WriteError> {
        let column = self.row.next_column;
        if column == self.markup.len() {
            return Err(WriteError::Workbook("the row has more cells than columns".to_owned()));
        }
        if column == 0 {
            self.begin_row_with_room()?;
        }
        self.row.next_column += 1;
        self.push_value(column, cell);
        self.flush_from(KEPT)
    }

    fn end_row(&mut self) -> Result<(), WriteError> {
        if self.row.next_column == 0 {
            self.begin_row_with_room()?;
        }
        if self.row.has_cells {
            self.buffer.extend_from_slice(b"</row>");
        } else {
            // As the library does: no element for a row of nothing but NULLs.
            let tag = self.row.digits.len() + b"<row r=\"\">".len();
            self.buffer.truncate(self.buffer.len() - tag);
        }
        self.row.next_column = 0;
        self.rows += 1;
        self.flush_from(BLOCK)
    }

    fn finish(mut self: Box<Self>, truncated: Option<&str>) -> Result<Summary, WriteError> {
        let mut last = self.row.number;
        if let Some(sentence) = truncated {
            let sheet = self.full_sheets.len();
            self.push_remark(sentence)?;
            if self.full_sheets.len() > sheet {
                last = 1;
            }
        }
        self.end_sheet(last)?;
        let mut parts = self.package.parts(&self.full_sheets)?;
        let rest = parts.names()?.into_iter().filter(|name| !FIRST_PARTS.contains(&name.as_str()));
        // Content types last: a reader that got them has a whole package.
        let (types, others): (Vec<_>, Vec<_>) = rest.partition(|name| name.starts_with('['));
        for name in others.iter().chain(&types) {
            self.copy_part(&mut parts, name)?;
        }
        if let Some(zip) = self.zip.take() {
            zip.finish().map_err(zip_failed)?.flush()?;
        }
        let sheets = self.full_sheets.len() as u32;
        Ok(Summary { rows: self.rows, sheets, adjusted: std::mem::take(&mut self.adjusted) })
    }
}

impl<W: Write> Drop for XlsxWriter<W> {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl ColumnMarkup {
    fn new((index, style): (usize, &u32)) -> Self {
        let start =
            format!("<c r=\"{}", rust_xlsxwriter::utility::column_number_to_name(index as u16));
        let style = if *style == 0 { "\"".to_owned() } else { format!("\" s=\"{style}\"") };
        Self { start: start.into_bytes(), style: style.into_bytes() }
    }

    fn push(&self, out: &mut Vec<u8>, row: &Row, kind_and_start: &[u8]) {
        out.extend_from_slice(&self.start);
        out.extend_from_slice(&row.digits);
        out.extend_from_slice(&self.style);
        out.extend_from_slice(kind_and_start);
    }
}

/// What had to be done to a text.
#[derive(Debug, Clone, Copy)]
struct Pushed {
    cut: bool,
    escaped: bool,
}

/// Appends the rest of a cell of which `…<is><t` is written.
fn push_inline(out: &mut Vec<u8>, text: &str) -> Pushed {
    let kept = markup::cut(text);
    let preserve = markup::needs_preserving(kept);
    out.extend_from_slice(if preserve { b" xml:space=\"preserve\">" } else { b">" });
    let escaped = markup::push_escaped(out, kept);
    out.extend_from_slice(b"</t></is></c>");
    Pushed { cut: kept.len() < text.len(), escaped }
}

/// Excel has no infinities, no NaN and no numbers that are too small to be normal.
fn holds_float(value: f64) -> bool {
    value == 0.0 || value.is_normal()
}

fn zip_failed(error: ZipError) -> WriteError {
    match error {
        ZipError::Io(error) => WriteError::Io(error),
        error => WriteError::Workbook(error.to_string()),
    }
}

/// The sink of an archive, deaf once its writer is gone: the archive would end itself when it is
/// dropped, and complain on standard error where the sink has failed.
#[derive(Debug)]
struct Sink<W> {
    out: W,
    abandoned: Arc<AtomicBool>,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Ok(bytes.len());
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.out.flush()
    }
}
