//! Every migration goes up, down and up again, with data in the tables.

use std::num::NonZeroU32;
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use registrar::config::Config;
use registrar::postgres::Binaries;
use registrar::schema::{
    self, Guard, LockWaits, MIGRATOR, MigrationState, ReportRole, SchemaError,
};
use secrecy::SecretString;
use sqlx::migrate::MigrationType;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};

use crate::backup::Keys;
use crate::support::TestApp;
use crate::support::database::{Contents, REPORT_PASSWORD, TestDatabase, sql};
use crate::support::process::Process;

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
    assert!(matches!(error, SchemaError::Drift(_)), "{error:?}");
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

fn waits(timeout_ms: u64, tries: u32) -> LockWaits {
    let tries = NonZeroU32::new(tries).expect("at least one");
    LockWaits { timeout: Duration::from_millis(timeout_ms), tries }
}

/// Up is tried over something that makes it fail; afterwards everything is as before.
async fn fails_and_changes_nothing(schema: &Schema, expected: &[&str]) {
    let (dump, rows) = (schema.dump(), schema.rows().await);
    let mut guard = Guard::acquire(&schema.pool, waits(300, 2)).await.unwrap();
    let error = guard.up(&schema.pool, None).await.expect_err("it cannot be migrated");
    guard.release().await;
    let text = error.to_string();
    for part in expected {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(
        text.contains("was rolled back") && text.contains("The schema is at version"),
        "{text}"
    );
    assert_same(&dump, &schema.dump(), "the schema after a migration that failed");
    assert_eq!(schema.rows().await, rows);
}

/// A schema with data whose newest migrations are taken back, to `version`.
async fn behind(version: i64) -> Schema {
    let schema = Schema::create(Contents::SampleData).await;
    schema::down(&schema.pool, version).await.unwrap();
    schema
}

fn before_last() -> i64 {
    let versions = versions();
    versions[versions.len() - 2]
}

#[tokio::test]
async fn a_migration_that_fails_half_way_leaves_the_database_as_it_was() {
    let schema = behind(14.min(before_last())).await;
    sqlx::raw_sql("create table backups (theirs int)").execute(&schema.pool).await.unwrap();
    fails_and_changes_nothing(&schema, &["migration 0015", "already exists"]).await;
    sqlx::raw_sql("drop table backups").execute(&schema.pool).await.unwrap();
    schema.up().await.expect("once it is mended, it goes on");
    schema.end().await;
}

#[tokio::test]
async fn a_migration_that_waits_for_a_report_gives_up_and_says_so() {
    let schema = behind(9).await;
    let mut report = schema.pool.begin().await.unwrap();
    sqlx::raw_sql("lock table report_executions in row exclusive mode")
        .execute(&mut *report)
        .await
        .unwrap();
    fails_and_changes_nothing(
        &schema,
        &["migration 0010", "lock timeout, lock timeout in 2 tries", "when fewer"],
    )
    .await;
    report.rollback().await.unwrap();
    schema.up().await.expect("when the report has ended, it goes on");
    schema.end().await;
}

/// A report that has read `report_executions` goes on to `report_definitions` while a migration has
/// this and waits for that. PostgreSQL is told to end the migration and not the report.
async fn deadlock(schema: &Schema, tries: u32) -> Result<ReportRole, SchemaError> {
    let options = PgConnectOptions::from_str(&schema.database.url).unwrap();
    let impatient = options.clone().options([("deadlock_timeout", "2s")]);
    let pool = PgPoolOptions::new().max_connections(4).connect_with(impatient).await.unwrap();
    let patient = options.options([("deadlock_timeout", "10min")]);
    let mut report = PgConnection::connect_with(&patient).await.unwrap();
    sqlx::raw_sql("begin; select count(*) from report_executions")
        .execute(&mut report)
        .await
        .unwrap();
    let mut guard = Guard::acquire(&pool, waits(20_000, tries)).await.unwrap();
    let migrating = async {
        let done = guard.up(&pool, Some(&SecretString::from(REPORT_PASSWORD))).await;
        guard.release().await;
        done
    };
    let reporting = async {
        let waits = "select exists (select from pg_locks where not granted
                                       and relation = 'report_executions'::regclass)";
        let deadline = Instant::now() + Duration::from_secs(30);
        while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&schema.pool).await.unwrap() {
            assert!(Instant::now() < deadline, "the migration does not come to wait");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Answered only when the migration has let go of the table.
        sqlx::raw_sql("select count(*) from report_definitions; commit")
            .execute(&mut report)
            .await
            .expect("the report is not the victim");
    };
    let (done, ()) = tokio::join!(migrating, reporting);
    pool.close().await;
    done
}

