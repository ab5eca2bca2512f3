//! A ticket of the `deliveries` queue: send a message to a webhook.

use apalis::prelude::*;

use crate::notify::Sender;
use crate::queue::{DeliveryTicket, Queue};
use crate::worker::{Context, delivery};

/// Always ends well: the outcome is in the delivery's row, and apalis's own retries are not used.
///
/// # Errors
/// None.
pub async fn run(
    ticket: DeliveryTicket,
    context: Data<Context>,
    sender: Data<Sender>,
) -> Result<(), BoxDynError> {
    // The delivery gets another ticket from the scheduler.
    if !context.may_take(Queue::Deliveries).await {
        return Ok(());
    }
    delivery::run(&context, &sender, ticket.delivery_id).await;
    Ok(())
}
