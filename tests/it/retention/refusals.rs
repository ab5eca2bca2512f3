//! What a safety rule refuses: exit code 3 at the command line, 409 over HTTP, and a message that
//! says what to do. Nothing is done.

use serde_json::{Value, json};

use super::runs::Lifecycle;

const OVER_LIMIT: &str = "[limits]\nmax_rows = 10\n[approval]\nrequired_for = \"never\"\n\
                          by = \"retention.approve\"";

/// Tries to run what a preview finds now, through both doors.
async fn refused(world: &Lifecycle, code: &str, says: &[&str]) {
    let before = world.app.number("select count(*) from notes").await;
    let output = world.cli(&["policy", "run", "notes", "--yes"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    let preview = world.app.services.preview_run(&world.app.operator(), "notes").await.unwrap();
    let (status, problem) = post(world, &preview.digest).await;
    assert_eq!((status, problem["errors"][0]["code"].as_str()), (409, Some(code)), "{problem}");
    let told = problem.to_string();
    for says in says {
        assert!(text.contains(says), "{says}: {text}");
        assert!(told.contains(&says.replace('"', "\\\"")), "{says}: {told}");
    }
    assert_eq!(world.app.number("select count(*) from notes").await, before);
    assert_eq!(world.app.number("select count(*) from lifecycle_runs").await, 0);
}

async fn post(world: &Lifecycle, digest: &str) -> (u16, Value) {
    let http = world.app.http().await;
    let admin = world.app.token("admin").await;
    let body = json!({ "digest": digest });
    let answer = http.post("/v1/policies/notes/runs", &admin, &body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn a_policy_over_its_ceiling() {
    let world = Lifecycle::new(OVER_LIMIT, 50).await;
    refused(&world, "over_ceiling", &["50 rows are over limits.max_rows = 10", "raise the limit"])
        .await;
}

#[tokio::test]
async fn a_missing_index() {
    let world = Lifecycle::new("", 50).await;
    world.app.execute("drop index notes_at_idx").await;
    refused(&world, "policy_check", &["has no index that leads with", "create index concurrently"])
        .await;
}

#[tokio::test]
async fn a_column_that_is_not_classed() {
    let world = Lifecycle::new("", 50).await;
    let classes = "[notes]\nid = { class = \"none\" }\nat = { class = \"none\" }\n";
    std::fs::write(world.folder.path().join("classification.toml"), classes).unwrap();
    refused(&world, "policy_check", &["notes.body", "classification.toml"]).await;
    let classed = format!(
        "{classes}body = {{ class = \"free_text\", treat = \"keep\", reason = \"a test\" }}\n"
    );
    std::fs::write(world.folder.path().join("classification.toml"), classed).unwrap();
    let done = world.cli(&["policy", "run", "notes", "--yes"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn a_stale_digest() {
    let world = Lifecycle::new("", 50).await;
    let seen = world.app.services.preview_run(&world.app.operator(), "notes").await.unwrap();
    world.app.execute("delete from notes where id = 7").await;
    let output = world.cli(&["policy", "run", "notes", "--digest", &seen.digest]);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("look at a new one"), "{text}");
    let (status, problem) = post(&world, &seen.digest).await;
    assert_eq!((status, problem["errors"][0]["code"].as_str()), (409, Some("stale_digest")));
    assert_eq!(world.app.number("select count(*) from notes").await, 51);
}

#[tokio::test]
async fn a_hold_that_was_placed_after_the_preview() {
    let world = Lifecycle::new("", 50).await;
    let seen = world.app.services.preview_run(&world.app.operator(), "notes").await.unwrap();
    let placed =
        world.cli(&["hold", "place", "--table", "notes", "--key", "7", "--reason", "a case"]);
    assert!(placed.status.success(), "{}", String::from_utf8_lossy(&placed.stderr));
    let output = world.cli(&["policy", "run", "notes", "--digest", &seen.digest]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let (status, problem) = post(&world, &seen.digest).await;
    assert_eq!((status, problem["errors"][0]["code"].as_str()), (409, Some("stale_digest")));
    // Whoever looks again sees the hold, and the row stays.
    let now = world.app.services.preview_run(&world.app.operator(), "notes").await.unwrap();
    assert_eq!((now.tables[0].eligible, now.tables[0].held), (49, 1));
    let done = world.cli(&["policy", "run", "notes", "--digest", &now.digest]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(world.app.number("select count(*) from notes where id = 7").await, 1);
}
