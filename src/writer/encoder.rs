//! Rows of the text formats, made apart from their file: several threads can make rows at once,
//! and the file takes them as they are.

use super::{Cell, Column, Format, Options, WriteError, csv, ndjson};

/// Makes rows as the writer of the same format, columns and options does.
#[derive(Debug, Clone)]
pub struct RowEncoder {
    lines: Lines,
    ends: Vec<End>,
}

#[derive(Debug, Clone)]
enum Lines {
    Csv(csv::Lines),
    Ndjson(ndjson::Lines),
}

/// Some rows, as they stand in the file.
#[derive(Debug)]
pub struct EncodedRows {
    pub(super) bytes: Vec<u8>,
    ends: Vec<End>,
}

/// Where a row ends, and how many cells had been adjusted there.
#[derive(Debug, Clone, Copy)]
struct End {
    byte: usize,
    adjusted: u32,
}

impl RowEncoder {
    /// `None` for formats whose rows depend on those before them.
    pub fn new(format: Format, columns: &[Column], options: &Options) -> Option<Self> {
        let lines = match format {
            Format::Csv => Lines::Csv(csv::Lines::new(columns, options)),
            Format::Ndjson => Lines::Ndjson(ndjson::Lines::new(columns, options)),
            Format::Xlsx | Format::Parquet => return None,
        };
        Some(Self { lines, ends: Vec::new() })
    }

    /// Adds the next cell of the current row.
    ///
    /// # Errors
    /// As the format's writer.
    #[inline]
    pub fn cell(&mut self, cell: Cell<'_>) -> Result<(), WriteError> {
        match &mut self.lines {
            Lines::Csv(lines) => {
                lines.cell(cell);
                Ok(())
            }
            Lines::Ndjson(lines) => lines.cell(cell),
        }
    }

    /// Ends the current row.
    pub fn end_row(&mut self) {
        let (byte, adjusted) = match &mut self.lines {
            Lines::Csv(lines) => {
                lines.end_line();
                (lines.buffer.len(), lines.guarded)
            }
            Lines::Ndjson(lines) => {
                lines.end_line();
                (lines.buffer.len(), lines.numbers_as_text)
            }
        };
        let adjusted = u32::try_from(adjusted).expect("a batch has fewer cells");
        self.ends.push(End { byte, adjusted });
    }

    /// How many rows were made since the last [`Self::take`].
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// How many bytes they have.
    pub fn size_bytes(&self) -> usize {
        match &self.lines {
            Lines::Csv(lines) => lines.buffer.len(),
            Lines::Ndjson(lines) => lines.buffer.len(),
        }
    }

    /// The rows made since the last call.
    pub fn take(&mut self) -> EncodedRows {
        let (buffer, adjusted) = match &mut self.lines {
            Lines::Csv(lines) => (&mut lines.buffer, &mut lines.guarded),
            Lines::Ndjson(lines) => (&mut lines.buffer, &mut lines.numbers_as_text),
        };
        *adjusted = 0;
        let room = buffer.len() + buffer.len() / 8;
        let bytes = std::mem::replace(buffer, Vec::with_capacity(room));
        let ends = Vec::with_capacity(self.ends.len());
        EncodedRows { bytes, ends: std::mem::replace(&mut self.ends, ends) }
    }
}

impl EncodedRows {
    /// How many rows they are.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Bytes that they have in the file, before it is compressed.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Keeps the first rows.
    pub fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows);
        self.bytes.truncate(self.ends.last().map_or(0, |end| end.byte));
    }

    /// Cells that are not shown as they are, by the format's rule.
    pub(super) fn adjusted(&self) -> u64 {
        self.ends.last().map_or(0, |end| end.adjusted.into())
    }
}
