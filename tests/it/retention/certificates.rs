//! Every run ends with a certificate, and nothing of it can be changed unseen.

use registrar::retention::certificate::{ExpectedHead, Verification};
use registrar::service::ServiceError;
use secrecy::SecretString;
use serde_json::Value;

use super::runs::Lifecycle;

async fn verify(world: &Lifecycle) -> Verification {
    verify_with(world, None).await
}

async fn verify_with(world: &Lifecycle, head: Option<&str>) -> Verification {
    let head: Option<ExpectedHead> = head.map(|head| head.parse().expect("a head"));
    let operator = world.app.operator();
    world.app.services.verify_certificates(&operator, head.as_ref()).await.expect("a verification")
}

/// The sealed text of a run's newest certificate.
async fn certificate(world: &Lifecycle, id: i64) -> Value {
    let operator = world.app.operator();
    let found = world.app.services.certificate(&operator, &format!("run-{id}")).await;
    serde_json::from_str(&found.expect("a certificate").document).unwrap()
}

/// Runs the policy over what is old now, in this process.
async fn run(world: &Lifecycle) -> i64 {
    let id = world.start().await;
    work(world, id).await;
    id
}

async fn work(world: &Lifecycle, id: i64) {
    let stop = tokio_util::sync::CancellationToken::new();
    let services = &world.app.services;
    let worked = registrar::worker::lifecycle::run_here(services, id, "test", &stop).await;
    assert!(worked.unwrap());
}

async fn again(world: &Lifecycle, rows: u32) -> i64 {
    world
        .app
        .execute(&format!(
            "insert into notes
             select n, 'x', now() - interval '1 year' from generate_series(100001, 100000 + {rows}) n
             on conflict do nothing"
        ))
        .await;
    world.app.execute("drop table if exists archive.notes cascade").await;
    run(world).await
}

#[tokio::test]
async fn a_run_ends_with_a_certificate_in_three_places() {
    let world = Lifecycle::new("", 300).await;
    let missing = world.cli(&["run", "certificate", "1"]);
    assert_eq!(missing.status.code(), Some(1), "there is no such run");
    let id = world.start().await;
    let early = world.cli(&["run", "certificate", "1"]);
    assert_eq!(early.status.code(), Some(3), "{}", String::from_utf8_lossy(&early.stderr));
    assert!(String::from_utf8_lossy(&early.stderr).contains("is pending"));
    work(&world, id).await;

    let printed = world.cli(&["run", "certificate", "1"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8(printed.stdout).unwrap();
    let document: Value = serde_json::from_str(printed.lines().next().unwrap()).unwrap();
    let shown = world.app.services.show_run(&world.app.operator(), id).await.unwrap();
    assert_eq!(document["kind"], "archive");
    assert_eq!(document["policy_digest"], shown.run.policy_digest);
    assert_eq!(document["findings"]["owner"], "tests");
    let table = &document["record"]["tables"][0];
    assert_eq!((table["table"].as_str(), table["done"].as_i64()), (Some("notes"), Some(300)));
    assert_eq!(table["keys_hash"], shown.tables[0].keys_hash);
    assert_eq!(document["record"]["status"], "completed");

    let http = world.app.http().await;
    let admin = world.app.token("admin").await;
    let answer = http.get("/v1/runs/1/certificate", &admin).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), printed);
    let stored = world.app.stored().await;
    let stored: Vec<_> = stored.iter().filter(|p| p.starts_with("certificates/")).collect();
    assert_eq!(stored.len(), 2, "the certificate and the head: {stored:?}");
    let audit = "select count(*) from audit_logs
                  where action = 'certificate.sealed' and entity_id = 1";
    assert_eq!(world.app.number(audit).await, 1);

    let answer = http.get("/v1/certificates/verification", &admin).send().await.unwrap();
    let verified: Value = answer.json().await.unwrap();
    assert_eq!(verified["findings"], serde_json::json!([]));
    let head = format!("1:{}", verified["head"]["sha256"].as_str().unwrap());
    let said = world.cli(&["run", "verify", "--head", &head]);
    assert!(said.status.success());
    assert!(String::from_utf8_lossy(&said.stdout).contains(&format!("head {head}")));
    let other = world.cli(&["run", "verify", "--head", &"0".repeat(64)]);
    assert_eq!(other.status.code(), Some(3));
    let wrong = http.get("/v1/certificates/verification?head=x", &admin).send().await.unwrap();
    assert_eq!(wrong.status(), 400);
    let reader = world.app.token("ana").await;
    let answer = http.get("/v1/certificates/verification", &reader).send().await.unwrap();
    assert_eq!(answer.status(), 403);
}

