//! The database of reports: one connection per attempt, one read-only snapshot, one statement
//! for each sheet.
//!
//! The only gate through which SQL that people wrote reaches a server (`AssertSqlSafe`). What keeps
//! it harmless, from the outside in:
//! - the connection logs in as a role of its own that may read what reports may see, and is a
//!   member of nothing; `SET ROLE` would be no sandbox;
//! - the transaction is read-only, has time-outs, and is always rolled back;
//! - the query stands inside `select … from (…)`, which refuses everything that is not one SELECT;
//! - values are bound, never pasted.
//!
//! The connection is never shared or reused: a stream that is dropped half-way leaves it unusable.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::{
    Arguments, AssertSqlSafe, Column as _, ConnectOptions, Connection, Executor, PgConnection,
    SqlSafeStr, Statement, TypeInfo,
};

use super::choices::ChoicesCache;
use super::decode::Decoder;
use super::error::ReportError;
use super::parameters::Value;
use crate::writer::{Cell, Precision};

mod elsewhere;
mod precision;
mod ranges;
mod replica;
mod sockets;
mod trials;

pub use self::elsewhere::Signal;
pub use self::ranges::{Key, KeyKind, Range, SnapshotName};
pub(super) use self::sockets::Streaming;

/// How long a new connection may take. Longer, and the server is as good as gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many values that are no choices are told of: the rest will be wrong in the same way.
const MAX_UNKNOWN: usize = 20;
/// The server's own time-outs come this much after ours: they are the net under it.
const SERVER_TIMEOUT_SLACK: Duration = Duration::from_secs(5);

/// Where reports are read, as the report role.
#[derive(Debug, Clone)]
pub struct ReportDatabase {
    options: PgConnectOptions,
    choices: Arc<ChoicesCache>,
    fallback: Option<Arc<replica::Fallback>>,
    /// Whether this is another server than the application's.
    is_elsewhere: bool,
}

/// What a transaction of a report may take.
#[derive(Debug, Clone)]
pub struct SessionLimits {
    /// Longest statement.
    pub timeout: Duration,
    /// Longest wait for a lock.
    pub lock_timeout: Duration,
    /// IANA name of the zone that dates are computed in.
    pub time_zone: String,
}

/// A connection inside its transaction.
#[derive(Debug)]
pub struct Session {
    connection: PgConnection,
    name: String,
    backend: ServerProcess,
    snapshot: Snapshot,
}

/// The process of the server that works for a connection. The start tells it from a later one
/// that was given the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerProcess {
    /// Its number on the server.
    pub pid: i32,
    /// When it began.
    pub started_at: DateTime<Utc>,
}

/// What the transaction sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The server's time when the snapshot was taken.
    pub taken_at: DateTime<Utc>,
    /// Position in the write-ahead log, where the server tells it.
    pub lsn: Option<String>,
}

/// A query that the server has checked.
#[derive(Debug, Clone)]
pub struct CheckedQuery {
    sql: String,
    /// What is selected, by the numbers of columns.
    list: String,
    /// The query as a table whose columns are numbered: `c0`, `c1` …
    numbered: String,
    /// Columns of the result, in order.
    pub columns: Vec<SourceColumn>,
    /// Table and number of each column that stands in one.
    origins: Vec<Option<(Oid, i16)>>,
}

/// What the planner expects of a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Rows of the result.
    pub rows: f64,
    /// Cost in the planner's units.
    pub cost: f64,
    /// Bytes of a row's values.
    pub row_bytes: f64,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    /// As the query names it.
    pub name: String,
    /// PostgreSQL's name of its type.
    pub type_name: String,
    /// How its values are read.
    pub decoder: Decoder,
    /// What its type says of its numbers; for `numeric` see [`Session::find_precisions`].
    pub precision: Option<Precision>,
}

