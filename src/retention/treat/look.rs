//! What of a rule's rows is not as it should be yet. The preview asks so before a run, and the run
//! when it is at the end of a table.

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use sqlx::{PgConnection, Row};

use super::{Treats, texts};
use crate::retention::error::RetentionError;
use crate::retention::keyring::Keyring;
use crate::retention::plan::key_text;
use crate::retention::rule::Rule;
use crate::retention::sql::dynamic;

/// Keys that are shown.
const SAMPLE_KEYS: usize = 5;

/// Rows that are old enough and not as they should be.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that may be treated.
    pub free: i64,
    /// Those that a hold keeps.
    pub held: i64,
    /// Age of the oldest that may be treated.
    pub oldest: Option<DateTime<Utc>>,
    /// Age of the newest.
    pub newest: Option<DateTime<Utc>>,
    /// Exclusive or of the hashes of their keys, under two seeds.
    pub keys: (i64, i64),
    /// The first keys.
    pub sample: Vec<String>,
}

impl Found {
    fn add(&mut self, key: &str, age: Option<DateTime<Utc>>, hashes: (i64, i64)) {
        self.free += 1;
        self.oldest = [self.oldest, age].into_iter().flatten().min();
        self.newest = [self.newest, age].into_iter().flatten().max();
        self.keys = (self.keys.0 ^ hashes.0, self.keys.1 ^ hashes.1);
        // Rows come in any order: the first keys are the same every time.
        let before = |known: &String| (known.len(), known.as_str()) < (key.len(), key);
        let place = self.sample.partition_point(before);
        if place < SAMPLE_KEYS {
            self.sample.insert(place, key.to_owned());
            self.sample.truncate(SAMPLE_KEYS);
        }
    }
}

/// Looks at every row that is old enough. `held` is SQL over the row.
///
/// # Errors
/// The database's.
pub async fn look(
    connection: &mut PgConnection,
    rule: &Rule,
    treats: &Treats,
    keyring: &Keyring,
    held: &str,
) -> Result<Found, RetentionError> {
    let alias = rule.alias();
    let key = key_text(rule);
    let differs = treats.differs();
    // Only the keys can tell of what is treated here.
    let is_left = if treats.here().next().is_some() { "true" } else { differs.as_str() };
    let statement = format!(
        "select {key} as key, {age} as age, {held} as held, {differs} as differs,
                hashtextextended({key}, 0) as hash_0, hashtextextended({key}, 1) as hash_1,
                array[{row}]::text[] as row, array[{values}]::text[] as values
           from {table} as {alias}
          where {eligible} and {is_left}",
        age = rule.age_of(),
        row = texts(alias, rule.key.iter().map(|column| &column.name)),
        values = texts(alias, treats.here().map(|column| &column.name)),
        table = rule.table,
        eligible = rule.is_eligible(),
    );
    let mut found = Found::default();
    let mut rows = sqlx::query(dynamic(statement)).persistent(false).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let (key, values): (Vec<String>, Vec<Option<String>>) =
            (row.try_get("row")?, row.try_get("values")?);
        let differs: bool = row.try_get("differs")?;
        if !differs && treats.apply(keyring, &key, &values).is_none() {
            continue;
        }
        if row.try_get("held")? {
            found.held += 1;
        } else {
            let hashes = (row.try_get("hash_0")?, row.try_get("hash_1")?);
            found.add(row.try_get("key")?, row.try_get("age")?, hashes);
        }
    }
    Ok(found)
}
