//! Definition + parameters → stream of rows → writer → store.
//!
//! An attempt is two steps: [`open`] connects, takes the snapshot and has the server check the
//! query; [`Opened::export`] runs it into a file. Nothing here knows a queue, HTTP or a schedule:
//! the worker, the command line and tests call the same two functions.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

mod batch;
pub mod decode;
pub mod definition;
pub mod error;
pub mod manifest;
pub mod parameters;
pub mod pipeline;
pub mod reading;
pub mod source;
pub mod split;
pub mod sql;

use crate::config::ReportConfig;
use crate::writer::{Column, Compression, FileType, Format, Incompressible, Options, Reader};
use definition::{Definition, OnLimit};
use error::ReportError;
use parameters::BoundParameters;
use pipeline::{Ceiling, Destination, Layout, Watch, Written};
use reading::Reading;
use source::{
    CheckedQuery, Estimate, Key, ReportDatabase, ServerProcess, Session, SessionLimits, Snapshot,
    SourceColumn,
};
use split::{Connecting, Prepared, Split};

/// One run of a report.
#[derive(Debug)]
pub struct Order<'a> {
    /// What to run.
    pub definition: &'a Definition,
    /// With which values.
    pub parameters: &'a BoundParameters,
    /// Into which format.
    pub format: Format,
    /// For whom, and how CSV looks.
    pub presentation: Presentation,
    /// What it may take.
    pub limits: Limits,
    /// What the server's process list shows.
    pub name: String,
}

/// Choices about the file that do not change the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Presentation {
    /// Who reads the file.
    pub reader: Reader,
    /// Starts a CSV with a byte order mark.
    pub byte_order_mark: bool,
    /// CSV delimiter.
    pub delimiter: char,
    /// How the whole file is compressed: CSV and NDJSON only.
    // Left out when there is none: executions stored before there was a choice read, and hash,
    // as they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

impl Presentation {
    /// What a file of `format` is with these choices.
    ///
    /// # Errors
    /// [`Incompressible`] where the format has no compression and one is asked for.
    pub const fn file_type(&self, format: Format) -> Result<FileType, Incompressible> {
        FileType::new(format, self.compression)
    }
}

impl Default for Presentation {
    fn default() -> Self {
        let (reader, byte_order_mark, delimiter) = (Reader::Machine, false, ',');
        Self { reader, byte_order_mark, delimiter, compression: None }
    }
}

/// What a run may take: the lower of the server's and the definition's limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest attempt, from connecting to the last byte.
    pub timeout: Duration,
    /// Longest wait for a table lock.
    pub lock_timeout: Duration,
    /// Rows, bytes, and what happens over them.
    pub ceiling: Ceiling,
    /// Connections, where the definition names a key to split by.
    pub split: Split,
}

impl Limits {
    /// The limits of a definition on this server.
    pub fn of(definition: &Definition, config: &ReportConfig) -> Self {
        let own = definition.limits();
        let lower = |own: Option<std::num::NonZeroU64>, server: std::num::NonZeroU64| {
            own.map_or(server, |own| own.min(server)).get()
        };
        Self {
            timeout: Duration::from_secs(lower(own.timeout_secs, config.timeout_secs)),
            lock_timeout: Duration::from_millis(u64::from(config.lock_timeout_ms.get())),
            ceiling: Ceiling {
                max_rows: lower(own.max_rows, config.max_rows),
                max_bytes: lower(own.max_bytes, config.max_bytes),
                truncate: own.on_limit == OnLimit::Truncate,
            },
            split: Split { connections: config.split_connections.get(), ranges: None },
        }
    }
}

/// A run whose query the server has checked, on its snapshot.
#[derive(Debug)]
pub struct Opened {
    session: Session,
    query: CheckedQuery,
    /// The column to split by.
    key: Option<Key>,
    deadline: Instant,
    /// Where further connections come from.
    database: ReportDatabase,
    limits: SessionLimits,
}

