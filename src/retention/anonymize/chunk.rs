//! One visit: the rows of a table that a link ties to people, treated chunk by chunk.
//!
//! Each chunk is one short transaction: it reads rows by key behind the one before, computes what
//! they become, writes those that differ, counts them for each person, and checks by the count
//! that the erasures are still this process's. Treatments are fixed points, so a chunk that is
//! done again writes nothing, and no cursor needs to outlive the process.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::plan::{KeyColumn, Treated, Visit};
use super::{EraseError, Eraser, People};
use crate::db::{erasures, sqlstate};
use crate::retention::keyring::Key;
use crate::retention::sql::{self, TableName};
use crate::retention::treatment::{Place, Treatment};
use crate::store::foreign_object;

/// How long a chunk waits for the rows of somebody else's transaction.
const LOCK_TIMEOUT: &str = "2s";
/// How often a chunk that met a lock, a deadlock or a conflict is done again.
const MAX_TRIES: u32 = 10;

/// What a visit found.
#[derive(Debug, Default)]
pub struct Visited {
    /// Rows changed.
    pub changed: u64,
    /// Rows that a hold keeps, by person.
    pub held: BTreeMap<usize, u64>,
}

/// A row and what becomes of it.
struct Change {
    key: Vec<String>,
    person: usize,
    values: Vec<Option<String>>,
    /// Objects that its values name, to be deleted before them.
    objects: Vec<String>,
}

