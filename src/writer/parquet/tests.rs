//! Files as the library's reader of single rows gets them.

use bytes::Bytes;
use parquet::basic::{LogicalType, TimeUnit, Type as Physical};
use parquet::data_type::Decimal;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::super::tests::{Sink, column, push_rows};
use super::super::{Kind, Numeric, NumericSign, Precision};
use super::*;

fn written(
    columns: Vec<Column>,
    rows: &[Vec<Cell<'_>>],
    limits: Limits,
    truncated: Option<&str>,
) -> (Bytes, Summary) {
    let sink = Sink::default();
    let options = Options::default();
    let file = ParquetWriter::with_limits(columns, &options, sink.clone(), limits).unwrap();
    let mut file: Box<dyn RowWriter> = Box::new(file);
    push_rows(&mut *file, rows);
    let summary = file.finish(truncated).unwrap();
    (sink.bytes().into(), summary)
}

fn reader(file: &Bytes) -> SerializedFileReader<Bytes> {
    SerializedFileReader::new(file.clone()).unwrap()
}

fn fields(file: &Bytes) -> Vec<Vec<Field>> {
    let reader = reader(file);
    let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
    rows.map(|row| row.into_columns().into_iter().map(|(_, field)| field).collect()).collect()
}

fn decimal(precision: u8, scale: u8) -> Column {
    let precision = Some(Precision::Decimal { precision, scale });
    Column { precision, ..column("n", Kind::Numeric) }
}

fn numeric(digits: &[u8], weight: i16) -> Cell<'_> {
    Cell::Numeric(Numeric { digits, weight, sign: NumericSign::Negative, scale: 2 })
}

const MICROS: TimeUnit = TimeUnit::MICROS;

#[test]
fn kinds_have_their_types() {
    let text = Some(LogicalType::String);
    let long = Some(LogicalType::decimal(2, 18));
    let wide = Some(LogicalType::decimal(3, 19));
    let single = Column { precision: Some(Precision::Single), ..column("r", Kind::Float) };
    for (column, physical, logical) in [
        (column("c", Kind::Bool), Physical::BOOLEAN, None),
        (column("c", Kind::Int), Physical::INT64, None),
        (column("c", Kind::Float), Physical::DOUBLE, None),
        (single, Physical::FLOAT, None),
        (column("c", Kind::Numeric), Physical::BYTE_ARRAY, text.clone()),
        (decimal(18, 2), Physical::INT64, long),
        (decimal(19, 3), Physical::FIXED_LEN_BYTE_ARRAY, wide),
        (column("c", Kind::Text), Physical::BYTE_ARRAY, text.clone()),
        (column("c", Kind::Uuid), Physical::BYTE_ARRAY, text),
        (column("c", Kind::Json), Physical::BYTE_ARRAY, Some(LogicalType::Json)),
        (column("c", Kind::Bytes), Physical::BYTE_ARRAY, None),
        (column("c", Kind::Date), Physical::INT32, Some(LogicalType::Date)),
        (
            column("c", Kind::Timestamp),
            Physical::INT64,
            Some(LogicalType::timestamp(false, MICROS)),
        ),
        (
            column("c", Kind::TimestampTz),
            Physical::INT64,
            Some(LogicalType::timestamp(true, MICROS)),
        ),
        (column("c", Kind::Time), Physical::INT64, Some(LogicalType::time(false, MICROS))),
    ] {
        let (file, _) = written(vec![column.clone()], &[], Limits::DEFAULT, None);
        let reader = reader(&file);
        let found = reader.metadata().file_metadata().schema_descr().column(0);
        assert_eq!(found.physical_type(), physical, "{column:?}");
        assert_eq!(found.logical_type_ref(), logical.as_ref(), "{column:?}");
        assert!(found.self_type().is_optional());
        assert_eq!(reader.num_row_groups(), 0);
    }
}

