//! What a policy would do: the rules in order, and what they find.
//!
//! A run computes the same plan, with the same conditions, and then acts; the preview is that
//! without the act. Its digest holds the instant it was made for and a hash over everything that
//! it says, keys of eligible rows included: a run that is given the digest takes that instant, and
//! refuses if the set has changed since.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Row};

use super::archive::origin;
use super::catalog::{Catalog, OnDelete};
use super::error::RetentionError;
use super::keyring::{KeyError, Keyring};
use super::reference::{HeldSql, References};
use super::rule::{Action, Along, Cutoff, Declared, Rule, table_name};
use super::run::NewTable;
use super::sql::{Ident, TableName, dynamic, list};
use super::treat::{Treats, look};
use super::treatment::Anonymity;
use crate::policy::{Classification, Kind, Policy};

/// Rows that a chunk has in the long run, for the estimate.
const TYPICAL_CHUNK: i64 = 5_000;
/// Rows a second, where no run of the policy has told yet.
const TYPICAL_ROWS_PER_SEC: f64 = 30_000.0;
/// Keys shown of each table.
const SAMPLE_KEYS: i64 = 5;
/// Below this a table is counted whole, above the planner's estimate is good enough for a share.
const COUNTED_ROWS: i64 = 1_000_000;
/// Sequential scans of smaller tables are no fault.
const SMALL_TABLE_ROWS: i64 = 10_000;

/// A policy, compiled against a catalog.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The instant that cutoffs are counted from.
    pub as_of: DateTime<Utc>,
    /// Children first. Rules in one group reference each other in a circle.
    pub groups: Vec<Vec<Rule>>,
    /// Archive tables that no run has made yet: there is nothing to do in them.
    pub absent: Vec<TableName>,
}

impl Plan {
    /// Compiles a policy.
    ///
    /// # Errors
    /// [`RetentionError::Refused`] for a policy that cannot work on this schema or is of a kind
    /// that this engine does not run.
    pub async fn compile(
        connection: &mut PgConnection,
        catalog: &Catalog,
        classification: &Classification,
        policy: &Policy,
        as_of: DateTime<Utc>,
    ) -> Result<Self, RetentionError> {
        let mut rules = Vec::new();
        let mut absent = Vec::new();
        for (action, declared) in declared(policy)? {
            let name = table_name(declared.table);
            if catalog.table(&name).is_none() && origin(catalog, &name).is_some() {
                absent.push(name);
                continue;
            }
            let cutoff =
                Cutoff::compute(connection, as_of, declared.after, policy.time_zone).await?;
            let mut rule = Rule::compile(catalog, action, &declared, cutoff)?;
            if rule.action == Action::Anonymize {
                let named: Vec<_> =
                    declared.columns.iter().map(|name| Ident::new(name.as_str())).collect();
                let treats =
                    Treats::compile(connection, catalog, classification, &rule, &named).await?;
                rule.treats = Some(treats);
            }
            rules.push(rule);
        }
        let names: BTreeSet<_> = rules.iter().map(|rule| rule.table.clone()).collect();
        let mut groups: Vec<Vec<Rule>> = Vec::new();
        for group in catalog.order(&names) {
            let rules: Vec<_> =
                rules.iter().filter(|rule| group.contains(&rule.table)).cloned().collect();
            groups.push(rules);
        }
        Ok(Self { as_of, groups, absent })
    }

    /// The rules, children first.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.groups.iter().flatten()
    }
}

