//! One report read over several connections, in the order of a key.
//!
//! ```text
//!  connection 1 ── range 0 ─────────┐ range 2 ─────────┐
//!  connection 2 ── range 1 ─ ahead ─┼───────┐ range 3 ─┼─ …
//!                                   ▼       ▼          ▼
//!  writer         ──────── range 0, range 1, range 2 … ──────►
//! ```
//! All connections see one exported snapshot, so together they read what one would have read. Each
//! takes the next range of the definition's `split_by` column; the writer gets the ranges in their
//! order. What is read before its turn waits in `AHEAD_BYTES` of memory at most; a connection
//! that would need more waits itself, and makes its server process wait.
//!
//! What is promised: the rows of a split report are those of the same query, ranges of the key in
//! ascending order, NULL last, and within a range as the query orders them. So a query that is
//! ordered by the key gives the same file, split or not; one that is ordered otherwise must not
//! name a key; one that is not ordered has no order to keep.
//!
//! A range repeats what does not depend on the key, such as the hash tables of joined tables, and
//! a server finds the rows of a range quickly only by an index on the key. `plan` asks the
//! planner about both, and leaves the query whole where splitting would not pay.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::batch::{FULL_BYTES, Gatherer, Rows};
use super::error::ReportError;
use super::parameters::Value;
use super::reading::Gate;
use super::source::{
    CheckedQuery, Key, KeyKind, Range, ReportDatabase, Session, SessionLimits, SourceColumn,
    Streaming,
};
use crate::writer::RowEncoder;

mod plan;

/// Bytes of rows that may wait for their turn, in all.
const AHEAD_BYTES: usize = 40 * 1024 * 1024;
/// The same in batches.
const AHEAD_PERMITS: usize = AHEAD_BYTES / FULL_BYTES;
/// Batches on their way from the connection whose turn it is; four blocks of rows that are
/// as they stand in the file.
const BATCHES_IN_TURN: usize = 16;
/// How often the first connection looks whether it still lives when it has nothing to read. Its
/// process is the one that is ended to end the report.
const PING_EVERY: Duration = Duration::from_millis(250);

/// Over how many connections a report is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// Connections of one run, the first included; 1 reads every query whole.
    pub connections: usize,
    /// Ranges of keys, `None` for as many as pay.
    pub ranges: Option<usize>,
}

/// The column that a definition is split by.
///
/// # Errors
/// [`ReportError::Definition`] where the query has no such column, or several, or it is of a type
/// without ranges.
pub(super) fn key(name: &str, columns: &[SourceColumn]) -> Result<Key, ReportError> {
    let wrong = |what: &str| Err(ReportError::Definition(format!("split_by `{name}` {what}")));
    let mut found = columns.iter().enumerate().filter(|(_, column)| column.name == name);
    match (found.next(), found.next()) {
        (None, _) => wrong("is no column of the query"),
        (Some(_), Some(_)) => wrong("is the name of several columns of the query"),
        (Some((index, column)), None) => match KeyKind::of(column.decoder) {
            Some(kind) => Ok(Key { column: index, kind }),
            None => wrong(&format!(
                "must be of type integer, bigint, date, timestamp or timestamptz, is {}",
                column.type_name
            )),
        },
    }
}

/// A query whose rows are read in ranges.
#[derive(Debug)]
pub struct Parts {
    /// The first is the one whose snapshot the others see.
    sessions: Vec<Session>,
    query: CheckedQuery,
    key: Key,
    values: Vec<Value>,
    ranges: Vec<Range>,
}

/// How a query is read.
#[derive(Debug)]
pub(super) enum Prepared {
    /// By one connection.
    Whole(Session),
    /// By several.
    Parts(Box<Parts>),
}

/// Where more connections come from.
#[derive(Debug)]
pub(super) struct Connecting<'a> {
    pub database: &'a ReportDatabase,
    pub limits: &'a SessionLimits,
}

/// Plans the ranges and opens further connections, if splitting pays.
///
/// # Errors
/// [`ReportError::Sql`] where the server refuses a statement, [`ReportError::Unavailable`] where
/// it has no room for another connection.
pub(super) async fn prepare(
    mut session: Session,
    query: &CheckedQuery,
    key: Key,
    values: Vec<Value>,
    split: Split,
    connecting: Connecting<'_>,
) -> Result<Prepared, ReportError> {
    let Some(ranges) = plan::ranges(&mut session, query, key, &values, split).await? else {
        return Ok(Prepared::Whole(session));
    };
    let snapshot = session.export_snapshot().await?;
    let mut sessions = vec![session];
    let Connecting { database, limits } = connecting;
    while sessions.len() < split.connections.min(ranges.len()) {
        let joined = database.join(limits, &sessions[0], &snapshot).await?;
        sessions.push(joined);
    }
    let query = query.clone();
    Ok(Prepared::Parts(Box::new(Parts { sessions, query, key, values, ranges })))
}

