//! PostgreSQL's binary wire format → [`Cell`].
//!
//! The layouts are those of the `*send` functions of PostgreSQL's types. A cell borrows from the
//! row's bytes; nothing is allocated. What a server never sends is an error, never a panic.

use crate::writer::{Cell, Kind, Numeric, NumericSign};

/// Microseconds of 24:00:00, the largest `time`.
const LAST_TIME: i64 = 86_400_000_000;

/// How the values of one column are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoder {
    /// `bool`
    Bool,
    /// `int2`
    Int2,
    /// `int4`
    Int4,
    /// `int8`
    Int8,
    /// `oid`
    Oid,
    /// `float4`
    Float4,
    /// `float8`
    Float8,
    /// `numeric`
    Numeric,
    /// `text`, `varchar`, `bpchar`, `name`
    Text,
    /// `json`
    Json,
    /// `jsonb`
    Jsonb,
    /// `bytea`
    Bytea,
    /// `date`
    Date,
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    TimestampTz,
    /// `time`
    Time,
    /// `uuid`
    Uuid,
}

impl Decoder {
    /// The decoder of a built-in type, by its fixed OID (`pg_type.dat`); `None` for every type
    /// whose column must be selected as `::text` and read with [`Decoder::Text`].
    ///
    /// The one-byte type `"char"` has none: its text form of a byte above 127 is an escape.
    pub const fn for_oid(oid: u32) -> Option<Self> {
        Some(match oid {
            16 => Self::Bool,
            17 => Self::Bytea,
            19 | 25 | 1042 | 1043 => Self::Text,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            26 => Self::Oid,
            114 => Self::Json,
            700 => Self::Float4,
            701 => Self::Float8,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            _ => return None,
        })
    }

    /// What the column holds.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Bool => Kind::Bool,
            Self::Int2 | Self::Int4 | Self::Int8 | Self::Oid => Kind::Int,
            Self::Float4 | Self::Float8 => Kind::Float,
            Self::Numeric => Kind::Numeric,
            Self::Text => Kind::Text,
            Self::Json | Self::Jsonb => Kind::Json,
            Self::Bytea => Kind::Bytes,
            Self::Date => Kind::Date,
            Self::Timestamp => Kind::Timestamp,
            Self::TimestampTz => Kind::TimestampTz,
            Self::Time => Kind::Time,
            Self::Uuid => Kind::Uuid,
        }
    }

    /// Reads one value; `None` is SQL NULL.
    ///
    /// # Errors
    /// When the bytes are not a value of the type. The error says nothing of the value itself.
    #[inline]
    pub fn decode(self, raw: Option<&[u8]>) -> Result<Cell<'_>, DecodeError> {
        let Some(raw) = raw else { return Ok(Cell::Null) };
        Ok(match self {
            Self::Bool => Cell::Bool(self.fixed::<1>(raw)? != [0]),
            Self::Int2 => Cell::Int(i64::from(i16::from_be_bytes(self.fixed(raw)?))),
            Self::Int4 => Cell::Int(i64::from(i32::from_be_bytes(self.fixed(raw)?))),
            Self::Int8 => Cell::Int(i64::from_be_bytes(self.fixed(raw)?)),
            Self::Oid => Cell::Int(i64::from(u32::from_be_bytes(self.fixed(raw)?))),
            Self::Float4 => Cell::Float4(f32::from_be_bytes(self.fixed(raw)?)),
            Self::Float8 => Cell::Float8(f64::from_be_bytes(self.fixed(raw)?)),
            Self::Numeric => Cell::Numeric(numeric(raw)?),
            Self::Text => Cell::Text(self.utf8(raw)?),
            Self::Json => Cell::Json(self.utf8(raw)?),
            Self::Jsonb => match raw.split_first() {
                Some((1, document)) => Cell::Json(self.utf8(document)?),
                Some((&version, _)) => return Err(DecodeError::JsonbVersion { version }),
                None => return Err(self.bad_length(raw)),
            },
            Self::Bytea => Cell::Bytes(raw),
            Self::Date => Cell::Date(i32::from_be_bytes(self.fixed(raw)?)),
            Self::Timestamp => Cell::Timestamp(i64::from_be_bytes(self.fixed(raw)?)),
            Self::TimestampTz => Cell::TimestampTz(i64::from_be_bytes(self.fixed(raw)?)),
            Self::Time => match i64::from_be_bytes(self.fixed(raw)?) {
                micros @ 0..=LAST_TIME => Cell::Time(micros),
                _ => return Err(DecodeError::Time),
            },
            Self::Uuid => Cell::Uuid(self.fixed(raw)?),
        })
    }

    #[inline]
    fn fixed<const N: usize>(self, raw: &[u8]) -> Result<[u8; N], DecodeError> {
        raw.try_into().map_err(|_| self.bad_length(raw))
    }

    #[inline]
    fn utf8(self, raw: &[u8]) -> Result<&str, DecodeError> {
        std::str::from_utf8(raw).map_err(|_| DecodeError::Utf8 { decoder: self })
    }

    const fn bad_length(self, raw: &[u8]) -> DecodeError {
        DecodeError::Length { decoder: self, length: raw.len() }
    }
}

