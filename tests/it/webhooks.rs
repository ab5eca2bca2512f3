//! Webhooks: each event reaches whoever asked for it, signed, at least once, under one id.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registrar::scheduler;
use reqwest::{Method, StatusCode};
use ring::hmac;
use serde_json::{Value, json};

use crate::support::TestApp;
use crate::support::http::Http;
use crate::support::receiver::{Answer, Received, Receiver};

struct Setting {
    app: TestApp,
    http: Http,
    token: String,
    receiver: Receiver,
}

impl Setting {
    async fn new() -> Self {
        Self::of(TestApp::new().with(short).await).await
    }

    async fn of(app: TestApp) -> Self {
        app.define("numbers", "select n from generate_series(1, 3) as n").await;
        app.define("broken", "select 1 / (n - n) as x from generate_series(1, 3) as n").await;
        let token = app.token("admin").await;
        Self { http: app.http().await, receiver: Receiver::start().await, token, app }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = self.http.request(method, path).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn post(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::POST, path, None).await
    }

    /// Makes a webhook that calls the receiver, and returns its secret.
    async fn webhook(&self, name: &str, events: &[&str]) -> String {
        let url = format!("{}/hooks", self.receiver.base);
        self.webhook_at(name, &url, events).await
    }

    async fn webhook_at(&self, name: &str, url: &str, events: &[&str]) -> String {
        let body = json!({ "name": name, "url": url, "events": events });
        let (status, answer) = self.call(Method::POST, "/v1/webhooks", Some(&body)).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        answer["secret"].as_str().unwrap().to_owned()
    }

    async fn deliveries(&self, name: &str) -> Vec<Value> {
        let path = format!("/v1/webhooks/{name}/deliveries");
        let (status, answer) = self.call(Method::GET, &path, None).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["deliveries"].as_array().unwrap().clone()
    }

    async fn show(&self, name: &str) -> Value {
        self.call(Method::GET, &format!("/v1/webhooks/{name}"), None).await.1
    }

    /// Ticks until the newest delivery is so.
    async fn until(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut newest = Value::Null;
        self.app
            .wait_for(what, async || {
                self.tick().await;
                newest = self.deliveries(name).await.first().cloned().unwrap_or_default();
                is_so(&newest)
            })
            .await;
        newest
    }

    async fn tick(&self) {
        scheduler::tick(&self.app.services.db).await.unwrap();
    }

    /// What waits for its next attempt need not wait.
    async fn make_due(&self) {
        self.app.execute("update outbox_deliveries set next_attempt_at = now()").await;
    }
}

fn short(config: &mut registrar::config::Config) {
    config.webhook.timeout_secs = NonZeroU32::new(2).unwrap();
}

/// As a receiver checks it, from the headers and the body that came.
fn is_signed_with(message: &Received, secret: &str) -> bool {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let (id, timestamp) = (message.header("webhook-id"), message.header("webhook-timestamp"));
    let mut signed = format!("{id}.{timestamp}.").into_bytes();
    signed.extend_from_slice(&message.body);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    message.header("webhook-signature").split(' ').any(|signature| {
        let mac = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
        hmac::verify(&key, &signed, &mac).is_ok()
    })
}

