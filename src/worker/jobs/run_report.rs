//! A ticket of the `reports` queue: try to run an execution.

use apalis::prelude::*;

use crate::queue::ReportTicket;
use crate::worker::{Context, attempt};

/// Always ends well: the outcome is in the execution's row, and apalis's own retries are not used.
///
/// # Errors
/// None.
pub async fn run(ticket: ReportTicket, context: Data<Context>) -> Result<(), BoxDynError> {
    attempt::run(&context, ticket.execution_id).await;
    Ok(())
}
