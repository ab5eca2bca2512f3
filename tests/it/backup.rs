//! Backups: made, proven, damaged, restored, pruned, and cut off anywhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use registrar::backup::manifest::Purpose;
use registrar::backup::seal::{Encryption, new_key};
use registrar::backup::{
    BackupError, BackupId, Database, Manifest, RestoreOptions, Scratch, Verification, catalog,
    restore, verify,
};
use registrar::config::{Config, KeepConfig};
use registrar::db::audit::Actor;
use registrar::retention::hold::Placement;
use registrar::service::ServiceError;
use registrar::service::backups::{VerifyOptions, create_options, identities};
use registrar::store::Store;
use rustix::process::Signal;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::support::TestApp;
use crate::support::app::Builder;
use crate::support::database::{Contents, TestDatabase, server_url, sql};
use crate::support::process::Process;
use crate::support::s3::{Fault, Operation};

/// A key pair on disk, and settings that use it.
#[derive(Debug)]
pub struct Keys {
    _folder: TempDir,
    file: PathBuf,
    recipient: String,
}

impl Keys {
    /// Makes them.
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("backup.key");
        let (text, recipient) = new_key();
        std::fs::write(&file, text.expose_secret()).unwrap();
        Self { _folder: folder, file, recipient }
    }

    /// Backups are for them, and are proven on the tests' server.
    pub fn use_in(&self, config: &mut Config) {
        config.backup.encrypt_to = vec![self.recipient.clone()];
        config.backup.identity_file = Some(self.file.clone());
        // A scratch database on the tests' server: starting one costs a second.
        config.backup.verify_server_url = Some(SecretString::from(server_url()));
    }
}

fn app_with(keys: &Keys) -> Builder {
    TestApp::new().with(|config| keys.use_in(config))
}

/// Prune keeps the last backup of one day.
fn keeping_one(keys: &Keys) -> Builder {
    app_with(keys).with(|config| {
        config.backup.keep =
            KeepConfig { daily: 1, weekly: 0, monthly: 0, yearly: 0, ..config.backup.keep };
    })
}

async fn make(app: &TestApp) -> Manifest {
    try_make(app).await.expect("a backup is made")
}

async fn try_make(app: &TestApp) -> Result<Manifest, ServiceError> {
    let options = create_options(&app.config.backup, Purpose::Manual, false, None).unwrap();
    app.services.create_backup(&Actor::system(), &options).await
}

async fn prove(app: &TestApp, id: &BackupId) -> Result<Verification, ServiceError> {
    app.services.verify_backup(&Actor::system(), id, VerifyOptions::default()).await
}

async fn proven_good(app: &TestApp, id: &BackupId) {
    let outcome = prove(app, id).await.expect("it can be tried");
    assert!(outcome.good, "{:?}", outcome.problem);
}

fn store_folder(app: &TestApp) -> &Path {
    Path::new(&app.config.store.url)
}

fn dump_file(app: &TestApp, manifest: &Manifest) -> PathBuf {
    let folder = store_folder(app).join("backups").join(manifest.id.as_str());
    folder.join(&manifest.stored.object)
}

fn backup_error(error: ServiceError) -> BackupError {
    match error {
        ServiceError::Backup(error) => *error,
        other => panic!("{other:?}"),
    }
}

/// An empty database, dropped at the end.
struct Empty(TestDatabase);

impl Empty {
    async fn new() -> Self {
        Self(TestDatabase::create(Contents::Nothing).await)
    }

    fn target(&self) -> Database {
        Database::new("--to", &SecretString::from(self.0.url.as_str())).unwrap()
    }

    async fn number(&self, query: &str) -> i64 {
        let mut connection = PgConnection::connect(&self.0.url).await.unwrap();
        sqlx::query_scalar(sql(query)).fetch_one(&mut connection).await.unwrap()
    }

    async fn tables(&self) -> i64 {
        self.number(
            "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
              where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'",
        )
        .await
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            let dropping = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(self.0.drop_now());
            });
            let _dropped = dropping.join();
        });
    }
}

fn restoring(app: &TestApp) -> RestoreOptions {
    RestoreOptions {
        identities: identities(&app.config.backup, None).unwrap(),
        ..RestoreOptions::default()
    }
}

#[tokio::test]
async fn a_backup_is_encrypted_listed_and_proven_in_a_folder_and_on_s3() {
    let keys = Keys::new();
    for app in [app_with(&keys).await, app_with(&keys).on_s3().await] {
        let manifest = make(&app).await;
        assert_eq!(manifest.stored.encrypted_to, std::slice::from_ref(&keys.recipient));
        let users = manifest.tables.iter().find(|table| table.name == "users").unwrap();
        assert_eq!(users.rows, app.number("select count(*) from users").await);
        assert_eq!(
            manifest.database.schema_version,
            Some(app.number("select max(version) from _sqlx_migrations").await)
        );
        let listing = app.services.list_backups(false).await.unwrap();
        assert_eq!(listing.backups.len(), 1);
        assert_eq!(listing.backups[0].backup.verified_good, None);

        proven_good(&app, &manifest.id).await;

        let listed = &app.services.list_backups(true).await.unwrap().backups[0];
        assert_eq!(listed.backup.verified_good, Some(true));
        assert_eq!(listed.kept_because[..2], ["newest", "last verified"]);
        let stored = app.stored().await;
        assert!(stored.iter().all(|path| !path.contains("/uses/")), "{stored:?}");
        let actions =
            "select count(*) from audit_logs where action in ('backup.created', 'backup.verified')";
        assert_eq!(app.number(actions).await, 2);
    }
}