#[tokio::test]
async fn a_run_that_fails_is_taken_up_again_or_is_cancelled_is_certified_each_time() {
    let world = Lifecycle::new("", 100).await;
    let operator = world.app.operator();
    let id = world.start().await;
    world.write("[limits]\nmax_rows = 7");
    work(&world, id).await;
    let document = certificate(&world, id).await;
    assert_eq!(document["record"]["status"], "failed");
    assert_eq!(document["record"]["error_code"], "policy_changed");
    assert_eq!(document["findings"]["owner"], Value::Null, "another policy has another owner");
    world.write("");
    world.app.services.resume_run(&operator, id).await.unwrap();
    assert_eq!(certificate(&world, id).await["record"]["status"], "pending");
    assert_eq!(verify(&world).await.findings, []);
    work(&world, id).await;
    assert_eq!(certificate(&world, id).await["record"]["status"], "completed");
    let cancelled = world.start().await;
    world.app.services.cancel_run(&operator, cancelled).await.unwrap();
    assert_eq!(certificate(&world, cancelled).await["record"]["status"], "cancelled");
    let verified = verify(&world).await;
    assert_eq!((verified.certificates, verified.findings), (4, vec![]));
    assert_eq!(world.app.services.seal_unsealed().await.unwrap(), 0);
}

#[tokio::test]
async fn any_tampering_with_a_run_shows() {
    let world = Lifecycle::new("", 100).await;
    run(&world).await;
    again(&world, 5).await;
    assert_eq!(verify(&world).await.findings, []);
    let tables = ["lifecycle_runs", "lifecycle_run_tables", "certificates", "audit_logs"];
    for table in tables {
        world.app.execute(&format!("create table kept_{table} as table {table}")).await;
    }
    for tampering in [
        "update lifecycle_runs set policy = 'other' where id = 1",
        "update lifecycle_runs set requested_by = 1, origin = 'user' where id = 1",
        "update lifecycle_runs set approved_by = 3 where id = 2",
        "update lifecycle_runs set as_of = as_of + interval '1 microsecond' where id = 1",
        "update lifecycle_runs set completed_at = now() where id = 1",
        "update lifecycle_runs set status = 'failed' where id = 2",
        "update lifecycle_runs set status = 'paused', completed_at = null where id = 2",
        "update lifecycle_runs set policy_digest = repeat('0', 64) where id = 1",
        "update lifecycle_run_tables set done = done - 1 where run_id = 1",
        "update lifecycle_run_tables set held = held + 1 where run_id = 1",
        "update lifecycle_run_tables set keys_hash = repeat('0', 32) where run_id = 2",
        "update lifecycle_run_tables set cutoff = now() where run_id = 1",
        "update lifecycle_run_tables set table_name = 'users' where run_id = 1",
        "delete from lifecycle_run_tables where run_id = 1",
        "insert into lifecycle_run_tables (run_id, position, table_name, action)
         values (1, 7, 'users', 'purge')",
        "delete from lifecycle_runs where id = 1",
        "insert into lifecycle_runs (policy, kind, policy_digest, code_version, as_of, status,
                                     origin)
         values ('x', 'purge', repeat('0', 64), '1', now(), 'completed', 'operator')",
        "update certificates set document = replace(document, 'completed', 'compleled')
          where id = 1",
        "delete from certificates where id = 1",
        "delete from certificates where id = 2",
        "update audit_logs set new_values = '{\"sha256\": \"0\"}'
          where action = 'certificate.sealed' and entity_id = 2",
        "delete from audit_logs where action = 'certificate.sealed'",
    ] {
        assert!(world.app.execute(tampering).await > 0, "{tampering}");
        let found = verify(&world).await.findings;
        assert!(!found.is_empty(), "nobody notices: {tampering}");
        for table in tables.iter().rev() {
            world.app.execute(&format!("delete from {table}")).await;
        }
        for table in tables {
            world.app.execute(&format!("insert into {table} table kept_{table}")).await;
        }
        assert_eq!(verify(&world).await.findings, [], "after {tampering}");
    }
}

#[tokio::test]
async fn a_run_that_ended_without_keys_is_sealed_later_and_once() {
    let mut world = Lifecycle::new("", 50).await;
    let keyed = world.app.services.clone();
    let mut config = world.app.config.clone();
    config.erasure.keys.clear();
    world.app.services.config = std::sync::Arc::new(config);
    let id = run(&world).await;
    let operator = world.app.operator();
    let refused = world.app.services.certificate(&operator, "run-1").await;
    let Err(ServiceError::Refused { message, .. }) = refused else { panic!("{refused:?}") };
    assert!(message.contains("openssl rand -hex 32"), "{message}");
    assert_eq!(world.app.services.seal_unsealed().await.unwrap(), 0);
    world.app.services = keyed;
    let found = verify(&world).await.findings;
    assert!(found[0].fault.contains("no certificate says so"), "{found:?}");
    let attempts = (0..6).map(|_| world.app.services.seal_unsealed());
    let sealed: u64 = futures::future::try_join_all(attempts).await.unwrap().into_iter().sum();
    assert_eq!(sealed, 1);
    assert_eq!(certificate(&world, id).await["findings"]["sealed_late"], true);
    // One of the six may have found another at the copies.
    world.app.services.seal_unsealed().await.unwrap();
    let verified = verify(&world).await;
    assert_eq!((verified.certificates, verified.findings), (1, vec![]));
}

