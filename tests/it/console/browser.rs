//! The console in a real browser: paths that people take, whether everybody can take them, and
//! that nothing leaves the machine.

use registrar::db::executions::Status;

use super::Site;
use crate::support::browser::Browser;

impl Site {
    /// Signs in by the form, with a token.
    async fn sign_in_with(&self, browser: &Browser, username: &str) {
        let token = self.app.token(username).await;
        browser.open(&format!("{}/sign-in", self.http.base)).await;
        browser.follow_summary("Use a token instead").await;
        browser.fill("token", &token).await;
        browser.press("Sign in with the token").await;
    }
}

/// From the form for signing in to the file: four clicks, the report's own fields apart.
#[tokio::test]
async fn an_analyst_signs_in_runs_a_report_and_has_the_file() {
    let Some(browser) = Browser::start().await else { return };
    let site = Site::start().await;
    site.app.sync_templates().await;
    site.app
        .define_with(
            "numbers",
            "[[parameter]]\nname = \"most\"\ntype = \"integer\"\nlabel = \"Most\"\ndefault = 3\n",
            "select n, pg_sleep(0.01)::text as t from generate_series(1, :most) as n",
        )
        .await;
    let username = site.username_who_may("reports.run").await;
    site.set_password(&username, &super::encoded()[0]).await;
    let worker = site.app.start_worker().await;
    browser.open(&site.http.base).await;
    browser.is_accessible().await;
    browser.fill("username", &username).await;
    browser.fill("password", super::PASSWORD).await;
    browser.press("Sign in").await; // one
    browser.sees("Pick a report").await;
    browser.is_accessible().await;
    browser.follow("numbers").await; // two
    browser.sees("rows are expected").await;
    browser.is_accessible().await;
    browser.fill("p.most", "200").await;
    browser.press("Run").await; // three
    browser.sees("Running for").await;
    browser.sees("Download").await;
    browser.is_accessible().await;
    browser.sees("The first 100 rows").await;
    browser.follow("Download").await; // four
    let file = String::from_utf8(browser.downloaded(".csv").await).unwrap();
    assert_eq!(file.lines().count(), 201);
    worker.stop().await;
    browser.follow("Executions").await;
    browser.sees("completed").await;
    browser.is_accessible().await;
    browser.resize(380, 800).await;
    for path in ["/reports", "/reports/numbers", "/executions", "/schedules"] {
        browser.open(&format!("{}{path}", site.http.base)).await;
        assert!(!browser.is_wider_than_the_window().await, "{path} fits on a phone");
    }
    browser.press("Sign out").await;
    browser.sees("With the name and password").await;
    browser.was_quiet(&[]).await;
}

#[tokio::test]
async fn a_running_report_is_watched_and_cancelled() {
    let Some(browser) = Browser::start().await else { return };
    let site = Site::start().await;
    let endless = "select n from generate_series(1, 3) n, pg_sleep(3600)";
    site.app.define("endless", endless).await;
    let worker = site.app.start_worker().await;
    site.sign_in_with(&browser, &site.username_who_may("reports.run").await).await;
    browser.follow("endless").await;
    browser.press("Run").await;
    browser.sees("processing").await;
    let url = browser.url().await;
    let id: i64 = url.rsplit('/').next().unwrap().parse().unwrap();
    site.app.wait_until_querying(id).await;
    browser.press("Cancel").await;
    browser.agree().await;
    site.app.wait_until(id, Status::Cancelled).await;
    browser.sees("cancelled").await;
    browser.sees("Retry").await;
    worker.stop().await;
    browser.was_quiet(&[]).await;
}

#[tokio::test]
async fn who_may_nothing_sees_nothing_and_is_told() {
    let Some(browser) = Browser::start().await else { return };
    let site = Site::start().await;
    let username = site.bystander().await;
    site.sign_in_with(&browser, &username).await;
    browser.sees("A permission is missing").await;
    browser.is_accessible().await;
    let text = browser.text().await;
    for place in ["Executions", "Policies", "Tokens", "Backups"] {
        assert!(!text.contains(place), "{place} is not offered: {text}");
    }
    browser.was_quiet(&["403"]).await;
}

#[tokio::test]
async fn a_policy_is_previewed_approved_by_another_and_watched() {
    let Some(browser) = Browser::start().await else { return };
    let site = Site::start().await;
    let asking = site.username_with_role("operator").await;
    site.sign_in_with(&browser, &asking).await;
    browser.follow("Policies").await;
    browser.follow("archive-audit-logs").await;
    browser.follow("Preview").await;
    browser.sees("What a run would do").await;
    browser.is_accessible().await;
    browser.press("Start this run").await;
    browser.agree().await;
    browser.sees("needs approval").await;
    let path = browser.url().await;
    browser.press("Sign out").await;
    site.sign_in_with(&browser, &super::operators::second(&site, &asking).await).await;
    browser.open(&path).await;
    browser.press("Approve").await;
    browser.agree().await;
    browser.sees("pending").await;
    let worker = site.app.start_worker().await;
    browser.sees("Certificate").await;
    browser.sees("completed").await;
    browser.is_accessible().await;
    worker.stop().await;
    browser.was_quiet(&[]).await;
}

#[tokio::test]
async fn every_page_can_be_used_by_everybody_by_day_and_by_night() {
    let Some(browser) = Browser::start().await else { return };
    let site = Site::start().await;
    site.app.sync_templates().await;
    let admin = site.username_with_role("admin").await;
    let visitor = site.visitor(&admin).await;
    let hold = [("scope", "table"), ("table", "audit_logs"), ("reason", "case 7")];
    assert_eq!(visitor.post("/holds", &hold).await.status(), 303);
    site.app.define("numbers", "select 1 as n").await;
    let schedule = [("schedule_name", "daily"), ("cron", "0 0 * * *"), ("time_zone", "UTC")];
    let schedule = visitor.post("/reports/numbers/schedules", &schedule).await;
    assert_eq!(schedule.status(), 303);
    let webhook = [("name", "portal"), ("url", "https://e.example/"), ("events", "run.finished")];
    assert_eq!(visitor.post("/webhooks", &webhook).await.status(), 200);
    assert_eq!(visitor.post("/webhooks/portal/ping", &[]).await.status(), 303);
    site.app.execute("update outbox_deliveries set status = 'failed', ended_at = now()").await;
    site.app
        .execute("create table archive.audit_logs as select *, now() as archived_at, 1 as run_id from audit_logs limit 3")
        .await;
    site.sign_in_with(&browser, &admin).await;
    for dark in [false, true] {
        browser.prefer_dark(dark).await;
        for path in [
            "/reports",
            "/executions",
            "/reports/numbers/definition",
            "/schedules",
            "/schedules/daily",
            "/overview",
            "/queues",
            "/policies",
            "/policies/archive-audit-logs",
            "/runs",
            "/archives",
            "/holds",
            "/erasures",
            "/backups",
            "/webhooks",
            "/webhooks/portal",
            "/audit",
            "/tokens",
        ] {
            browser.open(&format!("{}{path}", site.http.base)).await;
            browser.is_accessible().await;
            browser.resize(380, 800).await;
            assert!(!browser.is_wider_than_the_window().await, "{path} fits on a phone");
            browser.resize(1240, 900).await;
        }
    }
    browser.was_quiet(&[]).await;
}
