//! Rows from the server to the writer, no more of them than there may be.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use sqlx::postgres::PgRow;
use tokio::sync::mpsc;

use super::batch::Batch;
use super::error::ReportError;
use super::pipeline::{Ceiling, Watch};
use super::split::Parts;

/// Where the rows come from.
pub enum Reading<'s> {
    /// One connection.
    Rows(BoxStream<'s, Result<PgRow, sqlx::Error>>),
    /// Several connections, which are closed at the end.
    Parts(Box<Parts>),
}

impl std::fmt::Debug for Reading<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rows(_) => "Reading::Rows",
            Self::Parts(_) => "Reading::Parts",
        })
    }
}

impl Reading<'_> {
    /// Reads until there are no more rows, or one more than there may be.
    pub(super) async fn read(self, gate: Gate<'_>) -> Result<(), ReportError> {
        match self {
            Self::Rows(rows) => read_rows(rows, gate).await,
            Self::Parts(parts) => parts.read(gate).await,
        }
    }
}

async fn read_rows(
    mut rows: BoxStream<'_, Result<PgRow, sqlx::Error>>,
    mut gate: Gate<'_>,
) -> Result<(), ReportError> {
    let mut batch = Batch::new();
    while let Some(row) = rows.try_next().await? {
        batch.push(&row, gate.columns)?;
        if batch.is_full() || batch.rows() as u64 > gate.room() {
            let full = std::mem::replace(&mut batch, Batch::new());
            if gate.pass(full).await?.is_break() {
                return Ok(());
            }
        }
    }
    if gate.pass(batch).await?.is_continue() {
        gate.end(None).await;
    }
    Ok(())
}

/// What the writer's thread is told.
pub(super) enum Message {
    /// Some rows.
    Rows(Batch),
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

    /// How many columns a row has.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// How many more rows may come.
    const fn room(&self) -> u64 {
        self.ceiling.max_rows - self.rows
    }

    /// Hands a batch on. A break means that the writer wants no more.
    pub async fn pass(&mut self, mut batch: Batch) -> Result<ControlFlow<()>, ReportError> {
        let max_rows = self.ceiling.max_rows;
        let room = self.room();
        let is_over = batch.rows() as u64 > room;
        if is_over {
            if !self.ceiling.truncate {
                return Err(ReportError::RowLimit { max_rows });
            }
            batch.truncate(usize::try_from(room).unwrap_or(usize::MAX), self.columns);
        }
        self.rows += batch.rows() as u64;
        if batch.rows() > 0 && self.batches.send(Message::Rows(batch)).await.is_err() {
            return Ok(ControlFlow::Break(())); // the writer has ended, and says why
        }
        self.watch.rows.store(self.rows, Ordering::Relaxed);
        if is_over {
            self.end(Some(format!("Cut at the limit of {max_rows} rows: there are more."))).await;
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Tells the writer that there are no more; `cut` says why, if there were some.
    pub async fn end(&self, cut: Option<String>) {
        // A writer that has ended says why itself.
        let _ = self.batches.send(Message::End(cut)).await;
    }
}
