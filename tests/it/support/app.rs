//! The service as a test sees it: submit, run, wait, read.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use registrar::config::{self, Config};
use registrar::db::audit::Actor;
use registrar::db::definitions::{self, NewDefinition};
use registrar::db::executions::{self, Execution, Status};
use registrar::db::{self};
use registrar::report::Presentation;
use registrar::report::definition::Definition;
use registrar::report::manifest::Manifest;
use registrar::service::executions::{Submission, Submitted};
use registrar::service::tokens::{CreatedToken, TokenOrder};
use registrar::service::{Caller, ServiceError, Services, report_database};
use registrar::store::Store;
use registrar::writer::Format;
use secrecy::SecretString;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::database::{Contents, REPORT_PASSWORD, TestDatabase, sql};
use super::eventually;
use super::http::Http;
use super::panicking_store::panicking_store;
use super::process::{Disk, Process};
use super::proxy::PostgresProxy;
use super::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use super::worker::Worker;

/// How long a wait for a state may take, unless the test says otherwise. Long, because machines
/// that run tests are busy; a test that passes does not wait.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// What webhooks of tests may call.
pub const LOOPBACK: &str = "127.0.0.0/8";

/// Which store a test uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreKind {
    Folder,
    S3,
}

/// What a [`TestApp`] will be; awaiting it makes it.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    store: StoreKind,
    server_url: String,
    shared_store: Option<config::StoreConfig>,
    config: Config,
}

/// Registrar with a database and a store of its own.
///
/// When it is dropped, what it started ends and its database goes. It then fails the test if
/// executions are left unfinished, unless [`TestApp::leave_unfinished`] was called.
#[derive(Debug)]
pub struct TestApp {
    /// Use cases, over a pool of the test's.
    pub services: Services,
    /// Settings of everything that the app starts.
    pub config: Config,
    /// The S3 server, where the test asked for one.
    pub s3: Option<S3Server>,
    database: TestDatabase,
    /// Kept for as long as the store is used.
    _folder: TempDir,
    leaves_unfinished: bool,
}

/// The settings of tests: the defaults, but with short times.
pub fn config() -> Config {
    let mut config: Config = toml::from_str(config::DEFAULTS).expect("the defaults are settings");
    config.database.report_password = Some(SecretString::from(REPORT_PASSWORD));
    config.http.listen = "127.0.0.1:0".parse().unwrap();
    config.worker.lease_secs = NonZeroU32::new(10).unwrap();
    config.worker.reap_interval_ms = NonZeroU64::new(200).unwrap();
    config.worker.shutdown_grace_secs = 5;
    config.worker.retry_base_ms = NonZeroU32::new(200).unwrap();
    config.store.retry_secs = NonZeroU64::new(2).unwrap();
    config.report.templates_dir = templates_dir();
    config.lifecycle.jobs_dir = jobs_dir();
    config.webhook.allow_http = true;
    config.webhook.allow_networks = vec![LOOPBACK.parse().unwrap()];
    config.erasure.keys.insert("k1".to_owned(), SecretString::from("2a".repeat(32)));
    config.erasure.retry_secs = NonZeroU32::new(1).unwrap();
    config
}

/// The templates that are shipped.
pub fn templates_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/report-templates"))
}

/// The policies that are shipped.
pub fn jobs_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs"))
}

/// Services on the runtime that calls: pools and clients belong to the runtime that made them.
pub(super) fn services(config: &Config) -> Services {
    Services {
        db: db::connect_lazily(&config.database).unwrap(),
        reports: report_database(&config.database).unwrap(),
        store: Store::open(&config.store).unwrap(),
        config: Arc::new(config.clone()),
        passwords: Default::default(),
        days_seen: Default::default(),
    }
}

impl IntoFuture for Builder {
    type Output = TestApp;
    type IntoFuture = Pin<Box<dyn Future<Output = TestApp> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.build())
    }
}

impl Builder {
    /// On a real S3 server instead of a folder.
    pub fn on_s3(mut self) -> Self {
        self.store = StoreKind::S3;
        self
    }

    /// On another PostgreSQL server than that of all tests.
    pub fn on_server(mut self, url: &str) -> Self {
        url.clone_into(&mut self.server_url);
        self
    }

    /// With the settings that are shipped where tests have shorter times.
    pub fn with_default_times(mut self) -> Self {
        let defaults: Config = toml::from_str(config::DEFAULTS).unwrap();
        self.config.worker = defaults.worker;
        self.config.store.retry_secs = defaults.store.retry_secs;
        self
    }

    /// On the store of another app: a folder.
    pub fn with_store(mut self, store: config::StoreConfig) -> Self {
        self.shared_store = Some(store);
        self
    }

