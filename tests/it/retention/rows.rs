//! Policies that make old rows anonymous: exactly the old ones, as the classification says, once.

use std::fs;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use registrar::policy::{Policies, Policy};
use registrar::retention::engine::{self, Outcome};
use registrar::retention::error::RetentionError;
use registrar::retention::keyring::Keyring;
use registrar::retention::plan::Preview;
use registrar::retention::run::{self, RunEnd, RunTable};
use registrar::retention::treatment::{Place, TokenShape, Treatment};
use serde_json::Value;
use tempfile::TempDir;

use super::world::World;
use crate::support::TestApp;
use crate::support::database::Contents;
use crate::support::process::Process;

const TABLE: &str = "
    create table visits (
        id bigint primary key, at timestamptz, who varchar(24) not null unique, mail varchar(60),
        born date, seen timestamptz, local timestamp, ip inet, agent text, doc jsonb,
        note varchar(20), word varchar(30), code char(4), kept text);
    create index on visits (at);
    insert into visits
    select id, at::timestamptz, 'visitor ' || id, id || '@x.example', '2001-05-17',
           '2001-05-17 10:20:30.5+00', '2001-05-17 10:20:30.5', '10.1.2.3',
           'Mozilla/5.0 (X11) Firefox/126', '{\"who\": \"somebody\", \"n\": 1}', 'a note', 'Stephanie',
           'ab', 'as it was'
      from (values (1, '2019-02-28 23:59:59.999999+00'), (2, '2019-03-01 00:00:00+00'),
                   (3, '2019-03-01 00:00:00.000001+00'), (4, null), (5, '0001-01-01'),
                   (6, '9999-12-31'), (7, 'infinity'), (8, '2010-01-01'), (9, '2010-01-01'),
                   (10, '2010-01-01'), (11, '2010-01-01')) as v (id, at);
    update visits set born = '0044-03-15 BC', seen = 'infinity', local = '0044-03-15 BC',
                      ip = '2001:db8:77:1::77', word = 'Zoë Éa', agent = 'curl/8.5.0'
     where id = 9;
    update visits set born = '300000-05-06', seen = '2001-05-01 00:00+00', local = '-infinity',
                      ip = '10.1.2.3/20', word = 'ab', agent = 'curl'
     where id = 10;
    update visits set mail = null, born = null, seen = null, local = null, ip = null, agent = null,
                      doc = null, note = null, word = null, code = null
     where id = 11;
    insert into holds (scope, table_name, condition, reason)
    values ('query', 'visits', 'id = 8', 'held')";
const CLASSES: &str = r#"
[visits]
id    = { class = "none" }
at    = { class = "quasi", treat = "keep", reason = "the age" }
who   = { class = "personal", treat = "token", length = 24 }
mail  = { class = "personal", treat = "token", length = 24, suffix = "@x.invalid" }
born  = { class = "quasi", treat = "truncate", to = "year" }
seen  = { class = "quasi", treat = "truncate", to = "month" }
local = { class = "quasi", treat = "truncate", to = "year" }
ip    = { class = "personal", treat = "network", bits = [24, 48] }
agent = { class = "quasi", treat = "family" }
doc   = { class = "personal", treat = "scrub_json", of = "visits" }
note  = { class = "free_text", treat = "null" }
word  = { class = "quasi", treat = "truncate", to = 3 }
code  = { class = "personal", treat = "constant", value = "none" }
kept  = { class = "none" }
"#;
const POLICY: &str = r#"
kind = "anonymize"
description = "Old visits say less."
owner = "tests"
[[table]]
name = "visits"
age = "at"
after = "1 year"
"#;
/// The rows that no run may touch.
const OTHERS: &str = "select string_agg(v.xmin || v.ctid::text || v.*::text, '|' order by id)
                        from visits v where id between 2 and 8";

struct Visits {
    world: World,
    jobs: TempDir,
}