impl Parts {
    /// How many ranges there are.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// Reads all ranges through the gate, in their order. Dropped, it closes the connections.
    pub(super) async fn read(
        self,
        mut gate: Gate<'_>,
        encoder: Option<RowEncoder>,
    ) -> Result<(), ReportError> {
        let Self { sessions, query, key, values, ranges } = self;
        let (turn, turns) = watch::channel(0);
        let mut results = Vec::with_capacity(ranges.len());
        let mut todo = VecDeque::with_capacity(ranges.len());
        for (index, range) in ranges.into_iter().enumerate() {
            // Not bounded itself: what is in it has a permit.
            let (rows, result) = mpsc::unbounded_channel();
            results.push(result);
            todo.push_back(Todo { index, range, rows });
        }
        let shared = Arc::new(Shared {
            query,
            key,
            values,
            todo: Mutex::new(todo),
            ahead: Arc::new(Semaphore::new(AHEAD_PERMITS)),
            in_turn: Arc::new(Semaphore::new(BATCHES_IN_TURN)),
            turns,
        });
        let done = CancellationToken::new();
        let mut readers = JoinSet::new();
        let mut first = Some(done.clone());
        for session in sessions {
            let rows = Gatherer::new(encoder.clone());
            readers.spawn(read_ranges(session, rows, Arc::clone(&shared), first.take()));
        }
        drop(shared);
        let merged = tokio::select! {
            merged = merge(results, &turn, &mut gate) => merged?,
            error = failure(&mut readers) => return Err(error),
        };
        if merged.is_continue() {
            gate.end(None).await;
            done.cancel();
            while readers.join_next().await.is_some() {}
        }
        Ok(())
    }
}

/// A range that nobody reads yet.
#[derive(Debug)]
struct Todo {
    index: usize,
    range: Range,
    rows: mpsc::UnboundedSender<Sent>,
}

/// What a range is made of.
#[derive(Debug)]
enum Sent {
    /// Some rows, and the right to have them in memory.
    Rows(Rows, OwnedSemaphorePermit),
    /// There are no more.
    End,
}

/// What the readers share.
#[derive(Debug)]
struct Shared {
    query: CheckedQuery,
    key: Key,
    values: Vec<Value>,
    todo: Mutex<VecDeque<Todo>>,
    /// Permits for batches that wait for their turn, one for each `FULL_BYTES`.
    ahead: Arc<Semaphore>,
    /// Permits for the range whose turn it is. They are apart, so that it goes on when all the
    /// memory is taken by those that wait for it.
    in_turn: Arc<Semaphore>,
    /// The number of the range whose turn it is.
    turns: watch::Receiver<usize>,
}

impl Shared {
    fn next(&self) -> Option<Todo> {
        self.todo.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Waits until a batch of range `index` may be in memory. One that is larger than all the memory
    /// there is waits for all of it.
    async fn permit(&self, index: usize, bytes: usize) -> OwnedSemaphorePermit {
        let needed = bytes.div_ceil(FULL_BYTES).max(1);
        let (ahead, in_turn) =
            [AHEAD_PERMITS, BATCHES_IN_TURN].map(|most| needed.min(most) as u32).into();
        let mut turns = self.turns.clone();
        let in_its_turn = async {
            let turn = turns.wait_for(|&turn| turn >= index).await.map(|_| ());
            match turn {
                Ok(()) => Arc::clone(&self.in_turn).acquire_many_owned(in_turn).await,
                // Nobody merges any more: this task is about to be ended.
                Err(_) => std::future::pending().await,
            }
        };
        let permit = tokio::select! {
            permit = Arc::clone(&self.ahead).acquire_many_owned(ahead) => permit,
            permit = in_its_turn => permit,
        };
        permit.expect("nobody closes the semaphores")
    }
}

/// One connection: range after range, until there are none left. The first connection stays until
/// everything is `done`.
async fn read_ranges(
    mut session: Session,
    mut gatherer: Gatherer,
    shared: Arc<Shared>,
    done: Option<CancellationToken>,
) -> Result<(), ReportError> {
    while let Some(todo) = shared.next() {
        read_range(&mut session, &mut gatherer, &shared, todo).await?;
    }
    if let Some(done) = done {
        while tokio::time::timeout(PING_EVERY, done.cancelled()).await.is_err() {
            session.ping().await?;
        }
    }
    session.close().await;
    Ok(())
}

async fn read_range(
    session: &mut Session,
    gatherer: &mut Gatherer,
    shared: &Shared,
    Todo { index, range, rows: sender }: Todo,
) -> Result<(), ReportError> {
    let mut rows = session.rows_in(&shared.query, shared.key, range, &shared.values)?;
    let mut streaming = None;
    loop {
        let row = rows.try_next().await?;
        if let Some(row) = &row {
            gatherer.push(row, &shared.query.columns)?;
        }
        if row.is_none() || gatherer.is_full() {
            streaming.get_or_insert_with(Streaming::begin);
            let full = gatherer.take();
            if full.rows() > 0 {
                let permit = shared.permit(index, full.size_bytes()).await;
                // Without a receiver the merging has ended, and this task is about to be.
                let _ = sender.send(Sent::Rows(full, permit));
            }
        }
        if row.is_none() {
            let _ = sender.send(Sent::End);
            return Ok(());
        }
    }
}

/// Passes the ranges on in their order. A break means that the writer wants no more.
async fn merge(
    results: Vec<mpsc::UnboundedReceiver<Sent>>,
    turn: &watch::Sender<usize>,
    gate: &mut Gate<'_>,
) -> Result<ControlFlow<()>, ReportError> {
    for (index, mut result) in results.into_iter().enumerate() {
        turn.send_replace(index);
        loop {
            match result.recv().await {
                Some(Sent::Rows(rows, permit)) => {
                    if gate.pass(rows).await?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    drop(permit);
                }
                Some(Sent::End) => break,
                // Its reader failed, and says why.
                None => std::future::pending().await,
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Waits for a reader that fails.
async fn failure(readers: &mut JoinSet<Result<(), ReportError>>) -> ReportError {
    loop {
        match readers.join_next().await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => return error,
            Some(Err(_)) => return ReportError::Panicked,
            None => std::future::pending().await,
        }
    }
}
