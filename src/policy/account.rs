//! `account` of a table in `classification.toml`: how a person's row is closed at once when their
//! erasure is requested, opened again when that is taken back, and by which names traces of them
//! are searched for.

use serde::Serialize;

use super::name::{ColumnName, NameError, TableName};
use super::reader::{Item, Reader};

/// The most columns, names or tables of a list.
const MOST: usize = 50;

/// A table whose rows are people with accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Account {
    /// When the account was closed; null while it lives.
    pub deleted_at: ColumnName,
    /// What a closed account has in other columns, as PostgreSQL reads it.
    pub closed: Vec<(ColumnName, String)>,
    /// Unique columns whose values others may take at once.
    pub frees: Vec<ColumnName>,
    /// What people are called by: a column, or several with a space between.
    pub names: Vec<Vec<ColumnName>>,
    /// A column that tells a person from a later one with the same key, and is never changed.
    pub born: Option<ColumnName>,
    /// Rows elsewhere that open the account, and are taken back.
    pub revokes: Vec<Revocation>,
}

/// Rows that open an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Revocation {
    /// Their table.
    pub table: TableName,
    /// The column with the person's key.
    pub subject: ColumnName,
    /// The column that says when they were taken back; null while they are good.
    pub at: ColumnName,
}

/// Reads `account`.
pub(super) fn read(item: &Item<'_, '_>) -> Option<Account> {
    let table = item.table()?;
    let deleted_at = table.required("deleted_at").and_then(|item| item.parse());
    let closed = table.optional("closed").map_or(Some(Vec::new()), |item| read_closed(&item));
    let frees = table.optional("frees").map_or(Some(Vec::new()), |i| i.each(MOST, Item::parse));
    let names = table.required("names").and_then(|item| item.each(MOST, read_name));
    let born = table.optional("born").map_or(Some(None), |item| item.parse().map(Some));
    let revokes =
        table.optional("revokes").map_or(Some(Vec::new()), |i| i.each(MOST, read_revocation));
    table.finish();
    Some(Account {
        deleted_at: deleted_at?,
        closed: closed?,
        frees: frees?,
        names: names?,
        born: born?,
        revokes: revokes?,
    })
}

fn read_closed(item: &Item<'_, '_>) -> Option<Vec<(ColumnName, String)>> {
    let table: Reader<'_, '_> = item.table()?;
    let mut closed = Vec::new();
    for (name, value) in table.rest() {
        let name = name.parse().map_err(|error: NameError| value.fault(error.to_string())).ok()?;
        closed.push((name, value.text()?.to_owned()));
    }
    Some(closed)
}

fn read_name(item: &Item<'_, '_>) -> Option<Vec<ColumnName>> {
    if item.is_text() {
        return Some(vec![item.parse()?]);
    }
    item.each(MOST, Item::parse)
}

fn read_revocation(item: &Item<'_, '_>) -> Option<Revocation> {
    let row = item.table()?;
    let table = row.required("table").and_then(|item| item.parse());
    let subject = row.required("subject").and_then(|item| item.parse());
    let at = row.required("at").and_then(|item| item.parse());
    row.finish();
    Some(Revocation { table: table?, subject: subject?, at: at? })
}
