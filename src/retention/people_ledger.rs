//! People whom a purge deletes: the ledger tells of them before they go, so that a backup from
//! before does not bring them back.
//!
//! A chunk writes one entry for all of its people, while their rows are locked; what goes must be as
//! many as it tells of. Nothing here knows which tables hold people: the classification says so.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use tokio::time::Instant;

use super::account::born_of;
use super::archive::is_archive_of;
use super::catalog::Catalog;
use super::chunk::Attempt;
use super::error::RetentionError;
use super::export::in_time;
use super::keyring::{KeyError, Keyring};
use super::ledger::{self, LedgerError, LedgerObject, Purge};
use super::rule::{Action, Rule, table_name};
use super::run::{self, Claimed};
use super::sql::{Ident, TableName, dynamic};
use crate::policy::{Classification, IfReferenced, Kind, Policy};
use crate::store::Store;

/// Forms of times that a token does not depend on, for one query: what the chunk has set comes back
/// with the savepoint, and locks that were taken before it stay.
const TOKEN_FORMS: &str = "savepoint forms;
     set local timezone = 'UTC';
     set local datestyle = 'ISO, YMD'";
const OWN_FORMS: &str = "rollback to savepoint forms; release savepoint forms";

/// Tells the ledger of the people of a run.
#[derive(Debug)]
pub struct PeopleLedger<'a> {
    store: &'a Store,
    keyring: &'a Keyring,
    claimed: &'a Claimed,
    attempt: i32,
    people: BTreeMap<TableName, People>,
}

/// A table of people, live or archived.
#[derive(Debug)]
struct People {
    /// The live table's name.
    live: String,
    key: Ident,
    born: Option<Ident>,
}

/// People who may go: the ledger tells of them.
#[derive(Debug)]
pub struct Told {
    /// Their table.
    pub table: TableName,
    /// How many.
    pub people: i64,
    /// Time that the store took.
    pub took: Duration,
    written: LedgerObject,
}

/// Whether a policy deletes people, so that the ledger must be told.
pub fn deletes_people(policy: &Policy, classification: &Classification) -> bool {
    let Kind::Purge(purge) = &policy.kind else { return false };
    let cascades = purge.tables.iter().filter_map(|table| match &table.if_referenced {
        IfReferenced::Cascade(tables) => Some(tables),
        IfReferenced::Refuse | IfReferenced::Anonymize => None,
    });
    let named = purge.tables.iter().map(|table| &table.name).chain(cascades.flatten());
    named.map(table_name).any(|table| live_people(classification, &table).is_some())
}

/// The live table of people that a table is, or is the archive of, with its column of birth.
fn live_people(
    classification: &Classification,
    table: &TableName,
) -> Option<(TableName, Option<Ident>)> {
    classification.tables.iter().find_map(|(name, classified)| {
        let account = classified.account.as_ref()?;
        let live = table_name(name);
        let born = account.born.as_ref().map(|column| Ident::new(column.as_str()));
        (live == *table || is_archive_of(table, &live)).then_some((live, born))
    })
}

impl<'a> PeopleLedger<'a> {
    /// For the rules of a run. Where one of them deletes people there must be keys.
    ///
    /// # Errors
    /// [`RetentionError::Refused`]
    pub fn new<'r>(
        store: &'a Store,
        keyring: Option<&'a Keyring>,
        classification: &Classification,
        catalog: &Catalog,
        rules: impl Iterator<Item = &'r Rule>,
        (claimed, attempt): (&'a Claimed, &Attempt),
    ) -> Result<Option<Self>, RetentionError> {
        let mut people = BTreeMap::new();
        for rule in rules.filter(|rule| rule.action == Action::Purge) {
            for name in rule.along.iter().chain([&rule.table]) {
                let Some((live, born)) = live_people(classification, name) else { continue };
                let table = catalog.table(name).map(|table| table.primary_key.as_slice());
                let Some([key]) = table else {
                    let message =
                        format!("table `{}` of people needs a key of one column", name.plain());
                    return Err(RetentionError::refused("unplanned", message));
                };
                let known = People { live: live.plain(), key: key.clone(), born };
                people.insert(name.clone(), known);
            }
        }
        if people.is_empty() {
            return Ok(None);
        }
        let keyring = keyring.ok_or_else(|| bad_keys(&KeyError::NoKeys))?;
        Ok(Some(Self { store, keyring, claimed, attempt: attempt.number, people }))
    }

    /// Whether rows of this table are people.
    pub fn concerns(&self, table: &TableName) -> bool {
        self.people.contains_key(table)
    }

    /// Tells of the rows at these places of `source`, which the caller has locked. `None`: the
    /// table holds no people, or there are no places.
    ///
    /// # Errors
    /// [`RetentionError`]: then nobody may go.
    pub async fn tell(
        &self,
        connection: &mut PgConnection,
        table: &TableName,
        source: &TableName,
        places: &[String],
    ) -> Result<Option<Told>, RetentionError> {
        let Some(known) = self.people.get(table).filter(|_| !places.is_empty()) else {
            return Ok(None);
        };
        let (tokens, begun_at) = self.tokens(connection, known, source, places).await?;
        let people = i64::try_from(tokens.len()).unwrap_or(i64::MAX);
        let purge = Purge {
            table: known.live.clone(),
            tokens,
            key_id: self.keyring.active_id().to_owned(),
            run: self.claimed.id,
            as_of: self.claimed.as_of,
            attempt: self.attempt,
            policy_digest: self.claimed.policy_digest.clone(),
            begun_at,
        };
        let began = Instant::now();
        let write = ledger::write_purge(self.store, self.keyring, purge);
        let written = in_time(write).await?;
        Ok(Some(Told { table: table.clone(), people, took: began.elapsed(), written }))
    }

    async fn tokens(
        &self,
        connection: &mut PgConnection,
        known: &People,
        source: &TableName,
        places: &[String],
    ) -> Result<(Vec<String>, DateTime<Utc>), RetentionError> {
        let statement = format!(
            "select t.{}::text as id, {} as born, now() as begun_at
               from {source} t
              where t.ctid = any ($1::text[]::tid[])",
            known.key,
            born_of(known.born.as_ref()),
        );
        sqlx::raw_sql(TOKEN_FORMS).execute(&mut *connection).await?;
        let rows = sqlx::query(dynamic(statement)).bind(places).fetch_all(&mut *connection).await?;
        sqlx::raw_sql(OWN_FORMS).execute(&mut *connection).await?;
        let key = self.keyring.active();
        let mut tokens = Vec::with_capacity(rows.len());
        for row in &rows {
            let (id, born): (String, Option<String>) = (row.try_get("id")?, row.try_get("born")?);
            tokens.push(ledger::token(key, &known.live, &id, born.as_deref()));
        }
        let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok((tokens, first.try_get("begun_at")?))
    }

    /// Notes an entry in the transaction in which its people go.
    ///
    /// # Errors
    /// The database's.
    pub async fn note(
        &self,
        connection: &mut PgConnection,
        told: &Told,
    ) -> Result<(), RetentionError> {
        Ok(run::note_purge(connection, self.claimed.id, &told.written, told.people).await?)
    }
}

impl From<LedgerError> for RetentionError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => Self::Store(error),
            LedgerError::Key(error) => bad_keys(&error),
            LedgerError::Tampered { .. } => Self::refused("tampered", error.to_string()),
        }
    }
}

fn bad_keys(error: &KeyError) -> RetentionError {
    RetentionError::refused("bad_keys", error.to_string())
}
