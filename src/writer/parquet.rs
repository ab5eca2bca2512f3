//! Apache Parquet, encoded as the rows come.
//!
//! | kind | Parquet type |
//! |---|---|
//! | bool | `BOOLEAN` |
//! | int | `INT64` |
//! | float | `DOUBLE`, `FLOAT` where the column is a `real` |
//! | numeric | `DECIMAL(p, s)` where it is a `numeric(p, s)` with p ≤ 38, else text |
//! | text | `STRING` |
//! | uuid | `STRING`: many readers show the UUID type as 16 raw bytes, some refuse the file |
//! | json | `JSON` |
//! | bytes | `BYTE_ARRAY` |
//! | date | `DATE` |
//! | timestamp | `TIMESTAMP(MICROS)`, local |
//! | timestamptz | `TIMESTAMP(MICROS)`, adjusted to UTC |
//! | time | `TIME(MICROS)` |
//!
//! A value that its column's type cannot hold is left out as NULL and counted: NaN in a decimal,
//! the infinities of dates and timestamps, timestamps from the year 294247 on, and the time
//! 24:00:00. The counts stand in the file too, under the key `registrar.adjusted_cells`, and where
//! it was cut at a limit the sentence that says so, under `registrar.truncated`.
//!
//! Columns have the query's names; of two alike the second is called `name_2`. Nothing says when
//! the file was made: the same rows give the same file.
//!
//! Rows are encoded and compressed a few thousand at a time, so that the work is spread over the
//! export; what a row group needs is held in memory until it ends.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::Field;
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};

use self::chunk::PageCompressor;
use self::column::{FileColumn, Pushed};
use super::calendar::Zone;
use super::{Adjustment, Cell, Column, Options, RowWriter, Summary, WriteError, unique_names};

mod chunk;
mod column;
mod decimal;
#[cfg(test)]
mod tests;

/// A dictionary that grows beyond this, in bytes, is given up: what repeats so little is smaller,
/// and needs less memory, without.
const DICTIONARY_BYTES: usize = 512 << 10;

/// When what was gathered is encoded, and when a row group ends.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Rows that are gathered before they are encoded.
    batch_rows: usize,
    /// Or this many bytes of values.
    batch_bytes: usize,
    /// Rows of a row group.
    group_rows: usize,
    /// Or this many bytes of values. This bounds the memory: dictionaries keep the batches alive
    /// that their entries came with, and what cannot be compressed stays as large as it is.
    group_bytes: usize,
}

impl Limits {
    const DEFAULT: Self = Self {
        batch_rows: 8_192,
        batch_bytes: 1 << 20,
        group_rows: 131_072,
        group_bytes: 24 << 20,
    };
}

/// Writes a Parquet file to `W` while its rows come.
pub struct ParquetWriter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    schema: SchemaDescPtr,
    properties: WriterPropertiesPtr,
    compressor: PageCompressor,
    columns: Vec<FileColumn>,
    next_column: usize,
    zone: Zone,
    limits: Limits,
    /// Rows and bytes that are not encoded yet.
    batch: Size,
    /// Rows and bytes of the row group that are encoded.
    group: Size,
    rows: u64,
    values_as_null: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    rows: usize,
    bytes: usize,
}

impl<W: Write + Send> ParquetWriter<W> {
    /// Opens a file on `out`.
    ///
    /// # Errors
    /// [`WriteError::Io`] when `out` fails.
    pub fn new(columns: Vec<Column>, options: &Options, out: W) -> Result<Self, WriteError> {
        Self::with_limits(columns, options, out, Limits::DEFAULT)
    }

    fn with_limits(
        columns: Vec<Column>,
        options: &Options,
        out: W,
        limits: Limits,
    ) -> Result<Self, WriteError> {
        let names = unique_names(&columns);
        let columns: Vec<_> = columns
            .into_iter()
            .zip(names)
            .map(|(column, name)| FileColumn::new(name, column.kind, column.precision))
            .collect();
        let fields = columns.iter().map(|column| Ok(Arc::new(column.schema()?)));
        let fields = fields.collect::<Result<_, ParquetError>>().map_err(failed)?;
        let root = Type::group_type_builder("report").with_fields(fields).build();
        let root = Arc::new(root.map_err(failed)?);
        let properties = WriterProperties::builder()
            .set_dictionary_page_size_limit(DICTIONARY_BYTES)
            // An index of pages would grow with the rows until the file ends.
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .build();
        let properties = Arc::new(properties);
        let file = SerializedFileWriter::new(out, Arc::clone(&root), Arc::clone(&properties));
        Ok(Self {
            file: file.map_err(failed)?,
            schema: Arc::new(SchemaDescriptor::new(root)),
            properties,
            compressor: PageCompressor::new()?,
            columns,
            next_column: 0,
            zone: Zone::new(options.time_zone),
            limits,
            batch: Size::default(),
            group: Size::default(),
            rows: 0,
            values_as_null: 0,
        })
    }