impl Visits {
    async fn new() -> Self {
        let world = World::new(Contents::Schema, TABLE).await;
        let visits = Self { world, jobs: TempDir::new().unwrap() };
        visits.write("classification", CLASSES);
        visits.write("forget", POLICY);
        visits
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.jobs.path().join(format!("{name}.toml")), text).unwrap();
    }

    fn policies(&self) -> (Policies, Policy) {
        let policies = Policies::load(self.jobs.path()).unwrap_or_else(|error| panic!("{error}"));
        let policy = policies.get("forget").unwrap().clone();
        (policies, policy)
    }

    async fn preview(&self, keyring: &Keyring) -> Preview {
        let (policies, policy) = self.policies();
        let mut tx = self.world.db.begin().await.unwrap();
        let classes = Arc::new(policies.classification);
        engine::preview_policy(&mut tx, Some(keyring), &policy, &classes, Some(as_of()))
            .await
            .expect("a preview")
    }

    async fn try_run(&self, keyring: Option<&Keyring>) -> Result<RunTable, RetentionError> {
        let (policies, policy) = self.policies();
        let id = self.world.start(&policy, Some(as_of())).await;
        let (claimed, attempt) = self.world.claim(id).await;
        let (db, store) = (&self.world.db, &self.world.store);
        let classes = Arc::new(policies.classification);
        let done = engine::run(db, store, keyring, &policy, &classes, &claimed, &attempt).await;
        let mut connection = db.acquire().await.unwrap();
        assert!(run::settle(&mut connection, id, 1, &RunEnd::Completed).await.unwrap());
        assert_eq!(done?, Outcome::Completed);
        Ok(run::tables_of(&mut connection, id).await.unwrap().remove(0))
    }

    async fn run(&self, keyring: &Keyring) -> RunTable {
        self.try_run(Some(keyring)).await.expect("a run")
    }
}

fn as_of() -> DateTime<Utc> {
    "2020-03-01T00:00:00Z".parse().unwrap()
}

fn keyring(active: &str, keys: &[&str]) -> Keyring {
    let keys: Vec<_> = keys.iter().map(|key| (*key, key[1..].repeat(64))).collect();
    Keyring::new(active, keys.iter().map(|(id, key)| (*id, key.as_str()))).unwrap()
}

/// What an erasure would write.
fn token(keyring: &Keyring, column: &str, row: &str, suffix: &str) -> String {
    let shape = TokenShape { chars: 24.try_into().unwrap(), ..TokenShape::plain() };
    let token = Treatment::Token(TokenShape { suffix: suffix.to_owned(), ..shape });
    let row = [row.to_owned()];
    let place = Place { table: "visits", column, row: &row };
    token.apply(keyring.active(), place, Some("")).unwrap()
}

#[tokio::test]
async fn exactly_the_old_rows_are_treated_and_only_once() {
    let visits = Visits::new().await;
    let world = &visits.world;
    let keys = keyring("k1", &["k1"]);
    let others = world.text(OTHERS).await;
    let found = visits.preview(&keys).await;
    let table = &found.tables[0];
    assert_eq!((table.eligible, table.held, table.indeterminate, table.blocked), (4, 1, 4, 0));
    assert_eq!(table.sample_keys, ["1", "9", "10", "11"]);
    let treats: Vec<_> = table.treats.iter().map(|t| format!("{} {}", t.column, t.treat)).collect();
    assert_eq!(treats.len(), 11);
    assert!(treats.contains(&"ip network".to_owned()), "{treats:?}");

    let done = visits.run(&keys).await;
    assert_eq!((done.action.as_str(), done.done, done.held, done.skipped), ("anonymize", 4, 1, 0));
    assert_eq!(done.keys_hash, table.keys_hash);
    assert_eq!(world.text(OTHERS).await, others, "a row that is young, ageless or held");
    for (id, expected) in [
        (
            1,
            "born = '2001-01-01' and seen = '2001-05-01 00:00+00' and local = '2001-01-01 00:00'
             and ip = '10.1.2.0/24' and agent = 'Firefox' and doc = '{\"who\": null, \"n\": 1}'
             and note is null and word = 'Ste' and code = 'none' and kept = 'as it was'",
        ),
        (
            9,
            "born = '0044-01-01 BC' and seen = 'infinity' and local = '0044-01-01 BC'
             and ip = '2001:db8:77::/48' and word = 'Zoë' and agent = 'curl'",
        ),
        (
            10,
            "born = '300000-01-01' and seen = '2001-05-01 00:00+00' and local = '-infinity'
             and ip = '10.1.0.0/20' and word = 'ab'",
        ),
        (
            11,
            "num_nulls(mail, born, seen, local, ip, agent, doc, note, word, code) = 10
             and kept = 'as it was'",
        ),
    ] {
        let row = world.text(&format!("select v::text from visits v where id = {id}")).await;
        let query = format!("select count(*) from visits where id = {id} and {expected}");
        assert_eq!(world.number(&query).await, 1, "{row}");
        let who = world.text(&format!("select who from visits where id = {id}")).await;
        assert_eq!(who, token(&keys, "who", &id.to_string(), ""));
    }
    let mail = world.text("select mail from visits where id = 1").await;
    assert_eq!(mail, token(&keys, "mail", "1", "@x.invalid"));

    // Once more, and with another key for what is new: a token of the old one is a token.
    let all =
        "select string_agg(v.xmin || v.ctid::text || v.*::text, '|' order by id) from visits v";
    let before = world.text(all).await;
    for keys in [keyring("k1", &["k1"]), keyring("k2", &["k1", "k2"])] {
        let found = visits.preview(&keys).await;
        assert_eq!((found.tables[0].eligible, found.tables[0].held), (0, 1));
        let again = visits.run(&keys).await;
        assert_eq!((again.done, again.held, again.skipped), (0, 1, 0));
        assert_eq!(world.text(all).await, before);
    }
    // Somebody writes into a row that was treated, and one is released.
    world.execute("update visits set ip = '10.1.2.9' where id = 1").await;
    world.execute("update holds set released_at = now(), release_reason = 'x'").await;
    let keys = keyring("k2", &["k1", "k2"]);
    let last = visits.run(&keys).await;
    assert_eq!((last.done, last.held), (2, 0));
    let ip = "select count(*) from visits where id = 1 and ip = '10.1.2.0/24'";
    assert_eq!(world.number(ip).await, 1);
    let who = "select who from visits where id in (1, 8) order by id desc";
    assert_eq!(world.text(who).await, token(&keys, "who", "8", ""));
    visits.world.end().await;
}

