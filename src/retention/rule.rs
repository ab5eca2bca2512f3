//! One table of a policy, compiled against the catalog into SQL conditions.
//!
//! A rule's conditions are over one row of its table under the table's own name as alias, so that
//! an operator's `where` reads as it was written. Parents that the rule speaks of are joined inside
//! the condition; a column that row and parent both have must be qualified, or PostgreSQL refuses
//! it as ambiguous, which is what we want.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::PgConnection;

use super::catalog::{Catalog, Column, ForeignKey, Table};
use super::error::RetentionError;
use super::sql::{Ident, Literal, TableName};
use super::treat::Treats;
use crate::policy::{Age, AgePath, ColumnName, Condition, Export, IfReferenced};

/// Ages before this are placeholders (0001-01-01, 1899-12-30), not ages.
const OLDEST_AGE: &str = "1900-01-01";
/// Ages from this on are placeholders (9999-12-31), not ages.
const NEWEST_AGE: &str = "9000-01-01";

/// What becomes of eligible rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// They move to the archive.
    Archive,
    /// They are deleted.
    Purge,
    /// They stay, and say less.
    Anonymize,
}

impl Action {
    /// As stored and shown.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Purge => "purge",
            Self::Anonymize => "anonymize",
        }
    }
}

/// What a policy says of one table.
#[derive(Debug, Clone, Copy)]
pub struct Declared<'a> {
    /// The table.
    pub table: &'a crate::policy::TableName,
    /// What tells its age.
    pub age: &'a AgePath,
    /// How old it must be.
    pub after: Age,
    /// What else must hold.
    pub condition: Option<&'a Condition>,
    /// Tables whose rows go with a row that they reference.
    pub along: Along<'a>,
    /// Whether rows are written to the store before they leave.
    pub export: Option<Export>,
    /// The columns that are treated, where rows stay; empty: all that have a treatment.
    pub columns: &'a [ColumnName],
}

/// Which tables' rows go with a row that they reference.
#[derive(Debug, Clone, Copy)]
pub enum Along<'a> {
    /// None: a row that is referenced stays.
    None,
    /// All of them.
    Everything,
    /// These.
    Named(&'a [crate::policy::TableName]),
}

impl<'a> From<&'a IfReferenced> for Along<'a> {
    fn from(declared: &'a IfReferenced) -> Self {
        match declared {
            // The erasure of a person keeps the row; the purge leaves it alone.
            IfReferenced::Refuse | IfReferenced::Anonymize => Self::None,
            IfReferenced::Cascade(tables) => Self::Named(tables),
        }
    }
}

/// The instant before which a row is old enough, fixed once per run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cutoff {
    /// The instant.
    pub instant: DateTime<Utc>,
    in_utc: String,
    in_zone: String,
}

impl Cutoff {
    /// `as_of` minus `after`, by the calendar of `zone`, computed by the database.
    ///
    /// # Errors
    /// The database's.
    pub async fn compute(
        connection: &mut PgConnection,
        as_of: DateTime<Utc>,
        after: Age,
        zone: Tz,
    ) -> Result<Self, sqlx::Error> {
        let (instant, in_utc, in_zone) = sqlx::query_as(
            "select c, to_char(c at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
                    to_char(c at time zone $2, 'YYYY-MM-DD HH24:MI:SS.US')
               from (select (($1 at time zone $2) - $3::text::interval) at time zone $2
                            - $4::text::interval as c) cutoff",
        )
        .bind(as_of)
        .bind(zone.name())
        .bind(after.calendar())
        .bind(after.elapsed())
        .fetch_one(connection)
        .await?;
        Ok(Self { instant, in_utc, in_zone })
    }

    /// As a value of the age column's type. A date is a whole day of the zone, so it is old enough
    /// when the whole of it is before the cutoff.
    fn literal(&self, base_type: &str) -> Option<String> {
        match base_type {
            "timestamptz" => {
                Some(format!("{}::timestamptz", Literal::new(format!("{}+00", self.in_utc))))
            }
            "timestamp" => Some(format!("{}::timestamp", Literal::new(self.in_zone.as_str()))),
            "date" => {
                let day = self.in_zone.split(' ').next().unwrap_or_default();
                Some(format!("{}::date", Literal::new(day)))
            }
            _ => None,
        }
    }
}

/// A compiled rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The table.
    pub table: TableName,
    /// Where its rows are looked for: the table itself, or one of its partitions.
    pub place: TableName,
    /// Everywhere where its rows are.
    pub places: Vec<TableName>,
    /// What becomes of its rows.
    pub action: Action,
    /// Columns of the primary key, with their types.
    pub key: Vec<Column>,
    /// Tables whose rows go along with a row that they reference.
    pub along: BTreeSet<TableName>,
    /// The cutoff.
    pub cutoff: Cutoff,
    /// Whether rows are written to the store before they leave.
    pub export: Option<Export>,
    /// What becomes of the columns, where rows stay.
    pub treats: Option<Treats>,
    /// Columns that the age stands in, for the index: the table and its column.
    pub age_column: (TableName, Ident),
    parents: String,
    age: String,
    old: String,
    ageless: String,
    condition: Option<String>,
}

