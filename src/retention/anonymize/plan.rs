//! What an erasure does to which column, made from the classification and the catalog, and proven
//! before anything is touched: every written value fits its column's type, width, NOT NULL and
//! unique keys.
//!
//! A table is visited once per link that ties its rows to a person. Where rows are tied both by
//! who did something (a foreign key) and by whom it is about (a key beside a table's name), the
//! documents of the row are about the second, and everything else in it is of the first.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Connection, PgConnection};

use super::link::{self, Link};
use crate::policy::{Account, Class, Classification, ClassifiedTable, ColumnName};
use crate::retention::archive::{archive_name, is_archive_of};
use crate::retention::catalog::{Catalog, Column, Table};
use crate::retention::sql::{self, Ident, TableName};
use crate::retention::treatment::{Anonymity, Misfit, Treatment};

/// Everything that an erasure of people of one table needs to know.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The people's table.
    pub subject: Subject,
    /// What to do, in order: children before parents, the person's own row last.
    pub visits: Vec<Visit>,
    /// Where traces are looked for.
    pub searched: Vec<Searched>,
    /// SHA-256 of the classification.
    pub digest: String,
}

/// The people's table.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name.
    pub table: TableName,
    /// Its key.
    pub key: KeyColumn,
    /// How accounts are closed.
    pub account: Account,
    /// Columns with a treatment.
    pub columns: Vec<Treated>,
    /// What people are called by: columns that stand with a space between, then each other
    /// personal column by itself.
    pub names: Vec<Vec<Ident>>,
    /// Columns whose values no two people share.
    pub unique: BTreeSet<String>,
    /// The type of every column, for casts.
    pub types: BTreeMap<String, String>,
}

/// A column of a primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its name.
    pub name: Ident,
    /// Its type, for casts.
    pub type_name: String,
}

/// Rows of a table that are tied to people by one link.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The table.
    pub table: TableName,
    /// The live table that its rows came from: itself, unless it is an archive.
    pub origin: TableName,
    /// Its primary key.
    pub key: Vec<KeyColumn>,
    /// What ties its rows to a person.
    pub link: Link,
    /// What is treated in these rows.
    pub columns: Vec<Treated>,
}

/// A column and what becomes of it.
#[derive(Debug, Clone)]
pub struct Treated {
    /// Its name.
    pub name: Ident,
    /// Its type, for casts.
    pub type_name: String,
    /// Its class.
    pub class: Class,
    /// What becomes of it.
    pub treatment: Treatment,
    /// It holds a document.
    pub is_json: bool,
    /// It refuses NULL.
    pub not_null: bool,
}

/// A table with columns that may hold traces.
#[derive(Debug, Clone)]
pub struct Searched {
    /// The table.
    pub table: TableName,
    /// The live table that its rows came from: itself, unless it is an archive.
    pub origin: TableName,
    /// Its primary key; empty where it has none, and nothing can be mended.
    pub key: Vec<KeyColumn>,
    /// Columns that can hold a text.
    pub columns: Vec<Treated>,
    /// Whose row it is, by a foreign key.
    pub owner: Option<String>,
    /// Whom it is about, by a key beside a table's name.
    pub about: Option<String>,
    /// It is the people's table, live or archived.
    pub is_subject: bool,
}

/// Something in the classification that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table}{}{column}: {expected}", if column.is_empty() { "" } else { "." })]
pub struct PlanFault {
    /// The table.
    pub table: String,
    /// The column; empty for the table as a whole.
    pub column: String,
    /// What was expected.
    pub expected: String,
}

/// No plan can be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The classification does not fit the database.
    #[error("classification.toml does not fit the database: {}", list(.0))]
    Faults(Vec<PlanFault>),
    /// The database's.
    #[error("the catalog cannot be read")]
    Database(#[from] sqlx::Error),
}

fn list(faults: &[PlanFault]) -> String {
    faults.iter().map(PlanFault::to_string).collect::<Vec<_>>().join("; ")
}

impl Plan {
    /// The live tables that say something of people.
    pub(super) fn tables(&self) -> Vec<String> {
        let visited = self.visits.iter().map(|visit| visit.origin.plain());
        let searched = self.searched.iter().map(|searched| searched.origin.plain());
        let tables: BTreeSet<_> = visited.chain(searched).collect();
        tables.into_iter().collect()
    }

