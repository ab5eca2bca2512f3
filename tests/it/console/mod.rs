//! The console over real HTTP, as a browser without script would use it.

mod browser;
mod operators;
mod security;

use std::time::Duration;

use registrar::db::executions::Status;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Method, RequestBuilder, Response};
use tempfile::TempDir;

use crate::support::TestApp;
use crate::support::app::jobs_dir;
use crate::support::http::Http;

/// Django's own form of `correct horse`, with few iterations.
const PASSWORD: &str = "correct horse";

/// A served app.
struct Site {
    http: Http,
    app: TestApp,
    _jobs: TempDir,
}

/// Somebody who is signed in.
struct Visitor<'a> {
    site: &'a Site,
    secret: String,
}

impl Site {
    async fn start() -> Self {
        let jobs = jobs();
        let path = jobs.path().to_owned();
        let app = TestApp::new().with(|config| config.lifecycle.jobs_dir = path).await;
        let http = app.http().await;
        Self { http, app, _jobs: jobs }
    }

    /// Gives an account the password.
    async fn set_password(&self, username: &str, encoded: &str) {
        // The others' are as cheap: one of them is what unknown names are checked against.
        let all = "update users
                      set password = case when username = $1 then $2
                                          else 'pbkdf2_sha256$10$a$AAAA' end";
        sqlx::query(all).bind(username).bind(encoded).execute(&self.app.services.db).await.unwrap();
    }

    fn form(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(fields);
        self.http
            .request(Method::POST, path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.finish())
    }

    async fn sign_in(&self, username: &str, password: &str) -> Response {
        let fields = [("username", username), ("password", password), ("next", "/reports")];
        self.form("/sign-in", &fields).send().await.unwrap()
    }

    /// Signs in with a token of the account.
    async fn visitor(&self, username: &str) -> Visitor<'_> {
        let token = self.app.token(username).await;
        let response = self.form("/sign-in", &[("token", &token)]).send().await.unwrap();
        assert_eq!(response.status(), 303, "{}", response.text().await.unwrap());
        Visitor { site: self, secret: secret(&response) }
    }

    async fn visitor_who_may(&self, codename: &str) -> Visitor<'_> {
        let username = self.username_who_may(codename).await;
        self.visitor(&username).await
    }

    /// An account with a permission, by one of its roles.
    async fn username_who_may(&self, codename: &str) -> String {
        sqlx::query_scalar(
            "select u.username
               from users u
               join user_roles ur on ur.user_id = u.id
               join role_permissions rp on rp.role_id = ur.role_id
               join permissions p on p.id = rp.permission_id
              where p.codename = $1 and u.is_active and u.deleted_at is null
                and not coalesce(u.is_superuser, false)
              order by u.id
              limit 1",
        )
        .bind(codename)
        .fetch_one(&self.app.services.db)
        .await
        .unwrap()
    }

    /// An account with a role.
    async fn username_with_role(&self, role: &str) -> String {
        sqlx::query_scalar(
            "select u.username
               from users u
               join user_roles ur on ur.user_id = u.id
               join roles r on r.id = ur.role_id
              where r.name = $1 and u.is_active and u.deleted_at is null
              order by u.id
              limit 1",
        )
        .bind(role)
        .fetch_one(&self.app.services.db)
        .await
        .unwrap()
    }

    /// An active account that may do nothing here.
    async fn bystander(&self) -> String {
        sqlx::query_scalar(
            "select u.username
               from users u
              where u.is_active and u.deleted_at is null and not coalesce(u.is_superuser, false)
                and not exists (select
                                  from user_roles ur
                                  join role_permissions rp on rp.role_id = ur.role_id
                                  join permissions p on p.id = rp.permission_id
                                 where ur.user_id = u.id
                                   and p.codename ~ '^(reports|executions|retention|holds|users|backups)')
              order by u.id
              limit 1",
        )
        .fetch_one(&self.app.services.db)
        .await
        .unwrap()
    }

    async fn audited(&self, action: &str) -> i64 {
        sqlx::query_scalar("select count(*) from audit_logs where action = $1")
            .bind(action)
            .fetch_one(&self.app.services.db)
            .await
            .unwrap()
    }
}