    /// Encodes what was gathered.
    fn end_batch(&mut self) -> Result<(), WriteError> {
        for (index, column) in self.columns.iter_mut().enumerate() {
            let described = self.schema.column(index);
            column.encode(&described, &self.properties, &self.compressor).map_err(failed)?;
        }
        self.group.rows += self.batch.rows;
        self.group.bytes += self.batch.bytes;
        self.batch = Size::default();
        Ok(())
    }

    /// Writes the row group, of which everything is encoded.
    fn end_group(&mut self) -> Result<(), WriteError> {
        let mut group = self.file.next_row_group().map_err(failed)?;
        for column in &mut self.columns {
            if let Some((encoded, closed)) = column.end_chunk().map_err(failed)? {
                group.append_column(&encoded, closed).map_err(failed)?;
            }
        }
        group.close().map_err(failed)?;
        self.group = Size::default();
        Ok(())
    }

    fn note(&mut self, key: &str, value: String) {
        self.file.append_key_value_metadata(KeyValue::new(format!("registrar.{key}"), value));
    }
}

impl<W: Write + Send> RowWriter for ParquetWriter<W> {
    fn cell(&mut self, cell: Cell<'_>) -> Result<(), WriteError> {
        let columns = self.columns.len();
        let Some(column) = self.columns.get_mut(self.next_column) else {
            return Err(WriteError::TooManyCells { columns });
        };
        self.next_column += 1;
        match column.push(cell, &mut self.zone) {
            Pushed::Held { bytes } => self.batch.bytes += bytes,
            Pushed::AsNull => self.values_as_null += 1,
            Pushed::WrongKind => {
                let (column, kind) = (column.name().to_owned(), column.kind());
                return Err(WriteError::WrongKind { column, kind });
            }
        }
        Ok(())
    }

    fn end_row(&mut self) -> Result<(), WriteError> {
        while self.next_column < self.columns.len() {
            self.cell(Cell::Null)?;
        }
        self.next_column = 0;
        self.rows += 1;
        self.batch.rows += 1;
        let Limits { batch_rows, batch_bytes, group_rows, group_bytes } = self.limits;
        let rows = self.group.rows + self.batch.rows;
        let bytes = self.group.bytes + self.batch.bytes;
        let group_is_full = rows >= group_rows || bytes >= group_bytes;
        if group_is_full || self.batch.rows >= batch_rows || self.batch.bytes >= batch_bytes {
            self.end_batch()?;
        }
        if group_is_full { self.end_group() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>, truncated: Option<&str>) -> Result<Summary, WriteError> {
        self.end_batch()?;
        if self.group.rows > 0 {
            self.end_group()?;
        }
        let mut adjusted = BTreeMap::new();
        if self.values_as_null > 0 {
            adjusted.insert(Adjustment::ValueAsNull, self.values_as_null);
            let counts = serde_json::to_string(&adjusted).map_err(io::Error::from)?;
            self.note("adjusted_cells", counts);
        }
        if let Some(sentence) = truncated {
            self.note("truncated", sentence.to_owned());
        }
        self.file.finish().map_err(failed)?;
        Ok(Summary { rows: self.rows, sheets: 1, adjusted, ..Summary::default() })
    }
}

fn failed(error: ParquetError) -> WriteError {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => WriteError::Io(*error),
            Err(other) => WriteError::Parquet(other.to_string()),
        },
        other => WriteError::Parquet(other.to_string()),
    }
}

/// Reads back a file whose columns are all text.
///
/// # Errors
/// [`WriteError::Parquet`] where it is no such file.
pub fn read_texts(file: bytes::Bytes) -> Result<Vec<Vec<Option<String>>>, WriteError> {
    let reader = SerializedFileReader::new(file).map_err(failed)?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None).map_err(failed)? {
        let fields = row.map_err(failed)?.into_columns().into_iter();
        let texts = fields.map(|(name, field)| match field {
            Field::Null => Ok(None),
            Field::Str(text) => Ok(Some(text)),
            _ => Err(WriteError::Parquet(format!("column `{name}` is no text"))),
        });
        rows.push(texts.collect::<Result<Vec<_>, _>>()?);
    }
    Ok(rows)
}
