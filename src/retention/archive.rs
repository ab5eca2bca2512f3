//! Where archived rows live: a table of the schema `archive` for each live table, made from the
//! catalog when it is first needed, and a read-only view over both in the schema `everything`.
//!
//! An archive table has the live table's columns, primary key, `archived_at` and
//! `archive_run_id`; no foreign keys, because what it points at may go its own way. A column that
//! the live table gains is added; a column whose type has changed is refused, for a person to mend.
//!
//! Holds, classes and erasures follow a row by [`archive_name`] and [`origin`], so these two are the
//! only place that knows how archives are named.

use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::catalog::{Catalog, Table};
use super::error::RetentionError;
use super::sql::{DEFAULT_SCHEMA, Ident, Literal, TableName, dynamic, list};

/// The schema of archive tables.
pub const ARCHIVE_SCHEMA: &str = "archive";
/// The schema of views over live and archived rows.
pub const EVERYTHING_SCHEMA: &str = "everything";
/// When the row came.
pub const ARCHIVED_AT: &str = "archived_at";
/// The run that brought it.
pub const ARCHIVE_RUN_ID: &str = "archive_run_id";
/// The role that reports run as, where it exists.
const REPORT_ROLE: &str = "registrar_report";

/// Between the schema and the table in the name of an archive.
const SEPARATOR: &str = "__";
/// PostgreSQL cuts longer names off.
const MAX_NAME_BYTES: usize = 63;
/// Digits of the hash that stands for what is cut off.
const HASH_DIGITS: usize = 16;

/// The archive table of a live table: `archive.orders`, or `archive.sales__orders` for a table of
/// another schema than the default one. No two tables have the same archive: the first separator
/// ends the schema, and where that would mislead, or the name is too long, a hash is a part of it.
pub fn archive_name(live: &TableName) -> TableName {
    let (schema, table) = (live.schema.as_str(), live.name.as_str());
    if schema == DEFAULT_SCHEMA && !table.contains(SEPARATOR) {
        return TableName::new(ARCHIVE_SCHEMA, table);
    }
    let whole = format!("{schema}{SEPARATOR}{table}");
    let misleads = schema.contains(SEPARATOR) || schema.ends_with('_');
    if !misleads && whole.len() <= MAX_NAME_BYTES {
        return TableName::new(ARCHIVE_SCHEMA, whole);
    }
    let hash = hex::encode(Sha256::digest(format!("{schema}\0{table}")));
    let room = MAX_NAME_BYTES - HASH_DIGITS - SEPARATOR.len();
    let kept = whole.floor_char_boundary(room);
    let name = format!("{}{SEPARATOR}{}", &whole[..kept], &hash[..HASH_DIGITS]);
    TableName::new(ARCHIVE_SCHEMA, name)
}

/// Whether a table is an archive of another one.
pub fn is_archive(table: &TableName) -> bool {
    table.schema.as_str() == ARCHIVE_SCHEMA
}

/// Whether `archive` is where the rows of `live` go.
pub fn is_archive_of(archive: &TableName, live: &TableName) -> bool {
    is_archive(archive) && !is_archive(live) && archive_name(live) == *archive
}

/// The live table that the rows of an archive came from; `None` if it is gone, or for a table that
/// is no archive.
pub fn origin<'a>(catalog: &'a Catalog, archive: &TableName) -> Option<&'a Table> {
    catalog.tables().find(|live| is_archive_of(archive, &live.name))
}

/// Makes or extends the archive table of `live`, and its view. Does nothing when all is there.
///
/// # Errors
/// [`RetentionError::Refused`] for a table that cannot be archived as it is.
pub async fn prepare(
    connection: &mut PgConnection,
    catalog: &Catalog,
    live: &Table,
    age_column: Option<&Ident>,
) -> Result<(), RetentionError> {
    for reserved in [ARCHIVED_AT, ARCHIVE_RUN_ID] {
        if live.column(&Ident::new(reserved)).is_some() {
            let message = format!(
                "table `{}` has a column `{reserved}`, which archive tables need for themselves",
                live.name.plain()
            );
            return Err(RetentionError::refused("unplanned", message));
        }
    }
    if is_archive(&live.name) {
        let message = format!("table `{}` is an archive: it can only be purged", live.name.plain());
        return Err(RetentionError::refused("unplanned", message));
    }
    let name = archive_name(&live.name);
    if let Some(other) = made_for(connection, &name).await?
        && other != live.name.to_string()
    {
        let message = format!("`{}` holds rows of {other}: rename one of the tables", name.plain());
        return Err(RetentionError::refused("archive_differs", message));
    }
    let statements = match catalog.table(&name) {
        None => create(live, &name, age_column),
        Some(archived) => extend(live, archived)?,
    };
    if statements.is_empty() {
        return Ok(());
    }
    // Two workers that meet here wait for each other.
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('registrar archive', 0))")
        .execute(&mut *connection)
        .await?;
    for statement in statements.into_iter().chain(view(live, &name)) {
        sqlx::raw_sql(dynamic(statement)).execute(&mut *connection).await?;
    }
    grant(connection, live).await
}

/// The table that an archive table was made for; it says so in its comment.
async fn made_for(
    connection: &mut PgConnection,
    archive: &TableName,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select obj_description(to_regclass($1), 'pg_class')")
        .bind(archive.to_string())
        .fetch_one(connection)
        .await
}

