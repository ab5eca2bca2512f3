//! `policy coverage`: every column with its class and treatment, as one table.

use serde::Serialize;

use super::super::archive::{is_archive, origin};
use super::super::catalog::Catalog;
use super::super::sql::Ident;
use super::classes::classified;
use crate::policy::{Class, Classification, ClassifiedColumn, ColumnName, Treatment};

/// A column, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CoveredColumn {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// Its type, as SQL writes it.
    pub data_type: String,
    /// Its class; `None` if it is not classed.
    pub class: Option<Class>,
    /// What becomes of it.
    pub treatment: Option<Treatment>,
}

/// Every column of every table, live before archived.
pub fn coverage(catalog: &Catalog, classification: &Classification) -> Vec<CoveredColumn> {
    let (mut live, mut archives) = (Vec::new(), Vec::new());
    for table in catalog.tables() {
        let is_archive = is_archive(&table.name);
        let name = origin(catalog, &table.name).map_or(&table.name, |origin| &origin.name);
        let classes = classified(classification, name);
        let home = if is_archive { &mut archives } else { &mut live };
        for column in &table.columns {
            let found = classes.and_then(|classes| find(&classes.columns, &column.name));
            home.push(CoveredColumn {
                table: table.name.plain(),
                column: column.name.as_str().to_owned(),
                data_type: column.type_sql.clone(),
                class: found.map(ClassifiedColumn::class),
                treatment: found.and_then(ClassifiedColumn::treatment).cloned(),
            });
        }
    }
    live.append(&mut archives);
    live
}

fn find<'a>(
    columns: &'a std::collections::BTreeMap<ColumnName, ClassifiedColumn>,
    name: &Ident,
) -> Option<&'a ClassifiedColumn> {
    columns.iter().find(|(column, _)| column.as_str() == name.as_str()).map(|(_, class)| class)
}