#[tokio::test]
async fn a_backup_is_proven_on_a_private_server() {
    let keys = Keys::new();
    let app = app_with(&keys).with(|config| config.backup.verify_server_url = None).await;
    let manifest = make(&app).await;
    proven_good(&app, &manifest.id).await;
}

#[tokio::test]
async fn the_list_is_rebuilt_from_the_store_alone() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let (one, other) = (make(&app).await, make(&app).await);
    proven_good(&app, &one.id).await;
    app.execute("delete from backups").await;
    app.execute(
        "insert into backups (id, taken_at, finished_at, purpose, database_name, server_version,
                              size_bytes, dump_bytes, row_count, duration_ms, encrypted)
         values ('20200101T000000Z-00000000', now(), now(), 'manual', 'x', '15', 1, 1, 1, 1, true)",
    )
    .await;
    let listing = app.services.list_backups(true).await.unwrap();
    let found: Vec<_> = listing.backups.iter().map(|l| l.backup.id.as_str()).collect();
    assert_eq!(found, [other.id.as_str(), one.id.as_str()]);
    assert_eq!(listing.backups[1].backup.verified_good, Some(true));
}

#[tokio::test]
async fn without_a_recipient_nothing_is_stored_unless_told() {
    let app = TestApp::new().await;
    let refused = create_options(&app.config.backup, Purpose::Manual, false, None).unwrap_err();
    assert!(matches!(refused, BackupError::NotEncrypted), "{refused}");
    assert!(refused.is_refusal());
    let options = create_options(&app.config.backup, Purpose::Manual, true, None).unwrap();
    assert!(matches!(options.encryption, Encryption::Plain));
    let manifest = app.services.create_backup(&Actor::system(), &options).await.unwrap();
    assert!(manifest.stored.object.ends_with(".dump.zst"), "{}", manifest.stored.object);
}

#[tokio::test]
async fn damage_anywhere_is_found_and_told_apart_from_a_wrong_key() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let manifest = make(&app).await;
    let file = dump_file(&app, &manifest);
    let whole = std::fs::read(&file).unwrap();
    let server = Database::new("the server", &SecretString::from(server_url())).unwrap();
    let scratch = Scratch::Server(Box::new(server));
    let opened = identities(&app.config.backup, None).unwrap();
    let now = manifest.finished_at;
    let attempt = || verify(&app.services.store, &manifest.id, &opened, &scratch, now);
    let last = whole.len() - 1;
    for at in [0, 30, 120, 200, whole.len() / 3, whole.len() / 2, last - 20, last] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        std::fs::write(&file, &flipped).unwrap();
        let outcome = attempt().await.expect("it is an outcome");
        assert!(!outcome.good, "byte {at} of {last}");
        assert!(outcome.problem.unwrap().contains("damaged"), "byte {at}");
    }
    for length in [0, 100, whole.len() / 2, last] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let outcome = attempt().await.expect("it is an outcome");
        assert!(outcome.problem.unwrap().contains("bytes instead of"), "cut at {length}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(attempt().await.unwrap().problem.unwrap().contains("is gone"));
    std::fs::write(&file, &whole).unwrap();

    let others = Keys::new();
    let wrong =
        VerifyOptions { identity_file: Some(others.file.clone()), ..VerifyOptions::default() };
    let error =
        app.services.verify_backup(&Actor::system(), &manifest.id, wrong).await.unwrap_err();
    assert!(matches!(backup_error(error), BackupError::WrongKey(to) if to == keys.recipient));
    proven_good(&app, &manifest.id).await;
}

#[tokio::test]
async fn other_rows_than_those_of_the_snapshot_are_found() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let mut manifest = make(&app).await;
    let users = manifest.tables.iter_mut().find(|table| table.name == "users").unwrap();
    users.checksum = "1".to_owned();
    let path = store_folder(&app).join("backups").join(manifest.id.as_str()).join("manifest.json");
    std::fs::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    let outcome = prove(&app, &manifest.id).await.unwrap();
    assert_eq!(outcome.problem.as_deref(), Some("public.users has other values"));
}

#[tokio::test]
async fn a_failing_store_leaves_nothing_that_looks_like_a_backup() {
    let keys = Keys::new();
    let app = app_with(&keys).on_s3().await;
    let s3 = app.s3.as_ref().unwrap();
    for nth in 1..=3 {
        s3.fail(Fault::Refuse, Operation::Put, nth);
        try_make(&app).await.expect_err("the store refuses");
        assert_eq!(app.stored().await, [""; 0], "write {nth}");
    }
    assert!(catalog::read(&app.services.store).await.unwrap().entries.is_empty());
    make(&app).await;
}

