//! What becomes of the columns of a rule's rows: in SQL where SQL can say it, here where it takes a
//! key or more than SQL has. Either way the same as for an erasure, so that what one of them has
//! treated the other leaves as it is.

use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::policy::{AnonymizeRows, Classification};
use crate::retention::anonymize::{find_classified, live_name, print_constant};
use crate::retention::catalog::{Catalog, Column, Table};
use crate::retention::error::RetentionError;
use crate::retention::keyring::Keyring;
use crate::retention::rule::{Rule, table_name};
use crate::retention::sql::{Ident, Literal, TableName};
use crate::retention::treatment::{Anonymity, NetworkBits, Place, Treatment, Truncation};

/// The columns of a table that a rule treats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Treats {
    /// The live table, which tokens are made for.
    live: TableName,
    columns: Vec<Treated>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Treated {
    /// Its name.
    pub name: Ident,
    /// Its type, for casts.
    pub type_name: String,
    /// What becomes of it.
    pub treatment: Treatment,
    in_sql: Option<InSql>,
}

/// A treatment as SQL over the row under its table's name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct InSql {
    /// The treated value.
    value: String,
    /// Whether the value that is there is another.
    differs: String,
}

impl Treats {
    /// The treatments that the classification gives the rule's columns: those that the policy names,
    /// or all that have one.
    ///
    /// # Errors
    /// [`RetentionError::Refused`], naming the column; the database's.
    pub async fn compile(
        connection: &mut PgConnection,
        catalog: &Catalog,
        classification: &Classification,
        rule: &Rule,
        named: &[Ident],
    ) -> Result<Self, RetentionError> {
        let live = live_name(classification, &rule.table);
        let (table, classes) =
            match (catalog.table(&rule.table), find_classified(classification, &live)) {
                (Some(table), Some(classes)) => (table, classes),
                _ => return Err(refused(&rule.table, "", "is not classed in classification.toml")),
            };
        let mut columns = Vec::new();
        for column in &table.columns {
            let class =
                classes.columns.iter().find(|(name, _)| name.as_str() == column.name.as_str());
            let declared = class.and_then(|(_, class)| class.treatment());
            let treatment = declared.map(|declared| Treatment::of(declared, classification));
            match treatment.filter(|treatment| *treatment != Treatment::Keep) {
                Some(treatment) if named.is_empty() || named.contains(&column.name) => {
                    columns.push(prove(connection, table, column, treatment).await?);
                }
                None if named.contains(&column.name) => {
                    let what = "is kept, or says nothing of a person: give it a `treat` in \
                                classification.toml";
                    return Err(refused(&rule.table, column.name.as_str(), what));
                }
                Some(_) | None => {}
            }
        }
        if let Some(name) = named.iter().find(|name| table.column(name).is_none()) {
            return Err(refused(&rule.table, name.as_str(), "does not exist"));
        }
        if columns.is_empty() {
            return Err(refused(&rule.table, "", "has no column that is treated"));
        }
        let (owner, age) = &rule.age_column;
        if *owner == rule.table && columns.iter().any(|column| column.name == *age) {
            let what = "tells the age, so it cannot be treated: name the `columns` without it";
            return Err(refused(&rule.table, age.as_str(), what));
        }
        Ok(Self { live, columns })
    }

    /// The columns.
    pub fn columns(&self) -> &[Treated] {
        &self.columns
    }

    /// The columns that are treated here.
    pub fn here(&self) -> impl Iterator<Item = &Treated> {
        self.columns.iter().filter(|column| column.in_sql.is_none())
    }

    /// SQL that says whether a column that SQL treats is not as it should be.
    pub fn differs(&self) -> String {
        let differs = self.columns.iter().filter_map(|c| c.in_sql.as_ref()).map(|c| &*c.differs);
        let differs: Vec<_> = differs.collect();
        if differs.is_empty() {
            return "false".to_owned();
        }
        format!("coalesce({}, false)", differs.join(" or "))
    }

    /// `column = value, …`; what is treated here stands in `new.v0`, `new.v1`, …
    pub fn sets(&self) -> String {
        let mut number = 0;
        let sets = self.columns.iter().map(|column| {
            if let Some(in_sql) = &column.in_sql {
                return format!("{} = {}", column.name, in_sql.value);
            }
            number += 1;
            format!("{} = new.v{}::{}", column.name, number - 1, column.type_name)
        });
        sets.collect::<Vec<_>>().join(", ")
    }

    /// What is treated here, from what stands there. `None`: nothing of it changes. A token of an
    /// older key is as good as one of the active key.
    pub fn apply(
        &self,
        keyring: &Keyring,
        row: &[String],
        values: &[Option<String>],
    ) -> Option<Vec<Option<String>>> {
        let mut differs = false;
        let mut treated = Vec::with_capacity(values.len());
        for (column, value) in self.here().zip(values) {
            let (table, name) = (self.live.name.as_str(), column.name.as_str());
            let place = Place { table, column: name, row };
            let new = column.treatment.apply(keyring.active(), place, value.as_deref());
            let is_old_token = || {
                column.treatment.is_keyed()
                    && keyring
                        .keys()
                        .any(|key| column.treatment.apply(key, place, value.as_deref()) == *value)
            };
            if new == *value || is_old_token() {
                treated.push(value.clone());
            } else {
                differs = true;
                treated.push(new);
            }
        }
        differs.then_some(treated)
    }
}

