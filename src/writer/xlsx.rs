//! Office Open XML workbooks, written as the rows come.
//!
//! The package is made by a library (`package`); the rows are written here, straight into the
//! compressed sheet, so that no scratch file is needed and memory does not grow with the rows.
//! Apart from what is said below, a sheet is byte for byte what the library writes.
//!
//! - Cells have no reference (`r="C7"`), which would be a third of the XML and half of the file:
//!   one stands beside the cell before it. Empty cells take the place of NULLs in between.
//! - Strings stand in their cells ("inline"), because a table of shared strings would have to be
//!   held in memory. An empty string is a cell with an empty text; NULL is no cell, or an empty one.
//! - `<dimension>` is left out: it would have to be known before the first row.
//! - The parts that depend on the number of sheets come last, `[Content_Types].xml` among them.
//!   The standard (ISO/IEC 29500-2) leaves the order free.
//! - No part says when the file was made: the same rows give the same file.
//!
//! The header holds the labels, whoever reads: a workbook is for people. What a cell cannot hold
//! is written as text or escaped, and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zip::result::ZipError;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, DateTime, ZipWriter};

use self::package::{Package, Parts, sheet_path};
use self::rows::Rows;
use super::calendar::Zone;
use super::{Cell, Column, Format, Options, RowWriter, Summary, WriteError};

mod markup;
mod package;
mod rows;
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
    /// XML before the rows of the first and of every further sheet.
    heads: [String; 2],
    rows: Rows,
    rows_written: u64,
    /// Bytes of the current sheet that have left the buffer.
    sheet_bytes: u64,
    /// The last row, but for remarks, of each sheet that has ended.
    last_rows: Vec<u32>,
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
        let buffer = Vec::with_capacity(BLOCK + BLOCK / 8);
        let abandoned = Arc::new(AtomicBool::new(false));
        let sink = Sink { out, abandoned: Arc::clone(&abandoned) };
        let mut writer = Self {
            zip: Some(ZipWriter::new_stream(sink)),
            abandoned,
            limits,
            heads: [parts.around_rows(1)?.0, parts.around_rows(2)?.0],
            rows: Rows::new(package.columns(), &styles, Zone::new(options.time_zone), buffer),
            rows_written: 0,
            sheet_bytes: 0,
            last_rows: Vec::new(),
            package,
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
        let index = self.last_rows.len();
        self.begin_part(&sheet_path(index + 1))?;
        self.sheet_bytes = 0;
        self.rows.begin_sheet(&self.heads[index.min(1)]);
        self.flush_from(BLOCK)
    }

    /// Ends the current sheet, whose header and data end in row `last`.
    fn end_sheet(&mut self, last: u32) -> Result<(), WriteError> {
        self.last_rows.push(last);
        let (_, tail) = self.package.parts(&[last])?.around_rows(1)?;
        self.rows.buffer.extend_from_slice(tail.as_bytes());
        self.flush_from(0)
    }

    /// Goes on to the next sheet if this one has no room for another row.
    fn make_room(&mut self) -> Result<(), WriteError> {
        if self.rows.number() >= self.limits.rows || self.sheet_bytes >= self.limits.bytes {
            self.end_sheet(self.rows.number())?;
            self.begin_sheet()?;
        }
        Ok(())
    }

    fn flush_from(&mut self, size: usize) -> Result<(), WriteError> {
        if self.rows.buffer.len() >= size {
            let mut buffer = std::mem::take(&mut self.rows.buffer);
            self.sheet_bytes += buffer.len() as u64;
            self.zip().write_all(&buffer)?;
            buffer.clear();
            buffer.shrink_to(KEPT);
            self.rows.buffer = buffer;
        }
        Ok(())
    }
}

impl<W: Write + Send> RowWriter for XlsxWriter<W> {
    fn cell(&mut self, cell: Cell<'_>) -> Result<(), WriteError> {
        let column = self.rows.next_column();
        if column == self.package.columns().len() {
            return Err(WriteError::Workbook("the row has more cells than columns".to_owned()));
        }
        if column == 0 {
            self.make_room()?;
            self.rows.begin_row();
        }
        self.rows.push(cell);
        self.flush_from(KEPT)
    }

    fn end_row(&mut self) -> Result<(), WriteError> {
        if self.rows.next_column() == 0 {
            self.make_room()?;
            self.rows.begin_row();
        }
        self.rows.end_row();
        self.rows_written += 1;
        self.flush_from(BLOCK)
    }

    fn finish(mut self: Box<Self>, truncated: Option<&str>) -> Result<Summary, WriteError> {
        if truncated.is_some() {
            self.make_room()?;
        }
        // The filter ends with the data, above the remark.
        let last = self.rows.number();
        if let Some(sentence) = truncated {
            self.rows.push_remark(sentence);
        }
        self.end_sheet(last)?;
        let mut parts = self.package.parts(&self.last_rows)?;
        let rest = parts.names()?.into_iter().filter(|name| !FIRST_PARTS.contains(&&**name));
        // Content types last: a reader that got them has a whole package.
        let (types, others): (Vec<_>, Vec<_>) = rest.partition(|name| name.starts_with('['));
        for name in others.iter().chain(&types) {
            self.copy_part(&mut parts, name)?;
        }
        if let Some(zip) = self.zip.take() {
            zip.finish().map_err(zip_failed)?.flush()?;
        }
        Ok(Summary {
            rows: self.rows_written,
            sheets: self.last_rows.len() as u32,
            adjusted: std::mem::take(&mut self.rows.adjusted),
        })
    }
}

impl<W: Write> Drop for XlsxWriter<W> {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
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