#[tokio::test]
async fn a_copy_that_was_not_made_is_made_by_housekeeping() {
    let world = Lifecycle::new("", 50).await;
    // A file where the folder of certificates belongs: every write below it fails.
    let blocked = std::path::Path::new(&world.app.config.store.url).join("certificates");
    std::fs::write(&blocked, "in the way").unwrap();
    let id = run(&world).await;
    assert_eq!(certificate(&world, id).await["record"]["status"], "completed");
    assert_eq!(
        world.app.number("select count(*) from certificates where stored_at is null").await,
        1
    );
    std::fs::remove_file(&blocked).unwrap();
    let worker = world.app.start_worker().await;
    registrar::scheduler::tick(&world.app.services.db).await.unwrap();
    world
        .app
        .wait_for("the copy", async || {
            let stored = "select count(*) from certificates where stored_at is not null";
            world.app.number(stored).await == 1
        })
        .await;
    assert_eq!(verify(&world).await.findings, []);
    worker.stop().await;
}

#[tokio::test]
async fn an_end_of_the_chain_that_was_cut_off_shows_while_one_place_remembers_it() {
    let world = Lifecycle::new("", 50).await;
    run(&world).await;
    let store = world.app.services.store.clone();
    let head_path = "certificates/head.json".into();
    let old_head = store.get(&head_path).await.unwrap();
    again(&world, 5).await;
    let printed = verify(&world).await.head.unwrap().to_string();
    let new_head = store.get(&head_path).await.unwrap();
    assert_ne!(old_head, new_head);
    let copies: Vec<_> = world.app.stored().await;
    let copy = copies.iter().find(|path| path.starts_with("certificates/0000000002")).unwrap();
    let copy_path = copy.as_str().into();

    // The chain's end, its copy and the run's record are cut off everywhere, one place after
    // another: what still remembers them tells.
    world.app.execute("delete from certificates where id = 2").await;
    world.app.execute("delete from lifecycle_run_tables where run_id = 2").await;
    world.app.execute("delete from lifecycle_runs where id = 2").await;
    let whats = async || {
        let found = verify(&world).await.findings;
        found.into_iter().map(|finding| finding.what).collect::<Vec<_>>()
    };
    assert_eq!(whats().await, [copy.as_str(), "certificates/head.json", "the audit log"]);
    store.delete(&copy_path).await.unwrap();
    assert_eq!(whats().await, ["certificates/head.json", "the audit log"]);
    let sealed = "action = 'certificate.sealed' and entity_id = 2";
    world.app.execute(&format!("delete from audit_logs where {sealed}")).await;
    assert_eq!(whats().await, ["certificates/head.json"]);
    // The head that is there does not lead on: a new certificate does not paint it over.
    again(&world, 7).await;
    assert_eq!(store.get(&head_path).await.unwrap(), new_head);
    assert_eq!(whats().await, ["certificates/head.json"]);
    store.delete(&head_path).await.unwrap();
    assert_eq!(whats().await, ["certificates/head.json"], "one that is gone is not made anew");
    // Everything set back: only who has written the head down can tell.
    store.put(&head_path, old_head).await.unwrap();
    again(&world, 9).await;
    assert_eq!(verify(&world).await.findings, []);
    let found = verify_with(&world, Some(&printed)).await.findings;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].what.contains(&printed), "{found:?}");
    let now = verify(&world).await.head.unwrap().to_string();
    assert_eq!(verify_with(&world, Some(&now)).await.findings, []);
}

#[tokio::test]
async fn without_keys_a_verification_says_what_is_missing() {
    let mut world = Lifecycle::new("", 1).await;
    let mut config = world.app.config.clone();
    config.erasure.keys.clear();
    config.erasure.keys.insert("k1".to_owned(), SecretString::from("short"));
    world.app.services.config = std::sync::Arc::new(config);
    let operator = world.app.operator();
    let answer = world.app.services.verify_certificates(&operator, None).await;
    let Err(ServiceError::Refused { message, .. }) = answer else { panic!("{answer:?}") };
    assert!(message.contains("erasure.keys.k1"), "{message}");
}
