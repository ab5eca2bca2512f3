//! The loop under every destructive run: one short transaction per chunk.
//!
//! Each transaction first locks the run's row with the attempt (so that a pause, a cancel or a
//! worker that took over stops it), then does the [`Step`]'s chunk, which stores its cursor, and
//! commits. The size of a chunk follows the time that the last one took. A lock that somebody else
//! holds costs a short wait and a smaller chunk, never a long one. Between chunks the loop waits
//! while replicas, long transactions or the machine's load ask for it.
//!
//! **Commits do not wait for the disk.** A crash of the server may so take back the last chunks, but
//! always a chunk as a whole and never one without those behind it: rows, account and cursor were
//! one transaction, and the log is written in order. The run then does them again. Whatever says to
//! the outside that something is done (the end of a table, the run's end, its certificate) is
//! committed with waiting, which brings all chunks before it to the disk first.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::calm::Watch;
use super::error::{RetentionError, is_lock_conflict};
use super::run;
use super::sql::{Literal, dynamic};
use crate::policy::Limits;

/// Rows of the first chunk: small, because nobody knows yet how long a row takes.
const FIRST_ROWS: i64 = 500;
/// Fewer rows are not worth a transaction.
const MIN_ROWS: i64 = 20;
/// More rows are slower, and hold their locks for longer (measured).
const MAX_ROWS: i64 = 10_000;
/// A chunk that took less time than asked for is followed by one with so many times the rows at
/// most: the first sizes are guesses.
const MOST_GROWTH: f64 = 4.0;
/// Tries of one chunk against locks of others before the attempt ends.
const MAX_TRIES: u32 = 12;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How often the signs of load are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// No chunk takes this long in earnest; the server ends one that does.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// What one chunk did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It looked at so many rows, and there may be more.
    More {
        /// Rows that it walked over.
        walked: i64,
    },
    /// There was nothing left.
    End,
    /// So many rows cannot be done at once; fewer may.
    TooMany,
}

/// One kind of work, done chunk by chunk.
pub trait Step {
    /// What messages call it.
    fn name(&self) -> String;

    /// Does at most `rows` rows, and stores how far it is, in the transaction of `connection`.
    ///
    /// # Errors
    /// Rolls the transaction back; lock conflicts are tried again with fewer rows.
    fn chunk(
        &mut self,
        connection: &mut PgConnection,
        rows: i64,
    ) -> impl Future<Output = Result<Progress, RetentionError>> + Send;

    /// Time of the last chunk that went to what is the same for few rows and many, or that something
    /// else than the database took: smaller chunks would not take less of it.
    fn elsewhere(&self) -> Duration {
        Duration::ZERO
    }
}

/// The attempt that works on a run.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The run.
    pub run_id: i64,
    /// The fencing token.
    pub number: i32,
    /// How long the lease lasts after each chunk.
    pub lease_secs: i32,
    /// Cancelled when this process ends, or the lease is lost.
    pub stop: CancellationToken,
}

/// The loop, with what it learned of the speed of things.
#[derive(Debug)]
pub struct ChunkLoop<'a> {
    attempt: &'a Attempt,
    limits: Limits,
    time_zone: &'static str,
    rows: i64,
    watch: Watch,
    looked_at: Option<Instant>,
}

impl<'a> ChunkLoop<'a> {
    /// For one attempt; sizes carry over from table to table.
    pub fn new(attempt: &'a Attempt, limits: Limits, time_zone: chrono_tz::Tz) -> Self {
        let watch = Watch::new(limits.pause_when);
        let time_zone = time_zone.name();
        Self { attempt, limits, time_zone, rows: FIRST_ROWS, watch, looked_at: None }
    }