/// What a run produced.
#[derive(Debug)]
pub struct Exported {
    /// The file.
    pub written: Written,
    /// Source and file columns.
    pub columns: Vec<(SourceColumn, Column)>,
    /// What was read.
    pub snapshot: Snapshot,
    /// In how many ranges of the definition's `split_by`; 1 as a whole.
    pub ranges: usize,
}

/// Connects, takes the snapshot and has the server check the query.
///
/// # Errors
/// [`ReportError`]
pub async fn open(database: &ReportDatabase, order: &Order<'_>) -> Result<Opened, ReportError> {
    let timeout = order.limits.timeout;
    let deadline = Instant::now() + timeout;
    let limits = SessionLimits {
        timeout,
        lock_timeout: order.limits.lock_timeout,
        time_zone: order.definition.time_zone().name().to_owned(),
    };
    let opening = async {
        let mut session = database.begin(&limits, &order.name).await?;
        let mut query = session.check(&order.definition.statement()).await?;
        if order.format == Format::Parquet {
            session.find_precisions(&mut query, || order.parameters.values()).await?;
        }
        let key = split_key(order.definition, &query)?;
        Ok((session, query, key))
    };
    let (session, query, key) = tokio::time::timeout_at(deadline, opening)
        .await
        .unwrap_or(Err(ReportError::Timeout { limit_secs: timeout.as_secs() }))?;
    Ok(Opened { session, query, key, deadline, database: database.clone(), limits })
}

fn split_key(definition: &Definition, query: &CheckedQuery) -> Result<Option<Key>, ReportError> {
    definition.split_by().map(|name| split::key(name, &query.columns)).transpose()
}

/// Asks the planner what a run would take.
///
/// # Errors
/// [`ReportError`]
pub async fn estimate(
    database: &ReportDatabase,
    order: &Order<'_>,
) -> Result<Estimate, ReportError> {
    let mut opened = open(database, order).await?;
    let estimate = opened.session.explain(&opened.query, order.parameters.values()).await;
    opened.close().await;
    estimate
}

/// Has the server check a definition as the report role, rights included, without running it.
/// Returns the names of the columns.
///
/// # Errors
/// [`ReportError`]
pub async fn check(
    database: &ReportDatabase,
    definition: &Definition,
    config: &ReportConfig,
) -> Result<Vec<String>, ReportError> {
    let limits = SessionLimits {
        timeout: Duration::from_secs(config.timeout_secs.get()),
        lock_timeout: Duration::from_millis(u64::from(config.lock_timeout_ms.get())),
        time_zone: definition.time_zone().name().to_owned(),
    };
    let mut session = database.begin(&limits, "registrar report validate").await?;
    let query = session.check(&definition.statement()).await?;
    split_key(definition, &query)?;
    // Rights do not depend on values: NULL for each parameter plans as well as any.
    let nulls = vec![parameters::Value::Null; definition.parameters().len()];
    session.explain(&query, nulls.iter()).await?;
    session.close().await;
    Ok(query.columns.into_iter().map(|column| column.name).collect())
}

impl Opened {
    /// The server process that will run the query: who ends it, ends the run.
    pub fn backend(&self) -> ServerProcess {
        self.session.backend()
    }

    /// Columns of the result.
    pub fn columns(&self) -> &[SourceColumn] {
        &self.query.columns
    }

    /// What the run sees.
    pub fn snapshot(&self) -> &Snapshot {
        self.session.snapshot()
    }

    /// Ends without running the query.
    pub async fn close(self) {
        self.session.close().await;
    }

