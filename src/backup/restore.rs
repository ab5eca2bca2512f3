//! Restores a backup into an empty database.
//!
//! The stored file is read twice: first to see that it is whole, then into `pg_restore`, which
//! works in one transaction. So a damaged file, a wrong key or a killed process leave the database
//! as empty as it was. Several jobs need a file to jump in, and cannot be one transaction: with
//! `jobs` above 1 the open dump is put into a folder that the caller names, for as long as it
//! takes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use tokio::sync::mpsc;

use super::catalog::{self, Reader};
use super::database::Database;
use super::error::BackupError;
use super::fingerprint::{self, Table};
use super::manifest::{BackupId, Manifest};
use super::seal::{self, ChunkSource, Identities, OpenError};
use super::sql::trusted;
use super::tool::Tool;
use crate::postgres::ClientTools;
use crate::store::{BackupFile, ObjectKey, Store};

/// Chunks of the stored file between the store and the opening thread.
const CHUNKS_IN_FLIGHT: usize = 4;
/// A spool that a killed process left is deleted after this long.
const SPOOL_LEFT_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const SPOOL_PREFIX: &str = "registrar-restore-";

/// How a backup is restored.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Only these tables, as `table` or `schema.table`: columns and rows, without indexes,
    /// constraints and rights. Empty: everything.
    pub tables: Vec<String>,
    /// Jobs of `pg_restore`, and the folder for the dump that more than one needs.
    pub parallel: Option<(usize, PathBuf)>,
    /// Stop before anything is written.
    pub dry_run: bool,
    /// What opens it.
    pub identities: Identities,
    /// Folder with `pg_restore`; without it that is searched.
    pub tools_dir: Option<PathBuf>,
}

/// What a restore did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Restored {
    /// Which backup.
    pub id: BackupId,
    /// Tables that were restored and compared.
    pub tables: usize,
    /// Rows that were restored and compared.
    pub rows: i64,
    /// Roles whose rights were not restored, because they are not on the server.
    pub missing_roles: Vec<String>,
    /// Milliseconds.
    pub duration_ms: u64,
    /// Nothing was written.
    pub dry_run: bool,
}

/// Restores a backup into `target`, and compares what arrived with the manifest.
///
/// # Errors
/// [`BackupError`]; the target is then as empty as before, except after a failure with several
/// jobs, or when the comparison fails.
pub async fn restore(
    store: &Store,
    id: &BackupId,
    target: &Database,
    options: &RestoreOptions,
) -> Result<Restored, BackupError> {
    if id.is_physical() {
        return Err(BackupError::Physical(id.clone()));
    }
    let manifest = catalog::manifest(store, id).await?;
    let mut connection = target.connect().await?;
    let reader = Reader::enter(store, id, "restore", catalog::now(&mut connection).await?).await?;
    let restoring = Restoring { store, manifest: &manifest, target, options };
    let restored = Box::pin(restoring.run(&mut connection)).await;
    reader.leave().await;
    let _closed = connection.close().await;
    restored
}

/// The table of contents, as `pg_restore --list` prints it.
///
/// # Errors
/// [`BackupError`]
pub async fn contents(
    store: &Store,
    id: &BackupId,
    options: &RestoreOptions,
) -> Result<String, BackupError> {
    let manifest = catalog::manifest(store, id).await?;
    let tools = ClientTools::find(options.tools_dir.as_deref(), manifest.database.server_major)?;
    let identities = identities_for(&manifest, &options.identities)?;
    let mut command = tools.pg_restore();
    command.arg("--list");
    let mut tool = Tool::start("pg_restore", &mut command, Stdio::piped(), Stdio::piped())?;
    let (stdin, mut stdout) = (tool.stdin(), tool.stdout());
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stdout, &mut text).map(|_| text)
    });
    // It stops reading after the list, which is at the beginning.
    match pour(store, &manifest, identities, stdin).await {
        Ok(()) | Err(BackupError::Io { .. }) => {}
        Err(error) => return Err(error),
    }
    let text = reading.await.unwrap_or_else(|_| Err(std::io::Error::other("it panicked")));
    finish(tool).await?;
    text.map_err(BackupError::io("read the list"))
}

struct Restoring<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    target: &'a Database,
    options: &'a RestoreOptions,
}

