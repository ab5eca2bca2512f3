//! What somebody with bad intent tries, and does not get (OWASP's list, as far as pages go).

use registrar::db::executions::Status;
use reqwest::Method;
use reqwest::header::{COOKIE, SET_COOKIE};

use super::{PASSWORD, Site, Visitor, encoded, location, secret};

const EVIL: &str = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&";

#[tokio::test]
async fn guessing_ends_after_ten_tries_and_tells_nothing() {
    let site = Site::start().await;
    let username = site.username_who_may("reports.run").await;
    site.set_password(&username, &encoded()[0]).await;
    let known = site.sign_in(&username, "wrong").await.text().await.unwrap();
    let unknown = site.sign_in("nobody-has-this-name", "wrong").await.text().await.unwrap();
    assert_eq!(known, unknown, "nobody learns which names there are");
    for _ in 0..9 {
        assert_eq!(site.sign_in(&username, "wrong").await.status(), 401);
    }
    let refused = site.sign_in(&username, PASSWORD).await;
    assert_eq!(refused.status(), 429, "the right password comes too late");
    assert_eq!(refused.headers()["retry-after"], "900");
    // The window is over.
    site.app
        .execute("update sign_in_attempts set window_started_at = now() - interval '16 min'")
        .await;
    assert_eq!(site.sign_in(&username, PASSWORD).await.status(), 303);
}