    /// Makes the plan of a table of people, or says everything that is in its way.
    ///
    /// # Errors
    /// [`PlanError`]
    pub async fn make(
        connection: &mut PgConnection,
        classification: &Classification,
        subject: &TableName,
    ) -> Result<Self, PlanError> {
        let catalog = Catalog::read(&mut *connection).await?;
        let mut maker = Maker { classification, catalog: &catalog, faults: Vec::new() };
        let plan = maker.plan(subject);
        let mut faults = maker.faults;
        let Some(mut plan) = plan.filter(|_| faults.is_empty()) else {
            return Err(PlanError::Faults(faults));
        };
        plan.print_constants(connection, &mut faults).await?;
        if faults.is_empty() { Ok(plan) } else { Err(PlanError::Faults(faults)) }
    }

    /// The tables of people in a classification.
    pub fn subjects(classification: &Classification) -> Vec<TableName> {
        let people = classification.tables.iter().filter(|(_, table)| table.account.is_some());
        people.map(|(name, _)| TableName::new(name.schema(), name.table())).collect()
    }

    /// Brings constants into the form in which PostgreSQL prints them for the column's type, so
    /// that a treated row is known again. One that is no value of the type is a fault.
    async fn print_constants(
        &mut self,
        connection: &mut PgConnection,
        faults: &mut Vec<PlanFault>,
    ) -> Result<(), sqlx::Error> {
        let columns = self
            .visits
            .iter_mut()
            .flat_map(|visit| visit.columns.iter_mut().map(|column| (visit.table.plain(), column)));
        let searched = self.searched.iter_mut().flat_map(|searched| {
            searched.columns.iter_mut().map(|column| (searched.table.plain(), column))
        });
        let own = self.subject.columns.iter_mut().map(|column| (String::new(), column));
        let all: Vec<_> = columns.chain(searched).chain(own).collect();
        for (table, column) in all {
            let Treatment::Constant(value) = &mut column.treatment else { continue };
            match print_constant(&mut *connection, &column.type_name, value).await? {
                Some(printed) => *value = printed,
                None => faults.push(PlanFault {
                    table,
                    column: column.name.as_str().to_owned(),
                    expected: format!("`value` must be a {}", column.type_name),
                }),
            }
        }
        Ok(())
    }
}

