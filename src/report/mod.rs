//! Definition + parameters → stream of rows → writer → store.
//!
//! An attempt is two steps: [`open`] connects, takes the snapshot and has the server check the
//! query; [`Opened::export`] runs it into a file. Nothing here knows a queue, HTTP or a schedule:
//! the worker, the command line and tests call the same two functions.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

mod batch;
pub mod choices;
pub mod decode;
pub mod definition;
pub mod error;
pub mod layout;
pub mod manifest;
pub mod parameters;
pub mod pipeline;
pub mod reading;
pub mod source;
pub mod split;
pub mod sql;

use crate::config::ReportConfig;
use crate::writer::{
    Column, Compression, FileType, Format, Incompressible, Options, Reader, Sheet,
};
use definition::{Definition, OnLimit, SheetView};
use error::ReportError;
use layout::RunLabel;
use parameters::BoundParameters;
use pipeline::{Ceiling, Destination, Layout, Watch, Written};
use reading::{Query, Reading};
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
    /// Of each sheet that the format has, the main one first.
    queries: Vec<CheckedQuery>,
    deadline: Instant,
    label: RunLabel,
    /// The column to split by.
    key: Option<Key>,
    /// Where further connections come from.
    database: ReportDatabase,
    limits: SessionLimits,
}

/// What a run produced.
#[derive(Debug)]
pub struct Exported {
    /// The file.
    pub written: Written,
    /// Source and file columns by sheet, the main one first; it alone in formats without sheets.
    pub sheets: Vec<Vec<(SourceColumn, Column)>>,
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
    let database = database.choose().await;
    let opening = async {
        let mut session = database.begin(&limits, &order.name).await?;
        let mut queries = Vec::new();
        if sheets_of(order).nth(1).is_some() {
            session.allow_pauses(&limits).await?;
        }
        for view in sheets_of(order) {
            let mut query = session.check(&order.definition.statement_of(view.query)).await?;
            if order.format == Format::Parquet {
                let values = || order.parameters.values_of(view.query);
                session.find_precisions(&mut query, values).await?;
            }
            queries.push(query);
        }
        let key = match queries.as_slice() {
            [query] => split_key(order.definition, query)?,
            // Sheets are read one after another, on one connection.
            _ => None,
        };
        Ok((session, queries, key))
    };
    let (session, queries, key) = tokio::time::timeout_at(deadline, opening)
        .await
        .unwrap_or(Err(ReportError::Timeout { limit_secs: timeout.as_secs() }))?;
    let label = RunLabel::default();
    Ok(Opened { session, queries, key, deadline, label, database, limits })
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
    let mut sum = Ok(Estimate { rows: 0.0, cost: 0.0, row_bytes: 0.0 });
    for (view, query) in sheets_of(order).zip(&opened.queries) {
        let estimate = opened.session.explain(query, order.parameters.values_of(view.query)).await;
        sum = sum.and_then(|sum: Estimate| {
            estimate.map(|e| Estimate {
                rows: sum.rows + e.rows,
                cost: sum.cost + e.cost,
                row_bytes: sum.row_bytes.max(e.row_bytes),
            })
        });
    }
    opened.close().await;
    sum
}

/// The sheets of a definition that a file of the order's format holds.
fn sheets_of<'a>(order: &Order<'a>) -> impl Iterator<Item = SheetView<'a>> + use<'a> {
    let count = if order.format == Format::Xlsx { usize::MAX } else { 1 };
    order.definition.sheets().take(count)
}

/// Too much is expected of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// More rows than the report may have.
    MaxRows(u64),
    /// More rows than a sheet of a workbook holds.
    SheetRows(u64),
}

impl Excess {
    /// Finds what an estimate is over.
    pub fn of(estimate: &Estimate, order: &Order<'_>) -> Option<Self> {
        let max_rows = order.limits.ceiling.max_rows;
        #[expect(clippy::cast_precision_loss, reason = "an estimate is no exact number either")]
        let is_over = |limit: u64| estimate.rows > limit as f64;
        if is_over(max_rows) {
            return Some(Self::MaxRows(max_rows));
        }
        let is_workbook = order.format == Format::Xlsx;
        (is_workbook && is_over(MAX_SHEET_ROWS)).then_some(Self::SheetRows(MAX_SHEET_ROWS))
    }

    /// For programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::MaxRows(_) => "estimate_over_max_rows",
            Self::SheetRows(_) => "estimate_over_sheet_rows",
        }
    }

    /// How many rows are allowed.
    pub const fn limit(self) -> u64 {
        match self {
            Self::MaxRows(limit) | Self::SheetRows(limit) => limit,
        }
    }
}

