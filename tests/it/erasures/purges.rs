//! People whom a purge deletes: the ledger tells of them before they go, whatever happens in
//! between, and a restored database forgets them again.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use registrar::retention::keyring::Keyring;
use registrar::retention::ledger::{self, Purge, Told};
use registrar::service::runs::RunDetail;
use rustix::process::Signal;
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::People;
use crate::support::TestApp;

const POLICY: &str = r#"
kind = "purge"
description = "Accounts are deleted for good 30 days after their soft deletion."
owner = "data-protection-officer"

[limits]
chunk_target = "10ms"

[[table]]
name = "users"
age = "deleted_at"
after = "30 days"
if_referenced = "anonymize"
"#;
/// Times at which a worker is killed.
const KILLS: u32 = 4;

/// People of `numbers` who left long ago; born at a time that another database has too.
fn leavers(numbers: &str) -> String {
    format!(
        "insert into users (id, username, email, password, first_name, date_joined, deleted_at)
         select n, 'leaver' || n, 'leaver' || n || '@x.example', '!', 'Leaver' || n,
                timestamptz '2015-01-01 12:00:00.25+00' + n * interval '1 second',
                now() - interval '31 days'
           from generate_series({numbers}) n"
    )
}

async fn people() -> People {
    let people = People::with(TestApp::new(), false).await;
    fs::write(people.app.config.lifecycle.jobs_dir.join("purge.toml"), POLICY).unwrap();
    people.app.execute("update users set deleted_at = null where deleted_at is not null").await;
    people
}

async fn start(people: &People) -> i64 {
    let (services, operator) = (&people.app.services, people.app.operator());
    let preview = services.preview_run(&operator, "purge").await.expect("a preview");
    let started = services.start_run(&operator, "purge", Some(&preview.digest)).await;
    started.expect("a run").run.id
}

async fn work(people: &People, id: i64) -> RunDetail {
    let services = &people.app.services;
    let stop = CancellationToken::new();
    registrar::worker::lifecycle::run_here(services, id, "test", &stop).await.unwrap();
    services.show_run(&people.app.operator(), id).await.unwrap()
}

async fn findings(people: &People) -> Vec<String> {
    let operator = people.app.operator();
    let verified = people.app.services.verify_certificates(&operator, None).await.unwrap();
    verified.findings.iter().map(|finding| format!("{} {}", finding.what, finding.fault)).collect()
}

fn keyring(people: &People) -> Keyring {
    let config = &people.app.config.erasure;
    let keys = config.keys.iter().map(|(id, key)| (id.as_str(), key.expose_secret()));
    Keyring::new(&config.active_key, keys).unwrap()
}

/// What the ledger calls people, from their rows.
async fn tokens(people: &People, of: &str) -> BTreeSet<String> {
    let query = format!(
        "select id::text, to_char(date_joined at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.FF2')
                from users where {of}"
    );
    let rows: Vec<(String, String)> = sqlx::query_as(crate::support::database::sql(query))
        .fetch_all(&people.app.services.db)
        .await
        .unwrap();
    let keyring = keyring(people);
    rows.iter().map(|(id, born)| ledger::token(keyring.active(), "users", id, Some(born))).collect()
}

/// Entries of purges in the store, by path.
async fn entries(people: &People) -> Vec<(String, Purge)> {
    let listed = ledger::list(&people.app.services.store, &keyring(people)).await.unwrap();
    let mut entries = Vec::new();
    for (object, told) in listed {
        if let Told::Purge(purge) = told.expect("an entry") {
            entries.push((object.path, purge));
        }
    }
    entries
}

