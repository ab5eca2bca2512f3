//! What stands between a migration and the data.
//!
//! One process at a time; no migration over a history that is not this binary's; each migration
//! in a transaction that is committed only after it was looked at: constraints valid, the checks
//! of `migrations/checks` hold, and no row came or went in a table that the migration does not
//! name. A migration that waits for a lock gives up soon, because everybody else waits behind it,
//! and is tried again a few times: so is one that PostgreSQL chose as the victim of a deadlock.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType};
use sqlx::{Connection, PgConnection, PgPool};

use super::{
    MIGRATOR, MigrationState, MigrationStatus, ReportRole, SchemaError, checks, description,
    prepare_report_role, status,
};
use crate::db::sqlstate;

/// How long a second process waits for the first.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A migration that means to add or delete rows says of which tables in such a line.
const DECLARATION: &str = "-- changes rows of:";
/// Where sqlx keeps what was applied.
const HISTORY: &str = "_sqlx_migrations";

/// How a migration waits for tables that others use.
#[derive(Debug, Clone, Copy)]
pub struct LockWaits {
    /// Longest wait for a lock. The others get as long to themselves before the next try.
    pub timeout: Duration,
    /// Tries in all. Between two of them nothing is held.
    pub tries: NonZeroU32,
}

/// The right to migrate, held by a connection of its own: the server frees it when the process is
/// gone.
#[derive(Debug)]
pub struct Guard {
    connection: PgConnection,
    waits: LockWaits,
}

