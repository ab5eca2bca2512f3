//! The library's own sheet is the oracle for the bytes, calamine for what a reader gets.

use std::io::{Cursor, Read};

use calamine::{Data, Reader as _, Xlsx};
use chrono_tz::Tz;
use proptest::prelude::*;
use rust_xlsxwriter::{Format as CellFormat, Workbook, Worksheet};
use zip::ZipArchive;

use super::super::calendar::Day;
use super::super::tests::{Sink, column, push_rows};
use super::super::{Adjustment, Kind, Numeric, NumericSign};
use super::*;

mod layout;
mod readers;

/// Four base-10,000 digits in PostgreSQL's order: 1234567890.123.
const DIGITS: [u8; 8] = [0, 12, 0x0D, 0x80, 0x1E, 0xD2, 0x04, 0xCE];

fn numeric(digits: &[u8], weight: i16, scale: u16) -> Cell<'_> {
    Cell::Numeric(Numeric { digits, weight, sign: NumericSign::Positive, scale })
}

fn not_a_number(sign: NumericSign) -> Cell<'static> {
    Cell::Numeric(Numeric { digits: &[], weight: 0, sign, scale: 0 })
}

fn written(columns: &[Column], rows: &[Vec<Cell<'_>>], remark: Option<&str>) -> (Vec<u8>, Summary) {
    limited(columns, rows, remark, Limits::EXCEL)
}

fn limited(
    columns: &[Column],
    rows: &[Vec<Cell<'_>>],
    remark: Option<&str>,
    limits: Limits,
) -> (Vec<u8>, Summary) {
    let options = Options { time_zone: Tz::Asia__Kolkata, ..Options::default() };
    let sink = Sink::default();
    let file = XlsxWriter::with_limits(columns.to_vec(), options, sink.clone(), limits).unwrap();
    let mut file: Box<dyn RowWriter> = Box::new(file);
    push_rows(&mut *file, rows);
    let summary = file.finish(remark).unwrap();
    (sink.bytes(), summary)
}

fn part(file: &[u8], name: &str) -> String {
    let mut text = String::new();
    let mut archive = ZipArchive::new(Cursor::new(file)).unwrap();
    archive.by_name(name).unwrap().read_to_string(&mut text).unwrap();
    text
}

fn part_names(file: &[u8]) -> Vec<String> {
    let archive = ZipArchive::new(Cursor::new(file)).unwrap();
    archive.file_names().map(|name| name.unwrap().into_owned()).collect()
}

/// Name and cells of each sheet, as another program reads them.
fn read(file: Vec<u8>) -> Vec<(String, Vec<Vec<Data>>)> {
    let mut book = Xlsx::new(Cursor::new(file)).unwrap();
    book.worksheets()
        .into_iter()
        .map(|(name, cells)| (name, cells.rows().map(<[Data]>::to_vec).collect()))
        .collect()
}

fn strings(rows: &[Vec<Data>]) -> Vec<String> {
    rows.iter().map(|row| row[0].to_string()).collect()
}

fn every_kind() -> Vec<Column> {
    let kinds = [
        Kind::Bool,
        Kind::Int,
        Kind::Float,
        Kind::Numeric,
        Kind::Text,
        Kind::Date,
        Kind::Timestamp,
        Kind::TimestampTz,
        Kind::Time,
    ];
    let mut columns: Vec<_> = kinds.map(|kind| column(&format!("{kind:?}"), kind)).into();
    columns[1].number_format = Some("#,##0".to_owned());
    columns[4].width = Some(33.5);
    columns
}

/// 2024-01-02 03:04:05.250, in UTC the same moment is 2024-01-01 21:34:05.250.
const MOMENT: i64 = 757_479_845_250_000;
const MOMENT_UTC: i64 = MOMENT - 19_800_000_000;

fn rows_of_every_kind() -> Vec<Vec<Cell<'static>>> {
    let nulls = vec![Cell::Null; 9];
    vec![
        vec![
            Cell::Bool(true),
            Cell::Int(-123_456_789_012_345),
            Cell::Float8(0.1 + 0.2),
            numeric(&DIGITS, 2, 3),
            Cell::Text(" a<b>&\"c\" _x0041_ \u{1}\r\n☕"),
            Cell::Date(8_767),
            Cell::Timestamp(MOMENT),
            Cell::TimestampTz(MOMENT_UTC),
            Cell::Time(43_200_000_000),
        ],
        nulls.clone(),
        [vec![Cell::Bool(false), Cell::Int(0), Cell::Float8(-0.0)], nulls[3..].to_vec()].concat(),
        [vec![Cell::Null, Cell::Null, Cell::Float8(1e300)], nulls[3..].to_vec()].concat(),
        [vec![Cell::Null, Cell::Null, Cell::Float4(0.1)], nulls[3..].to_vec()].concat(),
    ]
}

/// The same rows by the library alone, in its constant-memory mode.
fn by_the_library(columns: &[Column]) -> Vec<u8> {
    let mut book = Workbook::new();
    let sheet: &mut Worksheet = book.add_worksheet_with_constant_memory().unwrap();
    sheet.set_name("Report").unwrap();
    let header = package::header_format();
    let formats: Vec<CellFormat> = columns.iter().map(package::data_format).collect();
    for (column, (index, format)) in columns.iter().zip((0..).zip(&formats)) {
        sheet.set_column_width(index, package::width(column)).unwrap();
        sheet.set_column_format(index, format).unwrap();
        sheet.write_string_with_format(0, index, &column.label, &header).unwrap();
    }
    sheet.write_boolean(1, 0, true).unwrap();
    sheet.write_number(1, 1, -123_456_789_012_345.0).unwrap();
    sheet.write_number(1, 2, 0.1 + 0.2).unwrap();
    sheet.write_number(1, 3, 1_234_567_890.123).unwrap();
    sheet.write_string(1, 4, " a<b>&\"c\" _x0041_ \u{1}\r\n☕").unwrap();
    let date = rust_xlsxwriter::ExcelDateTime::from_ymd(2024, 1, 2).unwrap();
    sheet.write_datetime(1, 5, &date).unwrap();
    let moment = date.and_hms_milli(3, 4, 5, 250).unwrap();
    sheet.write_datetime(1, 6, &moment).unwrap();
    sheet.write_datetime(1, 7, &moment).unwrap();
    sheet.write_number(1, 8, 0.5).unwrap();
    sheet.write_boolean(3, 0, false).unwrap();
    sheet.write_number(3, 1, 0).unwrap();
    sheet.write_number(3, 2, -0.0).unwrap();
    sheet.write_number(4, 2, 1e300).unwrap();
    sheet.write_number(5, 2, 0.1).unwrap();
    sheet.set_freeze_panes(1, 0).unwrap();
    sheet.autofilter(0, 0, 5, columns.len() as u16 - 1).unwrap();
    book.save_to_buffer().unwrap()
}

/// The library's sheet with its cells in our form: without references, so that empty cells in the
/// styles of their columns, those of the first data row, stand where it leaves cells out.
fn without_references(sheet: &str) -> String {
    let (head, rows) = sheet.split_once("<row ").unwrap();
    let mut styles = Vec::new();
    let mut made = head.to_owned();
    for row in rows.split("<row ") {
        let mut cells = row.split("<c r=\"");
        made.push_str(&format!("<row {}", cells.next().unwrap()));
        let mut filled = 0;
        for cell in cells {
            let (reference, rest) = cell.split_once('"').unwrap();
            // One letter: there are fewer columns than letters.
            let column = usize::from(reference.as_bytes()[0] - b'A');
            if reference[1..] == *"2" {
                let style = rest.split(" t=").next().unwrap().split('>').next().unwrap();
                styles.push(style.to_owned());
            }
            for style in styles.get(filled..column).unwrap_or_default() {
                made.push_str(&format!("<c{style}/>"));
            }
            made.push_str(&format!("<c{rest}"));
            filled = column + 1;
        }
    }
    made
}

#[test]
fn a_sheet_is_byte_for_byte_the_librarys_but_for_references() {
    let columns = every_kind();
    let (ours, _) = written(&columns, &rows_of_every_kind(), None);
    let library = by_the_library(&columns);
    let mut expected = without_references(&part(&library, "xl/worksheets/sheet1.xml"));
    let dimension = "<dimension ref=\"A1:I6\"/>";
    assert!(expected.contains(dimension));
    expected = expected.replace(dimension, "");
    assert_eq!(part(&ours, "xl/worksheets/sheet1.xml"), expected);
    for name in part_names(&library) {
        // The styles end in that of the remark; the properties tell who made the file and when.
        if !["xl/worksheets/sheet1.xml", "xl/styles.xml", "docProps/core.xml"].contains(&&*name) {
            assert_eq!(part(&ours, &name), part(&library, &name), "{name}");
        }
    }
    assert_eq!(part_names(&ours).len(), part_names(&library).len());
}

#[test]
fn values_read_back_with_their_types() {
    let (file, summary) = written(&every_kind(), &rows_of_every_kind(), None);
    let sheets = read(file);
    let row = &sheets[0].1[1];
    assert_eq!(row[0], Data::Bool(true));
    assert_eq!(row[1], Data::Float(-123_456_789_012_345.0));
    assert_eq!(row[2], Data::Float(0.1 + 0.2));
    assert_eq!(row[3], Data::Float(1_234_567_890.123));
    assert_eq!(row[4], Data::String(" a<b>&\"c\" _x0041_ \u{1}\r\n☕".to_owned()));
    let moments = [5, 6, 7].map(|index| match row[index] {
        Data::DateTime(moment) => moment.as_datetime().unwrap().to_string(),
        ref other => panic!("{other:?}"),
    });
    let moment = "2024-01-02 03:04:05.250";
    assert_eq!(moments, ["2024-01-02 00:00:00", moment, moment]);
    assert!(matches!(row[8], Data::DateTime(time) if time.as_f64() == 0.5));
    assert_eq!(sheets[0].1[2], vec![Data::Empty; 9]);
    assert_eq!((summary.rows, summary.sheets), (5, 1));
    assert_eq!(summary.adjusted, [(Adjustment::CharacterEscaped, 1)].into());
}

#[test]
fn null_and_the_empty_string_stay_apart() {
    let (file, _) =
        written(&[column("a", Kind::Text)], &[vec![Cell::Text("")], vec![Cell::Null]], None);
    let sheet = part(&file, "xl/worksheets/sheet1.xml");
    let empty = r#"<row r="2"><c t="inlineStr"><is><t></t></is></c></row></sheetData>"#;
    assert!(sheet.contains(empty), "{sheet}");
}

#[test]
fn values_stay_in_their_columns_beside_nulls() {
    let columns = ["a", "b", "c", "d"].map(|name| column(name, Kind::Date));
    let (null, day) = (Cell::Null, Cell::Date(0));
    let rows = [[null, day, null, null], [null, null, null, day], [day, null, null, day]];
    let (file, _) = written(&columns, &rows.map(|row| row.to_vec()), None);
    // In the style of the column, so that what is typed there later is shown as a date.
    let first = r#"<row r="2"><c s="1"/><c s="1"><v>36526</v></c></row>"#;
    let sheet = part(&file, "xl/worksheets/sheet1.xml");
    assert!(sheet.contains(first), "{sheet}");
    let sheets = read(file);
    for (cells, row) in rows.iter().zip(&sheets[0].1[1..]) {
        let filled: Vec<_> = row.iter().map(|cell| !matches!(cell, Data::Empty)).collect();
        assert_eq!(filled, cells.map(|cell| cell != null));
    }
}

#[test]
fn numbers_that_excel_would_change_are_text() {
    let as_text = [
        (Cell::Int(1_234_567_890_123_456), "1234567890123456"),
        (Cell::Int(i64::MIN), "-9223372036854775808"),
        (Cell::Float8(f64::NAN), "NaN"),
        (Cell::Float8(f64::NEG_INFINITY), "-Infinity"),
        (Cell::Float4(f32::INFINITY), "Infinity"),
        (Cell::Float8(5e-324), "5e-324"),
        (numeric(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 1], 4, 0), "10000000000000001"),
        (not_a_number(NumericSign::NaN), "NaN"),
        (not_a_number(NumericSign::NegativeInfinity), "-Infinity"),
    ];
    let (file, summary) =
        written(&[column("n", Kind::Numeric)], &as_text.map(|(cell, _)| vec![cell]), None);
    let read: Vec<_> = read(file)[0].1[1..].iter().map(|row| row[0].clone()).collect();
    assert_eq!(read, as_text.map(|(_, text)| Data::String(text.to_owned())));
    assert_eq!(summary.adjusted, [(Adjustment::NumberAsText, 9)].into());
}

