//! Each table of each policy: names, keys, age, conditions, indexes.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::super::anonymize::live_name;
use super::super::archive::is_archive;
use super::super::catalog::{Catalog, Column, ForeignKey, Table};
use super::super::condition::{self, ConditionFault};
use super::super::sql::{Ident, TableName, list};
use super::super::treatment;
use super::classes::classified;
use super::{Findings, file_of, find, table_name};
use crate::policy::{
    AgePath, Anonymize, AnonymizeTable, Class, Condition, IfReferenced, Kind, Policies, Policy,
    Treatment,
};

/// What policies of old rows say alike of a table.
pub(super) struct Ruled<'a> {
    pub(super) name: TableName,
    pub(super) age: &'a AgePath,
    pub(super) after: crate::policy::Age,
    condition: Option<&'a Condition>,
    pub(super) takes: Takes<'a>,
}

/// What goes along with a row.
pub(super) enum Takes<'a> {
    /// Archived: nothing, or its children.
    Archive { keep_children: bool },
    /// Deleted: as said.
    Purge(&'a IfReferenced),
    /// Nothing: it stays.
    Anonymize,
}

/// The tables of a policy that moves, deletes or changes rows by age.
pub(super) fn ruled(policy: &Policy) -> Vec<Ruled<'_>> {
    match &policy.kind {
        Kind::Archive(archive) => archive
            .tables
            .iter()
            .map(|table| Ruled {
                name: table_name(&table.name),
                age: &table.age,
                after: table.after,
                condition: table.condition.as_ref(),
                takes: Takes::Archive { keep_children: table.keep_children },
            })
            .collect(),
        Kind::Purge(purge) => purge
            .tables
            .iter()
            .map(|table| Ruled {
                name: table_name(&table.name),
                age: &table.age,
                after: table.after,
                condition: table.condition.as_ref(),
                takes: Takes::Purge(&table.if_referenced),
            })
            .collect(),
        Kind::AnonymizeRows(anonymize) => anonymize
            .tables
            .iter()
            .map(|table| Ruled {
                name: table_name(&table.name),
                age: &table.age,
                after: table.after,
                condition: table.condition.as_ref(),
                takes: Takes::Anonymize,
            })
            .collect(),
        Kind::Anonymize(_)
        | Kind::ExpireResults(_)
        | Kind::Backup(_)
        | Kind::VerifyBackup(_)
        | Kind::PruneBackups(_)
        | Kind::Report(_) => Vec::new(),
    }
}

pub(super) async fn check(
    connection: &mut PgConnection,
    catalog: &Catalog,
    policies: &Policies,
    policy: &Policy,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let file = file_of(policy);
    if let Kind::Anonymize(anonymize) = &policy.kind {
        check_anonymize(catalog, policies, anonymize, &file, findings);
    }
    if let Kind::AnonymizeRows(anonymize) = &policy.kind {
        for table in &anonymize.tables {
            check_treated(catalog, policies, table, &file, findings);
        }
    }
    for rule in ruled(policy) {
        let plain = rule.name.plain();
        let Some(table) = find(catalog, &rule.name) else {
            findings.error(&file, &plain, "is no table of the database: mend the name");
            continue;
        };
        if table.primary_key.is_empty() {
            let message = "has no primary key, so its rows cannot be told apart: give it one";
            findings.error(&file, &plain, message);
        }
        if table.has_foreign_partition {
            findings.error(&file, &plain, "has a partition on another server: detach it");
        }
        if matches!(rule.takes, Takes::Archive { .. }) && is_archive(&table.name) {
            findings.error(&file, &plain, "is an archive already: name a live table, or purge it");
        }
        check_age(catalog, table, &rule, &file, findings);
        check_references(catalog, table, &rule, &file, findings);
        if let Some(condition) = rule.condition {
            check_condition(connection, table, rule.age, condition, &file, findings).await?;
        }
    }
    Ok(())
}