    /// Runs chunks until there is nothing left. One connection for all: statements are prepared once
    /// for each, and a run that needed more than one would wait for itself in a small pool.
    ///
    /// # Errors
    /// [`RetentionError::Lost`] when the run is not ours any more, [`RetentionError::Stopped`],
    /// [`RetentionError::Locked`] after many tries, or the step's own.
    pub async fn run(
        &mut self,
        connection: &mut PgConnection,
        step: &mut impl Step,
    ) -> Result<(), RetentionError> {
        let mut tries = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            if self.attempt.stop.is_cancelled() {
                return Err(RetentionError::Stopped);
            }
            self.wait_for_calm(connection).await?;
            let began = Instant::now();
            match self.one(connection, step).await {
                Ok((Progress::End, _)) => return Ok(()),
                Ok((Progress::TooMany, _)) => self.rows = (self.rows / 2).max(1),
                Ok((Progress::More { walked }, taken)) => {
                    (tries, pause) = (0, FIRST_PAUSE);
                    metrics::histogram!("registrar_lifecycle_chunk_seconds")
                        .record(began.elapsed().as_secs_f64());
                    self.adapt(taken.saturating_sub(step.elsewhere()), walked);
                }
                Err(error) if is_lock_conflict(&error) => {
                    tries += 1;
                    metrics::counter!("registrar_lifecycle_lock_waits_total").increment(1);
                    if tries >= MAX_TRIES {
                        return Err(RetentionError::Locked { table: step.name(), tries });
                    }
                    self.rows = (self.rows / 2).max(MIN_ROWS);
                    self.sleep(pause).await?;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One transaction, and how long its step took.
    async fn one(
        &self,
        connection: &mut PgConnection,
        step: &mut impl Step,
    ) -> Result<(Progress, Duration), RetentionError> {
        let mut tx = connection.begin_with(dynamic(self.begin())).await?;
        let Attempt { run_id, number, lease_secs, .. } = *self.attempt;
        if !run::fence(&mut tx, run_id, number, lease_secs).await? {
            return Err(RetentionError::Lost);
        }
        let began = Instant::now();
        let progress = step.chunk(&mut tx, self.rows).await?;
        let taken = began.elapsed();
        match progress {
            Progress::TooMany => tx.rollback().await?,
            Progress::More { .. } | Progress::End => tx.commit().await?,
        }
        Ok((progress, taken))
    }

    /// The first statements of a chunk, sent as one. Those behind them are planned once and not for
    /// each chunk's values: with these, the planner would look at thousands of places one by one,
    /// and at index entries of rows that are gone. Such plans are made for the walk's order, which
    /// only an index gives without sorting what is left of the table.
    fn begin(&self) -> String {
        format!(
            "begin;
             set local lock_timeout = {};
             set local statement_timeout = {};
             set local timezone = {};
             set local synchronous_commit = off;
             set local plan_cache_mode = force_generic_plan;
             set local enable_sort = off;
             set local jit = off",
            self.limits.lock_timeout.duration().as_millis(),
            STATEMENT_TIMEOUT.as_millis(),
            Literal::new(self.time_zone),
        )
    }

    /// A few times as many rows at most, half as many at least: one odd chunk says little.
    fn adapt(&mut self, taken: Duration, walked: i64) {
        let target = self.limits.chunk_target.duration().as_secs_f64();
        let factor = (target / taken.as_secs_f64().max(0.000_1)).clamp(0.5, MOST_GROWTH);
        if factor > 1.0 && walked < self.rows {
            return; // the last chunk of a table was not full and tells nothing
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "between 10 and 40,000"
        )]
        let rows = (self.rows as f64 * factor) as i64;
        self.rows = rows.clamp(MIN_ROWS, MAX_ROWS);
    }

    /// Waits while the policy's signs of load say so, and says what for; but not for ever.
    ///
    /// # Errors
    /// [`RetentionError::Lost`], [`RetentionError::Stopped`], [`RetentionError::Busy`], or the
    /// database's.
    pub async fn wait_for_calm(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<(), RetentionError> {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        let most = self.limits.pause_when.at_most;
        let began = Instant::now();
        let mut has_waited = false;
        let Attempt { run_id, number, lease_secs, .. } = *self.attempt;
        loop {
            let reason = self.watch.look(connection).await?;
            if reason.is_some() || has_waited {
                run::note_waiting(connection, run_id, number, reason.as_deref()).await?;
            }
            self.looked_at = Some(Instant::now());
            let Some(reason) = reason else { return Ok(()) };
            if began.elapsed() >= most.duration() {
                return Err(RetentionError::Busy { reason, most });
            }
            if !run::beat(connection, run_id, number, lease_secs).await? {
                return Err(RetentionError::Lost);
            }
            has_waited = true;
            self.sleep(LOOK_EVERY).await?;
        }
    }

    async fn sleep(&self, time: Duration) -> Result<(), RetentionError> {
        tokio::select! {
            () = self.attempt.stop.cancelled() => Err(RetentionError::Stopped),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }
}