#[tokio::test]
async fn a_migration_that_deadlocks_with_a_report_leaves_the_database_as_it_was() {
    let schema = behind(5).await;
    let (dump, rows) = (schema.dump(), schema.rows().await);
    let text = deadlock(&schema, 1).await.expect_err("it is the victim").to_string();
    for part in ["migration 0006", "rolled back", "deadlock in 1 tries", "at version 5"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_same(&dump, &schema.dump(), "the schema after a deadlock");
    assert_eq!(schema.rows().await, rows);

    // With a second try, the report has ended by then.
    deadlock(&schema, 2).await.expect("the second try finds the tables free");
    schema::check_current(&schema.pool).await.unwrap();
    schema.end().await;
}

#[tokio::test]
async fn a_migration_after_which_a_check_does_not_hold_is_rolled_back() {
    let schema = behind(9).await;
    let definition: i64 = sqlx::query_scalar(
        "insert into report_definitions (name, slug, query) values ('x', 'x', 'select 1') returning id::int8",
    )
    .fetch_one(&schema.pool)
    .await
    .unwrap();
    sqlx::query(
        "insert into report_executions (report_definition_id, status, attempt, lease_until)
         values ($1::int8::int, 'processing', 1, now())",
    )
    .bind(definition)
    .execute(&schema.pool)
    .await
    .unwrap();
    let check = "check 0006_leases_have_an_owner: 1 violations";
    fails_and_changes_nothing(&schema, &["migration 0010", check]).await;
    schema.end().await;
}

#[tokio::test]
async fn a_migration_that_takes_rows_without_saying_so_is_rolled_back() {
    let schema = behind(14.min(before_last())).await;
    sqlx::raw_sql(
        "create function lose() returns event_trigger language plpgsql as
             $$ begin if to_regclass('backups') is not null then
                      delete from user_roles where user_id = (select min(user_id) from user_roles);
                end if; end $$;
         create event trigger lose on ddl_command_end when tag in ('CREATE TABLE')
            execute function lose()",
    )
    .execute(&schema.pool)
    .await
    .unwrap();
    fails_and_changes_nothing(&schema, &["migration 0015", "user_roles has -", "does not declare"])
        .await;
    schema.end().await;
}

#[tokio::test]
async fn a_schema_that_lost_something_is_not_sound() {
    let schema = Schema::create(Contents::Schema).await;
    schema::verify(&schema.pool).await.expect("a fresh one is");
    sqlx::raw_sql(
        "alter table users drop constraint users_email_key;
         alter table users add constraint later check (id > 0) not valid;
         create table theirs (id int)",
    )
    .execute(&schema.pool)
    .await
    .unwrap();
    let error = schema::verify(&schema.pool).await.expect_err("it is not").to_string();
    assert!(error.contains("missing: constraint public.users users_email_key"), "{error}");
    assert!(error.contains("constraint later of users is not valid"), "{error}");
    assert!(!error.contains("theirs"), "{error}");
    schema.end().await;
}

#[tokio::test]
async fn the_expected_description_is_what_the_migrations_make() {
    let schema = Schema::create(Contents::Schema).await;
    let mut tx = schema.pool.begin().await.unwrap();
    let found = schema::describe(&mut tx).await.unwrap().join("\n");
    drop(tx);
    let expected = include_str!("../../migrations/expected_schema.txt").trim_end();
    let how = "registrar migrate verify --describe > migrations/expected_schema.txt";
    assert_same(expected, &found, how);
    assert_eq!(expected.lines().count(), found.lines().count(), "{how}");
    schema.end().await;
}

#[tokio::test]
async fn the_command_backs_up_first_and_refuses_where_it_cannot() {
    let keys = Keys::new();
    let app = TestApp::new().await;
    schema::down(&app.services.db, 10).await.unwrap();
    let mut config = app.config.clone();
    let run = async |config: &Config, arguments: &[&str]| {
        let mut process = Process::start(config, arguments);
        (process.ended().await.code(), process.log())
    };
    let (code, log) = run(&config, &["migrate", "up"]).await;
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("nothing was migrated") && log.contains("--no-backup"), "{log}");
    assert_eq!(app.number("select max(version) from _sqlx_migrations").await, 10);

    keys.use_in(&mut config);
    let (code, log) = run(&config, &["migrate", "up"]).await;
    assert_eq!(code, Some(0), "{log}");
    let catalog = registrar::backup::catalog::read(&app.services.store).await.unwrap();
    assert_eq!(catalog.entries.len(), 1);
    assert_eq!(catalog.entries[0].manifest.purpose.name(), "pre-migration");
    assert_eq!(catalog.entries[0].manifest.database.schema_version, Some(10));
    let (code, log) = run(&config, &["migrate", "verify"]).await;
    assert_eq!(code, Some(0), "{log}");

    let (code, log) = run(&config, &["migrate", "down", "--to", "10", "--no-backup"]).await;
    assert_eq!(code, Some(0), "{log}");
    let (code, log) = run(&config, &["migrate", "up", "--no-backup"]).await;
    assert_eq!(code, Some(0), "{log}");
    let catalog = registrar::backup::catalog::read(&app.services.store).await.unwrap();
    assert_eq!(catalog.entries.len(), 1, "no further one");
}
