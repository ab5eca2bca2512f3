//! Rows between the server's connection and the writer: packed, so that what waits is counted in
//! bytes and lies in one piece.
//!
//! Where the rows of one file are read by several connections, and their format allows it, each
//! reader makes the rows of the file at once: what all processors do in all is then less, and
//! only one of them writes.
//!
//! A row of the driver's is an allocation of its own inside of a buffer that it shares with its
//! neighbours, and is freed by another thread. Copying the values out costs less than that, and
//! the driver reads into the same memory again and again.

use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};

use super::error::ReportError;
use super::source::SourceColumn;
use crate::writer::{EncodedRows, RowEncoder};

/// A batch is full at this many rows …
const MAX_ROWS: usize = 1024;
/// … or from this many bytes on, whichever comes first. Several fit into a core's own cache.
pub(super) const FULL_BYTES: usize = 64 * 1024;

/// A block of rows as they stand in the file is full at this many …
const MAX_BLOCK_ROWS: usize = 16 * 1024;
/// … or from this many bytes on: each block wakes a few threads.
const FULL_BLOCK_BYTES: usize = 4 * FULL_BYTES;

/// The length of a value that is NULL.
const NULL: u8 = u8::MAX;
/// The length stands in the four bytes that follow.
const LONG: u8 = NULL - 1;

/// Some rows on their way to the file.
#[derive(Debug)]
pub(super) enum Rows {
    /// Values as the server sent them.
    Packed(Batch),
    /// As they stand in the file.
    Encoded(EncodedRows),
}

impl Rows {
    /// How many they are.
    pub fn rows(&self) -> usize {
        match self {
            Self::Packed(batch) => batch.rows(),
            Self::Encoded(rows) => rows.rows(),
        }
    }

    /// Bytes that they take.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Packed(batch) => batch.size_bytes(),
            Self::Encoded(rows) => rows.size_bytes(),
        }
    }

    /// Keeps the first rows.
    pub fn truncate(&mut self, rows: usize, columns: usize) {
        match self {
            Self::Packed(batch) => batch.truncate(rows, columns),
            Self::Encoded(encoded) => encoded.truncate(rows),
        }
    }
}

/// Gathers rows until there are enough of them to hand on.
#[derive(Debug)]
pub(super) enum Gatherer {
    /// As the server sent them.
    Packing(Batch),
    /// As they stand in the file.
    Encoding(Box<RowEncoder>),
}

impl Gatherer {
    /// Makes the rows of the file where there is an encoder for it.
    pub fn new(encoder: Option<RowEncoder>) -> Self {
        match encoder {
            None => Self::Packing(Batch::new()),
            Some(encoder) => Self::Encoding(Box::new(encoder)),
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When a value cannot be read, or not be written.
    pub fn push(&mut self, row: &PgRow, columns: &[SourceColumn]) -> Result<(), ReportError> {
        match self {
            Self::Packing(batch) => Ok(batch.push(row, columns.len())?),
            Self::Encoding(encoder) => {
                for (index, column) in columns.iter().enumerate() {
                    let value = row.try_get_raw(index)?;
                    let raw = match value.is_null() {
                        true => None,
                        false => Some(value.as_bytes().map_err(sqlx::Error::Decode)?),
                    };
                    encoder.cell(column.decode(raw)?)?;
                }
                encoder.end_row();
                Ok(())
            }
        }
    }

    /// Whether there are enough.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Packing(batch) => batch.is_full(),
            Self::Encoding(encoder) => {
                encoder.rows() >= MAX_BLOCK_ROWS || encoder.size_bytes() >= FULL_BLOCK_BYTES
            }
        }
    }

    /// What was gathered since the last call.
    pub fn take(&mut self) -> Rows {
        match self {
            Self::Packing(batch) => Rows::Packed(std::mem::replace(batch, Batch::new())),
            Self::Encoding(encoder) => Rows::Encoded(encoder.take()),
        }
    }
}