    /// With other settings.
    pub fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    async fn build(self) -> TestApp {
        let Self { store, server_url, shared_store, mut config } = self;
        let database = TestDatabase::create_on(&server_url, Contents::SampleData).await;
        config.database.url = Some(SecretString::from(database.url.as_str()));
        let folder = TempDir::new().unwrap();
        let s3 = match store {
            StoreKind::Folder => {
                config.store.url = folder.path().to_str().expect("a path in UTF-8").to_owned();
                None
            }
            StoreKind::S3 => {
                let server = S3Server::start();
                use_s3(&mut config, &server);
                Some(server)
            }
        };
        if let Some(shared) = shared_store {
            config.store = shared;
        }
        TestApp {
            services: services(&config),
            config,
            s3,
            database,
            _folder: folder,
            leaves_unfinished: false,
        }
    }
}

/// Points the settings to a server.
pub fn use_s3(config: &mut Config, server: &S3Server) {
    use_s3_at(config, server.endpoint());
}

/// Points the settings to a server at an address.
pub fn use_s3_at(config: &mut Config, endpoint: String) {
    config.store.url = format!("s3://{BUCKET}/registrar");
    config.store.endpoint = Some(endpoint);
    config.store.region = Some("us-east-1".to_owned());
    config.store.access_key_id = Some(ACCESS_KEY.to_owned());
    config.store.secret_access_key = Some(SecretString::from(SECRET_KEY));
    config.store.allow_http = true;
}

impl TestApp {
    /// An app with sample data, a folder as store and short times. Await what it returns.
    #[expect(clippy::new_ret_no_self, reason = "`TestApp::new().on_s3().await` reads well")]
    pub fn new() -> Builder {
        Builder {
            store: StoreKind::Folder,
            server_url: super::database::server_url(),
            shared_store: None,
            config: config(),
        }
    }

    /// The URL of its database.
    pub fn database_url(&self) -> &str {
        &self.database.url
    }

    /// The test ends with executions unfinished, and means to.
    pub fn leave_unfinished(&mut self) {
        self.leaves_unfinished = true;
    }

    /// Stores a definition with nothing but SQL, and returns its version.
    pub async fn define(&self, slug: &str, sql: &str) -> i32 {
        self.define_with(slug, "", sql).await
    }

    /// Stores a definition; `toml` is what it says beside its title.
    pub async fn define_with(&self, slug: &str, toml: &str, sql: &str) -> i32 {
        let toml = format!("title = \"{slug}\"\n{toml}");
        let definition =
            Definition::from_template(slug.parse().unwrap(), &toml, sql).expect("a definition");
        let new = NewDefinition {
            slug,
            name: definition.title(),
            description: definition.description(),
            query: definition.sql(),
            parameters: &definition.parameters_json(),
            spec: &definition.spec(),
            content_sha256: &definition.content_digest(),
        };
        let mut tx = self.services.db.begin().await.unwrap();
        let stored = definitions::upsert(&mut tx, &new, definitions::Source::Template).await;
        let (_, version, _) = stored.unwrap().expect("templates take any slug");
        tx.commit().await.unwrap();
        version
    }

    /// Brings the shipped templates into the database.
    pub async fn sync_templates(&self) {
        self.services.sync_templates(&templates_dir()).await.unwrap();
    }

    /// A new token of an account.
    pub async fn token(&self, username: &str) -> String {
        self.limited_token(username, None, None).await.token
    }

    /// A new token of an account, with scopes and an end.
    pub async fn limited_token(
        &self,
        username: &str,
        scopes: Option<&[&str]>,
        expires_after_days: Option<i32>,
    ) -> CreatedToken {
        let scopes = scopes.map(|scopes| scopes.iter().map(|&scope| scope.to_owned()).collect());
        let (owner, name) = (Some(username.to_owned()), "test".to_owned());
        let order = TokenOrder { owner, name, scopes, expires_after_days };
        self.services.create_token(&self.operator(), order).await.unwrap()
    }

    /// An account as the caller of use cases.
    pub async fn caller(&self, username: &str) -> Caller {
        let token = self.token(username).await;
        let trace_id = format!("trace-of-{username}");
        self.services.authenticate(&token, Actor::default(), trace_id).await.unwrap()
    }

    /// The operator at the command line.
    pub fn operator(&self) -> Caller {
        Caller::operator("trace-of-the-operator".to_owned())
    }

    /// Submits a report as CSV and returns the execution's number.
    pub async fn submit(&self, slug: &str, parameters: Value) -> i64 {
        self.submit_as(&self.operator(), slug, &submission(parameters, Format::Csv))
            .await
            .expect("the submit is accepted")
            .execution
            .id
    }

