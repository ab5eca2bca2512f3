//! A database, policies as text, and runs of the engine without the service around it.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use registrar::policy::Policy;
use registrar::retention::catalog::Catalog;
use registrar::retention::chunk::Attempt;
use registrar::retention::engine::{self, Outcome};
use registrar::retention::error::RetentionError;
use registrar::retention::plan::Preview;
use registrar::retention::run::{self, Claimed, NewRun, Origin, RunEnd, RunTable};
use registrar::store::Store;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::support::app::config;
use crate::support::database::{Contents, TestDatabase, sql};

pub struct World {
    pub database: TestDatabase,
    pub db: PgPool,
    pub store: Store,
    _folder: TempDir,
}

impl World {
    /// The shipped schema, with these statements run on top.
    pub async fn new(contents: Contents, setup: &str) -> Self {
        Self::in_database(TestDatabase::create(contents).await, setup).await
    }

    /// The same on another server.
    pub async fn on(server_url: &str, contents: Contents, setup: &str) -> Self {
        Self::in_database(TestDatabase::create_on(server_url, contents).await, setup).await
    }

    async fn in_database(database: TestDatabase, setup: &str) -> Self {
        let db = PgPoolOptions::new().max_connections(6).connect(&database.url).await.unwrap();
        let folder = TempDir::new().unwrap();
        let mut config = config();
        config.store.url = folder.path().to_str().expect("a path in UTF-8").to_owned();
        let store = Store::open(&config.store).unwrap();
        let world = Self { database, db, store, _folder: folder };
        world.execute(setup).await;
        world
    }

    pub async fn execute(&self, statements: &str) {
        sqlx::raw_sql(sql(statements)).execute(&self.db).await.unwrap();
    }

    pub async fn number(&self, query: &str) -> i64 {
        sqlx::query_scalar(sql(query)).fetch_one(&self.db).await.unwrap()
    }

    pub async fn text(&self, query: &str) -> String {
        let found: Option<String> =
            sqlx::query_scalar(sql(query)).fetch_one(&self.db).await.unwrap();
        found.unwrap_or_default()
    }

    pub async fn catalog(&self) -> Catalog {
        let mut connection = self.db.acquire().await.unwrap();
        Catalog::read(&mut connection).await.unwrap()
    }

    pub async fn preview(&self, policy: &Policy) -> Preview {
        self.preview_at(policy, None).await.expect("the preview works")
    }

    pub async fn preview_at(
        &self,
        policy: &Policy,
        as_of: Option<DateTime<Utc>>,
    ) -> Result<Preview, RetentionError> {
        let mut tx = self.db.begin().await.unwrap();
        engine::preview_policy(&mut tx, None, policy, &Arc::default(), as_of).await
    }

    /// Stores a run and claims it.
    pub async fn start(&self, policy: &Policy, as_of: Option<DateTime<Utc>>) -> i64 {
        let new = NewRun {
            policy: policy.name.as_str(),
            kind: policy.kind.name(),
            policy_digest: &policy.digest(),
            as_of,
            origin: Origin::Operator,
            preview_digest: None,
            needs_approval: false,
        };
        let mut connection = self.db.acquire().await.unwrap();
        run::insert(&mut connection, &new).await.unwrap().expect("no other run")
    }

    pub async fn claim(&self, id: i64) -> (Claimed, Attempt) {
        let claimed = run::claim(&self.db, id, "test", 60).await.unwrap().expect("it waits");
        let attempt = Attempt {
            run_id: id,
            number: claimed.attempt,
            lease_secs: 60,
            stop: CancellationToken::new(),
        };
        (claimed, attempt)
    }

    pub async fn work(&self, policy: &Policy, id: i64) -> Result<Outcome, RetentionError> {
        let (claimed, attempt) = self.claim(id).await;
        let (store, classification) = (&self.store, Arc::default());
        engine::run(&self.db, store, None, policy, &classification, &claimed, &attempt).await
    }

    /// One run from start to end.
    pub async fn run(&self, policy: &Policy) -> Vec<RunTable> {
        self.run_at(policy, None).await
    }

    pub async fn run_at(&self, policy: &Policy, as_of: Option<DateTime<Utc>>) -> Vec<RunTable> {
        let id = self.start(policy, as_of).await;
        let outcome = self.work(policy, id).await.expect("the run works");
        assert_eq!(outcome, Outcome::Completed);
        let mut connection = self.db.acquire().await.unwrap();
        assert!(run::settle(&mut connection, id, 1, &RunEnd::Completed).await.unwrap());
        run::tables_of(&mut connection, id).await.unwrap()
    }

    pub async fn end(self) {
        self.db.close().await;
        self.database.drop_now().await;
    }
}

/// A policy from the part of its file that matters.
pub fn policy(kind: &str, rest: &str) -> Policy {
    let text = format!(
        "kind = \"{kind}\"\ndescription = \"test\"\nowner = \"tests\"\nenabled = true\n{rest}"
    );
    Policy::from_toml("test-policy".parse().unwrap(), &text).expect("a policy")
}