#[tokio::test]
async fn an_end_of_an_execution_is_told_signed_to_whoever_asked() {
    let setting = Setting::new().await;
    let secret = setting.webhook("ends", &["execution.completed", "execution.failed"]).await;
    setting.webhook("others", &["backup.failed"]).await;
    let completed = setting.app.submit("numbers", json!({})).await;
    let failed = setting.app.submit("broken", json!({})).await;
    let _worker = setting.app.start_worker().await;
    setting
        .app
        .wait_for("both messages", async || {
            setting.tick().await;
            setting.receiver.received().len() >= 2
        })
        .await;
    let messages = setting.receiver.received();
    let of = |id: i64| {
        messages.iter().find(|message| message.json()["data"]["execution_id"] == id).unwrap()
    };
    assert_eq!(of(completed).json()["type"], "execution.completed");
    assert_eq!(of(completed).json()["data"]["row_count"], 3);
    assert_eq!(of(completed).json()["data"]["report"], "numbers");
    assert_eq!(of(failed).json()["type"], "execution.failed");
    assert!(of(failed).json()["data"]["error_code"].is_string());
    for message in &messages {
        assert!(is_signed_with(message, &secret), "{message:?}");
        assert!(!is_signed_with(message, &format!("whsec_{}", STANDARD.encode([7; 32]))));
        assert_eq!(message.header("content-type"), "application/json");
        assert!(message.header("webhook-id").starts_with("msg_"));
        let timestamp: i64 = message.header("webhook-timestamp").parse().unwrap();
        let now = setting.app.number("select extract(epoch from now())::bigint").await;
        assert!((now - timestamp).abs() < 60);
    }
    let delivered = setting
        .until("ends", "the ends of the deliveries", |one| one["status"] == "delivered")
        .await;
    assert_eq!(delivered["http_status"], 204);
    assert_eq!(delivered["attempts"], 1);
    assert!(setting.deliveries("others").await.is_empty());
}

#[tokio::test]
async fn a_message_is_tried_again_under_the_same_id() {
    let setting = Setting::new().await;
    let secret = setting.webhook("shaky", &["execution.completed"]).await;
    setting.receiver.answers(Answer::Status(500));
    setting.post("/v1/webhooks/shaky/ping").await;
    let _worker = setting.app.start_worker().await;
    let waiting = setting
        .until("shaky", "a failed attempt", |one| {
            one["status"] == "pending" && one["error"] == "status"
        })
        .await;
    assert_eq!(waiting["http_status"], 500);
    let pause = "select count(*) from outbox_deliveries
                  where next_attempt_at - attempted_at between '4 seconds' and '10 seconds'";
    assert_eq!(setting.app.number(pause).await, 1);
    assert!(setting.show("shaky").await["failing_since"].is_string());
    setting.receiver.answers(Answer::Status(200));
    setting.make_due().await;
    let delivered =
        setting.until("shaky", "the delivery", |one| one["status"] == "delivered").await;
    assert_eq!(delivered["attempts"], 2);
    assert!(setting.show("shaky").await["failing_since"].is_null());
    let messages = setting.receiver.received();
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0].header("webhook-id"), messages[1].header("webhook-id"));
    assert_eq!(messages[0].header("webhook-id"), delivered["message_id"]);
    assert_eq!(messages[0].body, messages[1].body);
    assert!(messages.iter().all(|message| is_signed_with(message, &secret)));
}

#[tokio::test]
async fn a_message_survives_kill_9_of_its_worker() {
    let setting = Setting::new().await;
    setting.webhook("slow", &["execution.completed"]).await;
    setting.receiver.answers(Answer::Silence);
    setting.post("/v1/webhooks/slow/ping").await;
    let mut worker = setting.app.start_worker_process().await;
    setting
        .app
        .wait_for("the message to be sent", async || {
            setting.tick().await;
            !setting.receiver.received().is_empty()
        })
        .await;
    worker.kill().await;
    setting.receiver.answers(Answer::Status(204));
    assert_eq!(setting.deliveries("slow").await[0]["status"], "sending");
    // Its lease need not be waited for.
    setting.app.execute("update outbox_deliveries set lease_until = now() - interval '1 s'").await;
    let _worker = setting.app.start_worker().await;
    let delivered = setting.until("slow", "the delivery", |one| one["status"] == "delivered").await;
    assert_eq!(delivered["attempts"], 2);
    let messages = setting.receiver.received();
    assert_eq!(messages[0].header("webhook-id"), messages[1].header("webhook-id"));
}