/// A constant as PostgreSQL prints it for a type. `None`: it is no value of the type.
pub(in crate::retention) async fn print_constant(
    connection: &mut PgConnection,
    type_name: &str,
    value: &str,
) -> Result<Option<String>, sqlx::Error> {
    // A savepoint: a value of the wrong type must not end the caller's transaction.
    let mut savepoint = connection.begin().await?;
    let statement = format!("select ($1::text::{type_name})::text");
    let printed =
        sqlx::query_scalar(sql::dynamic(statement)).bind(value).fetch_one(&mut *savepoint);
    match printed.await {
        Ok(printed) => Ok(Some(printed)),
        Err(sqlx::Error::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Treated {
    /// What its values say once they are treated.
    pub fn anonymity(&self) -> Anonymity {
        self.treatment.facts().anonymity
    }
}

struct Maker<'a> {
    classification: &'a Classification,
    catalog: &'a Catalog,
    faults: Vec<PlanFault>,
}

impl<'a> Maker<'a> {
    fn plan(&mut self, subject: &TableName) -> Option<Plan> {
        let Some(classified) = self.classified(subject) else {
            self.fault(subject, "", "must be classed");
            return None;
        };
        let Some(account) = classified.account.clone() else {
            self.fault(subject, "", "must have `account`: it is no table of people");
            return None;
        };
        let table = self.table(subject)?.clone();
        let key = self.key_of(&table);
        let [key] = key.as_slice() else {
            self.fault(subject, "", "must have a primary key of one column");
            return None;
        };
        let unique = table
            .unique_keys
            .iter()
            .filter(|unique| unique.predicate.is_none())
            .filter_map(|unique| match unique.columns.as_slice() {
                [column] => Some(column.as_str().to_owned()),
                _ => None,
            })
            .collect();
        let columns = self.treated(&table, classified, true);
        self.check_account(&table, &account, &columns);
        let (visits, searched) = self.visits(subject, key);
        let names = names_of(&account, &columns);
        let types = table
            .columns
            .iter()
            .map(|column| (column.name.as_str().to_owned(), column.base_type.clone()))
            .collect();
        let subject =
            Subject { table: table.name, key: key.clone(), account, columns, names, unique, types };
        let digest = self.classification.digest();
        Some(Plan { subject, visits, searched, digest })
    }

    /// Every link of every table, live and archived, children first and people last.
    fn visits(&mut self, subject: &TableName, key: &KeyColumn) -> (Vec<Visit>, Vec<Searched>) {
        let mut names = BTreeSet::new();
        for name in self.classification.tables.keys() {
            let live = TableName::new(name.schema(), name.table());
            let archived = archive_name(&live);
            names.extend([live, archived].into_iter().filter(|n| self.catalog.table(n).is_some()));
        }
        let mut ordered: Vec<_> = self.catalog.order(&names).into_iter().flatten().collect();
        // Foreign keys say nothing of archives: whatever the order, people come last.
        ordered.sort_by_key(|name| live_name(self.classification, name) == *subject);
        let (mut visits, mut searched) = (Vec::new(), Vec::new());
        for name in ordered {
            let live = live_name(self.classification, &name);
            let Some(classified) = self.classified(&live) else { continue };
            let Some(table) = self.catalog.table(&name) else { continue };
            let is_live = name == live;
            let columns = self.treated(table, classified, is_live);
            let table_key = self.key_of(table);
            let links = link::links(self.classification, self.catalog, subject, key, table);
            for fault in links.faults {
                self.faults.push(fault);
            }
            let links = links.links;
            let has_about = links.iter().any(|link| link.is_about);
            let has_owner = links.iter().any(|link| !link.is_about);
            for link in &links {
                let columns: Vec<_> = columns
                    .iter()
                    .filter(|column| column.treatment != Treatment::Keep)
                    .filter(|column| match (has_about && has_owner, link.is_about) {
                        (true, about) => column.is_document() == about,
                        (false, _) => true,
                    })
                    .cloned()
                    .collect();
                if columns.is_empty() {
                    continue;
                }
                if table_key.is_empty() {
                    self.fault(&table.name, "", "must have a primary key: its rows are treated");
                    continue;
                }
                visits.push(Visit {
                    table: table.name.clone(),
                    origin: live.clone(),
                    key: table_key.clone(),
                    link: link.clone(),
                    columns,
                });
            }
            let person = |about: bool| {
                let of: Vec<_> = links
                    .iter()
                    .filter(|link| link.is_about == about)
                    .map(|link| link.person.clone())
                    .collect();
                (!of.is_empty()).then(|| format!("coalesce({})", of.join(", ")))
            };
            let columns: Vec<_> = columns.into_iter().filter(Treated::can_hold_text).collect();
            if !columns.is_empty() {
                searched.push(Searched {
                    table: table.name.clone(),
                    origin: live.clone(),
                    key: table_key,
                    columns,
                    owner: person(false),
                    about: person(true),
                    is_subject: live == *subject,
                });
            }
        }
        (visits, searched)
    }

    /// The columns of a table that say something of a person, each proven to take its treatment.
    fn treated(
        &mut self,
        table: &Table,
        classified: &ClassifiedTable,
        is_live: bool,
    ) -> Vec<Treated> {
        let mut treated = Vec::new();
        for (name, column) in &classified.columns {
            let Some(treatment) = column.treatment() else { continue };
            let name = Ident::new(name.as_str());
            let Some(found) = table.column(&name) else {
                // An archive may be older than the column.
                if is_live {
                    self.fault(&table.name, name.as_str(), "is classed, but does not exist");
                }
                continue;
            };
            let treatment = Treatment::of(treatment, self.classification);
            self.prove(table, found, &treatment);
            treated.push(Treated {
                name,
                type_name: found.base_type.clone(),
                class: column.class(),
                treatment,
                is_json: matches!(found.base_type.as_str(), "json" | "jsonb"),
                not_null: found.not_null,
            });
        }
        treated
    }

    fn prove(&mut self, table: &Table, column: &Column, treatment: &Treatment) {
        let name = treatment.name();
        for misfit in treatment.misfits(table, column) {
            let expected = match misfit {
                Misfit::WrongType => format!("`{name}` does not work on {}", column.type_sql),
                Misfit::WritesNull => format!("is NOT NULL, and `{name}` writes NULL"),
                Misfit::TooLong { writes, fits } => {
                    format!("holds {fits} characters, and `{name}` writes up to {writes}")
                }
                Misfit::NotUnique => format!("is unique, and `{name}` may write a value twice"),
                Misfit::Generated => {
                    "is generated: treat the columns that it is made from".to_owned()
                }
                Misfit::InKey => "is part of the primary key: it can only be kept".to_owned(),
                Misfit::InForeignKey => "is a foreign key: it can only be kept".to_owned(),
            };
            self.fault(&table.name, column.name.as_str(), &expected);
        }
    }

    fn check_account(&mut self, table: &Table, account: &Account, treated: &[Treated]) {
        let own = |column: &ColumnName| Ident::new(column.as_str());
        let named = account.names.iter().flatten().chain(account.closed.iter().map(|(c, _)| c));
        for column in named.chain([&account.deleted_at]).chain(&account.born).chain(&account.frees)
        {
            if table.column(&own(column)).is_none() {
                self.fault(
                    &table.name,
                    column.as_str(),
                    "is named by `account`, but does not exist",
                );
            }
        }
        for column in &account.frees {
            let token = treated.iter().find(|treated| treated.name == own(column));
            if !token.is_some_and(|column| matches!(column.treatment, Treatment::Token(_))) {
                self.fault(
                    &table.name,
                    column.as_str(),
                    "is freed, so its treatment must be `token`",
                );
            }
        }
        if let Some(born) = &account.born
            && treated.iter().any(|t| t.name == own(born) && t.treatment != Treatment::Keep)
        {
            self.fault(&table.name, born.as_str(), "is `born`, so it must be kept");
        }
        for revoked in &account.revokes {
            let name = TableName::new(revoked.table.schema(), revoked.table.table());
            let Some(table) = self.table(&name).cloned() else { continue };
            for column in [&revoked.subject, &revoked.at] {
                if table.column(&own(column)).is_none() {
                    self.fault(&name, column.as_str(), "is named by `revokes`, but does not exist");
                }
            }
        }
    }

    fn key_of(&self, table: &Table) -> Vec<KeyColumn> {
        let columns = table.primary_key.iter().filter_map(|name| table.column(name));
        columns
            .map(|column| KeyColumn {
                name: column.name.clone(),
                type_name: column.base_type.clone(),
            })
            .collect()
    }

    fn classified(&self, name: &TableName) -> Option<&'a ClassifiedTable> {
        find_classified(self.classification, name)
    }

    fn table(&mut self, name: &TableName) -> Option<&'a Table> {
        if self.catalog.table(name).is_none() {
            self.fault(name, "", "does not exist");
        }
        self.catalog.table(name)
    }

    fn fault(&mut self, table: &TableName, column: &str, expected: &str) {
        self.faults.push(PlanFault {
            table: table.plain(),
            column: column.to_owned(),
            expected: expected.to_owned(),
        });
    }
}