/// Reads `numeric_send`'s layout: count, weight, sign and scale of 16 bits each, then the digits.
fn numeric(raw: &[u8]) -> Result<Numeric<'_>, DecodeError> {
    let bad_length = Decoder::Numeric.bad_length(raw);
    let Some((header, digits)) = raw.split_first_chunk::<8>() else { return Err(bad_length) };
    let field = |index: usize| u16::from_be_bytes([header[index], header[index + 1]]);
    if digits.len() != usize::from(field(0)) * 2 {
        return Err(bad_length);
    }
    if digits.chunks_exact(2).any(|digit| u16::from_be_bytes([digit[0], digit[1]]) > 9_999) {
        return Err(DecodeError::NumericDigit);
    }
    let sign = match field(4) {
        0x0000 => NumericSign::Positive,
        0x4000 => NumericSign::Negative,
        0xC000 => NumericSign::NaN,
        0xD000 => NumericSign::Infinity,
        0xF000 => NumericSign::NegativeInfinity,
        sign => return Err(DecodeError::NumericSign { sign }),
    };
    Ok(Numeric { digits, weight: field(2) as i16, sign, scale: field(6) })
}

/// The server sent bytes that are not a value of the column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The value is too short or too long.
    #[error("a value of {length} bytes is no {decoder:?}")]
    Length {
        /// How the column is read.
        decoder: Decoder,
        /// Bytes received.
        length: usize,
    },
    /// The text is not UTF-8.
    #[error("a value of type {decoder:?} is not UTF-8")]
    Utf8 {
        /// How the column is read.
        decoder: Decoder,
    },
    /// `jsonb` has a version that this program does not know.
    #[error("jsonb has version {version}, expected 1")]
    JsonbVersion {
        /// The version received.
        version: u8,
    },
    /// The sign of a `numeric` is none of the five known.
    #[error("numeric has the unknown sign {sign:#06x}")]
    NumericSign {
        /// The sign received.
        sign: u16,
    },
    /// A digit of a `numeric` is not below 10,000.
    #[error("numeric has a digit that is not below 10,000")]
    NumericDigit,
    /// A `time` lies outside of a day.
    #[error("time lies outside of a day")]
    Time,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::writer::{Column, Format, Options, Reader, open};

    const ALL: [Decoder; 17] = [
        Decoder::Bool,
        Decoder::Int2,
        Decoder::Int4,
        Decoder::Int8,
        Decoder::Oid,
        Decoder::Float4,
        Decoder::Float8,
        Decoder::Numeric,
        Decoder::Text,
        Decoder::Json,
        Decoder::Jsonb,
        Decoder::Bytea,
        Decoder::Date,
        Decoder::Timestamp,
        Decoder::TimestampTz,
        Decoder::Time,
        Decoder::Uuid,
    ];

    #[test]
    fn null_is_null_for_every_type() {
        for decoder in ALL {
            assert_eq!(decoder.decode(None), Ok(Cell::Null));
        }
    }

    #[test]
    fn a_value_of_the_wrong_length_is_refused() {
        let lengths = [1, 2, 4, 8, 4, 4, 8, 8, 0, 0, 1, 0, 4, 8, 8, 8, 16];
        for (decoder, length) in ALL.into_iter().zip(lengths) {
            for wrong in (0..=17).filter(|&wrong| wrong != length) {
                let raw = vec![0; wrong];
                let read = decoder.decode(Some(&raw));
                match decoder {
                    Decoder::Text | Decoder::Json | Decoder::Bytea => assert!(read.is_ok()),
                    Decoder::Jsonb if wrong > 0 => {
                        assert_eq!(read, Err(DecodeError::JsonbVersion { version: 0 }));
                    }
                    _ => assert_eq!(read, Err(DecodeError::Length { decoder, length: wrong })),
                }
            }
        }
    }

    #[test]
    fn what_a_server_never_sends_is_refused() {
        let numeric = |sign: u16, digit: u16| {
            [1, 0, sign, 0, digit].into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>()
        };
        for (decoder, raw, error) in [
            (Decoder::Text, vec![0xFF], DecodeError::Utf8 { decoder: Decoder::Text }),
            (Decoder::Json, vec![0xC3], DecodeError::Utf8 { decoder: Decoder::Json }),
            (Decoder::Jsonb, b"\x02{}".to_vec(), DecodeError::JsonbVersion { version: 2 }),
            (Decoder::Numeric, numeric(1, 0), DecodeError::NumericSign { sign: 1 }),
            (Decoder::Numeric, numeric(0, 10_000), DecodeError::NumericDigit),
            (Decoder::Time, (LAST_TIME + 1).to_be_bytes().to_vec(), DecodeError::Time),
            (Decoder::Time, (-1_i64).to_be_bytes().to_vec(), DecodeError::Time),
        ] {
            assert_eq!(decoder.decode(Some(&raw)), Err(error));
        }
    }

    #[test]
    fn other_types_are_left_to_the_server() {
        // "char", interval, inet, timetz, money, text[], record
        for oid in [18, 1186, 869, 1266, 790, 1009, 2249, 0] {
            assert_eq!(Decoder::for_oid(oid), None);
        }
    }

    proptest! {
        /// Whatever the bytes, they are refused or can be written in every format.
        #[test]
        fn bytes_are_refused_or_written(
            decoder in prop::sample::select(ALL.as_slice()),
            mut raw in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..24),
                prop::collection::vec(any::<u8>(), 4),
                prop::collection::vec(any::<u8>(), 8),
                prop::collection::vec(any::<u8>(), 16),
            ],
            fits in any::<bool>(),
        ) {
            if fits && decoder == Decoder::Numeric && raw.len() >= 8 {
                raw.truncate(raw.len() / 2 * 2);
                raw[0] = 0;
                raw[1] = (raw.len() / 2 - 4) as u8;
                raw[4..6].copy_from_slice(&[0x40, 0]);
                raw[8..].iter_mut().step_by(2).for_each(|digit| *digit %= 39);
            }
            let Ok(cell) = decoder.decode(Some(&raw)) else { return Ok(()) };
            for (format, reader) in [
                (Format::Csv, Reader::Machine),
                (Format::Csv, Reader::Spreadsheet),
                (Format::Xlsx, Reader::Spreadsheet),
                (Format::Parquet, Reader::Machine),
                (Format::Ndjson, Reader::Machine),
            ] {
                let (name, label) = ("c".to_owned(), "C".to_owned());
                let kind = decoder.kind();
                let column =
                    Column { name, label, kind, precision: None, number_format: None, width: None };
                let time_zone = chrono_tz::Tz::America__St_Johns;
                let options = Options { reader, time_zone, ..Options::default() };
                let mut file = open(format, vec![column], options, std::io::sink()).unwrap();
                file.cell(cell).unwrap();
                file.end_row().unwrap();
                prop_assert_eq!(file.finish(None).unwrap().rows, 1);
            }
        }
    }
}
