//! Rows written to the store as Parquet before they leave their table.
//!
//! Each chunk writes a file for each of its tables, inside its transaction and while its rows are
//! locked, and notes the file in that transaction: a row leaves together with the note of the file
//! that it is in. A file is named by its own SHA-256, so whoever tries a chunk again, or comes too
//! late, never writes over the file of another. What a killed worker left is no part of any note,
//! and is removed when the run is done.
//!
//! The deleting statement's count and hash must be those of the rows in the file, and where the
//! policy says `verify`, the file is read back and compared value by value first. Every column is
//! text, as PostgreSQL writes it: whatever its type, nothing is lost.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool, Row};
use tokio::time::Instant;

use super::archive::row_hash;
use super::catalog::Table;
use super::chunk::Attempt;
use super::error::RetentionError;
use super::run::{self, NewExport, RunStatus};
use super::sql::{TableName, dynamic, list};
use crate::policy::Export;
use crate::store::{ObjectKey, Store};
use crate::writer::parquet::{ParquetWriter, read_texts};
use crate::writer::{Cell, Column, Kind, Options, RowWriter, WriteError};

/// Most bytes of text in a file, which is made in memory; a row alone may have more.
const MAX_FILE_BYTES: usize = 64 << 20;
/// How long a file may take to be written, and to be read back.
const STORE_LIMIT: Duration = Duration::from_secs(30);
/// Expired files that a run removes; the next goes on.
const MAX_EXPIRED: i64 = 10_000;

/// Writes the files of one run.
#[derive(Debug, Clone, Copy)]
pub struct Exporter<'a> {
    /// Where they go.
    pub store: &'a Store,
    /// The run.
    pub run_id: i64,
    /// What the policy says.
    pub declared: Export,
}

/// Rows that stand in a file and may leave.
#[derive(Debug)]
pub struct Exported {
    /// How many.
    pub rows: i64,
    /// Exclusive or of their hashes.
    pub hash: i64,
    /// Time that the store took.
    pub took: Duration,
    file: Option<File>,
}

#[derive(Debug)]
struct File {
    path: String,
    bytes: usize,
    sha256: String,
}

/// Rows to be written, which the caller has locked.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Their table.
    pub table: &'a Table,
    /// Where they are: the table, or a partition of it.
    pub source: &'a TableName,
    /// SQL behind a condition, over the row under its table's name.
    pub condition: String,
    /// Their places there.
    pub places: &'a [String],
}

type Texts = Vec<Vec<Option<String>>>;

impl Exporter<'_> {
    /// Writes the rows that are wanted, as far as their condition is true. `None`: they are too
    /// many for one file.
    ///
    /// # Errors
    /// [`RetentionError::Store`]; [`RetentionError::Unequal`] when what is read back is not what
    /// was written: then nothing may leave.
    pub async fn write(
        &self,
        connection: &mut PgConnection,
        wanted: &Wanted<'_>,
        number: i32,
    ) -> Result<Option<Exported>, RetentionError> {
        let table = wanted.table;
        let read = read_rows(connection, wanted).await?;
        let Some((rows, hash)) = read else { return Ok(None) };
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        if rows.is_empty() {
            return Ok(Some(Exported { rows: 0, hash, took: Duration::ZERO, file: None }));
        }
        let columns: Vec<_> = table.columns.iter().map(|c| text_column(c.name.as_str())).collect();
        // Compressing thousands of rows is no work for the runtime's threads.
        let encode = move || encode(columns, &rows).map(|file| (rows, file));
        let (rows, file) = blocking(encode).await?.map_err(|error| failed(&error.to_string()))?;
        let sha256 = hex::encode(Sha256::digest(&file));
        let name = table.name.plain();
        let key =
            ObjectKey::ArchiveFile { run: self.run_id, table: &name, number, sha256: &sha256 };
        let (path, bytes) = (key.path(), file.len());
        let began = Instant::now();
        in_time(self.store.put(&path, file)).await?;
        let mut took = began.elapsed();
        if self.declared.verify {
            let began = Instant::now();
            let stored = in_time(self.store.get(&path)).await?;
            took += began.elapsed();
            let is_same =
                blocking(move || read_texts(stored).is_ok_and(|stored| stored == rows)).await?;
            if !is_same {
                return Err(RetentionError::Unequal { table: name });
            }
        }
        let file = Some(File { path: path.to_string(), bytes, sha256 });
        Ok(Some(Exported { rows: count, hash, took, file }))
    }

    /// Notes the file in the transaction in which its rows leave.
    ///
    /// # Errors
    /// The database's.
    pub async fn note(
        &self,
        connection: &mut PgConnection,
        position: i32,
        number: i32,
        exported: &Exported,
    ) -> Result<(), RetentionError> {
        let Some(file) = &exported.file else { return Ok(()) };
        let keep = self.declared.keep.map(|keep| (keep.calendar(), keep.elapsed()));
        let new = NewExport {
            position,
            number,
            object_path: &file.path,
            row_count: exported.rows,
            size_bytes: i64::try_from(file.bytes).unwrap_or(i64::MAX),
            sha256: &file.sha256,
            keep,
        };
        Ok(run::insert_export(connection, self.run_id, &new).await?)
    }
}