#[tokio::test]
async fn only_the_columns_that_are_named_and_also_in_archives_and_partitions() {
    let visits = Visits::new().await;
    let world = &visits.world;
    world
        .execute(
            "create schema if not exists archive;
             create table archive.visits (
                 like visits including all, archived_at timestamptz, archive_run_id bigint);
             insert into archive.visits select *, now(), 1 from visits where id = 1;
             create table logs (id int, at date, ip inet, primary key (id, at))
                 partition by range (at);
             create table logs_old partition of logs for values from (minvalue) to ('2015-01-01');
             create table logs_new partition of logs for values from ('2015-01-01') to (maxvalue);
             create index on logs (at);
             insert into logs select n, date '2010-01-01' + n * 300, '192.0.2.77'
               from generate_series(0, 19) n;",
        )
        .await;
    let logs = "[logs]\nid = { class = \"none\" }\n\
                at = { class = \"quasi\", treat = \"keep\", reason = \"the age\" }\n\
                ip = { class = \"personal\", treat = \"network\", bits = [24, 48] }\n";
    visits.write("classification", &format!("{CLASSES}\n{logs}"));
    let keys = keyring("k1", &["k1"]);
    let policy = POLICY.replace("\"visits\"", "\"archive.visits\"");
    visits.write("forget", &format!("{policy}columns = [\"who\", \"ip\"]\n"));
    assert_eq!(visits.run(&keys).await.done, 1);
    let row = "select who || ' ' || host(ip) || ' ' || note from archive.visits";
    let expected = format!("{} 10.1.2.0 a note", token(&keys, "who", "1", ""));
    assert_eq!(world.text(row).await, expected);

    visits.write("forget", &POLICY.replace("\"visits\"", "\"logs\""));
    let done = visits.run(&keys).await;
    let old = "select count(*) from logs where at < '2019-03-01'";
    assert_eq!(done.done, world.number(old).await);
    let treated = "select count(*) from logs where ip = '192.0.2.0/24' and at < '2019-03-01'";
    assert_eq!(done.done, world.number(treated).await);
    assert_eq!(visits.run(&keys).await.done, 0);
    visits.world.end().await;
}