#[tokio::test]
async fn a_failing_dump_leaves_nothing_and_says_why() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let error = with_role(&app, "app_reader").await;
    assert!(error.to_string().contains("42501"), "{error}");
    assert_eq!(app.stored().await, [""; 0]);
}

/// Tries a backup as a role that may not read everything.
async fn with_role(app: &TestApp, role: &str) -> BackupError {
    let role = format!("{role}_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    app.execute(&format!("create role {role} login password 'x'")).await;
    let mut url = url::Url::parse(app.database_url()).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("x")).unwrap();
    let database = Database::new("database.url", &SecretString::from(url.as_str())).unwrap();
    let options = create_options(&app.config.backup, Purpose::Manual, true, None).unwrap();
    let made = registrar::backup::create(&database, &app.services.store, &options).await;
    app.execute(&format!("drop role {role}")).await;
    made.expect_err("it may not read")
}

#[tokio::test]
async fn a_restored_database_is_the_snapshot_whatever_was_written_meanwhile() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    app.execute("create table busy (id bigserial primary key, filler text, at timestamptz)").await;
    app.execute(
        "insert into busy (filler, at)
         select md5(g::text), now() from generate_series(1, 200000) g",
    )
    .await;
    let pool = app.services.db.clone();
    let writing = tokio::spawn(async move {
        // 200 a second: each tick inserts, changes and deletes.
        let mut ticks = tokio::time::interval(Duration::from_millis(15));
        let mut written: i64 = 0;
        loop {
            ticks.tick().await;
            sqlx::raw_sql(
                "insert into busy (filler, at) values ('new', now());
                 update busy set filler = filler || 'x' where id = 1 + (random() * 199999)::int;
                 delete from busy where id = 1 + (random() * 199999)::int",
            )
            .execute(&pool)
            .await
            .unwrap();
            written += 3;
            if written > 1_000_000 {
                return;
            }
        }
    });
    app.wait_for("the first writes", async || {
        app.number("select count(*) from busy where filler = 'new'").await > 20
    })
    .await;
    let manifest = make(&app).await;
    writing.abort();
    let _ended = writing.await;
    let target = Empty::new().await;
    let restored = restore(&app.services.store, &manifest.id, &target.target(), &restoring(&app))
        .await
        .unwrap();
    assert_eq!(restored.tables, manifest.tables.len());
    let busy = manifest.tables.iter().find(|table| table.name == "busy").unwrap();
    assert_eq!(target.number("select count(*) from busy").await, busy.rows);
    assert_ne!(app.number("select count(*) from busy where filler = 'new'").await, 0);
}

#[tokio::test]
async fn restore_refuses_a_database_with_anything_in_it() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let manifest = make(&app).await;
    let target = Empty::new().await;
    let attempt = || restore_to(&app, &manifest.id, &target);
    let mut connection = PgConnection::connect(&target.0.url).await.unwrap();
    for (make, remove, found) in [
        ("create table theirs (a int)", "drop table theirs", "public.theirs"),
        ("create schema theirs", "drop schema theirs", "the schema theirs"),
        (
            "create function theirs() returns int language sql as 'select 1'",
            "drop function theirs",
            "the function public.theirs",
        ),
    ] {
        sqlx::query(make).execute(&mut connection).await.unwrap();
        let error = attempt().await.unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains(found), "{error}");
        sqlx::query(remove).execute(&mut connection).await.unwrap();
    }
    drop(connection);
    attempt().await.expect("an extension or nothing is empty");
}

async fn restore_to(
    app: &TestApp,
    id: &BackupId,
    target: &Empty,
) -> Result<registrar::backup::restore::Restored, BackupError> {
    restore(&app.services.store, id, &target.target(), &restoring(app)).await
}

#[tokio::test]
async fn a_damaged_backup_or_a_wrong_key_leaves_the_target_empty() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let manifest = make(&app).await;
    let target = Empty::new().await;
    let file = dump_file(&app, &manifest);
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(&file, flipped).unwrap();
    let error = restore_to(&app, &manifest.id, &target).await.unwrap_err();
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
    std::fs::write(&file, whole).unwrap();
    let others = Keys::new();
    let options = RestoreOptions {
        identities: identities(&app.config.backup, Some(&others.file)).unwrap(),
        ..RestoreOptions::default()
    };
    let store = &app.services.store;
    let error = restore(store, &manifest.id, &target.target(), &options).await.unwrap_err();
    assert!(matches!(error, BackupError::WrongKey(_)), "{error}");
    let error = restore(store, &manifest.id, &target.target(), &RestoreOptions::default()).await;
    assert!(matches!(error.unwrap_err(), BackupError::NoIdentity(_)));
    assert_eq!(target.tables().await, 0);
}