impl Guard {
    /// Waits for its turn, at most a minute.
    ///
    /// # Errors
    /// [`SchemaError::Busy`]
    pub async fn acquire(pool: &PgPool, waits: LockWaits) -> Result<Self, SchemaError> {
        let failed = "lock the schema for migrations";
        let connection = pool.acquire().await.map_err(SchemaError::statement(failed))?;
        let mut connection = connection.detach();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let locked: bool = sqlx::query_scalar(
                "select pg_try_advisory_lock(hashtextextended('registrar migrate', 0))",
            )
            .fetch_one(&mut connection)
            .await
            .map_err(SchemaError::statement(failed))?;
            if locked {
                return Ok(Self { connection, waits });
            }
            if Instant::now() >= deadline {
                return Err(SchemaError::Busy { holder: holder(&mut connection).await });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Gives the right back.
    pub async fn release(self) {
        // A connection that is gone has freed it already.
        let _closed = self.connection.close().await;
    }

    /// What `up` would apply, after a look at the history.
    ///
    /// # Errors
    /// [`SchemaError::Drift`]
    pub async fn pending(&self, pool: &PgPool) -> Result<Vec<MigrationStatus>, SchemaError> {
        let all = status(pool).await?;
        refuse_drift(&all)?;
        Ok(all.into_iter().filter(|m| m.state == MigrationState::Pending).collect())
    }

    /// Applies what is missing, then brings the report role up to date.
    ///
    /// # Errors
    /// [`SchemaError`]
    pub async fn up(
        &mut self,
        pool: &PgPool,
        report_password: Option<&SecretString>,
    ) -> Result<ReportRole, SchemaError> {
        let pending = self.pending(pool).await?;
        let failed =
            "create the queue's tables (this needs CREATE on the database, hstore and pgcrypto)";
        crate::queue::create_tables(pool).await.map_err(SchemaError::statement(failed))?;
        self.connection.ensure_migrations_table(HISTORY).await?;
        let last = MIGRATOR.iter().map(|migration| migration.version).max();
        let mut applied = Vec::new();
        for next in pending {
            let migration = find(next.version, false)?;
            let is_last = Some(next.version) == last;
            let step = Step { migration, version_after: next.version, is_last };
            if let Err(error) = self.run(&step).await {
                let reached = self.reached().await?;
                return Err(failure(migration, &error, reached, applied));
            }
            applied.push(next.version);
        }
        prepare_report_role(pool, report_password).await
    }

    /// Takes back every migration above `target`, newest first.
    ///
    /// # Errors
    /// [`SchemaError`]
    pub async fn down(&mut self, pool: &PgPool, target: i64) -> Result<(), SchemaError> {
        if target != 0 && !MIGRATOR.version_exists(target) {
            return Err(SchemaError::UnknownVersion(target));
        }
        let all = status(pool).await?;
        refuse_drift(&all)?;
        let applied = all.iter().filter(|m| m.state == MigrationState::Applied);
        let mut versions: Vec<i64> = applied.map(|m| m.version).collect();
        while let Some(version) = versions.pop().filter(|version| *version > target) {
            let migration = find(version, true)?;
            let version_after = versions.last().copied().unwrap_or(0);
            let step = Step { migration, version_after, is_last: false };
            if let Err(error) = self.run(&step).await {
                let reached = self.reached().await?;
                return Err(failure(migration, &error, reached, Vec::new()));
            }
        }
        if target == 0 {
            let failed = SchemaError::statement("drop the queue's tables");
            crate::queue::drop_tables(pool).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn reached(&mut self) -> Result<i64, SchemaError> {
        sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
            .fetch_one(&mut self.connection)
            .await
            .map_err(SchemaError::statement("read the schema's version"))
    }

    async fn run(&mut self, step: &Step<'_>) -> Result<(), SchemaError> {
        if step.migration.no_tx {
            // PostgreSQL allows it no transaction: it is looked at afterwards, and what it did
            // half-way is not done again over itself.
            let connection = &mut self.connection;
            let before = Before::read(connection).await?;
            step.apply(connection).await?;
            return step.look(connection, &before).await;
        }
        let mut conflicts = Vec::new();
        loop {
            let error = match self.try_once(step).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let Some(conflict) = conflict(&error) else { return Err(error) };
            conflicts.push(conflict);
            if conflicts.len() >= self.waits.tries.get() as usize {
                return Err(SchemaError::Conflict(conflicts));
            }
            tracing::warn!(
                migration = step.migration.version,
                conflict,
                "migration {:04} conflicts with what others do; it is rolled back and tried again",
                step.migration.version
            );
            tokio::time::sleep(self.waits.timeout).await;
        }
    }

    /// In one transaction, which an error rolls back.
    async fn try_once(&mut self, step: &Step<'_>) -> Result<(), SchemaError> {
        let failed = "begin the migration's transaction";
        let mut tx = self.connection.begin().await.map_err(SchemaError::statement(failed))?;
        let timeout = format!("{}ms", self.waits.timeout.as_millis());
        sqlx::query("select set_config('lock_timeout', $1, true)")
            .bind(timeout)
            .execute(&mut *tx)
            .await
            .map_err(SchemaError::statement(failed))?;
        let before = Before::read(&mut tx).await?;
        step.apply(&mut tx).await?;
        step.look(&mut tx, &before).await?;
        tx.commit().await.map_err(SchemaError::statement("commit the migration"))
    }
}

struct Step<'a> {
    migration: &'a Migration,
    /// The newest version after it.
    version_after: i64,
    /// After it the schema is the one of this binary.
    is_last: bool,
}

impl Step<'_> {
    async fn apply(&self, connection: &mut PgConnection) -> Result<(), SchemaError> {
        match self.migration.migration_type {
            MigrationType::ReversibleDown => {
                connection.revert(HISTORY, self.migration).await?;
            }
            MigrationType::Simple | MigrationType::ReversibleUp => {
                connection.apply(HISTORY, self.migration).await?;
            }
        }
        Ok(())
    }

    async fn look(
        &self,
        connection: &mut PgConnection,
        before: &Before,
    ) -> Result<(), SchemaError> {
        let mut problems = before.new_problems(connection, self.migration.sql.as_str()).await?;
        problems.extend(checks::broken(connection, self.version_after).await?);
        if self.is_last {
            problems.extend(description::missing(connection).await?);
        }
        if problems.is_empty() { Ok(()) } else { Err(SchemaError::Unsound(problems)) }
    }
}

/// What is looked at again after a migration.
struct Before {
    invalid: Vec<String>,
    /// Tables by their number, and whether they hold rows.
    tables: BTreeMap<i64, (String, bool)>,
    /// Rows that this transaction had added before, by the table's number.
    balance: BTreeMap<i64, i64>,
}

impl Before {
    async fn read(connection: &mut PgConnection) -> Result<Self, SchemaError> {
        Ok(Self {
            invalid: invalid(connection).await?,
            tables: tables(connection).await?,
            balance: balance(connection).await?,
        })
    }

    async fn new_problems(
        &self,
        connection: &mut PgConnection,
        sql: &str,
    ) -> Result<Vec<String>, SchemaError> {
        let mut problems = invalid(connection).await?;
        problems.retain(|problem| !self.invalid.contains(problem));
        let declared = declared(sql);
        let (tables, balance) = (tables(connection).await?, balance(connection).await?);
        for (oid, (name, had_rows)) in &self.tables {
            if declared.contains(&name.as_str()) || name == HISTORY {
                continue;
            }
            let change = balance.get(oid).unwrap_or(&0) - self.balance.get(oid).unwrap_or(&0);
            if change != 0 {
                problems.push(format!(
                    "{name} has {change:+} rows, which the migration does not declare \
                     (`{DECLARATION} {name}`)"
                ));
            } else if *had_rows && tables.get(oid).is_some_and(|(_, has_rows)| !has_rows) {
                problems.push(format!("{name} was emptied, which the migration does not declare"));
            }
        }
        Ok(problems)
    }
}

fn declared(sql: &str) -> Vec<&str> {
    sql.lines()
        .filter_map(|line| line.trim().strip_prefix(DECLARATION))
        .flat_map(|names| names.split(','))
        .map(str::trim)
        .collect()
}

/// Constraints and indexes that PostgreSQL does not vouch for.
async fn invalid(connection: &mut PgConnection) -> Result<Vec<String>, SchemaError> {
    sqlx::query_scalar(
        "select format('constraint %s of %s is not valid', c.conname, c.conrelid::regclass)
           from pg_constraint c
           join pg_namespace n on n.oid = c.connamespace
          where not c.convalidated and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
          union all
         select format('index %s is not valid', i.indexrelid::regclass)
           from pg_index i
          where not i.indisvalid
          order by 1",
    )
    .fetch_all(connection)
    .await
    .map_err(SchemaError::statement("look for constraints that are not valid"))
}

async fn tables(
    connection: &mut PgConnection,
) -> Result<BTreeMap<i64, (String, bool)>, SchemaError> {
    // The server runs one small query for each table: whether it has a row at all.
    let rows: Vec<(i64, String, bool)> = sqlx::query_as(
        "select c.oid::int8,
                case n.nspname when 'public' then c.relname::text
                     else n.nspname || '.' || c.relname end,
                (xpath('/row/has/text()',
                       query_to_xml(format('select exists (select from %I.%I) as has',
                                           n.nspname, c.relname), false, true, '')))[1]::text
                    = 'true'
           from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
          where c.relkind in ('r', 'p') and c.relpersistence <> 't' and n.nspname !~ '^pg_'
            and n.nspname not in ('information_schema', 'apalis')",
    )
    .fetch_all(connection)
    .await
    .map_err(SchemaError::statement("look which tables hold rows"))?;
    Ok(rows.into_iter().map(|(oid, name, has_rows)| (oid, (name, has_rows))).collect())
}

/// Rows that the current transaction added to each table, less those it deleted. Others' changes
/// do not count, however busy the table is.
async fn balance(connection: &mut PgConnection) -> Result<BTreeMap<i64, i64>, SchemaError> {
    let rows: Vec<(i64, i64)> =
        sqlx::query_as("select relid::int8, n_tup_ins - n_tup_del from pg_stat_xact_user_tables")
            .fetch_all(connection)
            .await
            .map_err(SchemaError::statement("count what the migration changed"))?;
    Ok(rows.into_iter().collect())
}

fn find(version: i64, down: bool) -> Result<&'static Migration, SchemaError> {
    MIGRATOR
        .iter()
        .find(|m| {
            m.version == version && (m.migration_type == MigrationType::ReversibleDown) == down
        })
        .ok_or(SchemaError::UnknownVersion(version))
}

fn refuse_drift(all: &[MigrationStatus]) -> Result<(), SchemaError> {
    for migration in all {
        let problem = match migration.state {
            MigrationState::Applied | MigrationState::Pending => continue,
            MigrationState::Changed => "was applied with another content",
            MigrationState::Unknown => "is unknown to this version",
        };
        return Err(SchemaError::Drift(format!(
            "migration {:04} ({}) {problem}",
            migration.version, migration.description
        )));
    }
    Ok(())
}

fn failure(
    migration: &Migration,
    error: &SchemaError,
    reached: i64,
    applied: Vec<i64>,
) -> SchemaError {
    SchemaError::Failed {
        version: migration.version,
        description: migration.description.to_string(),
        reason: reason(error),
        reached,
        applied,
    }
}

/// What others did that a migration could not go on beside.
fn conflict(error: &SchemaError) -> Option<&'static str> {
    let (SchemaError::Migrate(MigrateError::Execute(source))
    | SchemaError::Migrate(MigrateError::ExecuteMigration(source, _))
    | SchemaError::Statement { action: _, source }) = error
    else {
        return None;
    };
    match sqlstate(source).as_deref() {
        Some("40P01") => Some("deadlock"),
        Some("55P03") => Some("lock timeout"),
        _ => None,
    }
}