impl Visitor<'_> {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let cookie = format!("registrar_session={}", self.secret);
        self.site.http.request(method, path).header(COOKIE, cookie)
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    async fn page(&self, path: &str) -> String {
        let response = self.get(path).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    /// Sends a form with the session's own form token.
    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Response {
        let csrf = registrar::service::sessions::csrf_token(&self.secret);
        let mut fields = fields.to_vec();
        fields.push(("csrf", &csrf));
        let cookie = format!("registrar_session={}", self.secret);
        self.site.form(path, &fields).header(COOKIE, cookie).send().await.unwrap()
    }
}

/// The policies of the repository, but none waits until this machine has little else to do, and
/// all wait for approval.
fn jobs() -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in std::fs::read_dir(jobs_dir()).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("\"over_ceiling\"", "\"always\"");
        let kept: Vec<_> = text.lines().filter(|line| !line.starts_with("pause_when")).collect();
        std::fs::write(folder.path().join(path.file_name().unwrap()), kept.join("\n")).unwrap();
    }
    folder
}

fn secret(response: &Response) -> String {
    let cookie = response.headers()[SET_COOKIE].to_str().unwrap();
    let (_, rest) = cookie.split_once('=').unwrap();
    rest.split(';').next().unwrap().to_owned()
}

fn location(response: &Response) -> &str {
    response.headers()[LOCATION].to_str().unwrap()
}

/// A hash of [`PASSWORD`] in each of Django's forms, as cheap as it is accepted.
fn encoded() -> Vec<String> {
    use djangohashers::{Algorithm, Django, DjangoVersion};
    let django = Django { version: DjangoVersion::V1_4 };
    let algorithms = [Algorithm::PBKDF2, Algorithm::Argon2, Algorithm::BCryptSHA256];
    algorithms.map(|algorithm| django.make_password_with_algorithm(PASSWORD, algorithm)).to_vec()
}

#[tokio::test]
async fn people_sign_in_with_the_password_of_the_application() {
    let site = Site::start().await;
    let username = site.username_who_may("reports.run").await;
    for encoded in encoded() {
        site.set_password(&username, &encoded).await;
        let response = site.sign_in(&username, PASSWORD).await;
        assert_eq!(response.status(), 303, "{encoded}");
        assert_eq!(location(&response), "/reports");
        let cookie = response.headers()[SET_COOKIE].to_str().unwrap();
        for part in ["; HttpOnly", "; SameSite=Lax", "; Secure", "; Path=/", "; Max-Age=43200"] {
            assert!(cookie.contains(part), "{part} in {cookie}");
        }
        let visitor = Visitor { site: &site, secret: secret(&response) };
        assert!(visitor.page("/reports").await.contains(&username));
        let refused = site.sign_in(&username, "correct Horse").await;
        assert_eq!(refused.status(), 401, "{encoded}");
    }
    assert_eq!(site.audited("session.opened").await, 3);
    assert_eq!(site.audited("session.refused").await, 3);
}

#[tokio::test]
async fn who_is_not_signed_in_comes_back_to_where_they_wanted() {
    let site = Site::start().await;
    let response = site.http.request(Method::GET, "/executions/7?a=b").send().await.unwrap();
    assert_eq!(response.status(), 303);
    assert_eq!(location(&response), "/sign-in?next=%2Fexecutions%2F7%3Fa%3Db");
    let page = site.http.request(Method::GET, location(&response)).send().await.unwrap();
    assert!(page.text().await.unwrap().contains("value=\"&#x2f;executions&#x2f;7?a=b\""));
}

