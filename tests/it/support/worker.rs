//! A worker in this process, on a thread and a runtime of its own.
//!
//! Killing it drops its runtime: its connections close and its tasks end where they stand, much
//! as `kill -9` would have it. What needs a real process is in [`super::process`].

use std::thread::JoinHandle;

use registrar::config::Config;
use registrar::service::Services;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::app::services;

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    /// The name in `lease_owner`.
    pub id: String,
    shutdown: CancellationToken,
    /// Dropping it kills the worker.
    life: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Worker {
    /// Starts a worker. [`super::TestApp::start_worker`] waits until it is on the list.
    pub(super) fn spawn(config: Config) -> Self {
        Self::spawn_with(config, |services| services)
    }

    /// Starts a worker whose services are changed first.
    pub(super) fn spawn_with(
        config: Config,
        change: impl FnOnce(Services) -> Services + Send + 'static,
    ) -> Self {
        super::install_crypto();
        let shutdown = CancellationToken::new();
        let (life, death) = oneshot::channel();
        let thread = std::thread::spawn({
            let shutdown = shutdown.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .thread_name("worker")
                    .enable_all()
                    .build()?;
                let outcome = runtime.block_on(async {
                    let services = change(services(&config));
                    tokio::select! {
                        outcome = registrar::worker::run(services, shutdown) => outcome,
                        _ = death => Ok(()),
                    }
                });
                runtime.shutdown_background();
                outcome
            }
        });
        Self { id: String::new(), shutdown, life: Some(life), thread: Some(thread) }
    }

    /// Asks for a graceful stop and waits for it.
    pub async fn stop(mut self) {
        self.ask_to_stop();
        self.ended().await;
    }

    /// Asks for a graceful stop.
    pub fn ask_to_stop(&self) {
        self.shutdown.cancel();
    }

    /// Waits for the end of a worker that was asked to stop.
    pub async fn ended(&mut self) {
        let thread = self.thread.take().expect("it ends once");
        let joined = tokio::task::spawn_blocking(move || thread.join()).await.unwrap();
        joined.expect("the worker's thread does not panic").expect("the worker ends in order");
    }

    /// Ends it where it stands.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.life.take());
        if let Some(thread) = self.thread.take() {
            // Its outcome is nobody's: it was killed.
            let _killed = thread.join();
        }
    }
}
