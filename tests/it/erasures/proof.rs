//! Ledger and certificates: what was done can be proven, tampering shows, and a restored database
//! is told to forget again.

use registrar::retention::certificate::Verification;
use registrar::service::ServiceError;

use super::{NAMES, PERSON, People};
use crate::support::TestApp;

async fn verify(people: &People) -> Verification {
    let operator = people.app.operator();
    people.app.services.verify_certificates(&operator, None).await.expect("a verification")
}

#[tokio::test]
async fn a_certificate_tells_what_was_done_and_names_nobody() {
    let people = People::new().await;
    let erasure = people.erase(PERSON).await;
    let operator = people.app.operator();
    let subject = format!("erasure-{}", erasure.id);
    let certificate = people.app.services.certificate(&operator, &subject).await.unwrap();
    let document: serde_json::Value = serde_json::from_str(&certificate.document).unwrap();
    let rows = document["record"]["rows"].as_array().unwrap();
    let tables: Vec<_> = rows.iter().map(|row| row["table"].as_str().unwrap()).collect();
    assert_eq!(tables, ["archive.audit_logs", "audit_logs", "users"]);
    assert_eq!(document["ledger"].as_array().unwrap().len(), 2);
    assert!(document["findings"]["pseudonymous_columns"].to_string().contains("users.email"));
    for name in NAMES {
        assert!(!certificate.document.contains(name), "{name}");
    }
    let stored = people.objects().await;
    let copy = stored.iter().find(|(path, _)| path.starts_with("certificates/")).unwrap();
    assert_eq!(copy.1, certificate.to_lines());
    let audit = "select count(*) from audit_logs where action = 'erasure.completed'";
    assert_eq!(people.app.number(audit).await, 1);
    let found = verify(&people).await;
    assert_eq!((found.certificates, found.ledger_entries, found.findings), (1, 2, vec![]));
}

#[tokio::test]
async fn a_certificate_says_which_files_an_erasure_does_not_reach() {
    let people = People::new().await;
    people
        .app
        .execute(
            "with run as (
                 insert into lifecycle_runs (policy, kind, policy_digest, code_version, as_of,
                                             status, origin)
                 values ('archive-audit-logs', 'archive', repeat('0', 64), '0', now(), 'completed',
                         'schedule')
                 returning id),
             tables as (
                 insert into lifecycle_run_tables (run_id, position, table_name, action, total,
                                                   eligible, held, indeterminate, blocked)
                 select id, 0, 'audit_logs', 'archive', 2, 2, 0, 0, 0 from run
                 returning run_id)
             insert into lifecycle_run_exports (run_id, position, number, object_path, row_count,
                                                size_bytes, sha256, expires_at, removed_at)
             select run_id, 0, n, 'exports/' || n, 1, 1, repeat('0', 64),
                    timestamptz '2090-01-01 00:00+00' + n * interval '1 day',
                    case when n = 3 then now() end
               from tables, generate_series(1, 3) n",
        )
        .await;
    let erasure = people.erase(PERSON).await;
    let operator = people.app.operator();
    let subject = format!("erasure-{}", erasure.id);
    let certificate = people.app.services.certificate(&operator, &subject).await.unwrap();
    let document: serde_json::Value = serde_json::from_str(&certificate.document).unwrap();
    let expected = serde_json::json!([
        {"table_name": "audit_logs", "files": 2, "until": "2090-01-03T00:00:00Z"}
    ]);
    assert_eq!(document["findings"]["exported_files"], expected);
}

