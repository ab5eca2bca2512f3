//! Runs through the front doors: HTTP, command line, worker.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use registrar::service::ServiceError;
use rustix::process::Signal;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::app::Builder;
use crate::support::{TestApp, eventually};

const NOTES: &str = "
    create table notes (id int primary key, body text not null, at timestamptz not null);
    create index on notes (at);";
const LIMIT: Duration = Duration::from_secs(60);

/// An app with a jobs folder of its own, and old notes.
pub(super) struct Lifecycle {
    pub app: TestApp,
    pub folder: TempDir,
    /// What the policy says of its table beside the age.
    table: &'static str,
}

impl Lifecycle {
    pub async fn new(rest: &str, rows: u32) -> Self {
        Self::exporting(rest, rows, "").await
    }

    pub async fn exporting(rest: &str, rows: u32, table: &'static str) -> Self {
        Self::built(TestApp::new(), rest, rows, table).await
    }

    pub async fn on_s3(rest: &str, rows: u32, table: &'static str) -> Self {
        Self::built(TestApp::new().on_s3(), rest, rows, table).await
    }

    async fn built(builder: Builder, rest: &str, rows: u32, table: &'static str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().to_owned();
        let app = builder.with(|config| config.lifecycle.jobs_dir = path).await;
        sqlx::raw_sql(NOTES).execute(&app.services.db).await.unwrap();
        app.execute(&format!(
            "insert into notes
             select n, repeat('x', 200), now() - interval '1 year' - n * interval '1 second'
               from generate_series(1, {rows}) n"
        ))
        .await;
        app.execute("insert into notes values (-1, 'young', now()), (0, 'young', now())").await;
        app.execute("analyze notes").await;
        let lifecycle = Self { app, folder, table };
        lifecycle.write(rest);
        lifecycle
    }

    pub fn write(&self, rest: &str) {
        write(
            self.folder.path(),
            &format!(
                "kind = \"archive\"\ndescription = \"old notes\"\nowner = \"tests\"\n{rest}\n\
                 [[table]]\nname = \"notes\"\nage = \"at\"\nafter = \"6 months\"\n{}",
                self.table
            ),
        );
    }

    pub fn cli(&self, arguments: &[&str]) -> Output {
        let url = self.app.config.database.url.as_ref().unwrap().expose_secret().to_owned();
        Command::new(env!("CARGO_BIN_EXE_registrar"))
            .args(arguments)
            .env("REGISTRAR__DATABASE__URL", url)
            .env("REGISTRAR__LIFECYCLE__JOBS_DIR", self.folder.path())
            .env("REGISTRAR__STORE__URL", &self.app.config.store.url)
            .env("REGISTRAR__ERASURE__KEYS__K1", "2a".repeat(32))
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    pub async fn start(&self) -> i64 {
        let (services, operator) = (&self.app.services, self.app.operator());
        let preview = services.preview_run(&operator, "notes").await.unwrap();
        let started = services.start_run(&operator, "notes", Some(&preview.digest));
        started.await.expect("the run is started").run.id
    }

    pub async fn wait(&self, id: i64, status: &str) {
        eventually(&format!("run {id} to be {status}"), LIMIT, async || {
            let now = self.app.services.show_run(&self.app.operator(), id).await.unwrap();
            (now.run.status.as_str() == status).then_some(())
        })
        .await;
    }
}

fn write(folder: &Path, text: &str) {
    std::fs::write(folder.join("notes.toml"), text).unwrap();
}

fn refusal(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::Refused { code, .. } => code,
        other => panic!("another error: {other}"),
    }
}

