//! A ticket of the `lifecycle` queue: work on the run that has waited longest.

use apalis::prelude::*;

use crate::queue::{Queue, RunTicket};
use crate::worker::{Context, lifecycle};

/// Always ends well: the outcome is in the run's row, and apalis's own retries are not used.
///
/// # Errors
/// None.
pub async fn run(ticket: RunTicket, context: Data<Context>) -> Result<(), BoxDynError> {
    tracing::debug!(run.id = ticket.run_id, "a ticket came");
    // The run gets another ticket from the reaper.
    if context.may_take(Queue::Lifecycle).await {
        lifecycle::run_next(&context).await;
    }
    Ok(())
}