fn declared(policy: &Policy) -> Result<Vec<(Action, Declared<'_>)>, RetentionError> {
    match &policy.kind {
        Kind::Archive(archive) => Ok(archive
            .tables
            .iter()
            .map(|table| {
                let along = if table.keep_children { Along::Everything } else { Along::None };
                let declared = Declared {
                    table: &table.name,
                    age: &table.age,
                    after: table.after,
                    condition: table.condition.as_ref(),
                    along,
                    export: table.export,
                    columns: &[],
                };
                (Action::Archive, declared)
            })
            .collect()),
        Kind::Purge(purge) => Ok(purge
            .tables
            .iter()
            .map(|table| {
                let declared = Declared {
                    table: &table.name,
                    age: &table.age,
                    after: table.after,
                    condition: table.condition.as_ref(),
                    along: Along::from(&table.if_referenced),
                    export: None,
                    columns: &[],
                };
                (Action::Purge, declared)
            })
            .collect()),
        Kind::AnonymizeRows(anonymize) => Ok(anonymize
            .tables
            .iter()
            .map(|table| {
                let declared = Declared {
                    table: &table.name,
                    age: &table.age,
                    after: table.after,
                    condition: table.condition.as_ref(),
                    along: Along::None,
                    export: None,
                    columns: &table.columns,
                };
                (Action::Anonymize, declared)
            })
            .collect()),
        Kind::Anonymize(_)
        | Kind::ExpireResults(_)
        | Kind::Backup(_)
        | Kind::VerifyBackup(_)
        | Kind::PruneBackups(_)
        | Kind::Report(_) => Err(RetentionError::refused(
            "wrong_kind",
            format!(
                "policy `{}` is of kind `{}`: it is none of old rows",
                policy.name,
                policy.kind.name()
            ),
        )),
    }
}

/// What a policy would do.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Preview {
    /// The policy's name.
    pub policy: String,
    /// Its kind.
    pub kind: &'static str,
    /// SHA-256 of its content.
    pub policy_digest: String,
    /// The instant that cutoffs are counted from.
    pub as_of: DateTime<Utc>,
    /// Each table, in the order in which they are worked.
    pub tables: Vec<TablePreview>,
    /// Ceilings that a run would be above, in words; empty: none.
    pub over_ceiling: Vec<String>,
    /// What should be mended, in words; none of it stops a run.
    pub warnings: Vec<String>,
    /// Names all of the above: what a run by hand must be given.
    pub digest: String,
}

/// What a policy would do to one table.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct TablePreview {
    /// The table.
    pub table: String,
    /// `archive`, `purge` or `anonymize`.
    pub action: &'static str,
    /// What becomes of the columns of rows that stay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub treats: Vec<TreatPreview>,
    /// Rows older than this are old enough.
    pub cutoff: DateTime<Utc>,
    /// Rows of the table; the planner's estimate for large ones.
    pub total: i64,
    /// Rows that would go.
    pub eligible: i64,
    /// Old enough, but under a hold.
    pub held: i64,
    /// Matching, but without an age.
    pub indeterminate: i64,
    /// Old enough, but referenced by rows that stay.
    pub blocked: i64,
    /// Those of them that are people whose erasure the run would ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_erase: Option<i64>,
    /// Rows of other tables that would go along.
    pub along: Vec<AlongPreview>,
    /// Foreign keys that point here, and what becomes of the rows behind them.
    pub references: Vec<ReferencePreview>,
    /// Age of the oldest row that would go.
    pub oldest: Option<DateTime<Utc>>,
    /// Age of the newest row that would go.
    pub newest: Option<DateTime<Utc>>,
    /// Indexes that the search for old rows uses.
    pub indexes: Vec<String>,
    /// Transactions that it would take.
    pub estimated_chunks: i64,
    /// How long it would take.
    pub estimated_secs: f64,
    /// The first keys, where keys are numbers, uuids or times.
    pub sample_keys: Vec<String>,
    /// Hash over the keys of the rows that would go.
    pub keys_hash: String,
    /// Bytes on disk.
    pub size_bytes: i64,
}

/// A column of rows that stay.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct TreatPreview {
    /// The column.
    pub column: String,
    /// What becomes of it, as in the classification.
    pub treat: &'static str,
    /// What its values still say then.
    pub anonymity: Anonymity,
}

/// Rows that go along with those that they reference.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct AlongPreview {
    /// Their table.
    pub table: String,
    /// How many.
    pub rows: i64,
}

/// A foreign key that points at a table of the plan.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ReferencePreview {
    /// The foreign key.
    pub foreign_key: String,
    /// The table it is on.
    pub child: String,
    /// What PostgreSQL would do, were the row just deleted.
    pub on_delete: OnDelete,
    /// What is done instead: `goes_along`, `goes_before` or `blocks`.
    pub planned: &'static str,
}

