//! The way through a table: in which order its rows come, and which are next.
//!
//! **By key**: all rows in the order of the primary key; those that are not old enough are passed
//! over. Right where many rows go. **By age**: rows that are old enough only, in the order of age
//! and key, found by an index on the age column. Right where few of many go: what a run costs
//! depends on what it does, not on the size of the table. Both orders are total, so a cursor says
//! exactly what is done, and a walk goes on behind it after a crash.
//!
//! Statements of a walk are the same for each of its chunks and take what differs as parameters, so
//! that they are planned once.

use serde_json::Value;
use sqlx::PgConnection;

use super::catalog::{Catalog, Column, Table};
use super::rule::Rule;
use super::sql::{dynamic, list};

/// A walk by age pays where no more than one in so many rows is old enough.
const FEW: i64 = 8;
/// With more rows of one and the same age a chunk would read many to find its own.
const MAX_SAME_AGE: i64 = 10_000;

/// An order of a rule's rows.
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    rule: &'a Rule,
    /// The key, behind the age if rows are walked by age.
    columns: Vec<&'a Column>,
    is_backward: bool,
    is_by_age: bool,
}

/// Where a walk goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// With this row.
    At(Vec<String>),
    /// Behind this row.
    After(Vec<String>),
}

impl<'a> Walk<'a> {
    /// The better of the two, where `old` of `total` rows are old enough; `None`: nobody has counted.
    ///
    /// # Errors
    /// The database's.
    pub async fn choose(
        connection: &mut PgConnection,
        catalog: &'a Catalog,
        rule: &'a Rule,
        old: Option<i64>,
        total: i64,
    ) -> Result<Self, sqlx::Error> {
        if let Some(walk) = Self::by_age(catalog, rule) {
            let (few, most) = match old {
                Some(old) => (old, old),
                None => (walk.estimate(connection).await?, i64::MAX),
            };
            let is_few = few.saturating_mul(FEW) <= total;
            if is_few && (most <= MAX_SAME_AGE || !walk.has_ties(connection).await?) {
                return Ok(walk);
            }
        }
        Ok(Self::by_key(catalog, rule))
    }

    /// How many rows are old enough by their age, as the planner sees it.
    async fn estimate(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "explain (format json) select from {} as {} where {}",
            self.rule.place,
            self.rule.alias(),
            self.rule.is_old(),
        );
        let plan: Value =
            sqlx::query_scalar(dynamic(statement)).persistent(false).fetch_one(connection).await?;
        Ok(plan[0]["Plan"]["Plan Rows"].as_i64().unwrap_or(i64::MAX))
    }

    /// The walk that was to end with this row.
    pub fn ending_at(catalog: &'a Catalog, rule: &'a Rule, last: &[String]) -> Self {
        let by_age = Self::by_age(catalog, rule).filter(|walk| walk.columns.len() == last.len());
        by_age.unwrap_or_else(|| Self::by_key(catalog, rule))
    }

    /// Tables that reference themselves are walked from the end: children usually come later.
    fn by_key(catalog: &Catalog, rule: &'a Rule) -> Self {
        let columns = rule.key.iter().collect();
        let is_backward = catalog.table(&rule.table).is_some_and(Table::is_self_referencing);
        Self { rule, columns, is_backward, is_by_age: false }
    }

    /// `None`: the age is that of a parent, no index finds it, or the table references itself.
    fn by_age(catalog: &'a Catalog, rule: &'a Rule) -> Option<Self> {
        let (owner, name) = &rule.age_column;
        let table = catalog.table(&rule.table).filter(|table| !table.is_self_referencing())?;
        let age = table.column(name).filter(|_| *owner == rule.table)?;
        let is_indexed = table.has_index_for(std::slice::from_ref(name));
        let is_in_key = rule.key.iter().any(|column| column.name == *name);
        if !is_indexed || is_in_key {
            return None;
        }
        let columns = [age].into_iter().chain(&rule.key).collect();
        Some(Self { rule, columns, is_backward: false, is_by_age: true })
    }

    /// Whether so many rows have the same age that the key would have to tell them apart.
    async fn has_ties(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "select exists (select from {} as {alias}
                             where {} group by {alias}.{} having count(*) > {MAX_SAME_AGE})",
            self.rule.place,
            self.rule.is_old(),
            self.rule.age_column.1,
            alias = self.rule.alias(),
        );
        sqlx::query_scalar(dynamic(statement)).persistent(false).fetch_one(connection).await
    }

    /// The first and the last row that is old enough; `None`: there is none.
    ///
    /// # Errors
    /// The database's.
    pub async fn bounds(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<(Vec<String>, Vec<String>)>, sqlx::Error> {
        let end = |is_first: bool| {
            format!(
                "select array[{}] from {} as {} where {} order by {} limit 1",
                self.texts(&self.alias()),
                self.rule.place,
                self.rule.alias(),
                self.rule.is_eligible(),
                self.ordered(&self.alias(), is_first),
            )
        };
        let statement = format!("select ({}), ({})", end(true), end(false));
        let found: (Option<Vec<String>>, Option<Vec<String>>) =
            sqlx::query_as(dynamic(statement)).persistent(false).fetch_one(connection).await?;
        Ok(found.0.zip(found.1))
    }

    /// The next `$1` rows up to the row `$2`, from the row `$3` on: their `place` and the columns
    /// that order them.
    pub fn window(&self, from: &From) -> String {
        let alias = self.alias();
        let row = format!("({})", list(&alias, self.names()));
        let bound = |number: usize| {
            let parts = self.columns.iter().enumerate().map(|(at, column)| {
                format!("(${number}::text[])[{}]::{}", at + 1, column.type_sql)
            });
            format!("({})", parts.collect::<Vec<_>>().join(", "))
        };
        let (behind, up_to) = if self.is_backward { ("<", ">=") } else { (">", "<=") };
        let equal = match from {
            From::At(_) => "=",
            From::After(_) => "",
        };
        // The planner has to see that the index finds no row that is too young.
        let old =
            if self.is_by_age { format!(" and {}", self.rule.is_old()) } else { String::new() };
        format!(
            "select {alias}ctid as place, {columns}
               from {table} as {name}
              where {row} {behind}{equal} {from} and {row} {up_to} {end}{old}
              order by {ordered}
              limit $1::bigint",
            columns = list(&alias, self.names()),
            table = self.rule.place,
            name = self.rule.alias(),
            from = bound(3),
            end = bound(2),
            ordered = self.ordered(&alias, true),
        )
    }

    /// The last row of a window that is called `walked`, as a cursor.
    pub fn last_of_window(&self) -> String {
        format!(
            "select array[{}] from walked order by {} limit 1",
            self.texts(""),
            self.ordered("", false)
        )
    }

    fn alias(&self) -> String {
        format!("{}.", self.rule.alias())
    }

    fn names(&self) -> impl Iterator<Item = &super::sql::Ident> {
        self.columns.iter().map(|column| &column.name)
    }

    fn texts(&self, prefix: &str) -> String {
        let texts: Vec<_> = self.names().map(|name| format!("{prefix}{name}::text")).collect();
        texts.join(", ")
    }

    /// In the walk's direction, or against it.
    fn ordered(&self, prefix: &str, is_onward: bool) -> String {
        let direction = if is_onward == self.is_backward { "desc" } else { "asc" };
        let parts: Vec<_> =
            self.names().map(|name| format!("{prefix}{name} {direction}")).collect();
        parts.join(", ")
    }
}

impl From {
    /// The row itself.
    pub fn row(&self) -> &[String] {
        match self {
            Self::At(row) | Self::After(row) => row,
        }
    }
}