impl SourceColumn {
    /// Reads one of its values; `None` is SQL NULL.
    ///
    /// # Errors
    /// [`ReportError::Decode`]
    #[inline]
    pub(super) fn decode<'v>(&self, raw: Option<&'v [u8]>) -> Result<Cell<'v>, ReportError> {
        self.decoder
            .decode(raw)
            .map_err(|source| ReportError::Decode { column: self.name.clone(), source })
    }
}

impl ReportDatabase {
    /// Reports are read with these options.
    pub fn new(options: PgConnectOptions) -> Self {
        // A report's statement is run once: caching it would only cost memory. And it is slow by
        // nature: sqlx would log its whole text as a warning.
        let options = options.statement_cache_capacity(0).disable_statement_logging();
        Self { options, choices: Arc::default(), fallback: None, is_elsewhere: false }
    }

    /// What queries for choices returned a moment ago.
    pub(super) fn choices(&self) -> &ChoicesCache {
        &self.choices
    }

    /// Connects and begins the transaction. `name` is what `pg_stat_activity` shows.
    ///
    /// # Errors
    /// [`ReportError::Unavailable`], or [`ReportError::Sql`] where the login is refused.
    pub async fn begin(&self, limits: &SessionLimits, name: &str) -> Result<Session, ReportError> {
        self.begin_on(limits, name, None).await
    }

    async fn begin_on(
        &self,
        limits: &SessionLimits,
        name: &str,
        snapshot: Option<&SnapshotName>,
    ) -> Result<Session, ReportError> {
        let options = self.options.clone().application_name(name);
        let mut connection = tokio::time::timeout(CONNECT_TIMEOUT, sockets::connect(options))
            .await
            .map_err(|_| ReportError::Unavailable(sqlx::Error::PoolTimedOut))??;
        connection.execute("begin transaction isolation level repeatable read, read only").await?;
        if let Some(snapshot) = snapshot {
            ranges::import(&mut connection, snapshot).await?;
        }
        configure(&mut connection, limits).await?;
        // The function and not `pg_stat_activity`: the view's joins cost a new connection more than
        // a millisecond.
        let (pid, started_at, taken_at, lsn) = sqlx::query_as(
            "select pg_backend_pid(),
                    (select backend_start from pg_stat_get_activity(pg_backend_pid())),
                    now(),
                    case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                         else pg_current_wal_lsn() end::text",
        )
        .fetch_one(&mut connection)
        .await?;
        Ok(Session {
            connection,
            name: name.to_owned(),
            backend: ServerProcess { pid, started_at },
            snapshot: Snapshot { taken_at, lsn },
        })
    }
}

/// Sets the transaction's limits and how values look as text. This is the first query, so that
/// the snapshot is taken and read-only can no longer be switched off.
async fn configure(
    connection: &mut PgConnection,
    limits: &SessionLimits,
) -> Result<(), ReportError> {
    let millis = |duration: Duration| duration.as_millis().to_string();
    sqlx::query(
        "select set_config('statement_timeout', $1, false),
                set_config('lock_timeout', $2, false),
                set_config('TimeZone', $3, false),
                set_config('idle_in_transaction_session_timeout', '60s', false),
                set_config('client_connection_check_interval', '500ms', false),
                set_config('DateStyle', 'ISO, MDY', false),
                set_config('IntervalStyle', 'postgres', false),
                set_config('bytea_output', 'hex', false),
                set_config('extra_float_digits', '1', false)",
    )
    .bind(millis(limits.timeout + SERVER_TIMEOUT_SLACK))
    .bind(millis(limits.lock_timeout))
    .bind(&limits.time_zone)
    .execute(connection)
    .await?;
    Ok(())
}

impl Session {
    /// The server process of this connection.
    pub fn backend(&self) -> ServerProcess {
        self.backend
    }

