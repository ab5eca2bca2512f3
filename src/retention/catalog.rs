//! What the database says about its tables: columns, keys, foreign keys, indexes, sizes.
//!
//! Read whole, in one go, from `pg_catalog`, for any schema. Partitions are not tables of their
//! own here: their parent stands for them. Order by foreign keys comes from [`Catalog::order`].

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::sql::{Ident, TableName};

mod order;

/// The tables of a database.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    tables: BTreeMap<TableName, Table>,
}

/// A table.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// Its columns, in order.
    pub columns: Vec<Column>,
    /// Columns of the primary key, in the key's order; empty without one.
    pub primary_key: Vec<Ident>,
    /// Unique constraints and indexes, the primary key among them.
    pub unique_keys: Vec<UniqueKey>,
    /// Foreign keys from this table to others, or to itself.
    pub references: Vec<ForeignKey>,
    /// Foreign keys of other tables, or its own, that point here.
    pub referenced_by: Vec<ForeignKey>,
    /// Its valid indexes.
    pub indexes: Vec<Index>,
    /// The planner's estimate of its rows; `None` when it was never analysed.
    pub estimated_rows: Option<i64>,
    /// Bytes on disk with indexes and TOAST.
    pub size_bytes: i64,
    /// Whether rows live in partitions.
    pub is_partitioned: bool,
    /// The tables that hold the rows of a partitioned one, at whatever level.
    pub partitions: Vec<TableName>,
    /// Whether a partition is on another server.
    pub has_foreign_partition: bool,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: Ident,
    /// Its type as SQL writes it, with modifiers: `character varying(30)`.
    pub type_sql: String,
    /// Its base type without modifiers, domains resolved: `varchar`, `timestamptz`, `int4`.
    pub base_type: String,
    /// PostgreSQL's category of the base type: `D` date and time, `N` number, `S` text, …
    pub category: char,
    /// Longest text in characters, where the type limits it.
    pub max_chars: Option<i32>,
    /// NULL is refused.
    pub not_null: bool,
    /// A default, an identity or a sequence fills it.
    pub has_default: bool,
    /// `GENERATED ALWAYS AS (…) STORED`: never written.
    pub is_generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`: written with OVERRIDING SYSTEM VALUE only.
    pub is_identity_always: bool,
}

/// Columns whose values are unique together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueKey {
    /// Name of the index.
    pub name: Ident,
    /// Columns; empty when the key is over expressions.
    pub columns: Vec<Ident>,
    /// Only rows that match are unique.
    pub predicate: Option<String>,
}

/// What happens to the child's row when its parent is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDelete {
    /// The delete is refused, at the end of the statement or transaction.
    NoAction,
    /// The delete is refused at once.
    Restrict,
    /// The child's row goes too.
    Cascade,
    /// The child's columns become NULL.
    SetNull,
    /// The child's columns take their default.
    SetDefault,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// Its name.
    pub name: Ident,
    /// The table with the reference.
    pub child: TableName,
    /// Its columns.
    pub child_columns: Vec<Ident>,
    /// The table that is pointed to.
    pub parent: TableName,
    /// Its columns, matching `child_columns`.
    pub parent_columns: Vec<Ident>,
    /// What a delete of the parent does.
    pub on_delete: OnDelete,
    /// Whether the check can wait for the commit.
    pub is_deferrable: bool,
}

/// An index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its name.
    pub name: Ident,
    /// Key columns in order; `None` for an expression.
    pub columns: Vec<Option<Ident>>,
    /// `btree`, `gin`, …
    pub method: String,
    /// Values are unique.
    pub is_unique: bool,
    /// A partial index's condition.
    pub predicate: Option<String>,
}

impl Catalog {
    /// Reads every table of every schema, without PostgreSQL's own.
    ///
    /// # Errors
    /// The database's.
    pub async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let mut tables = read_tables(connection).await?;
        read_columns(connection, &mut tables).await?;
        read_indexes(connection, &mut tables).await?;
        read_foreign_keys(connection, &mut tables).await?;
        read_partitions(connection, &mut tables).await?;
        Ok(Self { tables })
    }

    /// A table by name.
    pub fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.get(name)
    }

    /// Every table, by name.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.values()
    }

    /// The given tables, children before their parents. Tables that point at each other in a
    /// circle stand in one group, as does one that points at itself alone.
    pub fn order(&self, names: &BTreeSet<TableName>) -> Vec<Vec<TableName>> {
        order::children_first(self, names)
    }
}

impl Table {
    /// A column by name.
    pub fn column(&self, name: &Ident) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == *name)
    }

    /// Columns that are written by INSERT: all but the generated ones.
    pub fn stored_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| !column.is_generated)
    }

    /// Whether an index that is not partial leads with exactly these columns, in any order.
    pub fn has_index_on(&self, columns: &[Ident]) -> bool {
        self.indexes.iter().any(|index| index.leads_with(columns))
    }

    /// Whether an index finds rows by these columns, if only those in which one column has a value.
    pub fn has_index_for(&self, columns: &[Ident]) -> bool {
        self.indexes.iter().any(|index| index.finds(columns))
    }

    /// Foreign keys of this table that point at `parent`.
    pub fn references_to<'a>(
        &'a self,
        parent: &'a TableName,
    ) -> impl Iterator<Item = &'a ForeignKey> {
        self.references.iter().filter(move |key| key.parent == *parent)
    }

    /// Whether a foreign key points at the table itself.
    pub fn is_self_referencing(&self) -> bool {
        self.references.iter().any(|key| key.parent == self.name)
    }
}

impl Index {
    /// Whether a search for these columns can use it, for every row of the table.
    pub fn leads_with(&self, columns: &[Ident]) -> bool {
        let first = self.columns.get(..columns.len());
        self.predicate.is_none()
            && self.method == "btree"
            && first.is_some_and(|first| {
                columns.iter().all(|column| first.iter().flatten().any(|lead| lead == column))
            })
    }

    /// Whether a search by values of these columns can use it. One without the rows in which the
    /// column is NULL is as good: no search finds those.
    fn finds(&self, columns: &[Ident]) -> bool {
        if self.leads_with(columns) {
            return true;
        }
        let [column] = columns else { return false };
        let leads = self.method == "btree" && self.columns.first() == Some(&Some(column.clone()));
        let predicates =
            [format!("({} IS NOT NULL)", column.as_str()), format!("({column} IS NOT NULL)")];
        leads && self.predicate.as_ref().is_some_and(|predicate| predicates.contains(predicate))
    }
}

async fn read_tables(
    connection: &mut PgConnection,
) -> Result<BTreeMap<TableName, Table>, sqlx::Error> {
    let rows = sqlx::query(
        "select n.nspname::text as schema, c.relname::text as name,
                c.relkind = 'p' as is_partitioned,
                case when c.relkind = 'p'
                     then (select sum(nullif(p.reltuples, -1))
                             from pg_partition_tree(c.oid) t
                             join pg_class p on p.oid = t.relid
                            where t.isleaf)::bigint
                     else nullif(c.reltuples, -1)::bigint end as estimated_rows,
                case when c.relkind = 'p'
                     then (select sum(pg_total_relation_size(t.relid))
                             from pg_partition_tree(c.oid) t)::bigint
                     else pg_total_relation_size(c.oid) end as size_bytes
           from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
          where c.relkind in ('r', 'p')
            and not c.relispartition
            and c.relpersistence <> 't'
            and n.nspname not like 'pg\\_%'
            and n.nspname <> 'information_schema'",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let name = TableName::new(row.get::<String, _>("schema"), row.get::<String, _>("name"));
            let table = Table {
                name: name.clone(),
                columns: Vec::new(),
                primary_key: Vec::new(),
                unique_keys: Vec::new(),
                references: Vec::new(),
                referenced_by: Vec::new(),
                indexes: Vec::new(),
                estimated_rows: row.get("estimated_rows"),
                // NULL: the table was dropped while we looked.
                size_bytes: row.get::<Option<i64>, _>("size_bytes").unwrap_or_default(),
                is_partitioned: row.get("is_partitioned"),
                partitions: Vec::new(),
                has_foreign_partition: false,
            };
            (name, table)
        })
        .collect())
}

async fn read_columns(
    connection: &mut PgConnection,
    tables: &mut BTreeMap<TableName, Table>,
) -> Result<(), sqlx::Error> {
    let rows = sqlx::query(
        "select n.nspname::text as schema, c.relname::text as table_name, a.attname::text as name,
                format_type(a.atttypid, a.atttypmod) as type_sql,
                b.typname::text as base_type, b.typcategory::text as category,
                case when b.typname in ('varchar', 'bpchar')
                     then nullif(case when t.typtype = 'd' then t.typtypmod else a.atttypmod end,
                                 -1) - 4 end as max_chars,
                a.attnotnull or t.typnotnull as not_null,
                a.atthasdef or a.attidentity <> '' or t.typdefault is not null as has_default,
                a.attgenerated <> '' as is_generated,
                a.attidentity = 'a' as is_identity_always
           from pg_attribute a
           join pg_class c on c.oid = a.attrelid
           join pg_namespace n on n.oid = c.relnamespace
           join pg_type t on t.oid = a.atttypid
           join pg_type b on b.oid = case when t.typtype = 'd' then t.typbasetype else t.oid end
          where c.relkind in ('r', 'p')
            and not c.relispartition
            and a.attnum > 0
            and not a.attisdropped
          order by a.attrelid, a.attnum",
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let Some(table) = table_of(tables, &row, "schema", "table_name") else { continue };
        table.columns.push(Column {
            name: Ident::new(row.get::<String, _>("name")),
            type_sql: row.get("type_sql"),
            base_type: row.get("base_type"),
            category: row.get::<String, _>("category").chars().next().unwrap_or('U'),
            max_chars: row.get("max_chars"),
            not_null: row.get("not_null"),
            has_default: row.get("has_default"),
            is_generated: row.get("is_generated"),
            is_identity_always: row.get("is_identity_always"),
        });
    }
    Ok(())
}

async fn read_indexes(
    connection: &mut PgConnection,
    tables: &mut BTreeMap<TableName, Table>,
) -> Result<(), sqlx::Error> {
    let rows = sqlx::query(
        "select n.nspname::text as schema, c.relname::text as table_name, i.relname::text as name,
                m.amname::text as method, x.indisunique as is_unique, x.indisprimary as is_primary,
                pg_get_expr(x.indpred, x.indrelid) as predicate,
                array(select a.attname::text
                        from unnest(x.indkey::int2[]) with ordinality k (number, position)
                        left join pg_attribute a
                          on a.attrelid = x.indrelid and a.attnum = k.number and k.number > 0
                       where k.position <= x.indnkeyatts
                       order by k.position) as columns
           from pg_index x
           join pg_class i on i.oid = x.indexrelid
           join pg_class c on c.oid = x.indrelid
           join pg_namespace n on n.oid = c.relnamespace
           join pg_am m on m.oid = i.relam
          where c.relkind in ('r', 'p')
            and not c.relispartition
            and x.indisvalid
          order by i.relname",
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let Some(table) = table_of(tables, &row, "schema", "table_name") else { continue };
        let names: Vec<Option<String>> = row.get("columns");
        let columns: Vec<_> = names.into_iter().map(|name| name.map(Ident::new)).collect();
        let name = Ident::new(row.get::<String, _>("name"));
        let predicate: Option<String> = row.get("predicate");
        let named: Option<Vec<Ident>> = columns.iter().cloned().collect();
        if row.get("is_primary") {
            table.primary_key = named.clone().unwrap_or_default();
        }
        if row.get("is_unique") {
            table.unique_keys.push(UniqueKey {
                name: name.clone(),
                columns: named.unwrap_or_default(),
                predicate: predicate.clone(),
            });
        }
        table.indexes.push(Index {
            name,
            columns,
            method: row.get("method"),
            is_unique: row.get("is_unique"),
            predicate,
        });
    }
    Ok(())
}

async fn read_foreign_keys(
    connection: &mut PgConnection,
    tables: &mut BTreeMap<TableName, Table>,
) -> Result<(), sqlx::Error> {
    // Keys that partitions inherit (conparentid) are their parent's. A key to one partition stands
    // for one to the whole: the row that it keeps is a row of both.
    let rows = sqlx::query(
        "select f.conname::text as name, f.confdeltype::text as on_delete,
                f.condeferrable as is_deferrable,
                cn.nspname::text as child_schema, c.relname::text as child,
                pn.nspname::text as parent_schema, p.relname::text as parent,
                array(select a.attname::text
                        from unnest(f.conkey) with ordinality k (number, position)
                        join pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.number
                       order by k.position) as child_columns,
                array(select a.attname::text
                        from unnest(f.confkey) with ordinality k (number, position)
                        join pg_attribute a on a.attrelid = f.confrelid and a.attnum = k.number
                       order by k.position) as parent_columns
           from pg_constraint f
           join pg_class c on c.oid = f.conrelid
           join pg_namespace cn on cn.oid = c.relnamespace
           join pg_class p on p.oid = coalesce(pg_partition_root(f.confrelid), f.confrelid)
           join pg_namespace pn on pn.oid = p.relnamespace
          where f.contype = 'f'
            and f.conparentid = 0
          order by f.conname",
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let idents = |names: Vec<String>| names.into_iter().map(Ident::new).collect::<Vec<_>>();
        let on_delete = match row.get::<String, _>("on_delete").as_str() {
            "r" => OnDelete::Restrict,
            "c" => OnDelete::Cascade,
            "n" => OnDelete::SetNull,
            "d" => OnDelete::SetDefault,
            _ => OnDelete::NoAction,
        };
        let key = ForeignKey {
            name: Ident::new(row.get::<String, _>("name")),
            child: name_of(&row, "child_schema", "child"),
            child_columns: idents(row.get("child_columns")),
            parent: name_of(&row, "parent_schema", "parent"),
            parent_columns: idents(row.get("parent_columns")),
            on_delete,
            is_deferrable: row.get("is_deferrable"),
        };
        if let Some(parent) = tables.get_mut(&key.parent) {
            parent.referenced_by.push(key.clone());
        }
        if let Some(child) = tables.get_mut(&key.child) {
            child.references.push(key);
        }
    }
    Ok(())
}

async fn read_partitions(
    connection: &mut PgConnection,
    tables: &mut BTreeMap<TableName, Table>,
) -> Result<(), sqlx::Error> {
    let rows = sqlx::query(
        "select n.nspname::text as schema, c.relname::text as table_name,
                ln.nspname::text as leaf_schema, l.relname::text as leaf,
                l.relkind <> 'r' as is_foreign
           from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
          cross join lateral pg_partition_tree(c.oid) t
           join pg_class l on l.oid = t.relid
           join pg_namespace ln on ln.oid = l.relnamespace
          where c.relkind = 'p'
            and not c.relispartition
            and t.isleaf
          order by 1, 2, 3, 4",
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let Some(table) = table_of(tables, &row, "schema", "table_name") else { continue };
        table.has_foreign_partition |= row.get::<bool, _>("is_foreign");
        table.partitions.push(name_of(&row, "leaf_schema", "leaf"));
    }
    Ok(())
}

fn name_of(row: &sqlx::postgres::PgRow, schema: &str, name: &str) -> TableName {
    TableName::new(row.get::<String, _>(schema), row.get::<String, _>(name))
}

fn table_of<'a>(
    tables: &'a mut BTreeMap<TableName, Table>,
    row: &sqlx::postgres::PgRow,
    schema: &str,
    name: &str,
) -> Option<&'a mut Table> {
    tables.get_mut(&name_of(row, schema, name))
}