fn check_anonymize(
    catalog: &Catalog,
    policies: &Policies,
    anonymize: &Anonymize,
    file: &str,
    findings: &mut Findings,
) {
    let name = table_name(&anonymize.subject);
    let plain = name.plain();
    if catalog.table(&name).is_none() {
        findings.error(file, &plain, "is no table of the database: mend the name");
        return;
    }
    let classes = classified(&policies.classification, &name);
    if classes.is_none_or(|classes| classes.account.is_none()) {
        let message =
            format!("must say in classification.toml how accounts are closed: [{plain}.account]");
        findings.error(file, &plain, message);
    }
    for quasi in anonymize.k_anonymity.iter().flat_map(|k| &k.quasi) {
        let class = classes.and_then(|classes| classes.columns.get(quasi)).map(|c| c.class());
        if class != Some(Class::Quasi) {
            let message = "is counted for k-anonymity, so its class must be `quasi`";
            findings.error(file, format!("{plain}.{quasi}"), message);
        }
    }
}

/// Which columns are treated, and that they can be.
fn check_treated(
    catalog: &Catalog,
    policies: &Policies,
    declared: &AnonymizeTable,
    file: &str,
    findings: &mut Findings,
) {
    let name = table_name(&declared.name);
    let plain = name.plain();
    let live = live_name(&policies.classification, &name);
    // An archive that is not made yet is told of by its live table.
    let (Some(table), Some(classes)) =
        (find(catalog, &name), classified(&policies.classification, &live))
    else {
        return; // told of as a table that does not exist, or is not classed
    };
    let mut treated = 0;
    for column in &table.columns {
        let class = classes.columns.iter().find(|(name, _)| name.as_str() == column.name.as_str());
        let declared_one = declared.columns.iter().any(|c| c.as_str() == column.name.as_str());
        let treatment = class.and_then(|(_, class)| class.treatment());
        let treatment = treatment.filter(|t| !matches!(t, Treatment::Keep { .. }));
        let about = format!("{plain}.{}", column.name.as_str());
        let Some(treatment) = treatment else {
            if declared_one {
                let message = "is named by `columns`, but is kept or says nothing of a person: give \
                               it a `treat` in classification.toml, or take it out";
                findings.error(file, about, message);
            }
            continue;
        };
        if !declared.columns.is_empty() && !declared_one {
            continue;
        }
        treated += 1;
        if matches!(&declared.age, AgePath::Own(age) if age.as_str() == column.name.as_str()) {
            let message = "tells the age, so it cannot be treated: name the `columns` without it";
            findings.error(file, &about, message);
        }
        let treatment = treatment::Treatment::of(treatment, &policies.classification);
        for misfit in treatment.misfits(table, column) {
            findings.error(file, &about, misfit.explain(treatment.name(), column));
        }
    }
    for column in &declared.columns {
        if table.column(&Ident::new(column.as_str())).is_none() {
            let message = "is named by `columns`, but there is no such column";
            findings.error(file, format!("{plain}.{column}"), message);
        }
    }
    if treated == 0 && declared.columns.is_empty() {
        let message =
            "has no column with a treatment in classification.toml: there is nothing to do";
        findings.error(file, plain, message);
    }
}

fn check_age(
    catalog: &Catalog,
    table: &Table,
    rule: &Ruled<'_>,
    file: &str,
    findings: &mut Findings,
) {
    let plain = rule.name.plain();
    let (owner, column) = match rule.age {
        AgePath::Own(column) => (table, column),
        AgePath::Parent { parent, column } => match parent_key(table, parent.as_str()) {
            Ok(key) => {
                let Some(owner) = catalog.table(&key.parent) else { return };
                check_index(
                    table,
                    &key.child_columns,
                    "to find the rows of an old parent",
                    file,
                    findings,
                );
                (owner, column)
            }
            Err(message) => return findings.error(file, plain, message),
        },
    };
    let about = format!("{}.{column}", owner.name.plain());
    let Some(found) = owner.column(&Ident::new(column.as_str())) else {
        let message =
            format!("is what the age of `{plain}` is told from, but there is no such column");
        return findings.error(file, about, message);
    };
    if !is_time(found) {
        let message =
            format!("is {}, and an age is a date, a timestamp or a timestamptz", found.type_sql);
        return findings.error(file, about, message);
    }
    // An archive that does not exist yet is made with the index.
    if owner.name == rule.name || owner.name != table.name {
        let columns = [found.name.clone()];
        check_index(owner, &columns, "to find old rows", file, findings);
    }
}

