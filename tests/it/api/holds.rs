use super::*;

/// A person of the sample data with enrollments.
const PERSON: &str = "1001";

#[tokio::test]
async fn a_hold_is_placed_followed_and_released_with_its_audit_rows() {
    let api = Api::start(TestApp::new()).await;
    let token = api.app.token("rui").await;
    let body = json!({"scope": "subject", "table": "users", "keys": [[PERSON]],
                      "reason": "Appeal 2026/17", "until": "2999-01-01T00:00:00Z"});
    let answer = api.post("/v1/holds").bearer_auth(&token).json(&body).answer().await;
    let hold = answer.json(201);
    let path = answer.header("location").to_owned();
    assert_eq!(hold["self"], path);
    assert_eq!(hold["key_columns"], json!(["id"]));
    assert_eq!(hold["in_force"], true);
    let shown = api.get(&path).bearer_auth(&token).answer().await.json(200);
    assert_eq!(shown, hold);

    let release = format!("{path}/release");
    let body = json!({"reason": "The appeal was decided"});
    let released = api.post(&release).bearer_auth(&token).json(&body).answer().await.json(200);
    assert_eq!(released["in_force"], false);
    assert_eq!(released["release_reason"], "The appeal was decided");
    let again = api.post(&release).bearer_auth(&token).json(&body).answer().await;
    again.problem(409, "wrong-state");

    let audit: Vec<(String, String)> = sqlx::query_as(
        "select action, new_values::text from audit_logs where entity_type = 'holds' order by id",
    )
    .fetch_all(&api.app.services.db)
    .await
    .unwrap();
    let actions: Vec<_> = audit.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions, ["hold.placed", "hold.released"]);
    let details: String = audit.into_iter().map(|(_, details)| details).collect();
    assert!(!details.contains(PERSON) && !details.contains("ppeal"), "{details}");
}

#[tokio::test]
async fn holds_are_listed_page_by_page_and_by_filter() {
    let api = Api::start(TestApp::new()).await;
    let token = api.app.token("rui").await;
    for id in ["2", "3", "4"] {
        let body = json!({"scope": "rows", "table": "users", "keys": [[id]], "reason": "x"});
        api.post("/v1/holds").bearer_auth(&token).json(&body).answer().await.json(201);
    }
    let body = json!({"scope": "query", "table": "course_enrollments", "where": "grade = 'F'",
                      "reason": "Review"});
    api.post("/v1/holds").bearer_auth(&token).json(&body).answer().await.json(201);
    let (mut path, mut seen) = ("/v1/holds?table=users&limit=2".to_owned(), Vec::new());
    loop {
        let page = api.get(&path).bearer_auth(&token).answer().await.json(200);
        seen.extend(page["holds"].as_array().unwrap().iter().map(|hold| hold["keys"].clone()));
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut path),
            None => break,
        }
    }
    assert_eq!(seen, [json!([["4"]]), json!([["3"]]), json!([["2"]])]);
    let ended = api.get("/v1/holds?in_force=false").bearer_auth(&token).answer().await.json(200);
    assert_eq!(ended["holds"], json!([]));
}

#[tokio::test]
async fn a_wrong_hold_is_refused_field_by_field() {
    let api = Api::start(TestApp::new()).await;
    let token = api.app.token("rui").await;
    let send =
        async |body: Value| api.post("/v1/holds").bearer_auth(&token).json(&body).answer().await;
    for (body, expected) in [
        (json!({}), vec!["/scope", "/table", "/reason"]),
        (
            json!({"scope": "rows", "table": "users", "reason": " ", "colour": 1}),
            vec!["/reason", "/keys", "/colour"],
        ),
        (
            json!({"scope": "table", "table": "a.b.c", "reason": "x", "until": "soon"}),
            vec!["/table", "/until"],
        ),
        (
            json!({"scope": "table", "table": "users", "reason": "x", "keys": [["1"]]}),
            vec!["/keys"],
        ),
        (json!({"scope": "subject", "table": "users", "reason": "x", "keys": []}), vec!["/keys"]),
        (json!({"scope": "rows", "table": "users", "reason": "x", "keys": [["x"]]}), vec!["/keys"]),
        (
            json!({"scope": "rows", "table": "users", "reason": "x", "keys": [["999999"]]}),
            vec!["/keys"],
        ),
        (
            json!({"scope": "rows", "table": "nowhere", "reason": "x", "keys": [["1"]]}),
            vec!["/table"],
        ),
        (
            json!({"scope": "query", "table": "users", "reason": "x", "where": "a; b"}),
            vec!["/where"],
        ),
        (
            json!({"scope": "query", "table": "users", "reason": "x", "where": "nothing = 1"}),
            vec!["/where"],
        ),
        (
            json!({"scope": "table", "table": "users", "reason": "x", "until": "2001-01-01T00:00:00Z"}),
            vec!["/until"],
        ),
    ] {
        let problem = send(body.clone()).await.problem(422, "invalid-input");
        let mut found = pointers(&problem);
        found.sort_unstable();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(found, expected, "{body}");
    }
    let count: i64 = sqlx::query_scalar("select count(*) from holds")
        .fetch_one(&api.app.services.db)
        .await
        .unwrap();
    assert_eq!(count, 0);
}

#[tokio::test]
async fn only_who_may_sees_policies_and_holds() {
    let api = Api::start(TestApp::new()).await;
    let analyst = api.app.token("ana").await;
    let registrar = api.app.token("rui").await;
    for path in ["/v1/policies", "/v1/policies/archive-audit-logs", "/v1/holds", "/v1/holds/1"] {
        api.get(path).answer().await.problem(401, "unauthenticated");
        api.get(path).bearer_auth(&analyst).answer().await.problem(403, "forbidden");
    }
    api.get("/v1/holds/1").bearer_auth(&registrar).answer().await.problem(404, "not-found");
    api.get("/v1/policies/none-such")
        .bearer_auth(&registrar)
        .answer()
        .await
        .problem(404, "not-found");
    let list = api.get("/v1/policies").bearer_auth(&registrar).answer().await.json(200);
    let names: Vec<_> =
        list["policies"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(names.is_sorted() && names.contains(&"purge-deleted-users"), "{names:?}");
    let shown = api.get("/v1/policies/purge-deleted-users").bearer_auth(&registrar).answer().await;
    let policy = shown.json(200);
    assert_eq!(policy["kind"], "purge");
    assert_eq!(policy["digest"].as_str().unwrap().len(), 64);
    assert_eq!(policy["content"]["table"][0]["after"], "30 days");
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_told_with_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("broken.toml"), "kind = \"shred\"\n").unwrap();
    let path = folder.path().to_owned();
    let app = TestApp::new().with(move |config| config.lifecycle.jobs_dir = path);
    let api = Api::start(app).await;
    let token = api.app.token("rui").await;
    let answer = api.get("/v1/policies").bearer_auth(&token).answer().await;
    let problem = answer.problem(503, "unavailable");
    assert!(
        problem["detail"].as_str().unwrap().contains("broken.toml:1: `kind` must be"),
        "{problem}"
    );
}