    /// Submits a report.
    pub async fn submit_as(
        &self,
        caller: &Caller,
        slug: &str,
        submission: &Submission,
    ) -> Result<Submitted, ServiceError> {
        self.services.submit(caller, slug, submission).await
    }

    /// Serves the API on a free port.
    pub async fn http(&self) -> Http {
        Http::start(self.services.clone()).await
    }

    /// Starts a worker in this process and waits until it is on the list of workers.
    pub async fn start_worker(&self) -> Worker {
        self.start_worker_with(self.config.clone()).await
    }

    /// Starts a worker with settings of its own. One at a time.
    pub async fn start_worker_with(&self, config: Config) -> Worker {
        let known = self.workers().await;
        let mut worker = Worker::spawn(config);
        worker.id = self.new_worker(&known).await;
        worker
    }

    /// Starts a worker whose store panics when it is written to.
    pub async fn start_worker_on_panicking_store(&self) -> Worker {
        let known = self.workers().await;
        let mut worker = Worker::spawn_with(self.config.clone(), |mut services| {
            services.store = panicking_store(services.store.part_bytes());
            services
        });
        worker.id = self.new_worker(&known).await;
        worker
    }

    /// What the parts of a worker need, for tests that call them one by one.
    pub fn worker_context(&self, worker_id: &str) -> registrar::worker::Context {
        registrar::worker::Context {
            services: self.services.clone(),
            worker_id: Arc::from(worker_id),
            abort: CancellationToken::new(),
        }
    }

    /// A proxy in front of the database server.
    pub fn proxy(&self) -> PostgresProxy {
        PostgresProxy::start(&self.database.url)
    }

    /// Starts the real binary as a worker and waits until it is on the list of workers.
    pub async fn start_worker_process(&self) -> Process {
        self.start_process(&["serve", "--only", "worker"]).await
    }

    /// As [`TestApp::start_worker_process`], on a disk of this kind.
    pub async fn start_worker_process_on(&self, disk: Disk) -> Process {
        let known = self.workers().await;
        let process = Process::start_on(disk, &self.config, &["serve", "--only", "worker"]);
        self.new_worker(&known).await;
        process
    }

    /// Starts the real binary with these arguments, which make it a worker.
    pub async fn start_process(&self, arguments: &[&str]) -> Process {
        let known = self.workers().await;
        let process = Process::start(&self.config, arguments);
        self.new_worker(&known).await;
        process
    }

    async fn workers(&self) -> Vec<String> {
        sqlx::query_scalar("select id from workers").fetch_all(&self.services.db).await.unwrap()
    }

    async fn new_worker(&self, known: &[String]) -> String {
        eventually("a worker to be on the list", WAIT_LIMIT, async || {
            self.workers().await.into_iter().find(|id| !known.contains(id))
        })
        .await
    }

    /// An execution as it stands.
    pub async fn execution(&self, id: i64) -> Execution {
        let mut connection = self.services.db.acquire().await.unwrap();
        executions::find(&mut connection, id).await.unwrap().expect("the execution exists")
    }

    /// Waits until an execution is in a state.
    ///
    /// # Panics
    /// When it ends in another one, or does not get there.
    pub async fn wait_until(&self, id: i64, status: Status) -> Execution {
        self.wait_until_within(WAIT_LIMIT, id, status).await
    }

    /// As [`TestApp::wait_until`], with a limit of the test's.
    pub async fn wait_until_within(&self, limit: Duration, id: i64, status: Status) -> Execution {
        eventually(&format!("execution {id} to be {status}"), limit, async || {
            let execution = self.execution(id).await;
            if execution.status == status {
                return Some(execution);
            }
            assert!(!execution.status.is_final(), "{status} was expected: {execution:#?}");
            None
        })
        .await
    }

    /// Waits until something is so.
    pub async fn wait_for(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        eventually(what, WAIT_LIMIT, async || is_so().await.then_some(())).await;
    }

    /// Submits a report, runs it to its end with a worker of its own and returns it.
    pub async fn run(&self, slug: &str, parameters: Value) -> Execution {
        let id = self.submit(slug, parameters).await;
        let worker = self.start_worker().await;
        let execution = self.wait_until_ended(id).await;
        worker.stop().await;
        execution
    }

    /// Waits until an execution has ended, however.
    pub async fn wait_until_ended(&self, id: i64) -> Execution {
        eventually(&format!("execution {id} to end"), WAIT_LIMIT, async || {
            let execution = self.execution(id).await;
            execution.status.is_final().then_some(execution)
        })
        .await
    }