/// Whether the role sees what the policy waits for: PostgreSQL shows others' transactions and
/// replicas as NULL to those who may not look.
async fn blind_spot(
    connection: &mut PgConnection,
    policy: &Policy,
) -> Result<Option<String>, sqlx::Error> {
    let signs = &policy.limits.pause_when;
    if signs.replica_lag.is_none() && signs.oldest_transaction.is_none() {
        return Ok(None);
    }
    let may_look: bool = sqlx::query_scalar("select pg_has_role('pg_read_all_stats', 'usage')")
        .fetch_one(connection)
        .await?;
    let message = "`pause_when` sees neither replicas nor other roles' transactions: grant \
                   pg_read_all_stats to the role that runs policies";
    Ok((!may_look).then(|| message.to_owned()))
}

/// Looks at everything that the plan would do, and does nothing.
///
/// # Errors
/// The database's, for a condition that it does not accept too.
pub async fn preview(
    connection: &mut PgConnection,
    catalog: &Catalog,
    held: &HeldSql<'_>,
    keyring: Option<&Keyring>,
    policy: &Policy,
    plan: &Plan,
) -> Result<Preview, RetentionError> {
    let rules: Vec<Rule> = plan.rules().cloned().collect();
    let references = References::after(catalog, held, &rules);
    let mut tables = Vec::new();
    let absent = plan.absent.iter().map(|name| {
        format!("nothing to do in `{}`: the archive table is not made yet", name.plain())
    });
    let mut warnings: Vec<_> = absent.collect();
    warnings.extend(blind_spot(connection, policy).await?);
    for rule in &rules {
        let table = preview_table(connection, catalog, &references, keyring, rule, &rules).await?;
        if table.indexes.is_empty() && table.total > SMALL_TABLE_ROWS {
            warnings.push(format!(
                "no index finds old rows of `{}`: index `{}` of `{}`",
                table.table,
                rule.age_column.1.as_str(),
                rule.age_column.0.plain()
            ));
        }
        tables.push(table);
    }
    Ok(Preview::assemble(policy, plan.as_of, tables, warnings))
}

impl Preview {
    /// With its ceilings and its digest.
    pub fn assemble(
        policy: &Policy,
        as_of: DateTime<Utc>,
        tables: Vec<TablePreview>,
        warnings: Vec<String>,
    ) -> Self {
        let mut preview = Self {
            policy: policy.name.as_str().to_owned(),
            kind: policy.kind.name(),
            policy_digest: policy.digest(),
            as_of,
            over_ceiling: over_ceiling(policy, &tables),
            tables,
            warnings,
            digest: String::new(),
        };
        preview.digest = preview.compute_digest();
        preview
    }

    /// The rows that a run of this would store for its tables, in order.
    pub fn run_tables(&self) -> Vec<NewTable> {
        let mut all = Vec::new();
        for table in &self.tables {
            all.push(NewTable {
                table_name: table.table.clone(),
                action: table.action,
                cutoff: Some(table.cutoff),
                total: table.total,
                eligible: table.eligible,
                held: table.held,
                indeterminate: table.indeterminate,
                blocked: table.blocked,
                size_before: table.size_bytes,
            });
            all.extend(table.along.iter().map(|along| NewTable {
                table_name: along.table.clone(),
                action: table.action,
                cutoff: None,
                total: along.rows,
                eligible: along.rows,
                held: 0,
                indeterminate: 0,
                blocked: 0,
                size_before: 0,
            }));
        }
        all
    }

    /// 16 hex digits of the instant, 48 of the hash.
    fn compute_digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.policy_digest);
        for table in &self.tables {
            let along: Vec<_> =
                table.along.iter().map(|a| format!("{}={}", a.table, a.rows)).collect();
            hash.update(format!(
                "\n{} {} {} {} {} {} {} {}",
                table.table,
                table.cutoff.timestamp_micros(),
                table.eligible,
                table.held,
                table.indeterminate,
                table.blocked,
                table.keys_hash,
                along.join(",")
            ));
            for treat in &table.treats {
                hash.update(format!("\n{} {}", treat.column, treat.treat));
            }
        }
        let hash = hex::encode(hash.finalize());
        format!("{:016x}{}", self.as_of.timestamp_micros(), &hash[..48])
    }
}

