//! Every migration goes up, down and up again, with data in the tables.

use std::process::Command;
use std::str::FromStr;

use registrar::postgres::Binaries;
use registrar::schema::{self, MIGRATOR, MigrationState, SchemaError};
use secrecy::SecretString;
use sqlx::PgPool;
use sqlx::migrate::MigrationType;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::support::database::{Contents, REPORT_PASSWORD, TestDatabase, sql};

struct Schema {
    database: TestDatabase,
    pool: PgPool,
}

impl Schema {
    async fn create(contents: Contents) -> Self {
        let database = TestDatabase::create(contents).await;
        let options = PgConnectOptions::from_str(&database.url).unwrap();
        let pool = PgPoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
        Self { database, pool }
    }

    async fn up(&self) -> Result<(), SchemaError> {
        schema::up(&self.pool, Some(&SecretString::from(REPORT_PASSWORD))).await.map(|_| ())
    }

    /// Table definitions, functions, triggers and rights, as SQL.
    fn dump(&self) -> String {
        self.pg_dump(&["--schema-only"])
    }

    /// The same without rights: those of the report role come after all migrations.
    fn dump_without_rights(&self) -> String {
        self.pg_dump(&["--schema-only", "--no-privileges"])
    }

    fn pg_dump(&self, options: &[&str]) -> String {
        // The server's own: the one in PATH may be older. What was found may be links to it.
        let server = Binaries::find(None).unwrap().program("postgres").canonicalize().unwrap();
        let program = server.with_file_name("pg_dump");
        let help = Command::new(&program).arg("--help").output().unwrap();
        let mut command = Command::new(&program);
        command.args(options).args(["--dbname", &self.database.url]);
        if String::from_utf8_lossy(&help.stdout).contains("--restrict-key") {
            // Otherwise the dump holds a random key.
            command.arg("--restrict-key=tests");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Rows of every table of the schema as documented, which are the application's.
    async fn rows(&self) -> Vec<(String, i64)> {
        let tables: Vec<String> = sqlx::query_scalar(
            "select relname::text
               from pg_class
              where relnamespace = 'public'::regnamespace and relkind = 'r'
                and relname in ('users', 'roles', 'permissions', 'user_roles', 'role_permissions',
                                'institutions', 'faculties', 'departments', 'programs', 'courses',
                                'course_prerequisites', 'academic_sessions', 'enrollments',
                                'course_enrollments', 'innovation_projects', 'project_members',
                                'project_milestones', 'audit_logs')
              order by relname",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let mut rows = Vec::new();
        for table in tables {
            let count = format!("select count(*) from {table}");
            let count = sqlx::query_scalar(sql(count)).fetch_one(&self.pool).await.unwrap();
            rows.push((table, count));
        }
        rows
    }

    async fn end(self) {
        self.pool.close().await;
        self.database.drop_now().await;
    }
}

fn versions() -> Vec<i64> {
    let ups = MIGRATOR.iter().filter(|m| m.migration_type != MigrationType::ReversibleDown);
    ups.map(|migration| migration.version).collect()
}

fn assert_same(expected: &str, dump: &str, what: &str) {
    if dump != expected {
        let different = expected.lines().zip(dump.lines()).find(|(a, b)| a != b);
        panic!("{what}: (expected, is) = {different:#?}");
    }
}

/// From the newest down, one at a time: down, up and down again, so that each goes over the schema
/// that it was written for.
#[tokio::test]
async fn every_migration_goes_up_down_and_up_again_with_data() {
    let schema = Schema::create(Contents::SampleData).await;
    let (whole, rows) = (schema.dump(), schema.rows().await);
    let mut upper = schema.dump_without_rights();
    let versions = versions();
    for (version, before) in versions.iter().skip(1).zip(&versions).rev() {
        schema::down(&schema.pool, *before).await.unwrap();
        let lower = schema.dump_without_rights();
        assert_ne!(lower, upper, "{version} does something");
        MIGRATOR.run_to(*version, &schema.pool).await.unwrap();
        assert_same(
            &upper,
            &schema.dump_without_rights(),
            &format!("{version} up after it went down"),
        );
        assert_eq!(schema.rows().await, rows, "the data survive {version} going down");
        schema::down(&schema.pool, *before).await.unwrap();
        assert_same(
            &lower,
            &schema.dump_without_rights(),
            &format!("{version} down a second time"),
        );
        upper = lower;
    }
    schema.up().await.unwrap();
    assert_same(&whole, &schema.dump(), "all of them up again");
    assert_eq!(schema.rows().await, rows, "the data survive all but the first going down");
    // The first takes the tables, and with them the report role's rights, which `up` gives back.
    schema::down(&schema.pool, 0).await.unwrap();
    schema.up().await.unwrap();
    assert_same(&whole, &schema.dump(), "up from nothing");
    schema.end().await;
}

#[tokio::test]
async fn a_database_taken_down_to_nothing_is_empty() {
    let schema = Schema::create(Contents::Nothing).await;
    let empty = schema.dump();
    schema.up().await.unwrap();
    schema::down(&schema.pool, 0).await.unwrap();
    let left: Vec<String> = sqlx::query_scalar(
        "select relname::text
           from pg_class
          where relnamespace not in (select oid from pg_namespace where nspname ~ '^pg_|^info')
            and relkind in ('r', 'v', 'S') and relname <> '_sqlx_migrations'
          union all
         select proname::text
           from pg_proc
          where pronamespace = 'public'::regnamespace
            and not exists (select from pg_depend
                             where classid = 'pg_proc'::regclass and objid = pg_proc.oid
                               and deptype = 'e')",
    )
    .fetch_all(&schema.pool)
    .await
    .unwrap();
    assert_eq!(left, [""; 0], "empty was:\n{empty}");
    schema.end().await;
}

#[tokio::test]
async fn migrating_up_twice_changes_nothing() {
    let schema = Schema::create(Contents::SampleData).await;
    let before = (schema.dump(), applied(&schema).await);
    schema.up().await.unwrap();
    assert_eq!(schema.dump(), before.0);
    assert_eq!(applied(&schema).await, before.1, "nothing was applied again");
    schema.end().await;
}

async fn applied(schema: &Schema) -> Vec<(i64, Option<chrono::DateTime<chrono::Utc>>)> {
    let status = schema::status(&schema.pool).await.unwrap();
    assert!(status.iter().all(|migration| migration.state == MigrationState::Applied));
    status.iter().map(|migration| (migration.version, migration.applied_at)).collect()
}

#[tokio::test]
async fn two_processes_that_migrate_at_once_both_succeed() {
    let schema = Schema::create(Contents::Nothing).await;
    let (one, other) = tokio::join!(schema.up(), schema.up());
    one.expect("the first succeeds");
    other.expect("the second succeeds");
    schema::check_current(&schema.pool).await.unwrap();
    schema.end().await;
}

#[tokio::test]
async fn a_schema_that_is_behind_changed_or_unknown_is_refused_by_name() {
    let schema = Schema::create(Contents::Schema).await;
    schema::check_current(&schema.pool).await.expect("a fresh one is current");
    let versions = versions();
    let (last, before) = (versions[versions.len() - 1], versions[versions.len() - 2]);

    schema::down(&schema.pool, before).await.unwrap();
    refuses(&schema, &format!("migration {last:04} "), "is not applied").await;
    schema.up().await.unwrap();

    let checksum = MIGRATOR.iter().find(|m| m.version == last).unwrap().checksum.to_vec();
    set_checksum(&schema, last, b"another").await;
    refuses(&schema, &format!("migration {last:04} "), "with another content").await;
    let error = schema.up().await.expect_err("a changed migration is not applied over");
    assert!(matches!(error, SchemaError::Migrate(_)), "{error:?}");
    set_checksum(&schema, last, &checksum).await;
    schema::check_current(&schema.pool).await.expect("it is mended");

    sqlx::query(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
         values (9999, 'from the future', true, '', 0)",
    )
    .execute(&schema.pool)
    .await
    .unwrap();
    refuses(&schema, "migration 9999 (from the future)", "is unknown to this version").await;
    schema.end().await;
}

async fn set_checksum(schema: &Schema, version: i64, checksum: &[u8]) {
    sqlx::query("update _sqlx_migrations set checksum = $2 where version = $1")
        .bind(version)
        .bind(checksum)
        .execute(&schema.pool)
        .await
        .unwrap();
}

async fn refuses(schema: &Schema, which: &str, why: &str) {
    let error = schema::check_current(&schema.pool).await.expect_err(why).to_string();
    assert!(error.contains(which) && error.contains(why), "{error}");
}

#[tokio::test]
async fn an_unknown_version_is_refused_and_nothing_changes() {
    let schema = Schema::create(Contents::Schema).await;
    let error = schema::down(&schema.pool, 4711).await.expect_err("there is no such version");
    assert!(matches!(error, SchemaError::UnknownVersion(4711)), "{error:?}");
    schema::check_current(&schema.pool).await.unwrap();
    schema.end().await;
}

#[tokio::test]
async fn a_database_without_anything_is_behind_and_not_an_error() {
    let schema = Schema::create(Contents::Nothing).await;
    let status = schema::status(&schema.pool).await.unwrap();
    assert!(!status.is_empty());
    assert!(status.iter().all(|migration| migration.state == MigrationState::Pending));
    refuses(&schema, "migration 0001 ", "is not applied").await;
    schema.end().await;
}
