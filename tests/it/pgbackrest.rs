//! Backups by pgBackRest: made, listed, proven by a restore, damage found. Left out where the program
//! cannot be had: `script/bootstrap pgbackrest` installs it.
#![expect(clippy::print_stderr, reason = "a test says why it did nothing")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use registrar::backup::BackupId;
use registrar::db::audit::Actor;
use registrar::postgres::{
    Binaries, ClusterOptions, DataDir, PrivateCluster, command_of_server_account,
};
use registrar::service::backups::VerifyOptions;
use tempfile::TempDir;

use crate::support::TestApp;

const POLICY: &str = r#"
kind        = "backup"
description = "For a test."
owner       = "tests"
engine      = "pgbackrest"
verify      = "never"
keep        = { daily = 1 }
"#;

/// A server that archives into a repository of its own.
struct Setup {
    app: TestApp,
    repository: PathBuf,
    // Dropped after the app, which drops its database first.
    _jobs: TempDir,
    _folder: TempDir,
    _cluster: PrivateCluster,
}

async fn setup() -> Option<Setup> {
    let found = Command::new("pgbackrest").arg("version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        eprintln!("left out: pgbackrest is not on this machine");
        return None;
    }
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let config = path("pgbackrest.conf");
    std::fs::write(
        path("access.conf"),
        "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    for name in ["repository", "lock", "spool"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    give_to_server(folder.path());
    let archive =
        format!("pgbackrest --config={} --stanza=tests archive-push %p", config.display());
    let settings = [
        ("archive_mode", "on".to_owned()),
        ("archive_command", archive),
        ("unix_socket_directories", folder.path().display().to_string()),
        ("hba_file", path("access.conf").display().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let cluster = PrivateCluster::start(ClusterOptions {
        data: DataDir::Temporary,
        binaries: Binaries::find(None).unwrap(),
        settings: settings.to_vec(),
    })
    .await
    .unwrap();
    let url = cluster.database_url();
    let port = url::Url::parse(&url).unwrap().port().unwrap();
    std::fs::write(
        &config,
        format!(
            "[global]\nrepo1-path={}\nlock-path={}\nspool-path={}\nlog-level-file=off\n\
             repo1-retention-full=2\nrepo1-bundle=y\nstart-fast=y\ncompress-type=zst\n\
             [tests]\npg1-path={}\npg1-port={port}\npg1-user=registrar\npg1-socket-path={}\n",
            path("repository").display(),
            path("lock").display(),
            path("spool").display(),
            cluster.home().join("data").display(),
            folder.path().display(),
        ),
    )
    .unwrap();
    give_to_server(folder.path());
    let created = command_of_server_account("pgbackrest")
        .arg(format!("--config={}", config.display()))
        .args(["--stanza=tests", "stanza-create"])
        .output()
        .unwrap();
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let jobs = TempDir::new().unwrap();
    std::fs::write(jobs.path().join("physical.toml"), POLICY).unwrap();
    let jobs_dir = jobs.path().to_owned();
    let app = TestApp::new()
        .on_server(&url)
        .with(|settings| {
            settings.lifecycle.jobs_dir = jobs_dir;
            settings.backup.pgbackrest.config_file = Some(config);
            settings.backup.pgbackrest.stanza = Some("tests".to_owned());
        })
        .await;
    let repository = path("repository");
    Some(Setup { app, repository, _jobs: jobs, _folder: folder, _cluster: cluster })
}

/// As root the server is another user, whose repository it must be.
fn give_to_server(folder: &Path) {
    let whoami = command_of_server_account("id").args(["-un"]).output().unwrap();
    let user = String::from_utf8(whoami.stdout).unwrap();
    let given = Command::new("chown").arg("-R").arg(user.trim()).arg(folder).status().unwrap();
    assert!(given.success(), "{folder:?} cannot be given to {user}");
}

impl Setup {
    async fn back_up(&self) -> BackupId {
        let made = self.app.services.back_up_on_schedule("physical").await.expect("it is made");
        made.expect("nothing is in its way").id().clone()
    }

    /// What is wrong with it, by a restore.
    async fn problem(&self, id: &BackupId) -> Option<String> {
        let actor = Actor::system();
        let outcome = self.app.services.verify_backup(&actor, id, VerifyOptions::default()).await;
        let outcome = outcome.expect("it can be tried");
        assert_eq!(outcome.good, outcome.problem.is_none());
        outcome.problem
    }
}

#[tokio::test]
async fn a_backup_of_pgbackrest_is_listed_and_proven_like_others() {
    let Some(setup) = setup().await else { return };
    let app = &setup.app;
    let id = setup.back_up().await;
    assert!(id.is_physical(), "{id}");
    // What is written later is in the log that a restore replays, but after the restore point.
    app.execute("update users set first_name = 'Later'").await;
    assert_eq!(setup.problem(&id).await, None);

    let listed = &app.services.list_backups(true).await.unwrap().backups[0];
    assert_eq!(
        (listed.backup.id.as_str(), listed.backup.engine.as_str()),
        (id.as_str(), "pgbackrest")
    );
    assert_eq!(listed.backup.policy.as_deref(), Some("physical"));
    assert_eq!(listed.backup.verified_good, Some(true));
    assert!(listed.backup.row_count > 1_000, "{}", listed.backup.row_count);
    let summary = registrar::db::backups::summary(&app.services.db).await.unwrap();
    assert_eq!(summary.backups, 1);
    assert!(summary.last_success.is_some() && summary.last_verified.is_some());
    assert!(summary.last_size_bytes.is_some_and(|bytes| bytes > 0));
    let audited =
        "select count(*) from audit_logs where action in ('backup.created', 'backup.verified')";
    assert_eq!(app.number(audited).await, 2);

    // The next is the changes since; the newest of the policy is it.
    let later = setup.back_up().await;
    assert!(later.as_str().starts_with(&format!("{id}_")), "{later}");
    let newest = app.services.verify_named_backup(None, Some("physical")).await.unwrap();
    assert_eq!((newest.id, newest.problem), (later, None));
}

#[tokio::test]
async fn damage_in_the_repository_of_pgbackrest_is_found() {
    let Some(setup) = setup().await else { return };
    let id = setup.back_up().await;
    let folder = setup.repository.join("backup/tests").join(id.as_str()).join("bundle");
    let mut files = Vec::new();
    collect(&folder, &mut files);
    let largest = files.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let whole = std::fs::read(largest).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    std::fs::write(largest, &flipped).unwrap();
    let told = setup.problem(&id).await.expect("a flipped byte is found");
    assert!(told.contains("not restored"), "{told}");
    std::fs::write(largest, &whole).unwrap();
    assert_eq!(setup.problem(&id).await, None);
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false => files.push(path),
        }
    }
}