#[tokio::test]
async fn a_run_over_http_does_what_its_preview_showed() {
    let world = Lifecycle::new("", 3_000).await;
    let http = world.app.http().await;
    let worker = world.app.start_worker().await;
    let admin = world.app.token("admin").await;
    let answer = http.get("/v1/policies/notes/preview", &admin).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let preview: Value = answer.json().await.unwrap();
    assert_eq!(preview["tables"][0]["eligible"], 3_000);
    let digest = preview["digest"].as_str().unwrap();

    let reader = world.app.token("ana").await;
    let answer = http.get("/v1/policies/notes/preview", &reader).send().await.unwrap();
    assert_eq!(answer.status(), 403);

    world.app.execute("delete from notes where id = 7").await;
    let start =
        |digest: &str| http.post("/v1/policies/notes/runs", &admin, &json!({"digest": digest}));
    let answer = start(digest).send().await.unwrap();
    assert_eq!(answer.status(), 409);
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["errors"][0]["code"], "stale_digest");

    let answer = http.get("/v1/policies/notes/preview", &admin).send().await.unwrap();
    let preview: Value = answer.json().await.unwrap();
    let answer = start(preview["digest"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let run: Value = answer.json().await.unwrap();
    world.wait(run["id"].as_i64().unwrap(), "completed").await;
    let run: Value = http.get(&location, &admin).send().await.unwrap().json().await.unwrap();
    assert_eq!(run["tables"][0]["done"], 2_999);
    assert_eq!(run["tables"][0]["keys_hash"], preview["tables"][0]["keys_hash"]);
    assert_eq!(world.app.number("select count(*) from notes").await, 2);

    let restore = json!({ "run_id": run["id"] });
    let answer = http.post("/v1/archives/notes/restore", &admin, &restore).send().await.unwrap();
    let restored: Value = answer.json().await.unwrap();
    assert_eq!(restored["restored"], 2_999);
    let done = world
        .app
        .number(
            "select count(*) from audit_logs where entity_type in ('lifecycle_runs', 'archive')",
        )
        .await;
    assert_eq!(done, 4, "requested, completed, restore requested, restored");
    worker.stop().await;
}

#[tokio::test]
async fn the_command_line_refuses_with_3_and_runs_what_was_seen() {
    let world = Lifecycle::new("", 500).await;
    let refused = world.cli(&["policy", "run", "notes"]);
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    let preview = world.cli(&["policy", "preview", "notes", "--json"]);
    let preview: Value = serde_json::from_slice(&preview.stdout).unwrap();
    let digest = preview["digest"].as_str().unwrap();
    let done = world.cli(&["policy", "run", "notes", "--digest", digest]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let stale = world.cli(&["policy", "run", "notes", "--digest", digest]);
    assert_eq!(stale.status.code(), Some(3));
    let run: Value = serde_json::from_slice(&world.cli(&["run", "show", "1"]).stdout).unwrap();
    assert_eq!(run["tables"][0]["done"], 500);
    let back = world.cli(&["archive", "restore", "notes", "--key", "5"]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    assert_eq!(world.app.number("select count(*) from notes").await, 3);
}

#[tokio::test]
async fn a_second_person_approves_and_no_run_is_over_a_ceiling_unseen() {
    let world =
        Lifecycle::new("[limits]\nmax_rows = 100\n[approval]\nrequired_for = \"over_ceiling\"\nby = \"retention.approve\"", 500)
            .await;
    let worker = world.app.start_worker().await;
    let admin = world.app.caller("admin").await;
    let services = &world.app.services;
    let digest = services.preview_run(&admin, "notes").await.unwrap();
    assert_eq!(digest.over_ceiling.len(), 1);
    let id = services.start_run(&admin, "notes", Some(&digest.digest)).await.unwrap().run.id;
    world.wait(id, "needs_approval").await;
    assert_eq!(world.app.number("select count(*) from notes").await, 502, "nothing was done");
    let error = services.approve_run(&admin, id).await.expect_err("the same person");
    assert_eq!(refusal(&error), "second_person");
    let error = services.start_run(&admin, "notes", Some(&digest.digest)).await.unwrap_err();
    assert_eq!(refusal(&error), "already_running");
    let other = world.app.caller("rui").await;
    services.approve_run(&other, id).await.expect("another person with the permission");
    world.wait(id, "completed").await;
    assert_eq!(world.app.number("select count(*) from notes").await, 2);
    worker.stop().await;
}

#[tokio::test]
async fn a_paused_run_stops_between_chunks_and_goes_on() {
    let world = Lifecycle::new("[limits]\nchunk_target = \"1ms\"", 20_000).await;
    let worker = world.app.start_worker().await;
    let operator = world.app.operator();
    let id = world.start().await;
    eventually("rows to go", LIMIT, async || {
        (world.app.number("select count(*) from notes").await < 20_002).then_some(())
    })
    .await;
    world.app.services.pause_run(&operator, id).await.expect("it can be paused");
    let left = world.app.number("select count(*) from notes").await;
    assert!(left > 2, "it was paused in the middle");
    // The worker has noticed when it takes another run's ticket; here, when it claims nothing.
    world.app.services.resume_run(&operator, id).await.expect("it can go on");
    world.wait(id, "completed").await;
    let run = world.app.services.show_run(&operator, id).await.unwrap();
    assert_eq!(run.tables[0].done, 20_000);
    assert!(run.run.attempt >= 2);
    worker.stop().await;
}

#[tokio::test]
async fn a_run_killed_again_and_again_ends_as_if_nothing_had_happened() {
    const ROWS: i64 = 30_000;
    let world = Lifecycle::new("[limits]\nchunk_target = \"2ms\"", 30_000).await;
    let before = world.app.number(CHECKSUM).await;
    let id = world.start().await;
    let mut kills = 0;
    loop {
        let mut worker = world.app.start_worker_process().await;
        // Another step each time: after so many rows more.
        let from = world.app.number("select count(*) from notes").await;
        let step = i64::from(kills) * 617 % 2_900 + 1;
        let ended = eventually("rows to go, or the end", LIMIT, async || {
            let left = world.app.number("select count(*) from notes").await;
            if left == 2 { Some(true) } else { (left <= from - step).then_some(false) }
        })
        .await;
        if ended || kills >= 12 {
            world.wait(id, "completed").await;
            worker.signal(Signal::TERM);
            worker.ended().await;
            break;
        }
        worker.kill().await;
        kills += 1;
        let everywhere =
            "select (select count(*) from notes) + (select count(*) from archive.notes)";
        assert_eq!(world.app.number(everywhere).await, ROWS + 2, "each row is in one place");
    }
    assert!(kills >= 3, "killed {kills} times");
    let verified = world.app.services.verify_certificates(&world.app.operator(), None).await;
    let verified = verified.unwrap();
    assert_eq!((verified.certificates, verified.findings), (1, vec![]));
    let run = world.app.services.show_run(&world.app.operator(), id).await.unwrap();
    assert_eq!((run.tables[0].done, run.tables[0].skipped), (ROWS, 0));
    let preview = world.app.services.preview_run(&world.app.operator(), "notes").await.unwrap();
    assert_eq!(preview.tables[0].eligible, 0);
    assert_eq!(world.app.number(CHECKSUM_BOTH).await, before, "no row is lost or changed");
    assert_eq!(world.app.number("select count(*) from notes").await, 2);
}

const CHECKSUM: &str =
    "select bit_xor(hashtextextended(concat_ws('|', id, body, at), 0)) from notes";
const CHECKSUM_BOTH: &str = "
    select bit_xor(hashtextextended(concat_ws('|', id, body, at), 0))
      from (select id, body, at from notes union all select id, body, at from archive.notes) n";

#[tokio::test]
async fn a_writer_and_a_reader_never_wait_long_for_a_run() {
    let world = Lifecycle::new("", 60_000).await;
    let id = world.start().await;
    let worker = world.app.start_worker_process().await;
    let mut longest = Duration::ZERO;
    let mut turns = 0_u32;
    loop {
        let began = std::time::Instant::now();
        let key = 60_000 - i64::from(turns * 97 % 60_000);
        world.app.execute(&format!("update notes set body = body || 'y' where id = {key}")).await;
        world.app.number("select count(*) from notes where id between 1 and 50").await;
        longest = longest.max(began.elapsed());
        turns += 1;
        let run = world.app.services.show_run(&world.app.operator(), id).await.unwrap();
        if run.run.status.is_final() {
            assert_eq!(run.run.status.as_str(), "completed");
            break;
        }
        assert!(turns < 100_000);
    }
    // A chunk aims at 75 ms; busy machines of tests are given room.
    assert!(longest < Duration::from_millis(1_500), "somebody waited {longest:?}");
    let mut worker = worker;
    worker.signal(Signal::TERM);
    worker.ended().await;
    assert_eq!(world.app.number("select count(*) from notes").await, 2);
}
