//! CSV for programs is, byte for byte, what `COPY … TO STDOUT (FORMAT csv, HEADER)` sends.

#![expect(clippy::unwrap_used, reason = "these are tests, though not all inside of `#[test]`")]

use std::cell::RefCell;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use chrono_tz::Tz;
use futures::TryStreamExt;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use registrar::report::decode::Decoder;
use registrar::writer::{Column, Format, Options, RowWriter, open};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Column as _, ConnectOptions, Executor, Row, SqlSafeStr, Statement, ValueRef};

/// Zones whose whole history is the same in every build of the IANA database: with half hours,
/// with seconds in old offsets, with a day left out, with clocks that change by rule and by table.
const ZONES: [Tz; 6] = [
    Tz::UTC,
    Tz::Asia__Kolkata,
    Tz::America__St_Johns,
    Tz::Africa__Monrovia,
    Tz::Africa__Casablanca,
    Tz::Pacific__Apia,
];

/// Every type with a decoder: NULL (the shorter lists end in it), extremes and special values.
const EVERY_TYPE: &str = r#"
select * from rows from (
    unnest(array[true, false]),
    unnest(array[0, -1, 32767, -32768]::int2[]),
    unnest(array[0, 9, 10, 99, 100, -2147483648, 2147483647]::int4[]),
    unnest(array[0, 1234567890123, -9223372036854775808, 9223372036854775807]::int8[]),
    unnest(array[0, 4294967295]::oid[]),
    unnest(array[0, '-0', 1, 0.1, 1e5, 999999, 1e6, 123456.7, 1e-4, 1e-5, 0.00012, 16777216,
        3.4028235e38, 1.1754944e-38, 1e-45, 2.5e-39, 8388608.5, 'NaN', 'Infinity', '-Infinity',
        1e10, 2e10, 6.7e9, 5e-20, 67e14, 985e15, 3e-8, 4.1e-44]::float4[]),
    unnest(array[0, '-0', 1, 0.1, 1e14, 999999999999999, 1e15, 123456789012345.6, 1e-4, 1e-5,
        0.000123, 9007199254740993, 1.7976931348623157e308, 2.2250738585072014e-308, 5e-324,
        'NaN', 'Infinity', '-Infinity', 1125899906842624.25, 1125899906842624.75, 5e-20, 67e14,
        985e15, 7693e115, 90054602635948575728e72, 2.0919495182368195e19, 0.1e0 + 0.2e0, 1e22,
        1e23, 9.5367431640625e-7, 4503599627370496.5, 4503599627370497.5, 1.8446744073709552e19,
        1.152921504606847e18, 2.4414062500000003e-4, 8.41e21]::float8[]),
    unnest(array['0', '0.0', '-0.00', '1', '9999', '10000', '10000.0001', '-1', '0.1', '1e-20',
        '123456789012345678901234567890.12345', 'NaN', 'Infinity', '-Infinity', '1e30', '1e131071',
        '0.00000000000000000000000000012340', '-100000000', '1.10', '1e-16383']::numeric[]),
    unnest(array['', 'a', ',', '"', 'a"b', E'a\nb', E'a\r', ' a ', '\.', 'NULL', E'\t', ';', '|',
        'é☕𝄞', '=1+1', E'\\N', '""']),
    unnest(array['', 'a', 'b ,']::varchar(5)[]),
    unnest(array['', 'a', 'b ,']::char(5)[]),
    unnest(array['', 'pg_class', 'a,b']::name[]),
    unnest(array['{"a": [1, 2.50, null], "b": "x,\"y"}', '"=1"', '-5', E' \n1', 'null']::json[]),
    unnest(array['{"a": [1, 2.50, null], "b": "x,\"y"}', '"=1"', '-5', E' \n1', 'null']::jsonb[]),
    unnest(array['', '\x00ff10abcdef', 'abc']::bytea[]),
    unnest(array['2000-01-01', '1999-12-31', '2024-02-29', '1900-03-01', '0001-01-01',
        '0001-12-31 BC', '0005-02-29 BC', '4713-01-01 BC', '9999-12-31', '10000-01-01',
        '5874897-12-31', 'infinity', '-infinity']::date[]),
    unnest(array['2000-01-01', '1999-12-31 23:59:59.999999', '2024-02-29 12:34:56.5',
        '2024-01-01 00:00:00.000001', '2024-01-01 00:00:00.12', '4713-01-01 00:00:00 BC',
        '294276-12-31 23:59:59.999999', '0001-06-01 03:04:05.006 BC', 'infinity', '-infinity'
        ]::timestamp[]),
    unnest(array['2000-01-01 00:00Z', '1999-12-31 23:59:59.999999Z', '1850-01-01 00:00Z',
        '1919-01-01 00:00Z', '1972-01-07 00:44:29Z', '1972-01-07 00:44:30Z', '2011-12-30 12:00Z',
        '2011-12-30 09:59:59Z', '2011-12-30 10:00Z', '2150-07-01 12:00Z', '2400-02-29 00:00Z',
        '4713-01-01 00:00:00Z BC', '0001-01-01 00:00Z', '10000-01-01 00:00Z',
        '294276-12-31 23:59:59.999999Z', 'infinity', '-infinity']::timestamptz[]),
    unnest(array['00:00', '23:59:59.999999', '24:00', '12:34:56.7', '00:00:00.00001']::time[]),
    unnest(array['00000000-0000-0000-0000-000000000000',
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11']::uuid[])
) as t (b, i2, i4, i8, o, f4, f8, "num,eric", "te""xt", vc, c, n, j, jb, by, d, ts, tstz, t, u)"#;

/// Eight centuries in steps that drift over day and year, and one week of changing clocks by the
/// half hour, before and after the tables of the zones end.
const MOMENTS: &str = "
select moment from generate_series('1780-01-01 00:00Z', '2580-01-01 00:00Z',
    interval '197 hours 17 minutes 1.5 seconds') as moment
union all
select moment from unnest(array['1883-11-16Z', '1942-02-08Z', '2024-03-08Z', '2024-03-29Z',
    '2024-10-25Z', '2024-11-01Z', '2099-10-30Z', '2100-03-12Z', '2100-11-05Z', '2101-03-11Z',
    '2399-12-29Z', '2400-03-10Z', '9998-11-01Z']::timestamptz[]) as week
cross join generate_series(week, week + interval '7 days', interval '30 minutes') as moment";

/// Builds of the IANA database differ in what they know of Harare before 1970.
const MOMENTS_SINCE_1970: &str = "
select moment from generate_series('1970-01-01 00:00Z', '2580-01-01 00:00Z',
    interval '197 hours 17 minutes 1.5 seconds') as moment";

/// `COPY` quotes the end marker only where it stands alone on its line.
const ONE_COLUMN: &str = r#"
select t as "\." from unnest(array['\.', '', null, '\.x', ' \.', 'a']) as t"#;

/// Filled by the property test.
const RANDOM: &str = "select * from random_cells order by n";

#[tokio::test]
async fn csv_of_every_type_equals_copy() {
    let mut server = connect().await;
    for zone in ZONES {
        assert_equals_copy(&mut server, EVERY_TYPE, zone).await;
    }
}

#[tokio::test]
async fn csv_of_every_season_equals_copy() {
    let mut server = connect().await;
    for zone in ZONES {
        assert_equals_copy(&mut server, MOMENTS, zone).await;
    }
}

#[tokio::test]
async fn csv_of_a_zone_without_seasons_equals_copy() {
    assert_equals_copy(&mut connect().await, MOMENTS_SINCE_1970, Tz::Africa__Harare).await;
}

#[tokio::test]
async fn csv_of_one_column_equals_copy() {
    assert_equals_copy(&mut connect().await, ONE_COLUMN, Tz::UTC).await;
}

#[test]
fn csv_of_random_values_equals_copy() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut server = runtime.block_on(connect());
    let table = "create temp table random_cells
        (n int, f8 float8, f4 float4, num numeric, t text, ts timestamptz)";
    runtime.block_on(server.execute(table)).unwrap();
    let server = RefCell::new(server);
    let rows = proptest::collection::vec((float8(), float4(), numeric(), text(), any::<i64>()), 64);
    TestRunner::new(ProptestConfig { cases: 160, failure_persistence: None, ..Default::default() })
        .run(&rows, |rows| {
            let server = &mut server.borrow_mut();
            runtime.block_on(fill(server, &rows));
            runtime.block_on(assert_equals_copy(server, RANDOM, Tz::America__St_Johns));
            Ok(())
        })
        .unwrap();
}

/// Values of every size, whole ones, and ones whose shortest digits are near a midpoint.
fn float8() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (1_u64..10_000, -330..310_i32).prop_map(|(m, e)| format!("{m}e{e}").parse().unwrap()),
        (1_u64..1 << 53, -60..70_i32).prop_map(|(m, e)| m as f64 * 2_f64.powi(e)),
        (-1074..1023_i32).prop_map(|e| 2_f64.powi(e)),
        any::<i32>().prop_map(|n| f64::from(n) / 100.0),
    ]
}

