//! Runs a claimed run to its end: look, ask, work, check again, tidy.
//!
//! Everything is stored as it goes, so that whoever takes a run over goes on where it stopped: the
//! plan follows from policy, catalog and the run's instant; the tables and their cursors are rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono_tz::Tz;
use sqlx::{Connection, PgConnection, PgPool, Row};

use super::archive;
use super::catalog::Catalog;
use super::chunk::{Attempt, ChunkLoop};
use super::error::RetentionError;
use super::export::{self, Exporter};
use super::guard::Guard;
use super::keyring::{KeyError, Keyring};
use super::moves::Move;
use super::people_ledger::PeopleLedger;
use super::plan::{Plan, preview};
use super::reference::References;
use super::rule::{Action, Rule};
use super::run::{self, Claimed, RunTable};
use super::sql::{Ident, TableName, dynamic};
use super::treat::{Treat, Treats, look as look_at};
use super::walk::{From, Walk};
use crate::policy::{ApprovalRule, Classification, Policy};
use crate::store::Store;

/// Walks in a row that moved nothing although rows were free to go: they are locked all the time.
const MAX_IDLE_PASSES: u32 = 5;
/// Pause before such rows are tried again, longer each time.
const IDLE_PAUSE: Duration = Duration::from_millis(200);

/// Bytes of a table, its partitions included.
const SIZE: &str = "
    select coalesce((select sum(pg_total_relation_size(relid))::bigint
                       from pg_partition_tree(to_regclass($1))),
                    pg_total_relation_size(to_regclass($1)))";

/// How an attempt ended that was not stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All done.
    Completed,
    /// It is over a ceiling; the text says which.
    NeedsApproval(String),
}

/// Works on a run until it is done. Keys are needed where it deletes people.
///
/// # Errors
/// [`RetentionError`]; everything committed so far stays done and accounted for.
pub async fn run(
    db: &PgPool,
    store: &Store,
    keyring: Option<&Keyring>,
    policy: &Policy,
    classification: &Arc<Classification>,
    claimed: &Claimed,
    attempt: &Attempt,
) -> Result<Outcome, RetentionError> {
    check_unchanged(policy, claimed)?;
    let mut connection = db.acquire().await?;
    let catalog = Catalog::read(&mut connection).await?;
    let plan =
        Plan::compile(&mut connection, &catalog, classification, policy, claimed.as_of).await?;
    let known = run::tables_of(&mut connection, claimed.id).await?;
    let guard = Guard::load(&mut connection, classification).await?;
    drop(connection);
    let rules = plan.rules();
    let run = (claimed, attempt);
    let ledger = PeopleLedger::new(store, keyring, classification, &catalog, rules, run)?;
    if known.is_empty()
        && let Some(why) = look(db, &catalog, keyring, policy, &plan, &guard, run).await?
    {
        return Ok(Outcome::NeedsApproval(why));
    }
    let time_zone = policy.time_zone;
    let (catalog, guard, ledger) = (&catalog, &guard, ledger.as_ref());
    let worker = Worker { db, store, ledger, keyring, catalog, attempt, guard, time_zone };
    let mut chunks = ChunkLoop::new(attempt, policy.limits, policy.time_zone);
    let mut position = 0;
    for group in &plan.groups {
        let rules = worker.places(group, &mut position).await?;
        worker.work_group(&mut chunks, &rules).await?;
    }
    if plan.rules().any(|rule| rule.export.is_some()) {
        export::sweep(db, store, attempt).await?;
        export::remove_expired(db, store).await?;
    }
    Ok(Outcome::Completed)
}