/// The instant that a preview's digest was made for; `None`: it is no digest.
pub fn instant_of(digest: &str) -> Option<DateTime<Utc>> {
    let is_hex = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    let micros = i64::from_str_radix(digest.get(..16)?, 16).ok().filter(|_| is_hex)?;
    DateTime::from_timestamp_micros(micros)
}

fn over_ceiling(policy: &Policy, tables: &[TablePreview]) -> Vec<String> {
    let mut over = Vec::new();
    let along = |table: &TablePreview| table.along.iter().map(|a| a.rows).sum::<i64>();
    let rows: i64 = tables.iter().map(|table| table.eligible + along(table)).sum();
    if let Some(most) = policy.limits.max_rows
        && u64::try_from(rows).unwrap_or(0) > most
    {
        over.push(format!("{rows} rows are over limits.max_rows = {most}"));
    }
    if let Some(most) = policy.limits.max_share {
        for table in tables.iter().filter(|table| table.eligible > 0) {
            #[expect(clippy::cast_precision_loss, reason = "a share needs no last digit")]
            let share = table.eligible as f64 / table.total.max(table.eligible) as f64;
            if share > most.fraction() {
                over.push(format!(
                    "{:.1} % of `{}` are over limits.max_share = {}",
                    share * 100.0,
                    table.table,
                    most.fraction()
                ));
            }
        }
    }
    over
}

/// What a search for rows that are old enough has found.
struct Found {
    eligible: i64,
    held: i64,
    blocked: i64,
    oldest: Option<DateTime<Utc>>,
    newest: Option<DateTime<Utc>>,
    keys: ChunkKeys,
    sample: Vec<String>,
}

async fn preview_table(
    connection: &mut PgConnection,
    catalog: &Catalog,
    references: &References<'_>,
    keyring: Option<&Keyring>,
    rule: &Rule,
    rules: &[Rule],
) -> Result<TablePreview, RetentionError> {
    let table = catalog.table(&rule.table);
    let (alias, name) = (rule.alias(), &rule.table);
    let scan = scan(references, rule);
    let found = match &rule.treats {
        Some(treats) => find_untreated(connection, references, keyring, rule, treats).await?,
        None => find_eligible(connection, rule, &scan).await?,
    };
    let indeterminate: i64 = sqlx::query_scalar(dynamic(format!(
        "select count(*) from {name} as {alias} where {}",
        rule.is_indeterminate()
    )))
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    let total = match table.and_then(|table| table.estimated_rows) {
        Some(rows) if rows > COUNTED_ROWS => rows,
        _ => {
            let count = dynamic(format!("select count(*) from {name}"));
            sqlx::query_scalar(count).persistent(false).fetch_one(&mut *connection).await?
        }
    };
    let indexes = indexes_used(connection, rule).await?;
    let mut along = Vec::new();
    for child in &rule.along {
        let rows = count_along(connection, catalog, rule, &scan, child).await?;
        along.push(AlongPreview { table: child.plain(), rows });
    }
    let rate = past_rate(connection, &rule.table.plain()).await?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let estimated_secs = found.eligible as f64 / rate;
    Ok(TablePreview {
        table: name.plain(),
        action: rule.action.as_str(),
        treats: treat_previews(rule),
        cutoff: rule.cutoff.instant,
        total,
        eligible: found.eligible,
        held: found.held,
        indeterminate,
        blocked: found.blocked,
        to_erase: None,
        along,
        references: reference_previews(catalog, rule, rules),
        oldest: found.oldest,
        newest: found.newest,
        indexes,
        estimated_chunks: (found.eligible + TYPICAL_CHUNK - 1) / TYPICAL_CHUNK,
        estimated_secs,
        sample_keys: found.sample,
        keys_hash: found.keys.to_hex(),
        size_bytes: table.map_or(0, |table| table.size_bytes),
    })
}

/// Rows that are old enough, with what keeps them.
fn scan(references: &References<'_>, rule: &Rule) -> String {
    format!(
        "select {key} as key, {age} as age, {held} as held, {blocked} as blocked
           from {name} as {alias}
          where {eligible}",
        key = key_text(rule),
        age = rule.age_of(),
        held = references.is_held(rule),
        blocked = references.is_blocked_at_any_depth(rule),
        name = rule.table,
        alias = rule.alias(),
        eligible = rule.is_eligible(),
    )
}

