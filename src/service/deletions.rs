//! Deletions of many things from the store, of which one that fails is left for the next time.
//!
//! One object that the store keeps (a lock, a right that is missing) must not keep what comes
//! after it. A store that is away must not be asked for each of a million either.

use std::time::{Duration, Instant};

use crate::store::StoreError;

/// What one pass deletes.
#[derive(Debug)]
pub(super) struct Deletions {
    /// What failures may still cost.
    patience: Duration,
    stuck: u64,
}

impl Deletions {
    /// Begins a pass: its failures may last as long as two requests that are not answered.
    pub(super) fn new(request_timeout: Duration) -> Self {
        Self { patience: request_timeout * 2, stuck: 0 }
    }

    /// Deletes something, unless the store is taken to be away. Whether it is gone.
    pub(super) async fn try_one(
        &mut self,
        deletion: impl Future<Output = Result<(), StoreError>>,
    ) -> bool {
        if self.patience.is_zero() {
            self.count();
            return false;
        }
        let began = Instant::now();
        let Err(error) = deletion.await else { return true };
        self.patience = self.patience.saturating_sub(began.elapsed());
        self.count();
        let why = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, why, "not deleted: the next pass tries again");
        false
    }

    fn count(&mut self) {
        self.stuck += 1;
        metrics::counter!("registrar_store_deletions_failed_total").increment(1);
    }

    /// How many things are still there.
    pub(super) fn stuck(&self) -> u64 {
        self.stuck
    }
}
