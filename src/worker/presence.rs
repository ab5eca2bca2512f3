//! Keeps this process on the list of workers, and its advisory lock held, as long as it lives.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::db::{self, workers};
use crate::service::Services;

/// How often the process says that it lives. The reaper believes a free lock only of a process
/// not seen for [`super::reaper::LOCK_GRACE_SECS`].
const TOUCH_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for one touch: a connection that hangs is as good as lost.
const TOUCH_TIMEOUT: Duration = Duration::from_secs(5);

/// This process on the list.
#[derive(Debug)]
pub struct Presence {
    id: String,
    host: String,
    pid: i32,
    lock_key: i64,
    options: PgConnectOptions,
    pool: PgPool,
    connection: PgConnection,
}

impl Presence {
    /// Registers this process under a name that no process had before.
    ///
    /// # Errors
    /// The database's.
    pub async fn register(services: &Services) -> anyhow::Result<Self> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let unique = Ulid::generate();
        let options = db::application_options(&services.config.database)?
            .application_name("registrar worker presence");
        let mut presence = Self {
            id: format!("{host}-{unique}"),
            pid: i32::try_from(std::process::id()).unwrap_or(i32::MAX),
            // The low half of a ULID is random: two processes do not share a key.
            lock_key: i64::from_be_bytes(lower_half(unique)),
            connection: PgConnection::connect_with(&options).await?,
            pool: services.db.clone(),
            host,
            options,
        };
        presence.announce().await?;
        Ok(presence)
    }

    /// The name in `lease_owner`.
    pub fn id(&self) -> &str {
        &self.id
    }

    async fn announce(&mut self) -> Result<(), sqlx::Error> {
        workers::hold_lock(&mut self.connection, self.lock_key).await?;
        workers::register(&mut self.connection, &self.id, &self.host, self.pid, self.lock_key).await
    }

    /// Says every second that the process lives, over the connection that holds the lock; after
    /// an outage it takes the lock again. Cancels `standstill` when the process is to take nothing
    /// new. Ends, and takes the process off the list, at `ended`.
    pub async fn keep(mut self, ended: CancellationToken, standstill: CancellationToken) {
        let mut ticks = tokio::time::interval(TOUCH_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = ended.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let touched =
                tokio::time::timeout(TOUCH_TIMEOUT, workers::touch(&mut self.connection, &self.id));
            match touched.await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => standstill.cancel(),
                Ok(Err(_)) | Err(_) => self.reconnect().await,
            }
        }
        if let Err(error) = workers::deregister(&self.pool, &self.id).await {
            tracing::debug!(%error, "cannot take this worker off the list");
        }
    }

    async fn reconnect(&mut self) {
        let connecting = async {
            self.connection = PgConnection::connect_with(&self.options).await?;
            self.announce().await
        };
        match tokio::time::timeout(TOUCH_TIMEOUT, connecting).await {
            Ok(Ok(())) => tracing::info!("this worker is on the list again"),
            Ok(Err(error)) => tracing::debug!(%error, "the database cannot be reached"),
            Err(_) => tracing::debug!("the database does not answer"),
        }
    }
}

fn lower_half(ulid: Ulid) -> [u8; 8] {
    let [_, _, _, _, _, _, _, _, half @ ..] = ulid.to_bytes();
    half
}