impl Restoring<'_> {
    async fn run(&self, connection: &mut PgConnection) -> Result<Restored, BackupError> {
        let begun = Instant::now();
        let Self { store, manifest, target, options } = self;
        ensure_empty(connection).await?;
        let wanted = wanted(manifest, &options.tables)?;
        let tools = tools_for(connection, options.tools_dir.as_deref(), manifest).await?;
        let identities = identities_for(manifest, &options.identities)?;
        check_whole(store, manifest).await?;
        let missing_roles = missing_roles(connection, &manifest.database.roles).await?;
        let done = |tables: usize, rows: i64| Restored {
            id: manifest.id.clone(),
            tables,
            rows,
            missing_roles: missing_roles.clone(),
            duration_ms: super::create::millis(begun.elapsed()),
            dry_run: options.dry_run,
        };
        if options.dry_run {
            // That the key fits and that it is a dump is seen by opening it.
            pour(store, manifest, identities, std::io::sink()).await?;
            return Ok(done(wanted.len(), wanted.iter().map(|table| table.rows).sum()));
        }
        let mut arguments = vec!["--exit-on-error".to_owned(), "--no-owner".to_owned()];
        if !missing_roles.is_empty() || !options.tables.is_empty() {
            arguments.push("--no-privileges".to_owned());
        }
        if !options.tables.is_empty() {
            create_schemas(connection, &wanted).await?;
            arguments.extend(wanted.iter().map(|table| format!("--schema={}", table.schema)));
            arguments.extend(wanted.iter().map(|table| format!("--table={}", table.name)));
        }
        match &options.parallel {
            None => {
                arguments.push("--single-transaction".to_owned());
                run_streamed(store, manifest, identities, &tools, target, &arguments).await?;
            }
            Some((jobs, folder)) => {
                arguments.push(format!("--jobs={jobs}"));
                let spool = self.spool(identities, folder).await?;
                run_spooled(&tools, target, &arguments, spool.path()).await?;
            }
        }
        let found = snapshot_of(connection).await?;
        let differs = fingerprint::difference(&wanted, &found);
        differs.map_or(Ok(()), |told| Err(BackupError::Differs(told)))?;
        Ok(done(wanted.len(), wanted.iter().map(|table| table.rows).sum()))
    }

    async fn spool(
        &self,
        identities: Option<Identities>,
        folder: &Path,
    ) -> Result<tempfile::NamedTempFile, BackupError> {
        sweep_spools(folder);
        let failed = "write the open dump into the folder for it";
        let file = tempfile::Builder::new()
            .prefix(SPOOL_PREFIX)
            .tempfile_in(folder)
            .map_err(BackupError::io(failed))?;
        let output = file.reopen().map_err(BackupError::io(failed))?;
        let output = std::io::BufWriter::new(output);
        pour(self.store, self.manifest, identities, output).await?;
        Ok(file)
    }
}

/// Restores everything into a database that is thrown away afterwards, and returns what is in it.
pub(super) async fn into_scratch(
    store: &Store,
    manifest: &Manifest,
    identities: Option<Identities>,
    tools: &ClientTools,
    scratch: &Database,
) -> Result<(Vec<Table>, String), BackupError> {
    let arguments = ["--exit-on-error", "--no-owner", "--no-privileges", "--no-subscriptions"]
        .map(str::to_owned);
    run_streamed(store, manifest, identities, tools, scratch, &arguments).await?;
    let mut connection = scratch.connect().await?;
    let found = snapshot_of(&mut connection).await?;
    let version: String = sqlx::query_scalar("select current_setting('server_version')")
        .fetch_one(&mut connection)
        .await
        .map_err(BackupError::database("read the server's version"))?;
    let _closed = connection.close().await;
    Ok((found, version.split_whitespace().next().unwrap_or_default().to_owned()))
}

async fn run_streamed(
    store: &Store,
    manifest: &Manifest,
    identities: Option<Identities>,
    tools: &ClientTools,
    target: &Database,
    arguments: &[String],
) -> Result<(), BackupError> {
    let mut command = tools.pg_restore();
    command.args(arguments);
    target.name_to(&mut command);
    let mut tool = Tool::start("pg_restore", &mut command, Stdio::piped(), Stdio::null())?;
    let stdin = tool.stdin();
    match pour(store, manifest, identities, stdin).await {
        // It ended before its input did, and knows why; or it needed no more of it.
        Ok(()) | Err(BackupError::Io { .. }) => finish(tool).await,
        Err(error) => Err(error),
    }
}

async fn run_spooled(
    tools: &ClientTools,
    target: &Database,
    arguments: &[String],
    spool: &Path,
) -> Result<(), BackupError> {
    let mut command = tools.pg_restore();
    command.args(arguments);
    target.name_to(&mut command);
    command.arg(spool);
    finish(Tool::start("pg_restore", &mut command, Stdio::null(), Stdio::null())?).await
}

