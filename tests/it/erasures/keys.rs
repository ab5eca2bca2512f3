//! Keys are rotated while erasures are open, and files that belong to a person go with them.

use std::sync::Arc;

use registrar::db::erasures::Status;
use secrecy::SecretString;

use super::{NEIGHBOUR, PERSON, People};

/// The same services with other keys.
fn set_keys(people: &mut People, keys: &[&str], active: &str) {
    let mut config = people.app.config.clone();
    config.erasure.keys.clear();
    for key in keys {
        let bytes = if *key == "k1" { "2a" } else { "3b" };
        config.erasure.keys.insert((*key).to_owned(), SecretString::from(bytes.repeat(32)));
    }
    active.clone_into(&mut config.erasure.active_key);
    people.app.services.config = Arc::new(config);
}

#[tokio::test]
async fn a_key_is_rotated_while_an_erasure_is_open() {
    let mut people = People::new().await;
    let policy = "kind = \"anonymize\"\ndescription = \"x\"\nowner = \"x\"\nsubject = \"users\"\n\
                  when = \"erasures.due\"\norder = \"satellites-first\"\ngrace = \"30 days\"";
    let folder = people.app.config.lifecycle.jobs_dir.clone();
    std::fs::write(folder.join("forget.toml"), policy).unwrap();
    let first = people.erase("1009").await;
    let open = people.request(PERSON).await;
    set_keys(&mut people, &["k1", "k2"], "k2");
    let later = people.request("1010").await;
    people.end_grace().await;
    assert_eq!(people.carry_out().await.completed, 2, "each with the key it began with");
    let key_of =
        async |id: i64| people.rows(&format!("select key_id from erasures where id = {id}")).await;
    assert_eq!(key_of(open.id).await, ["{\"key_id\": \"k1\"}"]);
    assert_eq!(key_of(later.id).await, ["{\"key_id\": \"k2\"}"]);
    let operator = people.app.operator();
    let verified = people.app.services.verify_certificates(&operator, None).await.unwrap();
    assert_eq!((verified.certificates, verified.findings), (3, vec![]));
    // Nothing is erased again with the new key: a token is a fixed point under its own.
    let before =
        people.rows("select * from users where id in (1007, 1009, 1010) order by id").await;
    assert_eq!(people.carry_out().await.completed, 0);
    let after = people.rows("select * from users where id in (1007, 1009, 1010) order by id").await;
    assert_eq!(before, after);
    assert_eq!(people.status(first.id).await, Status::Completed);

    // Who still needs a key that is gone cannot be told: they are counted, and nothing is guessed.
    let waiting = people.request("1011").await;
    people.end_grace().await;
    set_keys(&mut people, &["k1"], "k1");
    let preview = people.app.services.preview_run(&operator, "forget").await.unwrap();
    assert_eq!((preview.tables[0].eligible, preview.tables[0].indeterminate), (0, 1));
    let verified = people.app.services.verify_certificates(&operator, None).await.unwrap();
    let missing = verified.findings.iter().find(|finding| finding.fault.contains("no key `k2`"));
    assert!(missing.is_some(), "{:?}", verified.findings);
    assert_eq!(people.status(waiting.id).await, Status::Waiting);
}

#[tokio::test]
async fn a_profile_picture_goes_with_its_person_and_nobody_elses() {
    let people = People::new().await;
    let store = &people.app.services.store;
    for subject in [PERSON, NEIGHBOUR] {
        let path = format!("avatars/{subject}.png");
        store.put(&path.as_str().into(), "a face".into()).await.unwrap();
        people
            .app
            .execute(&format!("update users set profile_picture = '{path}' where id = {subject}"))
            .await;
    }
    people.erase(PERSON).await;
    let stored = people.app.stored().await;
    assert!(!stored.contains(&format!("avatars/{PERSON}.png")), "{stored:?}");
    assert!(stored.contains(&format!("avatars/{NEIGHBOUR}.png")), "{stored:?}");
    let left =
        "select count(*) from users where id in (1007, 1008) and profile_picture is not null";
    assert_eq!(people.app.number(left).await, 1);
}
