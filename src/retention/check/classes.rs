//! Every column is classed, everything that is classed exists, and whatever is tied to a person
//! says so.

use std::collections::BTreeSet;

use super::super::archive::{ARCHIVE_RUN_ID, ARCHIVED_AT, archive_name, is_archive, origin};
use super::super::catalog::{Catalog, Table};
use super::super::sql::{Ident, TableName};
use super::{Findings, table_name};
use crate::policy::{
    CLASSIFICATION_FILE as FILE, Classification, ClassifiedTable, SubjectLink, Treatment,
};

/// Columns that the engine adds to an archive.
const ARCHIVE_COLUMNS: [&str; 2] = [ARCHIVED_AT, ARCHIVE_RUN_ID];

pub(super) fn check(catalog: &Catalog, classification: &Classification, findings: &mut Findings) {
    for table in catalog.tables() {
        match classified(classification, &table.name) {
            Some(classes) => check_columns(table, classes, findings),
            None if is_archive(&table.name) => {
                check_archive(catalog, classification, table, findings);
            }
            None => {
                let names: Vec<_> = table.columns.iter().map(|c| c.name.as_str()).collect();
                let message = format!(
                    "is not classed: add a table [{}] to {FILE} with a class for each of {}",
                    table_key(&table.name),
                    names.join(", "),
                );
                findings.error(FILE, table.name.plain(), message);
            }
        }
    }
    for (name, classes) in &classification.tables {
        match catalog.table(&table_name(name)) {
            Some(table) => {
                check_existence(catalog, table, classes, findings);
                check_links(table, classes, findings);
                check_untied(classification, table, classes, findings);
                check_scrubbing(classification, table, classes, findings);
            }
            None => {
                findings.error(FILE, name, "is classed, but there is no such table: take it out");
            }
        }
    }
}

/// What the classification says of a table.
pub(super) fn classified<'a>(
    classification: &'a Classification,
    name: &TableName,
) -> Option<&'a ClassifiedTable> {
    let mut tables = classification.tables.iter();
    tables.find(|(classed, _)| table_name(classed) == *name).map(|(_, table)| table)
}

fn table_key(name: &TableName) -> String {
    let plain = name.plain();
    if plain.contains('.') { format!("\"{plain}\"") } else { plain }
}

fn check_columns(table: &Table, classes: &ClassifiedTable, findings: &mut Findings) {
    let classed: BTreeSet<_> = classes.columns.keys().map(|name| name.as_str()).collect();
    for column in table.columns.iter().filter(|column| !classed.contains(column.name.as_str())) {
        unclassed(table, &column.name, findings);
    }
}

fn unclassed(table: &Table, column: &Ident, findings: &mut Findings) {
    let message = format!(
        "is not classed: add `{} = {{ class = \"…\" }}` to [{}], with `treat` unless it is `none`",
        column.as_str(),
        table_key(&table.name),
    );
    findings.error(FILE, about(&table.name, column.as_str()), message);
}

/// An archive is classed as the table its rows came from, and may have kept columns that this one
/// has lost.
fn check_archive(
    catalog: &Catalog,
    classification: &Classification,
    archive: &Table,
    findings: &mut Findings,
) {
    let origin = origin(catalog, &archive.name);
    let classes = origin.and_then(|live| classified(classification, &live.name));
    let is_classed = |name: &str| {
        ARCHIVE_COLUMNS.contains(&name)
            || classes.is_some_and(|classes| classes.columns.keys().any(|c| c.as_str() == name))
    };
    match origin {
        Some(live) if classes.is_some() => {
            for column in archive.columns.iter().filter(|column| !is_classed(column.name.as_str()))
            {
                let message = format!(
                    "is kept in the archive and is not classed: add it to [{}]",
                    table_key(&live.name),
                );
                findings.error(FILE, about(&archive.name, column.name.as_str()), message);
            }
        }
        // The live table is told of already.
        Some(_) => {}
        None => {
            let message = format!(
                "is an archive of a table that is gone: add a table [{}] with a class for each column",
                table_key(&archive.name),
            );
            findings.error(FILE, archive.name.plain(), message);
        }
    }
}