#[tokio::test]
async fn tables_jobs_and_dry_runs_do_what_they_say() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let manifest = make(&app).await;
    let store = &app.services.store;
    let contents =
        registrar::backup::restore::contents(store, &manifest.id, &restoring(&app)).await;
    assert!(contents.unwrap().contains("TABLE DATA public users"));

    let target = Empty::new().await;
    let dry = RestoreOptions { dry_run: true, ..restoring(&app) };
    let told = restore(store, &manifest.id, &target.target(), &dry).await.unwrap();
    assert_eq!((told.tables, told.dry_run), (manifest.tables.len(), true));
    assert_eq!(target.tables().await, 0);

    let unknown = RestoreOptions { tables: vec!["nothing".to_owned()], ..restoring(&app) };
    let error = restore(store, &manifest.id, &target.target(), &unknown).await.unwrap_err();
    assert!(error.to_string().contains("has no table `nothing`"), "{error}");
    let some = RestoreOptions {
        tables: vec!["users".to_owned(), "public.roles".to_owned()],
        ..restoring(&app)
    };
    let told = restore(store, &manifest.id, &target.target(), &some).await.unwrap();
    assert_eq!((told.tables, target.tables().await), (2, 2));

    let (target, spool) = (Empty::new().await, TempDir::new().unwrap());
    let jobs = RestoreOptions { parallel: Some((2, spool.path().to_owned())), ..restoring(&app) };
    let told = restore(store, &manifest.id, &target.target(), &jobs).await.unwrap();
    assert_eq!(told.tables, manifest.tables.len());
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0, "the open dump is gone");
}

#[tokio::test]
async fn the_command_restores_and_makes_the_database_ready() {
    let keys = Keys::new();
    let mut app = app_with(&keys).await;
    app.define("now", "select 1 as one").await;
    app.submit("now", serde_json::json!({})).await;
    app.leave_unfinished();
    let status = command(&app, &["backup", "create"]).await.0;
    assert!(status.success());
    let target = Empty::new().await;
    let arguments = ["backup", "restore", "latest", "--to", &target.0.url];
    let (status, log) = command(&app, &arguments).await;
    assert!(status.success() && log.contains("The database is ready"), "{log}");
    assert_eq!(target.number("select count(*) from apalis.jobs").await, 0);
    assert_eq!(
        target.number("select count(*) from report_executions where status = 'pending'").await,
        1
    );
    assert_eq!(target.number("select count(*) from backups").await, 1);
    let (status, log) = command(&app, &arguments).await;
    assert_eq!(status.code(), Some(3), "{log}");
    let verify = ["migrate", "verify", "--database-url", &target.0.url];
    let mut config = app.config.clone();
    config.database.url = Some(SecretString::from(target.0.url.as_str()));
    let mut process = Process::start(&config, &verify[..2]);
    assert!(process.ended().await.success(), "{}", process.log());
}

const PURGE: &str = r#"
kind = "purge"
description = "Accounts are deleted for good 30 days after their soft deletion."
owner = "tests"
[[table]]
name = "users"
age = "deleted_at"
after = "30 days"
if_referenced = "anonymize"
"#;

#[tokio::test]
async fn a_restore_does_not_bring_an_erased_person_back() {
    let keys = Keys::new();
    let jobs = TempDir::new().unwrap();
    let classification = include_str!("../../jobs/classification.toml");
    std::fs::write(jobs.path().join("classification.toml"), classification).unwrap();
    std::fs::write(jobs.path().join("purge.toml"), PURGE).unwrap();
    let folder = jobs.path().to_owned();
    let app = app_with(&keys).with(|config| config.lifecycle.jobs_dir = folder).await;
    app.execute("update users set deleted_at = null where deleted_at is not null").await;
    app.execute(
        "insert into users (id, username, email, password, deleted_at)
         values (900001, 'leaver', 'leaver@x.example', '!', now() - interval '31 days')",
    )
    .await;
    let email: String = sqlx::query_scalar("select email from users where id = 1007")
        .fetch_one(&app.services.db)
        .await
        .unwrap();
    make(&app).await;
    app.services.request_erasure(&app.operator(), None, "1007").await.unwrap();
    app.execute("update erasures set due_at = now(), run_at = now()").await;
    let outcome = app.services.carry_out_erasures().await.unwrap();
    assert_eq!(outcome.completed, 1, "{outcome:?}");
    // Nothing references this one, so that the purge deletes the row.
    let (status, log) = command(&app, &["policy", "run", "purge", "--yes"]).await;
    assert!(status.success(), "{log}");
    assert_eq!(app.number("select count(*) from users where id = 900001").await, 0);

    let target = Empty::new().await;
    let arguments = ["backup", "restore", "latest", "--to", &target.0.url];
    let (status, log) = command(&app, &arguments).await;
    assert!(status.success() && log.contains("The database is ready"), "{log}");
    assert!(log.contains("2 people found again: 2 erased"), "{log}");
    let traces = format!(
        "select (select count(*) from users u where u::text like '%{email}%')
              + (select count(*) from audit_logs a where a::text like '%{email}%')"
    );
    assert_eq!(target.number(&traces).await, 0, "{email}");
    let leaver = "select count(*) from users u where u::text like '%leaver%'";
    assert_eq!(target.number(leaver).await, 0, "the purged one");
    let certified = "select count(*)
                       from erasures e
                       join certificates c on c.about = 'erasure-' || e.id
                      where e.status = 'completed' and e.verified_at is not null";
    assert_ne!(target.number(certified).await, 0, "a certificate says so");

    // A ledger that is shorter than when the backup was made has lost something.
    let later = make(&app).await;
    let ledger = store_folder(&app).join("ledger/erasures");
    let aside = store_folder(&app).join("aside");
    std::fs::rename(&ledger, &aside).unwrap();
    let (target_of_later, id) = (Empty::new().await, later.id.to_string());
    let (status, log) =
        command(&app, &["backup", "restore", &id, "--to", &target_of_later.0.url]).await;
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("has 0 entries and had"), "{log}");
    std::fs::rename(&aside, &ledger).unwrap();

    // Without the keys the ledger cannot be replayed: the database is not called ready.
    let mut config = app.config.clone();
    config.erasure.keys.clear();
    let target = Empty::new().await;
    let mut process =
        Process::start(&config, &["backup", "restore", "latest", "--to", &target.0.url]);
    assert_eq!(process.ended().await.code(), Some(3), "{}", process.log());
    assert!(process.log().contains("erasure.keys"), "{}", process.log());
    assert!(!process.log().contains("The database is ready"), "{}", process.log());
}

