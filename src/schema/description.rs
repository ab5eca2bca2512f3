//! The schema in lines of text, and what it should be.
//!
//! `migrations/expected_schema.txt` is what the migrations make. What is missing from a database or
//! different there is a fault; what a database has besides is its owner's.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::SchemaError;

/// Written by `registrar migrate verify --describe`.
const EXPECTED: &str = include_str!("../../migrations/expected_schema.txt");

/// Differences shown.
const SHOWN: usize = 10;

/// Describes tables, columns, constraints, indexes, triggers, functions and enums, one a line.
/// The queue's own tables and those of extensions are left out.
///
/// # Errors
/// [`SchemaError::Statement`]
pub async fn describe(connection: &mut PgConnection) -> Result<Vec<String>, SchemaError> {
    let failed = "describe the schema";
    // Names are printed whole where nothing is in the path.
    sqlx::query("select set_config('search_path', 'pg_catalog', true)")
        .execute(&mut *connection)
        .await
        .map_err(SchemaError::statement(failed))?;
    let lines: Vec<String> = sqlx::query_scalar(LINES)
        .fetch_all(&mut *connection)
        .await
        .map_err(SchemaError::statement(failed))?;
    sqlx::query("select set_config('search_path', reset_val, true) from pg_settings where name = 'search_path'")
        .execute(connection)
        .await
        .map_err(SchemaError::statement(failed))?;
    let mut lines: Vec<_> = lines.iter().map(|line| settled(line)).collect();
    lines.sort_unstable();
    Ok(lines)
}

/// A rule as it was written and the same rule out of a dump are printed with other casts and
/// brackets: `IN` over a varchar is the known case.
fn settled(line: &str) -> String {
    let is_rule = ["constraint ", "index ", "trigger "].iter().any(|kind| line.starts_with(kind));
    if !is_rule {
        return line.to_owned();
    }
    let casts = ["::character varying[]", "::character varying", "::text[]", "::text"];
    let plain = casts.iter().fold(line.to_owned(), |line, cast| line.replace(cast, ""));
    plain.replace(['(', ')'], "")
}

/// What should be there and is not, in words.
pub(super) async fn missing(connection: &mut PgConnection) -> Result<Vec<String>, SchemaError> {
    let found: BTreeSet<String> = describe(connection).await?.into_iter().collect();
    let mut missing: Vec<String> = EXPECTED
        .lines()
        .filter(|line| !line.is_empty() && !found.contains(*line))
        .map(|line| format!("missing: {line}"))
        .collect();
    if missing.len() > SHOWN {
        let more = missing.len() - SHOWN;
        missing.truncate(SHOWN);
        missing.push(format!("and {more} more"));
    }
    Ok(missing)
}

const LINES: &str = "
with ours as (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
     where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'apalis')
       and c.relkind in ('r', 'p', 'v', 'm') and c.relname <> '_sqlx_migrations'
       and not exists (select from pg_depend d
                        where d.classid = 'pg_class'::regclass and d.objid = c.oid
                          and d.deptype = 'e')
)
select 'table ' || name from ours where relkind in ('r', 'p')
 union all
select 'view ' || name || ' ' || md5(pg_get_viewdef(oid)) from ours where relkind in ('v', 'm')
 union all
select format('column %s.%I %s%s%s%s%s', ours.name, a.attname, format_type(a.atttypid, a.atttypmod),
              case when a.attnotnull then ' not null' else '' end,
              case when a.attidentity <> '' then ' identity ' || a.attidentity::text else '' end,
              case when a.attgenerated <> '' then ' generated' else '' end,
              coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''))
  from ours
  join pg_attribute a on a.attrelid = ours.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where ours.relkind in ('r', 'p')
 union all
select format('constraint %s %I %s', ours.name, k.conname, pg_get_constraintdef(k.oid))
  from ours
  join pg_constraint k on k.conrelid = ours.oid and k.contype in ('p', 'u', 'f', 'c', 'x')
 union all
select 'index ' || pg_get_indexdef(i.indexrelid)
  from ours
  join pg_index i on i.indrelid = ours.oid
 where not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype <> 'f')
 union all
select 'trigger ' || pg_get_triggerdef(t.oid)
  from ours
  join pg_trigger t on t.tgrelid = ours.oid and not t.tgisinternal
 union all
select format('function %I.%I(%s) %s', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid),
              md5(p.prosrc))
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
 where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'apalis')
   and not exists (select from pg_depend d
                    where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
 union all
select format('enum %I.%I %s', n.nspname, t.typname, string_agg(e.enumlabel, ',' order by e.enumsortorder))
  from pg_type t
  join pg_namespace n on n.oid = t.typnamespace
  join pg_enum e on e.enumtypid = t.oid
 where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'apalis')
 group by n.nspname, t.typname";
