//! Policies about people: who is due is made anonymous within the policy's limits, and a purge asks
//! for the erasure of accounts that it must keep.

use std::fs;

use registrar::db::erasures::Status;
use registrar::retention::anonymize::Outcome;
use registrar::service::ServiceError;
use registrar::service::runs::RunDetail;
use rustix::process::Signal;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{PERSON, People};
use crate::support::TestApp;
use crate::support::process::Process;

const POLICY: &str = r#"
kind = "anonymize"
description = "People whose erasure is due."
owner = "data-protection-officer"
subject = "users"
when = "erasures.due"
order = "satellites-first"
grace = "30 days"
"#;
const PURGE: &str = r#"
kind = "purge"
description = "Accounts are deleted for good 30 days after their soft deletion."
owner = "data-protection-officer"

[[table]]
name = "users"
age = "deleted_at"
after = "30 days"
if_referenced = "anonymize"
"#;

fn write(people: &People, name: &str, text: &str) {
    let file = people.app.config.lifecycle.jobs_dir.join(format!("{name}.toml"));
    fs::write(file, text).unwrap();
}

async fn preview(people: &People, name: &str) -> Value {
    let preview = people.app.services.preview_run(&people.app.operator(), name).await;
    serde_json::to_value(preview.expect("a preview")).unwrap()
}

async fn start(people: &People, name: &str) -> i64 {
    let (services, operator) = (&people.app.services, people.app.operator());
    let preview = services.preview_run(&operator, name).await.expect("a preview");
    let started = services.start_run(&operator, name, Some(&preview.digest)).await;
    started.expect("a run").run.id
}

async fn work(people: &People, id: i64) -> RunDetail {
    let services = &people.app.services;
    let stop = CancellationToken::new();
    registrar::worker::lifecycle::run_here(services, id, "test", &stop).await.unwrap();
    services.show_run(&people.app.operator(), id).await.unwrap()
}

async fn run(people: &People, name: &str) -> RunDetail {
    let id = start(people, name).await;
    work(people, id).await
}

async fn certificate(people: &People, id: i64) -> Value {
    let operator = people.app.operator();
    let found = people.app.services.certificate(&operator, &format!("run-{id}")).await;
    serde_json::from_str(&found.expect("a certificate").document).unwrap()
}

async fn verify(people: &People) {
    let operator = people.app.operator();
    let verified = people.app.services.verify_certificates(&operator, None).await.unwrap();
    assert_eq!(verified.findings, []);
}

async fn cli(people: &People, arguments: &[&str]) -> (Option<i32>, String) {
    let mut process = Process::start(&people.app.config, arguments);
    let code = process.ended().await.code();
    (code, process.log())
}

#[tokio::test]
async fn who_is_due_is_erased_by_a_run_within_its_limits() {
    let people = People::new().await;
    let limits = "[limits]\nmax_rows = 1\n[approval]\nrequired_for = \"over_ceiling\"\n\
                  by = \"retention.approve\"";
    write(&people, "forget", &format!("{POLICY}{limits}"));
    let mut erasures = Vec::new();
    for subject in [PERSON, "1009", "1010", "1011"] {
        erasures.push(people.request(subject).await.id);
    }
    people
        .app
        .execute("update erasures set due_at = now(), run_at = now() where subject_id <> '1011'")
        .await;
    let (code, log) =
        cli(&people, &["hold", "place", "--subject", "users", "--key", "1010", "--reason", "x"])
            .await;
    assert_eq!(code, Some(0), "{log}");

    let found = preview(&people, "forget").await;
    let table = &found["tables"][0];
    assert_eq!((table["eligible"].as_i64(), table["held"].as_i64()), (Some(2), Some(1)), "{found}");
    assert_eq!(
        (table["action"].as_str(), table["table"].as_str()),
        (Some("anonymize"), Some("users"))
    );
    assert_eq!(found["over_ceiling"].as_array().unwrap().len(), 1);
    let (code, log) = cli(&people, &["policy", "run", "forget", "--yes"]).await;
    assert!(code == Some(3) && log.contains("over limits.max_rows = 1"), "{log}");
    assert_eq!(people.status(erasures[0]).await, Status::Waiting, "nothing was done");
    let second = people.app.caller("rui").await;
    people.app.services.approve_run(&second, 1).await.expect("a second person");
    let done = work(&people, 1).await;
    assert_eq!(done.run.status.as_str(), "completed", "{:?}", done.run.error_message);
    let counts = (done.tables[0].done, done.tables[0].held, done.tables[0].skipped);
    assert_eq!(counts, (2, 1, 0));
    assert_eq!(done.tables[0].keys_hash, table["keys_hash"].as_str().unwrap());
    let tables: Vec<_> = done.tables.iter().map(|table| table.table_name.as_str()).collect();
    assert_eq!(tables, ["users", "archive.audit_logs", "audit_logs"]);
    for (erasure, status) in
        erasures.iter().zip([Status::Completed, Status::Completed, Status::Held, Status::Waiting])
    {
        assert_eq!(people.status(*erasure).await, status, "erasure {erasure}");
    }
    let document = certificate(&people, 1).await;
    assert_eq!(document["kind"], "anonymize");
    assert_eq!(document["record"]["tables"][0]["done"], 2);
    verify(&people).await;

    let again = run(&people, "forget").await;
    assert_eq!((again.run.status.as_str(), again.tables[0].done), ("completed", 0));
    verify(&people).await;
}

