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
//!
//! A query whose rows do not fit on a sheet goes on in the next one, with the same header, widths,
//! styles, filter and rules by colour; title and charts stay on its first sheet, totals and the
//! remark of a cut stand on its last one.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zip::result::ZipError;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, DateTime, ZipWriter};

use self::chart::Points;
use self::layout::Sheet;
use self::package::{Package, Parts, Piece, Styles, sheet_path};
use self::rows::Rows;
use self::totals::Totals;
use super::calendar::Zone;
use super::{
    Adjustment, Cell, Column, Format, Options, RowWriter, Summary, WriteError, WrittenSheet,
};

mod chart;
mod conditional;
pub mod layout;
mod markup;
mod package;
mod rows;
mod serial;
#[cfg(test)]
mod tests;
mod totals;

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
    /// XML before the rows of the first and of every further piece, by sheet of the package.
    heads: Vec<[String; 2]>,
    styles: Vec<Styles>,
    rows: Rows,
    totals: Totals,
    /// What charts show, by sheet of the package; the last one is the current.
    points: Vec<Points>,
    zone: Zone,
    /// Columns of the current sheet.
    column_count: usize,
    /// Whether totals or charts want to see the cells: most sheets have neither.
    is_watched: bool,
    rows_written: u64,
    /// Rows of the current piece.
    piece_rows: u64,
    /// Bytes of the current piece that have left the buffer.
    sheet_bytes: u64,
    /// What is being written; its last row is not known yet.
    piece: Piece,
    /// The pieces that have ended, and their rows.
    pieces: Vec<Piece>,
    rows_of_pieces: Vec<u64>,
    adjusted: BTreeMap<Adjustment, u64>,
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
        mut options: Options,
        out: W,
        limits: Limits,
    ) -> Result<Self, WriteError> {
        let (name, layout) = (options.sheet_name.clone(), std::mem::take(&mut options.layout));
        let mut sheets = vec![Sheet { name, columns, layout }];
        sheets.append(&mut options.more_sheets);
        for Sheet { columns, .. } in &sheets {
            if columns.len() > MAX_COLUMNS {
                let (format, max, columns) = (Format::Xlsx, MAX_COLUMNS, columns.len());
                return Err(WriteError::TooManyColumns { format, max, columns });
            }
        }
        let package = Package::new(sheets);
        let mut parts = package.parts(&package.specimens(), &[])?;
        let (mut heads, mut styles) = (Vec::new(), Vec::new());
        for (index, sheet) in package.sheets().iter().enumerate() {
            let number = 2 * index + 1;
            styles.push(parts.styles(number, sheet.columns.len(), &sheet.layout)?);
            heads.push([parts.around_rows(number)?.0, parts.around_rows(number + 1)?.0]);
        }
        let abandoned = Arc::new(AtomicBool::new(false));
        let sink = Sink { out, abandoned: Arc::clone(&abandoned) };
        let buffer = Vec::with_capacity(BLOCK + BLOCK / 8);
        let first = &package.sheets()[0];
        let mut writer = Self {
            zip: Some(ZipWriter::new_stream(sink)),
            abandoned,
            limits,
            heads,
            rows: Rows::new(&first.columns, &styles[0], Zone::new(options.time_zone), buffer),
            totals: Totals::new(first.columns.len(), &first.layout.totals),
            points: vec![Points::new(&first.layout.charts)],
            styles,
            zone: Zone::new(options.time_zone),
            column_count: first.columns.len(),
            is_watched: true,
            rows_written: 0,
            piece_rows: 0,
            sheet_bytes: 0,
            piece: Piece { sheet: 0, number: 0, last_row: 0 },
            pieces: Vec::new(),
            rows_of_pieces: Vec::new(),
            adjusted: BTreeMap::new(),
            package,
            options,
        };
        for name in FIRST_PARTS {
            writer.copy_part(&mut parts, name)?;
        }
        writer.begin_piece()?;
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

    /// Shows a cell to totals and charts.
    fn watch(&mut self, column: usize, cell: Cell<'_>) {
        self.totals.add(column, cell);
        if let Some(points) = self.points.last_mut().filter(|points| points.is_open()) {
            points.add(column, cell, &mut self.zone);
        }
    }

    fn begin_piece(&mut self) -> Result<(), WriteError> {
        self.begin_part(&sheet_path(self.pieces.len() + 1))?;
        self.sheet_bytes = 0;
        self.piece_rows = 0;
        let Piece { sheet, number, last_row: _ } = self.piece;
        let title: &[String] = match number {
            0 => &self.package.sheets()[sheet].layout.title,
            _ => &[],
        };
        self.rows.begin_sheet(&self.heads[sheet][number.min(1)], title);
        self.flush_from(BLOCK)
    }

    /// Ends the current piece, whose header and data end in row `last_row`.
    fn end_piece(&mut self, last_row: u32) -> Result<(), WriteError> {
        self.pieces.push(Piece { last_row, ..self.piece });
        self.rows_of_pieces.push(self.piece_rows);
        // With the pieces before it: rules by colour are numbered through the whole workbook.
        let (_, tail) = self.package.parts(&self.pieces, &[])?.around_rows(self.pieces.len())?;
        self.rows.buffer.extend_from_slice(tail.as_bytes());
        self.flush_from(0)
    }

    /// Goes on to the next piece if this one has no room for so many more rows.
    fn make_room(&mut self, rows: u32) -> Result<(), WriteError> {
        if self.rows.number() + rows > self.limits.rows || self.sheet_bytes >= self.limits.bytes {
            self.end_piece(self.rows.number())?;
            self.piece.number += 1;
            self.begin_piece()?;
        }
        Ok(())
    }

    /// Ends the rows of a query with its totals and the remark, on one piece.
    fn end_rows(&mut self, remark: Option<&str>) -> Result<(), WriteError> {
        let has_totals = !self.totals.is_empty();
        match u32::from(has_totals) + u32::from(remark.is_some()) {
            0 => {}
            rows => self.make_room(rows)?,
        }
        // The filter ends with the data, above totals and remark.
        let last_row = self.rows.number();
        if has_totals {
            let values = self.totals.values();
            let label = match values.first() {
                Some(None) => {
                    Cell::Text(&self.package.sheets()[self.piece.sheet].layout.totals_label)
                }
                Some(Some(_)) | None => Cell::Null,
            };
            let cells = values.iter().enumerate().map(|(index, value)| match value {
                Some(value) => value.cell(),
                None if index == 0 => label,
                None => Cell::Null,
            });
            self.rows.push_totals(cells);
        }
        if let Some(sentence) = remark {
            self.rows.push_remark(sentence);
        }
        self.end_piece(last_row)
    }

    /// Begins the next sheet of the package.
    fn begin_next(&mut self) -> Result<(), WriteError> {
        self.piece = Piece { sheet: self.piece.sheet + 1, number: 0, last_row: 0 };
        let Sheet { columns, layout, .. } = &self.package.sheets()[self.piece.sheet];
        self.totals = Totals::new(columns.len(), &layout.totals);
        self.points.push(Points::new(&layout.charts));
        self.column_count = columns.len();
        self.is_watched = true;
        let buffer = std::mem::take(&mut self.rows.buffer);
        let styles = &self.styles[self.piece.sheet];
        let rows = Rows::new(columns, styles, Zone::new(self.options.time_zone), buffer);
        let ended = std::mem::replace(&mut self.rows, rows);
        self.adjust(&ended.adjusted);
        self.begin_piece()
    }

    fn has_next(&self) -> bool {
        self.piece.sheet + 1 < self.package.sheets().len()
    }

    fn adjust(&mut self, counts: &BTreeMap<Adjustment, u64>) {
        for (&adjustment, count) in counts {
            *self.adjusted.entry(adjustment).or_default() += count;
        }
    }

    fn sheet_list(&self) -> Vec<WrittenSheet> {
        let names = self.package.names(&self.pieces);
        let pieces = self.pieces.iter().zip(&self.rows_of_pieces);
        pieces
            .zip(names)
            .map(|((piece, &rows), name)| WrittenSheet {
                name,
                source: piece.sheet,
                rows,
                header_row: self.package.header_row(piece.sheet, piece.number),
            })
            .collect()
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
        if column == self.column_count {
            return Err(WriteError::Workbook("the row has more cells than columns".to_owned()));
        }
        if column == 0 {
            self.make_room(1)?;
            self.rows.begin_row();
        }
        if self.is_watched {
            self.watch(column, cell);
        }
        self.rows.push(cell);
        self.flush_from(KEPT)
    }

    fn end_row(&mut self) -> Result<(), WriteError> {
        if self.rows.next_column() == 0 {
            self.make_room(1)?;
            self.rows.begin_row();
        }
        self.rows.end_row();
        self.rows_written += 1;
        self.piece_rows += 1;
        if self.is_watched
            && let Some(points) = self.points.last_mut()
        {
            points.end_row();
            self.is_watched = points.is_open() || !self.totals.is_empty();
        }
        self.flush_from(BLOCK)
    }

    fn next_sheet(&mut self) -> Result<(), WriteError> {
        if !self.has_next() {
            return Err(WriteError::NoSuchSheet);
        }
        self.end_rows(None)?;
        self.begin_next()
    }

    fn finish(mut self: Box<Self>, truncated: Option<&str>) -> Result<Summary, WriteError> {
        self.end_rows(truncated)?;
        // What a cut has left no room for is there, and says so.
        while self.has_next() {
            self.begin_next()?;
            self.end_rows(truncated)?;
        }
        let mut parts = self.package.parts(&self.pieces, &self.points)?;
        let rest = parts.names()?.into_iter().filter(|name| !FIRST_PARTS.contains(&&**name));
        // Content types last: a reader that got them has a whole package.
        let (types, others): (Vec<_>, Vec<_>) = rest.partition(|name| name.starts_with('['));
        for name in others.iter().chain(&types) {
            self.copy_part(&mut parts, name)?;
        }
        if let Some(zip) = self.zip.take() {
            zip.finish().map_err(zip_failed)?.flush()?;
        }
        let counts = std::mem::take(&mut self.rows.adjusted);
        self.adjust(&counts);
        Ok(Summary {
            rows: self.rows_written,
            sheets: self.pieces.len() as u32,
            sheet_list: self.sheet_list(),
            adjusted: std::mem::take(&mut self.adjusted),
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
