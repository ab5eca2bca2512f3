//! `policy check`: whether the policies and the classification fit the database and each other.
//!
//! Everything that is wrong is found in one go, and each finding says what to do. Nothing is
//! changed and no row is read: conditions are only planned.

use std::fmt;

use serde::Serialize;
use sqlx::PgConnection;

use super::archive::origin;
use super::catalog::{Catalog, Table};
use super::sql::TableName;
use crate::policy::{self, Policies, Policy};

mod classes;
mod coverage;
mod proof;
mod system;
mod tables;

pub use coverage::{CoveredColumn, coverage};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A run would be refused, or do what nobody means.
    Error,
    /// Worth knowing.
    Warning,
}

/// Something that does not fit, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file to mend, without its folder.
    pub file: String,
    /// The table, or `table.column`; empty if it is about the policy as a whole.
    pub about: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, file, about, message } = self;
        let severity = match severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        match about.as_str() {
            "" => write!(f, "{severity}{file}: {message}"),
            about => write!(f, "{severity}{file}: `{about}` {message}"),
        }
    }
}

/// Checks everything.
///
/// # Errors
/// The database cannot be asked. That something is wrong with a policy is no error but a finding.
pub async fn check(
    connection: &mut PgConnection,
    policies: &Policies,
) -> Result<Vec<Finding>, sqlx::Error> {
    let catalog = Catalog::read(&mut *connection).await?;
    let mut findings = Findings::default();
    classes::check(&catalog, &policies.classification, &mut findings);
    proof::check(connection, &catalog, &policies.classification, &mut findings).await?;
    for policy in policies.policies.values() {
        tables::check(connection, &catalog, policies, policy, &mut findings).await?;
    }
    system::check(&catalog, policies, &mut findings);
    let mut found = findings.0;
    found.sort();
    found.dedup();
    Ok(found)
}

/// Checks one policy, and that every column of the tables it names is classed. Without a
/// classification there is nothing to class.
///
/// # Errors
/// The database cannot be asked.
pub async fn check_policy(
    connection: &mut PgConnection,
    policies: &Policies,
    policy: &Policy,
) -> Result<Vec<Finding>, sqlx::Error> {
    let catalog = Catalog::read(&mut *connection).await?;
    let mut findings = Findings::default();
    tables::check(connection, &catalog, policies, policy, &mut findings).await?;
    if !policies.classification.tables.is_empty() {
        let names: Vec<_> = tables::ruled(policy).iter().map(|rule| rule.name.plain()).collect();
        let mut classes = Findings::default();
        classes::check(&catalog, &policies.classification, &mut classes);
        findings.0.extend(classes.0.into_iter().filter(|finding| {
            names.iter().any(|name| {
                let rest = finding.about.strip_prefix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        }));
    }
    let mut found = findings.0;
    found.sort();
    found.dedup();
    Ok(found)
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn error(&mut self, file: &str, about: impl fmt::Display, message: impl Into<String>) {
        self.add(Severity::Error, file, about, message);
    }

    fn warning(&mut self, file: &str, about: impl fmt::Display, message: impl Into<String>) {
        self.add(Severity::Warning, file, about, message);
    }

    fn add(
        &mut self,
        severity: Severity,
        file: &str,
        about: impl fmt::Display,
        message: impl Into<String>,
    ) {
        self.0.push(Finding {
            severity,
            file: file.to_owned(),
            about: about.to_string(),
            message: message.into(),
        });
    }
}

fn file_of(policy: &Policy) -> String {
    format!("{}.toml", policy.name)
}

fn table_name(name: &policy::TableName) -> TableName {
    TableName::new(name.schema(), name.table())
}

/// The table, or where it is an archive that does not exist yet, the one that its rows come from.
fn find<'a>(catalog: &'a Catalog, name: &TableName) -> Option<&'a Table> {
    catalog.table(name).or_else(|| origin(catalog, name))
}