#[tokio::test]
async fn holds_placed_after_a_backup_are_there_after_its_restore_and_released_ones_are_not() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let hold = async |key: &str, reason: &str| {
        let key = vec![key.to_owned()];
        let placement = Placement::Subject { table: "users".parse().unwrap(), key };
        let reason = reason.parse().unwrap();
        app.services.place_hold(&app.operator(), placement, &reason, None).await.unwrap().id
    };
    let release = async |id: i64| {
        let reason = "decided".parse().unwrap();
        app.services.release_hold(&app.operator(), id, &reason).await.unwrap()
    };
    let released_later = hold("1001", "before").await;
    make(&app).await;
    release(released_later).await;
    let kept = hold("1007", "Appeal of Tendai").await;
    release(hold("1008", "a mistake").await).await;
    // Erasing who is held waits, in the restored database too.
    app.services.request_erasure(&app.operator(), None, "1009").await.unwrap();
    app.execute("update erasures set due_at = now(), run_at = now()").await;
    assert_eq!(app.services.carry_out_erasures().await.unwrap().completed, 1);
    hold("1009", "too late, but nobody knows").await;
    for path in app.stored().await.iter().filter(|path| path.starts_with("ledger/holds")) {
        assert!(path.ends_with(".json.age"), "{path}");
        let bytes = std::fs::read(store_folder(&app).join(path)).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("Tendai"), "{path} is open");
    }

    let target = Empty::new().await;
    let arguments = ["backup", "restore", "latest", "--to", &target.0.url];
    let (status, log) = command(&app, &arguments).await;
    assert!(status.success() && log.contains("The database is ready"), "{log}");
    assert!(log.contains("4 holds in the store: 3 placed again, 1 released again"), "{log}");
    assert!(log.contains("0 erased, 1 held"), "{log}");
    let expected = format!(
        "select count(*) from holds where released_at is null and id = {kept}
            and reason = 'Appeal of Tendai'"
    );
    assert_eq!(target.number(&expected).await, 1);
    assert_eq!(target.number("select count(*) from holds").await, 4);
    assert_eq!(target.number("select count(*) from holds where released_at is null").await, 2);
    // The next one gets a number of its own, and a second replay changes nothing.
    let mut config = app.config.clone();
    config.database.url = Some(SecretString::from(target.0.url.as_str()));
    let place = ["hold", "place", "--table", "roles", "--reason", "x"];
    let mut process = Process::start(&config, &place);
    assert!(process.ended().await.success(), "{}", process.log());
    let mut process = Process::start(&config, &["hold", "replay"]);
    assert!(process.ended().await.success(), "{}", process.log());
    assert!(process.log().contains("0 placed again, 0 released again"), "{}", process.log());
}

#[tokio::test]
async fn without_the_store_no_hold_is_placed_and_a_lost_copy_is_written_later() {
    let keys = Keys::new();
    let app = app_with(&keys).on_s3().await;
    let place = async || {
        let placement = Placement::Table { table: "roles".parse().unwrap() };
        let reason = "an investigation".parse().unwrap();
        app.services.place_hold(&app.operator(), placement, &reason, None).await
    };
    let s3 = app.s3.as_ref().unwrap();
    s3.fail(Fault::Refuse, Operation::Put, 1);
    place().await.expect_err("its copy cannot be written");
    assert_eq!(app.number("select count(*) from holds").await, 0);
    let hold = place().await.unwrap();
    s3.fail(Fault::Refuse, Operation::Put, 1);
    let reason = "over".parse().unwrap();
    app.services.release_hold(&app.operator(), hold.id, &reason).await.expect("it is released");
    assert_eq!(app.services.copy_holds().await.unwrap(), 1);
    assert_eq!(app.services.copy_holds().await.unwrap(), 0, "none is missing");
}

async fn command(app: &TestApp, arguments: &[&str]) -> (ExitStatus, String) {
    let mut process = Process::start(&app.config, arguments);
    let status = process.ended().await;
    (status, process.log())
}

async fn only_good_ones(app: &TestApp, most: usize) -> Vec<BackupId> {
    let catalog = catalog::read(&app.services.store).await.unwrap();
    assert!(catalog.unreadable.is_empty(), "{:?}", catalog.unreadable);
    assert!(catalog.entries.len() <= most);
    let mut ids = Vec::new();
    for entry in catalog.entries {
        proven_good(app, &entry.manifest.id).await;
        ids.push(entry.manifest.id);
    }
    ids
}

