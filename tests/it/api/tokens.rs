//! Tokens over HTTP: nobody comes to rights by making one.

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, Answering, Api, pointers};
use crate::support::TestApp;

struct Tokens(Api);

impl Tokens {
    async fn start() -> Self {
        Self(Api::start(TestApp::new()).await)
    }

    async fn make(&self, with: &str, body: Value) -> Answer {
        self.0.post("/v1/tokens").bearer_auth(with).json(&body).answer().await
    }

    /// A token that was made, whole.
    async fn made(&self, with: &str, body: Value) -> String {
        self.make(with, body).await.json(201)["token"].as_str().unwrap().to_owned()
    }

    async fn get(&self, with: &str, path: &str) -> Answer {
        self.0.get(path).bearer_auth(with).answer().await
    }

    async fn listed(&self, with: &str, path: &str) -> Vec<Value> {
        self.get(with, path).await.json(200)["tokens"].as_array().unwrap().clone()
    }

    async fn revoke(&self, with: &str, prefix: &str) -> Answer {
        let path = format!("/v1/tokens/{prefix}");
        self.0.request(Method::DELETE, &path).bearer_auth(with).answer().await
    }
}

fn prefix(token: &str) -> &str {
    &token[..12]
}

#[tokio::test]
async fn a_token_is_made_shown_once_and_taken_back_at_once() {
    let tokens = Tokens::start().await;
    let ana = tokens.0.app.token("ana").await;
    let body = json!({"name": "nightly", "scopes": ["reports.view"], "expires_after_days": 7});
    let answer = tokens.make(&ana, body).await;
    let made = answer.json(201);
    let token = made["token"].as_str().unwrap();
    assert_eq!(made["user"], "ana");
    assert_eq!(made["prefix"], prefix(token));
    assert_eq!(answer.header("location"), made["self"]);
    let life = |of: &Value, from: &str| -> i64 {
        let at = |key: &str| of[key].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
        (at("expires_at") - at(from)).num_hours()
    };
    assert_eq!(life(&made, "created_at"), 7 * 24);

    tokens.get(token, "/v1/reports").await.json(200);
    let path = format!("/v1/tokens/{}", prefix(token));
    let shown = tokens.get(&ana, &path).await;
    assert!(!shown.text().contains(token), "only its beginning can be seen");
    let listed = tokens.get(&ana, "/v1/tokens").await;
    assert!(!listed.text().contains(token));
    let shown = shown.json(200);
    assert!(shown["last_used_at"].is_string());
    assert_eq!((&shown["valid"], &shown["current"]), (&json!(true), &json!(false)));

    let revoked = tokens.revoke(&ana, prefix(token)).await.json(200);
    assert_eq!(revoked["valid"], false);
    tokens.get(token, "/v1/reports").await.problem(401, "unauthenticated");
    let again = tokens.revoke(&ana, prefix(token)).await.json(200);
    assert_eq!(again["revoked_at"], revoked["revoked_at"], "it stays as it was");
    let audited = "select count(*) from audit_logs a join users u on u.id = a.user_id
                    where u.username = 'ana' and a.action in ('token.created', 'token.revoked')";
    assert_eq!(tokens.0.app.number(audited).await, 2);
    let leaked = format!("select count(*) from audit_logs where new_values::text like '%{token}%'");
    assert_eq!(tokens.0.app.number(&leaked).await, 0);
}

#[tokio::test]
async fn nobody_comes_to_rights_by_making_a_token() {
    let tokens = Tokens::start().await;
    let app = &tokens.0.app;
    let (ana, olga, admin) =
        (app.token("ana").await, app.token("olga").await, app.token("admin").await);
    let wider = |scopes: Value| json!({"name": "wider", "scopes": scopes});
    // Ana does not have it, and for others she makes none.
    let refused = tokens.make(&ana, wider(json!(["reports.run", "queues.manage"]))).await;
    assert_eq!(pointers(&refused.problem(422, "invalid-input")), ["/scopes"]);
    for user in ["lena", "no-such-user"] {
        let body = json!({"name": "other", "user": user, "scopes": ["reports.run"]});
        tokens.make(&ana, body).await.problem(403, "forbidden");
    }
    // Olga may make them for others, and still none that does what she cannot do.
    let for_ana = |scopes: Value| json!({"name": "for ana", "user": "ana", "scopes": scopes});
    for scopes in [json!(["reports.run"]), Value::Null] {
        let refused = tokens.make(&olga, for_ana(scopes)).await;
        assert_eq!(pointers(&refused.problem(422, "invalid-input")), ["/scopes"]);
    }
    let view = tokens.made(&olga, for_ana(json!(["reports.view"]))).await;
    tokens.get(&view, "/v1/reports").await.json(200);
    tokens.get(&view, "/v1/queues").await.problem(403, "forbidden");
    let whole = tokens.made(&admin, for_ana(Value::Null)).await;
    tokens.get(&whole, "/v1/executions").await.json(200);

    // A token with scopes makes none, whatever its owner may do, and sees only itself.
    let narrow = tokens.made(&ana, json!({"name": "narrow", "scopes": ["reports.run"]})).await;
    let child = json!({"name": "child", "scopes": ["reports.run"]});
    tokens.make(&narrow, child).await.problem(403, "forbidden");
    let seen = tokens.listed(&narrow, "/v1/tokens").await;
    assert_eq!(seen.len(), 1);
    assert_eq!((&seen[0]["name"], &seen[0]["current"]), (&json!("narrow"), &json!(true)));
    tokens.revoke(&narrow, prefix(&ana)).await.problem(404, "not-found");
    tokens.revoke(&narrow, prefix(&narrow)).await.json(200);
    tokens.get(&narrow, "/v1/tokens").await.problem(401, "unauthenticated");

    // With `tokens.manage` among the scopes it makes others, with no more than these.
    let maker = json!({"name": "maker", "scopes": ["tokens.manage", "reports.view"]});
    let maker = tokens.made(&admin, maker).await;
    let refused = tokens.make(&maker, json!({"name": "all"})).await;
    assert_eq!(pointers(&refused.problem(422, "invalid-input")), ["/scopes"]);
    let refused = tokens.make(&maker, wider(json!(["reports.run"]))).await;
    assert_eq!(pointers(&refused.problem(422, "invalid-input")), ["/scopes"]);
    tokens.make(&maker, wider(json!(["reports.view"]))).await.json(201);
}