fn create(live: &Table, name: &TableName, age_column: Option<&Ident>) -> Vec<String> {
    let columns: Vec<_> =
        live.columns.iter().map(|c| format!("{} {}", c.name, c.type_sql)).collect();
    let key = list("", &live.primary_key);
    let mut statements = vec![
        format!(
            "create table if not exists {name} ({}, {ARCHIVED_AT} timestamptz not null \
             default now(), {ARCHIVE_RUN_ID} bigint not null, primary key ({key}))",
            columns.join(", ")
        ),
        format!("create index on {name} ({ARCHIVE_RUN_ID})"),
        format!("comment on table {name} is {}", Literal::new(live.name.to_string())),
    ];
    // A purge of the archive looks for old rows by the same column.
    if let Some(column) = age_column.filter(|column| live.column(column).is_some()) {
        statements.push(format!("create index on {name} ({column})"));
    }
    statements
}

fn extend(live: &Table, archived: &Table) -> Result<Vec<String>, RetentionError> {
    let mut statements = Vec::new();
    for column in &live.columns {
        match archived.column(&column.name) {
            None => statements.push(format!(
                "alter table {} add column if not exists {} {}",
                archived.name, column.name, column.type_sql
            )),
            Some(known) if known.type_sql == column.type_sql => {}
            Some(known) => {
                return Err(RetentionError::refused(
                    "archive_differs",
                    format!(
                        "column `{}` of `{}` is {}, in `{}` it is {}: alter the archive's column",
                        column.name.as_str(),
                        live.name.plain(),
                        column.type_sql,
                        archived.name.plain(),
                        known.type_sql
                    ),
                ));
            }
        }
    }
    Ok(statements)
}

/// The view is called as the archive, so that no two tables share one.
fn view_name(archived: &TableName) -> TableName {
    TableName::new(EVERYTHING_SCHEMA, archived.name.as_str())
}

/// The view over live and archived rows.
fn view(live: &Table, archived: &TableName) -> Vec<String> {
    let name = view_name(archived);
    let columns = list("", live.columns.iter().map(|column| &column.name));
    vec![
        // Dropped and made again: a view's columns cannot be changed otherwise.
        format!("drop view if exists {name}"),
        format!(
            "create view {name} as \
             select {columns}, null::timestamptz as {ARCHIVED_AT} from {} \
             union all select {columns}, {ARCHIVED_AT} from {archived}",
            live.name
        ),
    ]
}

/// Reports see of the view the columns that they see of the live table, and nothing else.
async fn grant(connection: &mut PgConnection, live: &Table) -> Result<(), RetentionError> {
    let visible: Vec<String> = sqlx::query_scalar(
        "select a.attname::text
           from pg_attribute a
           join pg_roles r on r.rolname = $2
          where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
            and has_column_privilege(r.oid, a.attrelid, a.attnum, 'select')
          order by a.attnum",
    )
    .bind(live.name.to_string())
    .bind(REPORT_ROLE)
    .fetch_all(&mut *connection)
    .await?;
    if visible.is_empty() {
        return Ok(());
    }
    let visible: Vec<_> = visible.into_iter().map(Ident::new).collect();
    let name = view_name(&archive_name(&live.name));
    let grants = format!(
        "grant usage on schema {EVERYTHING_SCHEMA} to {REPORT_ROLE}; \
         grant select ({}, {ARCHIVED_AT}) on {name} to {REPORT_ROLE}",
        list("", &visible)
    );
    sqlx::raw_sql(dynamic(grants)).execute(connection).await?;
    Ok(())
}

/// A hash over these columns of the row with this alias: equal rows have equal hashes.
pub(super) fn row_hash(table: &Table, alias: &str, columns: &[&Ident]) -> String {
    // Types that PostgreSQL can hash; the others are hashed as text.
    const HASHED: [&str; 21] = [
        "bool",
        "bpchar",
        "bytea",
        "cidr",
        "date",
        "float4",
        "float8",
        "inet",
        "int2",
        "int4",
        "int8",
        "interval",
        "jsonb",
        "macaddr",
        "numeric",
        "text",
        "time",
        "timestamp",
        "timestamptz",
        "uuid",
        "varchar",
    ];
    let parts: Vec<_> = columns
        .iter()
        .map(|name| {
            let base = table.column(name).map_or("", |column| column.base_type.as_str());
            let cast = if HASHED.contains(&base) { "" } else { "::text" };
            format!("{alias}.{name}{cast}")
        })
        .collect();
    format!("hash_record_extended(row({}), 0)", parts.join(", "))
}

/// The literal of a run's number.
pub(super) fn run_literal(run_id: i64) -> String {
    format!("{}::bigint", Literal::new(run_id.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn name(schema: &str, table: &str) -> String {
        let archive = archive_name(&TableName::new(schema, table));
        assert_eq!(archive.schema.as_str(), ARCHIVE_SCHEMA);
        archive.name.as_str().to_owned()
    }

    #[test]
    fn an_archive_is_named_for_its_table_and_its_schema() {
        assert_eq!(name("public", "orders"), "orders");
        assert_eq!(name("sales", "orders"), "sales__orders");
        assert_eq!(name("public", "sales__orders"), "public__sales__orders");
    }

    #[test]
    fn no_two_tables_have_the_same_archive_and_no_name_is_cut_off() {
        let long = "x".repeat(MAX_NAME_BYTES);
        let wide = "é".repeat(31);
        let words = ["a", "b", "a_", "_b", "a__b", "b__a", "a__", "__b", "public", &long, &wide];
        let mut seen = BTreeSet::new();
        for schema in words {
            for table in words {
                let archive = name(schema, table);
                assert!(archive.len() <= MAX_NAME_BYTES, "{archive}");
                assert!(seen.insert(archive.clone()), "{schema}.{table} is another's {archive}");
            }
        }
    }
}