#[tokio::test]
async fn a_failed_sign_in_takes_the_same_time_for_unknown_names() {
    let site = Site::start().await;
    let username = site.username_who_may("reports.run").await;
    site.set_password(&username, &encoded()[0]).await;
    for name in [username.as_str(), "nobody-has-this-name", "", "a\0b", &"x".repeat(5_000)] {
        let started = std::time::Instant::now();
        assert_eq!(site.sign_in(name, "wrong").await.status(), 401);
        assert!(started.elapsed().as_millis() >= 500, "{name}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_session_is_new_at_each_sign_in_and_the_old_one_ends() {
    let site = Site::start().await;
    let visitor = site.visitor_who_may("reports.run").await;
    let username = site.username_who_may("reports.run").await;
    let token = site.app.token(&username).await;
    // What an attacker has put into the browser does not become a session.
    let chosen = "ab".repeat(32);
    for before in [chosen.as_str(), &visitor.secret] {
        let cookie = format!("registrar_session={before}");
        let request = site.form("/sign-in", &[("token", &token)]).header(COOKIE, cookie);
        let response = request.send().await.unwrap();
        assert_ne!(secret(&response), before);
        let stale = Visitor { site: &site, secret: before.to_owned() };
        assert_eq!(stale.get("/reports").await.status(), 303, "it is no session");
    }
    let stored: Vec<Vec<u8>> = sqlx::query_scalar("select session_sha256 from console_sessions")
        .fetch_all(&site.app.services.db)
        .await
        .unwrap();
    assert!(stored.iter().all(|hash| hash.len() == 32), "no secret is stored");
}

#[tokio::test]
async fn a_session_ends_with_what_it_stands_on() {
    let site = Site::start().await;
    let username = site.username_who_may("reports.run").await;
    for end in [
        "update users set is_active = false where username = $1",
        "update users set deleted_at = now() where username = $1",
        "update users set password = 'pbkdf2_sha256$1$a$b' where username = $1",
        "update console_sessions set expires_at = now() where $1 <> ''",
        "update console_sessions set seen_at = now() - interval '61 minutes' where $1 <> ''",
    ] {
        site.set_password(&username, &encoded()[0]).await;
        let response = site.sign_in(&username, PASSWORD).await;
        let visitor = Visitor { site: &site, secret: secret(&response) };
        assert_eq!(visitor.get("/reports").await.status(), 200, "{end}");
        for statement in [
            end,
            "select",
            "update users set is_active = true, deleted_at = null where username = $1",
        ] {
            if statement == "select" {
                assert_eq!(visitor.get("/reports").await.status(), 303, "{end}");
                assert_eq!(visitor.get("/v1/reports").await.status(), 401, "{end}");
                continue;
            }
            let statement = sqlx::query(crate::support::database::sql(statement));
            statement.bind(&username).execute(&site.app.services.db).await.unwrap();
        }
    }
    let visitor = site.visitor(&username).await;
    site.app.execute("update api_tokens set revoked_at = now()").await;
    assert_eq!(visitor.get("/reports").await.status(), 303, "the token is gone");
    let visitor = site.visitor(&username).await;
    let out = visitor.post("/sign-out", &[]).await;
    assert!(out.headers()[SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(visitor.get("/reports").await.status(), 303, "it ended on the server");
}

#[tokio::test]
async fn a_form_of_another_site_changes_nothing() {
    let site = Site::start().await;
    site.app.define("numbers", "select 1 as n").await;
    let visitor = site.visitor_who_may("reports.run").await;
    let cookie = format!("registrar_session={}", visitor.secret);
    let csrf = registrar::service::sessions::csrf_token(&visitor.secret);
    let foreign = registrar::service::sessions::csrf_token("another session");
    for (fields, site_header) in [
        (vec![], "same-origin"),
        (vec![("csrf", "")], "same-origin"),
        (vec![("csrf", foreign.as_str())], "same-origin"),
        (vec![("csrf", csrf.as_str())], "cross-site"),
    ] {
        for path in ["/reports/numbers", "/executions/bulk", "/sign-out"] {
            let request = site.form(path, &fields).header(COOKIE, &cookie);
            let response = request.header("sec-fetch-site", site_header).send().await.unwrap();
            assert_eq!(response.status(), 403, "{path} {fields:?}");
        }
    }
    // Nor does the API take the cookie for a change.
    let api = visitor.request(Method::POST, "/v1/reports/numbers/executions");
    let response = api.json(&serde_json::json!({})).send().await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(site.app.number("select count(*) from report_executions where trace_id is not null and status = 'pending'").await, 0);
    let login = site.form("/sign-in", &[("token", "x")]).header("origin", "https://evil.example");
    assert_eq!(login.send().await.unwrap().status(), 403);
    // With the form token a script of ours may.
    let api = visitor.request(Method::POST, "/v1/reports/numbers/executions");
    let api = api.header("x-csrf-token", &csrf).json(&serde_json::json!({}));
    let id = api.send().await.unwrap().json::<serde_json::Value>().await.unwrap()["id"].clone();
    site.app.services.cancel(&site.app.operator(), id.as_i64().unwrap()).await.unwrap();
}

#[tokio::test]
async fn nobody_reaches_what_is_of_another() {
    let site = Site::start().await;
    site.app.define("numbers", "select 1 as n").await;
    let owner = site.visitor_who_may("reports.run").await;
    let path = location(&owner.post("/reports/numbers", &[("nonce", "x")]).await).to_owned();
    let id: i64 = path.rsplit('/').next().unwrap().parse().unwrap();
    // Another account with the same rights, and none to see all.
    let other: String = sqlx::query_scalar(
        "select u.username
           from users u
          where u.is_active and u.deleted_at is null and not coalesce(u.is_superuser, false)
            and u.id <> (select executed_by from report_executions where id = $1)
            and exists (select
                          from user_roles ur
                          join role_permissions rp on rp.role_id = ur.role_id
                          join permissions p on p.id = rp.permission_id
                         where ur.user_id = u.id and p.codename = 'reports.run')
            and not exists (select
                              from user_roles ur
                              join role_permissions rp on rp.role_id = ur.role_id
                              join permissions p on p.id = rp.permission_id
                             where ur.user_id = u.id and p.codename = 'executions.view_all')
          order by u.id
          limit 1",
    )
    .bind(id)
    .fetch_one(&site.app.services.db)
    .await
    .unwrap();
    let other = site.visitor(&other).await;
    for get in ["", "/events"] {
        assert_eq!(other.get(&format!("{path}{get}")).await.status(), 404, "{get}");
    }
    for post in ["/cancel", "/retry", "/formats"] {
        let response = other.post(&format!("{path}{post}"), &[("format", "csv")]).await;
        assert_eq!(response.status(), 404, "{post}");
    }
    assert_eq!(other.get(&format!("/reports/numbers?from={id}")).await.status(), 404);
    assert_eq!(other.get(&format!("/v1/executions/{id}/result")).await.status(), 404);
    assert!(!other.page("/executions").await.contains(&path));
    other.post("/executions/bulk", &[("act", "cancel")]).await;
    assert_eq!(site.app.execution(id).await.status, Status::Pending);
    let nobody = site.visitor(&site.bystander().await).await;
    for get in ["/executions", "/reports", "/schedules"] {
        assert_eq!(nobody.get(get).await.status(), 403, "{get}");
    }
    for odd in ["0", "-1", "9223372036854775808", "1%00", "1;drop", "..%2f1", "%ff"] {
        assert_eq!(owner.get(&format!("/executions/{odd}")).await.status(), 404, "{odd}");
        assert_eq!(owner.get(&format!("/reports/{odd}")).await.status(), 404, "{odd}");
    }
    owner.post(&format!("{path}/cancel"), &[]).await;
}

#[tokio::test]
async fn what_people_wrote_is_shown_and_not_run() {
    let site = Site::start().await;
    let toml = "description = '''<script>alert(2)</script>'''\n\
                [[parameter]]\nname = \"t\"\ntype = \"text\"\nlabel = '''<b onmouseover=alert(3)>'''\n";
    site.app.define_with("evil", toml, "select :t as \"<i>head</i>\"").await;
    sqlx::query("update report_definitions set name = $1 where slug = 'evil'")
        .bind(EVIL)
        .execute(&site.app.services.db)
        .await
        .unwrap();
    let visitor = site.visitor_who_may("reports.run").await;
    let fields = [("p.t", EVIL), ("nonce", "x"), ("reader", "machine")];
    let submitted = visitor.post("/reports/evil", &fields).await;
    assert_eq!(submitted.status(), 303, "{}", submitted.text().await.unwrap());
    let path = location(&submitted).to_owned();
    let id: i64 = path.rsplit('/').next().unwrap().parse().unwrap();
    let worker = site.app.start_worker().await;
    site.app.wait_until(id, Status::Completed).await;
    worker.stop().await;
    let mut pages = vec![
        visitor.page("/reports").await,
        visitor.page(&format!("/reports?q={}", urlencoded(EVIL))).await,
        visitor.page(&format!("/reports/evil?from={id}")).await,
        visitor.page(&path).await,
        visitor
            .page(&format!("/executions?report={0}&status={0}&mine={0}", urlencoded(EVIL)))
            .await,
    ];
    sqlx::query("update report_executions set error_code = left($2, 50), error_message = $2, status = 'failed' where id = $1")
        .bind(id)
        .bind(EVIL)
        .execute(&site.app.services.db)
        .await
        .unwrap();
    pages.push(visitor.page(&path).await);
    pages.push(visitor.page("/executions").await);
    for page in pages {
        for bad in ["<script>alert", "<img src=x", "<b onmouseover", "<i>head"] {
            assert!(!page.contains(bad), "{bad} in {page}");
        }
    }
}

#[tokio::test]
async fn text_of_any_kind_is_a_value_and_never_sql() {
    let site = Site::start().await;
    let toml = "[[parameter]]\nname = \"t\"\ntype = \"text\"\n";
    site.app.define_with("echo", toml, "select :t as t").await;
    let visitor = site.visitor_who_may("reports.run").await;
    let worker = site.app.start_worker().await;
    let texts = [
        "'; drop table users; --",
        "$1",
        ":t",
        "\\'; select 1 --",
        "%s {{ 7*7 }}",
        "../../etc/passwd",
    ];
    for (index, text) in texts.into_iter().enumerate() {
        let nonce = index.to_string();
        let fields = [("p.t", text), ("nonce", &nonce), ("reader", "machine")];
        let submitted = visitor.post("/reports/echo", &fields).await;
        let id: i64 = location(&submitted).rsplit('/').next().unwrap().parse().unwrap();
        site.app.wait_until(id, Status::Completed).await;
        assert_eq!(site.app.csv(id).await.trim_end(), format!("t\n{text}"));
    }
    worker.stop().await;
    for query in ["q", "report", "status", "before", "from", "notice", "next"] {
        for path in ["/reports", "/executions", "/schedules", "/reports/echo"] {
            let status = visitor
                .get(&format!("{path}?{query}={}", urlencoded("'; --\0\r\n")))
                .await
                .status();
            assert!(status.as_u16() < 500, "{path} {query}: {status}");
        }
    }
}

#[tokio::test]
async fn no_answer_carries_a_header_of_a_visitors_making() {
    let site = Site::start().await;
    let token = site.app.token(&site.username_who_may("reports.run").await).await;
    for next in ["//evil.example", "https://evil.example", "/a\r\nx-evil: 1", "/\\evil.example"] {
        let response = site.form("/sign-in", &[("token", &token), ("next", next)]).send().await;
        let response = response.unwrap();
        assert_eq!(location(&response), "/", "{next:?}");
        assert!(!response.headers().contains_key("x-evil"));
    }
}

#[tokio::test]
async fn every_answer_is_protected() {
    let site = Site::start().await;
    let visitor = site.visitor_who_may("reports.run").await;
    for path in ["/", "/sign-in", "/reports", "/executions/0", "/assets/console.js", "/executions"]
    {
        let response = visitor.get(path).await;
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(response.headers()["x-frame-options"], "DENY", "{path}");
        let text = response.text().await.unwrap();
        for inline in ["<script>", " onclick=", " style=", "<style"] {
            assert!(!text.contains(inline), "{inline} in {path}");
        }
    }
}

fn urlencoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
