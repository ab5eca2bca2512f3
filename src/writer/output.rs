//! Where the bytes of a text format go: to the sink as they are, or compressed on the way.
//!
//! The compressors write to memory and their output is handed on block by block. So a writer that
//! is dropped before it is finished sends nothing more, and the unfinished file is seen to be one:
//! a compressor that owned the sink would write an end to it. Neither stream says when it was
//! made: the same rows give the same file.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use zstd::stream::write::Encoder as ZstdEncoder;

use super::Compression;

/// A buffer that one large cell made longer than this, in bytes, is given back.
const KEPT: usize = 512 * 1024;
/// Of `zlib`'s levels: half the time of the default for files that are a tenth larger.
const GZIP_LEVEL: u32 = 3;
/// Zstandard's default: a third of the time of [`GZIP_LEVEL`] for smaller files.
const ZSTD_LEVEL: i32 = 3;

/// The sink of a text format.
pub(super) struct Output<W> {
    out: W,
    encoder: Option<Encoder>,
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
}

impl<W: Write> Output<W> {
    pub fn new(out: W, compression: Option<Compression>) -> io::Result<Self> {
        let encoder = match compression {
            None => None,
            Some(Compression::Gzip) => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Some(Encoder::Gzip(GzEncoder::new(Vec::new(), level)))
            }
            Some(Compression::Zstd) => {
                let mut encoder = ZstdEncoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Some(Encoder::Zstd(encoder))
            }
        };
        Ok(Self { out, encoder })
    }

    /// Empties `buffer` into the sink if it holds at least `size` bytes.
    pub fn take(&mut self, buffer: &mut Vec<u8>, size: usize) -> io::Result<()> {
        if buffer.len() < size {
            return Ok(());
        }
        match &mut self.encoder {
            None => self.out.write_all(buffer)?,
            Some(encoder) => {
                let made = match encoder {
                    Encoder::Gzip(encoder) => {
                        encoder.write_all(buffer)?;
                        encoder.get_mut()
                    }
                    Encoder::Zstd(encoder) => {
                        encoder.write_all(buffer)?;
                        encoder.get_mut()
                    }
                };
                self.out.write_all(made)?;
                made.clear();
                made.shrink_to(KEPT);
            }
        }
        buffer.clear();
        buffer.shrink_to(KEPT);
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> io::Result<()> {
        let rest = match self.encoder {
            None => Vec::new(),
            Some(Encoder::Gzip(encoder)) => encoder.finish()?,
            Some(Encoder::Zstd(encoder)) => encoder.finish()?,
        };
        self.out.write_all(&rest)?;
        self.out.flush()
    }
}

impl<W: std::fmt::Debug> std::fmt::Debug for Output<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let encoder = self.encoder.as_ref().map(|encoder| match encoder {
            Encoder::Gzip(_) => Compression::Gzip,
            Encoder::Zstd(_) => Compression::Zstd,
        });
        f.debug_struct("Output").field("out", &self.out).field("encoder", &encoder).finish()
    }
}
