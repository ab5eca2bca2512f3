//! Archived rows, back to where they were.
//!
//! Chunk by chunk, each a transaction: rows that fit are inserted and leave the archive in one
//! statement, compared by count and checksum. Rows that do not fit stay in the archive and are
//! reported with the reason. Doing it again does the rest; a restore that was killed is done again.

use serde::Serialize;
use sqlx::{PgConnection, PgPool, Row};

use super::archive::{ARCHIVE_RUN_ID, archive_name, is_archive, row_hash, run_literal};
use super::catalog::{Catalog, Column, Table};
use super::error::RetentionError;
use super::sql::{Ident, Literal, TableName, dynamic, list};

/// Rows of one transaction.
const CHUNK_ROWS: i64 = 1_000;
/// Longest wait for a lock.
const LOCK_TIMEOUT: &str = "2s";
/// Most keys of one request.
pub const MAX_KEYS: usize = 10_000;

/// Which archived rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All of the table.
    All,
    /// Those that a run brought.
    Run(i64),
    /// Those with these keys: a text for each column of the primary key.
    Keys(Vec<Vec<String>>),
}

/// What a restore did to one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Restored {
    /// The live table.
    pub table: String,
    /// Rows that are back.
    pub restored: i64,
    /// Rows that stay in the archive because the live table has their key.
    pub key_taken: i64,
    /// Because another unique key of theirs is taken.
    pub unique_taken: i64,
    /// Because a row that they reference is not there.
    pub parent_missing: i64,
}

impl Restored {
    /// Rows that stay in the archive.
    pub fn conflicts(&self) -> i64 {
        self.key_taken + self.unique_taken + self.parent_missing
    }
}

/// An archive table.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ArchiveTable {
    /// The live table.
    pub table: String,
    /// Rows in the archive; the planner's estimate.
    pub estimated_rows: Option<i64>,
    /// Bytes on disk.
    pub size_bytes: i64,
}

/// The archive tables whose live table exists.
pub fn archives(catalog: &Catalog) -> Vec<ArchiveTable> {
    catalog
        .tables()
        .filter_map(|live| {
            let archived = catalog.table(&archive_name(&live.name))?;
            Some(ArchiveTable {
                table: live.name.plain(),
                estimated_rows: archived.estimated_rows,
                size_bytes: archived.size_bytes,
            })
        })
        .collect()
}

/// Brings rows of one table back.
///
/// # Errors
/// [`RetentionError`]; what was committed before is back.
pub async fn restore_table(
    db: &PgPool,
    catalog: &Catalog,
    table: &TableName,
    which: &Which,
) -> Result<Restored, RetentionError> {
    let live = catalog.table(table);
    let archived = catalog.table(&archive_name(table)).filter(|_| !is_archive(table));
    let (Some(live), Some(archived)) = (live, archived) else {
        let message = format!("nothing of table `{}` is archived", table.plain());
        return Err(RetentionError::refused("no_archive", message));
    };
    let missing = live.stored_columns().find(|c| archived.column(&c.name).is_none());
    if let Some(column) = missing.filter(|c| c.not_null && !c.has_default) {
        let message = format!(
            "column `{}` of `{}` is younger than the archive and has no default",
            column.name.as_str(),
            table.plain()
        );
        return Err(RetentionError::refused("archive_differs", message));
    }
    let restore = Restore { live, archived, which };
    let mut total = Restored { table: table.plain(), ..Restored::default() };
    loop {
        // A pass finds the children of rows that the pass before brought back.
        let pass = restore.pass(db).await?;
        total.restored += pass.restored;
        (total.key_taken, total.unique_taken, total.parent_missing) =
            (pass.key_taken, pass.unique_taken, pass.parent_missing);
        if pass.restored == 0 || pass.conflicts() == 0 {
            return Ok(total);
        }
    }
}

struct Restore<'a> {
    live: &'a Table,
    archived: &'a Table,
    which: &'a Which,
}