impl Treated {
    /// Documents tell of whom they are about; other columns tell of who acted.
    fn is_document(&self) -> bool {
        matches!(self.treatment, Treatment::ScrubJson(_))
    }

    /// Whether a name could stand in it.
    fn can_hold_text(&self) -> bool {
        self.is_json
            || matches!(self.type_name.as_str(), "text" | "varchar" | "bpchar" | "citext" | "name")
    }
}

/// The names of `account`, and every personal column that is not a part of one of them: a family
/// name by itself names many.
fn names_of(account: &Account, columns: &[Treated]) -> Vec<Vec<Ident>> {
    let mut names: Vec<Vec<Ident>> = account
        .names
        .iter()
        .map(|parts| parts.iter().map(|part| Ident::new(part.as_str())).collect())
        .collect();
    let parts: BTreeSet<_> = names.iter().flatten().cloned().collect();
    let others = columns.iter().filter(|column| {
        column.class == Class::Personal && column.can_hold_text() && !parts.contains(&column.name)
    });
    names.extend(others.map(|column| vec![column.name.clone()]));
    names
}

/// The table that says what the rows of `table` are: itself, or for an archive that is not classed
/// by its own name the one that they came from, though it may be gone.
pub(in crate::retention) fn live_name(
    classification: &Classification,
    table: &TableName,
) -> TableName {
    if find_classified(classification, table).is_some() {
        return table.clone();
    }
    let mut classed =
        classification.tables.keys().map(|name| TableName::new(name.schema(), name.table()));
    classed.find(|live| is_archive_of(table, live)).unwrap_or_else(|| table.clone())
}

/// What the classification says of a table.
pub(in crate::retention) fn find_classified<'a>(
    classification: &'a Classification,
    name: &TableName,
) -> Option<&'a ClassifiedTable> {
    let mut tables = classification.tables.iter();
    let found = tables.find(|(classed, _)| {
        classed.schema() == name.schema.as_str() && classed.table() == name.name.as_str()
    });
    found.map(|(_, table)| table)
}
