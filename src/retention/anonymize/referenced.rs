//! Accounts that a purge leaves because others still reference them: their erasure is asked for,
//! so that what references them belongs to nobody whom it names.

use sqlx::PgConnection;

use crate::retention::catalog::Catalog;
use crate::retention::error::RetentionError;
use crate::retention::guard::Guard;
use crate::retention::reference::References;
use crate::retention::rule::Rule;
use crate::retention::sql::{Ident, TableName, dynamic};

/// Boolean SQL: the row is old enough, nothing holds it, something that stays references it, and
/// no erasure of it is open or done. `$1` is the table's plain name.
fn is_left(catalog: &Catalog, guard: &Guard, rule: &Rule) -> Option<(String, String)> {
    let [key] = rule.key.as_slice() else { return None };
    let held = |table: &TableName, alias: &Ident| guard.predicate(table, alias);
    let references = References::now(catalog, &held);
    let key = format!("{}.{}", rule.alias(), key.name);
    let condition = format!(
        "{eligible} and not {held} and {blocked}
         and not exists (select from erasures e
                          where e.subject_table = $1 and e.subject_id = {key}::text
                            and e.status <> 'cancelled')",
        eligible = rule.is_eligible(),
        held = references.is_held(rule),
        blocked = references.is_blocked(rule),
    );
    Some((key, condition))
}

/// Counts them.
///
/// # Errors
/// The database's.
pub async fn count_referenced(
    connection: &mut PgConnection,
    catalog: &Catalog,
    guard: &Guard,
    rule: &Rule,
) -> Result<i64, RetentionError> {
    let Some((_, condition)) = is_left(catalog, guard, rule) else { return Ok(0) };
    let (table, alias) = (&rule.table, rule.alias());
    let count = dynamic(format!("select count(*) from {table} as {alias} where {condition}"));
    let found = sqlx::query_scalar(count).bind(table.plain()).persistent(false);
    Ok(found.fetch_one(connection).await?)
}

/// Locks at most `limit` of them and tells their keys. Holds stay as they are until the
/// transaction ends.
///
/// # Errors
/// The database's.
pub async fn lock_referenced(
    connection: &mut PgConnection,
    catalog: &Catalog,
    guard: &mut Guard,
    rule: &Rule,
    limit: i64,
) -> Result<Vec<String>, RetentionError> {
    guard.for_chunk(&mut *connection).await?;
    let Some((key, condition)) = is_left(catalog, guard, rule) else { return Ok(Vec::new()) };
    let (table, alias) = (&rule.table, rule.alias());
    let lock = dynamic(format!(
        "select {key}::text from {table} as {alias} where {condition}
          order by {key} limit $2 for update of {alias} skip locked"
    ));
    let found = sqlx::query_scalar(lock).bind(table.plain()).bind(limit).persistent(false);
    Ok(found.fetch_all(connection).await?)
}