    /// What the transaction sees.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Lets the transaction stand idle for as long as its statements may run: between two queries
    /// a slow store can make it wait, which is no reason to end it.
    ///
    /// # Errors
    /// [`ReportError::Unavailable`]
    pub async fn allow_pauses(&mut self, limits: &SessionLimits) -> Result<(), ReportError> {
        sqlx::query("select set_config('idle_in_transaction_session_timeout', $1, false)")
            .bind((limits.timeout + SERVER_TIMEOUT_SLACK).as_millis().to_string())
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Has the server check a query, without running it. `sql` holds `$n` placeholders with
    /// casts, one for each bound value.
    ///
    /// # Errors
    /// [`ReportError::Sql`] where the server refuses it, [`ReportError::NoColumns`].
    pub async fn check(&mut self, sql: &str) -> Result<CheckedQuery, ReportError> {
        // The newline keeps a trailing `--` comment from swallowing the bracket.
        let whole = format!("select * from (\n{sql}\n) as report");
        let statement = self.connection.prepare(dynamic(whole.clone())).await?;
        let described: Vec<_> = statement
            .columns()
            .iter()
            .map(|column| {
                let oid = column.type_info().oid().map_or(0, |oid| oid.0);
                let type_name = column.type_info().name().to_lowercase();
                (column.name().to_owned(), type_name, Decoder::for_oid(oid))
            })
            .collect();
        if described.is_empty() {
            return Err(ReportError::NoColumns);
        }
        let (list, numbered) = numbered(sql, &described);
        let sql = match described.iter().all(|(_, _, decoder)| decoder.is_some()) {
            true => whole,
            false => format!("select {list} from {numbered}"),
        };
        let columns = described
            .into_iter()
            .map(|(name, type_name, decoder)| SourceColumn {
                name,
                type_name,
                decoder: decoder.unwrap_or(Decoder::Text),
                precision: (decoder == Some(Decoder::Float4)).then_some(Precision::Single),
            })
            .collect();
        let origins = statement
            .columns()
            .iter()
            .map(|column| column.relation_id().zip(column.relation_attribute_no()))
            .collect();
        Ok(CheckedQuery { sql, list, numbered, columns, origins })
    }

    /// Runs a checked query. Rows come as the server makes them; a reader that is slow makes the
    /// server wait.
    ///
    /// # Errors
    /// [`ReportError::Definition`] when a value cannot be encoded; the stream's are the server's.
    pub fn rows<'s, 'v>(
        &'s mut self,
        query: &CheckedQuery,
        values: impl Iterator<Item = &'v Value>,
    ) -> Result<BoxStream<'s, Result<PgRow, sqlx::Error>>, ReportError> {
        let arguments = arguments(values)?;
        Ok(sqlx::query_with(dynamic(query.sql.clone()), arguments)
            .persistent(false)
            .fetch(&mut self.connection))
    }

    /// Asks the planner what running the query would take. Unlike [`Session::check`] this also
    /// checks the role's rights, as running would.
    ///
    /// # Errors
    /// [`ReportError::Sql`] where the server refuses it.
    pub async fn explain(
        &mut self,
        query: &CheckedQuery,
        values: impl Iterator<Item = &Value>,
    ) -> Result<Estimate, ReportError> {
        self.explain_sql(&query.sql, arguments(values)?).await
    }

    async fn explain_sql(
        &mut self,
        sql: &str,
        arguments: PgArguments,
    ) -> Result<Estimate, ReportError> {
        let sql = dynamic(format!("explain (format json) {sql}"));
        let plan: serde_json::Value = sqlx::query_scalar_with(sql, arguments)
            .persistent(false)
            .fetch_one(&mut self.connection)
            .await?;
        let number = |key: &str| plan.pointer(&format!("/0/Plan/{key}")).and_then(|n| n.as_f64());
        Ok(Estimate {
            rows: number("Plan Rows").unwrap_or_default(),
            cost: number("Total Cost").unwrap_or_default(),
            row_bytes: number("Plan Width").unwrap_or_default(),
        })
    }