/// What a policy would do, now or as of an instant.
///
/// # Errors
/// [`RetentionError`]
pub async fn preview_policy(
    connection: &mut PgConnection,
    keyring: Option<&Keyring>,
    policy: &Policy,
    classification: &Arc<Classification>,
    as_of: Option<chrono::DateTime<chrono::Utc>>,
) -> Result<super::plan::Preview, RetentionError> {
    let as_of = match as_of {
        Some(as_of) => as_of,
        None => sqlx::query_scalar("select now()").fetch_one(&mut *connection).await?,
    };
    set_zone(connection, policy.time_zone).await?;
    let catalog = Catalog::read(connection).await?;
    let plan = Plan::compile(connection, &catalog, classification, policy, as_of).await?;
    let guard = Guard::load(connection, classification).await?;
    let held = |table: &TableName, alias: &Ident| guard.predicate(table, alias);
    preview(connection, &catalog, &held, keyring, policy, &plan).await
}

/// Previews, compares with what the person saw, and stores the tables. Returns why a second person
/// must be asked, if so.
async fn look(
    db: &PgPool,
    catalog: &Catalog,
    keyring: Option<&Keyring>,
    policy: &Policy,
    plan: &Plan,
    guard: &Guard,
    (claimed, attempt): (&Claimed, &Attempt),
) -> Result<Option<String>, RetentionError> {
    let mut tx = db.begin().await?;
    // One snapshot for all tables.
    sqlx::query("set transaction isolation level repeatable read").execute(&mut *tx).await?;
    set_zone(&mut tx, policy.time_zone).await?;
    let held = |table: &TableName, alias: &Ident| guard.predicate(table, alias);
    let found = preview(&mut tx, catalog, &held, keyring, policy, plan).await?;
    tx.commit().await?;
    admit(db, &found, policy, claimed, attempt).await
}

/// A run does what its policy said when it was asked for.
///
/// # Errors
/// [`RetentionError::Refused`]
pub fn check_unchanged(policy: &Policy, claimed: &Claimed) -> Result<(), RetentionError> {
    if policy.digest() == claimed.policy_digest {
        return Ok(());
    }
    let message = format!(
        "policy `{}` has changed since the run was asked for: start a new run",
        policy.name
    );
    Err(RetentionError::refused("policy_changed", message))
}

/// Compares what was found with what the person saw and with the ceilings, and stores the run's
/// tables. Returns why a second person must be asked, if so.
///
/// # Errors
/// [`RetentionError`]
pub async fn admit(
    db: &PgPool,
    found: &super::plan::Preview,
    policy: &Policy,
    claimed: &Claimed,
    attempt: &Attempt,
) -> Result<Option<String>, RetentionError> {
    if claimed.preview_digest.as_ref().is_some_and(|seen| *seen != found.digest) {
        let message = "the rows have changed since the preview: look at a new one";
        return Err(RetentionError::refused("stale_digest", message));
    }
    if !found.over_ceiling.is_empty() && !claimed.is_approved {
        let why = found.over_ceiling.join("; ");
        return match policy.approval.required_for {
            ApprovalRule::Never => Err(RetentionError::refused(
                "over_ceiling",
                format!("{why}: nothing was done; raise the limit if that is right"),
            )),
            ApprovalRule::Manual | ApprovalRule::OverCeiling | ApprovalRule::Always => {
                Ok(Some(why))
            }
        };
    }
    let mut tx = db.begin().await?;
    if !run::beat(&mut tx, attempt.run_id, attempt.number, attempt.lease_secs).await? {
        return Err(RetentionError::Lost);
    }
    run::insert_tables(&mut tx, attempt.run_id, &found.run_tables()).await?;
    tx.commit().await?;
    Ok(None)
}

/// A rule with its places among the run's tables.
struct Placed<'a> {
    rule: &'a Rule,
    table: RunTable,
    along: BTreeMap<TableName, i32>,
}

struct Worker<'a> {
    db: &'a PgPool,
    store: &'a Store,
    ledger: Option<&'a PeopleLedger<'a>>,
    keyring: Option<&'a Keyring>,
    catalog: &'a Catalog,
    attempt: &'a Attempt,
    guard: &'a Guard,
    time_zone: Tz,
}