impl Eraser<'_> {
    /// Treats every row of a visit. With `act` false only looks whether something is left to do.
    pub(super) async fn visit(
        &self,
        people: &People<'_>,
        visit: &Visit,
        act: bool,
    ) -> Result<Visited, EraseError> {
        let mut visited = Visited::default();
        let mut after: Option<Vec<String>> = None;
        loop {
            let Chunk { seen, changed, held, last } =
                self.chunk_with_tries(people, visit, after.as_deref(), act).await?;
            visited.changed += changed;
            for person in held {
                *visited.held.entry(person).or_default() += 1;
            }
            if seen < self.settings.chunk_rows {
                return Ok(visited);
            }
            after = last;
        }
    }

    async fn chunk_with_tries(
        &self,
        people: &People<'_>,
        visit: &Visit,
        after: Option<&[String]>,
        act: bool,
    ) -> Result<Chunk, EraseError> {
        let mut tries = 0;
        loop {
            match self.chunk(people, visit, after, act).await {
                Err(EraseError::Database(error)) if passes(&error) && tries < MAX_TRIES => {
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    async fn chunk(
        &self,
        people: &People<'_>,
        visit: &Visit,
        after: Option<&[String]>,
        act: bool,
    ) -> Result<Chunk, EraseError> {
        let mut tx = self.db.begin().await?;
        set_forms(&mut tx).await?;
        let held = self.holds.predicate(&mut tx, &visit.table, "t").await?;
        let statement = select(visit, after.is_some(), &held, self.settings.chunk_rows, act);
        let mut query = sqlx::query(sql::dynamic(statement)).bind(&people.ids);
        if let Some(after) = after {
            for part in after {
                query = query.bind(part);
            }
        }
        let rows = query.fetch_all(&mut *tx).await?;
        let last = rows.last().map(|row| key_of(row, visit)).transpose()?;
        let (mut changes, mut held) = (Vec::new(), Vec::new());
        for row in &rows {
            let person = people.position(row.try_get::<Option<String>, _>("person")?);
            let Some(person) = person else { continue };
            let change = change_of(row, visit, people.key(person), person)?;
            let Some(change) = change else { continue };
            if row.try_get("held")? {
                held.push(person);
            } else {
                changes.push(change);
            }
        }
        let changed = changes.len() as u64;
        if act && !changes.is_empty() {
            // The object first: a crash between the two leaves a path to nothing, which the next
            // attempt clears. The other way round nobody would know of the object any more.
            for change in &changes {
                for object in &change.objects {
                    if let Some(path) = foreign_object(object) {
                        self.store.delete(&path).await?;
                    }
                }
            }
            write(&mut tx, &visit.table, &visit.key, &visit.columns, &changes).await?;
            let by_person: Vec<_> = changes.iter().map(|change| change.person).collect();
            self.count(&mut tx, people, &visit.table, &by_person).await?;
        }
        tx.commit().await?;
        let seen = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        Ok(Chunk { seen, changed, held, last })
    }

    /// Counts changed rows, which also shows that the erasures are still this process's.
    pub(super) async fn count(
        &self,
        connection: &mut PgConnection,
        people: &People<'_>,
        table: &TableName,
        changed: &[usize],
    ) -> Result<(), EraseError> {
        let mut counts: BTreeMap<usize, i64> = BTreeMap::new();
        for person in changed {
            *counts.entry(*person).or_default() += 1;
        }
        let claims = || counts.keys().map(|person| &people.claimed[*person]);
        let ids: Vec<_> = claims().map(|claim| claim.id).collect();
        let attempts: Vec<_> = claims().map(|claim| claim.attempt).collect();
        let rows: Vec<_> = counts.values().copied().collect();
        let counted =
            erasures::count_rows(connection, &ids, &attempts, &table.plain(), &rows).await?;
        if counted == ids.len() as u64 { Ok(()) } else { Err(EraseError::LeaseLost) }
    }
}

struct Chunk {
    seen: u32,
    changed: u64,
    held: Vec<usize>,
    last: Option<Vec<String>>,
}

/// A lock that was not had in time, a deadlock, or a conflict: what a second try may get past.
fn passes(error: &sqlx::Error) -> bool {
    sqlstate(error).is_some_and(|code| code == "55P03" || code.starts_with("40"))
}

/// The text forms that treatments read, and how long to wait for a lock.
pub(in crate::retention) async fn set_forms(
    connection: &mut PgConnection,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "select set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, YMD', true),
                set_config('intervalstyle', 'postgres', true),
                set_config('lock_timeout', $1, true)",
    )
    .bind(LOCK_TIMEOUT)
    .execute(connection)
    .await?;
    Ok(())
}

/// The next rows of a visit, locked if they are to be changed.
fn select(visit: &Visit, is_next: bool, held: &str, limit: u32, act: bool) -> String {
    let key = sql::list("t.", visit.key.iter().map(|column| &column.name));
    let texts = |prefix: &str, count: usize, name: &dyn Fn(usize) -> String| {
        (0..count).map(|at| format!("{}::text as {prefix}{at}", name(at))).collect::<Vec<_>>()
    };
    let keys = texts("k", visit.key.len(), &|at| format!("t.{}", visit.key[at].name));
    let values = texts("v", visit.columns.len(), &|at| format!("t.{}", visit.columns[at].name));
    let next = if is_next {
        let bound = visit.key.iter().enumerate();
        let bound: Vec<_> =
            bound.map(|(at, column)| format!("${}::text::{}", at + 2, column.type_name)).collect();
        format!(" and ({key}) > ({})", bound.join(", "))
    } else {
        String::new()
    };
    format!(
        "select {}, {}, {} as person, ({held}) as held
           from {} t
          where {}{next}
          order by {key}
          limit {limit}{}",
        keys.join(", "),
        values.join(", "),
        visit.link.person,
        visit.table,
        visit.link.condition,
        if act { " for update of t" } else { "" },
    )
}

fn key_of(row: &PgRow, visit: &Visit) -> Result<Vec<String>, sqlx::Error> {
    (0..visit.key.len()).map(|at| row.try_get(format!("k{at}").as_str())).collect()
}

/// What becomes of a row; `None` where it is as it should be.
fn change_of(
    row: &PgRow,
    visit: &Visit,
    key: &Key,
    person: usize,
) -> Result<Option<Change>, sqlx::Error> {
    let row_key = key_of(row, visit)?;
    let (mut values, mut objects, mut differs) = (Vec::new(), Vec::new(), false);
    for (at, column) in visit.columns.iter().enumerate() {
        let value: Option<String> = row.try_get(format!("v{at}").as_str())?;
        let place = Place {
            table: visit.origin.name.as_str(),
            column: column.name.as_str(),
            row: &row_key,
        };
        let treated = column.treatment.apply(key, place, value.as_deref());
        differs |= treated != value;
        if let (Treatment::DeleteObject, Some(object)) = (&column.treatment, value) {
            objects.push(object);
        }
        values.push(treated);
    }
    Ok(differs.then_some(Change { key: row_key, person, values, objects }))
}

/// Writes the treated values, all rows in one statement.
async fn write(
    connection: &mut PgConnection,
    table: &TableName,
    key: &[KeyColumn],
    columns: &[Treated],
    changes: &[Change],
) -> Result<(), sqlx::Error> {
    let sets: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| format!("{} = new.v{at}::{}", column.name, column.type_name))
        .collect();
    let statement = update(table, key, columns.len(), &sets.join(", "));
    let mut query = sqlx::query(sql::dynamic(statement));
    for at in 0..key.len() {
        query = query.bind(changes.iter().map(|change| change.key[at].clone()).collect::<Vec<_>>());
    }
    for at in 0..columns.len() {
        let values: Vec<_> = changes.iter().map(|change| change.values[at].clone()).collect();
        query = query.bind(values);
    }
    query.execute(connection).await?;
    Ok(())
}

/// `update table … from unnest(keys, values)`.
pub(super) fn update(table: &TableName, key: &[KeyColumn], values: usize, sets: &str) -> String {
    let arrays: Vec<_> = (1..=key.len() + values).map(|at| format!("${at}::text[]")).collect();
    let names =
        (0..key.len()).map(|at| format!("k{at}")).chain((0..values).map(|at| format!("v{at}")));
    let same: Vec<_> = key
        .iter()
        .enumerate()
        .map(|(at, column)| format!("t.{} = new.k{at}::{}", column.name, column.type_name))
        .collect();
    format!(
        "update {table} t set {sets} from unnest({}) as new ({}) where {}",
        arrays.join(", "),
        names.collect::<Vec<_>>().join(", "),
        same.join(" and "),
    )
}