async fn find_eligible(
    connection: &mut PgConnection,
    rule: &Rule,
    scan: &str,
) -> Result<Found, RetentionError> {
    let found = sqlx::query(dynamic(format!(
        "select count(*) filter (where not held and not blocked) as eligible,
                count(*) filter (where held) as held,
                count(*) filter (where not held and blocked) as blocked,
                min(age) filter (where not held and not blocked) as oldest,
                max(age) filter (where not held and not blocked) as newest,
                coalesce(bit_xor(hashtextextended(key, 0))
                         filter (where not held and not blocked), 0) as hash_0,
                coalesce(bit_xor(hashtextextended(key, 1))
                         filter (where not held and not blocked), 0) as hash_1
           from ({scan}) eligible"
    )))
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    Ok(Found {
        eligible: found.get("eligible"),
        held: found.get("held"),
        blocked: found.get("blocked"),
        oldest: found.get("oldest"),
        newest: found.get("newest"),
        keys: ChunkKeys { zero: found.get("hash_0"), one: found.get("hash_1") },
        sample: sample_keys(connection, rule, scan).await?,
    })
}

async fn find_untreated(
    connection: &mut PgConnection,
    references: &References<'_>,
    keyring: Option<&Keyring>,
    rule: &Rule,
    treats: &Treats,
) -> Result<Found, RetentionError> {
    let no_keys = || RetentionError::refused("bad_keys", KeyError::NoKeys.to_string());
    let keyring = keyring.ok_or_else(no_keys)?;
    let found = look(connection, rule, treats, keyring, &references.is_held(rule)).await?;
    let sample = found.sample.iter().filter(|_| has_harmless_key(rule));
    let sample = sample.map(|key| key.replace('\u{1f}', ", ")).collect();
    Ok(Found {
        eligible: found.free,
        held: found.held,
        blocked: 0,
        oldest: found.oldest,
        newest: found.newest,
        keys: ChunkKeys { zero: found.keys.0, one: found.keys.1 },
        sample,
    })
}

fn treat_previews(rule: &Rule) -> Vec<TreatPreview> {
    let columns = rule.treats.iter().flat_map(Treats::columns);
    let previews = columns.map(|column| TreatPreview {
        column: column.name.as_str().to_owned(),
        treat: column.treatment.name(),
        anonymity: column.anonymity(),
    });
    previews.collect()
}

struct ChunkKeys {
    zero: i64,
    one: i64,
}

impl ChunkKeys {
    fn to_hex(&self) -> String {
        format!("{:016x}{:016x}", self.zero, self.one)
    }
}

/// The row's key as one text.
pub(super) fn key_text(rule: &Rule) -> String {
    let parts: Vec<_> =
        rule.key.iter().map(|column| format!("{}.{}::text", rule.alias(), column.name)).collect();
    format!("concat_ws(chr(31), {})", parts.join(", "))
}

/// Keys that are people's own words are not shown.
fn has_harmless_key(rule: &Rule) -> bool {
    const HARMLESS: [&str; 7] =
        ["int2", "int4", "int8", "uuid", "date", "timestamp", "timestamptz"];
    rule.key.iter().all(|column| HARMLESS.contains(&column.base_type.as_str()))
}

async fn sample_keys(
    connection: &mut PgConnection,
    rule: &Rule,
    scan: &str,
) -> Result<Vec<String>, RetentionError> {
    if !has_harmless_key(rule) {
        return Ok(Vec::new());
    }
    let sample = dynamic(format!(
        "select replace(key, chr(31), ', ')
           from ({scan}) eligible
          where not held and not blocked
          order by length(key), key
          limit {SAMPLE_KEYS}"
    ));
    Ok(sqlx::query_scalar(sample).persistent(false).fetch_all(connection).await?)
}

