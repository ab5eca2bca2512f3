//! Any rows go into every format, and what a reader gets is what went in, as far as the format's
//! rules say so. The text of a CSV's field, which tests compare with a live server's, is what the
//! other formats' texts are compared with.

use ::bytes::Bytes;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use proptest::collection::vec;

use super::*;
use crate::writer::{Precision, RowEncoder};

/// Microseconds from 1970-01-01 to 2000-01-01.
const EPOCH: i64 = 10_957 * 86_400_000_000;

/// A cell that owns what it holds.
#[derive(Debug, Clone)]
enum Owned {
    Null,
    Bool(bool),
    Int(i64),
    Float4(f32),
    Float8(f64),
    /// A whole number and how many of its last digits stand behind the point.
    Numeric(i128, u16),
    Text(String),
    Json(String),
    Bytes(Vec<u8>),
    Date(i32),
    Timestamp(i64),
    TimestampTz(i64),
    Time(i64),
    Uuid([u8; 16]),
}

impl Owned {
    /// Hands on the cell.
    fn give<T>(&self, take: impl FnOnce(Cell<'_>) -> T) -> T {
        let (digits, weight);
        take(match self {
            Self::Null => Cell::Null,
            Self::Bool(value) => Cell::Bool(*value),
            Self::Int(value) => Cell::Int(*value),
            Self::Float4(value) => Cell::Float4(*value),
            Self::Float8(value) => Cell::Float8(*value),
            Self::Numeric(unscaled, scale) => {
                (digits, weight) = base_10000(unscaled.unsigned_abs(), *scale);
                let negative = *unscaled < 0;
                let sign = if negative { NumericSign::Negative } else { NumericSign::Positive };
                Cell::Numeric(Numeric { digits: &digits, weight, sign, scale: *scale })
            }
            Self::Text(text) => Cell::Text(text),
            Self::Json(text) => Cell::Json(text),
            Self::Bytes(bytes) => Cell::Bytes(bytes),
            Self::Date(days) => Cell::Date(*days),
            Self::Timestamp(micros) => Cell::Timestamp(*micros),
            Self::TimestampTz(micros) => Cell::TimestampTz(*micros),
            Self::Time(micros) => Cell::Time(*micros),
            Self::Uuid(bytes) => Cell::Uuid(*bytes),
        })
    }
}

/// Digits and weight of `unscaled / 10 ^ scale`, as a server sends them.
fn base_10000(unscaled: u128, scale: u16) -> (Vec<u8>, i16) {
    let padding = usize::from((4 - scale % 4) % 4);
    let text = format!("{unscaled}{}", "0".repeat(padding));
    let text = "0".repeat((4 - text.len() % 4) % 4) + &text;
    let groups = text.as_bytes().chunks(4);
    let groups: Vec<u16> =
        groups.map(|four| std::str::from_utf8(four).unwrap().parse().unwrap()).collect();
    let zeros = groups.iter().take_while(|&&group| group == 0).count();
    let weight = (groups.len() - zeros) as i16 - scale.div_ceil(4) as i16 - 1;
    (groups[zeros..].iter().flat_map(|group| group.to_be_bytes()).collect(), weight)
}

/// What a column holds, and its cells.
#[derive(Debug, Clone)]
struct Cells {
    kind: Kind,
    precision: Option<Precision>,
    cells: Vec<Owned>,
}

fn any_cells(rows: usize) -> impl Strategy<Value = Cells> {
    let of = move |kind: Kind, precision, cell: BoxedStrategy<Owned>| {
        let cells = vec(prop_oneof![1 => Just(Owned::Null), 5 => cell], rows);
        cells.prop_map(move |cells| Cells { kind, precision, cells })
    };
    let decimal = Some(Precision::Decimal { precision: 38, scale: 6 });
    let number = || any::<i128>().prop_map(|number| number % 10_i128.pow(38));
    let scaled = (number(), 0..50_u16).prop_map(|(n, scale)| Owned::Numeric(n, scale));
    let times = (0..=86_400_000_000_i64).prop_map(Owned::Time);
    prop_oneof![
        of(Kind::Bool, None, any::<bool>().prop_map(Owned::Bool).boxed()),
        of(Kind::Int, None, any::<i64>().prop_map(Owned::Int).boxed()),
        of(Kind::Int, None, any::<i32>().prop_map(|n| Owned::Int(n.into())).boxed()),
        of(Kind::Float, None, any::<f64>().prop_map(Owned::Float8).boxed()),
        of(Kind::Float, Some(Precision::Single), any::<f32>().prop_map(Owned::Float4).boxed()),
        of(Kind::Numeric, None, scaled.boxed()),
        of(Kind::Numeric, decimal, number().prop_map(|n| Owned::Numeric(n, 6)).boxed()),
        of(Kind::Text, None, text().prop_map(Owned::Text).boxed()),
        of(Kind::Json, None, json().prop_map(Owned::Json).boxed()),
        of(Kind::Bytes, None, vec(any::<u8>(), 0..9).prop_map(Owned::Bytes).boxed()),
        of(Kind::Date, None, any::<i32>().prop_map(Owned::Date).boxed()),
        of(Kind::Timestamp, None, any::<i64>().prop_map(Owned::Timestamp).boxed()),
        of(Kind::TimestampTz, None, any::<i64>().prop_map(Owned::TimestampTz).boxed()),
        of(Kind::Time, None, times.boxed()),
        of(Kind::Uuid, None, any::<[u8; 16]>().prop_map(Owned::Uuid).boxed()),
    ]
}

fn text() -> impl Strategy<Value = String> {
    "[^\u{0}]{0,9}|[a\",;|\t\r\n\\\\]{0,6}|_x[0-9A-F]{4}_"
}

fn json() -> impl Strategy<Value = String> {
    vec(text(), 0..3).prop_map(|list| serde_json::to_string_pretty(&list).unwrap())
}

fn described(columns: &[Cells]) -> Vec<Column> {
    let described = columns.iter().enumerate().map(|(index, Cells { kind, precision, .. })| {
        let precision = *precision;
        Column { precision, ..column(&format!("c{index}"), *kind) }
    });
    described.collect()
}

fn write(format: Format, columns: &[Cells], rows: usize) -> Vec<u8> {
    let sink = Sink::default();
    let options = Options::default();
    let mut file = open(format, described(columns), options, sink.clone()).unwrap();
    for row in 0..rows {
        for Cells { cells, .. } in columns {
            cells[row].give(|cell| file.cell(cell)).unwrap();
        }
        file.end_row().unwrap();
    }
    assert_eq!(file.finish(None).unwrap().rows, rows as u64);
    sink.bytes()
}

proptest! {
    #[test]
    fn any_rows_are_written_and_read_back(
        (rows, columns) in
            (0..6_usize).prop_flat_map(|rows| (Just(rows), vec(any_cells(rows), 2..8))),
    ) {
        write(Format::Xlsx, &columns, rows);
        let file = write(Format::Csv, &columns, rows);
        let texts: Vec<_> =
            ::csv::Reader::from_reader(&*file).into_records().map(Result::unwrap).collect();
        let lines = String::from_utf8(write(Format::Ndjson, &columns, rows)).unwrap();
        let lines: Vec<_> = lines.split_terminator('\n').collect();
        let file = write(Format::Parquet, &columns, rows);
        let records = SerializedFileReader::new(Bytes::from(file)).unwrap();
        let records: Vec<_> = records.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!((texts.len(), lines.len(), records.len()), (rows, rows, rows));
        for row in 0..rows {
            let mut members = Vec::new();
            let fields = records[row].get_column_iter().map(|(_, field)| field);
            for ((index, column), field) in columns.iter().enumerate().zip(fields) {
                let (cell, text) = (&column.cells[row], &texts[row][index]);
                members.push(format!("\"c{index}\":{}", json_of(cell, text)));
                assert_field(field, cell, column.precision, text);
                assert_text(text, cell);
            }
            prop_assert_eq!(lines[row], format!("{{{}}}", members.join(",")));
            serde_json::from_str::<serde_json::Value>(lines[row]).unwrap();
        }
    }
}

/// Any text format, with any options that decide what its rows look like.
fn any_text_format() -> impl Strategy<Value = (Format, Options)> {
    let formats = prop_oneof![Just(Format::Csv), Just(Format::Ndjson)];
    let delimiters = prop::sample::select(vec![b',', b';', b'\t', b'|']);
    let compressions = prop_oneof![Just(None), Just(Some(Compression::Gzip))];
    (formats, any::<bool>(), any::<bool>(), delimiters, compressions).prop_map(
        |(format, for_people, byte_order_mark, delimiter, compression)| {
            let reader = if for_people { Reader::Spreadsheet } else { Reader::Machine };
            let time_zone = chrono_tz::Tz::America__St_Johns;
            let options = Options {
                reader,
                byte_order_mark,
                delimiter,
                compression,
                time_zone,
                ..Options::default()
            };
            (format, options)
        },
    )
}

proptest! {
    /// Whatever is made apart, in blocks of any size, and cut anywhere: it is the same file.
    #[test]
    fn rows_made_apart_are_those_of_the_writer(
        (rows, columns) in
            (0..9_usize).prop_flat_map(|rows| (Just(rows), vec(any_cells(rows), 1..5))),
        (format, options) in any_text_format(),
        block in 1..4_usize,
        kept in 0..9_usize,
    ) {
        let kept = kept.min(rows);
        let file = |apart: bool| {
            let sink = Sink::default();
            let described = described(&columns);
            let mut encoder = RowEncoder::new(format, &described, &options).unwrap();
            let mut file = open(format, described, options.clone(), sink.clone()).unwrap();
            for first in (0..rows).step_by(block) {
                let block = first..rows.min(first + block);
                let room = kept.saturating_sub(first);
                for row in block.clone() {
                    for Cells { cells, .. } in &columns {
                        if apart {
                            cells[row].give(|cell| encoder.cell(cell)).unwrap();
                        } else if row < kept {
                            cells[row].give(|cell| file.cell(cell)).unwrap();
                        }
                    }
                    if apart {
                        encoder.end_row();
                    } else if row < kept {
                        file.end_row().unwrap();
                    }
                }
                if apart {
                    assert_eq!(encoder.rows(), block.len());
                    let mut made = encoder.take();
                    made.truncate(room);
                    file.append(made).unwrap();
                }
            }
            (file.finish(None).unwrap(), sink.bytes())
        };
        prop_assert_eq!(file(true), file(false));
    }
}

fn assert_text(text: &str, cell: &Owned) {
    match cell {
        Owned::Null => assert_eq!(text, ""),
        Owned::Int(value) => assert_eq!(text.parse(), Ok(*value)),
        Owned::Float4(value) if value.is_nan() => assert_eq!(text, "NaN"),
        Owned::Float8(value) if value.is_nan() => assert_eq!(text, "NaN"),
        Owned::Float4(value) => assert_eq!(text.parse(), Ok(*value)),
        Owned::Float8(value) => assert_eq!(text.parse(), Ok(*value)),
        Owned::Numeric(unscaled, scale) => {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            assert_eq!(fraction.len(), usize::from(*scale));
            assert_eq!(format!("{whole}{fraction}").parse(), Ok(*unscaled));
        }
        Owned::Text(value) | Owned::Json(value) => assert_eq!(text, value),
        Owned::Bytes(value) => assert_eq!(text, format!("\\x{}", hex::encode(value))),
        Owned::Uuid(value) => assert_eq!(text, uuid::Uuid::from_bytes(*value).to_string()),
        Owned::Bool(_)
        | Owned::Date(_)
        | Owned::Timestamp(_)
        | Owned::TimestampTz(_)
        | Owned::Time(_) => assert!(!text.is_empty()),
    }
}

/// The JSON of a cell whose text is `text`.
fn json_of(cell: &Owned, text: &str) -> String {
    let exact = match cell {
        Owned::Null => return "null".to_owned(),
        Owned::Bool(value) => return value.to_string(),
        Owned::Json(value) => return value.replace('\n', " "),
        Owned::Int(value) => value.unsigned_abs() <= 1 << 53,
        Owned::Float4(value) => value.is_finite(),
        Owned::Float8(value) => value.is_finite(),
        Owned::Numeric(unscaled, _) => unscaled.to_string().trim_matches(['0', '-']).len() <= 15,
        Owned::Text(_)
        | Owned::Bytes(_)
        | Owned::Date(_)
        | Owned::Timestamp(_)
        | Owned::TimestampTz(_)
        | Owned::Time(_)
        | Owned::Uuid(_) => false,
    };
    let is_moment = matches!(cell, Owned::Timestamp(_) | Owned::TimestampTz(_));
    match (exact, is_moment) {
        (true, _) => text.to_owned(),
        (false, true) => {
            let text = text.replacen(' ', "T", 1).replacen("+00", "+00:00", 1);
            serde_json::to_string(&text).unwrap()
        }
        (false, false) => serde_json::to_string(text).unwrap(),
    }
}

fn assert_field(field: &Field, cell: &Owned, precision: Option<Precision>, text: &str) {
    let or_null = |found: Option<Field>| found.unwrap_or(Field::Null);
    let is_finite = |micros: i64| micros != i64::MAX && micros != i64::MIN;
    let micros = |micros: i64| micros.checked_add(EPOCH).filter(|_| is_finite(micros));
    let expected = match (cell, field) {
        (Owned::Float4(value), Field::Float(found)) => {
            return assert_eq!(value.to_bits(), found.to_bits());
        }
        (Owned::Float8(value), Field::Double(found)) => {
            return assert_eq!(value.to_bits(), found.to_bits());
        }
        (Owned::Numeric(value, _), Field::Decimal(found)) => {
            assert!(precision.is_some());
            return assert_eq!(found.data(), value.to_be_bytes());
        }
        (Owned::Null, _) => Field::Null,
        (Owned::Bool(value), _) => Field::Bool(*value),
        (Owned::Int(value), _) => Field::Long(*value),
        (Owned::Bytes(value), _) => Field::Bytes(value.clone().into()),
        (Owned::Date(i32::MAX | i32::MIN), _) => Field::Null,
        (Owned::Date(days), _) => or_null(days.checked_add(10_957).map(Field::Date)),
        (Owned::Timestamp(value) | Owned::TimestampTz(value), _) => {
            or_null(micros(*value).map(Field::TimestampMicros))
        }
        (Owned::Time(86_400_000_000), _) => Field::Null,
        (Owned::Time(value), _) => Field::TimeMicros(*value),
        (Owned::Numeric(..), _) if precision.is_none() => Field::Str(text.to_owned()),
        (Owned::Text(_) | Owned::Json(_) | Owned::Uuid(_), _) => Field::Str(text.to_owned()),
        (Owned::Float4(_) | Owned::Float8(_) | Owned::Numeric(..), _) => {
            panic!("{cell:?} was read as {field:?}")
        }
    };
    assert_eq!(field, &expected);
}