/// Runs the command and kills it at random in that time, and tells when.
async fn killed(app: &TestApp, arguments: &[&str], within_ms: u32) -> Duration {
    let random = uuid::Uuid::new_v4().as_fields().0;
    let after = Duration::from_millis(u64::from(random % within_ms));
    let mut process = Process::start(&app.config, arguments);
    tokio::time::sleep(after).await; // the fault's moment, not a wait for a state
    if process.is_running() {
        process.signal(Signal::KILL);
    }
    process.ended().await;
    after
}

#[tokio::test]
async fn killed_anywhere_a_create_leaves_nothing_that_is_listed_and_the_next_run_cleans_up() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    fill(&app).await;
    let first = make(&app).await;
    for _ in 0..8 {
        let after = killed(&app, &["backup", "create"], 1_200).await;
        let listed = catalog::read(&app.services.store).await.unwrap().entries;
        assert!(listed.iter().any(|entry| entry.manifest.id == first.id), "killed after {after:?}");
    }
    let last = make(&app).await;
    let catalog = catalog::read(&app.services.store).await.unwrap();
    assert!(catalog.unfinished.is_empty(), "{:?}", catalog.unfinished);
    let ids = only_good_ones(&app, 10).await;
    assert!(ids.contains(&first.id) && ids.contains(&last.id));
    let folders = std::fs::read_dir(store_folder(&app).join("backups")).unwrap().count();
    assert_eq!(folders, ids.len(), "nothing else is on the disk");
}

#[tokio::test]
async fn killed_anywhere_verify_and_restore_harm_nothing() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    fill(&app).await;
    let manifest = make(&app).await;
    for _ in 0..5 {
        killed(&app, &["backup", "verify", "latest"], 1_500).await;
        let target = Empty::new().await;
        let arguments = ["backup", "restore", "latest", "--to", &target.0.url];
        let after = killed(&app, &arguments, 1_500).await;
        // One transaction: its server process sees that its client is gone, and undoes it.
        app.wait_for("the restore to be all or nothing", async || {
            let sessions = format!(
                "select count(*) from pg_stat_activity where datname = '{}'
                    and application_name = 'pg_restore'",
                target.0.url.rsplit('/').next().unwrap()
            );
            app.number(&sessions).await == 0
        })
        .await;
        let tables = target.tables().await;
        let whole = i64::try_from(manifest.tables.len()).unwrap();
        assert!(tables == 0 || tables >= whole, "{tables} tables, killed after {after:?}");
    }
    proven_good(&app, &manifest.id).await;
    let leftovers = "select count(*) from pg_database d where d.datname ~ '^registrar_verify_'
        and not exists (select from pg_stat_activity a
                         where a.pid::text = split_part(d.datname, '_', 3))";
    assert_eq!(app.number(leftovers).await, 0, "the next verification swept");
}

#[tokio::test]
async fn parts_that_a_killed_create_left_on_s3_go_with_the_next() {
    let keys = Keys::new();
    let app = app_with(&keys).on_s3().await;
    app.execute(
        "create table noise as
                 select g as id, (select string_agg(md5(random()::text || g || h), '')
                                    from generate_series(1, 20) h) as text
                   from generate_series(1, 60000) g",
    )
    .await;
    let s3 = app.s3.as_ref().unwrap();
    let mut process = Process::start(&app.config, &["backup", "create"]);
    app.wait_for("a part to be there", async || {
        !s3.leftover_parts().is_empty() || !process.is_running()
    })
    .await;
    process.signal(Signal::KILL);
    process.ended().await;
    assert_ne!(s3.leftover_parts(), [""; 0], "a killed process takes nothing back");
    let made = make(&app).await;
    assert_eq!(s3.leftover_parts(), [""; 0]);
    assert_eq!(only_good_ones(&app, 1).await, [made.id]);
}

/// Enough rows that a command is at work for a while.
async fn fill(app: &TestApp) {
    app.execute("create table filler (id int primary key, text text)").await;
    app.execute(
        "insert into filler select g, md5(g::text) || md5((g + 1)::text)
           from generate_series(1, 150000) g",
    )
    .await;
}

