//! What keeps a row from going: holds, and rows that reference it and stay.
//!
//! No delete of the engine may cascade to a row that was not planned, whatever the foreign key's
//! ON DELETE says: a row goes only when nothing references it, or when everything that does goes
//! along in the same transaction. SET NULL counts as a reference too, because the row that it
//! would change is not ours to change.

use std::collections::BTreeSet;

use super::catalog::{Catalog, Table};
use super::rule::{Action, Rule, key_match};
use super::sql::{Ident, TableName};

/// SQL that says whether the row with this alias is held.
pub type HeldSql<'a> = dyn Fn(&TableName, &Ident) -> String + Send + Sync + 'a;

/// Builds the conditions.
#[derive(Clone, Copy)]
pub struct References<'a> {
    catalog: &'a Catalog,
    held: &'a HeldSql<'a>,
    /// Rules whose rows will be gone by then. Only a preview looks ahead.
    earlier: &'a [Rule],
}

impl<'a> References<'a> {
    /// As things are now: every row that references keeps its parent.
    pub fn now(catalog: &'a Catalog, held: &'a HeldSql<'a>) -> Self {
        Self { catalog, held, earlier: &[] }
    }

    /// As things will be once these rules are done.
    pub fn after(catalog: &'a Catalog, held: &'a HeldSql<'a>, rules: &'a [Rule]) -> Self {
        Self { catalog, held, earlier: rules }
    }

    /// Whether the row of the rule's table is held.
    pub fn is_held(&self, rule: &Rule) -> String {
        (self.held)(&rule.table, rule.alias())
    }

    /// Whether something that stays references the row of the rule's table, or a row that would go
    /// along with it must stay.
    pub fn is_blocked(&self, rule: &Rule) -> String {
        // A row that stays is no matter to those that reference it.
        if rule.action == Action::Anonymize {
            return "false".to_owned();
        }
        let path = BTreeSet::from([rule.table.clone()]);
        let Some(table) = self.catalog.table(&rule.table) else { return "false".to_owned() };
        any(self.blocks(table, rule.alias(), &rule.along, &path))
    }

    /// The same, at any depth also where rows that go along reference each other in a circle or a
    /// tree. It looks at whole tables, so it is for counting them and not for each chunk.
    pub fn is_blocked_at_any_depth(&self, rule: &Rule) -> String {
        any([Some(self.is_blocked(rule)), self.is_stuck(rule)].into_iter().flatten().collect())
    }

    /// Whether a row that goes along must stay: it is held, or referenced from outside.
    pub fn must_stay(&self, table: &Table, alias: &Ident, along: &BTreeSet<TableName>) -> String {
        let mut reasons = vec![(self.held)(&table.name, alias)];
        for (number, key) in table.referenced_by.iter().enumerate() {
            if along.contains(&key.child) {
                continue;
            }
            let child = Ident::new(format!("~outside_{number}"));
            let on = key_match(&key.child_columns, &child, &key.parent_columns, alias);
            let from = format!("exists (select from {} as {child} where {on}", key.child);
            match self.goes(&key.child, &child, &BTreeSet::from([table.name.clone()])) {
                Some(goes) => reasons.push(format!("{from} and not {goes})")),
                None => reasons.push(format!("{from})")),
            }
        }
        any(reasons)
    }

