//! Where the sockets of reports wait for bytes.
//!
//! A server sends a result in pieces of 8 KiB, and each piece would wake a thread of ours that had
//! just fallen asleep: tens of thousands of times in an export, and the server pays for it. So
//! these sockets have a thread that pauses before it looks at them again; meanwhile their bytes
//! gather in the kernel. An export of 1,000,000 rows takes three quarters of the time.
//!
//! While large results are on their way the pause is longer: each look costs the threads that read,
//! write and send their turn on a processor. A split export of 1,000,000 rows takes nine tenths of
//! the time that it takes with the short pause, and a small report beside it some 20 ms more.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::runtime::{Builder, Handle};
use tokio_util::task::AbortOnDropHandle;

/// Before each look. It adds as much to a round trip, of which a report has a dozen.
const PAUSE: Duration = Duration::from_micros(500);
/// The same while large results are on their way. Far less than a socket's buffer takes to fill.
const STREAMING_PAUSE: Duration = Duration::from_millis(2);

/// Large results that are on their way.
static STREAMING: AtomicUsize = AtomicUsize::new(0);

static SOCKETS: LazyLock<std::io::Result<Handle>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .on_thread_park(|| {
            let is_streaming = STREAMING.load(Ordering::Relaxed) > 0;
            std::thread::sleep(if is_streaming { STREAMING_PAUSE } else { PAUSE });
        })
        .build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("report-sockets".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
});

/// A large result is on its way, as long as this is there.
#[derive(Debug)]
pub struct Streaming(());

impl Streaming {
    /// One result more.
    pub fn begin() -> Self {
        STREAMING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        STREAMING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connects, with a socket that waits on the thread above. Whoever uses the connection stays where
/// it is. Without that thread the socket waits where its user does.
pub(super) async fn connect(options: PgConnectOptions) -> sqlx::Result<PgConnection> {
    let connecting = async move { PgConnection::connect_with(&options).await };
    let Ok(sockets) = SOCKETS.as_ref() else { return connecting.await };
    let connecting = AbortOnDropHandle::new(sockets.spawn(connecting));
    connecting.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}
