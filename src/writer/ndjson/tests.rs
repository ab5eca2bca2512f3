//! What a line of NDJSON looks like. What PostgreSQL's `row_to_json` says of every type is compared
//! with a live server in `tests/it/special_values.rs`.

use super::super::tests::{Sink, column, push_rows};
use super::super::{Kind, NumericSign};
use super::*;

fn written(names: &[&str], rows: &[Vec<Cell<'_>>]) -> (String, Summary) {
    let sink = Sink::default();
    let columns = names.iter().map(|name| column(name, Kind::Text)).collect();
    let file = NdjsonWriter::new(columns, Options::default(), sink.clone()).unwrap();
    let mut file: Box<dyn RowWriter> = Box::new(file);
    push_rows(&mut *file, rows);
    let summary = file.finish(None).unwrap();
    (String::from_utf8(sink.bytes()).unwrap(), summary)
}

/// Each cell as the one value of its row.
fn values(cells: &[Cell<'_>]) -> (Vec<String>, Summary) {
    let rows: Vec<_> = cells.iter().map(|cell| vec![*cell]).collect();
    let (file, summary) = written(&["v"], &rows);
    let value = |line: &str| {
        let value = line.strip_prefix("{\"v\":").and_then(|rest| rest.strip_suffix('}'));
        value.unwrap().to_owned()
    };
    (file.lines().map(value).collect(), summary)
}

fn numeric(digits: &[u8], weight: i16, scale: u16, sign: NumericSign) -> Cell<'_> {
    Cell::Numeric(Numeric { digits, weight, sign, scale })
}

#[test]
fn a_row_is_an_object_on_a_line() {
    let rows = [vec![Cell::Int(1), Cell::Text("x")], vec![Cell::Null, Cell::Text("")]];
    let (file, summary) = written(&["a", "a \"b\"\n"], &rows);
    let expected = "{\"a\":1,\"a \\\"b\\\"\\n\":\"x\"}\n{\"a\":null,\"a \\\"b\\\"\\n\":\"\"}\n";
    assert_eq!(file, expected);
    assert_eq!(summary, Summary { rows: 2, sheets: 1, ..Summary::default() });
}

#[test]
fn keys_are_different_and_files_may_be_empty() {
    let (file, _) = written(&["a", "a"], &[vec![Cell::Bool(true), Cell::Bool(false)]]);
    assert_eq!(file, "{\"a\":true,\"a_2\":false}\n");
    assert_eq!(written(&["a"], &[]).0, "");
}

#[test]
fn a_row_with_more_cells_than_columns_is_refused() {
    let file = NdjsonWriter::new(vec![column("a", Kind::Int)], Options::default(), Vec::new());
    let mut file = file.unwrap();
    file.cell(Cell::Int(1)).unwrap();
    let refused = file.cell(Cell::Int(2));
    assert!(matches!(refused, Err(WriteError::TooManyCells { columns: 1 })), "{refused:?}");
}

#[test]
fn a_number_that_readers_would_round_is_a_string() {
    let exact = 9_007_199_254_740_992;
    let (digits, padded) = ([0, 12, 0x0D, 0x80, 0x1E, 0xD2, 0x04, 0xCE], [0, 0, 0, 5]);
    let positive = NumericSign::Positive;
    let (found, summary) = values(&[
        Cell::Int(exact),
        Cell::Int(-exact),
        Cell::Int(exact + 1),
        Cell::Int(i64::MIN),
        Cell::Float8(f64::NAN),
        Cell::Float4(f32::NEG_INFINITY),
        Cell::Float8(1e300),
        Cell::Float4(0.1),
        Cell::Float8(-0.0),
        numeric(&digits, 2, 4, positive),
        numeric(&digits, 3, 4, positive),
        numeric(&digits, 90, 0, positive),
        numeric(&digits[..2], 0, 2, NumericSign::Negative),
        numeric(&[], 0, 0, NumericSign::NaN),
        numeric(&padded, 1, 0, positive),
    ]);
    let big = format!("\"12{}{}\"", "345678901230", "0".repeat(87 * 4));
    let expected = [
        "9007199254740992",
        "-9007199254740992",
        "\"9007199254740993\"",
        "\"-9223372036854775808\"",
        "\"NaN\"",
        "\"-Infinity\"",
        "1e+300",
        "0.1",
        "-0",
        "1234567890.1230",
        "12345678901230.0000",
        &big,
        "-12.00",
        "\"NaN\"",
        "\"00005\"",
    ];
    assert_eq!(found, expected);
    assert_eq!(summary.adjusted, [(Adjustment::NumberAsText, 7)].into());
}

#[test]
fn strings_are_escaped_and_json_stays_on_its_line() {
    let (found, _) = values(&[
        Cell::Text("\u{0}\u{1}\u{8}\t\n\u{b}\u{c}\r\u{1f} \u{7f}\"\\/é☕𝄞\u{2028}"),
        Cell::Json(" {\"a\" :\r\n [1, 2.50, \"\\n\"]}"),
        Cell::Json("null"),
        Cell::Bytes(&[0, 0xFF]),
        Cell::Bytes(&[]),
        Cell::Uuid([0xA0; 16]),
    ]);
    let expected = [
        "\"\\u0000\\u0001\\b\\t\\n\\u000b\\f\\r\\u001f \u{7f}\\\"\\\\/é☕𝄞\u{2028}\"",
        " {\"a\" :   [1, 2.50, \"\\n\"]}",
        "null",
        "\"\\\\x00ff\"",
        "\"\\\\x\"",
        "\"a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0\"",
    ];
    assert_eq!(found, expected);
}

#[test]
fn moments_are_of_rfc_3339() {
    let (found, _) = values(&[
        Cell::Date(-1),
        Cell::Date(i32::MAX),
        Cell::Timestamp(1_500_000),
        Cell::TimestampTz(-1),
        Cell::TimestampTz(i64::MIN),
        Cell::Time(86_400_000_000),
    ]);
    let expected = [
        "\"1999-12-31\"",
        "\"infinity\"",
        "\"2000-01-01T00:00:01.5\"",
        "\"1999-12-31T23:59:59.999999+00:00\"",
        "\"-infinity\"",
        "\"24:00:00\"",
    ];
    assert_eq!(found, expected);
}
