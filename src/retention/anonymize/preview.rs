//! What a run of an anonymize policy would do: who is due, who is held, and who cannot be told.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::plan::Plan;
use crate::policy::Policy;
use crate::retention::error::RetentionError;
use crate::retention::guard::Guard;
use crate::retention::plan::{Preview, TablePreview};
use crate::retention::sql::{Ident, dynamic};

/// People a second, where no run has told yet.
const TYPICAL_PEOPLE_PER_SEC: f64 = 50.0;
/// Keys shown.
const SAMPLE_KEYS: i64 = 5;

/// What is needed beside the policy.
#[derive(Debug)]
pub struct Scope<'a> {
    /// Where the people are.
    pub plan: &'a Plan,
    /// What is held.
    pub guard: &'a Guard,
    /// Names of the keys that this installation has: an erasure with another one cannot go on.
    pub keys: Vec<String>,
    /// People in one go.
    pub batch: u32,
}

/// Looks at who was due at `as_of`, and does nothing.
///
/// # Errors
/// The database's.
pub async fn preview(
    connection: &mut PgConnection,
    policy: &Policy,
    scope: &Scope<'_>,
    as_of: DateTime<Utc>,
) -> Result<Preview, RetentionError> {
    let subject = &scope.plan.subject;
    let alias = Ident::new("t");
    let held = scope.guard.predicate(&subject.table, &alias);
    let due = format!(
        "select e.subject_id, e.due_at, e.key_id = any ($3) as has_key,
                exists (select from {table} {alias}
                         where {alias}.{key}::text = e.subject_id and {held}) as held
           from erasures e
          where e.subject_table = $1 and e.status in ('waiting', 'held', 'processing')
            and e.run_at <= $2",
        table = subject.table,
        key = subject.key.name,
    );
    let table_name = subject.table.plain();
    let found = sqlx::query(dynamic(format!(
        "select count(*) filter (where goes) as eligible,
                count(*) filter (where held) as held,
                count(*) filter (where not held and not has_key) as indeterminate,
                min(due_at) filter (where goes) as oldest,
                max(due_at) filter (where goes) as newest,
                coalesce(bit_xor(hashtextextended(subject_id, 0)) filter (where goes), 0) as hash_0,
                coalesce(bit_xor(hashtextextended(subject_id, 1)) filter (where goes), 0) as hash_1,
                coalesce((array_agg(subject_id order by length(subject_id), subject_id)
                          filter (where goes))[1:{SAMPLE_KEYS}], '{{}}') as sample
           from (select *, not held and has_key as goes from ({due}) due) due"
    )))
    .bind(&table_name)
    .bind(as_of)
    .bind(&scope.keys)
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    let people: i64 =
        sqlx::query_scalar(dynamic(format!("select count(*) from {}", subject.table)))
            .fetch_one(&mut *connection)
            .await?;
    let size_bytes: Option<i64> =
        sqlx::query_scalar("select pg_total_relation_size(to_regclass($1))")
            .bind(subject.table.to_string())
            .fetch_one(&mut *connection)
            .await?;
    let eligible: i64 = found.get("eligible");
    let is_number = ["int2", "int4", "int8", "smallint", "integer", "bigint", "uuid"]
        .contains(&subject.key.type_name.as_str());
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let estimated_secs = eligible as f64 / TYPICAL_PEOPLE_PER_SEC;
    let (zero, one): (i64, i64) = (found.get("hash_0"), found.get("hash_1"));
    let table = TablePreview {
        table: table_name,
        action: "anonymize",
        treats: Vec::new(),
        cutoff: as_of,
        total: people,
        eligible,
        held: found.get("held"),
        indeterminate: found.get("indeterminate"),
        blocked: 0,
        to_erase: None,
        along: Vec::new(),
        references: Vec::new(),
        oldest: found.get("oldest"),
        newest: found.get("newest"),
        indexes: vec!["idx_erasures_due".to_owned()],
        estimated_chunks: (eligible + i64::from(scope.batch) - 1) / i64::from(scope.batch),
        estimated_secs,
        // Keys that are people's own words are not shown.
        sample_keys: if is_number { found.get("sample") } else { Vec::new() },
        keys_hash: format!("{zero:016x}{one:016x}"),
        size_bytes: size_bytes.unwrap_or_default(),
    };
    Ok(Preview::assemble(policy, as_of, vec![table], Vec::new()))
}
