//! One chunk of a policy that makes old rows anonymous: look, treat, write, account.
//!
//! 1. A window of the table is walked (see [`super::walk`]), and what is old enough in it and not
//!    held is read, with what tells one version of a row from another. Nothing is locked yet.
//! 2. What takes a key is computed here. Rows that are as they should be already are left alone:
//!    treatments are fixed points, so a second run changes nothing.
//! 3. The others are locked with SKIP LOCKED, looked at again, and written in one statement. A row
//!    that changed since 1 is another version, for which the chunk looks again; one that somebody
//!    works on is left for a later pass.
//!
//! The cursor is stored in the same transaction. Keys never reach the database, tokens do.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use tokio::time::Instant;

use super::chunk::{Progress, Step};
use super::error::RetentionError;
use super::export::in_time;
use super::guard::Guard;
use super::keyring::Keyring;
use super::plan::key_text;
use super::rule::Rule;
use super::run::{self, ChunkDone};
use super::sql::{Ident, dynamic};
use super::treatment::Treatment;
use super::walk::{From, Walk};
use crate::store::{Store, foreign_object};

mod columns;
mod look;

pub use columns::{Treated, Treats, declared_treats};
pub use look::{Found, look};

/// How often a chunk looks at its window, where rows change between a look and the lock.
const MOST_LOOKS: u32 = 3;

/// A walk through one table.
#[derive(Debug)]
pub struct Treat<'a> {
    /// Whose rows.
    pub rule: &'a Rule,
    /// What becomes of them.
    pub treats: &'a Treats,
    /// Keys of tokens.
    pub keyring: &'a Keyring,
    /// Where objects are that values name.
    pub store: &'a Store,
    /// For whom.
    pub run_id: i64,
    /// The rule's place among the run's tables.
    pub position: i32,
    /// In which order.
    pub walk: Walk<'a>,
    /// Where the walk is.
    pub from: From,
    /// Where it ends.
    pub last_key: Vec<String>,
    /// Rows that were treated so far.
    pub moved: i64,
    /// The holds, brought up to date in every chunk.
    pub guard: Guard,
    /// Time of the last chunk that the store, the holds and the account took.
    pub elsewhere: Duration,
}

/// What step 1 found.
struct Window {
    walked: i64,
    last: Option<Vec<String>>,
    rows: Vec<Seen>,
}

/// A version of a row.
struct Seen {
    place: String,
    version: String,
    key: Vec<String>,
    differs: bool,
    values: Vec<Option<String>>,
}

/// A row to be written.
struct Change {
    place: String,
    version: String,
    values: Vec<Option<String>>,
    /// Objects that its values name, to be deleted before them.
    objects: Vec<String>,
}

impl Step for Treat<'_> {
    fn name(&self) -> String {
        self.rule.table.plain()
    }

    async fn chunk(
        &mut self,
        connection: &mut PgConnection,
        rows: i64,
    ) -> Result<Progress, RetentionError> {
        let began = Instant::now();
        self.guard.for_chunk(connection).await?;
        self.elsewhere = began.elapsed();
        let held = self.guard.predicate(&self.rule.table, self.rule.alias());
        let mut done = ChunkDone::default();
        let mut looks = 0;
        let (walked, last) = loop {
            let Window { walked, last, rows: seen } = self.window(connection, &held, rows).await?;
            let Some(last) = last else { return Ok(Progress::End) };
            let changes: Vec<_> = seen.into_iter().filter_map(|row| self.change(row)).collect();
            let wanted = changes.len();
            let changes = self.lock(connection, &held, changes).await?;
            if !changes.is_empty() {
                self.delete_objects(&changes).await?;
                done.add(&self.write(connection, &changes).await?);
            }
            looks += 1;
            if changes.len() == wanted || looks == MOST_LOOKS {
                break (walked, last);
            }
        };
        self.account(connection, &done, last).await?;
        Ok(Progress::More { walked })
    }

    fn elsewhere(&self) -> Duration {
        self.elsewhere
    }
}