#[tokio::test]
async fn any_tampering_shows() {
    let people = People::new().await;
    for subject in [PERSON, "1009", "1010"] {
        people.erase(subject).await;
    }
    assert_eq!(verify(&people).await.findings, []);
    // Each statement is undone by going back to a savepoint of the test's own: copies of tables.
    for table in ["certificates", "erasures", "erasure_tables"] {
        people.app.execute(&format!("create table kept_{table} as table {table}")).await;
    }
    for tampering in [
        "update certificates set document = replace(document, 'anonymize', 'anonymise') where id = 2",
        "update certificates set document = replace(document, 'users', 'roles'),
                sha256 = encode(sha256(convert_to(replace(document, 'users', 'roles'), 'UTF8')), 'hex')
          where id = 3",
        "update certificates set mac = repeat('0', 64) where id = 1",
        "update certificates set about = 'erasure-77' where id = 1",
        "delete from certificates where id = 1",
        "delete from certificates where id = 2",
        "delete from certificates where id = 3",
        "update erasures set begun_at = begun_at - interval '1 day' where id = 2",
        "update erasures set ledger_token = repeat('0', 64) where id = 2",
        "update erasures set requested_at = now() where id = 1",
        "delete from erasures where id = 3",
        "update erasure_tables set rows_changed = rows_changed + 1 where erasure_id = 2",
        "delete from erasure_tables where erasure_id = 2 and table_name = 'users'",
        "insert into erasure_tables values (1, 'roles', 5)",
    ] {
        assert!(people.app.execute(tampering).await > 0, "{tampering}");
        let found = verify(&people).await.findings;
        assert!(!found.is_empty(), "nobody notices: {tampering}");
        for table in ["erasure_tables", "erasures", "certificates"] {
            people.app.execute(&format!("delete from {table}")).await;
        }
        for table in ["erasures", "erasure_tables", "certificates"] {
            people.app.execute(&format!("insert into {table} table kept_{table}")).await;
        }
        assert_eq!(verify(&people).await.findings, [], "after {tampering}");
    }
    let store = &people.app.services.store;
    for (path, text) in people.objects().await {
        let path = path.as_str().into();
        let changes = [text.replacen('2', "3", 1), text.replace("users", "roles"), String::new()];
        for changed in changes.into_iter().filter(|changed| *changed != text) {
            store.put(&path, changed.into()).await.unwrap();
            assert!(!verify(&people).await.findings.is_empty(), "{path} was changed");
        }
        store.delete(&path).await.unwrap();
        assert!(!verify(&people).await.findings.is_empty(), "{path} was deleted");
        store.put(&path, text.clone().into()).await.unwrap();
        let other = format!("{path}x").as_str().into();
        store.put(&other, text.clone().into()).await.unwrap();
        assert!(!verify(&people).await.findings.is_empty(), "{path} was copied");
        store.delete(&other).await.unwrap();
    }
    assert_eq!(verify(&people).await.findings, []);
}