#[tokio::test]
async fn a_run_refuses_what_nobody_has_seen() {
    let people = People::new().await;
    write(&people, "forget", POLICY);
    let operator = people.app.operator();
    people.request(PERSON).await;
    people.end_grace().await;
    let seen = people.app.services.preview_run(&operator, "forget").await.unwrap();
    people.app.execute("update erasures set run_at = now() - interval '1 day'").await;
    people.request("1009").await;
    people.app.execute("update erasures set run_at = now() - interval '1 day'").await;
    let refused = people.app.services.start_run(&operator, "forget", Some(&seen.digest)).await;
    let Err(ServiceError::Refused { code, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(code, "stale_digest");
}

#[tokio::test]
async fn a_schedule_carries_out_what_housekeeping_leaves_to_it() {
    let people = People::new().await;
    let schedule = "[schedule]\ncron = \"* * * * *\"\ntimezone = \"Africa/Harare\"\n\
                    [limits]\nmax_rows = 100";
    write(&people, "forget", &format!("{POLICY}{schedule}"));
    let services = &people.app.services;
    assert_eq!(services.start_due_runs().await.unwrap(), 0, "seen for the first time");
    let erasure = people.request(PERSON).await;
    people.end_grace().await;
    assert_eq!(services.carry_out_left().await.unwrap(), Outcome::default());
    people
        .app
        .execute("update schedule_occurrences set due_at = due_at - interval '10 minutes'")
        .await;
    assert_eq!(services.start_due_runs().await.unwrap(), 1);
    let done = work(&people, 1).await;
    assert_eq!((done.run.origin.as_str(), done.tables[0].done), ("schedule", 1));
    assert_eq!(people.status(erasure.id).await, Status::Completed);

    // One that has begun goes on without a run.
    let begun = people.request("1009").await;
    people.end_grace().await;
    people.app.execute("update erasures set begun_at = now() where subject_id = '1009'").await;
    assert_eq!(services.carry_out_left().await.unwrap().completed, 1);
    assert_eq!(people.status(begun.id).await, Status::Completed);
}

#[tokio::test]
async fn small_groups_fail_a_run_whose_policy_says_so_after_its_work() {
    let people = People::new().await;
    let check =
        "k_anonymity = { quasi = [\"date_of_birth\", \"city\"], k = 5, on_fail = \"fail\" }";
    write(&people, "forget", &format!("{POLICY}{check}"));
    let erasure = people.request(PERSON).await;
    people.end_grace().await;
    let done = run(&people, "forget").await;
    assert_eq!(done.run.error_code.as_deref(), Some("small_groups"));
    let message = done.run.error_message.unwrap();
    assert!(message.contains("smaller than k = 5") && message.contains("city"), "{message}");
    assert_eq!(people.status(erasure.id).await, Status::Completed);
    verify(&people).await;
    let (code, log) = cli(&people, &["policy", "anonymity", "forget", "--k", "2"]).await;
    assert!(code == Some(3) && log.contains("smaller than 2"), "{log}");
    let http = people.app.http().await;
    let admin = people.app.token("admin").await;
    let answer = http.get("/v1/policies/forget/anonymity", &admin).send().await.unwrap();
    let counted: Value = answer.json().await.unwrap();
    assert_eq!((counted["k"].as_i64(), counted["smallest"].as_i64()), (Some(5), Some(1)));
    let answer = http.get("/v1/policies/forget/anonymity?k=1", &admin).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    write(&people, "forget", POLICY);
    let answer = http.get("/v1/policies/forget/anonymity", &admin).send().await.unwrap();
    assert_eq!(answer.status(), 409);
}

#[tokio::test]
async fn a_purge_deletes_who_left_no_records_and_asks_for_the_erasure_of_the_others() {
    let people = People::new().await;
    write(&people, "purge-accounts", PURGE);
    people.app.execute("update users set deleted_at = null where deleted_at is not null").await;
    people
        .app
        .execute(
            "insert into users (id, username, email, password, deleted_at)
             values (900001, 'left', 'left@x.example', '!', now() - interval '31 days'),
                    (900002, 'late', 'late@x.example', '!', now() - interval '29 days')",
        )
        .await;
    people
        .app
        .execute("update users set deleted_at = now() - interval '40 days' where id = 1007")
        .await;
    let records = async || people.rows("select * from enrollments where student_id = 1007").await;
    let before = records().await;
    let found = preview(&people, "purge-accounts").await;
    let table = &found["tables"][0];
    let counts = ["eligible", "blocked", "to_erase"].map(|name| table[name].as_i64());
    assert_eq!(counts, [Some(1), Some(1), Some(1)], "{table}");

    let done = run(&people, "purge-accounts").await;
    assert_eq!(done.run.status.as_str(), "completed", "{:?}", done.run.error_message);
    assert_eq!((done.tables[0].done, done.tables[0].blocked), (1, 1));
    assert_eq!(people.app.number("select count(*) from users where id = 900001").await, 0);
    assert_eq!(people.app.number("select count(*) from users where id = 900002").await, 1);
    let asked = "select count(*) from erasures
                  where source = 'purge' and subject_id = '1007' and asked_by_run = 1
                    and status = 'waiting' and due_at <= now()";
    assert_eq!(people.app.number(asked).await, 1);
    assert_eq!(certificate(&people, 1).await["record"]["erasures_asked"], 1);

    let again = run(&people, "purge-accounts").await;
    assert_eq!(again.run.status.as_str(), "completed");
    assert_eq!(people.app.number("select count(*) from erasures").await, 1, "one for each account");
    assert_eq!(people.carry_out().await.completed, 1);
    assert_eq!(records().await, before, "what they did stays");
    assert_eq!(people.app.number("select count(*) from users where id = 1007").await, 1);
    let name = "select count(*) from users where last_name = 'Quillfeather'";
    assert_eq!(people.app.number(name).await, 0);
    let last = run(&people, "purge-accounts").await;
    assert_eq!(last.run.status.as_str(), "completed");
    assert_eq!(preview(&people, "purge-accounts").await["tables"][0]["to_erase"], 0);
    assert_eq!(people.app.number("select count(*) from erasures").await, 1);
    verify(&people).await;
}

#[tokio::test]
async fn a_run_killed_again_and_again_erases_each_person_once() {
    let builder = TestApp::new().with(|config| {
        config.erasure.batch = std::num::NonZeroU32::new(1).unwrap();
        config.erasure.lease_secs = std::num::NonZeroU32::new(1).unwrap();
    });
    let people = People::with(builder, true).await;
    write(&people, "forget", POLICY);
    for subject in 1007..1013 {
        people.request(&subject.to_string()).await;
    }
    people.end_grace().await;
    let id = start(&people, "forget").await;
    let completed = "select count(*) from erasures where status = 'completed'";
    for kill in 0..4 {
        let mut worker = people.app.start_worker_process().await;
        people
            .app
            .wait_for("another person to be erased", async || {
                people.app.number(completed).await > kill
            })
            .await;
        worker.kill().await;
    }
    let mut worker = people.app.start_worker_process().await;
    people
        .app
        .wait_for("the run to end", async || {
            let ended = "select count(*) from lifecycle_runs where status = 'completed'";
            people.app.number(ended).await == 1
        })
        .await;
    worker.signal(Signal::TERM);
    worker.ended().await;
    assert_eq!(people.app.number(completed).await, 6);
    let run = people.app.services.show_run(&people.app.operator(), id).await.unwrap();
    assert_eq!((run.tables[0].done, run.tables[0].skipped), (6, 0));
    assert_eq!(people.app.number("select count(*) from certificates").await, 7);
    verify(&people).await;
}

#[tokio::test]
async fn metrics_tell_what_policies_have_before_them() {
    let people = People::new().await;
    write(&people, "forget", POLICY);
    write(&people, "purge-accounts", PURGE);
    people.request(PERSON).await;
    people.end_grace().await;
    let services = &people.app.services;
    assert_eq!(services.look_at_backlogs().await.unwrap(), 2);
    let backlog = "select eligible from policy_backlogs where policy = 'forget'";
    assert_eq!(people.app.number(backlog).await, 1);
    services.tell_policies().await.unwrap();
    assert_eq!(run(&people, "forget").await.tables[0].done, 1);
    assert_eq!(people.app.number(backlog).await, 0, "the run's own account says so");
    let states = registrar::db::policy_backlogs::states(&services.db, 10).await.unwrap();
    let state = states.iter().find(|state| state.policy == "forget").unwrap();
    assert!(state.last_success.is_some() && state.last_rows.is_some() && !state.is_waiting);
    // A policy that is gone is forgotten.
    let file = people.app.config.lifecycle.jobs_dir.join("purge-accounts.toml");
    fs::remove_file(file).unwrap();
    assert_eq!(services.look_at_backlogs().await.unwrap(), 1);
    assert_eq!(people.app.number("select count(*) from policy_backlogs").await, 1);
}