impl Worker<'_> {
    /// Finds the rows of a group's rules. They were stored in the plan's order.
    async fn places<'r>(
        &self,
        group: &'r [Rule],
        position: &mut usize,
    ) -> Result<Vec<Placed<'r>>, RetentionError> {
        let mut connection = self.db.acquire().await?;
        let tables = run::tables_of(&mut connection, self.attempt.run_id).await?;
        let mut placed = Vec::new();
        for rule in group {
            let table = tables.get(*position).filter(|t| t.table_name == rule.table.plain());
            let Some(table) = table.cloned() else { return Err(catalog_changed()) };
            *position += 1;
            let mut along = BTreeMap::new();
            for name in &rule.along {
                let stored = tables.get(*position).filter(|t| t.table_name == name.plain());
                let Some(stored) = stored else { return Err(catalog_changed()) };
                // Rows of the rule's own table are its own account.
                if *name != rule.table {
                    along.insert(name.clone(), stored.position);
                }
                *position += 1;
            }
            placed.push(Placed { rule, table, along });
        }
        Ok(placed)
    }

    /// Works on tables until none of them moves a row any more. One round is enough unless they
    /// reference each other in a circle.
    async fn work_group(
        &self,
        chunks: &mut ChunkLoop<'_>,
        group: &[Placed<'_>],
    ) -> Result<(), RetentionError> {
        let open: Vec<_> = group.iter().filter(|p| p.table.status != "completed").collect();
        loop {
            let mut moved = 0;
            for placed in &open {
                moved += self.work_table(chunks, placed).await?;
            }
            if open.len() < 2 || moved == 0 {
                break;
            }
        }
        for placed in open {
            self.end_table(placed).await?;
        }
        Ok(())
    }

    async fn work_table(
        &self,
        chunks: &mut ChunkLoop<'_>,
        placed: &Placed<'_>,
    ) -> Result<i64, RetentionError> {
        self.prepare(placed).await?;
        let mut connection = self.db.acquire().await?;
        let mut moved = 0;
        let mut idle = 0;
        let resumed = placed.table.cursor.clone().zip(placed.table.last_key.clone());
        // A cursor does not say of which partition it is; those that are done have nothing left.
        let mut resumed = resumed.filter(|_| !placed.rule.is_partitioned());
        let rules: Vec<_> =
            placed.rule.places.iter().map(|place| placed.rule.in_place(place)).collect();
        let mut old = placed.table.eligible + placed.table.held + placed.table.blocked;
        loop {
            let mut walked = None;
            for rule in &rules {
                let begun = match resumed.take() {
                    Some((cursor, last)) => {
                        let walk = Walk::ending_at(self.catalog, rule, &last);
                        Some((walk, From::After(cursor), last))
                    }
                    None => self.begin_walk(&mut connection, placed, rule, old).await?,
                };
                let Some((walk, from, last_key)) = begun else { continue };
                let done = match &rule.treats {
                    Some(treats) => {
                        let mut step = self.treat(placed, rule, treats, (walk, from, last_key))?;
                        chunks.run(&mut connection, &mut step).await?;
                        step.moved
                    }
                    None => {
                        let mut step = self.step(placed, rule, walk, from, last_key);
                        chunks.run(&mut connection, &mut step).await?;
                        step.moved
                    }
                };
                *walked.get_or_insert(0) += done;
            }
            let Some(walked) = walked else { break };
            moved += walked;
            let left = self.what_is_left(&mut connection, placed).await?;
            if left == 0 {
                break;
            }
            old = left;
            // Rows that stay can be written to again and again: that has an end too.
            let is_idle = walked == 0 || placed.rule.action == Action::Anonymize;
            idle = if is_idle { idle + 1 } else { 0 };
            if idle >= MAX_IDLE_PASSES {
                tracing::warn!(
                    table = placed.rule.table.plain(),
                    rows = left,
                    "rows stay locked by others and are left for the next run"
                );
                break;
            }
            tokio::select! {
                () = self.attempt.stop.cancelled() => return Err(RetentionError::Stopped),
                () = tokio::time::sleep(IDLE_PAUSE * idle) => {}
            }
        }
        Ok(moved)
    }

    /// Locks the run's row until the transaction ends: the account of a run that was paused, taken
    /// over or has ended is not written to, because its certificate may be sealed already.
    async fn beat(&self, connection: &mut PgConnection) -> Result<(), RetentionError> {
        let Attempt { run_id, number, lease_secs, .. } = *self.attempt;
        if run::beat(connection, run_id, number, lease_secs).await? {
            Ok(())
        } else {
            Err(RetentionError::Lost)
        }
    }

    /// Where a walk through a place begins and ends; `None`: nothing there is old enough.
    /// About `old` rows are old enough.
    async fn begin_walk<'s>(
        &'s self,
        connection: &mut PgConnection,
        placed: &Placed<'_>,
        rule: &'s Rule,
        old: i64,
    ) -> Result<Option<(Walk<'s>, From, Vec<String>)>, RetentionError> {
        let mut tx = connection.begin().await?;
        set_zone(&mut tx, self.time_zone).await?;
        // Of rows that stay, those were counted that are not yet as they should be.
        let old = (rule.action != Action::Anonymize).then_some(old);
        let walk = Walk::choose(&mut tx, self.catalog, rule, old, placed.table.total).await?;
        let Some((first, last)) = walk.bounds(&mut tx).await? else { return Ok(None) };
        self.beat(&mut tx).await?;
        let (run_id, position) = (self.attempt.run_id, placed.table.position);
        run::next_pass(&mut tx, run_id, position, &last).await?;
        tx.commit().await?;
        Ok(Some((walk, From::At(first), last)))
    }

    fn step<'s>(
        &'s self,
        placed: &Placed<'_>,
        rule: &'s Rule,
        walk: Walk<'s>,
        from: From,
        last_key: Vec<String>,
    ) -> Move<'s> {
        let (store, run_id) = (self.store, self.attempt.run_id);
        Move {
            catalog: self.catalog,
            rule,
            run_id,
            position: placed.table.position,
            along_positions: placed.along.clone(),
            walk,
            from,
            last_key,
            moved: 0,
            guard: self.guard.clone(),
            ledger: self.ledger,
            exporter: rule.export.map(|declared| Exporter { store, run_id, declared }),
            elsewhere: Duration::ZERO,
        }
    }

    fn treat<'s>(
        &'s self,
        placed: &Placed<'_>,
        rule: &'s Rule,
        treats: &'s Treats,
        (walk, from, last_key): (Walk<'s>, From, Vec<String>),
    ) -> Result<Treat<'s>, RetentionError> {
        Ok(Treat {
            rule,
            treats,
            keyring: self.keys()?,
            store: self.store,
            run_id: self.attempt.run_id,
            position: placed.table.position,
            walk,
            from,
            last_key,
            moved: 0,
            guard: self.guard.clone(),
            elsewhere: Duration::ZERO,
        })
    }

    fn keys(&self) -> Result<&Keyring, RetentionError> {
        let none = || RetentionError::refused("bad_keys", KeyError::NoKeys.to_string());
        self.keyring.ok_or_else(none)
    }

    /// Makes what the first chunk needs.
    async fn prepare(&self, placed: &Placed<'_>) -> Result<(), RetentionError> {
        let mut tx = self.db.begin().await?;
        self.beat(&mut tx).await?;
        run::begin_table(&mut tx, self.attempt.run_id, placed.table.position).await?;
        if placed.rule.action == Action::Archive {
            let names = placed.along.keys().chain([&placed.rule.table]);
            for table in names.filter_map(|name| self.catalog.table(name)) {
                let (owner, column) = &placed.rule.age_column;
                let age = (*owner == table.name).then_some(column);
                archive::prepare(&mut tx, self.catalog, table, age).await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    /// Counts what stays and why, stores it, and returns how many rows are free to go: SKIP LOCKED
    /// finding nothing is no proof that nothing is left.
    async fn what_is_left(
        &self,
        connection: &mut PgConnection,
        placed: &Placed<'_>,
    ) -> Result<i64, RetentionError> {
        let mut tx = connection.begin().await?;
        set_zone(&mut tx, self.time_zone).await?;
        let mut guard = self.guard.clone();
        guard.for_chunk(&mut tx).await?;
        let held = |table: &TableName, alias: &Ident| guard.predicate(table, alias);
        let references = References::now(self.catalog, &held);
        let rule = placed.rule;
        let (held, blocked, free) = match &rule.treats {
            Some(treats) => {
                let held = references.is_held(rule);
                let found = look_at(&mut tx, rule, treats, self.keys()?, &held).await?;
                (found.held, 0, found.free)
            }
            None => count_left(&mut tx, &references, rule).await?,
        };
        let (run_id, position) = (self.attempt.run_id, placed.table.position);
        self.beat(&mut tx).await?;
        run::store_counts(&mut tx, run_id, position, held, blocked, free).await?;
        tx.commit().await?;
        Ok(free)
    }

    /// Gives the room of rows that went back to the table, and closes its account.
    async fn end_table(&self, placed: &Placed<'_>) -> Result<(), RetentionError> {
        let run_id = self.attempt.run_id;
        let mut connection = self.db.acquire().await?;
        let positions = placed.along.values().copied().chain([placed.table.position]);
        let names = placed.along.keys().chain([&placed.rule.table]);
        for (name, position) in names.zip(positions) {
            tidy(&mut connection, &format!("vacuum (analyze) {name}"), name).await;
            if placed.rule.action == Action::Archive {
                let archive = archive::archive_name(name);
                tidy(&mut connection, &format!("analyze {archive}"), &archive).await;
            }
            let size: Option<i64> =
                sqlx::query_scalar(SIZE).bind(name.to_string()).fetch_one(&mut *connection).await?;
            let size = size.unwrap_or_default();
            let mut tx = connection.begin().await?;
            self.beat(&mut tx).await?;
            run::end_table(&mut tx, run_id, position, size).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

/// Rows that are old enough: held, blocked, and free to go.
async fn count_left(
    connection: &mut PgConnection,
    references: &References<'_>,
    rule: &Rule,
) -> Result<(i64, i64, i64), RetentionError> {
    let row = sqlx::query(dynamic(format!(
        "select count(*) filter (where held) as held,
                count(*) filter (where not held and blocked) as blocked,
                count(*) filter (where not held and not blocked) as free
           from (select {held} as held, {blocked} as blocked
                   from {table} as {alias}
                  where {eligible}) eligible",
        held = references.is_held(rule),
        blocked = references.is_blocked_at_any_depth(rule),
        table = rule.table,
        alias = rule.alias(),
        eligible = rule.is_eligible(),
    )))
    .persistent(false)
    .fetch_one(connection)
    .await?;
    Ok((row.get("held"), row.get("blocked"), row.get("free")))
}

/// Gives room back or looks at a table anew. Autovacuum does the same later, and the rows are where
/// they should be: that it fails now is no reason to end a run.
async fn tidy(connection: &mut PgConnection, statement: &str, table: &TableName) {
    if let Err(error) = sqlx::raw_sql(dynamic(statement.to_owned())).execute(connection).await {
        tracing::warn!(
            table = table.plain(),
            error = RetentionError::from(error).to_string(),
            "cannot vacuum or analyze"
        );
    }
}

/// An operator's condition may cast between dates and times: that is done in the policy's zone.
///
/// # Errors
/// The database's.
pub async fn set_zone(connection: &mut PgConnection, zone: Tz) -> Result<(), sqlx::Error> {
    sqlx::query("select set_config('TimeZone', $1, true)")
        .bind(zone.name())
        .execute(connection)
        .await?;
    Ok(())
}

fn catalog_changed() -> RetentionError {
    let message = "the tables have changed since the run began: cancel it and start a new one";
    RetentionError::refused("catalog_changed", message)
}