async fn indexes_used(
    connection: &mut PgConnection,
    rule: &Rule,
) -> Result<Vec<String>, RetentionError> {
    let explain = dynamic(format!(
        "explain (format json) select {} from {} as {} where {}",
        list(&format!("{}.", rule.alias()), rule.key.iter().map(|column| &column.name)),
        rule.table,
        rule.alias(),
        rule.is_eligible()
    ));
    let plan: Value = sqlx::query_scalar(explain).persistent(false).fetch_one(connection).await?;
    let mut found = BTreeSet::new();
    collect_indexes(&plan, &mut found);
    Ok(found.into_iter().collect())
}

fn collect_indexes(plan: &Value, found: &mut BTreeSet<String>) {
    match plan {
        Value::Object(node) => {
            if let Some(Value::String(index)) = node.get("Index Name") {
                found.insert(index.clone());
            }
            node.values().for_each(|value| collect_indexes(value, found));
        }
        Value::Array(nodes) => nodes.iter().for_each(|node| collect_indexes(node, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Rows of `child` that reference a row that would go, over any chain of tables that go along.
async fn count_along(
    connection: &mut PgConnection,
    catalog: &Catalog,
    rule: &Rule,
    scan: &str,
    child: &TableName,
) -> Result<i64, RetentionError> {
    let root = format!(
        "select {alias}.* from {name} as {alias}
          where {key} in (select key from ({scan}) eligible where not held and not blocked)",
        alias = rule.alias(),
        name = rule.table,
        key = key_text(rule),
    );
    // Each step adds the rows one key further away; the chain is as long as there are tables.
    let mut members = Vec::new();
    chains(catalog, rule, &rule.table, &root, child, &mut vec![rule.table.clone()], &mut members);
    let Some(table) = catalog.table(child).filter(|_| !members.is_empty()) else { return Ok(0) };
    let key = list("", &table.primary_key);
    let union: Vec<_> = members.iter().map(|sql| format!("select {key} from ({sql}) m")).collect();
    let count = dynamic(format!("select count(*) from ({}) rows", union.join(" union ")));
    Ok(sqlx::query_scalar(count).persistent(false).fetch_one(connection).await?)
}

fn chains(
    catalog: &Catalog,
    rule: &Rule,
    from: &TableName,
    parents: &str,
    target: &TableName,
    path: &mut Vec<TableName>,
    members: &mut Vec<String>,
) {
    let Some(table) = catalog.table(from) else { return };
    for key in table.referenced_by.iter().filter(|key| rule.along.contains(&key.child)) {
        let (child, parent) = (Ident::new("~child"), Ident::new("~parent"));
        let on = super::rule::key_match(&key.child_columns, &child, &key.parent_columns, &parent);
        let rows = format!(
            "select {child}.* from {} as {child}
              where exists (select from ({parents}) as {parent} where {on})",
            key.child
        );
        if key.child == *target {
            members.push(rows.clone());
        }
        if !path.contains(&key.child) {
            path.push(key.child.clone());
            chains(catalog, rule, &key.child, &rows, target, path, members);
            path.pop();
        }
    }
}

fn reference_previews(catalog: &Catalog, rule: &Rule, rules: &[Rule]) -> Vec<ReferencePreview> {
    let keys = catalog.table(&rule.table).map(|table| table.referenced_by.as_slice());
    keys.filter(|_| rule.action != Action::Anonymize)
        .unwrap_or_default()
        .iter()
        .map(|key| ReferencePreview {
            foreign_key: key.name.as_str().to_owned(),
            child: key.child.plain(),
            on_delete: key.on_delete,
            planned: if rule.along.contains(&key.child) {
                "goes_along"
            } else if rules.iter().any(|other| other.table == key.child) {
                "goes_before"
            } else {
                "blocks"
            },
        })
        .collect()
}

/// Rows a second of the last run that did this table.
async fn past_rate(connection: &mut PgConnection, table: &str) -> Result<f64, sqlx::Error> {
    let rate: Option<f64> = sqlx::query_scalar(
        "select done / extract(epoch from completed_at - started_at)::float8
           from lifecycle_run_tables
          where table_name = $1 and status = 'completed' and done >= 1000
            and completed_at > started_at
          order by run_id desc
          limit 1",
    )
    .bind(table)
    .fetch_optional(connection)
    .await?;
    Ok(rate.filter(|rate| *rate > 0.0).unwrap_or(TYPICAL_ROWS_PER_SEC))
}