impl Restore<'_> {
    async fn pass(&self, db: &PgPool) -> Result<Restored, RetentionError> {
        let mut pass = Restored::default();
        let mut cursor: Option<Vec<String>> = None;
        loop {
            let mut tx = db.begin().await?;
            sqlx::query("select set_config('lock_timeout', $1, true)")
                .bind(LOCK_TIMEOUT)
                .execute(&mut *tx)
                .await?;
            let Some(last) = self.chunk(&mut tx, cursor.as_deref(), &mut pass).await? else {
                return Ok(pass);
            };
            tx.commit().await?;
            cursor = Some(last);
        }
    }

    async fn chunk(
        &self,
        connection: &mut PgConnection,
        cursor: Option<&[String]>,
        pass: &mut Restored,
    ) -> Result<Option<Vec<String>>, RetentionError> {
        let key: Vec<&Column> =
            self.live.primary_key.iter().filter_map(|k| self.live.column(k)).collect();
        let names: Vec<&Ident> = key.iter().map(|column| &column.name).collect();
        let texts: Vec<_> = names.iter().map(|name| format!("{name}::text")).collect();
        let descending: Vec<_> = names.iter().map(|name| format!("{name} desc")).collect();
        let columns: Vec<&Ident> = self
            .live
            .stored_columns()
            .map(|column| &column.name)
            .filter(|name| self.archived.column(name).is_some())
            .collect();
        let statement = format!(
            "with walked as materialized (
                 select {keys} from {archived} as a
                  where {which} and {behind}
                  order by {keys}
                  limit {CHUNK_ROWS}),
             candidate as materialized (
                 select a.*, {taken} as key_taken, {orphaned} as parent_missing
                   from {archived} as a
                  where ({a_keys}) in (select {keys} from walked)
                    for update of a),
             arrived as (
                 insert into {live} as t ({columns}) overriding system value
                 select {columns} from candidate
                  where not key_taken and not parent_missing
                     on conflict do nothing
                 returning {t_all}),
             gone as (
                 delete from {archived} as a using arrived as r where {a_is_r}
                 returning {a_all})
             select (select count(*) from walked) as walked,
                    (select array[{texts}] from walked order by {descending} limit 1) as last,
                    (select count(*) from candidate where key_taken) as key_taken,
                    (select count(*) from candidate
                      where not key_taken and parent_missing) as parent_missing,
                    (select count(*) from candidate
                      where not key_taken and not parent_missing) as fits,
                    (select count(*) from arrived) as arrived,
                    (select count(*) from gone) as gone,
                    (select coalesce(bit_xor({arrived_hash}), 0) from arrived r) as arrived_hash,
                    (select coalesce(bit_xor({gone_hash}), 0) from gone g) as gone_hash",
            keys = list("", names.iter().copied()),
            a_keys = list("a.", names.iter().copied()),
            archived = self.archived.name,
            live = self.live.name,
            which = self.which(&key),
            behind = match cursor {
                Some(cursor) =>
                    format!("({}) > {}", list("a.", names.iter().copied()), tuple(&key, cursor)),
                None => "true".to_owned(),
            },
            taken = self.key_taken(),
            orphaned = self.parent_missing(),
            columns = list("", columns.iter().copied()),
            t_all = list("t.", columns.iter().copied()),
            a_all = list("a.", columns.iter().copied()),
            a_is_r =
                names.iter().map(|n| format!("a.{n} = r.{n}")).collect::<Vec<_>>().join(" and "),
            texts = texts.join(", "),
            descending = descending.join(", "),
            arrived_hash = row_hash(self.live, "r", &columns),
            gone_hash = row_hash(self.live, "g", &columns),
        );
        let row = sqlx::query(dynamic(statement)).persistent(false).fetch_one(connection).await?;
        let (arrived, gone): (i64, i64) = (row.get("arrived"), row.get("gone"));
        let (left, came): (i64, i64) = (row.get("gone_hash"), row.get("arrived_hash"));
        if arrived != gone || left != came {
            return Err(RetentionError::Unequal { table: self.live.name.plain() });
        }
        pass.restored += arrived;
        pass.key_taken += row.get::<i64, _>("key_taken");
        pass.parent_missing += row.get::<i64, _>("parent_missing");
        pass.unique_taken += row.get::<i64, _>("fits") - arrived;
        Ok(row.get("last"))
    }

    fn which(&self, key: &[&Column]) -> String {
        match self.which {
            Which::All => "true".to_owned(),
            Which::Run(run_id) => format!("a.{ARCHIVE_RUN_ID} = {}", run_literal(*run_id)),
            Which::Keys(keys) => {
                let names = list("a.", key.iter().map(|column| &column.name));
                let tuples: Vec<_> = keys.iter().map(|values| tuple(key, values)).collect();
                format!("({names}) in ({})", tuples.join(", "))
            }
        }
    }

    fn key_taken(&self) -> String {
        let on: Vec<_> =
            self.live.primary_key.iter().map(|name| format!("t.{name} = a.{name}")).collect();
        format!("exists (select from {} as t where {})", self.live.name, on.join(" and "))
    }

    /// A foreign key is empty when one of its columns is NULL.
    fn parent_missing(&self) -> String {
        let keys = self.live.references.iter();
        let keys = keys.filter(|key| {
            key.child_columns.iter().all(|column| self.archived.column(column).is_some())
        });
        let missing: Vec<_> = keys
            .map(|key| {
                let set: Vec<_> =
                    key.child_columns.iter().map(|c| format!("a.{c} is not null")).collect();
                let on: Vec<_> = key
                    .child_columns
                    .iter()
                    .zip(&key.parent_columns)
                    .map(|(child, parent)| format!("p.{parent} = a.{child}"))
                    .collect();
                // A row that references itself brings its parent along.
                let itself: Vec<_> = key
                    .child_columns
                    .iter()
                    .zip(&key.parent_columns)
                    .map(|(child, parent)| format!("a.{parent} = a.{child}"))
                    .collect();
                let but_itself = if key.parent == self.live.name {
                    format!(" and not ({})", itself.join(" and "))
                } else {
                    String::new()
                };
                format!(
                    "({}{but_itself} and not exists (select from {} as p where {}))",
                    set.join(" and "),
                    key.parent,
                    on.join(" and ")
                )
            })
            .collect();
        if missing.is_empty() { "false".to_owned() } else { missing.join(" or ") }
    }
}

/// Whether these keys have a value for each column of the table's primary key.
pub fn keys_fit(live: &Table, keys: &[Vec<String>]) -> bool {
    !keys.is_empty() && keys.iter().all(|values| values.len() == live.primary_key.len())
}

fn tuple(key: &[&Column], values: &[String]) -> String {
    let parts: Vec<_> = key
        .iter()
        .zip(values)
        .map(|(column, value)| format!("{}::{}", Literal::new(value.as_str()), column.type_sql))
        .collect();
    format!("({})", parts.join(", "))
}
