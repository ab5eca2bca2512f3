//! `docs/formats.md` says how each special value looks in each format. Its table is this test's
//! data: every value is asked of a live server and written by the pipeline of reports.

use std::fmt::Write as _;
use std::io::Cursor;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use calamine::{Data, Reader as _, Xlsx};
use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Timelike};
use chrono_tz::Tz;
use parquet::basic::LogicalType;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use registrar::report::decode::Decoder;
use registrar::report::parameters::Value;
use registrar::report::pipeline::{self, Ceiling, Destination, Layout, Watch};
use registrar::report::reading::{Query, Reading};
use registrar::report::source::{CheckedQuery, ReportDatabase, Session, SessionLimits};
use registrar::writer::{Column, Format, Kind, Options, Precision, Summary};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection};
use tokio::io::AsyncReadExt;

use crate::support::database::{Contents, TestDatabase, sql};

const DOCUMENT: &str = include_str!("../../docs/formats.md");
/// The zone that the document's table is in.
const ZONE: Tz = Tz::America__St_Johns;
/// Longer values are told by their beginning and length, in characters.
const SHOWN: usize = 48;
/// Follows a rendering that the manifest counts as adjusted.
const ADJUSTED: &str = " †";

#[tokio::test]
async fn special_values_look_as_the_document_says() {
    let database = TestDatabase::create(Contents::Nothing).await;
    let mut server = PgConnection::connect(&database.url).await.unwrap();
    let schema = DOCUMENT.split("```sql").nth(1).unwrap().split("```").next().unwrap();
    server.execute(sqlx::raw_sql(sql(schema))).await.unwrap();
    let mut session = begin(&database).await;
    let (mut found, documented) = (String::new(), table());
    for line in documented.lines() {
        let query = line.split('`').nth(1).unwrap();
        let shown = render(&mut session, query).await;
        let cells: Vec<_> = shown.iter().map(|shown| cell(shown)).collect();
        writeln!(found, "| `{query}` | {} |", cells.join(" | ")).unwrap();
        compare_with_to_json(&mut server, &mut session, query, &shown[3]).await;
    }
    session.close().await;
    assert!(documented.lines().count() > 70);
    let different = documented.lines().zip(found.lines()).filter(|(a, b)| a != b);
    let different: Vec<_> = different.map(|(_, found)| found).collect();
    assert!(different.is_empty(), "the document says otherwise of:\n{}", different.join("\n"));
    database.drop_now().await;
}

#[tokio::test]
async fn bounds_of_decimals_are_found_or_unknown_but_never_wrong() {
    let database = TestDatabase::create(Contents::Nothing).await;
    let mut server = PgConnection::connect(&database.url).await.unwrap();
    let schema = "create domain price as numeric(12, 2);
        create table deal (n numeric(10, 2), d price, free numeric, wide numeric(50, 2));
        create view seen as select n, n + 1 as more, sum(d)::numeric(20, 4) as total
            from deal group by n";
    server.execute(sqlx::raw_sql(schema)).await.unwrap();
    let mut session = begin(&database).await;
    let value = Value::Numeric("1.25".to_owned());
    for (query, expected) in [
        ("select n, d, free, wide from deal", [Some((10, 2)), Some((12, 2)), None, None]),
        (
            "select n, n::numeric(9, 1), round(n, 1), round(n, 1)::numeric(9, 1) from deal
              where n > $1::numeric order by n + 1",
            [Some((10, 2)), Some((9, 1)), None, Some((9, 1))],
        ),
        (
            "select n, more, total, total + 0::numeric(20, 4) from seen where n <> $1::numeric",
            [Some((10, 2)), None, Some((20, 4)), None],
        ),
        (
            "select n, coalesce(n, 0::numeric(10, 2)), max(n), sum(n)::numeric(38, 2) from deal
              group by n",
            [Some((10, 2)), Some((10, 2)), None, Some((38, 2))],
        ),
        (
            "select n, 1::numeric(5, 2), 1.00, $1::numeric::numeric(7, 3) from deal",
            [Some((10, 2)), Some((5, 2)), None, Some((7, 3))],
        ),
    ] {
        let mut checked = session.check(query).await.unwrap();
        let bound = std::slice::from_ref(&value).iter().take(query.matches("$1").count());
        session.find_precisions(&mut checked, || bound.clone()).await.unwrap();
        let found: Vec<_> = checked.columns.iter().map(|column| column.precision).collect();
        let decimal = |(precision, scale)| Precision::Decimal { precision, scale };
        assert_eq!(found, expected.map(|bounds| bounds.map(decimal)), "{query}");
    }
    session.close().await;
    database.drop_now().await;
}

