//! Rows → cells → file → parts, with back pressure and bounded memory.
//!
//! ```text
//!  server ──rows──► read ──batches──► write (own thread) ──parts──► send ──► store
//!                   task    ≤ 4        decode, format, hash   ≤ 1     task   ≤ 2 in flight
//! ```
//! Every arrow is a bounded channel: a slow store makes the server wait, and memory does not grow
//! with the result. Formatting and compression block, so they have a thread of their own and the
//! runtime's threads stay free for heartbeats.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::error::ReportError;
use super::parameters::Value;
use super::source::{CheckedQuery, Session, SourceColumn};
use crate::store::Upload;
use crate::writer::{self, Column, Format, Options, Summary, WriteError};

/// Batches between the reader and the writer.
const BATCHES_IN_FLIGHT: usize = 4;
/// A batch is handed on at this many rows …
const BATCH_ROWS: usize = 256;
/// … or at this many bytes of values, whichever comes first.
const BATCH_BYTES: usize = 256 * 1024;

/// Where the file goes.
pub enum Destination {
    /// Into the store, visible when whole.
    Store(Upload),
    /// To a stream, for example standard output.
    Stream(Box<dyn AsyncWrite + Send + Unpin>),
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Store(_) => "Destination::Store",
            Self::Stream(_) => "Destination::Stream",
        })
    }
}

impl Destination {
    async fn put(&mut self, part: Bytes) -> Result<(), ReportError> {
        match self {
            Self::Store(upload) => Ok(upload.put(part).await?),
            Self::Stream(stream) => stream.write_all(&part).await.map_err(stream_failed),
        }
    }

    async fn complete(&mut self) -> Result<(), ReportError> {
        match self {
            Self::Store(upload) => Ok(upload.complete().await?),
            Self::Stream(stream) => stream.flush().await.map_err(stream_failed),
        }
    }

    /// Takes back what was sent, where that is possible.
    pub async fn abort(&mut self) {
        match self {
            Self::Store(upload) => upload.abort().await,
            Self::Stream(_) => {}
        }
    }
}

fn stream_failed(error: io::Error) -> ReportError {
    ReportError::Write(WriteError::Io(error))
}

/// How far an attempt is, and whether it may go on. Shared between the pipeline and whoever
/// watches it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Rows read so far.
    pub rows: AtomicU64,
    /// Bytes of the file so far.
    pub bytes: AtomicU64,
    /// Ends the attempt.
    pub stop: CancellationToken,
}

/// What the pipeline may produce.
#[derive(Debug, Clone, Copy)]
pub struct Ceiling {
    /// Most rows.
    pub max_rows: u64,
    /// Largest file.
    pub max_bytes: u64,
    /// Over a ceiling: cut and say so, instead of failing.
    pub truncate: bool,
}

/// What the pipeline produced.
#[derive(Debug)]
pub struct Written {
    /// Rows, sheets and adjusted cells.
    pub summary: Summary,
    /// Size of the file.
    pub size_bytes: u64,
    /// Its SHA-256, in hex.
    pub sha256: String,
    /// The sentence that says where it was cut, if it was.
    pub truncated: Option<String>,
}

/// What the file is to look like.
#[derive(Debug)]
pub struct Layout {
    /// Its format.
    pub format: Format,
    /// Its columns, in the order of the source's.
    pub columns: Vec<Column>,
    /// Reader, zone and the like.
    pub options: Options,
    /// Size of the parts it is sent in.
    pub part_bytes: usize,
}

/// A query of a run, with the values of its parameters.
#[derive(Debug)]
pub struct Query<'a> {
    /// The query as the server has checked it.
    pub checked: CheckedQuery,
    /// The values in the order of its placeholders.
    pub values: Vec<&'a Value>,
}

enum Message {
    Rows(Vec<PgRow>),
    /// What follows are the rows of the next query.
    NextSheet,
    /// There are no more rows; the sentence says why, if there were some.
    End(Option<String>),
}

