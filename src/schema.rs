//! The schema: our migrations, the queue's own, and the report role.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::{MigrateError, MigrationType, Migrator};
use sqlx::{PgPool, Row};

use crate::db::sqlstate;

mod checks;
mod description;
mod guard;

pub use description::describe;
pub use guard::{Guard, LockWaits, verify};

/// How a migration waits for others unless the settings say otherwise.
const DEFAULT_WAITS: LockWaits =
    LockWaits { timeout: Duration::from_secs(10), tries: NonZeroU32::new(5).expect("not 0") };

/// Every migration of this binary.
pub static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// What the report role may see: run after the migrations, whole.
pub const REPORT_ROLE_SQL: &str = include_str!("../migrations/roles/registrar_report.sql");

/// The schema cannot be brought to where it should be.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A migration failed; PostgreSQL rolled it back.
    #[error("cannot migrate the schema")]
    Migrate(#[from] MigrateError),
    /// A statement beside the migrations failed.
    #[error("cannot {action}")]
    Statement {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: sqlx::Error,
    },
    /// Another process migrates.
    #[error("another process is migrating this database ({holder}); try again when it has ended")]
    Busy {
        /// What is known of it.
        holder: String,
    },
    /// The database was migrated with other files than this binary's.
    #[error(
        "{0}: the database and this version of Registrar have different histories, and nothing \
         was changed; use the version that migrated it, or restore a backup"
    )]
    Drift(String),
    /// A migration failed, was rolled back, and nothing after it was tried.
    #[error(
        "migration {version:04} ({description}) failed and was rolled back: {reason}. \
         The schema is at version {reached}{}",
        applied_now(.applied)
    )]
    Failed {
        /// Which.
        version: i64,
        /// Its name.
        description: String,
        /// Why.
        reason: String,
        /// Where the schema is now.
        reached: i64,
        /// What this call had applied or taken back before, and what undoes that.
        applied: Vec<i64>,
    },
    /// Others use the tables.
    #[error(
        "others use the tables that it changes ({} in {} tries): run it again when fewer reports run",
        .0.join(", "), .0.len()
    )]
    Conflict(Vec<&'static str>),
    /// The schema is not what the migrations make.
    #[error("the schema is not as it should be: {}", .0.join("; "))]
    Unsound(Vec<String>),
    /// This binary was made for another schema.
    #[error("the schema is not the one this version works with: {0}")]
    NotCurrent(String),
    /// There is no such version to go back to.
    #[error("version {0} is not among the migrations; `registrar migrate status` lists them")]
    UnknownVersion(i64),
}

fn applied_now(versions: &[i64]) -> String {
    match versions.first() {
        None => "; this call changed nothing".to_owned(),
        Some(first) => format!(
            "; this call had applied {}: `registrar migrate down --to {}` takes that back",
            versions.iter().map(|v| format!("{v:04}")).collect::<Vec<_>>().join(", "),
            first - 1
        ),
    }
}

impl SchemaError {
    /// For `map_err`: what was tried when a statement failed.
    pub fn statement(action: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Statement { action, source }
    }
}

/// Where one migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MigrationState {
    /// It is in the database.
    Applied,
    /// `migrate up` will apply it.
    Pending,
    /// The database has it, with another content than this binary's.
    Changed,
    /// The database has it, this binary does not know it.
    Unknown,
}

/// One migration of the binary or of the database.
#[derive(Debug, Clone, serde::Serialize)]
pub struct MigrationStatus {
    /// Its number.
    pub version: i64,
    /// Its name in words.
    pub description: String,
    /// Where it stands.
    pub state: MigrationState,
    /// When it was applied.
    pub applied_at: Option<DateTime<Utc>>,
}

/// Compares the migrations of this binary with those of the database.
///
/// # Errors
/// [`SchemaError::Statement`]
pub async fn status(pool: &PgPool) -> Result<Vec<MigrationStatus>, SchemaError> {
    let mut applied = applied(pool).await?;
    let mut all = Vec::new();
    for migration in MIGRATOR.iter().filter(|m| m.migration_type != MigrationType::ReversibleDown) {
        let found = applied.remove(&migration.version);
        let state = match &found {
            None => MigrationState::Pending,
            Some(row) if row.checksum == *migration.checksum => MigrationState::Applied,
            Some(_) => MigrationState::Changed,
        };
        all.push(MigrationStatus {
            version: migration.version,
            description: migration.description.to_string(),
            state,
            applied_at: found.map(|row| row.applied_at),
        });
    }
    all.extend(applied.into_iter().map(|(version, row)| MigrationStatus {
        version,
        description: row.description,
        state: MigrationState::Unknown,
        applied_at: Some(row.applied_at),
    }));
    Ok(all)
}

