//! Column chunks in memory: the columns of a row group are encoded side by side, but stand one
//! behind the other in the file.
//!
//! Pages are compressed here and not by the library, which would keep a compressor for each
//! column: a megabyte or more, times up to 1,664 columns.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::column::writer::{ColumnCloseResult, ColumnWriter, get_column_writer};
use parquet::errors::Result;
use parquet::file::properties::WriterPropertiesPtr;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use zstd::bulk::Compressor;

/// Zstandard's default.
const LEVEL: i32 = 3;

/// The one compressor of a file.
#[derive(Clone)]
pub(super) struct PageCompressor(Arc<Mutex<Compressor<'static>>>);

impl PageCompressor {
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Compressor::new(LEVEL)?))))
    }

    fn compress(&self, bytes: &[u8]) -> io::Result<Bytes> {
        Ok(lock(&self.0).compress(bytes)?.into())
    }
}

/// A column chunk that is not whole yet.
pub(super) struct Chunk {
    /// Takes values. It was told that nothing is compressed.
    pub writer: ColumnWriter<'static>,
    encoded: Encoded,
}

impl Chunk {
    pub fn new(
        column: &ColumnDescPtr,
        properties: &WriterPropertiesPtr,
        compressor: &PageCompressor,
    ) -> Self {
        let encoded = Encoded::default();
        let pages =
            Pages { sink: TrackedWrite::new(encoded.clone()), compressor: compressor.clone() };
        let (column, properties) = (Arc::clone(column), Arc::clone(properties));
        Self { writer: get_column_writer(column, properties, Box::new(pages)), encoded }
    }

    /// Ends the chunk: its bytes and what the row group is to say of them.
    pub fn end(self) -> Result<(Bytes, ColumnCloseResult)> {
        let mut closed = self.writer.close()?;
        let codec = Compression::ZSTD(ZstdLevel::try_new(LEVEL)?);
        closed.metadata = closed.metadata.into_builder().set_compression(codec).build()?;
        let encoded = std::mem::take(&mut *lock(&self.encoded.0));
        Ok((encoded.into(), closed))
    }
}

/// Bytes that a chunk's writer adds to, and that are taken once it is closed.
#[derive(Debug, Clone, Default)]
struct Encoded(Arc<Mutex<Vec<u8>>>);

impl Write for Encoded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compresses pages and writes them one behind the other.
struct Pages {
    sink: TrackedWrite<Encoded>,
    compressor: PageCompressor,
}

impl PageWriter for Pages {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec> {
        let plain_size = page.uncompressed_size();
        let mut page = page.compressed_page().clone();
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => {
                *buf = self.compressor.compress(buf)?;
            }
            // Of the second version, which is not asked for, a page may stay as it is.
            Page::DataPageV2 { .. } => {}
        }
        SerializedPageWriter::new(&mut self.sink).write_page(CompressedPage::new(page, plain_size))
    }

    fn close(&mut self) -> Result<()> {
        SerializedPageWriter::new(&mut self.sink).close()
    }
}
