//! From the request to the end: the account, the grace, cancels and holds.

use registrar::db::audit::Actor;
use registrar::db::erasures::Status;
use registrar::retention::anonymize::Outcome;
use registrar::service::ServiceError;

use super::{NEIGHBOUR, PERSON, People};

/// The reason of a refusal.
fn refusal<T: std::fmt::Debug>(answer: Result<T, ServiceError>) -> String {
    match answer {
        Err(ServiceError::Refused { message, .. }) => message,
        other => panic!("a refusal was expected: {other:?}"),
    }
}

const ACCOUNT: &str =
    "select id, username, email, is_active, deleted_at from users where id = 1007";

#[tokio::test]
async fn a_request_closes_the_account_at_once_and_frees_its_names() {
    let people = People::new().await;
    let token = people.app.token("zanele.quillfeather").await;
    let authenticate = || people.app.services.authenticate(&token, Actor::default(), String::new());
    authenticate().await.expect("the account is open");
    let erasure = people.request(PERSON).await;
    assert_eq!(erasure.status, Status::Waiting);
    assert_eq!((erasure.due_at - erasure.requested_at).num_days(), 30);
    assert!(matches!(authenticate().await, Err(ServiceError::Unauthenticated)));
    people
        .app
        .execute(
            "insert into users (id, username, email, password)
             values (5000, 'zanele.quillfeather', 'zq@quill.example', 'x')",
        )
        .await;
    let again = people.request(PERSON).await;
    assert_eq!(again.id, erasure.id, "asking twice is asking once");
    assert_eq!(people.carry_out().await, Outcome::default(), "its grace is not over");
    let dump = people.dump();
    let traces = dump.matches("zanele.quillfeather").count();
    // The new account, and the traces of the audit log: what was freed lies sealed.
    assert!(!dump.contains("1007\tzanele.quillfeather"), "{traces}");
}

#[tokio::test]
async fn a_cancel_restores_the_account_as_it_was() {
    let people = People::new().await;
    let before = people.rows(ACCOUNT).await;
    let erasure = people.request(PERSON).await;
    assert_ne!(people.rows(ACCOUNT).await, before);
    let operator = people.app.operator();
    people.app.services.cancel_erasure(&operator, erasure.id).await.expect("it is cancelled");
    assert_eq!(people.rows(ACCOUNT).await, before);
    assert_eq!(people.status(erasure.id).await, Status::Cancelled);
    let sealed = "select count(*) from erasures where sealed is not null";
    assert_eq!(people.app.number(sealed).await, 0);
    let again = people.app.services.cancel_erasure(&operator, erasure.id).await;
    assert!(refusal(again).contains("cancelled already"));
    assert_ne!(people.request(PERSON).await.id, erasure.id, "it can be requested anew");
}

#[tokio::test]
async fn a_cancel_says_which_name_was_taken_meanwhile() {
    let people = People::new().await;
    let erasure = people.request(PERSON).await;
    let taken = "update users set email = 'zq@quill.example' where id = 1008";
    people.app.execute(taken).await;
    let closed = people.rows(ACCOUNT).await;
    let operator = people.app.operator();
    let answer = people.app.services.cancel_erasure(&operator, erasure.id).await;
    let reason = refusal(answer);
    assert!(reason.contains("`email`") && !reason.contains("quill"), "{reason}");
    assert_eq!(people.rows(ACCOUNT).await, closed, "nothing was changed");
    assert_eq!(people.status(erasure.id).await, Status::Waiting);
}

#[tokio::test]
async fn an_erasure_that_was_carried_out_cannot_be_cancelled() {
    let people = People::new().await;
    let erasure = people.erase(PERSON).await;
    let operator = people.app.operator();
    let answer = people.app.services.cancel_erasure(&operator, erasure.id).await;
    assert!(refusal(answer).contains("completed"));
}

#[tokio::test]
async fn nobody_and_nonsense_are_not_found() {
    let people = People::new().await;
    let operator = people.app.operator();
    for subject in ["0", "99999999", "99999999999999999999", "abc", "", "1007; drop table users"] {
        let answer = people.app.services.request_erasure(&operator, None, subject).await;
        assert!(matches!(answer, Err(ServiceError::NotFound { .. })), "{subject}: {answer:?}");
    }
    let answer = people.app.services.request_erasure(&operator, Some("roles"), "1").await;
    assert!(matches!(answer, Err(ServiceError::NotFound { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_hold_defers_an_erasure_and_its_release_resumes_it() {
    let people = People::new().await;
    people
        .app
        .execute(
            "insert into holds (scope, table_name, key_columns, keys, reason)
             values ('subject', 'users', array['id'], '[[\"1007\"]]', 'a case')",
        )
        .await;
    let erasure = people.request(PERSON).await;
    let before = people.rows("select * from users where id = 1007").await;
    people.end_grace().await;
    assert_eq!(people.carry_out().await, Outcome { held: 1, ..Outcome::default() });
    assert_eq!(people.status(erasure.id).await, Status::Held);
    assert_eq!(people.rows("select * from users where id = 1007").await, before);
    assert!(people.app.stored().await.is_empty(), "the ledger tells of no act");
    people.app.execute("update holds set released_at = now(), release_reason = 'over'").await;
    people.end_grace().await;
    assert_eq!(people.carry_out().await.completed, 1);
    assert_eq!(people.status(erasure.id).await, Status::Completed);
}

#[tokio::test]
async fn one_persons_broken_seal_keeps_nobody_else_waiting() {
    let people = People::new().await;
    let broken = people.request(PERSON).await;
    let whole = people.request("1009").await;
    people.app.execute("update erasures set sealed = '\\x00' where subject_id = '1007'").await;
    people.end_grace().await;
    let outcome = people.carry_out().await;
    assert_eq!(outcome, Outcome { completed: 1, postponed: 1, ..Outcome::default() });
    assert_eq!(people.status(whole.id).await, Status::Completed);
    let waits = people.erasure(broken.id).await;
    assert_eq!((waits.status, waits.waits_because.as_deref()), (Status::Waiting, Some("sealed")));
}

#[tokio::test]
async fn several_people_are_erased_in_one_go_by_chunks() {
    let people = People::with(
        crate::support::TestApp::new().with(|config| {
            config.erasure.chunk_rows = std::num::NonZeroU32::new(3).unwrap();
        }),
        true,
    )
    .await;
    for subject in [PERSON, NEIGHBOUR, "1009", "1010"] {
        people.request(subject).await;
    }
    people.end_grace().await;
    assert_eq!(people.carry_out().await.completed, 4);
    let named = "select count(*) from users where id between 1007 and 1010
                    and (first_name is not null or email not like '%@erased.invalid')";
    assert_eq!(people.app.number(named).await, 0);
}