/// Runs queries one after another, a sheet each, into one file. On an error nothing is visible:
/// what was sent is taken back.
///
/// # Errors
/// [`ReportError`]
pub async fn run(
    session: &mut Session,
    queries: Vec<Query<'_>>,
    layout: Layout,
    ceiling: Ceiling,
    destination: &mut Destination,
    watch: &Arc<Watch>,
) -> Result<Written, ReportError> {
    let (batches, incoming) = mpsc::channel(BATCHES_IN_FLIGHT);
    let (parts, mut outgoing) = mpsc::channel::<Bytes>(1);
    let sink = PartSink::new(parts, layout.part_bytes, Arc::clone(watch));
    let source: Vec<_> = queries.iter().map(|query| query.checked.columns.clone()).collect();
    let writing =
        tokio::task::spawn_blocking(move || write(incoming, &source, layout, ceiling, sink));
    let sending = async {
        while let Some(part) = outgoing.recv().await {
            destination.put(part).await?;
        }
        Ok(())
    };
    // Whichever side fails first ends the others: its channel closes.
    let moved = tokio::select! {
        moved = futures::future::try_join(read_all(session, queries, batches, ceiling, watch), sending) => {
            moved.map(|_| ())
        }
        () = watch.stop.cancelled() => Err(ReportError::Stopped),
    };
    drop(outgoing);
    let written = writing.await.unwrap_or_else(|_| Err(ReportError::Panicked));
    let done = match (moved, written) {
        // The writer's own error explains why its channels closed.
        (Ok(()), written) => written,
        (Err(ReportError::Stopped), _) => Err(ReportError::Stopped),
        (Err(error), _) => Err(error),
    };
    let done = match done {
        // A store that does not answer the last request must not outlive a stop either.
        Ok(written) => tokio::select! {
            completed = destination.complete() => completed.map(|()| written),
            () = watch.stop.cancelled() => Err(ReportError::Stopped),
        },
        Err(error) => Err(error),
    };
    if done.is_err() {
        destination.abort().await;
    }
    done
}

/// Reads the rows of each query in turn. The limit of rows is that of all of them together.
async fn read_all(
    session: &mut Session,
    queries: Vec<Query<'_>>,
    batches: mpsc::Sender<Message>,
    ceiling: Ceiling,
    watch: &Watch,
) -> Result<(), ReportError> {
    let mut count: u64 = 0;
    let mut end = None;
    for (index, Query { checked, values }) in queries.into_iter().enumerate() {
        if index > 0 && batches.send(Message::NextSheet).await.is_err() {
            return Ok(()); // the writer has ended, and says why
        }
        let rows = session.rows(&checked, values.into_iter())?;
        end = read(rows, &batches, ceiling, &mut count, watch).await?;
        if end.is_some() {
            break;
        }
    }
    let _ended = batches.send(Message::End(end)).await;
    Ok(())
}

/// Reads rows into batches until there are no more, or one more than there may be: then it returns
/// the sentence that says so. If the writer has ended, it says why itself.
async fn read(
    mut rows: BoxStream<'_, Result<PgRow, sqlx::Error>>,
    batches: &mpsc::Sender<Message>,
    ceiling: Ceiling,
    count: &mut u64,
    watch: &Watch,
) -> Result<Option<String>, ReportError> {
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    let mut batch_bytes = 0;
    let mut end = None;
    while let Some(row) = rows.try_next().await? {
        if *count == ceiling.max_rows {
            if !ceiling.truncate {
                return Err(ReportError::RowLimit { max_rows: ceiling.max_rows });
            }
            end = Some(format!("Cut at the limit of {} rows: there are more.", ceiling.max_rows));
            break;
        }
        *count += 1;
        batch_bytes += value_bytes(&row);
        batch.push(row);
        if batch.len() == BATCH_ROWS || batch_bytes >= BATCH_BYTES {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_ROWS));
            batch_bytes = 0;
            if batches.send(Message::Rows(full)).await.is_err() {
                return Ok(None);
            }
            watch.rows.store(*count, Ordering::Relaxed);
        }
    }
    watch.rows.store(*count, Ordering::Relaxed);
    if !batch.is_empty() && batches.send(Message::Rows(batch)).await.is_err() {
        return Ok(None);
    }
    Ok(end)
}

fn value_bytes(row: &PgRow) -> usize {
    (0..row.len())
        .filter_map(|index| row.try_get_raw(index).ok())
        .filter(|value| !value.is_null())
        .map(|value| value.as_bytes().map_or(0, <[u8]>::len))
        .sum()
}

