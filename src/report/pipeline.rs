//! Rows → cells → file → parts, with back pressure and bounded memory.
//!
//! ```text
//!  server ──rows──► read ──batches──► write (own thread) ──parts──► send ──► store
//!                   task    ≤ 4        decode, format, hash   ≤ 1     task   ≤ 2 in flight
//! ```
//! Every arrow is a bounded channel: a slow store makes the server wait, and memory does not grow
//! with the result. (Where several connections read, see `split`, the readers format already.)
//! Formatting and compression block, so they have a thread of their own and the
//! runtime's threads stay free for heartbeats.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::batch::{Rows, Values};
use super::error::ReportError;
use super::reading::{Gate, Message, Reading};
use super::source::SourceColumn;
use crate::store::Upload;
use crate::writer::{self, Column, Format, Options, RowEncoder, Summary, WriteError};

/// Batches between the reader and the writer.
const BATCHES_IN_FLIGHT: usize = 4;

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

/// Runs the pipeline to its end; `sources` are the columns of each sheet's query. On an error
/// nothing is visible: what was sent is taken back.
///
/// # Errors
/// [`ReportError`]
pub async fn run(
    reading: Reading<'_>,
    sources: Vec<Vec<SourceColumn>>,
    layout: Layout,
    ceiling: Ceiling,
    destination: &mut Destination,
    watch: &Arc<Watch>,
) -> Result<Written, ReportError> {
    let (batches, incoming) = mpsc::channel(BATCHES_IN_FLIGHT);
    let (parts, mut outgoing) = mpsc::channel::<Bytes>(1);
    let sink = PartSink::new(parts, layout.part_bytes, Arc::clone(watch));
    let gate = Gate::new(batches, ceiling, sources.first().map_or(0, Vec::len), watch);
    let encoder = RowEncoder::new(layout.format, &layout.columns, &layout.options);
    let writing =
        tokio::task::spawn_blocking(move || write(incoming, &sources, layout, ceiling, sink));
    let sending = async {
        while let Some(part) = outgoing.recv().await {
            destination.put(part).await?;
        }
        Ok(())
    };
    // Whichever side fails first ends the others: its channel closes.
    let moved = tokio::select! {
        moved = futures::future::try_join(reading.read(gate, encoder), sending) => moved.map(|_| ()),
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
            Some(Message::Rows(Rows::Encoded(rows))) => writer.append(rows)?,
            Some(Message::Rows(Rows::Packed(batch))) => {
                let mut values = batch.values();
                for _ in 0..batch.rows() {
                    write_row(writer.as_mut(), &mut values, source)?;
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
    values: &mut Values<'_>,
    source: &[SourceColumn],
) -> Result<(), ReportError> {
    for column in source {
        writer.cell(column.decode(values.take())?)?;
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
        // Now, while the bytes are in the processor's cache.
        state.hash.update(&bytes[..taken]);
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
        let part = Bytes::from(std::mem::take(&mut self.part));
        self.parts
            .blocking_send(part)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload has ended"))
    }
}
