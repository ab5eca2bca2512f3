//! A ticket of the `occurrences` queue: start what a schedule has due.

use apalis::prelude::*;

use crate::queue::{OccurrenceTicket, Queue};
use crate::worker::Context;

/// Always ends well: what became of the occurrence is in its row, and one that could not be looked
/// at gets another ticket from the scheduler.
///
/// # Errors
/// None.
pub async fn run(ticket: OccurrenceTicket, context: Data<Context>) -> Result<(), BoxDynError> {
    // The occurrence gets another ticket from the scheduler.
    if !context.may_take(Queue::Occurrences).await {
        return Ok(());
    }
    let fired = context.services.fire_occurrence(&ticket.schedule, ticket.due_at).await;
    if let Err(error) = fired {
        tracing::warn!(
            schedule = ticket.schedule,
            error = format!("{:#}", anyhow::Error::from(error)),
            "an occurrence could not be fired yet"
        );
    }
    Ok(())
}