/// The writer's thread.
fn write(
    mut incoming: mpsc::Receiver<Message>,
    sources: &[Vec<SourceColumn>],
    layout: Layout,
    ceiling: Ceiling,
    sink: PartSink,
) -> Result<Written, ReportError> {
    let shared = sink.clone();
    let mut writer = writer::open(layout.format, layout.columns, layout.options, sink)?;
    let mut sources = sources.iter();
    let mut source = sources.next().ok_or(WriteError::NoSuchSheet)?;
    let truncated = loop {
        match incoming.blocking_recv() {
            Some(Message::Rows(rows)) => {
                for row in &rows {
                    write_row(writer.as_mut(), row, source)?;
                }
            }
            Some(Message::NextSheet) => {
                writer.next_sheet()?;
                source = sources.next().ok_or(WriteError::NoSuchSheet)?;
            }
            Some(Message::End(truncated)) => break truncated,
            None => return Err(ReportError::Stopped),
        }
        if shared.size_bytes() > ceiling.max_bytes {
            if !ceiling.truncate {
                return Err(ReportError::ByteLimit { max_bytes: ceiling.max_bytes });
            }
            incoming.close();
            break Some(format!(
                "Cut at the limit of {} bytes: there are more rows.",
                ceiling.max_bytes
            ));
        }
    };
    let summary = writer.finish(truncated.as_deref())?;
    let (size_bytes, sha256) = shared.finish().map_err(WriteError::Io)?;
    Ok(Written { summary, size_bytes, sha256, truncated })
}

fn write_row(
    writer: &mut dyn writer::RowWriter,
    row: &PgRow,
    source: &[SourceColumn],
) -> Result<(), ReportError> {
    for (index, column) in source.iter().enumerate() {
        let raw = row.try_get_raw(index)?;
        let bytes = if raw.is_null() { None } else { raw.as_bytes().ok() };
        let cell = column
            .decoder
            .decode(bytes)
            .map_err(|source| ReportError::Decode { column: column.name.clone(), source })?;
        writer.cell(cell)?;
    }
    Ok(writer.end_row()?)
}

/// Cuts what a writer writes into parts, and counts and hashes on the way. Clones share one state,
/// because a writer keeps its sink to the end.
#[derive(Clone)]
struct PartSink(Arc<std::sync::Mutex<PartState>>);

struct PartState {
    part: Vec<u8>,
    part_bytes: usize,
    size_bytes: u64,
    hash: Sha256,
    parts: mpsc::Sender<Bytes>,
    watch: Arc<Watch>,
}

impl PartSink {
    fn new(parts: mpsc::Sender<Bytes>, part_bytes: usize, watch: Arc<Watch>) -> Self {
        Self(Arc::new(std::sync::Mutex::new(PartState {
            part: Vec::new(),
            part_bytes,
            size_bytes: 0,
            hash: Sha256::new(),
            parts,
            watch,
        })))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, PartState> {
        self.0.lock().expect("one thread uses the sink, and a panic ends it")
    }

    fn size_bytes(&self) -> u64 {
        self.state().size_bytes
    }

    fn finish(&self) -> io::Result<(u64, String)> {
        let mut state = self.state();
        state.send()?;
        let hash = std::mem::take(&mut state.hash);
        Ok((state.size_bytes, hex::encode(hash.finalize())))
    }
}

impl Write for PartSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        let taken = bytes.len().min(state.part_bytes - state.part.len());
        if state.part.capacity() < state.part_bytes && state.part.len() + taken > 64 * 1024 {
            // Small files stay small; a large one gets its part in one piece.
            let missing = state.part_bytes - state.part.len();
            state.part.reserve_exact(missing);
        }
        state.part.extend_from_slice(&bytes[..taken]);
        state.size_bytes += taken as u64;
        state.watch.bytes.store(state.size_bytes, Ordering::Relaxed);
        if state.part.len() == state.part_bytes {
            state.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // parts have a fixed size: the last one goes with `finish`
    }
}

impl PartState {
    fn send(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        self.hash.update(&self.part);
        let part = Bytes::from(std::mem::take(&mut self.part));
        self.parts
            .blocking_send(part)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload has ended"))
    }
}