async fn begin(database: &TestDatabase) -> Session {
    let reports = ReportDatabase::new(PgConnectOptions::from_str(&database.url).unwrap());
    let limits = SessionLimits {
        timeout: Duration::from_secs(60),
        lock_timeout: Duration::from_secs(1),
        time_zone: ZONE.name().to_owned(),
    };
    reports.begin(&limits, "special values").await.unwrap()
}

/// The rows of the document's table of values.
fn table() -> String {
    let table = DOCUMENT.split("## Special values").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.fold(String::new(), |all, line| all + line + "\n")
}

/// A rendering as a cell of the table: code, or words where there is nothing to show.
fn cell(shown: &str) -> String {
    let (value, mark) = shown.strip_suffix(ADJUSTED).map_or((shown, ""), |value| (value, ADJUSTED));
    if value.is_empty() { format!("nothing{mark}") } else { format!("`{value}`{mark}") }
}

/// How CSV, XLSX, Parquet and NDJSON show one value.
async fn render(session: &mut Session, expression: &str) -> [String; 4] {
    let sql = format!("select {expression} as v from deal");
    let mut query = session.check(&sql).await.unwrap();
    session.find_precisions(&mut query, std::iter::empty).await.unwrap();
    let mut shown = Vec::new();
    for format in Format::ALL {
        let (file, summary) = write(session, &query, format).await;
        let value = match format {
            Format::Csv => visible(&csv_field(&file)),
            Format::Xlsx => workbook_value(file, query.columns[0].decoder.kind()),
            Format::Parquet => parquet_value(file),
            Format::Ndjson => visible(&json_value(&file)),
        };
        let is_adjusted = !summary.adjusted.is_empty();
        shown.push(if is_adjusted { value + ADJUSTED } else { value });
    }
    shown.try_into().unwrap()
}

async fn write(session: &mut Session, query: &CheckedQuery, format: Format) -> (Vec<u8>, Summary) {
    let source = &query.columns;
    let column = Column {
        name: source[0].name.clone(),
        label: source[0].name.clone(),
        kind: source[0].decoder.kind(),
        precision: source[0].precision,
        number_format: None,
        width: None,
    };
    let layout = Layout {
        format,
        columns: vec![column],
        options: Options { time_zone: ZONE, ..Options::default() },
        part_bytes: 1 << 20,
    };
    let ceiling = Ceiling { max_rows: 1, max_bytes: 1 << 30, truncate: false };
    let (stream, mut end) = tokio::io::duplex(64 * 1024);
    let queries = vec![Query { checked: query.clone(), values: Vec::new() }];
    let sources = vec![query.columns.clone()];
    let writing = async move {
        let mut destination = Destination::Stream(Box::new(stream));
        let watch = Arc::new(Watch::default());
        let reading = Reading::Queries(session, queries);
        pipeline::run(reading, sources, layout, ceiling, &mut destination, &watch).await.unwrap()
    };
    let mut file = Vec::new();
    let (written, read) = tokio::join!(writing, end.read_to_end(&mut file));
    read.unwrap();
    assert_eq!(written.summary.rows, 1);
    (file, written.summary)
}

/// What stands below the header.
fn csv_field(file: &[u8]) -> String {
    let text = std::str::from_utf8(file).unwrap();
    text.strip_prefix("v\n").unwrap().strip_suffix('\n').unwrap().to_owned()
}

fn json_value(file: &[u8]) -> String {
    let line = std::str::from_utf8(file).unwrap().strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'));
    serde_json::from_str::<serde_json::Value>(line).unwrap();
    line.strip_prefix("{\"v\":").unwrap().strip_suffix('}').unwrap().to_owned()
}

