//! One pass over every column that can hold a text, for all names at once: what names a person
//! where no link leads, and what is left when the act is over.
//!
//! Whether a name in a row is a trace depends on whose row it is. A unique name (a username, an
//! e-mail address) is its owner's wherever it stands. A name that others may share (an address, a
//! phone number) says nothing in a row that is about somebody else. Rows of other people are
//! never changed: what stands there is counted as residue, and declared.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use sqlx::Row;

use super::chunk::{set_forms, update};
use super::names::{Found, Names, Strength};
use super::plan::{Searched, Treated};
use super::{EraseError, Eraser, People};
use crate::policy::Class;
use crate::retention::sql;
use crate::retention::treatment::{Place, Treatment, json};

/// Rows with names that are kept before they are mended.
const MEND_ROWS: usize = 500;

/// What a search found.
#[derive(Debug, Default)]
pub struct Traces {
    /// Traces that a treatment can remove, by person.
    pub removable: BTreeMap<usize, u64>,
    /// Traces in rows that a hold keeps, by person.
    pub held: BTreeMap<usize, u64>,
    /// Traces that stay by declaration, by person and column.
    pub residue: BTreeMap<usize, BTreeMap<String, u64>>,
}

/// What becomes of a name in a cell.
enum Verdict {
    /// It is nobody's trace.
    Nothing,
    /// It stays, and is told.
    Stays,
    /// It goes.
    Goes,
}

/// A row with names that go.
struct Mention {
    key: Vec<String>,
    /// By column: its position and its new value.
    values: Vec<(usize, Option<String>)>,
    people: Vec<usize>,
}