    /// Runs the query into a file. On an error, or when `watch.stop` says so, the connection is
    /// closed at once, which ends the query on the server, and nothing of the file is visible.
    ///
    /// # Errors
    /// [`ReportError`]
    pub async fn export(
        self,
        order: &Order<'_>,
        part_bytes: usize,
        destination: &mut Destination,
        watch: &Arc<Watch>,
    ) -> Result<Exported, ReportError> {
        let source = self.query.columns.clone();
        let columns = file_columns(order.definition, &source);
        let layout = Layout {
            format: order.format,
            columns: columns.clone(),
            options: options(order),
            part_bytes,
        };
        let (snapshot, deadline) = (self.session.snapshot().clone(), self.deadline);
        let ceiling = order.limits.ceiling;
        let exporting = async {
            let query = self.query.clone();
            let prepared = tokio::select! {
                prepared = self.prepare(order) => prepared?,
                () = watch.stop.cancelled() => return Err(ReportError::Stopped),
            };
            let source = source.clone();
            match prepared {
                Prepared::Whole(mut session) => {
                    let rows = session.rows(&query, order.parameters.values())?;
                    let written = pipeline::run(
                        Reading::Rows(rows),
                        source,
                        layout,
                        ceiling,
                        destination,
                        watch,
                    )
                    .await?;
                    session.close().await;
                    Ok((written, 1))
                }
                Prepared::Parts(parts) => {
                    let ranges = parts.ranges();
                    let reading = Reading::Parts(parts);
                    let written =
                        pipeline::run(reading, source, layout, ceiling, destination, watch).await?;
                    Ok((written, ranges))
                }
            }
        };
        let (written, ranges) = within(deadline, order.limits.timeout, watch, exporting).await?;
        let columns = source.into_iter().zip(columns).collect();
        Ok(Exported { written, columns, snapshot, ranges })
    }

    /// Opens further connections where the definition names a key and splitting by it pays.
    async fn prepare(self, order: &Order<'_>) -> Result<Prepared, ReportError> {
        let Self { session, query, key, deadline: _, database, limits } = self;
        match key {
            Some(key) if order.limits.split.connections > 1 => {
                let values = order.parameters.values().cloned().collect();
                let connecting = Connecting { database: &database, limits: &limits };
                split::prepare(session, &query, key, values, order.limits.split, connecting).await
            }
            Some(_) | None => Ok(Prepared::Whole(session)),
        }
    }
}

/// Lets the pipeline stop in order when its time is over, so that its upload is aborted.
async fn within<T>(
    deadline: Instant,
    timeout: Duration,
    watch: &Watch,
    run: impl Future<Output = Result<T, ReportError>>,
) -> Result<T, ReportError> {
    tokio::pin!(run);
    tokio::select! {
        done = &mut run => done,
        () = tokio::time::sleep_until(deadline) => {
            watch.stop.cancel();
            match run.await {
                Ok(done) => Ok(done),
                Err(ReportError::Stopped) => {
                    Err(ReportError::Timeout { limit_secs: timeout.as_secs() })
                }
                Err(error) => Err(error),
            }
        }
    }
}

fn options(order: &Order<'_>) -> Options {
    Options {
        reader: order.presentation.reader,
        byte_order_mark: order.presentation.byte_order_mark,
        delimiter: u8::try_from(order.presentation.delimiter).unwrap_or(b','),
        time_zone: order.definition.time_zone(),
        sheet_name: order.definition.title().to_owned(),
        compression: order.presentation.compression,
        ..Options::default()
    }
}

/// The file's columns: as the definition describes them, otherwise by name.
fn file_columns(definition: &Definition, source: &[SourceColumn]) -> Vec<Column> {
    source
        .iter()
        .map(|column| {
            let described = definition.columns().iter().find(|spec| spec.name == column.name);
            Column {
                name: column.name.clone(),
                label: described
                    .and_then(|spec| spec.label.clone())
                    .unwrap_or_else(|| column.name.clone()),
                kind: column.decoder.kind(),
                precision: column.precision,
                number_format: described
                    .and_then(|spec| spec.format)
                    .map(|format| format.number_format().to_owned()),
                width: described.and_then(|spec| spec.width),
            }
        })
        .collect()
}