/// Entries that the certificate of a run names.
async fn named(people: &People, run: i64) -> BTreeSet<String> {
    let operator = people.app.operator();
    let found = people.app.services.certificate(&operator, &format!("run-{run}")).await.unwrap();
    let document: Value = serde_json::from_str(&found.document).unwrap();
    let objects = document["ledger"].as_array().unwrap().iter();
    objects.map(|object| object["path"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn whoever_a_purge_deletes_stays_forgotten_in_a_restored_database() {
    let people = people().await;
    people.app.execute(&leavers("900001, 900030")).await;
    let expected = tokens(&people, "id > 900000").await;
    let id = start(&people).await;

    // While the ledger cannot be written nobody goes.
    let blocked = std::path::Path::new(&people.app.config.store.url).join("ledger");
    fs::write(&blocked, "in the way").unwrap();
    let tried = work(&people, id).await;
    assert_eq!(tried.run.error_code.as_deref(), Some("store"));
    assert_eq!(people.app.number("select count(*) from users where id > 900000").await, 30);
    fs::remove_file(&blocked).unwrap();

    people.app.execute("update lifecycle_runs set run_at = now()").await;
    let done = work(&people, id).await;
    assert_eq!((done.run.status.as_str(), done.tables[0].done), ("completed", 30));
    let entries = entries(&people).await;
    let told: BTreeSet<_> = entries.iter().flat_map(|(_, e)| e.tokens.iter().cloned()).collect();
    assert_eq!(told, expected);
    let paths: BTreeSet<_> = entries.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(named(&people, id).await, paths);
    assert!(people.objects().await.iter().all(|(_, text)| !text.contains("leaver900")));
    assert_eq!(findings(&people).await, [""; 0]);

    // A ledger that was tampered with shows.
    let (store, path) = (&people.app.services.store, paths.first().unwrap().as_str().into());
    let kept = store.get(&path).await.unwrap();
    store.delete(&path).await.unwrap();
    let found = findings(&people).await;
    assert!(found.iter().any(|found| found.contains("is gone")), "{found:?}");
    let text = String::from_utf8(kept.to_vec()).unwrap();
    store.put(&path, text.replacen("\"run\":1", "\"run\":2", 1).into()).await.unwrap();
    let found = findings(&people).await;
    assert!(found.iter().any(|found| found.contains("seal is broken")), "{found:?}");
    store.put(&path, kept).await.unwrap();
    assert_eq!(findings(&people).await, [""; 0]);
    let noted = "update purge_ledger set sha256 = repeat('0', 64)";
    assert_eq!(people.app.execute(noted).await, 1);
    people.app.execute("delete from certificates").await;
    let found = findings(&people).await;
    assert!(found.iter().any(|found| found.contains("since a run noted it")), "{found:?}");

    // The database as it was before, in which somebody else has one of their numbers by now.
    let restored =
        People::with(TestApp::new().with_store(people.app.config.store.clone()), false).await;
    restored.app.execute(&leavers("900001, 900031")).await;
    restored.app.execute("update users set date_joined = now() where id = 900030").await;
    let found = findings(&restored).await;
    assert!(found.iter().any(|found| found.contains("replay the ledger")), "{found:?}");
    let operator = restored.app.operator();
    let replayed = restored.app.services.replay_erasures(&operator).await.unwrap();
    assert_eq!((replayed.found, replayed.outcome.completed), (29, 29));
    let names = "select id from users where username like 'leaver%' order by id";
    let left = restored.rows(names).await;
    assert_eq!(left, ["{\"id\": 900030}", "{\"id\": 900031}"]);
    assert_eq!(findings(&restored).await, [""; 0]);
    let again = restored.app.services.replay_erasures(&operator).await.unwrap();
    assert_eq!(again.found, 0);
}

#[tokio::test]
async fn what_a_killed_worker_told_counts_until_its_run_has_ended() {
    let people = people().await;
    people.app.execute(&leavers("900001, 900002")).await;
    // As a worker leaves it that is killed between the entry and its transaction's end.
    let id = start(&people).await;
    let run = people.app.services.show_run(&people.app.operator(), id).await.unwrap().run;
    let stays = tokens(&people, "id = 900002").await;
    let left = Purge {
        table: "users".to_owned(),
        tokens: stays.into_iter().collect(),
        key_id: people.app.config.erasure.active_key.clone(),
        run: id,
        as_of: run.as_of,
        attempt: 1,
        policy_digest: run.policy_digest,
        begun_at: run.as_of,
    };
    let store = &people.app.services.store;
    ledger::write_purge(store, &keyring(&people), left).await.unwrap();

    // Nobody can tell yet whether they went: a database from before forgets them.
    let before =
        People::with(TestApp::new().with_store(people.app.config.store.clone()), false).await;
    before.app.execute(&leavers("900001, 900003")).await;
    let operator = before.app.operator();
    let replayed = before.app.services.replay_erasures(&operator).await.unwrap();
    assert_eq!((replayed.found, replayed.outcome.completed), (1, 1));
    assert_eq!(findings(&before).await, [""; 0]);

    // They are taken back meanwhile, and stay: the run's certificate does not name the entry.
    // What the other database wrote is not of this one's chain.
    for (path, _) in people.objects().await {
        if path.starts_with("certificates/") || path.contains(".begun") || path.contains(".compl") {
            store.delete(&path.as_str().into()).await.unwrap();
        }
    }
    people.app.execute("update users set deleted_at = null where id = 900002").await;
    people.app.execute("update lifecycle_runs set preview_digest = null").await;
    let done = work(&people, id).await;
    assert_eq!((done.run.status.as_str(), done.tables[0].done), ("completed", 1));
    assert_eq!((entries(&people).await.len(), named(&people, id).await.len()), (2, 1));
    assert_eq!(findings(&people).await, [""; 0]);
    let operator = people.app.operator();
    let replayed = people.app.services.replay_erasures(&operator).await.unwrap();
    assert_eq!(replayed.found, 0);
    let after =
        People::with(TestApp::new().with_store(people.app.config.store.clone()), false).await;
    after.app.execute(&leavers("900001, 900003")).await;
    let replayed = after.app.services.replay_erasures(&operator).await.unwrap();
    assert_eq!((replayed.found, replayed.outcome.completed), (1, 1));
    let names = "select id from users where username like 'leaver%' order by id";
    let left = after.rows(names).await;
    assert_eq!(left, ["{\"id\": 900002}", "{\"id\": 900003}"]);
    assert_eq!(findings(&after).await, [""; 0]);
}

#[tokio::test]
async fn a_purge_killed_at_random_tells_of_everybody_it_deletes() {
    let people = people().await;
    people.app.execute(&leavers("900001, 900900")).await;
    people
        .app
        .execute(
            "insert into audit_logs (user_id, action, entity_type, entity_id)
             select id, 'login', 'user', id from users where id > 900000 and id % 9 = 0",
        )
        .await;
    let expected = tokens(&people, "id > 900000 and id % 9 > 0").await;
    let id = start(&people).await;
    let status = async || {
        let run = people.app.services.show_run(&people.app.operator(), id).await.unwrap().run;
        assert_ne!(run.status.as_str(), "failed", "{:?}", run.error_message);
        run.status.to_string()
    };
    let mut killed_at = Vec::new();
    for _ in 0..KILLS {
        let mut worker = people.app.start_worker_process().await;
        people.app.wait_for("the run's begin", async || status().await != "pending").await;
        let millis = RandomState::new().build_hasher().finish() % 400;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let is_done = status().await == "completed";
        worker.kill().await;
        if is_done {
            break;
        }
        killed_at.push(millis);
    }
    let mut worker = people.app.start_worker_process().await;
    people.app.wait_for("the run's end", async || status().await == "completed").await;
    worker.signal(Signal::TERM);
    worker.ended().await;

    assert!(!killed_at.is_empty(), "too fast to be killed");
    let left = "select count(*) from users where id > 900000 and id % 9 > 0";
    assert_eq!(people.app.number(left).await, 0, "killed after {killed_at:?} ms");
    let named = named(&people, id).await;
    let told: Vec<_> = entries(&people)
        .await
        .into_iter()
        .filter(|(path, _)| named.contains(path))
        .flat_map(|(_, entry)| entry.tokens)
        .collect();
    assert_eq!(told.len(), expected.len(), "nobody twice, killed after {killed_at:?} ms");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), expected);
    // Whom others reference is asked for once, and forgotten.
    let asked = "select count(*) from erasures where source = 'purge' and asked_by_run = 1";
    assert_eq!(people.app.number(asked).await, 100, "killed after {killed_at:?} ms");
    people.app.execute("update erasures set run_at = now() where status = 'waiting'").await;
    people.carry_out().await;
    let kept = "select count(*) from users where id > 900000 and username not like 'leaver%'";
    assert_eq!(people.app.number(kept).await, 100);
    assert_eq!(findings(&people).await, [""; 0]);
}