/// Rows of a sheet below its header (Excel's limit).
const MAX_SHEET_ROWS: u64 = 1_048_575;

/// Has the server check a definition as the report role, rights included, without running it.
/// Returns what is wrong with its description of the columns.
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
    let mut problems = Vec::new();
    for (index, view) in definition.sheets().enumerate() {
        let query = session.check(&definition.statement_of(view.query)).await?;
        if index == 0 {
            split_key(definition, &query)?;
        }
        // Rights do not depend on values: NULL for each parameter plans as well as any.
        let nulls = vec![parameters::Value::Null; view.query.names().len()];
        session.explain(&query, nulls.iter()).await?;
        problems.extend(layout::problems(&view, &query.columns));
    }
    session.close().await;
    Ok(problems)
}

impl Opened {
    /// The server process that will run the query: who ends it, ends the run.
    pub fn backend(&self) -> ServerProcess {
        self.session.backend()
    }

    /// What titles say of the run.
    #[must_use]
    pub fn labelled(self, label: RunLabel) -> Self {
        Self { label, ..self }
    }

    /// Columns of the result, of its main sheet.
    pub fn columns(&self) -> &[SourceColumn] {
        self.queries.first().map_or(&[], |query| &query.columns)
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
        let mut sheets = self.sheets(order)?;
        let columns = |(sheet, query): (&Sheet, &CheckedQuery)| {
            query.columns.iter().cloned().zip(sheet.columns.iter().cloned()).collect()
        };
        let columns: Vec<Vec<_>> = sheets.iter().zip(&self.queries).map(columns).collect();
        let main = sheets.remove(0);
        let layout = Layout {
            format: order.format,
            columns: main.columns,
            options: Options { layout: main.layout, more_sheets: sheets, ..options(order) },
            part_bytes,
        };
        let (snapshot, deadline) = (self.session.snapshot().clone(), self.deadline);
        let ceiling = order.limits.ceiling;
        let queries = self.queries.clone();
        let sources = queries.iter().map(|query| query.columns.clone()).collect();
        // On the heap: every caller's future would be as large as all that may happen in it.
        let exporting = Box::pin(async {
            let prepared = tokio::select! {
                prepared = self.prepare(order) => prepared?,
                () = watch.stop.cancelled() => return Err(ReportError::Stopped),
            };
            match prepared {
                Prepared::Whole(mut session) => {
                    let values =
                        sheets_of(order).map(|view| order.parameters.values_of(view.query));
                    let queries = queries
                        .into_iter()
                        .zip(values)
                        .map(|(checked, values)| Query { checked, values: values.collect() });
                    let reading = Reading::Queries(&mut session, queries.collect());
                    let written =
                        pipeline::run(reading, sources, layout, ceiling, destination, watch)
                            .await?;
                    session.close().await;
                    Ok((written, 1))
                }
                Prepared::Parts(parts) => {
                    let ranges = parts.ranges();
                    let reading = Reading::Parts(parts);
                    let written =
                        pipeline::run(reading, sources, layout, ceiling, destination, watch)
                            .await?;
                    Ok((written, ranges))
                }
            }
        });
        let (written, ranges) = within(deadline, order.limits.timeout, watch, exporting).await?;
        Ok(Exported { written, sheets: columns, snapshot, ranges })
    }

    /// Opens further connections where the definition names a key and splitting by it pays.
    async fn prepare(self, order: &Order<'_>) -> Result<Prepared, ReportError> {
        let Self { session, queries, key, deadline: _, label: _, database, limits } = self;
        match (key, queries.as_slice()) {
            (Some(key), [query]) if order.limits.split.connections > 1 => {
                let values = sheets_of(order)
                    .flat_map(|view| order.parameters.values_of(view.query))
                    .cloned()
                    .collect();
                let connecting = Connecting { database: &database, limits: &limits };
                split::prepare(session, query, key, values, order.limits.split, connecting).await
            }
            _ => Ok(Prepared::Whole(session)),
        }
    }

    /// The sheets as the file has them: at least the main one.
    fn sheets(&self, order: &Order<'_>) -> Result<Vec<Sheet>, ReportError> {
        let Order { definition, parameters, .. } = order;
        let snapshot = self.session.snapshot();
        sheets_of(order)
            .zip(&self.queries)
            .map(|(view, query)| {
                let title = layout::title(&view, definition, parameters, snapshot, &self.label);
                layout::sheet(&view, &query.columns, title)
                    .map_err(|problems| ReportError::Definition(problems.join("; ")))
            })
            .collect()
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
        sheet_name: order.definition.main_sheet_name().to_owned(),
        compression: order.presentation.compression,
        ..Options::default()
    }
}
