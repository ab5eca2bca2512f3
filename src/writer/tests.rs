//! Files for people as CSV, compression, and what the tests of every format use. What programs get
//! as CSV is compared with a live server's `COPY` in `tests/it/writer.rs`.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use proptest::prelude::*;

use super::{
    Adjustment, Cell, Column, Compression, FileType, Format, Incompressible, Kind, Numeric,
    NumericSign, Options, Reader, RowWriter, Summary, WriteError, open, unique_names,
};

mod any_row;

/// A file in memory that outlives its writer.
#[derive(Debug, Clone, Default)]
pub(super) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn column(name: &str, kind: Kind) -> Column {
    let label = name.to_uppercase();
    let name = name.to_owned();
    Column { name, label, kind, precision: None, number_format: None, width: None }
}

pub(super) fn push_rows(file: &mut dyn RowWriter, rows: &[Vec<Cell<'_>>]) {
    for row in rows {
        for cell in row {
            file.cell(*cell).unwrap();
        }
        file.end_row().unwrap();
    }
}

fn csv(columns: Vec<Column>, options: Options, rows: &[Vec<Cell<'_>>]) -> (String, Summary) {
    let sink = Sink::default();
    let mut file = open(Format::Csv, columns, options, sink.clone()).unwrap();
    push_rows(&mut *file, rows);
    let summary = file.finish(None).unwrap();
    (String::from_utf8(sink.bytes()).unwrap(), summary)
}

fn for_spreadsheets() -> Options {
    Options { reader: Reader::Spreadsheet, ..Options::default() }
}

#[test]
fn a_spreadsheet_gets_labels_guards_and_capital_booleans() {
    let columns = vec![column("name", Kind::Text), column("paid", Kind::Bool)];
    let rows: Vec<_> = ["=1+1", "+1", "-1", "@a", "\tx", "\r", "=\"a\"", "a=1", "", "'="]
        .into_iter()
        .map(|text| vec![Cell::Text(text), Cell::Bool(text.len() > 2)])
        .chain([vec![Cell::Null, Cell::Null]])
        .collect();
    let (file, summary) = csv(columns, for_spreadsheets(), &rows);
    let expected = "NAME,PAID\r\n'=1+1,TRUE\r\n'+1,FALSE\r\n'-1,FALSE\r\n'@a,FALSE\r\n'\tx,FALSE\r\n\
        \"'\r\",FALSE\r\n\"'=\"\"a\"\"\",TRUE\r\na=1,TRUE\r\n\"\",FALSE\r\n'=,FALSE\r\n,\r\n";
    assert_eq!(file, expected);
    assert_eq!(summary.adjusted, [(Adjustment::FormulaGuarded, 7)].into());
    assert_eq!((summary.rows, summary.sheets), (11, 1));
}

#[test]
fn numbers_and_json_are_never_guarded() {
    let columns = ["i", "f", "n", "j"].map(|name| column(name, Kind::Int)).to_vec();
    let minus_half = Numeric {
        digits: &5_000_i16.to_be_bytes(),
        weight: -1,
        sign: NumericSign::Negative,
        scale: 1,
    };
    let row = vec![Cell::Int(-1), Cell::Float8(-1.5), Cell::Numeric(minus_half), Cell::Json("-1")];
    let (file, summary) = csv(columns, for_spreadsheets(), &[row]);
    assert_eq!(file, "I,F,N,J\r\n-1,-1.5,-0.5,-1\r\n");
    assert_eq!(summary.adjusted, [].into());
}

#[test]
fn a_guarded_header_is_not_counted() {
    let (file, summary) = csv(vec![column("=a", Kind::Text)], for_spreadsheets(), &[]);
    assert_eq!(file, "'=A\r\n");
    assert_eq!(summary, Summary { sheets: 1, ..Summary::default() });
}

#[test]
fn a_program_gets_names_and_text_as_it_is() {
    let (file, summary) =
        csv(vec![column("=a", Kind::Text)], Options::default(), &[vec![Cell::Text("=1")]]);
    assert_eq!(file, "=a\n=1\n");
    assert_eq!(summary.adjusted, [].into());
}

#[test]
fn the_delimiter_decides_what_is_quoted() {
    for (delimiter, expected) in [
        (b',', "a,b\n;,\",\"\n\t,|\n"),
        (b';', "a;b\n\";\";,\n\t;|\n"),
        (b'\t', "a\tb\n;\t,\n\"\t\"\t|\n"),
        (b'|', "a|b\n;|,\n\t|\"|\"\n"),
    ] {
        let columns = vec![column("a", Kind::Text), column("b", Kind::Text)];
        let rows = [[";", ","], ["\t", "|"]].map(|row| row.map(Cell::Text).to_vec());
        let (file, _) = csv(columns, Options { delimiter, ..Options::default() }, &rows);
        assert_eq!(file, expected);
    }
}

#[test]
fn a_byte_order_mark_comes_first() {
    let options = Options { byte_order_mark: true, ..Options::default() };
    let (file, _) = csv(vec![column("a", Kind::Text)], options, &[]);
    assert_eq!(file, "\u{feff}a\n");
}

#[test]
fn a_cell_larger_than_the_buffer_is_written_whole() {
    let long = "ab\"".repeat(1 << 20);
    let (file, _) =
        csv(vec![column("a", Kind::Text)], Options::default(), &[vec![Cell::Text(&long)]]);
    assert_eq!(file, format!("a\n\"{}\"\n", long.replace('"', "\"\"")));
}

#[test]
fn a_failing_sink_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for file_type in FileType::all() {
        let options = Options { compression: file_type.compression(), ..Options::default() };
        let failed = open(file_type.format(), vec![column("a", Kind::Text)], options, Full)
            .and_then(|mut file| {
                file.cell(Cell::Null)?;
                file.end_row()?;
                file.finish(None)
            });
        assert!(matches!(failed, Err(WriteError::Io(_))), "{file_type:?}: {failed:?}");
    }
}

#[test]
fn a_compressed_file_holds_the_plain_one_and_is_the_same_each_time() {
    let text = "ab,\"".repeat(100);
    let rows: Vec<_> = (0..5_000).map(|n| vec![Cell::Int(n), Cell::Text(&text)]).collect();
    let columns = vec![column("n", Kind::Int), column("t", Kind::Text)];
    let write = |format, compression| {
        let (sink, options) = (Sink::default(), Options { compression, ..Options::default() });
        let mut file = open(format, columns.clone(), options, sink.clone()).unwrap();
        push_rows(&mut *file, &rows);
        assert_eq!(file.finish(None).unwrap().rows, 5_000);
        sink.bytes()
    };
    for format in [Format::Csv, Format::Ndjson] {
        let plain = write(format, None);
        assert!(plain.len() > 2_000_000);
        for compression in Compression::ALL {
            let compressed = write(format, Some(compression));
            let mut read = Vec::new();
            match compression {
                Compression::Gzip => {
                    flate2::read::GzDecoder::new(&*compressed).read_to_end(&mut read).unwrap();
                }
                Compression::Zstd => zstd::stream::copy_decode(&*compressed, &mut read).unwrap(),
            }
            assert!(read == plain, "{format} {compression}");
            assert!(compressed.len() < plain.len() / 20, "{}", compressed.len());
            assert!(compressed == write(format, Some(compression)), "{format} {compression}");
        }
    }
}

#[test]
fn an_abandoned_compressed_file_is_seen_to_be_one() {
    for compression in Compression::ALL {
        let (sink, compression) = (Sink::default(), Some(compression));
        let options = Options { compression, ..Options::default() };
        let columns = vec![column("a", Kind::Text)];
        let mut file = open(Format::Csv, columns, options, sink.clone()).unwrap();
        push_rows(&mut *file, &vec![vec![Cell::Text("some text")]; 100_000]);
        let before = sink.bytes().len();
        drop(file);
        assert_eq!(sink.bytes().len(), before, "{compression:?}");
    }
}

#[test]
fn what_is_compressed_inside_is_refused_a_compression() {
    for format in [Format::Xlsx, Format::Parquet] {
        let options = Options { compression: Some(Compression::Zstd), ..Options::default() };
        let refused = open(format, vec![column("a", Kind::Text)], options, Sink::default());
        let Err(WriteError::Incompressible(Incompressible { format: of })) = refused else {
            panic!("{format} was opened")
        };
        assert_eq!(of, format);
    }
}

#[test]
fn columns_of_one_name_get_names_of_their_own() {
    for (given, expected) in [
        (vec!["a", "b"], vec!["a", "b"]),
        (vec!["a", "a", "A", "a"], vec!["a", "a_2", "A", "a_3"]),
        (vec!["a", "a", "a_2", "a_2"], vec!["a", "a_3", "a_2", "a_2_2"]),
    ] {
        let columns: Vec<_> = given.into_iter().map(|name| column(name, Kind::Int)).collect();
        assert_eq!(unique_names(&columns), expected);
    }
}

proptest! {
    /// Another reader gets back what was written, for every text and delimiter.
    #[test]
    fn csv_reads_back(
        rows in prop::collection::vec(prop::array::uniform2("[^\u{0}]{0,12}|[a\",;|\t\r\n]{0,6}"), 1..20),
        delimiter in prop::sample::select(b",;\t|".as_slice()),
    ) {
        let columns = vec![column("a", Kind::Text), column("b", Kind::Text)];
        let cells: Vec<_> =
            rows.iter().map(|row| row.iter().map(|text| Cell::Text(text)).collect()).collect();
        let (file, _) = csv(columns, Options { delimiter, ..Options::default() }, &cells);
        let read: Vec<[String; 2]> = ::csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .from_reader(file.as_bytes())
            .deserialize()
            .collect::<Result<_, _>>()
            .unwrap();
        prop_assert_eq!(read, rows);
    }
}