#[tokio::test]
async fn prune_keeps_what_it_says_and_survives_kills_and_a_failing_store() {
    let keys = Keys::new();
    let app = keeping_one(&keys).await;
    let mut all = Vec::new();
    for _ in 0..6 {
        all.push(make(&app).await.id);
    }
    proven_good(&app, &all[1]).await;
    app.services.pin_backup(&Actor::system(), &all[2], "hold-7", "a legal hold").await.unwrap();
    let dry = app.services.prune_backups(&Actor::system(), true).await.unwrap();
    assert_eq!(dry.decisions.iter().filter(|d| !d.is_kept()).count(), 3);
    assert_eq!(catalog::read(&app.services.store).await.unwrap().entries.len(), 6);
    for _ in 0..6 {
        let after = killed(&app, &["backup", "prune"], 300).await;
        let there = catalog::read(&app.services.store).await.unwrap();
        assert!(there.unreadable.is_empty(), "killed after {after:?}: {:?}", there.unreadable);
    }
    app.services.prune_backups(&Actor::system(), false).await.unwrap();
    let left = only_good_ones(&app, 3).await;
    // Two of them are of one second, and then in no order.
    let names = |ids: &[BackupId]| ids.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(names(&left), names(&[all[1].clone(), all[2].clone(), all[5].clone()]));
    let folders = std::fs::read_dir(store_folder(&app).join("backups")).unwrap().count();
    assert_eq!(folders, 3, "nothing of the others is on the disk");
    app.services.unpin_backup(&Actor::system(), &all[2], "hold-7").await.unwrap();
    // `only_good_ones` proved all of them, so the last verified is the newest.
    app.services.prune_backups(&Actor::system(), false).await.unwrap();
    assert_eq!(only_good_ones(&app, 1).await, [all[5].clone()]);
}

#[tokio::test]
async fn what_cannot_be_deleted_is_reported_and_tried_again() {
    let keys = Keys::new();
    let app = keeping_one(&keys).on_s3().await;
    let (old, new) = (make(&app).await.id, make(&app).await.id);
    let s3 = app.s3.as_ref().unwrap();
    s3.fail(Fault::Refuse, Operation::Delete, 1);
    let pruned = app.services.prune_backups(&Actor::system(), false).await.unwrap();
    assert_eq!(pruned.failed.len(), 1, "{pruned:?}");
    let catalog = catalog::read(&app.services.store).await.unwrap();
    assert_eq!(catalog.deleting[0].0, old);
    assert_eq!((catalog.deleting[0].1.attempts, catalog.entries.len()), (1, 1));
    let error = prove(&app, &old).await.unwrap_err();
    assert!(!matches!(error, ServiceError::Internal(_)), "{error:?}");
    let pruned = app.services.prune_backups(&Actor::system(), false).await.unwrap();
    assert_eq!(pruned.deleted, [old]);
    assert_eq!(only_good_ones(&app, 1).await, [new]);
}