impl Treat<'_> {
    /// Adds what was done to the run's account, and moves the cursor.
    async fn account(
        &mut self,
        connection: &mut PgConnection,
        done: &ChunkDone,
        last: Vec<String>,
    ) -> Result<(), RetentionError> {
        let began = Instant::now();
        if done.rows > 0 {
            run::store_chunk(connection, self.run_id, self.position, done).await?;
        }
        run::store_cursor(connection, self.run_id, self.position, &last).await?;
        let action = self.rule.action.as_str();
        metrics::counter!("registrar_lifecycle_rows_total", "action" => action)
            .increment(u64::try_from(done.rows).unwrap_or(0));
        self.moved += done.rows;
        self.from = From::After(last);
        self.elsewhere += began.elapsed();
        Ok(())
    }

    async fn window(
        &self,
        connection: &mut PgConnection,
        held: &str,
        rows: i64,
    ) -> Result<Window, RetentionError> {
        let (rule, alias) = (self.rule, self.rule.alias());
        let differs = self.treats.differs();
        let is_left = if self.treats.here().next().is_some() { "true" } else { differs.as_str() };
        let keys = columns("k", rule.key.iter().map(|column| format!("{alias}.{}", column.name)));
        let values =
            columns("v", self.treats.here().map(|column| format!("{alias}.{}", column.name)));
        let all: Vec<_> = (0..keys.len())
            .map(|number| format!("k{number}"))
            .chain((0..values.len()).map(|number| format!("v{number}")))
            .map(|name| format!("coalesce(array_agg({name}), '{{}}') as {name}"))
            .collect();
        let statement = format!(
            "with walked as materialized ({window}),
             seen as materialized (
                 select {alias}.ctid::text as place, {alias}.xmin::text as version,
                        {differs} as differs, {read}
                   from {table} as {alias}
                  where {alias}.ctid = any (array(select place from walked))
                    and {eligible} and not {held} and {is_left})
             select (select count(*) from walked) as walked, ({last}) as last, found.*
               from (select coalesce(array_agg(place), '{{}}') as place,
                            coalesce(array_agg(version), '{{}}') as version,
                            coalesce(array_agg(differs), '{{}}') as differs, {all}
                       from seen) found",
            window = self.walk.window(&self.from),
            read = keys.into_iter().chain(values).collect::<Vec<_>>().join(", "),
            table = rule.place,
            eligible = rule.is_eligible(),
            last = self.walk.last_of_window(),
            all = all.join(", "),
        );
        let row = sqlx::query(dynamic(statement))
            .bind(rows)
            .bind(self.last_key.as_slice())
            .bind(self.from.row())
            .fetch_one(connection)
            .await?;
        Ok(Window {
            walked: row.try_get("walked")?,
            last: row.try_get("last")?,
            rows: self.seen(&row)?,
        })
    }

    /// The rows of a window, which stand in it column by column.
    fn seen(&self, row: &PgRow) -> Result<Vec<Seen>, RetentionError> {
        let places: Vec<String> = row.try_get("place")?;
        let mut versions = row.try_get::<Vec<String>, _>("version")?.into_iter();
        let mut differs = row.try_get::<Vec<bool>, _>("differs")?.into_iter();
        let mut keys = Vec::new();
        for number in 0..self.rule.key.len() {
            let texts: Vec<String> = row.try_get(format!("k{number}").as_str())?;
            keys.push(texts.into_iter());
        }
        let mut values = Vec::new();
        for number in 0..self.treats.here().count() {
            let texts: Vec<Option<String>> = row.try_get(format!("v{number}").as_str())?;
            values.push(texts.into_iter());
        }
        let seen = places.into_iter().map(|place| Seen {
            place,
            version: versions.next().unwrap_or_default(),
            key: keys.iter_mut().filter_map(Iterator::next).collect(),
            differs: differs.next().unwrap_or_default(),
            values: values.iter_mut().filter_map(Iterator::next).collect(),
        });
        Ok(seen.collect())
    }

    /// What becomes of a row; `None` where it is as it should be.
    fn change(&self, row: Seen) -> Option<Change> {
        let Seen { place, version, key, differs, values } = row;
        let treated = self.treats.apply(self.keyring, &key, &values);
        let objects = self.treats.here().zip(&values).filter_map(|(column, value)| {
            matches!(column.treatment, Treatment::DeleteObject).then(|| value.clone()).flatten()
        });
        let objects = objects.collect();
        match treated {
            Some(values) => Some(Change { place, version, values, objects }),
            None if differs => Some(Change { place, version, values, objects }),
            None => None,
        }
    }

    /// Locks the rows that are still what they were, and gives those back.
    async fn lock(
        &self,
        connection: &mut PgConnection,
        held: &str,
        changes: Vec<Change>,
    ) -> Result<Vec<Change>, RetentionError> {
        if changes.is_empty() {
            return Ok(changes);
        }
        let (rule, alias) = (self.rule, self.rule.alias());
        let statement = format!(
            "with locked as materialized (
                 select seen.number
                   from unnest($1::text[]::tid[], $2::text[]) with ordinality
                        as seen (place, version, number)
                   join {table} as {alias} on {alias}.ctid = seen.place
                  where {alias}.xmin::text = seen.version and {eligible} and not {held}
                    for update of {alias} skip locked)
             select coalesce(array_agg(number), '{{}}') from locked",
            table = rule.place,
            eligible = rule.is_eligible(),
        );
        let places: Vec<_> = changes.iter().map(|change| change.place.as_str()).collect();
        let versions: Vec<_> = changes.iter().map(|change| change.version.as_str()).collect();
        let query = sqlx::query_scalar(dynamic(statement)).bind(places).bind(versions);
        let numbers: BTreeSet<i64> =
            query.fetch_one(connection).await.map(|n: Vec<i64>| n.into_iter().collect())?;
        let numbered = (1..).zip(changes);
        Ok(numbered.filter(|(n, _)| numbers.contains(n)).map(|(_, change)| change).collect())
    }

    /// The object first: a crash between the two leaves a path to nothing, which the next attempt
    /// clears. The other way round nobody would know of the object any more.
    async fn delete_objects(&mut self, changes: &[Change]) -> Result<(), RetentionError> {
        let began = Instant::now();
        for path in changes.iter().flat_map(|change| &change.objects) {
            if let Some(path) = foreign_object(path) {
                in_time(self.store.delete(&path)).await?;
            }
        }
        self.elsewhere += began.elapsed();
        Ok(())
    }

    /// The rows are locked: they are where they were.
    async fn write(
        &self,
        connection: &mut PgConnection,
        changes: &[Change],
    ) -> Result<ChunkDone, RetentionError> {
        let (rule, alias) = (self.rule, self.rule.alias());
        let here = self.treats.here().count();
        let arrays = (2..2 + here).map(|number| format!(", ${number}::text[]"));
        let names = (0..here).map(|number| format!(", v{number}"));
        let key = key_text(rule);
        let statement = format!(
            "with treated as (
                 update {table} as {alias}
                    set {sets}
                   from unnest($1::text[]::tid[]{arrays}) as new (place{names})
                  where {alias}.ctid = new.place
                 returning hashtextextended({key}, 0) as hash_0,
                           hashtextextended({key}, 1) as hash_1,
                           pg_column_size({alias}.*) as bytes)
             select count(*) as done, coalesce(sum(bytes), 0)::bigint as bytes,
                    coalesce(bit_xor(hash_0), 0) as hash_0, coalesce(bit_xor(hash_1), 0) as hash_1
               from treated",
            table = rule.place,
            sets = self.treats.sets(),
            arrays = arrays.collect::<String>(),
            names = names.collect::<String>(),
        );
        let places: Vec<_> = changes.iter().map(|change| change.place.as_str()).collect();
        let mut query = sqlx::query(dynamic(statement)).bind(places);
        for number in 0..here {
            let values: Vec<_> =
                changes.iter().map(|change| change.values[number].as_deref()).collect();
            query = query.bind(values);
        }
        let row = query.fetch_one(connection).await?;
        Ok(ChunkDone {
            rows: row.try_get("done")?,
            bytes: row.try_get("bytes")?,
            keys: (row.try_get("hash_0")?, row.try_get("hash_1")?),
        })
    }
}

/// `expression::text as name0, …`
fn columns(name: &str, expressions: impl Iterator<Item = String>) -> Vec<String> {
    let columns = expressions.enumerate();
    columns.map(|(number, expression)| format!("{expression}::text as {name}{number}")).collect()
}

/// `alias.column::text, …`
fn texts<'b>(alias: &Ident, columns: impl Iterator<Item = &'b Ident>) -> String {
    columns.map(|column| format!("{alias}.{column}::text")).collect::<Vec<_>>().join(", ")
}
