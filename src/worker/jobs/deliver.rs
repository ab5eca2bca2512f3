//! A ticket of the `deliveries` queue: a message to a webhook, a mail, or a copy.

use apalis::prelude::*;

use crate::notify::Sender;
use crate::notify::mail::Mailer;
use crate::queue::{DeliveryTicket, Queue};
use crate::worker::{Context, delivery, report_delivery};

/// Always ends well: the outcome is in the delivery's row, and apalis's own retries are not used.
///
/// # Errors
/// None.
pub async fn run(
    ticket: DeliveryTicket,
    context: Data<Context>,
    sender: Data<Sender>,
    mailer: Data<Option<Mailer>>,
) -> Result<(), BoxDynError> {
    // The delivery gets another ticket from the scheduler.
    if !context.may_take(Queue::Deliveries).await {
        return Ok(());
    }
    if !delivery::run(&context, &sender, ticket.delivery_id).await {
        report_delivery::run(&context, (*mailer).as_ref(), ticket.delivery_id).await;
    }
    Ok(())
}