fn float4() -> impl Strategy<Value = f32> {
    prop_oneof![
        any::<u32>().prop_map(f32::from_bits),
        (1_u32..1_000, -50..40_i32).prop_map(|(m, e)| format!("{m}e{e}").parse().unwrap()),
        (-149..127_i32).prop_map(|e| 2_f32.powi(e)),
        any::<i16>().prop_map(|n| f32::from(n) / 100.0),
    ]
}

fn numeric() -> impl Strategy<Value = String> {
    "-?[0-9]{1,60}(\\.[0-9]{1,40})?|-?0{0,5}[0-9]?\\.0{0,30}[0-9]{1,9}|NaN|-?Infinity"
}

fn text() -> impl Strategy<Value = String> {
    "[^\u{0}]{0,20}|[a\",;\r\n\\\\. ]{0,6}"
}

async fn fill(server: &mut PgConnection, rows: &[(f64, f32, String, String, i64)]) {
    // Microseconds within what `timestamptz` can hold, around 2000-01-01.
    let micros = |n: &i64| n.rem_euclid(400_000_000_000_000_000) - 200_000_000_000_000_000;
    server.execute("truncate random_cells").await.unwrap();
    sqlx::query(
        "insert into random_cells
         select n, f8, f4, num::numeric, t, '2000-01-01Z'::timestamptz + us * interval '1 us'
         from rows from (unnest($1::float8[]), unnest($2::float4[]), unnest($3::text[]),
             unnest($4::text[]), unnest($5::int8[])) with ordinality as r (f8, f4, num, t, us, n)",
    )
    .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.2.clone()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.3.clone()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| micros(&row.4)).collect::<Vec<_>>())
    .execute(server)
    .await
    .unwrap();
}

