//! The server processes of an attempt, on whichever server they are.

use super::Services;
use crate::db::executions::{self, Backend, BackendSignal, connection_name};
use crate::report::source::{ServerProcess, Signal};

impl Services {
    /// Sends a signal to the server processes of an attempt: on the application's server, and on
    /// the one that reports have of their own. Answers whether there were any.
    ///
    /// # Errors
    /// The application's database's; `42501` when its role may not signal the report role.
    pub async fn signal_backend(
        &self,
        backend: Backend,
        signal: BackendSignal,
    ) -> Result<bool, sqlx::Error> {
        let process = backend
            .backend_pid
            .zip(backend.backend_start)
            .map(|(pid, started_at)| ServerProcess { pid, started_at });
        let name = connection_name(backend.id, backend.attempt);
        let elsewhere = match signal {
            BackendSignal::Probe => Signal::Probe,
            BackendSignal::Cancel => Signal::Cancel,
            BackendSignal::Terminate => Signal::Terminate,
        };
        let (here, elsewhere) = tokio::join!(
            executions::signal_backend(&self.db, backend, signal),
            self.reports.signal(process, &name, elsewhere)
        );
        Ok(here? || elsewhere)
    }
}
