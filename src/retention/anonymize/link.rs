//! What ties a row to a person, as SQL.
//!
//! Statements that use a link have the table under the alias `t` and people's keys, as an array of
//! texts, as their first bound value.

use super::plan::{KeyColumn, PlanFault, find_classified, live_name};
use crate::policy::{Classification, SubjectLink};
use crate::retention::archive::archive_name;
use crate::retention::catalog::{Catalog, Table};
use crate::retention::sql::{Ident, Literal, TableName};

/// Rows that lead to rows that lead to a person: more steps than any schema needs.
const MAX_STEPS: u32 = 6;

/// One way from a row to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Tells the rows of the people of `$1`.
    pub condition: String,
    /// The person's key as text.
    pub person: String,
    /// It tells whom the row is about, and not who did it.
    pub is_about: bool,
}

/// The links of a table.
#[derive(Debug, Default)]
pub struct Links {
    /// Those that work.
    pub links: Vec<Link>,
    /// What is wrong with the others.
    pub faults: Vec<PlanFault>,
}

/// The links of a table's rows to people of `subject`, whose own rows are their own.
pub fn links(
    classification: &Classification,
    catalog: &Catalog,
    subject: &TableName,
    key: &KeyColumn,
    table: &Table,
) -> Links {
    let mut finder = Finder { classification, catalog, subject, key, faults: Vec::new() };
    let links = finder.of(table, "t", MAX_STEPS);
    Links { links, faults: finder.faults }
}

struct Finder<'a> {
    classification: &'a Classification,
    catalog: &'a Catalog,
    subject: &'a TableName,
    key: &'a KeyColumn,
    faults: Vec<PlanFault>,
}

impl Finder<'_> {
    fn of(&mut self, table: &Table, alias: &str, steps: u32) -> Vec<Link> {
        let live = live_name(self.classification, &table.name);
        if live == *self.subject {
            let key = &self.key.name;
            return vec![self.column(table, alias, key, false)].into_iter().flatten().collect();
        }
        let Some(classified) = find_classified(self.classification, &live) else {
            return Vec::new();
        };
        // Keys of other people's tables are links as well: only those that lead here count.
        let mut links = Vec::new();
        for link in &classified.subject {
            match link {
                SubjectLink::Column(column) => {
                    let column = Ident::new(column.as_str());
                    if self.leads_here(&live, &column) {
                        links.extend(self.column(table, alias, &column, false));
                    }
                }
                SubjectLink::Named { discriminator, value, id } => {
                    let (id, value) = (Ident::new(id.as_str()), Literal::new(value));
                    let said = Ident::new(discriminator.as_str());
                    if table.column(&said).is_none() {
                        self.fault(table, &said, "ties rows to a person, but does not exist");
                        continue;
                    }
                    links.extend(self.column(table, alias, &id, true).map(|link| Link {
                        condition: format!("{alias}.{said} = {value} and {}", link.condition),
                        person: format!(
                            "case when {alias}.{said} = {value} then {} end",
                            link.person
                        ),
                        is_about: true,
                    }));
                }
                SubjectLink::Through(column) => {
                    let column = Ident::new(column.as_str());
                    links.extend(self.through(table, alias, &live, &column, steps));
                }
            }
        }
        links
    }

    fn column(&mut self, table: &Table, alias: &str, name: &Ident, is_about: bool) -> Option<Link> {
        let Some(column) = table.column(name) else {
            self.fault(table, name, "ties rows to a person, but does not exist");
            return None;
        };
        Some(Link {
            condition: format!("{alias}.{name} = any ($1::text[]::{}[])", column.base_type),
            person: format!("{alias}.{name}::text"),
            is_about,
        })
    }

    /// Whether a foreign key of the live table leads to people of this table, or nowhere: then the
    /// classification alone says so.
    fn leads_here(&self, live: &TableName, column: &Ident) -> bool {
        let Some(table) = self.catalog.table(live) else { return true };
        let mut keys = table.references.iter().filter(|key| key.child_columns.contains(column));
        let first = keys.next();
        first.is_none_or(|key| key.parent == *self.subject)
            || keys.any(|key| key.parent == *self.subject)
    }

    /// By way of the row that a foreign key of the live table names, live or archived itself.
    fn through(
        &mut self,
        table: &Table,
        alias: &str,
        live: &TableName,
        column: &Ident,
        steps: u32,
    ) -> Option<Link> {
        let key = self.catalog.table(live).and_then(|live| {
            live.references.iter().find(|key| key.child_columns == std::slice::from_ref(column))
        });
        let (Some(key), true) = (key, steps > 0) else {
            self.fault(table, column, "is `through`, so it must be a foreign key of one column");
            return None;
        };
        let target = key.parent_columns.first()?.clone();
        let places = [key.parent.clone(), archive_name(&key.parent)];
        let inner = format!("{alias}p");
        let (mut conditions, mut people) = (Vec::new(), Vec::new());
        for place in places {
            let Some(parent) = self.catalog.table(&place) else { continue };
            for link in self.of(parent, &inner, steps - 1) {
                conditions.push(format!(
                    "{alias}.{column} in (select {inner}.{target} from {place} {inner} where {})",
                    link.condition
                ));
                people.push(format!(
                    "(select {} from {place} {inner} where {inner}.{target} = {alias}.{column})",
                    link.person
                ));
            }
        }
        if conditions.is_empty() {
            self.fault(table, column, "is `through`, but the row it names is tied to nobody");
            return None;
        }
        Some(Link {
            condition: format!("({})", conditions.join(" or ")),
            person: format!("coalesce({})", people.join(", ")),
            is_about: false,
        })
    }

    fn fault(&mut self, table: &Table, column: &Ident, expected: &str) {
        self.faults.push(PlanFault {
            table: table.name.plain(),
            column: column.as_str().to_owned(),
            expected: expected.to_owned(),
        });
    }
}