#[tokio::test]
async fn a_row_that_somebody_works_on_is_left_for_later() {
    let visits = Visits::new().await;
    let keys = keyring("k1", &["k1"]);
    let mut other = visits.world.db.begin().await.unwrap();
    sqlx::query("update visits set kept = 'mine' where id = 9").execute(&mut *other).await.unwrap();
    let done = visits.run(&keys).await;
    assert_eq!((done.done, done.skipped), (3, 1));
    other.commit().await.unwrap();
    let done = visits.run(&keys).await;
    assert_eq!((done.done, done.skipped), (1, 0));
    let kept = "select count(*) from visits where id = 9 and kept = 'mine' and note is null";
    assert_eq!(visits.world.number(kept).await, 1);
    visits.world.end().await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_a_row_is_read() {
    let visits = Visits::new().await;
    let keys = keyring("k1", &["k1"]);
    for (columns, expected) in [
        ("columns = [\"kept\"]", "`visits.kept` is kept, or says nothing of a person"),
        ("columns = [\"nobody\"]", "`visits.nobody` does not exist"),
    ] {
        visits.write("forget", &format!("{POLICY}{columns}\n"));
        let refused = visits.try_run(Some(&keys)).await.unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    visits.write("forget", &POLICY.replace("\"at\"", "\"born\""));
    let refused = visits.try_run(Some(&keys)).await.unwrap_err().to_string();
    assert!(refused.contains("`visits.born` tells the age"), "{refused}");
    visits.write("forget", POLICY);
    let refused = visits.try_run(None).await.unwrap_err();
    assert_eq!(refused.code(), "bad_keys", "{refused}");
    visits.world.end().await;
}

async fn cli(app: &TestApp, arguments: &[&str]) -> (Option<i32>, String) {
    let mut process = Process::start(&app.config, arguments);
    let code = process.ended().await.code();
    (code, process.log())
}

#[tokio::test]
async fn it_is_checked_previewed_run_and_certified_like_any_policy() {
    let jobs = TempDir::new().unwrap();
    let classes = include_str!("../../../jobs/classification.toml");
    fs::write(jobs.path().join("classification.toml"), classes).unwrap();
    let file = jobs.path().join("old-addresses.toml");
    let policy = |rest: &str| {
        format!(
            "kind = \"anonymize\"\ndescription = \"x\"\nowner = \"y\"\n\
             limits = {{ max_rows = 1 }}\n\
             approval = {{ required_for = \"over_ceiling\", by = \"retention.approve\" }}\n\
             [[table]]\nname = \"audit_logs\"\nage = \"created_at\"\nafter = \"1 year\"\n{rest}\n"
        )
    };
    let folder = jobs.path().to_owned();
    let app = TestApp::new().with(|config| config.lifecycle.jobs_dir = folder).await;
    app.execute("delete from audit_logs").await;
    app.execute(
        "insert into audit_logs (action, entity_type, entity_id, ip_address, user_agent, created_at)
         select 'login', 'user', 1, '203.0.113.7', 'curl/8.5.0', now() - n * interval '200 days'
           from generate_series(1, 4) n",
    )
    .await;
    for (rest, expected) in [
        ("columns = [\"action\"]", "`audit_logs.action` is named by `columns`, but is kept"),
        ("columns = [\"nobody\"]", "`audit_logs.nobody` is named by `columns`, but there is no"),
    ] {
        fs::write(&file, policy(rest)).unwrap();
        let (code, log) = cli(&app, &["policy", "check"]).await;
        assert!(code == Some(3) && log.contains(expected), "{log}");
        let (code, log) = cli(&app, &["policy", "run", "old-addresses", "--yes"]).await;
        assert_eq!(code, Some(3), "{log}");
    }
    fs::write(&file, policy("columns = [\"ip_address\", \"ip_address\"]")).unwrap();
    let (code, log) = cli(&app, &["policy", "check"]).await;
    assert_ne!(code, Some(0), "{log}");

    fs::write(&file, policy("columns = [\"ip_address\", \"user_agent\"]")).unwrap();
    let (code, log) = cli(&app, &["policy", "check"]).await;
    assert_eq!(code, Some(0), "{log}");
    let (services, operator) = (&app.services, app.operator());
    let seen = services.preview_run(&operator, "old-addresses").await.unwrap();
    assert_eq!((seen.tables[0].eligible, seen.over_ceiling.len()), (3, 1));
    // Another row is old by now: what was seen is not what would be done.
    app.execute("update audit_logs set created_at = now() - interval '3 years'").await;
    let stale = services.start_run(&operator, "old-addresses", Some(&seen.digest)).await;
    assert!(stale.is_err(), "{stale:?}");
    let (code, log) = cli(&app, &["policy", "run", "old-addresses", "--yes"]).await;
    assert!(code == Some(3) && log.contains("4 rows are over limits.max_rows = 1"), "{log}");
    let second = app.caller("rui").await;
    services.approve_run(&second, 1).await.expect("a second person");
    let worker = app.start_worker().await;
    let ended = "select count(*) from lifecycle_runs where status = 'completed'";
    app.wait_for("the run's end", async || app.number(ended).await == 1).await;
    worker.stop().await;
    let treated = "select count(*) from audit_logs
                    where ip_address = '203.0.113.0/24' and user_agent = 'curl'";
    assert_eq!(app.number(treated).await, 4);
    let certificate = services.certificate(&operator, "run-1").await.unwrap();
    let document: Value = serde_json::from_str(&certificate.document).unwrap();
    assert_eq!(document["kind"], "anonymize");
    assert_eq!(document["record"]["tables"][0]["done"], 4);
    let treats = document["findings"]["treated"].to_string();
    assert!(treats.contains("ip_address") && treats.contains("generalised"), "{treats}");
    let verified = services.verify_certificates(&operator, None).await.unwrap();
    assert_eq!(verified.findings, []);
}
