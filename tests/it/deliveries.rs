//! Scheduled reports reach their owner, and so does what went wrong.

use registrar::db::executions::Status;
use registrar::scheduler;
use reqwest::StatusCode;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::TestApp;
use crate::support::http::Http;
use crate::support::receiver::Receiver;
use crate::support::smtp::{ReceivedMail, SmtpServer};
use crate::support::worker::Worker;

struct Setting {
    app: TestApp,
    http: Http,
    token: String,
    mails: SmtpServer,
}

impl Setting {
    async fn new() -> Self {
        let mails = SmtpServer::start().await;
        let url = SecretString::from(mails.url.clone());
        let app = TestApp::new()
            .with(|config| {
                config.email.url = Some(url);
                config.email.link = Some("https://registrar.example/e/{execution}".to_owned());
                config.email.attach_max_bytes = 100;
            })
            .await;
        app.define("numbers", "select n from generate_series(1, 3) as n").await;
        app.define("long", "select n from generate_series(1, 300) as n").await;
        app.define("broken", "select 1 / (n - n) as x from generate_series(1, 3) as n").await;
        let token = app.token("ana").await;
        Self { http: app.http().await, token, mails, app }
    }

    /// A schedule that fires by hand only, with these ways of delivery.
    async fn schedule(&self, name: &str, report: &str, deliver: Value) {
        let body = json!({"name": name, "report": report, "cron": "0 0 1 1 *", "format": "csv",
                          "deliver": deliver});
        let answer = self.http.post("/v1/schedules", &self.token, &body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
    }

    async fn run(&self, name: &str) {
        let path = format!("/v1/schedules/{name}/run");
        let answer = self.http.post(&path, &self.token, &json!({})).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
    }

    async fn newest(&self, name: &str) -> Value {
        let path = format!("/v1/schedules/{name}");
        let answer = self.http.get(&path, &self.token).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["occurrences"][0].clone()
    }

    /// Ticks until the newest occurrence is so.
    async fn until(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut newest = Value::Null;
        self.app
            .wait_for(what, async || {
                scheduler::tick(&self.app.services.db).await.unwrap();
                newest = self.newest(name).await;
                is_so(&newest)
            })
            .await;
        newest
    }

    async fn mail(&self, what: &str, number: usize) -> ReceivedMail {
        self.app
            .wait_for(what, async || {
                scheduler::tick(&self.app.services.db).await.unwrap();
                self.mails.received().len() >= number
            })
            .await;
        self.mails.received()[number - 1].clone()
    }

    async fn worker(&self) -> Worker {
        self.app.start_worker().await
    }
}

/// Whether every delivery of an occurrence stands so.
fn all(occurrence: &Value, count: usize, status: &str) -> bool {
    let deliveries = occurrence["deliveries"].as_array();
    deliveries.is_some_and(|all| {
        all.len() == count && all.iter().all(|delivery| delivery["status"] == status)
    })
}

#[tokio::test]
async fn a_result_is_told_by_mail_with_a_link_to_the_service() {
    let setting = Setting::new().await;
    setting.schedule("by-mail", "numbers", json!({"email": {}})).await;
    setting.run("by-mail").await;
    let _worker = setting.worker().await;
    let mail = setting.mail("the mail", 1).await;
    let id = setting.newest("by-mail").await["execution_id"].as_i64().unwrap();
    let address = "select email from users where username = 'ana'";
    let address: String =
        sqlx::query_scalar(address).fetch_one(&setting.app.services.db).await.unwrap();
    assert_eq!(mail.recipients, [address]);
    assert_eq!(mail.header("Subject"), "by-mail is ready");
    assert!(mail.body().contains(&format!("https://registrar.example/e/{id}")), "{mail:?}");
    assert!(!mail.body().contains("Signature"), "no link that opens the file by itself");
    assert!(!mail.data.contains("attachment"), "nobody asked for the file");
    setting.until("by-mail", "the delivery", |one| all(one, 1, "delivered")).await;
}

#[tokio::test]
async fn a_small_file_is_attached_where_it_is_asked_for_and_a_large_one_is_not() {
    let setting = Setting::new().await;
    let attach = json!({"email": {"attach": true}});
    setting.schedule("small", "numbers", attach.clone()).await;
    setting.schedule("large", "long", attach).await;
    let _worker = setting.worker().await;
    setting.run("small").await;
    let mail = setting.mail("the small one", 1).await;
    assert!(mail.data.contains("attachment; filename=\"numbers-"), "{mail:?}");
    assert!(mail.data.contains("text/csv"), "{mail:?}");
    setting.run("large").await;
    let mail = setting.mail("the large one", 2).await;
    assert!(!mail.data.contains("attachment;"), "{mail:?}");
    assert!(mail.body().contains("too large to be attached"), "{mail:?}");
}

#[tokio::test]
async fn failures_are_told_too() {
    let setting = Setting::new().await;
    setting.schedule("fails", "broken", json!({"email": {"attach": true}})).await;
    let _worker = setting.worker().await;
    setting.run("fails").await;
    let mail = setting.mail("the failure", 1).await;
    assert_eq!(mail.header("Subject"), "fails failed");
    assert!(mail.body().contains("failed (division_by_zero)") || mail.body().contains("failed ("));
    // It cannot even start: what it may do counts when it fires.
    setting.app.execute("update report_definitions set is_active = false").await;
    setting.run("fails").await;
    let mail = setting.mail("the refusal", 2).await;
    assert!(mail.body().contains("not_started"), "{mail:?}");
}

#[tokio::test]
async fn a_webhook_and_a_copy_get_it_and_the_copy_goes_with_the_result() {
    let setting = Setting::new().await;
    let receiver = Receiver::start().await;
    let order = registrar::service::webhooks::WebhookOrder {
        url: receiver.base.clone(),
        events: vec![registrar::service::webhooks::EventType::BackupFailed],
    };
    let services = &setting.app.services;
    let operator = setting.app.operator();
    services.create_webhook(&operator, &"portal".parse().unwrap(), order).await.unwrap();
    setting
        .schedule("both", "numbers", json!({"webhook": "portal", "copy_to": "monthly/numbers"}))
        .await;
    setting.run("both").await;
    let _worker = setting.worker().await;
    let newest = setting.until("both", "both to arrive", |one| all(one, 2, "delivered")).await;
    let id = newest["execution_id"].as_i64().unwrap();
    let message = receiver.received().pop().unwrap().json();
    assert_eq!(message["type"], "schedule.completed");
    assert_eq!(message["data"]["schedule"], "both");
    assert_eq!(message["data"]["execution_id"], id);
    let copies = services.store.list("deliveries").await.unwrap();
    assert_eq!(copies.len(), 1, "{copies:?}");
    let folder = format!("deliveries/monthly/numbers/{id}/");
    assert!(copies[0].location.as_ref().starts_with(&folder), "{copies:?}");
    let copied = services.store.get(&copies[0].location).await.unwrap();
    assert_eq!(copied.as_ref(), setting.app.result(id).await);
    setting.app.execute("update report_executions set expires_at = now() - interval '1 s'").await;
    services.expire_results().await.unwrap();
    assert_eq!(setting.app.execution(id).await.status, Status::Expired);
    assert!(services.store.list("deliveries").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_mail_is_tried_again_and_one_that_is_refused_is_given_up() {
    let setting = Setting::new().await;
    setting.schedule("by-mail", "numbers", json!({"email": {}})).await;
    let _worker = setting.worker().await;
    setting.mails.refuses(Some("451 later"));
    setting.run("by-mail").await;
    setting
        .until("by-mail", "an attempt", |one| {
            all(one, 1, "pending") && one["deliveries"][0]["error"] == "unreachable"
        })
        .await;
    setting.mails.refuses(None);
    setting.app.execute("update outbox_deliveries set next_attempt_at = now()").await;
    setting.until("by-mail", "the mail", |one| all(one, 1, "delivered")).await;
    setting.mails.refuses(Some("550 nobody"));
    setting.run("by-mail").await;
    let failed = setting.until("by-mail", "the end", |one| all(one, 1, "failed")).await;
    assert_eq!(failed["deliveries"][0]["error"], "refused", "{failed}");
    let audited = "select count(*) from audit_logs where action = 'schedule.delivery_failed'";
    assert_eq!(setting.app.number(audited).await, 1);
    assert_eq!(setting.mails.received().len(), 1);
}

#[tokio::test]
async fn a_copy_that_the_owner_may_not_have_is_refused_and_told() {
    let setting = Setting::new().await;
    setting.schedule("copied", "numbers", json!({"copy_to": "x"})).await;
    setting.run("copied").await;
    let worker = setting.worker().await;
    setting
        .until("copied", "the end of the run", |one| one["execution_status"] == "completed")
        .await;
    setting.until("copied", "the copy", |one| all(one, 1, "delivered")).await;
    worker.stop().await;
    // The next attempt finds an owner who has lost the right.
    setting
        .app
        .execute(
            "update outbox_deliveries set status = 'pending', ended_at = null, ticket_at = null",
        )
        .await;
    setting
        .app
        .execute(
            "delete from user_roles where user_id = (select id from users where username = 'ana')",
        )
        .await;
    let _worker = setting.worker().await;
    let mail = setting.mail("the failure", 1).await;
    assert_eq!(mail.header("Subject"), "copied could not be delivered");
    assert!(mail.body().contains("by copy (forbidden)"), "{mail:?}");
}

#[tokio::test]
async fn ways_that_cannot_work_are_refused_by_name() {
    let setting = Setting::new().await;
    for (deliver, pointer) in [
        (json!({"webhook": "none"}), "/deliver/webhook"),
        (json!({"copy_to": "../results"}), "/deliver"),
        (json!({"copy_to": "/x"}), "/deliver"),
        (json!({"fax": "1"}), "/deliver"),
        // A struct alone is read from an array as well.
        (json!([null, null]), "/deliver"),
        (json!({"email": [true]}), "/deliver"),
        (json!({"email": {"to": "x@example.org"}}), "/deliver"),
    ] {
        let body = json!({"name": "x", "report": "numbers", "cron": "0 0 1 1 *",
                          "deliver": deliver});
        let answer =
            setting.http.post("/v1/schedules", &setting.token, &body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{answer}");
    }
}