    /// Runs a checked query for choices: the first column as text, without NULLs, and the second.
    ///
    /// # Errors
    /// [`ReportError::Sql`] where the server refuses it.
    pub async fn choices(
        &mut self,
        query: &CheckedQuery,
        limit: usize,
    ) -> Result<Vec<(String, Option<String>)>, ReportError> {
        let (names, label) = if query.columns.len() > 1 {
            ("value, label", "c.label::text")
        } else {
            ("value", "null")
        };
        let sql = dynamic(format!(
            "select c.value::text, {label}::text from ({}) as c ({names})
              where c.value is not null limit {limit}",
            query.sql
        ));
        Ok(sqlx::query_as(sql).persistent(false).fetch_all(&mut self.connection).await?)
    }

    /// The places, from 0, of those texts that a checked query for choices does not return.
    ///
    /// # Errors
    /// [`ReportError::Sql`] where the server refuses it.
    pub async fn not_among_choices(
        &mut self,
        query: &CheckedQuery,
        texts: &[String],
    ) -> Result<Vec<i64>, ReportError> {
        let names = if query.columns.len() > 1 { "value, label" } else { "value" };
        let sql = dynamic(format!(
            "select given.place - 1
               from unnest($1::text[]) with ordinality as given (value, place)
              where given.value not in (select c.value::text from ({}) as c ({names})
                                         where c.value is not null)
              order by given.place
              limit {MAX_UNKNOWN}",
            query.sql
        ));
        let unknown = sqlx::query_scalar(sql).bind(texts).persistent(false);
        Ok(unknown.fetch_all(&mut self.connection).await?)
    }

    /// Rolls back, whatever the query left, and closes the connection in order. Dropping the
    /// session instead closes it at once, and the server ends its query.
    pub async fn close(mut self) {
        let closed = async {
            self.connection.execute("rollback").await?;
            self.connection.close().await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, closed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot close a report's connection"),
            Err(_) => tracing::debug!("closing a report's connection took too long"),
        }
    }
}

/// The query as a table of numbered columns, and what to select from it.
///
/// The server turns columns whose type has no decoder into text. `format('%s')` calls the
/// type's output function, as COPY does; a cast would not (`inet::text` adds the netmask).
/// `num_nonnulls` because a composite of nulls `is null` without being it.
fn numbered(sql: &str, columns: &[(String, String, Option<Decoder>)]) -> (String, String) {
    let mut list = String::new();
    let mut names = String::new();
    for (index, (_, _, decoder)) in columns.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        names.push_str(&format!("{comma}c{index}"));
        list.push_str(&match decoder {
            Some(_) => format!("{comma}c{index}"),
            None => format!(
                "{comma}case num_nonnulls(c{index}) when 0 then null \
                 else format('%s', c{index}) end"
            ),
        });
    }
    (list, format!("(\n{sql}\n) as report ({names})"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the gate: the text is one subquery of a read-only transaction of the report role"
)]
fn dynamic(sql: String) -> sqlx::SqlStr {
    AssertSqlSafe(sql).into_sql_str()
}

fn arguments<'v>(values: impl Iterator<Item = &'v Value>) -> Result<PgArguments, ReportError> {
    let mut arguments = PgArguments::default();
    for value in values {
        let added = match value {
            Value::Null => arguments.add(None::<String>),
            Value::Text(text) => arguments.add(text),
            Value::Integer(number) => arguments.add(number),
            Value::Bigint(number) => arguments.add(number),
            // As text: the placeholder's cast makes a numeric of it, with every digit.
            Value::Numeric(digits) => arguments.add(digits),
            Value::Boolean(truth) => arguments.add(truth),
            Value::Date(date) => arguments.add(date),
            Value::Timestamptz(instant) => arguments.add(instant),
            Value::Uuid(uuid) => arguments.add(uuid),
            Value::TextList(list) | Value::NumericList(list) => arguments.add(list),
            Value::IntegerList(list) => arguments.add(list),
            Value::BigintList(list) => arguments.add(list),
            Value::BooleanList(list) => arguments.add(list),
            Value::DateList(list) => arguments.add(list),
            Value::TimestamptzList(list) => arguments.add(list),
            Value::UuidList(list) => arguments.add(list),
        };
        added.map_err(|error| ReportError::Definition(error.to_string()))?;
    }
    Ok(arguments)
}
