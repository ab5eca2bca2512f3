//! A query's rows in ranges of one of its columns, read over several connections that see the
//! same snapshot.

use futures::stream::BoxStream;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments, Executor};

use crate::report::decode::Decoder;

use super::{
    CheckedQuery, Estimate, ReportDatabase, ReportError, Session, SessionLimits, Value, arguments,
    dynamic,
};

/// The longest name of a snapshot; PostgreSQL's have 22 characters and a few more.
const MAX_SNAPSHOT_NAME: usize = 64;

/// The name of a snapshot that a session holds open for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// The name goes into the text of a statement, so it must be what a server gives out:
    /// hexadecimal digits and hyphens.
    fn parse(name: String) -> Result<Self, ReportError> {
        let is_plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        match name.len() {
            1..=MAX_SNAPSHOT_NAME if name.bytes().all(is_plain) => Ok(Self(name)),
            _ => Err(ReportError::Unavailable(sqlx::Error::Protocol(
                "the server gave a snapshot a name of another kind".to_owned(),
            ))),
        }
    }
}

/// The column that a query is split by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its number.
    pub column: usize,
    /// How its values are numbers.
    pub kind: KeyKind,
}

/// The types that a key may have. Each of its values has a number, in the same order; the ends of
/// ranges are such numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// `smallint`, `integer` or `bigint`: the number itself.
    Integer,
    /// `date`: days since 2000-01-01.
    Date,
    /// `timestamp`: microseconds since 2000-01-01.
    Timestamp,
    /// `timestamptz`: microseconds since 2000-01-01 UTC.
    TimestampTz,
}

impl KeyKind {
    /// The kind of a column's values, if they can be keys.
    pub const fn of(decoder: Decoder) -> Option<Self> {
        match decoder {
            Decoder::Int2 | Decoder::Int4 | Decoder::Int8 => Some(Self::Integer),
            Decoder::Date => Some(Self::Date),
            Decoder::Timestamp => Some(Self::Timestamp),
            Decoder::TimestampTz => Some(Self::TimestampTz),
            Decoder::Bool
            | Decoder::Oid
            | Decoder::Float4
            | Decoder::Float8
            | Decoder::Numeric
            | Decoder::Text
            | Decoder::Json
            | Decoder::Jsonb
            | Decoder::Bytea
            | Decoder::Time
            | Decoder::Uuid => None,
        }
    }

    const fn epoch(self) -> &'static str {
        match self {
            Self::Integer => "0::bigint",
            Self::Date => "date '2000-01-01'",
            Self::Timestamp => "timestamp '2000-01-01 00:00:00'",
            Self::TimestampTz => "timestamptz '2000-01-01 00:00:00+00'",
        }
    }

    /// The number of a value that is neither NULL nor infinite, as SQL.
    fn number(self, value: &str) -> String {
        let epoch = self.epoch();
        match self {
            Self::Integer => format!("{value}::bigint"),
            Self::Date => format!("({value} - {epoch})::bigint"),
            Self::Timestamp | Self::TimestampTz => {
                format!("(extract(epoch from {value} - {epoch}) * 1000000)::bigint")
            }
        }
    }

    /// The value that has a number, as SQL.
    fn value(self, number: &str) -> String {
        let epoch = self.epoch();
        match self {
            Self::Integer => format!("{number}::bigint"),
            Self::Date => format!("({epoch} + {number}::bigint::integer)"),
            Self::Timestamp | Self::TimestampTz => {
                format!("({epoch} + {number}::bigint * interval '1 microsecond')")
            }
        }
    }

    /// The condition that a value has a number, as SQL. Infinite dates have none.
    fn has_number(self, value: &str) -> String {
        match self {
            Self::Integer => format!("{value} is not null"),
            Self::Date | Self::Timestamp | Self::TimestampTz => format!("isfinite({value})"),
        }
    }

    const fn type_name(self) -> &'static str {
        match self {
            Self::Integer => "bigint",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::TimestampTz => "timestamptz",
        }
    }
}

/// Some of a query's rows, by the number of their key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// From one value on and below another; `None` is open.
    Keys {
        /// The least key.
        from: Option<i64>,
        /// The key after the last.
        below: Option<i64>,
    },
    /// The rows whose key is NULL.
    Null,
}

/// The rows of a query that a range holds, with what is bound in them.
#[derive(Debug)]
struct Ranged {
    sql: String,
    arguments: PgArguments,
}

impl ReportDatabase {
    /// As [`Self::begin`], but on the snapshot of another session, and with its name: who ends the
    /// processes of that name ends this one too.
    ///
    /// # Errors
    /// As [`Self::begin`]; [`ReportError::Sql`] when the other session has ended.
    pub async fn join(
        &self,
        limits: &SessionLimits,
        first: &Session,
        snapshot: &SnapshotName,
    ) -> Result<Session, ReportError> {
        self.begin_on(limits, &first.name, Some(snapshot)).await
    }
}

/// Has a transaction that has not run a query yet see what another one sees.
pub(super) async fn import(
    connection: &mut sqlx::PgConnection,
    SnapshotName(name): &SnapshotName,
) -> Result<(), ReportError> {
    // The statement takes no placeholder.
    connection.execute(dynamic(format!("set transaction snapshot '{name}'"))).await?;
    Ok(())
}

impl Session {
    /// Lets other sessions see what this one sees, while its transaction lasts.
    ///
    /// # Errors
    /// [`ReportError::Sql`]
    pub async fn export_snapshot(&mut self) -> Result<SnapshotName, ReportError> {
        let name = sqlx::query_scalar("select pg_export_snapshot()");
        SnapshotName::parse(name.fetch_one(&mut self.connection).await?)
    }