#[tokio::test]
async fn a_token_does_not_outlive_the_one_that_made_it() {
    let tokens = Tokens::start().await;
    let short = tokens.0.app.limited_token("ana", None, Some(2)).await;
    let ends = json!(short.row.expires_at);
    for days in [Value::Null, json!(1000)] {
        let made = tokens.make(&short.token, json!({"name": "x", "expires_after_days": days}));
        assert_eq!(made.await.json(201)["expires_at"], ends);
    }
    let shorter = json!({"name": "x", "expires_after_days": 1});
    let shorter = tokens.make(&short.token, shorter).await.json(201);
    assert!(shorter["expires_at"].as_str() < ends.as_str(), "{shorter}");
    // Who administers tokens decides.
    let olga = tokens.0.app.limited_token("olga", None, Some(2)).await;
    let made = tokens.make(&olga.token, json!({"name": "x"})).await.json(201);
    assert!(made["expires_at"].is_null(), "{made}");
}

#[tokio::test]
async fn tokens_are_seen_by_their_owner_and_by_who_manages_them() {
    let tokens = Tokens::start().await;
    let app = &tokens.0.app;
    let (ana, lena, olga) =
        (app.token("ana").await, app.token("lena").await, app.token("olga").await);
    for _ in 0..3 {
        app.token("ana").await;
    }
    assert_eq!(tokens.listed(&ana, "/v1/tokens").await.len(), 4);
    assert_eq!(tokens.listed(&lena, "/v1/tokens").await.len(), 1);
    assert!(tokens.listed(&lena, "/v1/tokens?user=ana").await.is_empty());
    assert_eq!(tokens.listed(&olga, "/v1/tokens").await.len(), 6);
    assert_eq!(tokens.listed(&olga, "/v1/tokens?user=ana").await.len(), 4);
    assert_eq!(tokens.listed(&olga, "/v1/tokens?mine=true").await.len(), 1);
    let mut path = "/v1/tokens?user=ana&limit=3".to_owned();
    let mut seen = Vec::new();
    while !path.is_empty() {
        let page = tokens.get(&olga, &path).await.json(200);
        seen.extend(page["tokens"].as_array().unwrap().clone());
        path = page["next"].as_str().unwrap_or_default().to_owned();
    }
    assert_eq!(seen.len(), 4);
    // What is not theirs is not there for them.
    let path = format!("/v1/tokens/{}", prefix(&ana));
    tokens.get(&lena, &path).await.problem(404, "not-found");
    tokens.revoke(&lena, prefix(&ana)).await.problem(404, "not-found");
    tokens.get(&ana, "/v1/reports").await.json(200);
    tokens.revoke(&olga, prefix(&ana)).await.json(200);
    tokens.get(&ana, "/v1/reports").await.problem(401, "unauthenticated");
    for odd in ["rgs_%00", "%FF", "..", "rgs_ffffffff"] {
        tokens.revoke(&olga, odd).await.problem(404, "not-found");
    }
}

#[tokio::test]
async fn what_cannot_be_a_token_is_refused_by_field() {
    let tokens = Tokens::start().await;
    let admin = tokens.0.app.token("admin").await;
    for (body, pointer) in [
        (json!({}), "/name"),
        (json!({"name": ""}), "/name"),
        (json!({"name": "two\nlines"}), "/name"),
        (json!({"name": "x".repeat(101)}), "/name"),
        (json!({"name": 7}), "/name"),
        (json!({"name": "x", "user": "no\0body"}), "/user"),
        (json!({"name": "x", "user": "locked"}), "/user"),
        (json!({"name": "x", "scopes": []}), "/scopes"),
        (json!({"name": "x", "scopes": ["reports.fly"]}), "/scopes"),
        (json!({"name": "x", "scopes": ["reports\0"]}), "/scopes"),
        (json!({"name": "x", "scopes": "reports.run"}), "/scopes"),
        (json!({"name": "x", "expires_after_days": 0}), "/expires_after_days"),
        (json!({"name": "x", "expires_after_days": 3651}), "/expires_after_days"),
        (json!({"name": "x", "expires_after_days": 1.5}), "/expires_after_days"),
        (json!({"name": "x", "colour": "red"}), "/colour"),
    ] {
        let refused = tokens.make(&admin, body.clone()).await;
        assert_eq!(pointers(&refused.problem(422, "invalid-input")), [pointer], "{body}");
    }
    for _ in 1..100 {
        tokens.0.app.token("admin").await;
    }
    let refused = tokens.make(&admin, json!({"name": "one too many"})).await;
    assert_eq!(refused.problem(409, "refused")["errors"][0]["code"], "too_many_tokens");
    let refused = tokens.get(&admin, "/v1/tokens?user=%00").await;
    assert_eq!(refused.problem(400, "invalid-query")["errors"][0]["parameter"], "user");
}
