//! Ending what runs on a server of its own: the application's server does not know its processes.
//!
//! The report role may see and end its own connections, and no others.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::{ReportDatabase, ServerProcess};

/// Longest time for one question to that server: while it is asked, others wait.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// What is sent to the processes that work for an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Nothing: are they there?
    Probe,
    /// End the query.
    Cancel,
    /// End the connection.
    Terminate,
}

impl ReportDatabase {
    /// Says that these options lead to another server than that of the application.
    #[must_use]
    pub fn elsewhere(self) -> Self {
        Self { is_elsewhere: true, ..self }
    }

    /// Sends a signal to the processes that work under a name, or are this one, where reports have
    /// a server of their own. Answers whether there were any there. A server that does not answer
    /// has none that could be told of: what ends its queries then is that their connection is gone
    /// (`client_connection_check_interval`).
    pub async fn signal(&self, process: Option<ServerProcess>, name: &str, signal: Signal) -> bool {
        if !self.is_elsewhere {
            return false;
        }
        let asked = tokio::time::timeout(ASK_LIMIT, self.ask(process, name, signal)).await;
        match asked {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot ask the reports' server for a query");
                false
            }
            Err(_) => {
                tracing::warn!("the reports' server does not answer who asks for a query");
                false
            }
        }
    }

    async fn ask(
        &self,
        process: Option<ServerProcess>,
        name: &str,
        signal: Signal,
    ) -> Result<bool, sqlx::Error> {
        let signal = match signal {
            Signal::Probe => "probe",
            Signal::Cancel => "cancel",
            Signal::Terminate => "terminate",
        };
        let mut connection = PgConnection::connect_with(&self.options).await?;
        let found = sqlx::query_scalar(
            "select coalesce(bool_or(case $4
                                     when 'cancel' then pg_cancel_backend(pid)
                                     when 'terminate' then pg_terminate_backend(pid)
                                     else true end), false)
               from pg_stat_activity
              where usename = current_user and datname = current_database()
                and pid <> pg_backend_pid()
                and (pid = $1 and backend_start = $2 or application_name = $3)",
        )
        .bind(process.map(|process| process.pid))
        .bind(process.map(|process| process.started_at))
        .bind(name)
        .bind(signal)
        .fetch_one(&mut connection)
        .await?;
        connection.close().await?;
        Ok(found)
    }
}