fn check_existence(
    catalog: &Catalog,
    table: &Table,
    classes: &ClassifiedTable,
    findings: &mut Findings,
) {
    let archive = catalog.table(&archive_name(&table.name));
    let exists = |name: &str| {
        let name = Ident::new(name);
        table.column(&name).is_some() || archive.is_some_and(|table| table.column(&name).is_some())
    };
    for name in classes.columns.keys().filter(|name| !exists(name.as_str())) {
        let message = "is classed, but there is no such column: take it out";
        findings.error(FILE, about(&table.name, name.as_str()), message);
    }
    let Some(account) = &classes.account else { return };
    let named = account.names.iter().flatten().chain(account.closed.iter().map(|(name, _)| name));
    let named = named.chain([&account.deleted_at]).chain(&account.born).chain(&account.frees);
    for name in named.filter(|name| table.column(&Ident::new(name.as_str())).is_none()) {
        let message = "is named by `account`, but there is no such column";
        findings.error(FILE, about(&table.name, name.as_str()), message);
    }
    for revoked in &account.revokes {
        let rows = catalog.table(&table_name(&revoked.table));
        for name in [&revoked.subject, &revoked.at] {
            let exists = rows.is_some_and(|rows| rows.column(&Ident::new(name.as_str())).is_some());
            if !exists {
                let message = "is named by `account.revokes`, but there is no such column";
                findings.error(FILE, format!("{}.{name}", revoked.table), message);
            }
        }
    }
}

fn check_links(table: &Table, classes: &ClassifiedTable, findings: &mut Findings) {
    let mut must_exist = |name: &str| {
        let exists = table.column(&Ident::new(name)).is_some();
        if !exists {
            let message = "is named by `subject`, but there is no such column";
            findings.error(FILE, about(&table.name, name), message);
        }
        exists
    };
    let mut not_keys = Vec::new();
    for link in &classes.subject {
        match link {
            SubjectLink::Column(name) => {
                must_exist(name.as_str());
            }
            SubjectLink::Named { discriminator, value: _, id } => {
                must_exist(discriminator.as_str());
                must_exist(id.as_str());
            }
            SubjectLink::Through(name) => {
                let column = [Ident::new(name.as_str())];
                let is_key = table.references.iter().any(|key| key.child_columns == column);
                if must_exist(name.as_str()) && !is_key {
                    not_keys.push(name.as_str());
                }
            }
        }
    }
    for name in not_keys {
        let message = "is `through`, so it must be a foreign key of this one column";
        findings.error(FILE, about(&table.name, name), message);
    }
}

/// Columns are treated only in rows that are tied to a person, so a foreign key to people that
/// `subject` leaves out would be a row that is forgotten.
fn check_untied(
    classification: &Classification,
    table: &Table,
    classes: &ClassifiedTable,
    findings: &mut Findings,
) {
    let is_treated = classes
        .columns
        .values()
        .filter_map(|column| column.treatment())
        .any(|treatment| !matches!(treatment, Treatment::Keep { .. }));
    if !is_treated || classes.account.is_some() {
        return;
    }
    let tied: BTreeSet<_> = classes
        .subject
        .iter()
        .filter_map(|link| match link {
            SubjectLink::Column(name) | SubjectLink::Through(name) => Some(name.as_str()),
            SubjectLink::Named { .. } => None,
        })
        .collect();
    for key in &table.references {
        let parent = classified(classification, &key.parent);
        let is_to_people = parent.is_some_and(|parent| parent.account.is_some());
        if let ([column], true) = (key.child_columns.as_slice(), is_to_people)
            && !tied.contains(column.as_str())
        {
            let message = format!(
                "ties rows with treated columns to a person: add \"{}\" to `subject` of [{}]",
                column.as_str(),
                table_key(&table.name),
            );
            findings.error(FILE, about(&table.name, column.as_str()), message);
        }
    }
    if classes.subject.is_empty() && table.references.is_empty() {
        let message = "has treated columns, and nothing ties its rows to a person: add `subject`";
        findings.error(FILE, table.name.plain(), message);
    }
}

fn check_scrubbing(
    classification: &Classification,
    table: &Table,
    classes: &ClassifiedTable,
    findings: &mut Findings,
) {
    for (name, column) in &classes.columns {
        let Some(Treatment::ScrubJson { of, keys: _ }) = column.treatment() else { continue };
        for named in of.iter().filter(|named| !classification.tables.contains_key(named)) {
            let message = format!("takes its keys from `{named}`, which is not classed");
            findings.error(FILE, about(&table.name, name.as_str()), message);
        }
    }
}

fn about(table: &TableName, column: &str) -> String {
    format!("{}.{column}", table.plain())
}
