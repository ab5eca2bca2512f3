//! The library alone, in its constant-memory mode, as a careful user would: formats on columns,
//! typed cells without a detour over text, the server read while the sheet is written.

use std::path::PathBuf;

use clap::Args;
use futures::TryStreamExt;
use registrar::report::decode::Decoder;
use registrar::writer::{Cell, Kind, Numeric, NumericSign};
use rust_xlsxwriter::{Format, Workbook, Worksheet};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{Column, ConnectOptions, Row, SqlSafeStr, ValueRef};
use tokio::sync::mpsc;

use crate::data;
use crate::outcome::tell_usage;

/// Rows in one message to the thread that writes.
const BATCH_ROWS: usize = 256;
/// Days from Excel's epoch to PostgreSQL's.
const EPOCH: f64 = 36_526.0;
const MICROS_PER_DAY: f64 = 86_400_000_000.0;

/// What to export, and where to.
#[derive(Debug, Args)]
pub struct LibraryArgs {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[arg(long)]
    rows: u64,
    /// The library's own where it is left out.
    #[arg(long)]
    level: Option<u8>,
    #[arg(long)]
    out: PathBuf,
}

/// Runs one export and tells on standard output what it took.
pub async fn run(arguments: &LibraryArgs) -> anyhow::Result<()> {
    let options: PgConnectOptions = arguments.database_url.parse()?;
    let mut connection = options.disable_statement_logging().connect().await?;
    let (batches, incoming) = mpsc::channel(4);
    let (level, out) = (arguments.level, arguments.out.clone());
    let writing = tokio::task::spawn_blocking(move || write(incoming, level, &out));
    let mut rows = sqlx::query(dynamic(data::query(arguments.rows))).fetch(&mut connection);
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    while let Some(row) = rows.try_next().await? {
        batch.push(row);
        if batch.len() == BATCH_ROWS {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_ROWS));
            if batches.send(full).await.is_err() {
                break; // the writer says why
            }
        }
    }
    let _ = batches.send(batch).await;
    drop(batches);
    writing.await??;
    tell_usage()
}

#[expect(clippy::disallowed_methods, reason = "the benchmark's own query")]
fn dynamic(sql: String) -> sqlx::SqlStr {
    sqlx::AssertSqlSafe(sql).into_sql_str()
}

fn write(
    mut incoming: mpsc::Receiver<Vec<PgRow>>,
    level: Option<u8>,
    out: &std::path::Path,
) -> anyhow::Result<()> {
    let mut workbook = Workbook::new();
    if let Some(level) = level {
        workbook.set_zip_compression_level(level);
    }
    let sheet = workbook.add_worksheet_with_constant_memory()?;
    let mut decoders: Vec<Decoder> = Vec::new();
    let mut number = 0;
    while let Some(rows) = incoming.blocking_recv() {
        for row in &rows {
            if number == 0 {
                decoders = begin(sheet, row)?;
            }
            number += 1;
            for (column, decoder) in (0..).zip(&decoders) {
                let raw = row.try_get_raw(usize::from(column))?;
                let bytes = if raw.is_null() { None } else { raw.as_bytes().ok() };
                push(sheet, number, column, decoder.decode(bytes)?)?;
            }
        }
    }
    let last_column = decoders.len().saturating_sub(1) as u16;
    sheet.autofilter(0, 0, number, last_column)?;
    workbook.save(out)?;
    Ok(())
}

/// Formats, header and panes.
fn begin(sheet: &mut Worksheet, row: &PgRow) -> anyhow::Result<Vec<Decoder>> {
    let mut decoders = Vec::new();
    for (index, column) in (0..).zip(row.columns()) {
        let oid = column.type_info().oid().map_or(0, |oid| oid.0);
        let decoder = Decoder::for_oid(oid);
        let decoder =
            decoder.ok_or_else(|| anyhow::anyhow!("no decoder for {}", column.type_info()))?;
        // The same as in our file, so that the sizes can be compared.
        let format = match decoder.kind() {
            Kind::Int => Some("0"),
            Kind::Date => Some("yyyy-mm-dd"),
            Kind::TimestampTz => Some("yyyy-mm-dd hh:mm:ss"),
            _ => None,
        };
        if let Some(format) = format {
            sheet.set_column_format(index, &Format::new().set_num_format(format))?;
        }
        decoders.push(decoder);
    }
    let bold = Format::new().set_bold();
    for (index, column) in (0..).zip(row.columns()) {
        sheet.write_string_with_format(0, index, column.name(), &bold)?;
    }
    sheet.set_freeze_panes(1, 0)?;
    Ok(decoders)
}

fn push(sheet: &mut Worksheet, row: u32, column: u16, cell: Cell<'_>) -> anyhow::Result<()> {
    match cell {
        Cell::Null => return Ok(()),
        Cell::Bool(value) => sheet.write_boolean(row, column, value)?,
        Cell::Int(value) => sheet.write_number(row, column, value as f64)?,
        Cell::Numeric(value) => sheet.write_number(row, column, number(&value))?,
        Cell::Text(text) | Cell::Json(text) => sheet.write_string(row, column, text)?,
        Cell::Date(days) => sheet.write_number(row, column, f64::from(days) + EPOCH)?,
        Cell::TimestampTz(micros) => {
            sheet.write_number(row, column, micros as f64 / MICROS_PER_DAY + EPOCH)?
        }
        Cell::Float4(_)
        | Cell::Float8(_)
        | Cell::Bytes(_)
        | Cell::Timestamp(_)
        | Cell::Time(_)
        | Cell::Uuid(_) => anyhow::bail!("the query has no such column"),
    };
    Ok(())
}

/// The nearest number, as reading the decimal's text would give it.
fn number(value: &Numeric<'_>) -> f64 {
    let mut scale = 0;
    let mut whole = 0.0;
    for digit in value.digits.chunks_exact(2) {
        whole = whole * 10_000.0 + f64::from(u16::from_be_bytes([digit[0], digit[1]]));
        scale += 1;
    }
    let magnitude = whole / 10_000_f64.powi(scale - 1 - i32::from(value.weight));
    if value.sign == NumericSign::Negative { -magnitude } else { magnitude }
}