impl Rule {
    /// Compiles what a policy says of one table.
    ///
    /// # Errors
    /// [`RetentionError::Refused`], naming what is wrong.
    pub fn compile(
        catalog: &Catalog,
        action: Action,
        declared: &Declared<'_>,
        cutoff: Cutoff,
    ) -> Result<Self, RetentionError> {
        let name = table_name(declared.table);
        let table = catalog.table(&name).ok_or_else(|| unplanned(&name, "does not exist"))?;
        let key: Vec<_> = table.primary_key.iter().filter_map(|k| table.column(k)).collect();
        if key.is_empty() {
            return Err(unplanned(&name, "has no primary key: rows could not be told apart"));
        }
        if table.has_foreign_partition {
            return Err(unplanned(&name, "has a partition on another server: detach it"));
        }
        let places =
            if table.is_partitioned { table.partitions.clone() } else { vec![name.clone()] };
        let (owner, alias, column) = age_column(catalog, table, declared.age)?;
        let type_problem = || {
            let what = format!(
                "cannot be aged by `{}`: it is no date, timestamp or timestamptz",
                declared.age
            );
            unplanned(&name, &what)
        };
        let cutoff_sql = cutoff.literal(&column.base_type).ok_or_else(type_problem)?;
        let limit = |day: &str| format!("{}::{}", Literal::new(day), column.base_type);
        let age = format!("{alias}.{}", column.name);
        let parents = parent_joins(catalog, table, declared)?;
        Ok(Self {
            key: key.into_iter().cloned().collect(),
            along: along(catalog, table, declared.along)?,
            age_column: (owner, column.name.clone()),
            old: format!("{age} >= {} and {age} < {cutoff_sql}", limit(OLDEST_AGE)),
            ageless: format!(
                "({age} is null or {age} < {} or {age} >= {})",
                limit(OLDEST_AGE),
                limit(NEWEST_AGE)
            ),
            age,
            parents,
            export: declared.export,
            treats: None,
            condition: declared.condition.map(|condition| format!("({})", condition.as_sql())),
            place: name.clone(),
            places,
            table: name,
            action,
            cutoff,
        })
    }

    /// The same rule for the rows of one of its places.
    pub fn in_place(&self, place: &TableName) -> Self {
        Self { place: place.clone(), ..self.clone() }
    }

    /// Whether its rows are in partitions.
    pub fn is_partitioned(&self) -> bool {
        self.places != [self.table.clone()]
    }

    /// The alias under which the conditions see the row.
    pub fn alias(&self) -> &Ident {
        &self.table.name
    }

    /// Whether the row is old enough and matches.
    pub fn is_eligible(&self) -> String {
        self.over_the_row(&self.old)
    }

    /// Whether the age that stands in the row itself is old enough, whatever else is asked.
    pub fn is_old(&self) -> &str {
        &self.old
    }

    /// Whether the row matches, but nothing tells its age.
    pub fn is_indeterminate(&self) -> String {
        self.over_the_row(&self.ageless)
    }

    /// The row's age, as an instant.
    pub fn age_of(&self) -> String {
        if self.parents.is_empty() {
            return format!("({})::timestamptz", self.age);
        }
        format!("(select ({})::timestamptz from {})", self.age, self.joined())
    }

    fn over_the_row(&self, what: &str) -> String {
        let both = match &self.condition {
            Some(condition) => format!("{what} and {condition}"),
            None => what.to_owned(),
        };
        if self.parents.is_empty() {
            return format!("({both})");
        }
        format!("exists (select from {} where {both})", self.joined())
    }

    fn joined(&self) -> String {
        format!("(select {alias}.*) as {alias} {}", self.parents, alias = self.alias())
    }
}

/// The engine's name of a policy's table.
pub fn table_name(name: &crate::policy::TableName) -> TableName {
    TableName::new(name.schema(), name.table())
}

fn unplanned(table: &TableName, what: &str) -> RetentionError {
    RetentionError::refused("unplanned", format!("table `{}` {what}", table.plain()))
}

/// The foreign key that a policy means by a parent's name: the parent's own, or the key's column.
fn parent_key<'a>(table: &'a Table, name: &str) -> Result<&'a ForeignKey, RetentionError> {
    let by_column: Vec<_> = table
        .references
        .iter()
        .filter(|key| matches!(key.child_columns.as_slice(), [column] if column.as_str() == name))
        .collect();
    let by_table: Vec<_> =
        table.references.iter().filter(|key| key.parent.name.as_str() == name).collect();
    match (by_column.as_slice(), by_table.as_slice()) {
        ([key], _) | ([], [key]) => Ok(key),
        ([], []) => Err(unplanned(&table.name, &format!("has no foreign key to `{name}`"))),
        _ => {
            let what =
                format!("has several foreign keys to `{name}`: name one by its column instead");
            Err(unplanned(&table.name, &what))
        }
    }
}

