//! Precision and scale of a query's `numeric` columns, which typed formats need before the first
//! row.
//!
//! The server tells them only in a message that the driver does not hand on. So columns that stand
//! in a table or view are looked up in the catalog, and for computed ones a cast is tried: the
//! parser leaves a cast to `numeric(p, s)` out where the value is of that type already, and then
//! the plan computes what it computed without the cast. Which types to try is seen in the plan and
//! in the other columns. What is not found counts as a `numeric` without bounds.

use std::collections::BTreeSet;

use serde_json::Value as Json;
use sqlx::postgres::types::Oid;

use super::{CheckedQuery, ReportError, Session, Value, arguments, dynamic};
use crate::report::decode::Decoder;
use crate::writer::Precision;

/// Types that are tried, one plan for each. A report has few.
const MAX_TRIED: usize = 8;
/// Most digits that typed formats hold.
const MAX_PRECISION: u8 = 38;

/// `numeric(precision, scale)`
type Declared = (u8, u8);

impl Session {
    /// Finds precision and scale of the query's `numeric` columns. Plans the query a few times.
    ///
    /// # Errors
    /// [`ReportError::Sql`] where the server refuses the query.
    pub async fn find_precisions<'v, V>(
        &mut self,
        query: &mut CheckedQuery,
        values: impl Fn() -> V,
    ) -> Result<(), ReportError>
    where
        V: Iterator<Item = &'v Value>,
    {
        let is_numeric = |column: &super::SourceColumn| column.decoder == Decoder::Numeric;
        let mut found = self.catalogued(query).await?;
        let open = |found: &[Option<Declared>], index: usize, query: &CheckedQuery| {
            found[index].is_none() && is_numeric(&query.columns[index])
        };
        let columns = 0..query.columns.len();
        if columns.clone().any(|index| open(&found, index, query)) {
            let plain = self.plan(query, values(), |_| None).await?;
            let mut to_try = declared_in(&plain.to_string());
            to_try.extend(found.iter().flatten());
            for declared in to_try.into_iter().take(MAX_TRIED) {
                let cast = |index| open(&found, index, query).then_some(declared);
                let tried = self.plan(query, values(), cast).await?;
                let (plain, tried) = (outputs(&plain, query), outputs(&tried, query));
                for index in columns.clone() {
                    let same = plain.get(index).is_some_and(|text| tried.get(index) == Some(text));
                    if same && open(&found, index, query) {
                        found[index] = Some(declared);
                    }
                }
            }
        }
        for (column, declared) in query.columns.iter_mut().zip(found) {
            if is_numeric(column) {
                column.precision =
                    declared.map(|(precision, scale)| Precision::Decimal { precision, scale });
            }
        }
        Ok(())
    }

    /// What the catalog says of columns that stand in a table or view.
    async fn catalogued(
        &mut self,
        query: &CheckedQuery,
    ) -> Result<Vec<Option<Declared>>, ReportError> {
        let relations: Vec<_> = query
            .origins
            .iter()
            .map(|origin| origin.map_or(Oid(0), |(relation, _)| relation))
            .collect();
        let numbers: Vec<_> =
            query.origins.iter().map(|origin| origin.map_or(0, |(_, number)| number)).collect();
        let modifiers: Vec<Option<i32>> = sqlx::query_scalar(
            // A domain has the bounds of its values; those of a domain over a domain count as
            // unknown.
            "select case when t.typtype = 'd' then t.typtypmod else a.atttypmod end
               from unnest($1::oid[], $2::int2[]) with ordinality as o (relation, number, position)
               left join pg_attribute as a on a.attrelid = o.relation and a.attnum = o.number
               left join pg_type as t on t.oid = a.atttypid
              order by o.position",
        )
        .bind(&relations)
        .bind(&numbers)
        .fetch_all(&mut self.connection)
        .await?;
        let numeric = modifiers.into_iter().zip(&query.columns).map(|(modifier, column)| {
            modifier.filter(|_| column.decoder == Decoder::Numeric).and_then(declared_by)
        });
        Ok(numeric.collect())
    }

    /// The plan of a query some of whose columns are cast.
    async fn plan<'v>(
        &mut self,
        query: &CheckedQuery,
        values: impl Iterator<Item = &'v Value>,
        cast: impl Fn(usize) -> Option<Declared>,
    ) -> Result<Json, ReportError> {
        let names: Vec<_> = (0..query.columns.len()).map(|index| format!("c{index}")).collect();
        let list = names.iter().enumerate().map(|(index, name)| match cast(index) {
            Some((precision, scale)) => format!("{name}::numeric({precision}, {scale})"),
            None => name.clone(),
        });
        let (list, names) = (list.collect::<Vec<_>>().join(", "), names.join(", "));
        // Without the last column the planner would leave the outer query out of a plan without
        // casts, and then name the same values differently.
        let sql = format!(
            "explain (verbose, format json)
             select {list}, c0 is null from (\n{}\n) as typed ({names})",
            query.sql
        );
        Ok(sqlx::query_scalar_with(dynamic(sql), arguments(values)?)
            .persistent(false)
            .fetch_one(&mut self.connection)
            .await?)
    }
}

/// What the plan's last step computes for each column; nothing where it does not say so.
fn outputs<'p>(plan: &'p Json, query: &CheckedQuery) -> &'p [Json] {
    let outputs = plan.pointer("/0/Plan/Output").and_then(Json::as_array);
    outputs.filter(|outputs| outputs.len() == query.columns.len() + 1).map_or(&[], Vec::as_slice)
}

/// Every `numeric(p,s)` in a plan.
fn declared_in(plan: &str) -> BTreeSet<Declared> {
    let bounds = plan.split("numeric(").skip(1).filter_map(|rest| rest.split_once(')'));
    bounds
        .filter_map(|(bounds, _)| {
            let (precision, scale) = bounds.split_once(',')?;
            held(precision.trim().parse().ok()?, scale.trim().parse().ok()?)
        })
        .collect()
}

/// The bounds in a type modifier of `numeric` (`numeric_typmod_precision` and `_scale`).
fn declared_by(modifier: i32) -> Option<Declared> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    let scale = ((packed & 0x7FF) ^ 1024) - 1024;
    held((packed >> 16) & 0xFFFF, scale)
}

/// Bounds that typed formats hold. A scale may be negative or above the precision since
/// PostgreSQL 15.
fn held(precision: i32, scale: i32) -> Option<Declared> {
    let (precision, scale) = (u8::try_from(precision).ok()?, u8::try_from(scale).ok()?);
    ((1..=MAX_PRECISION).contains(&precision) && scale <= precision).then_some((precision, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_modifiers_are_unpacked() {
        let modifier = |precision: i32, scale: i32| (precision << 16 | scale & 0x7FF) + 4;
        for (given, expected) in [
            (-1, None),
            (modifier(10, 2), Some((10, 2))),
            (modifier(38, 38), Some((38, 38))),
            (modifier(39, 2), None),
            (modifier(3, -2), None),
            (modifier(3, 5), None),
            (i32::MIN, None),
        ] {
            assert_eq!(declared_by(given), expected, "{given}");
        }
    }

    #[test]
    fn types_are_found_in_a_plan() {
        let plan = "(sum(t.a))::numeric(12,2), 0.00::numeric(4, 2), x::numeric, numeric(99,1)";
        assert_eq!(declared_in(plan), [(4, 2), (12, 2)].into());
        assert_eq!(declared_in("numeric(, numeric(1), numeric(a,b)"), [].into());
    }
}
