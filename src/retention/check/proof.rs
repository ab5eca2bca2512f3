//! Whether what a treatment writes fits its column, proven before a row is read: type, width, NOT
//! NULL, uniqueness.

use sqlx::PgConnection;

use super::super::catalog::{Catalog, Column, Table};
use super::super::sql::{Literal, dynamic};
use super::{Findings, table_name};
use crate::policy::{CLASSIFICATION_FILE as FILE, Classification, Treatment, TruncateTo};

/// `!` and 40 characters.
const UNUSABLE_PASSWORD_CHARS: usize = 41;
/// An IPv6 network in its longest form.
const NETWORK_CHARS: usize = 43;
/// The longest name of a family of user agents.
const FAMILY_CHARS: usize = 17;

pub(super) async fn check(
    connection: &mut PgConnection,
    catalog: &Catalog,
    classification: &Classification,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    for (name, classes) in &classification.tables {
        let Some(table) = catalog.table(&table_name(name)) else { continue };
        for column in &table.columns {
            let found =
                classes.columns.iter().find(|(name, _)| name.as_str() == column.name.as_str());
            let Some(treatment) = found.and_then(|(_, class)| class.treatment()) else { continue };
            let about = format!("{}.{}", table.name.plain(), column.name.as_str());
            for message in misfits(table, column, treatment) {
                findings.error(FILE, &about, message);
            }
            if let Treatment::Constant { value } = treatment
                && !is_value(connection, value, column).await?
            {
                let message = format!("must have a `value` of its type {}", column.type_sql);
                findings.error(FILE, &about, message);
            }
        }
    }
    Ok(())
}

fn misfits(table: &Table, column: &Column, treatment: &Treatment) -> Vec<String> {
    if matches!(treatment, Treatment::Keep { .. }) {
        return Vec::new();
    }
    let name = treatment.name();
    let mut misfits = Vec::new();
    if !takes(column, treatment) {
        misfits.push(format!("is {}, which `{name}` cannot treat", column.type_sql));
    }
    let writes_null = matches!(treatment, Treatment::Null | Treatment::DeleteObject);
    if writes_null && column.not_null {
        misfits.push(format!("is NOT NULL, and `{name}` writes NULL: take `constant` or `token`"));
    }
    if let (Some(writes), Some(fits)) = (max_chars(treatment), column.max_chars)
        && i64::try_from(writes).unwrap_or(i64::MAX) > i64::from(fits)
    {
        misfits.push(format!("holds {fits} characters, and `{name}` writes up to {writes}"));
    }
    let is_unique = table.unique_keys.iter().any(|key| key.columns.contains(&column.name));
    if is_unique && !keeps_unique(treatment) {
        misfits.push(format!("is unique, and `{name}` writes a value twice: take `token`"));
    }
    if column.is_generated {
        misfits.push("is generated: treat the columns that it is made from".to_owned());
    }
    if table.primary_key.contains(&column.name) {
        misfits.push("is part of the primary key: it can only be kept".to_owned());
    }
    if table.references.iter().any(|key| key.child_columns.contains(&column.name)) {
        misfits.push("is a foreign key: it can only be kept".to_owned());
    }
    misfits
}

fn takes(column: &Column, treatment: &Treatment) -> bool {
    let is_text = column.category == 'S';
    match treatment {
        Treatment::Null | Treatment::Constant { .. } | Treatment::Keep { .. } => true,
        Treatment::Truncate { to: TruncateTo::Year | TruncateTo::Month } => {
            matches!(column.base_type.as_str(), "date" | "timestamp" | "timestamptz")
        }
        Treatment::Network { .. } => is_text || column.base_type == "inet",
        Treatment::ScrubJson { .. } => matches!(column.base_type.as_str(), "json" | "jsonb"),
        Treatment::Token { .. }
        | Treatment::Truncate { to: TruncateTo::Characters(_) }
        | Treatment::Family
        | Treatment::UnusablePassword
        | Treatment::DeleteObject => is_text,
    }
}

/// The longest text that is written; `None` where it is never longer than the value.
fn max_chars(treatment: &Treatment) -> Option<usize> {
    match treatment {
        Treatment::Constant { value } => Some(value.chars().count()),
        Treatment::Token { length, prefix, suffix } => {
            Some(usize::from(*length) + prefix.chars().count() + suffix.chars().count())
        }
        Treatment::Network { .. } => Some(NETWORK_CHARS),
        Treatment::Family => Some(FAMILY_CHARS),
        Treatment::UnusablePassword => Some(UNUSABLE_PASSWORD_CHARS),
        Treatment::Null
        | Treatment::Truncate { .. }
        | Treatment::ScrubJson { .. }
        | Treatment::DeleteObject
        | Treatment::Keep { .. } => None,
    }
}

/// NULL is never twice the same value, and a token has at least 80 bits.
fn keeps_unique(treatment: &Treatment) -> bool {
    match treatment {
        Treatment::Null
        | Treatment::DeleteObject
        | Treatment::Token { .. }
        | Treatment::UnusablePassword
        | Treatment::Keep { .. } => true,
        Treatment::Constant { .. }
        | Treatment::Truncate { .. }
        | Treatment::Network { .. }
        | Treatment::Family
        | Treatment::ScrubJson { .. } => false,
    }
}

async fn is_value(
    connection: &mut PgConnection,
    value: &str,
    column: &Column,
) -> Result<bool, sqlx::Error> {
    let select = format!("select {}::{} is not null", Literal::new(value), column.type_sql);
    match sqlx::query(dynamic(select)).fetch_one(connection).await {
        Ok(_) => Ok(true),
        Err(error) => match error.as_database_error().and_then(|error| error.code()) {
            Some(code) if code.starts_with("22") || code.starts_with("23") => Ok(false),
            _ => Err(error),
        },
    }
}
