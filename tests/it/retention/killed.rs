//! A run whose worker is killed at random, again and again, ends as one that nobody disturbed.

use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use registrar::retention::catalog::Catalog;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::database::sql;
use crate::support::{TestApp, eventually};

const LIMIT: Duration = Duration::from_secs(180);
/// Of each run. Fewer than make it fail, should none of its chunks get through between two.
const KILLS: u32 = 3;

/// A tree with things hanging on it, some of both held, and rows that are too young.
const SETUP: &str = "
    create table boxes (id uuid primary key, up uuid references boxes on delete cascade,
        at timestamptz, body text);
    create table things (box uuid references boxes on delete cascade, n int, body text,
        primary key (box, n));
    create table notes (id text primary key, at timestamptz not null);
    create index on boxes (up);
    create index on boxes (at);
    create index on notes (at);
    create table visits (id bigint primary key, user_id int, at timestamptz, who text unique,
        ip inet);
    create index on visits (at);
    insert into visits select n, 1, timestamptz '2010-01-01' + n * interval '1 hour',
           'visitor ' || n, '192.0.2.77' from generate_series(1, 4000) n;
    insert into boxes
    select md5(n::text)::uuid, case when n / 3 > 2 then md5((n / 3)::text)::uuid end,
           timestamptz '2010-01-01' + (n % 7) * interval '3 years', repeat('x', n % 50)
      from generate_series(3, 1000) n;
    insert into things select id, n, body from boxes, generate_series(1, 2) n;
    insert into notes select 'note ' || n, timestamptz '2010-01-01' + n * interval '1 hour'
      from generate_series(1, 2000) n;
    insert into holds (scope, table_name, condition, reason) values
        ('query', 'things', 'length(body) = 13', 'held'),
        ('query', 'notes', 'id like ''%7''', 'held'),
        ('query', 'visits', 'id % 10 = 7', 'held');";

const POLICIES: [(&str, &str); 4] = [
    (
        "archive-boxes",
        "kind = \"archive\"\ndescription = \"x\"\nowner = \"y\"\n[limits]\nchunk_target = \"10ms\"\n\
         [[table]]\nname = \"boxes\"\nage = \"at\"\nafter = \"5 years\"\nkeep_children = true\n\
         export = { format = \"parquet\" }\n",
    ),
    (
        "anonymize-visits",
        "kind = \"anonymize\"\ndescription = \"x\"\nowner = \"y\"\n[limits]\nchunk_target = \"10ms\"\n\
         [[table]]\nname = \"visits\"\nage = \"at\"\nafter = \"5 years\"\n",
    ),
    (
        "purge-notes",
        "kind = \"purge\"\ndescription = \"x\"\nowner = \"y\"\n[limits]\nchunk_target = \"10ms\"\n\
         [[table]]\nname = \"notes\"\nage = \"at\"\nafter = \"5 years\"\nif_referenced = \"refuse\"\n",
    ),
    (
        "purge-boxes",
        "kind = \"purge\"\ndescription = \"x\"\nowner = \"y\"\n[limits]\nchunk_target = \"10ms\"\n\
         [[table]]\nname = \"archive.boxes\"\nage = \"at\"\nafter = \"9 years\"\n\
         if_referenced = \"refuse\"\n",
    ),
];

/// What the rows say of people.
const CLASSES: &str = r#"
[boxes]
id   = { class = "none" }
up   = { class = "none" }
at   = { class = "none" }
body = { class = "none" }
[things]
box  = { class = "none" }
n    = { class = "none" }
body = { class = "none" }
[notes]
id = { class = "none" }
at = { class = "none" }
[visits]
subject = ["user_id"]
id  = { class = "none" }
user_id = { class = "none" }
at  = { class = "quasi", treat = "keep", reason = "the age" }
who = { class = "personal", treat = "token", length = 24 }
ip  = { class = "personal", treat = "network", bits = [24, 48] }
"#;