#[test]
fn numbers_of_up_to_15_digits_are_numbers() {
    let numbers = [
        (Cell::Int(999_999_999_999_999), 999_999_999_999_999.0),
        (Cell::Int(-1_234_567_890_123_450_000), -1_234_567_890_123_450_000.0),
        (Cell::Float4(1.1), 1.1),
        (Cell::Float8(f64::MAX), f64::MAX),
        (Cell::Float8(f64::MIN_POSITIVE), f64::MIN_POSITIVE),
        (numeric(&[0, 1], 0, 2), 1.0),
        (numeric(&[], 0, 5), 0.0),
        (numeric(&[0, 1, 0, 0, 0, 0, 0, 1], 0, 12), 1.000_000_000_001),
        (numeric(&[0, 1], -5, 20), 1e-20),
        (numeric(&[0, 1], 20, 0), 1e80),
    ];
    let (file, summary) =
        written(&[column("n", Kind::Numeric)], &numbers.map(|(cell, _)| vec![cell]), None);
    let read: Vec<_> = read(file)[0].1[1..].iter().map(|row| row[0].clone()).collect();
    assert_eq!(read, numbers.map(|(_, number)| Data::Float(number)));
    assert_eq!(summary.adjusted, [].into());
}

#[test]
fn dates_are_serials_between_1900_and_9999_and_text_beyond() {
    let day = |year, month, day| Day { year, month, day }.days();
    for (date, serial) in [
        ((1900, 1, 1), 1),
        ((1900, 2, 28), 59),
        ((1900, 3, 1), 61),
        ((2000, 1, 1), 36_526),
        ((9999, 12, 31), 2_958_465),
    ] {
        assert_eq!(serial::of_day(day(date.0, date.1, date.2)), Some(serial), "{date:?}");
    }
    assert_eq!(serial::of_day(day(1899, 12, 31)), None);
    assert_eq!(serial::of_day(day(10_000, 1, 1)), None);

    let last = (day(10_000, 1, 1) * 86_400_000_000) - 1;
    let rows = [
        (Cell::Date(i32::MAX), "infinity"),
        (Cell::Date(day(1899, 12, 31) as i32), "1899-12-31"),
        (Cell::Timestamp(i64::MIN), "-infinity"),
        (Cell::Timestamp(last), "9999-12-31 23:59:59.999999"),
        (Cell::TimestampTz(last), "10000-01-01 05:29:59.999999+05:30"),
        (Cell::Time(86_400_000_000), "24:00:00"),
    ];
    let (file, summary) =
        written(&[column("d", Kind::Date)], &rows.map(|(cell, _)| vec![cell]), None);
    assert_eq!(strings(&read(file)[0].1[1..]), rows.map(|(_, text)| text));
    assert_eq!(summary.adjusted, [(Adjustment::DateAsText, 6)].into());
}