/// Removes files of the run that no chunk has noted: those of workers that were killed.
///
/// # Errors
/// [`RetentionError::Lost`]; [`RetentionError::Store`]
pub async fn sweep(db: &PgPool, store: &Store, attempt: &Attempt) -> Result<(), RetentionError> {
    let mut tx = db.begin().await?;
    // The run's row stays locked: nobody writes files of it meanwhile.
    let Attempt { run_id, number, lease_secs, .. } = *attempt;
    if !run::beat(&mut tx, run_id, number, lease_secs).await? {
        return Err(RetentionError::Lost);
    }
    remove_unnoted(&mut tx, store, run_id).await?;
    Ok(tx.commit().await?)
}

/// The same for a run that failed or was cancelled. Nothing is done to one that can go on.
///
/// # Errors
/// [`RetentionError::Store`]
pub async fn sweep_ended(db: &PgPool, store: &Store, run_id: i64) -> Result<(), RetentionError> {
    let mut tx = db.begin().await?;
    let status = run::lock(&mut tx, run_id).await?;
    if matches!(status, Some(RunStatus::Failed | RunStatus::Cancelled)) {
        remove_unnoted(&mut tx, store, run_id).await?;
    }
    Ok(tx.commit().await?)
}

/// The caller holds the run's row.
async fn remove_unnoted(
    connection: &mut PgConnection,
    store: &Store,
    run_id: i64,
) -> Result<(), RetentionError> {
    let noted: BTreeSet<_> = run::export_paths(connection, run_id).await?.into_iter().collect();
    for object in in_time(store.list(&ObjectKey::archive_folder(run_id))).await? {
        if !noted.contains(&object.location.to_string()) {
            in_time(store.delete(&object.location)).await?;
        }
    }
    Ok(())
}

/// Removes files that were kept for as long as their policy said, of whatever run. Those of a table
/// that a hold concerns stay.
///
/// # Errors
/// [`RetentionError::Store`]; what was removed is noted.
pub async fn remove_expired(db: &PgPool, store: &Store) -> Result<(), RetentionError> {
    let mut connection = db.acquire().await?;
    for expired in run::expired_exports(&mut connection, MAX_EXPIRED).await? {
        store.delete(&expired.object_path.as_str().into()).await?;
        run::note_removed(&mut connection, &expired).await?;
    }
    Ok(())
}

/// The rows as text with the hash over all of them; `None` if they are too many for one file.
async fn read_rows(
    connection: &mut PgConnection,
    wanted: &Wanted<'_>,
) -> Result<Option<(Texts, i64)>, RetentionError> {
    let Wanted { table, source, condition, places } = wanted;
    let alias = &table.name.name;
    let columns: Vec<_> = table.columns.iter().map(|column| &column.name).collect();
    let texts: Vec<_> = columns.iter().map(|name| format!("{alias}.{name}::text")).collect();
    let statement = dynamic(format!(
        "select array[{}] as row, {} as hash
           from {source} as {alias}
          where {alias}.ctid = any ($1::text[]::tid[]){condition}
          order by {}",
        texts.join(", "),
        row_hash(table, &alias.to_string(), &columns),
        list(&format!("{alias}."), &table.primary_key),
    ));
    let mut stream = sqlx::query(statement).bind(*places).persistent(false).fetch(connection);
    let (mut rows, mut hash, mut bytes) = (Texts::new(), 0, 0);
    while let Some(row) = stream.try_next().await? {
        let texts: Vec<Option<String>> = row.get("row");
        bytes += texts.iter().flatten().map(String::len).sum::<usize>();
        hash ^= row.get::<i64, _>("hash");
        rows.push(texts);
        if bytes > MAX_FILE_BYTES && rows.len() > 1 {
            return Ok(None);
        }
    }
    Ok(Some((rows, hash)))
}

/// Work of the store while rows are locked.
pub(super) async fn in_time<T, E>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, RetentionError>
where
    RetentionError: From<E>,
{
    match tokio::time::timeout(STORE_LIMIT, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(RetentionError::SlowStore { limit: STORE_LIMIT }),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RetentionError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| failed("the thread of it panicked"))
}

fn failed(why: &str) -> RetentionError {
    RetentionError::refused("export_failed", format!("rows cannot be exported: {why}"))
}

fn encode(columns: Vec<Column>, rows: &Texts) -> Result<Bytes, WriteError> {
    let sink = Sink::default();
    let writer = ParquetWriter::new(columns, &Options::default(), sink.clone())?;
    let mut writer: Box<dyn RowWriter> = Box::new(writer);
    for row in rows {
        for cell in row {
            writer.cell(cell.as_deref().map_or(Cell::Null, Cell::Text))?;
        }
        writer.end_row()?;
    }
    writer.finish(None)?;
    let bytes = std::mem::take(&mut *sink.0.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(bytes.into())
}

fn text_column(name: &str) -> Column {
    Column {
        name: name.to_owned(),
        label: name.to_owned(),
        kind: Kind::Text,
        precision: None,
        number_format: None,
        width: None,
    }
}

/// A file in memory.
#[derive(Debug, Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