    /// Downloads a result and checks that it is what row and manifest say.
    pub async fn result(&self, id: i64) -> Vec<u8> {
        let file = self.services.result(&self.operator(), id).await.expect("there is a result");
        let reading = self.services.read_result(&file, None).await.unwrap();
        let mut bytes = Vec::new();
        let mut stream = reading.into_stream();
        while let Some(chunk) = stream.try_next().await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        let execution = self.execution(id).await;
        let manifest = self.manifest(id).await;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        assert_eq!(manifest.sha256, sha256, "the manifest's SHA-256 is that of the file");
        assert_eq!(execution.sha256.as_deref(), Some(sha256.as_str()));
        assert_eq!(manifest.size_bytes, bytes.len() as u64);
        assert_eq!(execution.size_bytes, Some(bytes.len() as i64));
        assert_eq!(execution.row_count, Some(manifest.row_count as i64));
        assert_eq!(execution.truncated, manifest.truncated.is_some());
        assert_eq!((manifest.execution_id, manifest.attempt), (id, execution.attempt));
        bytes
    }

    /// A CSV result as text.
    pub async fn csv(&self, id: i64) -> String {
        String::from_utf8(self.result(id).await).expect("CSV is UTF-8")
    }

    /// The manifest of a result.
    pub async fn manifest(&self, id: i64) -> Manifest {
        let bytes = self.services.manifest(&self.operator(), id).await.expect("there is one");
        serde_json::from_slice(&bytes).expect("a manifest")
    }

    /// Everything in the store.
    pub async fn stored(&self) -> Vec<String> {
        let objects = self.services.store.list("").await.unwrap();
        let mut paths: Vec<_> = objects.into_iter().map(|o| o.location.to_string()).collect();
        paths.sort();
        paths
    }

    /// What was recorded about an execution, in order.
    pub async fn audit(&self, id: i64) -> Vec<String> {
        sqlx::query_scalar(
            "select action
               from audit_logs
              where entity_type = 'report_executions' and entity_id = $1
              order by id",
        )
        .bind(id)
        .fetch_all(&self.services.db)
        .await
        .unwrap()
    }

    /// How many server processes of the report role work in this database.
    pub async fn report_backends(&self) -> i64 {
        sqlx::query_scalar(
            "select count(*)
               from pg_stat_activity
              where datname = current_database() and usename = 'registrar_report'",
        )
        .fetch_one(&self.services.db)
        .await
        .unwrap()
    }

    /// Waits until the query of an execution runs on the server.
    pub async fn wait_until_querying(&self, id: i64) {
        let name = format!("registrar execution {id} attempt %");
        eventually(&format!("the query of execution {id}"), WAIT_LIMIT, async || {
            let running: bool = sqlx::query_scalar(
                "select exists (select
                                  from pg_stat_activity
                                 where datname = current_database() and state = 'active'
                                   and application_name like $1 and query like '%as report%')",
            )
            .bind(&name)
            .fetch_one(&self.services.db)
            .await
            .unwrap();
            running.then_some(())
        })
        .await;
    }

    /// Runs a statement as the owner of the database.
    pub async fn execute(&self, statement: &str) -> u64 {
        sqlx::query(sql(statement)).execute(&self.services.db).await.unwrap().rows_affected()
    }

    /// Asks for one number as the owner of the database.
    pub async fn number(&self, query: &str) -> i64 {
        sqlx::query_scalar(sql(query)).fetch_one(&self.services.db).await.unwrap()
    }
}

/// What a caller submits, with everything but parameters and format as usual.
pub fn submission(parameters: Value, format: Format) -> Submission {
    let Value::Object(parameters) = parameters else { panic!("parameters are an object") };
    Submission {
        parameters,
        format,
        presentation: Presentation::default(),
        idempotency_key: None,
        reuse: None,
        as_of: None,
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        let (database, unfinished_fail) = (&self.database, !self.leaves_unfinished);
        // A drop cannot wait in the test's runtime, so it has one of its own.
        let unfinished = std::thread::scope(|scope| {
            let ending = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(end(database))
            });
            ending.join()
        });
        if std::thread::panicking() {
            return; // the test's own failure says more
        }
        let unfinished = unfinished.expect("the test's database can be looked at and dropped");
        if unfinished_fail {
            assert!(unfinished.is_empty(), "the test leaves executions behind: {unfinished:?}");
        }
    }
}

/// Drops the database and returns what was unfinished in it.
async fn end(database: &TestDatabase) -> Vec<(i64, String)> {
    let unfinished = match PgConnection::connect(&database.url).await {
        Ok(mut connection) => sqlx::query_as(
            "select id, status
               from report_executions
              where status in ('pending', 'processing', 'cancelling')
              order by id",
        )
        .fetch_all(&mut connection)
        .await
        // Tests of migrations leave databases without the table.
        .unwrap_or_default(),
        Err(_) => Vec::new(), // the server was stopped by the test
    };
    database.drop_now().await;
    unfinished
}
