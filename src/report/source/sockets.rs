//! Where the sockets of reports wait for bytes.
//!
//! A server sends a result in pieces of 8 KiB, and each piece would wake a thread of ours that had
//! just fallen asleep: tens of thousands of times in an export, and the server pays for it. So
//! these sockets have a thread that pauses before it looks at them again; meanwhile their bytes
//! gather in the kernel. An export of 1,000,000 rows takes three quarters of the time.

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::runtime::{Builder, Handle};
use tokio_util::task::AbortOnDropHandle;

/// Before each look. It adds as much to a round trip, of which a report has a dozen.
const PAUSE: Duration = Duration::from_micros(500);

static SOCKETS: LazyLock<std::io::Result<Handle>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .on_thread_park(|| std::thread::sleep(PAUSE))
        .build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("report-sockets".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
});

/// Connects, with a socket that waits on the thread above. Whoever uses the connection stays where
/// it is. Without that thread the socket waits where its user does.
pub(super) async fn connect(options: PgConnectOptions) -> sqlx::Result<PgConnection> {
    let connecting = async move { PgConnection::connect_with(&options).await };
    let Ok(sockets) = SOCKETS.as_ref() else { return connecting.await };
    let connecting = AbortOnDropHandle::new(sockets.spawn(connecting));
    connecting.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}