fn is_time(column: &Column) -> bool {
    matches!(column.base_type.as_str(), "date" | "timestamp" | "timestamptz")
}

/// The foreign key that a parent's name means, or the key's column where several lead there.
fn parent_key<'a>(table: &'a Table, name: &str) -> Result<&'a ForeignKey, String> {
    let by_column = |key: &&ForeignKey| matches!(key.child_columns.as_slice(), [column] if column.as_str() == name);
    if let Some(key) = table.references.iter().find(by_column) {
        return Ok(key);
    }
    let keys: Vec<_> =
        table.references.iter().filter(|key| key.parent.name.as_str() == name).collect();
    match keys.as_slice() {
        [key] => Ok(key),
        [] => Err(format!("has no foreign key to `{name}`, which tells its age")),
        _ => Err(format!("has several foreign keys to `{name}`: name the column of one instead")),
    }
}

/// Whatever references a row is looked up when the row goes.
fn check_references(
    catalog: &Catalog,
    table: &Table,
    rule: &Ruled<'_>,
    file: &str,
    findings: &mut Findings,
) {
    let plain = rule.name.plain();
    if matches!(rule.takes, Takes::Anonymize) {
        return; // the row stays
    }
    for key in &table.referenced_by {
        if let Some(child) = catalog.table(&key.child) {
            let what = format!("and each row that leaves `{plain}` would read it whole");
            check_index(child, &key.child_columns, &what, file, findings);
        }
    }
    let Takes::Purge(IfReferenced::Cascade(named)) = rule.takes else { return };
    let named: BTreeSet<_> = named.iter().map(table_name).collect();
    for name in &named {
        match catalog.table(name) {
            None => {
                findings.error(file, name.plain(), "is no table of the database: mend `cascade`");
            }
            Some(child) if child.primary_key.is_empty() => {
                findings.error(
                    file,
                    name.plain(),
                    "has no primary key, so it cannot be in `cascade`",
                );
            }
            Some(_) => {}
        }
    }
    // What references those must be named as well, or their rows stay, and so does this one.
    for parent in named.iter().chain([&table.name]).filter_map(|name| catalog.table(name)) {
        for key in &parent.referenced_by {
            if key.child != table.name && !named.contains(&key.child) {
                let message = format!(
                    "references `{}`, so rows of it keep rows of `{plain}`: add it to `cascade`",
                    parent.name.plain(),
                );
                findings.warning(file, key.child.plain(), message);
            }
        }
    }
}

fn check_index(table: &Table, columns: &[Ident], why: &str, file: &str, findings: &mut Findings) {
    if table.has_index_for(columns) {
        return;
    }
    let names = list("", columns);
    let plain: Vec<_> = columns.iter().map(Ident::as_str).collect();
    let message = format!(
        "has no index that leads with ({}) {why}: create index concurrently on {} ({names})",
        plain.join(", "),
        table.name,
    );
    findings.error(file, table.name.plain(), message);
}

async fn check_condition(
    connection: &mut PgConnection,
    table: &Table,
    age: &AgePath,
    condition: &Condition,
    file: &str,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let mut parents = condition.qualifiers();
    if let AgePath::Parent { parent, column: _ } = age {
        parents.insert(parent.as_str().to_owned());
    }
    parents.remove(table.name.name.as_str());
    let mut from = condition::source(&table.name);
    // Of other names the server says that they mean nothing here.
    for (parent, key) in parents.iter().filter_map(|p| Some((p, parent_key(table, p).ok()?))) {
        from.push_str(&format!(" cross join {} as {}", key.parent, Ident::new(parent.as_str())));
    }
    match condition::check(connection, &from, condition).await {
        Ok(()) => Ok(()),
        Err(ConditionFault::Database(error)) => Err(error),
        Err(fault @ (ConditionFault::Volatile(_) | ConditionFault::Refused(_))) => {
            findings.error(file, table.name.plain(), format!("has a `where` that {fault}"));
            Ok(())
        }
    }
}
