//! Rows in, bytes out.
//!
//! A writer is given typed [`Cell`]s one by one and writes a file to any [`std::io::Write`]. It
//! knows neither the database that the cells come from nor the store that the bytes go to, and it
//! holds a bounded amount of memory whatever the number of rows. Writers block: the pipeline runs
//! them on a thread of their own.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

mod calendar;
pub mod csv;
mod encoder;
mod file_type;
pub mod ndjson;
mod number;
mod output;
pub mod parquet;
#[cfg(test)]
mod tests;
mod text;
pub mod xlsx;

pub use encoder::{EncodedRows, RowEncoder};
pub use file_type::{
    Compression, FileType, Format, Incompressible, UnknownCompression, UnknownFormat,
};
pub use xlsx::layout::{Sheet, SheetLayout};

/// Who will read the file.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Reader {
    /// A program: column names as header, values exactly as PostgreSQL's `COPY … CSV HEADER`
    /// writes them.
    #[default]
    Machine,
    /// A person's spreadsheet: labels as header, booleans as `TRUE`/`FALSE`, and text that a
    /// spreadsheet would take for a formula is guarded.
    Spreadsheet,
}

/// One value of one row. Borrowed from the row: nothing is allocated per cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// `boolean`
    Bool(bool),
    /// `smallint`, `integer`, `bigint`, `oid`
    Int(i64),
    /// `real`
    Float4(f32),
    /// `double precision`
    Float8(f64),
    /// `numeric`, in the base-10,000 digits of PostgreSQL's binary format.
    Numeric(Numeric<'a>),
    /// `text`, `varchar`, `char`, `name`, enums, and the text form of every type that has no
    /// variant of its own (arrays, intervals, addresses, ranges, composites).
    Text(&'a str),
    /// `json` and `jsonb`, as text.
    Json(&'a str),
    /// `bytea`
    Bytes(&'a [u8]),
    /// `date`: days since 2000-01-01; `i32::MAX` and `i32::MIN` are infinity and -infinity.
    Date(i32),
    /// `timestamp`: microseconds since 2000-01-01 00:00; `i64::MAX` and `i64::MIN` are infinities.
    Timestamp(i64),
    /// `timestamptz`: microseconds since 2000-01-01 00:00 UTC; infinities as above.
    TimestampTz(i64),
    /// `time`: microseconds since midnight; 24:00:00 is possible.
    Time(i64),
    /// `uuid`
    Uuid([u8; 16]),
}

/// PostgreSQL's `numeric` as it stands in the binary protocol.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numeric<'a> {
    /// Big-endian `i16` digits in base 10,000, most significant first; the length is even.
    pub digits: &'a [u8],
    /// The power of 10,000 of the first digit.
    pub weight: i16,
    /// The sign, or one of the three values that are not numbers.
    pub sign: NumericSign,
    /// How many decimal digits are shown after the point.
    pub scale: u16,
}

/// The sign of a [`Numeric`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumericSign {
    /// Zero or more.
    Positive,
    /// Less than zero.
    Negative,
    /// Not a number.
    NaN,
    /// Larger than every number.
    Infinity,
    /// Smaller than every number.
    NegativeInfinity,
}

/// What a column holds: chooses number formats, alignment and the manifest's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `true` or `false`
    Bool,
    /// Whole numbers of up to 64 bits.
    Int,
    /// Binary floating point.
    Float,
    /// Exact decimals.
    Numeric,
    /// Text, and everything shown as text.
    Text,
    /// JSON documents.
    Json,
    /// Bytes, shown as `\x…`.
    Bytes,
    /// Calendar days.
    Date,
    /// Date and time without a zone.
    Timestamp,
    /// Instants, shown in the report's time zone.
    TimestampTz,
    /// Times of day.
    Time,
    /// UUIDs.
    Uuid,
}