    /// Whether the row stands above one that must stay, by any chain of rows that go along. `None`:
    /// there is no circle, or nothing that could stay.
    fn is_stuck(&self, rule: &Rule) -> Option<String> {
        if !self.has_circle(rule) || rule.is_partitioned() {
            return None;
        }
        let names =
            [&rule.table].into_iter().chain(rule.along.iter().filter(|n| **n != rule.table));
        let members: Vec<&Table> = names.filter_map(|name| self.catalog.table(name)).collect();
        let (row, above) = (Ident::new("~row"), Ident::new("~above"));
        let mut first = Vec::new();
        let mut steps = Vec::new();
        for (number, table) in members.iter().enumerate() {
            let stays = self.must_stay(table, &row, &rule.along);
            if rule.along.contains(&table.name) && stays != "false" {
                first.push(format!(
                    "select {number} as member, {row}.ctid as place from {} as {row} where {stays}",
                    table.name
                ));
            }
            for key in table.referenced_by.iter().filter(|key| rule.along.contains(&key.child)) {
                let child = members.iter().position(|member| member.name == key.child)?;
                let on = key_match(&key.child_columns, &row, &key.parent_columns, &above);
                steps.push(format!(
                    "select {number} as member, {above}.ctid as place
                       from {} as {row} join {} as {above} on {on}
                      where stuck.member = {child} and {row}.ctid = stuck.place",
                    key.child, table.name
                ));
            }
        }
        if first.is_empty() {
            return None;
        }
        Some(format!(
            "{}.ctid in (
                 with recursive stuck as (
                     select * from ({}) held
                      union
                     select step.* from stuck cross join lateral ({}) step)
                 select place from stuck where member = 0)",
            rule.alias(),
            first.join(" union all "),
            steps.join(" union all ")
        ))
    }

    /// Whether the tables whose rows go along reference each other, or one of them itself.
    fn has_circle(&self, rule: &Rule) -> bool {
        let references_itself =
            |name: &TableName| self.catalog.table(name).is_some_and(Table::is_self_referencing);
        let mut names = rule.along.clone();
        names.insert(rule.table.clone());
        rule.along.iter().any(references_itself)
            || self
                .catalog
                .order(&names)
                .iter()
                .any(|group| group.len() > 1 && group.iter().any(|name| rule.along.contains(name)))
    }

    fn blocks(
        &self,
        table: &Table,
        alias: &Ident,
        along: &BTreeSet<TableName>,
        path: &BTreeSet<TableName>,
    ) -> Vec<String> {
        let depth = path.len();
        let mut reasons = Vec::new();
        for (number, key) in table.referenced_by.iter().enumerate() {
            let child = Ident::new(format!("~r{depth}_{number}"));
            let on = key_match(&key.child_columns, &child, &key.parent_columns, alias);
            let from = format!("exists (select from {} as {child} where {on}", key.child);
            if along.contains(&key.child) {
                // In a circle the rows are looked at one by one when they go.
                let Some(next) =
                    self.catalog.table(&key.child).filter(|_| !path.contains(&key.child))
                else {
                    continue;
                };
                let mut longer = path.clone();
                longer.insert(key.child.clone());
                let mut inner = self.blocks(next, &child, along, &longer);
                inner.push((self.held)(&key.child, &child));
                let inner = any(inner);
                if inner != "false" {
                    reasons.push(format!("{from} and {inner})"));
                }
                continue;
            }
            let other = if depth == 1 && key.child == table.name {
                // A row that references itself goes with itself.
                format!(" and not ({})", same_row(table, &child, alias))
            } else {
                String::new()
            };
            match self.goes(&key.child, &child, path) {
                Some(goes) => reasons.push(format!("{from}{other} and not {goes})")),
                None => reasons.push(format!("{from}{other})")),
            }
        }
        reasons
    }

    /// Whether a row will go by an earlier rule.
    fn goes(&self, table: &TableName, alias: &Ident, path: &BTreeSet<TableName>) -> Option<String> {
        let rule = self.earlier.iter().find(|rule| rule.table == *table)?;
        let mut longer = path.clone();
        let is_circle = !longer.insert(table.clone());
        let catalogued = self.catalog.table(table)?;
        let blocked = if is_circle {
            "false".to_owned()
        } else {
            any(self.blocks(catalogued, rule.alias(), &rule.along, &longer))
        };
        Some(format!(
            "exists (select from (select {alias}.*) as {} where {} and not {} and not {blocked})",
            rule.alias(),
            rule.is_eligible(),
            (self.held)(table, rule.alias()),
        ))
    }
}

fn same_row(table: &Table, left: &Ident, right: &Ident) -> String {
    key_match(&table.primary_key, left, &table.primary_key, right)
}

fn any(reasons: Vec<String>) -> String {
    let real: Vec<_> = reasons.into_iter().filter(|reason| reason != "false").collect();
    if real.is_empty() { "false".to_owned() } else { format!("({})", real.join(" or ")) }
}