#[tokio::test]
async fn a_report_runs_from_the_form_to_the_downloaded_file() {
    let site = Site::start().await;
    site.app
        .define_with(
            "numbers",
            "[[parameter]]\nname = \"most\"\ntype = \"integer\"\nlabel = \"Most\"\ndefault = 3\n",
            "select n, 'a;b' as t from generate_series(1, :most) as n",
        )
        .await;
    let visitor = site.visitor_who_may("reports.run").await;
    assert!(visitor.page("/reports?q=numb").await.contains("/reports/numbers"));
    assert!(visitor.page("/reports/numbers").await.contains("name=\"p.most\""));
    let fields = [("p.most", "250"), ("format", "csv"), ("reader", "machine"), ("nonce", "x")];
    let estimate = visitor.post("/reports/numbers/estimate", &fields).await;
    assert!(estimate.text().await.unwrap().contains("rows are expected"));
    let refused = visitor.post("/reports/numbers", &[("p.most", "many")]).await;
    assert_eq!(refused.status(), 422);
    let text = refused.text().await.unwrap();
    assert!(text.contains("aria-invalid=\"true\"") && text.contains("value=\"many\""), "{text}");
    let submitted = visitor.post("/reports/numbers", &fields).await;
    assert_eq!(submitted.status(), 303, "{}", submitted.text().await.unwrap());
    let path = location(&submitted).to_owned();
    let again = visitor.post("/reports/numbers", &fields).await;
    assert_eq!(location(&again), path, "a double click runs once");
    let id: i64 = path.rsplit('/').next().unwrap().parse().unwrap();
    assert!(visitor.page(&path).await.contains("data-events"));
    let events = visitor.get(&format!("{path}/events")).await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let worker = site.app.start_worker().await;
    let stream = tokio::time::timeout(Duration::from_secs(60), events.text()).await;
    let stream = stream.expect("the stream ends with the execution").unwrap();
    assert!(stream.contains("event: news") && stream.ends_with("event: end\ndata: end\n\n"));
    site.app.wait_until(id, Status::Completed).await;
    let page = visitor.page(&path).await;
    assert!(page.contains("The first 100 rows") && page.contains("<td>a;b</td>"), "{page}");
    let file = visitor.get(&format!("/v1/executions/{id}/result")).await;
    assert_eq!(file.status(), 200);
    assert_eq!(file.text().await.unwrap().lines().count(), 251);
    let made = visitor.post(&format!("{path}/formats"), &[("format", "xlsx")]).await;
    let other: i64 = location(&made).rsplit('/').next().unwrap().parse().unwrap();
    site.app.wait_until(other, Status::Completed).await;
    assert!(visitor.page(location(&made)).await.contains("has no preview"));
    worker.stop().await;
    let deleted = visitor.post(&format!("{path}/delete"), &[]).await;
    assert_eq!(deleted.status(), 303, "{}", deleted.text().await.unwrap());
    assert!(visitor.page(location(&deleted)).await.contains("expired"));
    assert!(visitor.page(&format!("/reports/numbers?from={id}")).await.contains("value=\"250\""));
    assert!(visitor.page("/executions?report=numbers&status=expired").await.contains(&path));
}

#[tokio::test]
async fn executions_are_cancelled_and_retried_one_by_one_and_together() {
    let site = Site::start().await;
    site.app.define("numbers", "select 1 as n").await;
    let visitor = site.visitor_who_may("reports.run").await;
    let mut paths = Vec::new();
    for nonce in ["a", "b", "c"] {
        let submitted = visitor.post("/reports/numbers", &[("nonce", nonce)]).await;
        paths.push(location(&submitted).to_owned());
    }
    let cancelled = visitor.post(&format!("{}/cancel", paths[0]), &[]).await;
    assert_eq!(cancelled.status(), 303);
    let again = visitor.post(&format!("{}/cancel", paths[0]), &[]).await;
    assert_eq!(again.status(), 409);
    assert!(again.text().await.unwrap().contains("execution is cancelled"));
    let retried = visitor.post(&format!("{}/retry", paths[0]), &[]).await;
    assert_eq!(retried.status(), 303);
    let everything = [("act", "cancel"), ("report", "numbers")];
    let username = site.username_who_may("reports.run").await;
    site.grant(&username, "executions.cancel_all").await;
    let visitor = site.visitor(&username).await;
    let all = visitor.post("/executions/bulk", &everything).await;
    assert_eq!(all.status(), 303, "{}", all.text().await.unwrap());
    for path in paths {
        assert!(visitor.page(&path).await.contains("badge \">cancelled"));
    }
}