/// What a column's type says of its numbers, beyond the [`Kind`]: typed formats need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// [`Kind::Float`]: `real`, of which each value is one of 32 bits.
    Single,
    /// [`Kind::Numeric`]: `numeric(precision, scale)`.
    Decimal {
        /// Most digits of a value, 1 to 38.
        precision: u8,
        /// How many of them stand behind the point, at most `precision`.
        scale: u8,
    },
}

/// A column of the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// The name in the query's result.
    pub name: String,
    /// The header that a person reads.
    pub label: String,
    /// What it holds.
    pub kind: Kind,
    /// What its type says of its numbers, where that is known.
    pub precision: Option<Precision>,
    /// Excel number format, `None` for the kind's default.
    pub number_format: Option<String>,
    /// Width in Excel's character units, `None` for a width from label and kind.
    pub width: Option<f64>,
}

/// How a file is to be written.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who reads it.
    pub reader: Reader,
    /// Starts a CSV with U+FEFF, which some spreadsheets need to see UTF-8.
    pub byte_order_mark: bool,
    /// CSV delimiter: comma, semicolon, tab or pipe.
    pub delimiter: u8,
    /// The zone that `timestamptz` is shown in.
    pub time_zone: Tz,
    /// Name of the first sheet; made legal for Excel by the writer.
    pub sheet_name: String,
    /// How the first sheet looks: XLSX only.
    pub layout: SheetLayout,
    /// The sheets after the first: XLSX only, see [`RowWriter::next_sheet`].
    pub more_sheets: Vec<Sheet>,
    /// How the whole file is compressed: CSV and NDJSON only.
    pub compression: Option<Compression>,
    /// `zlib` level of XLSX, 1 to 9. The default is the lowest whose files are no larger than those
    /// of the library at level 3: it takes two thirds of that level's time.
    pub compression_level: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reader: Reader::Machine,
            byte_order_mark: false,
            delimiter: b',',
            time_zone: Tz::UTC,
            sheet_name: "Report".to_owned(),
            layout: SheetLayout::default(),
            more_sheets: Vec::new(),
            compression: None,
            compression_level: 2,
        }
    }
}

/// Writes rows to a file of some format.
pub trait RowWriter: Send {
    /// Adds the next cell of the current row. Every row must have a cell for each column.
    fn cell(&mut self, cell: Cell<'_>) -> Result<(), WriteError>;

    /// Ends the current row.
    fn end_row(&mut self) -> Result<(), WriteError>;

    /// Adds rows that a [`RowEncoder`] of the same columns and options has made.
    ///
    /// # Errors
    /// [`WriteError::NotEncoded`] in formats that have no such encoder.
    fn append(&mut self, rows: EncodedRows) -> Result<(), WriteError> {
        drop(rows);
        Err(WriteError::NotEncoded)
    }

    /// Ends the sheet and goes on to the next of [`Options::more_sheets`].
    ///
    /// # Errors
    /// [`WriteError::NoSuchSheet`] after the last one, and in formats without sheets.
    fn next_sheet(&mut self) -> Result<(), WriteError> {
        Err(WriteError::NoSuchSheet)
    }

    /// Writes what remains and says what was written. `truncated` holds the sentence that marks
    /// a file cut at a limit; formats that can carry it show it after the last row.
    fn finish(self: Box<Self>, truncated: Option<&str>) -> Result<Summary, WriteError>;
}

/// What a writer did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Data rows, without headers.
    pub rows: u64,
    /// Sheets of a workbook; 1 for other formats.
    pub sheets: u32,
    /// The sheets of a workbook, in order; none for other formats.
    pub sheet_list: Vec<WrittenSheet>,
    /// How many cells could not be shown as they are, by rule.
    pub adjusted: BTreeMap<Adjustment, u64>,
}

/// A sheet of a workbook as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenSheet {
    /// Its name.
    pub name: String,
    /// Which of the sheets that were asked for it belongs to, from 0: a long one goes on in the
    /// next.
    pub source: usize,
    /// Rows of data.
    pub rows: u64,
    /// The row of the header, from 1.
    pub header_row: u32,
}