#[tokio::test]
async fn an_attempt_that_was_overtaken_changes_nothing() {
    use registrar::db::deliveries;
    let setting = Setting::new().await;
    setting.webhook("fenced", &["execution.completed"]).await;
    setting.post("/v1/webhooks/fenced/ping").await;
    let db = &setting.app.services.db;
    let id = setting.app.number("select id from outbox_deliveries").await;
    let first = deliveries::claim(db, id, "one", 60).await.unwrap().unwrap();
    assert!(deliveries::claim(db, id, "two", 60).await.unwrap().is_none(), "it is leased");
    setting.app.execute("update outbox_deliveries set lease_until = now() - interval '1 s'").await;
    let mut connection = db.acquire().await.unwrap();
    assert_eq!(deliveries::take_back(&mut connection, 10).await.unwrap(), 1);
    let second = deliveries::claim(db, id, "two", 60).await.unwrap().unwrap();
    assert_eq!((first.attempt, second.attempt), (1, 2));
    assert!(!deliveries::deliver(&mut connection, id, first.attempt, Some(204)).await.unwrap());
    assert!(deliveries::deliver(&mut connection, id, second.attempt, Some(204)).await.unwrap());
}

#[tokio::test]
async fn gone_disables_and_what_happens_then_can_be_replayed() {
    let setting = Setting::new().await;
    setting.webhook("gone", &["execution.completed"]).await;
    setting.webhook("watcher", &["webhook.disabled"]).await;
    setting.receiver.answers(Answer::Status(410));
    setting.post("/v1/webhooks/gone/ping").await;
    let worker = setting.app.start_worker().await;
    setting.until("gone", "the refusal", |one| one["status"] == "failed").await;
    let shown = setting.show("gone").await;
    assert_eq!(shown["disabled_reason"], "gone", "{shown}");
    // The watcher may be refused as well by now: the message about that is a newer one.
    let told = setting.deliveries("watcher").await;
    let of_gone = json!({"webhook": "gone", "reason": "gone"});
    assert!(told.iter().any(|one| one["data"] == of_gone), "{told:?}");
    setting.receiver.answers(Answer::Status(204));
    let id = setting.app.submit("numbers", json!({})).await;
    setting.app.wait_until(id, registrar::db::executions::Status::Completed).await;
    let missed = setting.deliveries("gone").await[0].clone();
    assert_eq!(missed["error"], "webhook_disabled", "{missed}");
    assert_eq!(missed["attempts"], 0);
    let (status, answer) = setting.post("/v1/webhooks/gone/replay").await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    assert_eq!(setting.post("/v1/webhooks/gone/enable").await.0, StatusCode::OK);
    let (status, answer) = setting.post("/v1/webhooks/gone/replay").await;
    assert_eq!((status, &answer["replayed"]), (StatusCode::ACCEPTED, &json!(2)), "{answer}");
    setting
        .app
        .wait_for("both to arrive", async || {
            setting.tick().await;
            setting.deliveries("gone").await.iter().all(|one| one["status"] == "delivered")
        })
        .await;
    worker.stop().await;
    // One that is on its way is not sent twice; one that arrived may be.
    let path = format!("/v1/webhooks/gone/deliveries/{}/replay", missed["id"]);
    assert_eq!(setting.post(&path).await.0, StatusCode::ACCEPTED);
    assert_eq!(setting.post(&path).await.0, StatusCode::CONFLICT);
    assert_eq!(
        setting.post("/v1/webhooks/gone/deliveries/9/replay").await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn one_that_takes_nothing_for_long_is_disabled_and_one_that_refuses_a_message_is_not() {
    let setting = Setting::new().await;
    setting.webhook("dead", &["execution.completed"]).await;
    setting.webhook("picky", &["execution.completed"]).await;
    setting.receiver.answers(Answer::Status(503));
    for name in ["dead", "picky"] {
        setting.post(&format!("/v1/webhooks/{name}/ping")).await;
    }
    // The last of its attempts.
    setting.app.execute("update outbox_deliveries set failed_attempts = 9").await;
    setting
        .app
        .execute(
            "update webhooks set failing_since = now() - interval '3 days' where name = 'dead'",
        )
        .await;
    let _worker = setting.app.start_worker().await;
    for name in ["dead", "picky"] {
        setting.until(name, "the end", |one| one["status"] == "failed").await;
    }
    assert_eq!(setting.show("dead").await["disabled_reason"], "failing");
    assert!(setting.show("picky").await["disabled_at"].is_null());
    let audited = "select count(*) from audit_logs where action = 'webhook.disabled'";
    assert_eq!(setting.app.number(audited).await, 1);
}

#[tokio::test]
async fn redirects_and_addresses_inside_are_refused() {
    let elsewhere = Receiver::start().await;
    let app = TestApp::new().with(short).await;
    let setting = Setting::of(app).await;
    setting.webhook("redirected", &["execution.completed"]).await;
    setting.receiver.answers(Answer::Redirect(format!("{}/inside", elsewhere.base)));
    setting.post("/v1/webhooks/redirected/ping").await;
    let worker = setting.app.start_worker().await;
    let refused =
        setting.until("redirected", "the refusal", |one| one["error"] == "redirected").await;
    assert_eq!(refused["http_status"], 307);
    worker.stop().await;
    // A name that leads inside: looked up by the worker, which now may call public addresses only.
    let url = format!("http://localhost:{}/metadata", elsewhere.port);
    setting.webhook_at("inside", &url, &["execution.completed"]).await;
    setting.post("/v1/webhooks/inside/ping").await;
    let mut strict = setting.app.config.clone();
    strict.webhook.allow_networks.clear();
    let _worker = setting.app.start_worker_with(strict).await;
    let refused =
        setting.until("inside", "the refusal", |one| one["error"] == "address_refused").await;
    assert_eq!(refused["status"], "pending", "{refused}");
    assert!(elsewhere.received().is_empty(), "nobody was called");
}

#[tokio::test]
async fn one_that_does_not_answer_keeps_no_other_waiting() {
    let setting = Setting::new().await;
    let silent = Receiver::start().await;
    silent.answers(Answer::Silence);
    setting.webhook_at("silent", &silent.base, &["execution.completed"]).await;
    setting.webhook("well", &["execution.completed"]).await;
    for _ in 0..40 {
        setting.app.services.ping_webhook(&setting.app.operator(), "silent").await.unwrap();
    }
    setting.tick().await;
    let _worker = setting.app.start_worker().await;
    setting.post("/v1/webhooks/well/ping").await;
    setting.until("well", "the delivery", |one| one["status"] == "delivered").await;
    let sending = "select count(*) from outbox_deliveries d join webhooks w on w.id = d.webhook_id
                    where w.name = 'silent' and d.status = 'sending'";
    assert!(setting.app.number(sending).await <= 8);
    let timed_out = "select count(*) from outbox_deliveries where error = 'timed_out'";
    setting
        .app
        .wait_for("a time-out", async || {
            setting.tick().await;
            setting.app.number(timed_out).await > 0
        })
        .await;
}

#[tokio::test]
async fn a_rotated_secret_signs_beside_its_successor_for_a_while() {
    let setting = Setting::new().await;
    let first = setting.webhook("rotating", &["execution.completed"]).await;
    let (_, answer) = setting.post("/v1/webhooks/rotating/rotate").await;
    let second = answer["secret"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    assert!(answer["previous_secret_until"].is_string());
    assert!(setting.show("rotating").await.get("secret").is_none(), "shown once");
    let _worker = setting.app.start_worker().await;
    setting.post("/v1/webhooks/rotating/ping").await;
    setting.until("rotating", "the delivery", |one| one["status"] == "delivered").await;
    let message = setting.receiver.received().pop().unwrap();
    assert!(is_signed_with(&message, &first) && is_signed_with(&message, &second));
    setting.app.execute("update webhooks set previous_until = now()").await;
    setting.post("/v1/webhooks/rotating/ping").await;
    setting.until("rotating", "the second", |one| one["status"] == "delivered").await;
    let message = setting.receiver.received().pop().unwrap();
    assert!(!is_signed_with(&message, &first) && is_signed_with(&message, &second));
    let plain = "select count(*) from webhooks
                  where secret_sealed = decode('00', 'hex') or octet_length(secret_sealed) = 32";
    assert_eq!(setting.app.number(plain).await, 0, "secrets are sealed");
}

#[tokio::test]
async fn an_event_is_as_lasting_as_the_change_it_tells_of() {
    let mut setting = Setting::new().await;
    setting.app.leave_unfinished();
    let all = ["execution.cancelled", "execution.expired", "run.needs_approval", "run.finished"];
    setting.webhook("all", &all).await;
    let id = setting.app.submit("numbers", json!({})).await;
    let cancel = format!(
        "update report_executions set status = 'cancelled', completed_at = now() where id = {id}"
    );
    let mut tx = setting.app.services.db.begin().await.unwrap();
    sqlx::query(crate::support::database::sql(&cancel)).execute(&mut *tx).await.unwrap();
    tx.rollback().await.unwrap();
    assert!(setting.deliveries("all").await.is_empty(), "it did not happen");
    setting.app.services.cancel(&setting.app.operator(), id).await.unwrap();
    setting
        .app
        .execute(
            "insert into lifecycle_runs
                    (policy, kind, policy_digest, code_version, as_of, origin, status)
             values ('p', 'purge', repeat('0', 64), '0', now(), 'operator', 'needs_approval')",
        )
        .await;
    setting
        .app
        .execute("update lifecycle_runs set status = 'cancelled', completed_at = now()")
        .await;
    let told: Vec<_> =
        setting.deliveries("all").await.iter().map(|one| one["event"].clone()).collect();
    assert_eq!(told, ["run.finished", "run.needs_approval", "execution.cancelled"]);
}

#[tokio::test]
async fn a_webhook_that_cannot_work_is_refused_by_name() {
    let setting = Setting::new().await;
    let good = json!({"name": "good", "url": "https://hooks.example/x",
                      "events": ["execution.completed"]});
    for (key, value, pointer) in [
        ("name", json!("No Name"), "/name"),
        ("url", json!("ftp://hooks.example"), "/url"),
        ("url", json!("https://10.0.0.1/"), "/url"),
        ("url", json!("https://ann:pass@hooks.example/"), "/url"),
        ("url", json!(7), "/url"),
        ("events", json!([]), "/events"),
        ("events", json!(["execution.completed", "rain"]), "/events/1"),
        ("colour", json!("red"), "/colour"),
    ] {
        let mut body = good.clone();
        body[key] = value;
        let (status, answer) = setting.call(Method::POST, "/v1/webhooks", Some(&body)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{key}: {answer}");
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{answer:#}");
    }
    let create = setting.call(Method::POST, "/v1/webhooks", Some(&good)).await;
    assert_eq!(create.0, StatusCode::CREATED, "{}", create.1);
    let again = setting.call(Method::POST, "/v1/webhooks", Some(&good)).await;
    assert_eq!(again.0, StatusCode::UNPROCESSABLE_ENTITY, "the name is taken: {}", again.1);
    let change = json!({"url": "https://hooks.example/y", "events": ["run.finished"]});
    let path = "/v1/webhooks/good";
    let (status, changed) = setting.call(Method::PUT, path, Some(&change)).await;
    assert_eq!((status, &changed["url"]), (StatusCode::OK, &change["url"]), "{changed}");
    let listed = setting.call(Method::GET, "/v1/webhooks", None).await.1;
    assert_eq!(listed["webhooks"][0]["events"], json!(["run.finished"]), "{listed}");
    // Without the permission nobody learns of it.
    let other = setting.app.token("ana").await;
    let answer = setting.http.get(path, &other).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(setting.call(Method::DELETE, path, None).await.0, StatusCode::OK);
    assert_eq!(setting.call(Method::GET, path, None).await.0, StatusCode::NOT_FOUND);
    let (status, problem) = setting.post("/v1/webhooks/none/ping").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
}