async fn finish(tool: Tool) -> Result<(), BackupError> {
    let lost =
        |_| BackupError::Program { program: "pg_restore", message: "it was lost".to_owned() };
    tokio::task::spawn_blocking(move || tool.finish()).await.map_err(lost)?
}

/// Streams the open dump into `output`, and checks on the way that what is stored is what was
/// stored.
///
/// # Errors
/// [`BackupError::Damaged`], [`BackupError::WrongKey`], and [`BackupError::Io`] where `output`
/// takes no more.
async fn pour<W: Write + Send + 'static>(
    store: &Store,
    manifest: &Manifest,
    identities: Option<Identities>,
    output: W,
) -> Result<(), BackupError> {
    let reading = store.read(&dump_path(manifest), None).await.map_err(gone(manifest))?;
    let (chunks, incoming) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
    let compression = manifest.stored.compression;
    let opening = tokio::task::spawn_blocking(move || {
        let mut source = ChunkSource::new(incoming);
        match seal::open(&mut source, output, compression, identities.as_ref()) {
            Err(OpenError::Output(error)) => Err(error),
            opened => Ok((opened, source.finish())),
        }
    });
    let mut stream = reading.into_stream();
    let mut read = Ok(());
    loop {
        match stream.try_next().await {
            Ok(Some(chunk)) => {
                if chunks.send(chunk).await.is_err() {
                    break; // the thread has ended, and says why
                }
            }
            Ok(None) => break,
            Err(error) => {
                read = Err(error);
                break;
            }
        }
    }
    drop(chunks);
    let opened = opening.await.unwrap_or_else(|_| Err(std::io::Error::other("it panicked")));
    read.map_err(|source| {
        let (action, path) = ("read", dump_path(manifest));
        crate::store::StoreError::Request { action, path, source }
    })?;
    let (opened, (size, sha256)) =
        opened.map_err(BackupError::io("hand the dump on: whoever takes it has ended"))?;
    // What is stored explains best why it could not be opened.
    compare(manifest, size, &sha256)?;
    match opened {
        Ok(()) => Ok(()),
        Err(OpenError::WrongKey) => Err(BackupError::WrongKey(names(manifest))),
        Err(OpenError::Damaged(what)) => {
            Err(BackupError::Damaged { id: manifest.id.clone(), what })
        }
        Err(OpenError::Output(_)) => unreachable!("handled in the thread"),
    }
}

/// Reads the whole stored file and compares size and SHA-256.
async fn check_whole(store: &Store, manifest: &Manifest) -> Result<(), BackupError> {
    let path = dump_path(manifest);
    let mut stream = store.read(&path, None).await.map_err(gone(manifest))?.into_stream();
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(chunk) = stream.try_next().await.map_err(|source| {
        crate::store::StoreError::Request { action: "read", path: path.clone(), source }
    })? {
        hash.update(&chunk);
        size += chunk.len() as u64;
    }
    compare(manifest, size, &hex::encode(hash.finalize()))
}

fn compare(manifest: &Manifest, size: u64, sha256: &str) -> Result<(), BackupError> {
    let damaged = |what| Err(BackupError::Damaged { id: manifest.id.clone(), what });
    let stored = &manifest.stored;
    if size != stored.size_bytes {
        return damaged(format!("it has {size} bytes instead of {}", stored.size_bytes));
    }
    if sha256 != stored.sha256 {
        return damaged("its SHA-256 is not that of its manifest".to_owned());
    }
    Ok(())
}

fn gone(manifest: &Manifest) -> impl FnOnce(crate::store::StoreError) -> BackupError {
    let id = manifest.id.clone();
    move |error| match error {
        crate::store::StoreError::NotFound(path) => {
            BackupError::Damaged { id, what: format!("its file `{path}` is gone") }
        }
        error => error.into(),
    }
}

fn dump_path(manifest: &Manifest) -> crate::store::ObjectPath {
    let file = BackupFile::Dump(&manifest.stored.object);
    ObjectKey::Backup { id: manifest.id.as_str(), file }.path()
}

fn names(manifest: &Manifest) -> String {
    manifest.stored.encrypted_to.join(", ")
}

/// What opens this backup; `None` where it is open.
pub(super) fn identities_for(
    manifest: &Manifest,
    given: &Identities,
) -> Result<Option<Identities>, BackupError> {
    match (manifest.stored.encrypted_to.is_empty(), given.is_empty()) {
        (true, _) => Ok(None),
        (false, false) => Ok(Some(given.clone())),
        (false, true) => Err(BackupError::NoIdentity(names(manifest))),
    }
}