struct World {
    app: TestApp,
    _folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("classification.toml"), CLASSES).unwrap();
        for (name, text) in POLICIES {
            std::fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
        }
        let path = folder.path().to_owned();
        let app = TestApp::new().with(|config| config.lifecycle.jobs_dir = path).await;
        sqlx::raw_sql(sql(SETUP)).execute(&app.services.db).await.unwrap();
        Self { app, _folder: folder }
    }

    async fn start(&self, policy: &str) -> i64 {
        let operator = self.app.operator();
        let preview = self.app.services.preview_run(&operator, policy).await.unwrap();
        let started =
            self.app.services.start_run(&operator, policy, Some(&preview.digest)).await.unwrap();
        started.run.id
    }

    async fn status(&self, id: i64) -> String {
        let run = self.app.services.show_run(&self.app.operator(), id).await.unwrap().run;
        assert_ne!(run.status.as_str(), "failed", "{:?}", run.error_message);
        run.status.to_string()
    }

    async fn completed(&self, id: i64) {
        eventually("the run to be completed", LIMIT, async || {
            (self.status(id).await == "completed").then_some(())
        })
        .await;
    }

    /// Every row of these tables, live and archived, without when and by which run it came, and
    /// what the run says it did.
    async fn dump(&self, runs: &[i64]) -> String {
        let mut connection = self.app.services.db.acquire().await.unwrap();
        let catalog = Catalog::read(&mut connection).await.unwrap();
        let mut dump = String::new();
        for table in catalog.tables() {
            if !["boxes", "things", "notes", "visits"].contains(&table.name.name.as_str()) {
                continue;
            }
            let query = format!(
                "select coalesce(string_agg(r, E'\\n' order by r), '')
                   from (select (to_jsonb(t) - 'archived_at' - 'archive_run_id')::text as r
                           from {} t) rows",
                table.name
            );
            let rows: String =
                sqlx::query_scalar(sql(query)).fetch_one(&mut *connection).await.unwrap();
            let _ = writeln!(dump, "== {}\n{rows}", table.name);
        }
        for id in runs {
            let run = self.app.services.show_run(&self.app.operator(), *id).await.unwrap();
            for table in run.tables {
                let _ = writeln!(
                    dump,
                    "{}: {} done, {} held, {} blocked, {} skipped, {} exported, keys {}",
                    table.table_name,
                    table.done,
                    table.held,
                    table.blocked,
                    table.skipped,
                    table.exported_rows,
                    table.keys_hash
                );
            }
        }
        dump
    }
}

/// A number below `most`, another one each time.
fn random(most: u64) -> u64 {
    RandomState::new().build_hasher().finish() % most
}

#[tokio::test]
async fn runs_that_are_killed_at_random_end_like_undisturbed_ones() {
    let (calm, wild) = (World::new().await, World::new().await);
    let mut runs = Vec::new();
    let worker = calm.app.start_worker().await;
    for (policy, _) in POLICIES {
        let id = calm.start(policy).await;
        calm.completed(id).await;
        runs.push(id);
    }
    worker.stop().await;

    let mut killed_at = Vec::new();
    for (policy, _) in POLICIES {
        let id = wild.start(policy).await;
        for _ in 0..KILLS {
            let mut worker = wild.app.start_worker_process().await;
            eventually("the run to be worked on", LIMIT, async || {
                (wild.status(id).await != "pending").then_some(())
            })
            .await;
            let millis = random(800);
            tokio::time::sleep(Duration::from_millis(millis)).await;
            let is_done = wild.status(id).await == "completed";
            worker.kill().await;
            if is_done {
                break;
            }
            killed_at.push(millis);
        }
        let mut worker = wild.app.start_worker_process().await;
        wild.completed(id).await;
        worker.signal(Signal::TERM);
        worker.ended().await;
    }
    let (expected, found) = (calm.dump(&runs).await, wild.dump(&runs).await);
    assert!(!killed_at.is_empty(), "too fast to be killed: {killed_at:?}");
    for (expected, found) in expected.lines().zip(found.lines()) {
        assert_eq!(expected, found, "killed after {killed_at:?} ms");
    }
    assert_eq!(expected.lines().count(), found.lines().count(), "killed after {killed_at:?} ms");
}