#[tokio::test]
async fn a_restored_database_forgets_again_by_the_ledger() {
    let people = People::new().await;
    people.erase(PERSON).await;
    let store = people.app.config.store.clone();
    // The database as it was before: what a backup would give back.
    let restored = People::with(TestApp::new().with_store(store), true).await;
    assert!(restored.dump().contains(NAMES[0]));
    let findings = verify(&restored).await.findings;
    assert!(!findings.is_empty(), "the chain of the store is not this database's");
    let operator = restored.app.operator();
    let replayed = restored.app.services.replay_erasures(&operator).await.unwrap();
    assert_eq!((replayed.found, replayed.outcome.completed, replayed.certificates), (1, 1, 1));
    for name in NAMES {
        let dump = restored.dump();
        let left: Vec<_> =
            dump.lines().filter(|l| l.contains(name) && !l.contains("\t1008\t")).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    assert_eq!(verify(&restored).await.findings, []);
    let again = restored.app.services.replay_erasures(&operator).await.unwrap();
    assert_eq!((again.found, again.outcome.completed, again.certificates), (0, 0, 0));
}

#[tokio::test]
async fn a_later_person_with_the_same_number_is_not_replayed() {
    let people = People::new().await;
    people.erase(PERSON).await;
    let store = people.app.config.store.clone();
    let restored = People::with(TestApp::new().with_store(store), true).await;
    restored.app.execute("update users set date_joined = now() where id = 1007").await;
    let operator = restored.app.operator();
    let replayed = restored.app.services.replay_erasures(&operator).await.unwrap();
    assert_eq!(replayed.found, 0);
}

#[tokio::test]
async fn nothing_is_erased_while_the_ledger_cannot_be_written() {
    let people = People::new().await;
    let erasure = people.request(PERSON).await;
    people.end_grace().await;
    let data = async || {
        let mut all = people.rows("select * from users order by id").await;
        all.extend(people.rows("select ctid, * from audit_logs order by id").await);
        all
    };
    let before = data().await;
    // A file where the ledger's folder belongs: every write below it fails.
    let blocked = std::path::Path::new(&people.app.config.store.url).join("ledger");
    std::fs::write(&blocked, "in the way").unwrap();
    let outcome = people.app.services.carry_out_erasures().await;
    assert!(matches!(outcome, Err(ServiceError::StoreUnavailable(_))), "{outcome:?}");
    assert_eq!(data().await, before);
    let waits = people.erasure(erasure.id).await;
    assert_eq!(waits.waits_because.as_deref(), Some("failed"));
    std::fs::remove_file(&blocked).unwrap();
    people.end_grace().await;
    assert_eq!(people.carry_out().await.completed, 1);
}

#[tokio::test]
async fn groups_that_are_too_small_are_counted_in_the_certificate() {
    let people = People::new().await;
    let policy = r#"
        kind = "anonymize"
        description = "People whose erasure is due."
        owner = "data-protection-officer"
        subject = "users"
        when = "erasures.due"
        order = "satellites-first"
        grace = "2 months"
        k_anonymity = { quasi = ["date_of_birth", "city"], k = 5, on_fail = "report" }"#;
    let file = people.app.config.lifecycle.jobs_dir.join("anonymize-erased-users.toml");
    std::fs::write(file, policy).unwrap();
    let other = people.request("1009").await;
    assert!((59..=62).contains(&(other.due_at - other.requested_at).num_days()), "the policy's");
    let operator = people.app.operator();
    people.app.services.cancel_erasure(&operator, other.id).await.unwrap();
    let erasure = people.erase(PERSON).await;
    let subject = format!("erasure-{}", erasure.id);
    let certificate = people.app.services.certificate(&operator, &subject).await.unwrap();
    let document: serde_json::Value = serde_json::from_str(&certificate.document).unwrap();
    let groups = &document["findings"]["small_groups"];
    assert_eq!((groups["k"].as_i64(), groups["smallest"].as_i64()), (Some(5), Some(1)), "{groups}");
}

#[tokio::test]
async fn without_keys_nothing_is_begun() {
    let people =
        People::with(TestApp::new().with(|config| config.erasure.keys.clear()), true).await;
    let operator = people.app.operator();
    let answer = people.app.services.request_erasure(&operator, None, PERSON).await;
    let Err(ServiceError::Refused { message: reason, .. }) = answer else { panic!("{answer:?}") };
    assert!(reason.contains("erasure.keys"), "{reason}");
}

#[tokio::test]
async fn a_classification_that_does_not_fit_is_refused_before_anything_is_touched() {
    let people = People::new().await;
    let file = people.app.config.lifecycle.jobs_dir.join("classification.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    for (from, to, says) in [
        (
            "first_name      = { class = \"personal\", treat = \"null\"",
            "first_name      = { class = \"personal\", treat = \"constant\", value = \"a name that is far too long for it\"",
            "holds 30 characters",
        ),
        (
            "password        = { class = \"personal\", treat = \"unusable_password\"",
            "password        = { class = \"personal\", treat = \"null\"",
            "is NOT NULL",
        ),
        (
            "username        = { class = \"personal\", treat = \"token\", length = 24",
            "username        = { class = \"personal\", treat = \"constant\", value = \"gone\"",
            "may write a value twice",
        ),
        ("treat = \"truncate\", to = \"year\"", "treat = \"family\"", "does not work on date"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        std::fs::write(&file, bad).unwrap();
        let operator = people.app.operator();
        let answer = people.app.services.request_erasure(&operator, None, PERSON).await;
        let Err(ServiceError::Refused { message: reason, .. }) = answer else {
            panic!("{to}: {answer:?}")
        };
        assert!(reason.contains(says), "{says}: {reason}");
    }
    assert_eq!(people.app.number("select count(*) from erasures").await, 0);
}
