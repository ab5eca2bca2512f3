//! Tells the workers of queues at once that a ticket was inserted.
//!
//! Not by apalis's own listener, which is driven only while its worker asks for tickets. A worker
//! whose places were all taken left it in the middle of a login for as long as its jobs took:
//! PostgreSQL ends such a connection after `authentication_timeout`, and the worker heard nothing
//! from then on. Until then nobody could drop a database of that server, because a connection that
//! logs in does not answer to signals: the proof of a backup, which drops one, waited for itself.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::task::AtomicWaker;
use serde::Deserialize;
use sqlx::PgPool;
use sqlx::postgres::PgListener;

use crate::queue::Queue;

/// Where apalis's trigger tells of each inserted ticket.
const CHANNEL: &str = "apalis::job::insert";
/// Pause before the next try to listen. Queues are asked every second meanwhile.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// What the trigger tells.
#[derive(Debug, Deserialize)]
struct Inserted {
    job_type: String,
}

/// Rings for one queue. Heard by the worker that looked last.
#[derive(Debug, Clone, Default)]
pub(super) struct Bell(Arc<Rope>);

#[derive(Debug, Default)]
struct Rope {
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    fn ring(&self) {
        self.0.rung.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

/// Never ends; an item for any number of rings since the last one.
impl Stream for Bell {
    type Item = ();

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<()>> {
        // Before the look, so that a ring in between is not lost.
        self.0.waker.register(cx.waker());
        match self.0.rung.swap(false, Ordering::AcqRel) {
            true => Poll::Ready(Some(())),
            false => Poll::Pending,
        }
    }
}

/// The bells of all queues.
#[derive(Debug, Clone, Default)]
pub(super) struct Bells([Bell; Queue::ALL.len()]);

impl Bells {
    pub(super) fn of(&self, queue: Queue) -> Bell {
        let [reports, lifecycle, maintenance, occurrences, backups, deliveries] = &self.0;
        match queue {
            Queue::Reports => reports,
            Queue::Lifecycle => lifecycle,
            Queue::Maintenance => maintenance,
            Queue::Occurrences => occurrences,
            Queue::Backups => backups,
            Queue::Deliveries => deliveries,
        }
        .clone()
    }

    /// Listens over one connection, which it keeps, and rings. Never ends.
    pub(super) async fn ring_for_tickets(self, tickets: PgPool) -> Infallible {
        loop {
            let Err(error) = self.listen(&tickets).await;
            tracing::warn!(%error, "cannot listen for tickets: queues are asked every second");
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    async fn listen(&self, tickets: &PgPool) -> Result<Infallible, sqlx::Error> {
        let mut listener = PgListener::connect_with(tickets).await?;
        listener.listen(CHANNEL).await?;
        self.ring_all();
        loop {
            match listener.try_recv().await? {
                Some(told) => self.ring_one(told.payload()),
                // The connection was lost, and what was told since.
                None => self.ring_all(),
            }
        }
    }

    fn ring_one(&self, payload: &str) {
        let inserted = serde_json::from_str::<Inserted>(payload);
        let queue = Queue::ALL
            .into_iter()
            .find(|queue| inserted.as_ref().is_ok_and(|told| told.job_type == queue.name()));
        match queue {
            Some(queue) => self.of(queue).ring(),
            // Of a newer version, or in another form.
            None => self.ring_all(),
        }
    }

    fn ring_all(&self) {
        for queue in Queue::ALL {
            self.of(queue).ring();
        }
    }
}