#[test]
fn text_is_cut_at_what_a_cell_holds() {
    let cases = [("a", 32_767, 32_767), ("a", 32_768, 32_767), ("𝄞", 16_384, 16_383)];
    let texts = cases.map(|(text, times, _)| text.repeat(times));
    let bytes = [0xAB; 20_000];
    let mut rows: Vec<_> = texts.iter().map(|text| vec![Cell::Text(text)]).collect();
    rows.push(vec![Cell::Bytes(&bytes)]);
    let (file, summary) = written(&[column("t", Kind::Text)], &rows, None);
    let read = strings(&read(file)[0].1[1..]);
    for ((text, _, kept), read) in cases.iter().zip(&read) {
        assert_eq!(*read, text.repeat(*kept));
    }
    assert_eq!(read[3], format!("\\x{}a", "ab".repeat(16_382)));
    assert_eq!(summary.adjusted, [(Adjustment::TextCut, 3)].into());
}

#[test]
fn a_full_sheet_is_followed_by_the_next() {
    let rows: Vec<_> = (0..20).map(|n| vec![Cell::Int(n)]).collect();
    let ten = Limits { rows: 10, ..Limits::EXCEL };
    let (file, summary) = limited(&[column("n", Kind::Int)], &rows, None, ten);
    assert_eq!((summary.rows, summary.sheets), (20, 3));
    let filters = [1, 2, 3].map(|sheet| {
        let xml = part(&file, &sheet_path(sheet));
        let (_, filter) = xml.split_once("<autoFilter ref=\"").unwrap();
        filter.split('"').next().unwrap().to_owned()
    });
    assert_eq!(filters, ["A1:A10", "A1:A10", "A1:A3"]);
    let selected = |sheet| part(&file, &sheet_path(sheet)).contains("tabSelected");
    assert_eq!([1, 2, 3].map(selected), [true, false, false]);
    let names = part_names(&file);
    assert_eq!(names.last().unwrap(), "[Content_Types].xml");
    let sheets = read(file);
    let columns = sheets.iter().map(|(name, rows)| (name.as_str(), strings(rows)));
    let numbers = |from: i64, to: i64| (from..to).map(|n| n.to_string());
    let header = || ["N".to_owned()].into_iter();
    assert_eq!(
        columns.collect::<Vec<_>>(),
        [
            ("Report", header().chain(numbers(0, 9)).collect()),
            ("Report (2)", header().chain(numbers(9, 18)).collect()),
            ("Report (3)", header().chain(numbers(18, 20)).collect::<Vec<_>>()),
        ]
    );
}