#[test]
fn decimals_keep_their_digits() {
    let (small, large) = ([0, 12, 0x0D, 0x80], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let rows = [vec![numeric(&small, 0), numeric(&large, 5)], vec![Cell::Null, numeric(&small, 0)]];
    let (file, _) = written(vec![decimal(18, 4), decimal(38, 4)], &rows, Limits::DEFAULT, None);
    let wide = |unscaled: i128| {
        Field::Decimal(Decimal::from_bytes(unscaled.to_be_bytes().to_vec().into(), 38, 4))
    };
    let found = fields(&file);
    let long = Field::Decimal(Decimal::from_i64(-123_456, 18, 4));
    assert_eq!(found[0], [long, wide(-1_000_000_000_000_000_000_000_001)]);
    assert_eq!(found[1], [Field::Null, wide(-123_456)]);
}

#[test]
fn what_a_type_cannot_hold_is_null_and_counted() {
    let nan = Numeric { digits: &[], weight: 0, sign: NumericSign::NaN, scale: 0 };
    let columns = vec![
        decimal(5, 2),
        decimal(38, 2),
        column("d", Kind::Date),
        column("t", Kind::Timestamp),
        column("z", Kind::TimestampTz),
        column("h", Kind::Time),
    ];
    let rows = [
        vec![
            Cell::Numeric(nan),
            Cell::Numeric(nan),
            Cell::Date(i32::MAX),
            Cell::Timestamp(i64::MIN),
            Cell::TimestampTz(9_223_371_331_199_999_999),
            Cell::Time(86_400_000_000),
        ],
        vec![Cell::Null; 6],
    ];
    let (file, summary) = written(columns, &rows, Limits::DEFAULT, Some("Cut."));
    assert_eq!(fields(&file), vec![vec![Field::Null; 6]; 2]);
    assert_eq!(summary.adjusted, [(Adjustment::ValueAsNull, 6)].into());
    let reader = reader(&file);
    let notes: Vec<_> = reader.metadata().file_metadata().key_value_metadata().unwrap().to_vec();
    let note = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
    assert_eq!(
        notes,
        [
            note("registrar.adjusted_cells", "{\"value_as_null\":6}"),
            note("registrar.truncated", "Cut.")
        ]
    );
}

#[test]
fn a_row_group_ends_at_its_rows_or_bytes() {
    let rows: Vec<_> = (0..100).map(|n| vec![Cell::Int(n), Cell::Null]).collect();
    for (limits, expected) in [
        (Limits { group_rows: 40, ..Limits::DEFAULT }, vec![40, 40, 20]),
        (Limits { batch_rows: 7, group_rows: 50, ..Limits::DEFAULT }, vec![50, 50]),
        (Limits { batch_bytes: 1, group_bytes: 10 * 64, ..Limits::DEFAULT }, vec![64, 36]),
    ] {
        let columns = vec![column("a", Kind::Int), column("a", Kind::Text)];
        let (file, summary) = written(columns, &rows, limits, None);
        let reader = reader(&file);
        let groups = reader.metadata().row_groups();
        assert_eq!(groups.iter().map(|group| group.num_rows()).collect::<Vec<_>>(), expected);
        let names: Vec<_> =
            groups[0].columns().iter().map(|chunk| chunk.column_path().string()).collect();
        assert_eq!(names, ["a", "a_2"]);
        let found: Vec<_> = fields(&file).into_iter().map(|mut row| row.remove(0)).collect();
        assert_eq!(found, (0..100).map(Field::Long).collect::<Vec<_>>());
        assert_eq!(summary.rows, 100);
    }
}

#[test]
fn dictionaries_and_values_beyond_them_read_back() {
    let texts: Vec<_> = (0..4_000).map(|n| format!("{n:0900}")).collect();
    let rows: Vec<_> =
        texts.iter().map(|text| vec![Cell::Text(text), Cell::Text(&text[..9])]).collect();
    let columns = vec![column("many", Kind::Text), column("few", Kind::Text)];
    let limits = Limits { batch_rows: 64, ..Limits::DEFAULT };
    let (file, _) = written(columns.clone(), &rows, limits, None);
    let expected: Vec<_> = texts
        .iter()
        .map(|text| vec![Field::Str(text.clone()), Field::Str("0".repeat(9))])
        .collect();
    assert!(fields(&file) == expected);
    let (again, _) = written(columns, &rows, limits, None);
    assert!(file == again, "the same rows give the same file");
}

#[test]
fn rows_that_do_not_fit_the_columns_are_refused_or_filled() {
    let columns = vec![column("a", Kind::Int), column("b", Kind::Int)];
    let mut file = ParquetWriter::new(columns, &Options::default(), Vec::new()).unwrap();
    file.cell(Cell::Int(1)).unwrap();
    file.end_row().unwrap();
    let refused = file.cell(Cell::Text("x"));
    assert!(
        matches!(&refused, Err(WriteError::WrongKind { column, .. }) if column == "a"),
        "{refused:?}"
    );
    file.cell(Cell::Int(1)).unwrap();
    let refused = file.cell(Cell::Int(1));
    assert!(matches!(refused, Err(WriteError::TooManyCells { columns: 2 })), "{refused:?}");
}
