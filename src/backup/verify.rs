//! Proves a backup by restoring it: what is stored is read, opened, restored into a scratch
//! database, and every table compared with the snapshot's rows and checksum.

use std::path::{Path, PathBuf};
use std::time::Instant;

use chrono::{DateTime, Utc};
use sqlx::Connection;

use super::catalog::{self, Reader};
use super::create::millis;
use super::database::Database;
use super::error::BackupError;
use super::fingerprint::{self, Table};
use super::manifest::{BackupId, Manifest, Verification};
use super::restore::{identities_for, into_scratch};
use super::seal::Identities;
use super::sql::trusted;
use crate::postgres::{Binaries, ClientTools, ClusterOptions, DataDir, PrivateCluster};
use crate::store::Store;

/// Scratch databases begin so; nothing else may.
const SCRATCH_PREFIX: &str = "registrar_verify_";

/// Where a backup is restored for the comparison.
#[derive(Debug, Clone)]
pub enum Scratch {
    /// A private server, with the programs of this folder or those that are found.
    Private(Option<PathBuf>),
    /// A database of its own on this server.
    Server(Box<Database>),
}

/// Restores a backup into a scratch database, compares, and records the outcome beside the
/// manifest. `now` is the application database's time, or that of whoever asks.
///
/// # Errors
/// [`BackupError`] where it could not be tried. That it was tried and is bad is an outcome.
pub async fn verify(
    store: &Store,
    id: &BackupId,
    identities: &Identities,
    scratch: &Scratch,
    now: DateTime<Utc>,
) -> Result<Verification, BackupError> {
    let manifest = catalog::manifest(store, id).await?;
    let identities = identities_for(&manifest, identities)?;
    let begun = Instant::now();
    let reader = Reader::enter(store, id, "verify", now).await?;
    let tried = Box::pin(try_out(store, &manifest, identities, scratch)).await;
    reader.leave().await;
    let (problem, server_version) = match tried {
        Ok((found, version)) => (fingerprint::difference(&manifest.tables, &found), version),
        Err(error) if error.condemns_backup() => (Some(error.to_string()), String::new()),
        Err(error) => return Err(error),
    };
    let outcome = Verification {
        id: id.clone(),
        verified_at: now + begun.elapsed(),
        good: problem.is_none(),
        problem,
        tables: manifest.tables.len(),
        rows: manifest.tables.iter().map(|table| table.rows).sum(),
        duration_ms: millis(begun.elapsed()),
        server_version,
    };
    catalog::record(store, &outcome).await?;
    Ok(outcome)
}

async fn try_out(
    store: &Store,
    manifest: &Manifest,
    identities: Option<super::seal::Identities>,
    scratch: &Scratch,
) -> Result<(Vec<Table>, String), BackupError> {
    match scratch {
        Scratch::Private(binaries) => {
            let binaries = Binaries::find(binaries.as_deref())?;
            let tools = tools(Some(binaries.dir()), binaries.major(), manifest)?;
            let options =
                ClusterOptions { data: DataDir::Temporary, binaries, settings: Vec::new() };
            let cluster = PrivateCluster::start(options).await?;
            let url = secrecy::SecretString::from(cluster.database_url());
            let database = Database::new("the private server", &url)?;
            let found = into_scratch(store, manifest, identities, &tools, &database).await;
            cluster.stop().await?;
            found
        }
        Scratch::Server(server) => on_server(store, manifest, identities, server).await,
    }
}

async fn on_server(
    store: &Store,
    manifest: &Manifest,
    identities: Option<super::seal::Identities>,
    server: &Database,
) -> Result<(Vec<Table>, String), BackupError> {
    let mut connection = server.connect().await?;
    let number: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&mut connection)
        .await
        .map_err(BackupError::database("read the server's version"))?;
    let tools = tools(None, number.unsigned_abs() / 10_000, manifest)?;
    sweep(&mut connection).await?;
    // Named after this connection, which lives as long as this process: whoever sweeps can tell.
    let name: String = sqlx::query_scalar(
        "select $1 || pid || '_' || (extract(epoch from backend_start) * 1e6)::bigint
           from pg_stat_activity
          where pid = pg_backend_pid()",
    )
    .bind(SCRATCH_PREFIX)
    .fetch_one(&mut connection)
    .await
    .map_err(BackupError::database("name the scratch database"))?;
    // template0: nothing of this server may be taken for something of the backup.
    sqlx::raw_sql(trusted(format!("create database {name} template template0")))
        .execute(&mut connection)
        .await
        .map_err(BackupError::database("create the scratch database"))?;
    let found = match server.with_name(&name) {
        Ok(scratch) => into_scratch(store, manifest, identities, &tools, &scratch).await,
        Err(error) => Err(error),
    };
    let dropped = drop_scratch(&mut connection, &name).await;
    let _closed = connection.close().await;
    let found = found?;
    dropped.map(|()| found)
}

fn tools(dir: Option<&Path>, major: u32, manifest: &Manifest) -> Result<ClientTools, BackupError> {
    if major < manifest.database.server_major {
        let found = format!("{major} for the scratch server");
        let major = manifest.database.server_major;
        return Err(crate::postgres::Error::ToolsMissing { major, found }.into());
    }
    match ClientTools::find(dir, major) {
        Err(_) if dir.is_some() => Ok(ClientTools::find(None, major)?),
        found => Ok(found?),
    }
}

/// Drops scratch databases whose process died.
async fn sweep(connection: &mut sqlx::PgConnection) -> Result<(), BackupError> {
    let failed = "drop what is left of another verification";
    let leftovers: Vec<String> = sqlx::query_scalar(
        "select d.datname::text
           from pg_database d
          where d.datname ~ ('^' || $1 || '[0-9]+_[0-9]+$')
            and not exists (
                select from pg_stat_activity a
                 where a.pid::text = split_part(d.datname, '_', 3)
                   and (a.backend_start is null
                        or (extract(epoch from a.backend_start) * 1e6)::bigint::text
                           = split_part(d.datname, '_', 4)))",
    )
    .bind(SCRATCH_PREFIX)
    .fetch_all(&mut *connection)
    .await
    .map_err(BackupError::database(failed))?;
    for name in leftovers {
        drop_scratch(connection, &name).await?;
    }
    Ok(())
}

async fn drop_scratch(connection: &mut sqlx::PgConnection, name: &str) -> Result<(), BackupError> {
    sqlx::raw_sql(trusted(format!("drop database if exists {name} with (force)")))
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(BackupError::database("drop the scratch database"))
}