/// The error and what caused it. PostgreSQL's DETAIL is in neither.
fn reason(error: &SchemaError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

async fn holder(connection: &mut PgConnection) -> String {
    let found: Result<Option<String>, _> = sqlx::query_scalar(
        "select format('process %s, %s, since %s', a.pid, a.application_name,
                       to_char(a.backend_start at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC'))
           from pg_locks l
           join pg_stat_activity a on a.pid = l.pid
          where l.locktype = 'advisory' and l.granted
            and l.database = (select oid from pg_database where datname = current_database())
            and ((l.classid::int8 << 32) | l.objid::int8) = hashtextextended('registrar migrate', 0)
          limit 1",
    )
    .fetch_optional(connection)
    .await;
    found.ok().flatten().unwrap_or_else(|| "it has just ended".to_owned())
}

/// Looks at a schema that is in use: everything that a migration is looked at for.
///
/// # Errors
/// [`SchemaError::NotCurrent`] and [`SchemaError::Unsound`]
pub async fn verify(pool: &PgPool) -> Result<(), SchemaError> {
    super::check_current(pool).await?;
    let failed = "begin the verification";
    let mut tx = pool
        .begin_with("begin isolation level repeatable read read only")
        .await
        .map_err(SchemaError::statement(failed))?;
    let newest = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    let mut problems = invalid(&mut tx).await?;
    problems.extend(checks::broken(&mut tx, newest).await?);
    problems.extend(description::missing(&mut tx).await?);
    if problems.is_empty() { Ok(()) } else { Err(SchemaError::Unsound(problems)) }
}

#[cfg(test)]
mod tests {
    use super::declared;

    #[test]
    fn a_migration_declares_whose_rows_it_changes() {
        let sql = "-- why\n-- changes rows of: roles, permissions\ninsert into roles …";
        assert_eq!(declared(sql), ["roles", "permissions"]);
        assert!(declared("delete from roles").is_empty());
    }
}