async fn connect() -> PgConnection {
    #[expect(clippy::disallowed_methods, reason = "where the tests' server is, not a setting")]
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL must name a live PostgreSQL");
    PgConnectOptions::from_str(&url).unwrap().connect().await.unwrap()
}

async fn assert_equals_copy(server: &mut PgConnection, sql: &'static str, zone: Tz) {
    sqlx::query("select set_config('TimeZone', $1, false)")
        .bind(zone.name())
        .execute(&mut *server)
        .await
        .unwrap();
    let expected = copy(server, sql).await;
    let written = write(server, sql, zone).await;
    if written != expected {
        let (written, expected) =
            (String::from_utf8_lossy(&written), String::from_utf8_lossy(&expected));
        let different = written.split('\n').zip(expected.split('\n')).find(|(a, b)| a != b);
        panic!("{zone}: (written, expected by COPY) = {different:#?}");
    }
}

async fn copy(server: &mut PgConnection, sql: &str) -> Vec<u8> {
    let copy = format!("copy ({sql}) to stdout (format csv, header)");
    let blocks = server.copy_out_raw(&copy).await.unwrap();
    blocks
        .try_fold(Vec::new(), |mut all, block| async move {
            all.extend_from_slice(&block);
            Ok(all)
        })
        .await
        .unwrap()
}

async fn write(server: &mut PgConnection, sql: &'static str, zone: Tz) -> Vec<u8> {
    let statement = server.prepare(sql.into_sql_str()).await.unwrap();
    let decoders: Vec<Decoder> = statement
        .columns()
        .iter()
        .map(|column| Decoder::for_oid(column.type_info().oid().unwrap().0).unwrap())
        .collect();
    let columns = statement.columns().iter().zip(&decoders).map(|(column, decoder)| Column {
        name: column.name().to_owned(),
        label: String::new(),
        kind: decoder.kind(),
        precision: None,
        number_format: None,
        width: None,
    });
    let sink = Sink::default();
    let options = Options { time_zone: zone, ..Options::default() };
    let mut file = open(Format::Csv, columns.collect(), options, sink.clone()).unwrap();
    let mut rows = sqlx::query(sql).fetch(server);
    while let Some(row) = rows.try_next().await.unwrap() {
        write_row(&row, &decoders, &mut *file);
    }
    file.finish(None).unwrap();
    sink.take()
}

fn write_row(row: &sqlx::postgres::PgRow, decoders: &[Decoder], file: &mut dyn RowWriter) {
    for (index, decoder) in decoders.iter().enumerate() {
        let value = row.try_get_raw(index).unwrap();
        let bytes = if value.is_null() { None } else { Some(value.as_bytes().unwrap()) };
        file.cell(decoder.decode(bytes).unwrap()).unwrap();
    }
    file.end_row().unwrap();
}

/// A file in memory that outlives its writer.
#[derive(Debug, Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
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
