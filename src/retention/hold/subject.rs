//! Which rows belong to a person: foreign keys and the classification's links, turned into SQL.

use super::super::archive::{archive_name, is_archive, origin};
use super::super::catalog::{Catalog, ForeignKey, OnDelete, Table};
use super::super::sql::{Ident, Literal, TableName, list};
use super::{Keys, any};
use crate::policy::{Classification, ClassifiedTable, SubjectLink};

/// A person, and what is known of how rows hang together.
pub(super) struct Links<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) classification: &'a Classification,
    pub(super) subject: &'a TableName,
    pub(super) keys: &'a Keys,
}

/// Which foreign keys to the person count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// All: the row itself is asked about.
    All,
    /// Those that make a row go with the person. A row that would go with another one which merely
    /// points at the person is not theirs.
    Owned,
}

impl Links<'_> {
    /// Conditions of which one is true where the row of `alias` belongs to the person.
    pub(super) fn conditions(&self, table: &TableName, alias: &Ident) -> Vec<String> {
        let original = self.original(table);
        original.map_or_else(Vec::new, |original| {
            self.conditions_of(original, alias, &mut Vec::new(), Reach::All)
        })
    }

    /// The table whose foreign keys tell what the columns of `table` mean: itself, or for an
    /// archived one that which its rows came from.
    fn original(&self, table: &TableName) -> Option<&Table> {
        if is_archive(table) { origin(self.catalog, table) } else { self.catalog.table(table) }
    }

    /// `path` holds the tables passed on the way here, so that circles end.
    fn conditions_of(
        &self,
        table: &Table,
        alias: &Ident,
        path: &mut Vec<TableName>,
        reach: Reach,
    ) -> Vec<String> {
        if table.name == *self.subject {
            return vec![self.keys.predicate(alias)];
        }
        let mut found = self.linked(table, alias);
        path.push(table.name.clone());
        for key in &table.references {
            let is_classified = self.is_classified(table, key);
            let points_at_them = reach == Reach::All && key.parent == *self.subject;
            let is_theirs = is_classified || points_at_them || key.on_delete == OnDelete::Cascade;
            if is_theirs && !path.contains(&key.parent) {
                let reach = if is_classified { Reach::All } else { Reach::Owned };
                found.extend(self.through(table, key, alias, path, reach));
            }
        }
        path.pop();
        found
    }

    /// The row of `alias` has a parent, live or archived, that belongs to the person.
    fn through(
        &self,
        child: &Table,
        key: &ForeignKey,
        alias: &Ident,
        path: &mut Vec<TableName>,
        reach: Reach,
    ) -> Option<String> {
        let parent = self.catalog.table(&key.parent)?;
        let is_same_type = |(child_column, parent_column)| {
            let of =
                |table: &Table, name| table.column(name).map(|column| column.base_type.clone());
            of(child, child_column) == of(parent, parent_column)
        };
        // The person's key can be compared itself where it is a value of the column's type.
        if key.parent == *self.subject
            && key.parent_columns == self.keys.columns
            && key.child_columns.iter().zip(&key.parent_columns).all(is_same_type)
        {
            let keys = Keys { columns: key.child_columns.clone(), ..self.keys.clone() };
            return Some(keys.predicate(alias));
        }
        let children = list(&format!("{alias}."), &key.child_columns);
        // One name for each depth: a parent's columns must not be taken for a child's.
        let parent_alias = Ident::new(format!("parent_{}", path.len()));
        let conditions = self.conditions_of(parent, &parent_alias, path, reach);
        if conditions.is_empty() {
            return None;
        }
        let archive = self.catalog.table(&archive_name(&key.parent));
        let homes = [Some(&key.parent), archive.map(|table| &table.name)];
        let columns = list(&format!("{parent_alias}."), &key.parent_columns);
        let parents: Vec<_> = homes
            .into_iter()
            .flatten()
            .map(|home| {
                format!("select {columns} from {home} {parent_alias} where {}", any(&conditions))
            })
            .collect();
        Some(format!("({children}) in ({})", parents.join(" union all ")))
    }

    fn is_classified(&self, table: &Table, key: &ForeignKey) -> bool {
        let [column] = key.child_columns.as_slice() else { return false };
        self.subject_links(table).iter().any(|link| match link {
            SubjectLink::Column(name) | SubjectLink::Through(name) => {
                name.as_str() == column.as_str()
            }
            SubjectLink::Named { .. } => false,
        })
    }

    /// What the classification says and no foreign key does.
    fn linked(&self, table: &Table, alias: &Ident) -> Vec<String> {
        // A key of several columns cannot stand in one.
        let [key] = self.keys.values.as_slice() else { return Vec::new() };
        let [key] = key.as_slice() else { return Vec::new() };
        let links = self.subject_links(table).iter();
        links
            .filter_map(|link| match link {
                SubjectLink::Column(name) => {
                    let has_key = table
                        .references
                        .iter()
                        .any(|key| key.child_columns.iter().any(|c| c.as_str() == name.as_str()));
                    (!has_key).then(|| equals(alias, name.as_str(), key))
                }
                SubjectLink::Named { discriminator, value, id } if self.is_named(value) => {
                    let discriminator = equals(alias, discriminator.as_str(), value);
                    Some(format!("({discriminator} and {})", equals(alias, id.as_str(), key)))
                }
                SubjectLink::Named { .. } | SubjectLink::Through(_) => None,
            })
            .collect()
    }

    /// Whether a discriminator's value means the person's table. Applications write what they like
    /// there, so for a table of people every value that the classification names does.
    fn is_named(&self, value: &str) -> bool {
        let is_people = self.classified(self.subject).is_some_and(|table| table.account.is_some());
        is_people || value == self.subject.plain()
    }

    fn subject_links(&self, table: &Table) -> &[SubjectLink] {
        self.classified(&table.name).map_or(&[], |table| &table.subject)
    }

    fn classified(&self, table: &TableName) -> Option<&ClassifiedTable> {
        let mut tables = self.classification.tables.iter();
        let found = tables.find(|(name, _)| {
            name.schema() == table.schema.as_str() && name.table() == table.name.as_str()
        });
        found.map(|(_, table)| table)
    }
}

/// Compared as text: nothing says that the column has the type of the person's key.
fn equals(alias: &Ident, column: &str, value: &str) -> String {
    format!("{alias}.{}::text = {}", Ident::new(column), Literal::new(value))
}