/// What a policy's columns become by the classification, in words, and what they still say then.
pub fn declared_treats(classification: &Classification, rows: &AnonymizeRows) -> Vec<Value> {
    let mut treats = Vec::new();
    for table in &rows.tables {
        let live = live_name(classification, &table_name(&table.name));
        let Some(classes) = find_classified(classification, &live) else { continue };
        for (name, class) in &classes.columns {
            let is_named = table.columns.is_empty() || table.columns.contains(name);
            let Some(declared) = class.treatment().filter(|_| is_named) else { continue };
            let treatment = Treatment::of(declared, classification);
            if treatment != Treatment::Keep {
                treats.push(json!({
                    "column": format!("{}.{name}", table.name),
                    "treat": treatment.name(),
                    "anonymity": treatment.facts().anonymity,
                }));
            }
        }
    }
    treats
}

impl Treated {
    /// What its values say once they are treated.
    pub fn anonymity(&self) -> Anonymity {
        self.treatment.facts().anonymity
    }
}

async fn prove(
    connection: &mut PgConnection,
    table: &Table,
    column: &Column,
    mut treatment: Treatment,
) -> Result<Treated, RetentionError> {
    if let Some(misfit) = treatment.misfits(table, column).first() {
        let what = misfit.explain(treatment.name(), column);
        return Err(refused(&table.name, column.name.as_str(), &what));
    }
    if let Treatment::Constant(value) = &mut treatment {
        match print_constant(connection, &column.base_type, value).await? {
            Some(printed) => *value = printed,
            None => {
                let what = format!("must have a `value` of its type {}", column.type_sql);
                return Err(refused(&table.name, column.name.as_str(), &what));
            }
        }
    }
    Ok(Treated {
        name: column.name.clone(),
        type_name: column.base_type.clone(),
        in_sql: in_sql(&treatment, &table.name.name, column),
        treatment,
    })
}

/// A treatment in SQL. `None`: SQL does not have it, or not for this type.
fn in_sql(treatment: &Treatment, alias: &Ident, column: &Column) -> Option<InSql> {
    let (at, base) = (format!("{alias}.{}", column.name), column.base_type.as_str());
    let changed =
        |value: String| InSql { differs: format!("{at} is distinct from {value}"), value };
    match treatment {
        Treatment::Null => {
            Some(InSql { value: "null".to_owned(), differs: format!("{at} is not null") })
        }
        Treatment::Constant(text) if matches!(column.category, 'B' | 'D' | 'N' | 'S') => {
            let value = format!("{}::{base}", Literal::new(text.as_str()));
            Some(changed(format!("case when {at} is not null then {value} end")))
        }
        Treatment::Truncate(Truncation::Chars(chars)) if matches!(base, "text" | "varchar") => {
            let differs = format!("char_length({at}) > {chars}");
            Some(InSql { value: format!("left({at}, {chars})"), differs })
        }
        Treatment::Truncate(Truncation::Year) => first_of(&at, base, "year", "doy").map(changed),
        Treatment::Truncate(Truncation::Month) => first_of(&at, base, "month", "day").map(changed),
        Treatment::Network(NetworkBits { v4, v6 }) if base == "inet" => {
            let most = format!("case family({at}) when 4 then {v4} else {v6} end");
            let network = format!("network(set_masklen({at}, least(masklen({at}), {most})))");
            Some(changed(format!("{network}::inet")))
        }
        Treatment::Constant(_)
        | Treatment::Truncate(Truncation::Chars(_))
        | Treatment::Network(_)
        | Treatment::Token(_)
        | Treatment::Family
        | Treatment::ScrubJson(_)
        | Treatment::UnusablePassword
        | Treatment::DeleteObject
        | Treatment::Keep => None,
    }
}

/// The first day of a year or month. Dates are not cast to times, which hold fewer years.
fn first_of(at: &str, base: &str, unit: &str, days: &str) -> Option<String> {
    match base {
        "date" => Some(format!(
            "case when isfinite({at}) then {at} - (extract({days} from {at})::int - 1) else {at} end"
        )),
        "timestamp" => Some(format!("date_trunc('{unit}', {at})")),
        "timestamptz" => Some(format!("date_trunc('{unit}', {at}, 'UTC')")),
        _ => None,
    }
}

fn refused(table: &TableName, column: &str, what: &str) -> RetentionError {
    let dot = if column.is_empty() { "" } else { "." };
    let message = format!("`{}{dot}{column}` {what}", table.plain());
    RetentionError::refused("unplanned", message)
}