#[tokio::test]
async fn a_schedule_of_ones_own_is_made_paused_and_deleted() {
    let site = Site::start().await;
    site.app.define("numbers", "select 1 as n").await;
    let visitor = site.visitor_who_may("reports.run").await;
    let bad = [("schedule_name", "weekly"), ("cron", "every day"), ("time_zone", "UTC")];
    let refused = visitor.post("/reports/numbers/schedules", &bad).await;
    assert_eq!(refused.status(), 422);
    let text = refused.text().await.unwrap();
    assert!(text.contains("cron: ") && text.contains("value=\"weekly\""), "{text}");
    let good = [
        ("schedule_name", "weekly"),
        ("cron", "0 6 * * MON"),
        ("time_zone", "UTC"),
        ("copy_to", "weekly/numbers"),
    ];
    let made = visitor.post("/reports/numbers/schedules", &good).await;
    assert_eq!(made.status(), 303, "{}", made.text().await.unwrap());
    assert!(visitor.page("/schedules").await.contains("0 6 * * MON"));
    let page = visitor.page("/schedules/weekly").await;
    assert!(page.contains("copy in <code>weekly&#x2f;numbers</code>"), "{page}");
    visitor.post("/schedules/weekly/pause", &[]).await;
    assert!(visitor.page("/schedules").await.contains("paused"));
    let deleted = visitor.post("/schedules/weekly/delete", &[]).await;
    assert_eq!(deleted.status(), 303);
    assert!(visitor.page("/schedules").await.contains("No schedules."));
}

#[tokio::test]
async fn assets_are_kept_by_browsers_and_pages_by_nobody() {
    let site = Site::start().await;
    for name in ["console.css", "console.js", "icon.svg"] {
        let path = format!("/assets/{name}");
        let first = site.http.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(first.status(), 200);
        let tag = first.headers()["etag"].clone();
        let request = site.http.request(Method::GET, &path).header("if-none-match", tag);
        assert_eq!(request.send().await.unwrap().status(), 304);
    }
    let page = site.http.request(Method::GET, "/sign-in").send().await.unwrap();
    assert_eq!(page.headers()["cache-control"], "private, no-store");
    let gone = site.http.request(Method::GET, "/assets/../mod.rs").send().await.unwrap();
    assert_eq!(gone.status(), 404);
}

#[tokio::test]
async fn a_token_of_ones_own_is_made_shown_once_and_revoked() {
    let site = Site::start().await;
    let username = site.username_with_role("analyst").await;
    site.set_password(&username, &encoded()[0]).await;
    let response = site.sign_in(&username, PASSWORD).await;
    let visitor = Visitor { site: &site, secret: secret(&response) };
    let wide = [("name", "wide"), ("scopes", "users.manage")];
    assert_eq!(visitor.post("/tokens", &wide).await.status(), 422, "no more than one may");
    let fields = [("name", "<b>job</b>"), ("scopes", "reports.run"), ("expires_after_days", "30")];
    let made = visitor.post("/tokens", &fields).await;
    let status = made.status();
    let page = made.text().await.unwrap();
    assert!(status == 200 && page.contains("&lt;b&gt;job"), "{status}: {page}");
    let token = page.split("<code>").nth(1).unwrap().split('<').next().unwrap().to_owned();
    assert_eq!(site.http.get("/v1/executions", &token).send().await.unwrap().status(), 200);
    assert!(!visitor.page("/tokens").await.contains(&token), "once");
    let prefix = page.split("/tokens/").nth(1).unwrap().split('/').next().unwrap();
    let revoked = visitor.post(&format!("/tokens/{prefix}/revoke"), &[]).await;
    assert_eq!(revoked.status(), 303);
    assert_eq!(site.http.get("/v1/executions", &token).send().await.unwrap().status(), 401);
    // A token of somebody else is none that there is.
    let admin = site.username_with_role("admin").await;
    let other = site.app.token(&admin).await;
    let foreign = visitor.post(&format!("/tokens/{}/revoke", &other[..12]), &[]).await;
    assert_eq!(foreign.status(), 404);
}