impl Eraser<'_> {
    /// Looks through every table. With `act`, what can be removed is.
    pub(super) async fn search(
        &self,
        people: &People<'_>,
        names: &Names,
        tables: &[Searched],
        act: bool,
    ) -> Result<Traces, EraseError> {
        let mut traces = Traces::default();
        for table in tables {
            self.search_table(people, names, table, act, &mut traces).await?;
        }
        Ok(traces)
    }

    async fn search_table(
        &self,
        people: &People<'_>,
        names: &Names,
        table: &Searched,
        act: bool,
        traces: &mut Traces,
    ) -> Result<(), EraseError> {
        let mut reading = self.db.begin().await?;
        set_forms(&mut reading).await?;
        let held = self.holds.predicate(&mut reading, &table.table, "t").await?;
        let statement = select(table, &held);
        let mut mentions = Vec::new();
        {
            let mut rows = sqlx::query(sql::dynamic(statement)).fetch(&mut *reading);
            while let Some(row) = rows.try_next().await? {
                let mention = self.look(people, names, table, &row, traces)?;
                let Some(mention) = mention else { continue };
                mentions.push(mention);
                if act && mentions.len() == MEND_ROWS {
                    self.mend(people, table, std::mem::take(&mut mentions)).await?;
                }
                if !act {
                    mentions.clear();
                }
            }
        }
        reading.commit().await?;
        if act && !mentions.is_empty() {
            self.mend(people, table, mentions).await?;
        }
        Ok(())
    }

    fn look(
        &self,
        people: &People<'_>,
        names: &Names,
        table: &Searched,
        row: &sqlx::postgres::PgRow,
        traces: &mut Traces,
    ) -> Result<Option<Mention>, EraseError> {
        let owner: Option<String> = row.try_get("owner")?;
        let about: Option<String> = row.try_get("about")?;
        let mut key: Option<Vec<String>> = None;
        let (mut values, mut concerned) = (Vec::new(), Vec::new());
        for (at, column) in table.columns.iter().enumerate() {
            let Some(text) = row.try_get::<Option<String>, _>(format!("v{at}").as_str())? else {
                continue;
            };
            let verdict = |found: &Found| {
                verdict(table, column, found, people, owner.as_deref(), about.as_deref())
            };
            let (mut goes, mut stays) = (Vec::new(), Vec::new());
            let readable = if column.is_json { json::texts(&text) } else { vec![text.clone()] };
            for found in readable.iter().flat_map(|text| names.find(text)) {
                match verdict(&found) {
                    Verdict::Nothing => {}
                    Verdict::Stays => stays.push(found.person),
                    Verdict::Goes => goes.push(found.person),
                }
            }
            goes.sort_unstable();
            goes.dedup();
            stays.sort_unstable();
            stays.dedup();
            for person in stays {
                let place = format!("{}.{}", table.table.plain(), column.name.as_str());
                *traces.residue.entry(person).or_default().entry(place).or_default() += 1;
            }
            if goes.is_empty() {
                continue;
            }
            let is_held: bool = row.try_get("held")?;
            let counts = if is_held { &mut traces.held } else { &mut traces.removable };
            for person in &goes {
                *counts.entry(*person).or_default() += 1;
            }
            if is_held {
                continue;
            }
            // The visit of the person's row deletes the object as well: were the path gone before,
            // nobody would know of the object any more.
            if table.is_subject && column.treatment == Treatment::DeleteObject {
                continue;
            }
            let key = match &key {
                Some(key) => key,
                None => key.insert(
                    (0..table.key.len())
                        .map(|at| row.try_get(format!("k{at}").as_str()))
                        .collect::<Result<_, _>>()?,
                ),
            };
            let is_trace = |text: &str| {
                names.find(text).iter().any(|found| matches!(verdict(found), Verdict::Goes))
            };
            let value = if column.is_json {
                Some(json::redact(&text, is_trace))
            } else {
                let place = Place {
                    table: table.origin.name.as_str(),
                    column: column.name.as_str(),
                    row: key,
                };
                let treated = column.treatment.apply(people.key(goes[0]), place, Some(&text));
                // A beginning that was kept can be the name itself.
                match treated.filter(|treated| !is_trace(treated)) {
                    Some(treated) => Some(treated),
                    None if column.not_null => Some(String::new()),
                    None => None,
                }
            };
            values.push((at, value));
            concerned.extend(goes);
        }
        concerned.sort_unstable();
        concerned.dedup();
        Ok(key.map(|key| Mention { key, values, people: concerned }))
    }

    /// Writes rows without the names, unless a hold keeps them.
    async fn mend(
        &self,
        people: &People<'_>,
        table: &Searched,
        mentions: Vec<Mention>,
    ) -> Result<(), EraseError> {
        for mention in mentions {
            let mut tx = self.db.begin().await?;
            set_forms(&mut tx).await?;
            let held = self.holds.predicate(&mut tx, &table.table, "t").await?;
            let sets: Vec<_> = mention
                .values
                .iter()
                .enumerate()
                .map(|(position, (at, _))| {
                    let column = &table.columns[*at];
                    format!("{} = new.v{position}::{}", column.name, column.type_name)
                })
                .collect();
            let statement = update(&table.table, &table.key, sets.len(), &sets.join(", "));
            let statement = format!("{statement} and not ({held})");
            let mut query = sqlx::query(sql::dynamic(statement));
            for part in &mention.key {
                query = query.bind(vec![part.clone()]);
            }
            for (_, value) in &mention.values {
                query = query.bind(vec![value.clone()]);
            }
            if query.execute(&mut *tx).await?.rows_affected() > 0 {
                self.count(&mut tx, people, &table.table, &mention.people).await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }
}

/// Whether a name that was found in a cell is a trace, and what becomes of it.
fn verdict(
    table: &Searched,
    column: &Treated,
    found: &Found,
    people: &People<'_>,
    owner: Option<&str>,
    about: Option<&str>,
) -> Verdict {
    let is = |person: Option<&str>| person == Some(people.ids[found.person].as_str());
    let is_own = is(owner) || is(about);
    let is_others = |person: Option<&str>| person.is_some() && !is(person);
    if found.strength == Strength::Tied && !is_own {
        return Verdict::Nothing;
    }
    let is_unique = found.strength == Strength::Unique;
    if table.is_subject {
        return match (is(owner), is_unique) {
            // The person's own row: the visit treats it; what it keeps is declared.
            (true, _) if column.treatment == Treatment::Keep => Verdict::Stays,
            (true, _) => Verdict::Goes,
            (false, true) => Verdict::Stays,
            (false, false) => Verdict::Nothing,
        };
    }
    if is_others(about) && !is_unique {
        return Verdict::Nothing;
    }
    if column.treatment == Treatment::Keep || table.key.is_empty() {
        return Verdict::Stays;
    }
    // Data of another person, like the phone number of two who live together.
    let is_data = !column.is_json && column.class != Class::FreeText;
    if is_data && (is_others(owner) || is_others(about)) {
        return if is_unique { Verdict::Stays } else { Verdict::Nothing };
    }
    Verdict::Goes
}

fn select(table: &Searched, held: &str) -> String {
    let keys =
        table.key.iter().enumerate().map(|(at, key)| format!("t.{}::text as k{at}", key.name));
    let values = table
        .columns
        .iter()
        .enumerate()
        .map(|(at, column)| format!("t.{}::text as v{at}", column.name));
    let person =
        |person: &Option<String>| person.clone().unwrap_or_else(|| "null::text".to_owned());
    let known: Vec<_> =
        table.columns.iter().map(|column| format!("t.{} is not null", column.name)).collect();
    format!(
        "select {}, {} as owner, {} as about, ({held}) as held from {} t where {}",
        keys.chain(values).collect::<Vec<_>>().join(", "),
        person(&table.owner),
        person(&table.about),
        table.table,
        known.join(" or "),
    )
}