fn age_column<'a>(
    catalog: &'a Catalog,
    table: &'a Table,
    age: &AgePath,
) -> Result<(TableName, Ident, &'a Column), RetentionError> {
    let (owner, alias, column) = match age {
        AgePath::Own(column) => (table, table.name.name.clone(), column),
        AgePath::Parent { parent, column } => {
            let key = parent_key(table, parent.as_str())?;
            let missing = || unplanned(&key.parent, "does not exist");
            let owner = catalog.table(&key.parent).ok_or_else(missing)?;
            (owner, Ident::new(parent.as_str()), column)
        }
    };
    let found = owner.column(&Ident::new(column.as_str()));
    let missing = || unplanned(&owner.name, &format!("has no column `{column}`"));
    Ok((owner.name.clone(), alias, found.ok_or_else(missing)?))
}

/// Joins of the parents that age and condition speak of.
fn parent_joins(
    catalog: &Catalog,
    table: &Table,
    declared: &Declared<'_>,
) -> Result<String, RetentionError> {
    let mut names = BTreeSet::new();
    if let AgePath::Parent { parent, .. } = declared.age {
        names.insert(parent.as_str().to_owned());
    }
    let text = declared.condition.map(Condition::as_sql).unwrap_or_default();
    for key in &table.references {
        let column = match key.child_columns.as_slice() {
            [column] => Some(column.as_str()),
            _ => None,
        };
        let candidates = [Some(key.parent.name.as_str()), column];
        let own = table.name.name.as_str();
        for name in candidates.into_iter().flatten().filter(|name| *name != own) {
            if mentions(text, name) {
                names.insert(name.to_owned());
            }
        }
    }
    let mut joins = Vec::new();
    for name in names {
        let key = parent_key(table, &name)?;
        if catalog.table(&key.parent).is_none() {
            return Err(unplanned(&key.parent, "does not exist"));
        }
        let alias = Ident::new(name);
        let on = key_match(&key.child_columns, &table.name.name, &key.parent_columns, &alias);
        joins.push(format!("left join {} as {alias} on {on}", key.parent));
    }
    Ok(joins.join(" "))
}

/// Whether a condition speaks of `name.something`.
fn mentions(condition: &str, name: &str) -> bool {
    let quoted = format!("{}.", Ident::new(name));
    let plain = format!("{name}.");
    condition.contains(&quoted)
        || condition.match_indices(&plain).any(|(at, _)| {
            let before = condition[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.' || c == '"')
        })
}

/// `a.x = b.y and …`
pub(super) fn key_match(
    left: &[Ident],
    left_alias: &Ident,
    right: &[Ident],
    right_alias: &Ident,
) -> String {
    let pairs = left.iter().zip(right);
    let pairs: Vec<_> =
        pairs.map(|(l, r)| format!("{left_alias}.{l} = {right_alias}.{r}")).collect();
    pairs.join(" and ")
}

/// The tables whose rows may go along, none of them partitioned: rows that go along are locked by
/// their place in the table, which partitions do not have in common.
fn along(
    catalog: &Catalog,
    table: &Table,
    declared: Along<'_>,
) -> Result<BTreeSet<TableName>, RetentionError> {
    let found = reached(catalog, table, declared)?;
    let is_partitioned = |name: &&TableName| catalog.table(name).is_some_and(|t| t.is_partitioned);
    match found.iter().find(is_partitioned) {
        Some(name) => Err(unplanned(name, "is partitioned: give it a rule of its own instead")),
        None => Ok(found),
    }
}

/// Everything that references the table, directly or not, or the tables that are named, each of
/// which must exist.
fn reached(
    catalog: &Catalog,
    table: &Table,
    declared: Along<'_>,
) -> Result<BTreeSet<TableName>, RetentionError> {
    match declared {
        Along::None => Ok(BTreeSet::new()),
        Along::Named(names) => {
            let names: BTreeSet<_> = names.iter().map(table_name).collect();
            for name in &names {
                if catalog.table(name).is_none_or(|table| table.primary_key.is_empty()) {
                    return Err(unplanned(name, "does not exist, or has no primary key"));
                }
            }
            Ok(names)
        }
        Along::Everything => {
            let mut found = BTreeSet::new();
            let mut open = vec![table];
            while let Some(next) = open.pop() {
                for key in &next.referenced_by {
                    let Some(child) = catalog.table(&key.child) else { continue };
                    if child.primary_key.is_empty() {
                        return Err(unplanned(&child.name, "has no primary key"));
                    }
                    if found.insert(child.name.clone()) {
                        open.push(child);
                    }
                }
            }
            Ok(found)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn a_parent_is_mentioned_by_its_whole_name() {
        assert!(mentions("orders.status = 'x'", "orders"));
        assert!(mentions("(\"orders\".status = 'x')", "orders"));
        assert!(!mentions("reorders.status = 'x'", "orders"));
        assert!(!mentions("orders_id = 1", "orders"));
    }
}