    /// Shows the server that the session is not forgotten, and finds out whether it lives.
    ///
    /// # Errors
    /// [`ReportError::Unavailable`]
    pub async fn ping(&mut self) -> Result<(), ReportError> {
        Ok(self.connection.execute("select 1").await.map(|_| ())?)
    }

    /// Runs a query for the rows of a range.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub fn rows_in<'s>(
        &'s mut self,
        query: &CheckedQuery,
        key: Key,
        range: Range,
        values: &[Value],
    ) -> Result<BoxStream<'s, Result<PgRow, sqlx::Error>>, ReportError> {
        let Ranged { sql, arguments } = ranged(query, key, range, values)?;
        Ok(sqlx::query_with(dynamic(sql), arguments).persistent(false).fetch(&mut self.connection))
    }

    /// Asks the planner what a range would take.
    ///
    /// # Errors
    /// As [`Self::explain`].
    pub async fn explain_range(
        &mut self,
        query: &CheckedQuery,
        key: Key,
        range: Range,
        values: &[Value],
    ) -> Result<Estimate, ReportError> {
        let Ranged { sql, arguments } = ranged(query, key, range, values)?;
        self.explain_sql(&sql, arguments).await
    }

    /// The least and the largest key, if the planner can find them at `max_cost`: with an index
    /// it is next to nothing, otherwise it takes as long as the query.
    ///
    /// # Errors
    /// [`ReportError::Sql`]
    pub async fn key_ends(
        &mut self,
        query: &CheckedQuery,
        key: Key,
        values: &[Value],
        max_cost: f64,
    ) -> Result<Option<(i64, i64)>, ReportError> {
        let column = format!("c{}", key.column);
        let (number, has_number) = (key.kind.number(&column), key.kind.has_number(&column));
        let end = |direction: &str| {
            format!(
                "(select {number} as key from {} where {has_number}
                   order by {column} {direction} limit 1)",
                query.numbered
            )
        };
        let sql = format!(
            "select min(key), max(key) from ({} union all {}) as ends",
            end("asc"),
            end("desc")
        );
        if self.explain_sql(&sql, arguments(values.iter())?).await?.cost > max_cost {
            return Ok(None);
        }
        let ends = sqlx::query_as_with(dynamic(sql), arguments(values.iter())?).persistent(false);
        let (least, largest): (Option<i64>, Option<i64>) =
            ends.fetch_one(&mut self.connection).await?;
        Ok(least.zip(largest))
    }

    /// The values between which the statistics of a column's table see equally many rows each;
    /// none where the column stands in no table or nothing is known of it.
    ///
    /// # Errors
    /// [`ReportError::Sql`]
    pub async fn key_histogram(
        &mut self,
        query: &CheckedQuery,
        key: Key,
    ) -> Result<Vec<i64>, ReportError> {
        let Some(Some((relation, column))) = query.origins.get(key.column) else {
            return Ok(Vec::new());
        };
        let (number, has_number) = (key.kind.number("bound"), key.kind.has_number("bound"));
        // As text first: `anyarray` has no other way to an array of a known type.
        let bounds: Option<Option<Vec<i64>>> = sqlx::query_scalar(dynamic(format!(
            "select (select array_agg({number}) from unnest(s.histogram_bounds::text::{}[]) as bound
                      where {has_number})
               from pg_catalog.pg_stats s
               join pg_catalog.pg_namespace n on n.nspname = s.schemaname
               join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = s.tablename
               join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = s.attname
              where c.oid = $1 and a.attnum = $2
              order by s.inherited desc
              limit 1",
            key.kind.type_name()
        )))
        .bind(Oid(relation.0))
        .bind(column)
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(bounds.flatten().unwrap_or_default())
    }
}

fn ranged(
    query: &CheckedQuery,
    key: Key,
    range: Range,
    values: &[Value],
) -> Result<Ranged, ReportError> {
    let mut arguments = arguments(values.iter())?;
    let column = format!("c{}", key.column);
    let mut conditions = Vec::new();
    let mut bind = |operator: &str, number: i64| {
        let added = arguments.add(number);
        added.map_err(|error| ReportError::Definition(error.to_string()))?;
        let bound = key.kind.value(&format!("${}", arguments.len()));
        conditions.push(format!("{column} {operator} {bound}"));
        Ok::<_, ReportError>(())
    };
    match range {
        Range::Keys { from, below } => {
            if let Some(from) = from {
                bind(">=", from)?;
            }
            if let Some(below) = below {
                bind("<", below)?;
            }
            if from.or(below).is_none() {
                conditions.push(format!("{column} is not null"));
            }
        }
        Range::Null => conditions.push(format!("{column} is null")),
    }
    let CheckedQuery { list, numbered, .. } = query;
    let sql = format!("select {list} from {numbered} where {}", conditions.join(" and "));
    Ok(Ranged { sql, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_servers_call_snapshots_gets_into_a_statement() {
        for name in ["00000003-0000001B-1", "0000000A-00000005-12", "00000004-1"] {
            assert_eq!(SnapshotName::parse(name.to_owned()).ok(), Some(SnapshotName(name.into())));
        }
        let long = "0".repeat(MAX_SNAPSHOT_NAME + 1);
        for name in ["", "'; drop table users --", "0000000g-1", "0000 1", "é", &long] {
            assert!(SnapshotName::parse(name.to_owned()).is_err(), "{name}");
        }
    }
}