/// A rule that changed how a cell is shown. Reported in the manifest with its count.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Adjustment {
    /// A number of more than 15 digits, NaN or an infinity, written as text.
    NumberAsText,
    /// A date outside of what the format can hold, written as text.
    DateAsText,
    /// Text cut to the 32,767 characters that an Excel cell can hold.
    TextCut,
    /// A character that XML cannot hold, written as `_xHHHH_`.
    CharacterEscaped,
    /// Text that a spreadsheet would take for a formula, guarded by an apostrophe.
    FormulaGuarded,
    /// A value that the column's type in the file cannot hold (NaN in a decimal, an infinite
    /// date), left out as NULL.
    ValueAsNull,
}

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink failed: the upload was refused or abandoned.
    #[error("cannot write the file")]
    Io(#[from] io::Error),
    /// The format cannot hold this many columns.
    #[error("{format} holds at most {max} columns, the report has {columns}")]
    TooManyColumns {
        /// The format asked for.
        format: Format,
        /// What it holds.
        max: usize,
        /// What the report has.
        columns: usize,
    },
    /// The format is not compressed by us.
    #[error(transparent)]
    Incompressible(#[from] Incompressible),
    /// There is no further sheet.
    #[error("there is no further sheet")]
    NoSuchSheet,
    /// The rows of this format cannot be made apart from their file.
    #[error("the format takes no rows that were made apart from it")]
    NotEncoded,
    /// A row has more cells than there are columns.
    #[error("a row has more than the {columns} cells of its columns")]
    TooManyCells {
        /// How many there may be.
        columns: usize,
    },
    /// A cell is not of the kind that its column holds.
    #[error("column {column} holds {kind:?} and was given something else")]
    WrongKind {
        /// The column's name.
        column: String,
        /// What it holds.
        kind: Kind,
    },
    /// The workbook's package could not be made.
    #[error("cannot make the workbook: {0}")]
    Workbook(String),
    /// The Parquet file could not be made.
    #[error("cannot make the Parquet file: {0}")]
    Parquet(String),
}

/// Opens a writer of `format` on `out` and writes the header.
///
/// # Errors
/// [`WriteError::Incompressible`] when the options ask for a compression that the format has not,
/// and what the format's writer says.
pub fn open<W: Write + Send + 'static>(
    format: Format,
    columns: Vec<Column>,
    options: Options,
    out: W,
) -> Result<Box<dyn RowWriter>, WriteError> {
    let file_type = FileType::new(format, options.compression)?;
    Ok(match file_type.format() {
        Format::Csv => Box::new(csv::CsvWriter::new(columns, options, out)?),
        Format::Xlsx => Box::new(xlsx::XlsxWriter::new(columns, options, out)?),
        Format::Parquet => Box::new(parquet::ParquetWriter::new(columns, &options, out)?),
        Format::Ndjson => Box::new(ndjson::NdjsonWriter::new(columns, options, out)?),
    })
}

/// The columns' names, made different for formats where two of one name would be one: the second
/// `total` becomes `total_2`, or the next number that no column is called.
fn unique_names(columns: &[Column]) -> Vec<String> {
    let given: HashSet<&str> = columns.iter().map(|column| &*column.name).collect();
    let mut numbers = HashMap::<&str, u32>::new();
    let mut unique = Vec::with_capacity(columns.len());
    for Column { name, .. } in columns {
        let mut found = name.clone();
        match numbers.entry(name) {
            Entry::Vacant(first) => {
                first.insert(1);
            }
            Entry::Occupied(mut number) => {
                // Ends: each turn finds another name, and there are finitely many columns.
                while given.contains(&*found) {
                    *number.get_mut() += 1;
                    found = format!("{name}_{}", number.get());
                }
            }
        }
        unique.push(found);
    }
    unique
}