/// Some rows. Each value is its length and its bytes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    rows: usize,
}

impl Batch {
    /// An empty batch with room for a full one.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(FULL_BYTES + FULL_BYTES / 16), rows: 0 }
    }

    /// How many rows it holds.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of its values and their lengths.
    pub const fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it should be handed on.
    pub const fn is_full(&self) -> bool {
        self.rows >= MAX_ROWS || self.bytes.len() >= FULL_BYTES
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When the row has fewer columns, which a server never sends.
    pub fn push(&mut self, row: &PgRow, columns: usize) -> Result<(), sqlx::Error> {
        for index in 0..columns {
            let value = row.try_get_raw(index)?;
            if value.is_null() {
                self.bytes.push(NULL);
            } else {
                self.push_value(value.as_bytes().map_err(sqlx::Error::Decode)?);
            }
        }
        self.rows += 1;
        Ok(())
    }

    fn push_value(&mut self, value: &[u8]) {
        match u8::try_from(value.len()) {
            Ok(length) if length < LONG => self.bytes.push(length),
            _ => {
                let length = u32::try_from(value.len()).expect("the protocol counts in 31 bits");
                self.bytes.push(LONG);
                self.bytes.extend_from_slice(&length.to_le_bytes());
            }
        }
        self.bytes.extend_from_slice(value);
    }

    /// Keeps the first rows.
    pub fn truncate(&mut self, rows: usize, columns: usize) {
        if rows >= self.rows {
            return;
        }
        let mut values = self.values();
        for _ in 0..rows * columns {
            values.take();
        }
        let kept = self.bytes.len() - values.0.len();
        self.bytes.truncate(kept);
        self.rows = rows;
    }

    /// The values of all rows, one after the other.
    pub fn values(&self) -> Values<'_> {
        Values(&self.bytes)
    }
}

/// What is left of a batch.
#[derive(Debug)]
pub(super) struct Values<'a>(&'a [u8]);

impl<'a> Values<'a> {
    /// The next value, `None` for NULL. After the last one of a batch there are only NULLs, so
    /// the caller counts.
    pub fn take(&mut self) -> Option<&'a [u8]> {
        let (&short, mut rest) = self.0.split_first()?;
        let mut length = usize::from(short);
        if short == LONG {
            let (long, after) = rest.split_first_chunk().expect("push_value wrote the length");
            length = u32::from_le_bytes(*long) as usize;
            rest = after;
        }
        if short == NULL {
            self.0 = rest;
            return None;
        }
        let (value, rest) = rest.split_at(length);
        self.0 = rest;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two columns: each length at which the packing changes, and NULL.
    fn batch() -> (Batch, Vec<Option<Vec<u8>>>) {
        let lengths = [0, 1, 253, 254, 255, 256, 70_000];
        let values: Vec<_> =
            lengths.into_iter().flat_map(|length| [Some(vec![7; length]), None]).collect();
        let mut batch = Batch::new();
        for value in &values {
            match value {
                Some(value) => batch.push_value(value),
                None => batch.bytes.push(NULL),
            }
        }
        batch.rows = lengths.len();
        (batch, values)
    }

    #[test]
    fn values_come_back_as_they_were() {
        let (batch, expected) = batch();
        let mut values = batch.values();
        for value in expected {
            assert_eq!(values.take(), value.as_deref());
        }
        assert!(values.0.is_empty());
    }

    #[test]
    fn a_batch_is_cut_between_rows() {
        for rows in 0..=8 {
            let (mut batch, expected) = batch();
            batch.truncate(rows, 2);
            assert_eq!(batch.rows(), rows.min(7));
            let mut values = batch.values();
            for value in expected.into_iter().take(rows * 2) {
                assert_eq!(values.take(), value.as_deref());
            }
            assert!(values.0.is_empty());
        }
    }
}
