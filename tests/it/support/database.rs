//! A database for each test, cloned from a template that is made once.
//!
//! The template's name holds a hash of everything that goes into it, so a changed migration makes
//! a new one. Tests are processes of their own, so what keeps two of them from making it at once
//! is an advisory lock on the server. It is built under another name and renamed when it is whole:
//! whoever finds the name finds a finished template.

use std::path::PathBuf;
use std::str::FromStr;

use registrar::schema;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqlSafeStr, SqlStr};
use url::Url;

/// Password of the report role. Roles belong to the whole cluster, so all tests share it.
pub const REPORT_PASSWORD: &str = "report-role-of-the-tests";
/// Students in the template with sample data.
pub const STUDENTS: u32 = 200;
/// The day that the sample data take for today.
pub const SAMPLE_TODAY: &str = "2026-06-30";
/// Databases of tests that were killed are removed after this long; longer than any test.
const LEFTOVER_SECS: i64 = 60 * 60;
/// Templates of other versions of the code are removed after this long without use.
const TEMPLATE_SECS: i64 = 7 * 24 * 60 * 60;

/// What a database holds at the start of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// The schema.
    Schema,
    /// The schema and the sample data of [`STUDENTS`] students.
    SampleData,
    /// Nothing at all.
    Nothing,
}

/// A database that is dropped with this value.
#[derive(Debug)]
pub struct TestDatabase {
    /// Its URL, as the role that owns everything.
    pub url: String,
    name: String,
    server: String,
}

/// SQL that a test put together. Production code has one gate for this, tests have this one.
#[expect(clippy::disallowed_methods, reason = "tests name their own databases and tables")]
pub fn sql(text: impl Into<String>) -> SqlStr {
    AssertSqlSafe(text.into()).into_sql_str()
}

/// The server that tests use.
pub fn server_url() -> String {
    #[expect(clippy::disallowed_methods, reason = "where the tests' server is, not a setting")]
    let url = std::env::var("DATABASE_URL");
    url.expect("DATABASE_URL must name a PostgreSQL: run `registrar postgres run -- cargo test`")
}

/// The URL of another database of the same server.
pub fn url_of(server: &str, database: &str) -> String {
    let mut url = Url::parse(server).expect("DATABASE_URL is a URL");
    url.set_path(database);
    url.into()
}

impl TestDatabase {
    /// Makes a database on the tests' server.
    pub async fn create(contents: Contents) -> Self {
        Self::create_on(&server_url(), contents).await
    }

    /// Makes a database on another server, for tests that restart theirs.
    pub async fn create_on(server_url: &str, contents: Contents) -> Self {
        let mut server =
            PgConnection::connect(server_url).await.expect("the tests' server answers");
        sweep(&mut server).await;
        let (now, unique): (i64, String) = sqlx::query_as(
            "select extract(epoch from now())::bigint, replace(gen_random_uuid()::text, '-', '')",
        )
        .fetch_one(&mut server)
        .await
        .unwrap();
        let name = format!("registrar_test_{now}_{}", &unique[..16]);
        let template = match contents {
            Contents::Nothing => "template0".to_owned(),
            contents => ensure_template(&mut server, server_url, contents).await,
        };
        // Copying files is several times faster than logging every block, for small templates.
        let create = format!("create database {name} template {template} strategy file_copy");
        server.execute(sqlx::raw_sql(sql(create))).await.unwrap();
        Self { url: url_of(server_url, &name), name, server: server_url.to_owned() }
    }

    /// Drops it, with everybody who is connected.
    pub async fn drop_now(&self) {
        // A server that is gone took its databases along.
        let Ok(mut server) = PgConnection::connect(&self.server).await else { return };
        let drop = format!("drop database if exists {} with (force)", self.name);
        server.execute(sqlx::raw_sql(sql(drop))).await.unwrap();
    }
}

