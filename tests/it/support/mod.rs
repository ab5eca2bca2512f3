//! What tests stand on: a [`TestApp`] with a database and a store of its own, and faults.
//!
//! A test names only what matters to it; everything else has a default. Nothing is shared
//! between tests, so they run in parallel, each in a process of its own or all in one.

pub mod app;
pub mod browser;
pub mod database;
pub mod http;
pub mod lying_store;
pub mod moto;
mod panicking_store;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod s3;
pub mod servers;
#[cfg(target_os = "linux")]
pub mod skew;
pub mod smtp;
pub mod worker;

use std::time::{Duration, Instant};

pub use app::TestApp;

/// How often a state that nobody announces is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until `look` finds something. Every wait of a test is on a state, and has an end.
///
/// # Panics
/// When nothing was found within `limit`.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Chooses the cryptography of TLS clients, as the command line does at its start. A second time
/// it is refused, which is right.
pub fn install_crypto() {
    let _already = rustls::crypto::ring::default_provider().install_default();
}

/// Says something to whoever looks at a test.
#[expect(clippy::print_stderr, reason = "what a failed test shows")]
pub fn tell(text: &str) {
    eprintln!("{text}");
}
