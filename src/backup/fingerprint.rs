//! Rows and a checksum of each table, computed by the server.
//!
//! The checksum is the sum of a 64-bit hash of each row: the order of rows does not matter, and a
//! row that is there twice counts twice. PostgreSQL's hash functions are the same on every
//! machine of one byte order; values whose type has none are hashed as text, under settings that
//! are fixed here.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row};

use super::error::BackupError;
use super::sql::trusted;

/// What texts of values depend on.
const FIXED_SETTINGS: &str = "
    set local datestyle = 'ISO, YMD'; set local intervalstyle = 'postgres';
    set local timezone = 'UTC'; set local bytea_output = 'hex'; set local extra_float_digits = 1;
    set local row_security = off; set local statement_timeout = 0;
    set local idle_in_transaction_session_timeout = 0; set local lock_timeout = 0;
    set local search_path = pg_catalog;
    set local max_parallel_workers_per_gather = 0";

/// One table of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Rows.
    pub rows: i64,
    /// See the module.
    pub checksum: String,
}

impl Table {
    /// Schema and name, as people write them.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// Prepares a transaction for [`tables`].
pub(super) async fn fix_settings(connection: &mut PgConnection) -> Result<(), BackupError> {
    sqlx::raw_sql(FIXED_SETTINGS)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(BackupError::database("prepare the reading transaction"))
}

/// Counts and hashes every table that `pg_dump` takes with its rows.
pub(super) async fn tables(connection: &mut PgConnection) -> Result<Vec<Table>, BackupError> {
    let statements = sqlx::query(STATEMENTS)
        .fetch_all(&mut *connection)
        .await
        .map_err(BackupError::database("list the tables"))?;
    let mut tables = Vec::with_capacity(statements.len());
    for statement in statements {
        let counted = sqlx::query(trusted(statement.get("statement")))
            .fetch_one(&mut *connection)
            .await
            .map_err(BackupError::database("count and hash a table"))?;
        tables.push(Table {
            schema: statement.get("schema"),
            name: statement.get("name"),
            rows: counted.get("rows"),
            checksum: counted.get("checksum"),
        });
    }
    Ok(tables)
}

/// The first differences, in words; `None`: all is the same.
pub(super) fn difference(expected: &[Table], found: &[Table]) -> Option<String> {
    const SHOWN: usize = 5;
    let mut differences = Vec::new();
    for table in expected {
        let same = |other: &&Table| other.schema == table.schema && other.name == table.name;
        match found.iter().find(same) {
            None => differences.push(format!("{} is missing", table.qualified())),
            Some(other) if other.rows != table.rows => differences.push(format!(
                "{} has {} rows instead of {}",
                table.qualified(),
                other.rows,
                table.rows
            )),
            Some(other) if other.checksum != table.checksum => {
                differences.push(format!("{} has other values", table.qualified()));
            }
            Some(_) => {}
        }
    }
    let more = differences.len().saturating_sub(SHOWN);
    differences.truncate(SHOWN);
    if differences.is_empty() {
        return None;
    }
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    Some(format!("{}{rest}", differences.join("; ")))
}

/// One statement for each table. Generated columns are left to the server that makes them anew,
/// and tables of extensions to the extension.
const STATEMENTS: &str = "
    select n.nspname::text as schema,
           c.relname::text as name,
           format('select count(*) as rows, %s as checksum from only %I.%I',
                  case when count(a.attname) = 0 then '''0'''
                       else format(
                           'coalesce(sum(pg_catalog.hash_record_extended(row(%s), 0)), 0)::text',
                           string_agg(case when h.is_hashable then quote_ident(a.attname)
                                           else quote_ident(a.attname) || '::text' end,
                                      ', ' order by a.attnum)) end,
                  n.nspname, c.relname) as statement
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
      left join pg_attribute a
        on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
      left join pg_type t on t.oid = a.atttypid
      left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
      left join lateral (
            select bool_and(
                   v.typtype = 'e'
                   or (v.typnamespace = 'pg_catalog'::regnamespace
                       and v.typname in ('int2', 'int4', 'int8', 'text', 'varchar', 'bpchar', 'bool',
                                         'date', 'time', 'timestamp', 'timestamptz', 'numeric',
                                         'uuid', 'bytea', 'float4', 'float8', 'inet', 'interval',
                                         'jsonb', 'name', 'oid')))
                   as is_hashable
              from pg_type v
             where v.oid = coalesce(e.oid, t.oid)) h on true
     where c.relkind = 'r' and c.relpersistence <> 't'
       and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
       and not exists (select from pg_depend d
                        where d.classid = 'pg_class'::regclass and d.objid = c.oid
                          and d.deptype = 'e')
     group by n.nspname, c.relname
     order by n.nspname, c.relname";

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, rows: i64, checksum: &str) -> Table {
        let (schema, name, checksum) = ("public".to_owned(), name.to_owned(), checksum.to_owned());
        Table { schema, name, rows, checksum }
    }

    #[test]
    fn differences_are_told_by_table() {
        let expected = [table("a", 1, "x"), table("b", 2, "y"), table("c", 3, "z")];
        assert_eq!(difference(&expected, &expected), None);
        let found = [table("a", 1, "x"), table("b", 3, "y"), table("d", 3, "z")];
        let told = difference(&expected, &found).unwrap();
        assert_eq!(told, "public.b has 3 rows instead of 2; public.c is missing");
        let told = difference(&expected[..1], &[table("a", 1, "other")]).unwrap();
        assert_eq!(told, "public.a has other values");
    }
}