/// The name of the template, made if it is missing.
async fn ensure_template(server: &mut PgConnection, url: &str, contents: Contents) -> String {
    let name = template_name(contents);
    lock(server, &name, "pg_advisory_lock").await;
    let exists: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(&name)
            .fetch_one(&mut *server)
            .await
            .unwrap();
    if !exists {
        let unfinished = format!("{name}_unfinished");
        let create = format!("drop database if exists {unfinished} with (force)");
        server.execute(sqlx::raw_sql(sql(create))).await.unwrap();
        server.execute(sqlx::raw_sql(sql(format!("create database {unfinished}")))).await.unwrap();
        fill(&url_of(url, &unfinished), contents).await;
        let rename = format!("alter database {unfinished} rename to {name}");
        server.execute(sqlx::raw_sql(sql(rename))).await.unwrap();
    }
    // When it was used last, for the sweep of another version of the code.
    let comment = format!(
        "do $$ begin execute format('comment on database {name} is %L',
             extract(epoch from now())::bigint); end $$"
    );
    server.execute(sqlx::raw_sql(sql(comment))).await.unwrap();
    lock(server, &name, "pg_advisory_unlock").await;
    name
}

async fn lock(server: &mut PgConnection, name: &str, function: &str) {
    let statement = format!("select {function}(hashtextextended($1, 0))");
    sqlx::query(sql(statement)).bind(name).execute(server).await.unwrap();
}

async fn fill(url: &str, contents: Contents) {
    let options = PgConnectOptions::from_str(url).unwrap();
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    schema::up(&pool, Some(&SecretString::from(REPORT_PASSWORD))).await.unwrap();
    if contents == Contents::SampleData {
        let mut connection = pool.acquire().await.unwrap();
        load_sample_data(&mut connection, STUDENTS).await;
    }
    pool.close().await;
}

/// Loads the sample data into an empty schema.
pub async fn load_sample_data(connection: &mut PgConnection, students: u32) {
    let mut tx = connection.begin().await.unwrap();
    sqlx::query(
        "select set_config('sample.students', $1, false), set_config('sample.today', $2, false)",
    )
    .bind(students.to_string())
    .bind(SAMPLE_TODAY)
    .execute(&mut *tx)
    .await
    .unwrap();
    for (file, text) in sample_data() {
        let loaded = tx.execute(sqlx::raw_sql(sql(text))).await;
        loaded.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    tx.commit().await.unwrap();
}

fn sample_data() -> Vec<(PathBuf, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

fn template_name(contents: Contents) -> String {
    let mut hash = Sha256::new();
    for migration in schema::MIGRATOR.iter() {
        hash.update(&*migration.checksum);
    }
    hash.update(schema::REPORT_ROLE_SQL);
    // The queue's tables are made by a library; its version and our indexes are told from these.
    hash.update(include_str!("../../../src/queue/mod.rs"));
    hash.update(include_str!("../../../Cargo.lock"));
    hash.update(REPORT_PASSWORD);
    let kind = match contents {
        Contents::Schema => "schema",
        Contents::SampleData => {
            hash.update(format!("{STUDENTS} {SAMPLE_TODAY}"));
            for (_, text) in sample_data() {
                hash.update(text);
            }
            "sample"
        }
        Contents::Nothing => unreachable!("it has no template"),
    };
    format!("registrar_template_{kind}_{}", &hex::encode(hash.finalize())[..16])
}

/// Drops what killed tests left, and templates of versions of the code that nobody tests.
async fn sweep(server: &mut PgConnection) {
    let leftovers: Vec<String> = sqlx::query_scalar(
        "select datname::text
           from pg_database
          where (datname ~ '^registrar_test_[0-9]+_'
                 and split_part(datname, '_', 3)::bigint < extract(epoch from now()) - $1)
             or (datname ~ '^registrar_template_'
                 and shobj_description(oid, 'pg_database') ~ '^[0-9]+$'
                 and shobj_description(oid, 'pg_database')::bigint
                     < extract(epoch from now()) - $2)",
    )
    .bind(LEFTOVER_SECS)
    .bind(TEMPLATE_SECS)
    .fetch_all(&mut *server)
    .await
    .unwrap();
    for name in leftovers {
        // Another test may sweep at the same moment, and be faster.
        let drop = format!("drop database if exists {name} with (force)");
        let _swept = server.execute(sqlx::raw_sql(sql(drop))).await;
    }
}