/// `pg_restore` of the target's version, which must not be older than the source's.
async fn tools_for(
    connection: &mut PgConnection,
    tools_dir: Option<&Path>,
    manifest: &Manifest,
) -> Result<ClientTools, BackupError> {
    let number: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(connection)
        .await
        .map_err(BackupError::database("read the server's version"))?;
    let target = number.unsigned_abs() / 10_000;
    let source = manifest.database.server_major;
    if target < source {
        let message = format!(
            "the backup is of PostgreSQL {source}, and this server is {target}: older ones cannot read it"
        );
        return Err(BackupError::Program { program: "pg_restore", message });
    }
    Ok(ClientTools::find(tools_dir, target)?)
}

/// The tables that are to be restored.
fn wanted(manifest: &Manifest, tables: &[String]) -> Result<Vec<Table>, BackupError> {
    if tables.is_empty() {
        return Ok(manifest.tables.clone());
    }
    let mut wanted = Vec::new();
    for asked in tables {
        let (schema, name) = asked.split_once('.').unwrap_or(("public", asked));
        let found = manifest.tables.iter().find(|t| t.schema == schema && t.name == name);
        wanted.push(found.cloned().ok_or_else(|| BackupError::NoTable {
            id: manifest.id.clone(),
            table: asked.clone(),
        })?);
    }
    Ok(wanted)
}

async fn create_schemas(
    connection: &mut PgConnection,
    tables: &[Table],
) -> Result<(), BackupError> {
    let failed = "create the tables' schemas";
    for table in tables {
        let statement: String =
            sqlx::query_scalar("select format('create schema if not exists %I', $1)")
                .bind(&table.schema)
                .fetch_one(&mut *connection)
                .await
                .map_err(BackupError::database(failed))?;
        sqlx::raw_sql(trusted(statement))
            .execute(&mut *connection)
            .await
            .map_err(BackupError::database(failed))?;
    }
    Ok(())
}

/// Refuses a database with anything in it that is not PostgreSQL's own or an extension's.
async fn ensure_empty(connection: &mut PgConnection) -> Result<(), BackupError> {
    let found: Option<String> = sqlx::query_scalar(
        "select what
           from (select format('the table or view %I.%I', n.nspname, c.relname) as what
                   from pg_class c
                   join pg_namespace n on n.oid = c.relnamespace
                  where n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
                    and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                    and not exists (select from pg_depend d
                                     where d.classid = 'pg_class'::regclass and d.objid = c.oid
                                       and d.deptype = 'e')
                 union all
                 select format('the function %I.%I', n.nspname, p.proname)
                   from pg_proc p
                   join pg_namespace n on n.oid = p.pronamespace
                  where n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
                    and not exists (select from pg_depend d
                                     where d.classid = 'pg_proc'::regclass and d.objid = p.oid
                                       and d.deptype = 'e')
                 union all
                 select format('the schema %I', nspname)
                   from pg_namespace
                  where nspname not in ('public', 'information_schema') and nspname !~ '^pg_') found
          limit 1",
    )
    .fetch_optional(connection)
    .await
    .map_err(BackupError::database("look whether the database is empty"))?;
    found.map_or(Ok(()), |found| Err(BackupError::NotEmpty { found }))
}

async fn missing_roles(
    connection: &mut PgConnection,
    roles: &[String],
) -> Result<Vec<String>, BackupError> {
    sqlx::query_scalar(
        "select name
           from unnest($1::text[]) name
          where not exists (select from pg_roles where rolname = name)
          order by name",
    )
    .bind(roles)
    .fetch_all(connection)
    .await
    .map_err(BackupError::database("look for the roles"))
}

async fn snapshot_of(connection: &mut PgConnection) -> Result<Vec<Table>, BackupError> {
    let mut tx = connection
        .begin_with("begin isolation level repeatable read read only")
        .await
        .map_err(BackupError::database("begin the comparison"))?;
    fingerprint::fix_settings(&mut tx).await?;
    let tables = fingerprint::tables(&mut tx).await?;
    tx.rollback().await.map_err(BackupError::database("end the comparison"))?;
    Ok(tables)
}

/// An open dump that a killed process left must not stay. Failures are nobody's: the file may be
/// another user's.
fn sweep_spools(folder: &Path) {
    let Ok(files) = std::fs::read_dir(folder) else { return };
    for file in files.flatten() {
        let is_spool = file.file_name().to_string_lossy().starts_with(SPOOL_PREFIX);
        let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        if is_spool && age.is_some_and(|age| age > SPOOL_LEFT_AFTER) {
            let _deleted = std::fs::remove_file(file.path());
        }
    }
}
