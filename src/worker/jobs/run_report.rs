//! A ticket of the `reports` queue: run the execution whose turn it is.

use apalis::prelude::*;

use crate::queue::ReportTicket;
use crate::worker::{Context, attempt};

/// Always ends well: the outcome is in the execution's row, and apalis's own retries are not used.
///
/// # Errors
/// None.
pub async fn run(ticket: ReportTicket, context: Data<Context>) -> Result<(), BoxDynError> {
    tracing::debug!(execution.id = ticket.execution_id, "a ticket came");
    attempt::run(&context).await;
    Ok(())
}