#[test]
fn a_sheet_of_many_bytes_is_followed_by_the_next() {
    let text = "x".repeat(30_000);
    let rows = vec![vec![Cell::Text(&text)]; 40];
    let limits = Limits { bytes: 200_000, ..Limits::EXCEL };
    let (file, summary) = limited(&[column("t", Kind::Text)], &rows, None, limits);
    assert!((4..=8).contains(&summary.sheets), "{summary:?}");
    let read: usize = read(file).iter().map(|(_, rows)| rows.len() - 1).sum();
    assert_eq!(read, 40);
}

#[test]
fn a_remark_stands_below_the_rows() {
    let columns = [column("n", Kind::Int)];
    let rows: Vec<_> = (0..4).map(|n| vec![Cell::Int(n)]).collect();
    for (limit, sheets, filter) in [(100, 1, "A1:A5"), (6, 1, "A1:A5"), (5, 2, "A1")] {
        let limits = Limits { rows: limit, ..Limits::EXCEL };
        let (file, summary) = limited(&columns, &rows, Some("Cut at 4 rows."), limits);
        assert_eq!((summary.rows, summary.sheets), (4, sheets));
        let last_sheet = part(&file, &sheet_path(sheets as usize));
        assert!(last_sheet.contains(&format!("<autoFilter ref=\"{filter}\"")), "{last_sheet}");
        let (_, last) = read(file).pop().unwrap();
        assert_eq!(last.last().unwrap()[0], Data::String("Cut at 4 rows.".to_owned()));
    }
}

