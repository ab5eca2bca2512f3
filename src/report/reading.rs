//! Rows from the server to the writer, no more of them than there may be.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use sqlx::postgres::PgRow;
use tokio::sync::mpsc;

use super::batch::{Batch, Rows};
use super::error::ReportError;
use super::parameters::Value;
use super::pipeline::{Ceiling, Watch};
use super::source::{CheckedQuery, Session, Streaming};
use super::split::Parts;
use crate::writer::RowEncoder;

/// A query of a run, with the values of its parameters.
#[derive(Debug)]
pub struct Query<'a> {
    /// The query as the server has checked it.
    pub checked: CheckedQuery,
    /// The values in the order of its placeholders.
    pub values: Vec<&'a Value>,
}

/// Where the rows come from.
#[derive(Debug)]
pub enum Reading<'s> {
    /// One connection: queries one after another, a sheet each.
    Queries(&'s mut Session, Vec<Query<'s>>),
    /// One query over several connections, which are closed at the end.
    Parts(Box<Parts>),
}

impl Reading<'_> {
    /// Reads until there are no more rows, or one more than there may be. `encoder` makes the
    /// file's rows, where it can be had.
    pub(super) async fn read(
        self,
        gate: Gate<'_>,
        encoder: Option<RowEncoder>,
    ) -> Result<(), ReportError> {
        match self {
            // One reader is quicker when the writer's thread does it, beside it.
            Self::Queries(session, queries) => read_queries(session, queries, gate).await,
            Self::Parts(parts) => parts.read(gate, encoder).await,
        }
    }
}

/// Reads the rows of each query in turn. The limit of rows is that of all of them together.
async fn read_queries(
    session: &mut Session,
    queries: Vec<Query<'_>>,
    mut gate: Gate<'_>,
) -> Result<(), ReportError> {
    for (index, Query { checked, values }) in queries.into_iter().enumerate() {
        if index > 0 && gate.next_sheet(checked.columns.len()).await.is_break() {
            return Ok(());
        }
        let rows = session.rows(&checked, values.into_iter())?;
        if read_rows(rows, &mut gate).await?.is_break() {
            return Ok(());
        }
    }
    gate.end(None).await;
    Ok(())
}

/// Passes rows on in batches. A break means that the writer wants no more.
async fn read_rows(
    mut rows: BoxStream<'_, Result<PgRow, sqlx::Error>>,
    gate: &mut Gate<'_>,
) -> Result<ControlFlow<()>, ReportError> {
    let mut batch = Batch::new();
    let mut streaming = None;
    while let Some(row) = rows.try_next().await? {
        batch.push(&row, gate.columns)?;
        if batch.is_full() || batch.rows() as u64 > gate.room() {
            streaming.get_or_insert_with(Streaming::begin);
            let full = std::mem::replace(&mut batch, Batch::new());
            if gate.pass(Rows::Packed(full)).await?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    gate.pass(Rows::Packed(batch)).await
}

/// What the writer's thread is told.
pub(super) enum Message {
    /// Some rows.
    Rows(Rows),
    /// What follows are the rows of the next query.
    NextSheet,
    /// There are no more rows; the sentence says why, if there were some.
    End(Option<String>),
}

/// Lets as many rows through to the writer as there may be.
pub(super) struct Gate<'w> {
    batches: mpsc::Sender<Message>,
    ceiling: Ceiling,
    columns: usize,
    /// That went through.
    rows: u64,
    watch: &'w Watch,
}

impl<'w> Gate<'w> {
    pub fn new(
        batches: mpsc::Sender<Message>,
        ceiling: Ceiling,
        columns: usize,
        watch: &'w Watch,
    ) -> Self {
        Self { batches, ceiling, columns, rows: 0, watch }
    }

    /// How many more rows may come.
    const fn room(&self) -> u64 {
        self.ceiling.max_rows - self.rows
    }

    /// Hands a batch on. A break means that the writer wants no more.
    pub async fn pass(&mut self, mut rows: Rows) -> Result<ControlFlow<()>, ReportError> {
        let max_rows = self.ceiling.max_rows;
        let room = self.room();
        let is_over = rows.rows() as u64 > room;
        if is_over {
            if !self.ceiling.truncate {
                return Err(ReportError::RowLimit { max_rows });
            }
            rows.truncate(usize::try_from(room).unwrap_or(usize::MAX), self.columns);
        }
        self.rows += rows.rows() as u64;
        if rows.rows() > 0 && self.batches.send(Message::Rows(rows)).await.is_err() {
            return Ok(ControlFlow::Break(())); // the writer has ended, and says why
        }
        self.watch.rows.store(self.rows, Ordering::Relaxed);
        if is_over {
            self.end(Some(format!("Cut at the limit of {max_rows} rows: there are more."))).await;
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What follows are the rows of another query, with so many columns. A break means that the
    /// writer has ended, and says why.
    async fn next_sheet(&mut self, columns: usize) -> ControlFlow<()> {
        self.columns = columns;
        match self.batches.send(Message::NextSheet).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// Tells the writer that there are no more; `cut` says why, if there were some.
    pub async fn end(&self, cut: Option<String>) {
        // A writer that has ended says why itself.
        let _ = self.batches.send(Message::End(cut)).await;
    }
}