struct Applied {
    description: String,
    checksum: Vec<u8>,
    applied_at: DateTime<Utc>,
}

async fn applied(pool: &PgPool) -> Result<BTreeMap<i64, Applied>, SchemaError> {
    let failed = SchemaError::statement("read the applied migrations");
    let known: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(pool)
        .await
        .map_err(SchemaError::statement("look for the table of migrations"))?;
    if !known {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query(
        "select version, description, checksum, installed_on
           from _sqlx_migrations
          where success
          order by version",
    )
    .fetch_all(pool)
    .await
    .map_err(failed)?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let applied = Applied {
                description: row.get("description"),
                checksum: row.get("checksum"),
                applied_at: row.get("installed_on"),
            };
            (row.get("version"), applied)
        })
        .collect())
}

/// Refuses a schema that is not exactly the one this binary works with.
///
/// # Errors
/// [`SchemaError::NotCurrent`], which names the first difference.
pub async fn check_current(pool: &PgPool) -> Result<(), SchemaError> {
    for migration in status(pool).await? {
        let problem = match migration.state {
            MigrationState::Applied => continue,
            MigrationState::Pending => "is not applied; run `registrar migrate up`",
            MigrationState::Changed => {
                "was applied with another content; `registrar migrate status` lists all"
            }
            MigrationState::Unknown => {
                "is unknown to this version; run the newer Registrar that applied it, or with \
                 that one `registrar migrate down --to` the version that this one knows"
            }
        };
        return Err(SchemaError::NotCurrent(format!(
            "migration {:04} ({}) {problem}",
            migration.version, migration.description
        )));
    }
    Ok(())
}

/// Whether the report role was brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportRole {
    /// It exists and sees what it should.
    Ready,
    /// This user may not do that: an administrator must run [`REPORT_ROLE_SQL`].
    NeedsAdministrator,
}

/// Applies what is missing, each migration in its transaction and verified there. A second process
/// waits for the first.
///
/// # Errors
/// [`SchemaError`]; what was applied before the failing migration stays.
pub async fn up(
    pool: &PgPool,
    report_password: Option<&SecretString>,
) -> Result<ReportRole, SchemaError> {
    let mut guard = Guard::acquire(pool, DEFAULT_WAITS).await?;
    let done = guard.up(pool, report_password).await;
    guard.release().await;
    done
}

/// Takes back every migration above `target`, newest first. At 0 the queue's tables go too: they
/// hold only tickets.
///
/// # Errors
/// [`SchemaError`]
pub async fn down(pool: &PgPool, target: i64) -> Result<(), SchemaError> {
    let mut guard = Guard::acquire(pool, DEFAULT_WAITS).await?;
    let done = guard.down(pool, target).await;
    guard.release().await;
    done
}

/// Creates the report role and gives it what it may read.
///
/// # Errors
/// [`SchemaError::Statement`]
pub async fn prepare_report_role(
    pool: &PgPool,
    password: Option<&SecretString>,
) -> Result<ReportRole, SchemaError> {
    let failed = "prepare the report role";
    let mut tx = pool.begin().await.map_err(SchemaError::statement(failed))?;
    // Roles belong to the whole cluster: two databases migrated at once would collide on its row.
    let prepared = async {
        sqlx::query("select pg_advisory_xact_lock(hashtextextended('registrar_report', 0))")
            .execute(&mut *tx)
            .await?;
        sqlx::raw_sql(REPORT_ROLE_SQL).execute(&mut *tx).await?;
        if let Some(password) = password {
            sqlx::query("select set_config('registrar.report_password', $1, true)")
                .bind(password.expose_secret())
                .execute(&mut *tx)
                .await?;
            sqlx::raw_sql(
                "do $$ begin
                     execute format('alter role registrar_report password %L',
                                    current_setting('registrar.report_password'));
                 exception when sqlstate 'XX000' then null;
                 end $$",
            )
            .execute(&mut *tx)
            .await?;
        }
        Ok::<_, sqlx::Error>(())
    }
    .await;
    match prepared {
        Ok(()) => {
            tx.commit().await.map_err(SchemaError::statement(failed))?;
            Ok(ReportRole::Ready)
        }
        Err(error) if sqlstate(&error).as_deref() == Some("42501") => {
            Ok(ReportRole::NeedsAdministrator)
        }
        Err(source) => Err(SchemaError::Statement { action: failed, source }),
    }
}
