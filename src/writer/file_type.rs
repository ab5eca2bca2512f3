//! Formats, compressions, and what a file of both is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A file format that a report can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// RFC 4180, UTF-8.
    Csv,
    /// Office Open XML workbook (ISO/IEC 29500).
    Xlsx,
    /// Apache Parquet.
    Parquet,
    /// Newline-delimited JSON: one object (RFC 8259) on each line.
    Ndjson,
}

impl Format {
    /// Every format, in the order that documents list them.
    pub const ALL: [Self; 4] = [Self::Csv, Self::Xlsx, Self::Parquet, Self::Ndjson];

    /// The name in the API and the extension of the file, without the dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Xlsx => "xlsx",
            Self::Parquet => "parquet",
            Self::Ndjson => "ndjson",
        }
    }

    /// The media type of the file when it is not compressed.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8",
            Self::Xlsx => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            Self::Parquet => "application/vnd.apache.parquet",
            Self::Ndjson => "application/x-ndjson",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|format| format.extension() == text).ok_or(UnknownFormat)
    }
}

/// The text is not the name of a format.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be `csv`, `xlsx`, `parquet` or `ndjson`")]
pub struct UnknownFormat;

/// How a whole file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl Compression {
    /// Every compression, in the order that documents list them.
    pub const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, UnknownCompression> {
        Self::ALL.into_iter().find(|found| found.name() == text).ok_or(UnknownCompression)
    }
}

/// The text is not the name of a compression.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be `gzip` or `zstd`")]
pub struct UnknownCompression;

/// A format, compressed or not: the one place that knows extensions and media types of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileType {
    format: Format,
    compression: Option<Compression>,
}

impl FileType {
    /// Every type that a file can have.
    pub fn all() -> impl Iterator<Item = Self> {
        let plain = Format::ALL.into_iter().map(|format| (format, None));
        let compressed = Format::ALL
            .into_iter()
            .flat_map(|format| Compression::ALL.map(|compression| (format, Some(compression))));
        plain.chain(compressed).filter_map(|(format, found)| Self::new(format, found).ok())
    }

    /// A file of `format`, compressed as `compression` says.
    ///
    /// # Errors
    /// [`Incompressible`] for a compression of what is compressed inside.
    pub const fn new(
        format: Format,
        compression: Option<Compression>,
    ) -> Result<Self, Incompressible> {
        match (format, compression) {
            (Format::Xlsx | Format::Parquet, Some(_)) => Err(Incompressible { format }),
            (Format::Xlsx | Format::Parquet, None) | (Format::Csv | Format::Ndjson, _) => {
                Ok(Self { format, compression })
            }
        }
    }

    /// The type that the name of a file ends in, after a dot.
    pub fn of_name(name: &str) -> Option<Self> {
        // Longest first: of no two types is one's extension the end of the other's.
        Self::all().find(|file_type| {
            name.strip_suffix(file_type.extension()).is_some_and(|stem| stem.ends_with('.'))
        })
    }

    /// What the file holds once it is decompressed.
    pub const fn format(self) -> Format {
        self.format
    }

    /// How the whole file is compressed.
    pub const fn compression(self) -> Option<Compression> {
        self.compression
    }

    /// The extension of the file, without the first dot.
    pub const fn extension(self) -> &'static str {
        match (self.format, self.compression) {
            (Format::Csv, Some(Compression::Gzip)) => "csv.gz",
            (Format::Csv, Some(Compression::Zstd)) => "csv.zst",
            (Format::Ndjson, Some(Compression::Gzip)) => "ndjson.gz",
            (Format::Ndjson, Some(Compression::Zstd)) => "ndjson.zst",
            (format @ (Format::Csv | Format::Ndjson), None)
            | (format @ (Format::Xlsx | Format::Parquet), _) => format.extension(),
        }
    }

    /// The media type of the file. A compressed file is one of its own kind, not a CSV in a
    /// content coding: readers are to keep it as it is.
    pub const fn media_type(self) -> &'static str {
        match self.compression {
            None => self.format.media_type(),
            Some(Compression::Gzip) => "application/gzip",
            Some(Compression::Zstd) => "application/zstd",
        }
    }
}

/// A compression was asked for of a format that is compressed inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{format} is compressed inside: only csv and ndjson can be compressed")]
pub struct Incompressible {
    /// The format asked for.
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_media_types_are_as_the_documentation_says() {
        let found: Vec<_> =
            FileType::all().map(|known| (known.extension(), known.media_type())).collect();
        assert_eq!(
            found,
            [
                ("csv", "text/csv; charset=utf-8"),
                ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
                ("parquet", "application/vnd.apache.parquet"),
                ("ndjson", "application/x-ndjson"),
                ("csv.gz", "application/gzip"),
                ("csv.zst", "application/zstd"),
                ("ndjson.gz", "application/gzip"),
                ("ndjson.zst", "application/zstd"),
            ]
        );
    }

    #[test]
    fn a_type_is_found_in_a_file_name() {
        for known in FileType::all() {
            let name = format!("ranking.2026.{}", known.extension());
            assert_eq!(FileType::of_name(&name), Some(known), "{name}");
        }
        for name in ["ranking", "csv", "ranking.gz", "ranking.xlsx.gz", "ranking.txt", ""] {
            assert_eq!(FileType::of_name(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_compressed_inside_is_not_compressed_again() {
        for format in [Format::Xlsx, Format::Parquet] {
            let refused = FileType::new(format, Some(Compression::Gzip));
            assert_eq!(refused, Err(Incompressible { format }));
        }
    }
}