#[test]
fn a_report_without_rows_is_a_header() {
    let (file, summary) = written(&every_kind(), &[], None);
    assert_eq!(
        summary,
        Summary { rows: 0, sheets: 1, sheet_list: summary.sheet_list.clone(), adjusted: [].into() }
    );
    let sheets = read(file);
    let header: Vec<_> = every_kind().into_iter().map(|c| Data::String(c.label)).collect();
    assert_eq!(sheets[0].1, [header]);
}

#[test]
fn excels_columns_fit_and_one_more_does_not() {
    let columns = vec![column("c", Kind::Int); MAX_COLUMNS];
    let row = vec![Cell::Int(7); MAX_COLUMNS];
    let (file, _) = written(&columns, &[row], None);
    assert_eq!(read(file)[0].1[1], vec![Data::Float(7.0); MAX_COLUMNS]);
    let columns = vec![column("c", Kind::Int); MAX_COLUMNS + 1];
    let refused = XlsxWriter::new(columns, Options::default(), Sink::default());
    assert!(matches!(refused, Err(WriteError::TooManyColumns { columns: 16_385, .. })));
}

#[test]
fn a_row_with_more_cells_than_columns_is_refused() {
    let columns = vec![column("c", Kind::Int)];
    let mut file = XlsxWriter::new(columns, Options::default(), Sink::default()).unwrap();
    file.cell(Cell::Null).unwrap();
    assert!(matches!(file.cell(Cell::Null), Err(WriteError::Workbook(_))));
}