fn workbook_value(file: Vec<u8>, kind: Kind) -> String {
    let range = Xlsx::new(Cursor::new(file)).unwrap().worksheets().remove(0).1;
    match range.get_value((1, 0)).unwrap_or(&Data::Empty) {
        Data::Empty => String::new(),
        Data::String(text) => quoted(text),
        Data::Bool(value) => value.to_string().to_uppercase(),
        Data::Float(value) => number(*value),
        Data::DateTime(value) if kind == Kind::Time => {
            let micros = (value.as_f64() * 86_400e6).round() as i64;
            (NaiveTime::MIN + TimeDelta::microseconds(micros)).to_string()
        }
        Data::DateTime(value) => {
            let moment = value.as_datetime().unwrap();
            let is_day = kind == Kind::Date && moment.num_seconds_from_midnight() == 0;
            if is_day { moment.date().to_string() } else { moment.to_string() }
        }
        other => panic!("{other:?}"),
    }
}

fn parquet_value(file: Vec<u8>) -> String {
    let reader = SerializedFileReader::new(Bytes::from(file)).unwrap();
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let is_instant = match schema.column(0).logical_type_ref() {
        Some(LogicalType::Timestamp(timestamp)) => timestamp.is_adjusted_to_u_t_c,
        _ => false,
    };
    let row = reader.get_row_iter(None).unwrap().next().unwrap().unwrap();
    let field = row.get_column_iter().next().unwrap().1.clone();
    match field {
        Field::Null => String::new(),
        Field::Str(text) => quoted(&text),
        Field::Bytes(bytes) => format!("bytes {}", hex::encode(bytes.data())).trim_end().to_owned(),
        Field::Date(days) => (NaiveDate::default() + TimeDelta::days(days.into())).to_string(),
        Field::TimestampMicros(micros) => {
            let moment = DateTime::from_timestamp_micros(micros).unwrap().naive_utc();
            format!("{moment}{}", if is_instant { "Z" } else { "" })
        }
        Field::TimeMicros(micros) => (NaiveTime::MIN + TimeDelta::microseconds(micros)).to_string(),
        Field::Float(value) => value.to_string(),
        Field::Double(value) => number(value),
        other => other.to_string(),
    }
}

/// What `to_json` says of a value that is written as itself.
async fn compare_with_to_json(
    server: &mut PgConnection,
    session: &mut Session,
    expression: &str,
    shown: &str,
) {
    let query = session.check(&format!("select {expression} as v from deal")).await.unwrap();
    let column = &query.columns[0];
    let is_text = matches!(&*column.type_name, "text" | "varchar" | "char" | "name" | "mood");
    let is_own = match column.decoder {
        Decoder::Text => !is_text,
        decoder => decoder == Decoder::Oid, // a number to us
    };
    if is_own || shown.ends_with(ADJUSTED) {
        return;
    }
    server.execute(sql(format!("set timezone = '{}'", ZONE.name()))).await.unwrap();
    let select = format!(
        "select coalesce(to_json(v)::text, 'null') from (select {expression} as v from deal) as one"
    );
    let expected: String = sqlx::query_scalar(sql(select)).fetch_one(server).await.unwrap();
    // Line ends inside of JSON are written as spaces.
    assert_eq!(shown, visible(&expected.replace('\n', " ")), "{expression}");
}

fn quoted(text: &str) -> String {
    visible(&format!("\"{text}\""))
}

fn number(value: f64) -> String {
    let is_plain = value == 0.0 || (1e-4..1e16).contains(&value.abs()) || !value.is_finite();
    if is_plain { value.to_string() } else { format!("{value:e}") }
}

/// The text on one line, without control characters, and not too long.
fn visible(text: &str) -> String {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let (inner, quote) = inner.map_or((text, ""), |inner| (inner, "\""));
    let length = inner.chars().count();
    if length > SHOWN {
        let start: String = inner.chars().take(SHOWN / 8).collect();
        return format!("{quote}{start}…{quote} {length} characters");
    }
    text.chars().fold(String::new(), |text, character| match character {
        character if character.is_control() => text + &character.escape_default().to_string(),
        character => text + &character.to_string(),
    })
}
