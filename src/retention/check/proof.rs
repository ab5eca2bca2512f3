//! Whether what a treatment writes fits its column, proven before a row is read: type, width, NOT
//! NULL, uniqueness.

use sqlx::PgConnection;

use super::super::catalog::{Catalog, Column};
use super::super::sql::{Literal, dynamic};
use super::super::treatment::Treatment;
use super::{Findings, table_name};
use crate::policy::{CLASSIFICATION_FILE as FILE, Classification, Treatment as Declared};

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
            let Some(declared) = found.and_then(|(_, class)| class.treatment()) else { continue };
            let treatment = Treatment::of(declared, classification);
            let about = format!("{}.{}", table.name.plain(), column.name.as_str());
            for misfit in treatment.misfits(table, column) {
                findings.error(FILE, &about, misfit.explain(treatment.name(), column));
            }
            if let Declared::Constant { value } = declared
                && !is_value(connection, value, column).await?
            {
                let message = format!("must have a `value` of its type {}", column.type_sql);
                findings.error(FILE, &about, message);
            }
        }
    }
    Ok(())
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