#[test]
fn the_same_rows_give_the_same_file() {
    let file = || written(&every_kind(), &rows_of_every_kind(), Some("Cut.")).0;
    let first = file();
    assert_eq!(first, file());
    assert!(!part(&first, "docProps/core.xml").contains("<dcterms"));
}

#[test]
fn an_abandoned_writer_writes_nothing_more() {
    let sink = Sink::default();
    let columns = vec![column("n", Kind::Int)];
    let mut file = XlsxWriter::new(columns, Options::default(), sink.clone()).unwrap();
    push_rows(&mut file, &[vec![Cell::Int(1)]]);
    let before = sink.bytes();
    drop(file);
    assert_eq!(sink.bytes(), before);
}

#[test]
fn sheet_names_are_made_legal() {
    for (name, expected) in [
        ("Grades 2024", "Grades 2024"),
        ("a[b]c:d*e?f/g\\h", "a_b_c_d_e_f_g_h"),
        ("'quoted'", "quoted"),
        ("", "Report"),
        (" ' ", "Report"),
        ("History", "History_"),
        ("hISTORY", "hISTORY_"),
        ("line\nbreak\u{ffff}", "line_break_"),
        ("1234567890123456789012345678901x", "1234567890123456789012345678901"),
        ("123456789012345678901234567890'x", "123456789012345678901234567890"),
        ("12345678901234567890123456789𝄞x", "12345678901234567890123456789𝄞"),
        ("123456789012345678901234567890𝄞", "123456789012345678901234567890"),
    ] {
        let columns = vec![column("n", Kind::Int)];
        let options = Options { sheet_name: name.to_owned(), ..Options::default() };
        let sink = Sink::default();
        let limits = Limits { rows: 2, ..Limits::EXCEL };
        let file = XlsxWriter::with_limits(columns, options, sink.clone(), limits).unwrap();
        let mut file: Box<dyn RowWriter> = Box::new(file);
        push_rows(&mut *file, &[vec![Cell::Int(1)], vec![Cell::Int(2)]]);
        file.finish(None).unwrap();
        let sheets = read(sink.bytes());
        assert_eq!(sheets[0].0, expected);
        assert!(sheets[1].0.ends_with(" (2)") && sheets[1].0.encode_utf16().count() <= 31);
    }
}

proptest! {
    /// Every text reads back as it was, whatever its characters and the shape of its escapes.
    #[test]
    fn text_reads_back(
        texts in prop::collection::vec(
            any::<String>().boxed()
                .prop_union("[_x0-9A-Fa-f\u{0}-\u{20}\u{fffe}\u{ffff}&<>;]{0,16}".boxed())
                .or("(_x[0-9aF]{4}_?|\u{1}|\r|_){0,4}".boxed()),
            1..12,
        ),
    ) {
        let rows: Vec<_> =
            texts.iter().map(|text| vec![Cell::Text(text), Cell::Int(1)]).collect();
        let columns = [column("t", Kind::Text), column("n", Kind::Int)];
        let (file, _) = written(&columns, &rows, None);
        prop_assert_eq!(strings(&read(file)[0].1[1..]), texts);
    }
}