#[tokio::test]
async fn a_backup_that_is_read_is_not_pruned() {
    let keys = Keys::new();
    let app = keeping_one(&keys).await;
    let (old, _new) = (make(&app).await, make(&app).await);
    let folder = store_folder(&app).join("backups").join(old.id.as_str()).join("uses");
    std::fs::create_dir(&folder).unwrap();
    let reading = |minutes: i64| {
        let until = old.finished_at + chrono::TimeDelta::minutes(minutes);
        let text = serde_json::json!({ "by": "restore", "expires_at": until });
        std::fs::write(folder.join("somebody.json"), text.to_string()).unwrap();
    };
    reading(10);
    app.services.prune_backups(&Actor::system(), false).await.unwrap();
    assert_eq!(catalog::read(&app.services.store).await.unwrap().entries.len(), 2);
    reading(-10);
    app.services.prune_backups(&Actor::system(), false).await.unwrap();
    assert_eq!(catalog::read(&app.services.store).await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_backup_takes_little_memory() {
    const LIMIT_BYTES: u64 = 64 * 1024 * 1024;
    let keys = Keys::new();
    let app = app_with(&keys).await;
    // Texts that do not compress: many parts are on their way.
    app.execute(
        "create table noise as
                 select g as id, (select string_agg(md5(random()::text || g || h), '')
                                    from generate_series(1, 20) h) as text
                   from generate_series(1, 150000) g",
    )
    .await;
    let mut process = Process::start(&app.config, &["backup", "create"]);
    let mut peak = 0;
    while process.is_running() {
        if let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", process.pid())) {
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
            peak = peak.max(kib.unwrap_or(0) * 1024);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(process.ended().await.success(), "{}", process.log());
    let size =
        catalog::read(&app.services.store).await.unwrap().entries[0].manifest.stored.size_bytes;
    assert!(size > 40 * 1024 * 1024, "{size} bytes are enough for several parts");
    assert!(peak > 0 && peak < LIMIT_BYTES, "peak {peak} bytes for {size} stored");
}

/// A jobs folder with these policies.
fn jobs(policies: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, rest) in policies {
        let text = format!(
            "description = \"For a test.\"\nowner = \"tests\"\n{rest}\n\
             [schedule]\ncron = \"0 * * * *\"\ntimezone = \"Africa/Harare\"\n"
        );
        std::fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
    }
    folder
}

const NIGHTLY: &str = "kind = \"backup\"\nengine = \"pg_dump\"\nverify = \"always\"\n\
                       keep = { daily = 1 }";

/// All policies have been seen, and one due time of each has passed since.
async fn all_due(app: &TestApp) {
    assert_eq!(app.services.start_due_runs().await.unwrap(), 0, "seen for the first time");
    app.execute("update schedule_occurrences set due_at = due_at - interval '2 hours'").await;
}

#[tokio::test]
async fn a_policy_makes_proves_and_prunes_its_backups_each_due_time_once() {
    let (keys, jobs) = (Keys::new(), jobs(&[("nightly", NIGHTLY)]));
    let folder = jobs.path().to_owned();
    let app = app_with(&keys).with(|config| config.lifecycle.jobs_dir = folder).await;
    let by_hand = make(&app).await.id;
    all_due(&app).await;
    let looks = (0..5).map(|_| app.services.start_due_runs());
    let started: usize = futures::future::try_join_all(looks).await.unwrap().into_iter().sum();
    assert_eq!(started, 1);
    let worker = app.start_worker().await;
    let proven = "select count(*) from backups where policy = 'nightly' and purpose = 'scheduled'
                     and verified_good";
    app.wait_for("a backup, proven", async || app.number(proven).await == 1).await;
    worker.stop().await;
    // Another of the same day takes the first one's place; the one made by hand is not the policy's.
    app.services.back_up_on_schedule("nightly").await.unwrap().expect("nothing is in its way");
    app.services.back_up_on_schedule("nightly").await.unwrap().expect("nothing is in its way");
    let listed = app.services.list_backups(true).await.unwrap().backups;
    let of_policy = listed.iter().filter(|l| l.backup.policy.as_deref() == Some("nightly"));
    let kept: Vec<_> = of_policy.map(|listed| listed.kept_because.join(", ")).collect();
    assert_eq!(kept.len(), 2, "the newest, and the last verified: {kept:?}");
    assert!(listed.iter().any(|listed| listed.backup.id == by_hand.as_str()));
    let missing = app.services.back_up_on_schedule("weekly").await.unwrap_err();
    assert!(matches!(missing, ServiceError::NotFound { .. }), "{missing:?}");
}

#[tokio::test]
async fn policies_of_their_own_prove_and_prune() {
    let never = NIGHTLY.replace("always", "never");
    let jobs = jobs(&[
        ("nightly", &never),
        ("prove", "kind = \"verify-backup\"\nbackup = \"nightly\""),
        ("thin-out", "kind = \"prune-backups\"\nbackup = \"nightly\""),
    ]);
    let (keys, folder) = (Keys::new(), jobs.path().to_owned());
    let app = app_with(&keys).with(|config| config.lifecycle.jobs_dir = folder).await;
    for _ in 0..3 {
        app.services.back_up_on_schedule("nightly").await.unwrap().expect("it is made");
    }
    let count = "select count(*) from backups";
    assert_eq!(app.number(count).await, 3, "another policy deletes them");
    // One is being made somewhere: the next is left out, and the others go on.
    let mut elsewhere = PgConnection::connect(app.database_url()).await.unwrap();
    sqlx::query("select pg_advisory_lock(hashtextextended('registrar backup policy nightly', 0))")
        .execute(&mut elsewhere)
        .await
        .unwrap();
    assert!(app.services.back_up_on_schedule("nightly").await.unwrap().is_none());
    all_due(&app).await;
    assert_eq!(app.services.start_due_runs().await.unwrap(), 3);
    let worker = app.start_worker().await;
    let verified = "select count(*) from backups where verified_good";
    app.wait_for("the newest to be proven", async || app.number(verified).await == 1).await;
    app.wait_for("the others to be deleted", async || app.number(count).await == 1).await;
    worker.stop().await;
}

#[tokio::test]
async fn what_a_slow_look_at_the_store_saw_does_not_undo_what_came_later() {
    let keys = Keys::new();
    let app = app_with(&keys).on_s3().await;
    let id = make(&app).await.id;
    let s3 = app.s3.as_ref().unwrap();
    // It has listed the files, and waits for the manifest.
    let reads = s3.count(Operation::Get);
    s3.fail(Fault::Hold, Operation::Get, 2);
    let services = app.services.clone();
    let slow = tokio::spawn(async move { services.refresh_backups().await.map(drop) });
    app.wait_for("the manifest to be asked for", async || s3.count(Operation::Get) >= reads + 2)
        .await;
    let (services, proven) = (app.services.clone(), id.clone());
    let proof = tokio::spawn(async move {
        services.verify_backup(&Actor::system(), &proven, VerifyOptions::default()).await
    });
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted
                      and database = (select oid from pg_database
                                       where datname = current_database())";
    app.wait_for("the proof, or its turn", async || {
        proof.is_finished() || app.number(waiting).await == 1
    })
    .await;
    s3.release();
    slow.await.unwrap().unwrap();
    assert!(proof.await.unwrap().unwrap().good);
    let listed = app.services.list_backups(false).await.unwrap().backups;
    assert_eq!(listed[0].backup.verified_good, Some(true), "{listed:?}");
}

#[tokio::test]
async fn another_form_of_manifest_is_kept_and_reported() {
    let keys = Keys::new();
    let app = app_with(&keys).await;
    let manifest = make(&app).await;
    let path = store_folder(&app).join("backups").join(manifest.id.as_str()).join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"format\": 1", "\"format\": 2", 1)).unwrap();
    let pruned = app.services.prune_backups(&Actor::system(), false).await.unwrap();
    assert_eq!(pruned.unreadable[0].0, manifest.id);
    assert!(path.exists());
    let store: &Store = &app.services.store;
    let error = catalog::manifest(store, &manifest.id).await.unwrap_err();
    assert!(error.to_string().contains("form 2"), "{error}");
}
