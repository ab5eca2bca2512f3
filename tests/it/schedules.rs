//! Schedules fire once, with the rights of their owner, and say what became of each due time.

use std::collections::BTreeSet;
use std::time::Duration;

use registrar::db::executions::Status;
use registrar::scheduler;
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::http::Http;
use crate::support::process::Process;
use crate::support::skew::WrongClock;
use crate::support::{TestApp, eventually};

/// How long anything of a test may take.
const LIMIT: Duration = Duration::from_secs(60);

struct Setting {
    app: TestApp,
    http: Http,
    token: String,
}

impl Setting {
    async fn new() -> Self {
        let app = TestApp::new().await;
        app.define("numbers", "select n from generate_series(1, 3) as n").await;
        app.define("broken", "select 1 / (n - n) as x from generate_series(1, 3) as n").await;
        let token = app.token("ana").await;
        Self { http: app.http().await, token, app }
    }

    async fn create(&self, body: &Value) -> (StatusCode, Value) {
        let answer = self.http.post("/v1/schedules", &self.token, body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// A schedule of every minute that was due so long ago.
    async fn due(&self, name: &str, report: &str, more: Value, since: &str) {
        let mut body = json!({ "name": name, "report": report, "cron": "* * * * *" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = self.create(&body).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        self.app
            .execute(&format!(
                "update schedules
                    set next_due_at = date_trunc('minute', now() - interval '{since}')
                  where name = '{name}'"
            ))
            .await;
    }

    async fn show(&self, name: &str) -> Value {
        let path = format!("/v1/schedules/{name}");
        self.http.get(&path, &self.token).send().await.unwrap().json().await.unwrap()
    }

    /// Waits until no occurrence of the schedule is pending, and answers with all of them.
    async fn settled(&self, name: &str) -> Vec<Value> {
        let mut found = Vec::new();
        self.app
            .wait_for("the occurrences to be settled", async || {
                let shown = self.show(name).await;
                found = shown["occurrences"].as_array().unwrap().clone();
                found.iter().all(|one| one["status"] != "pending")
            })
            .await;
        found
    }
}

#[tokio::test]
async fn a_due_schedule_submits_once_whoever_looks() {
    let setting = Setting::new().await;
    setting.due("each-minute", "numbers", json!({}), "0 minutes").await;
    let db = &setting.app.services.db;
    let looks = (0..8).map(|_| scheduler::tick(db));
    futures::future::try_join_all(looks).await.unwrap();
    let _worker = setting.app.start_worker().await;
    let occurrences = setting.settled("each-minute").await;
    let done: Vec<_> = occurrences.iter().filter(|one| one["status"] == "done").collect();
    let due: BTreeSet<_> = done.iter().map(|one| one["due_at"].to_string()).collect();
    assert_eq!(due.len(), done.len(), "{occurrences:#?}");
    assert!(!done.is_empty(), "{occurrences:#?}");
    let executions = setting.app.number("select count(*) from report_executions").await;
    assert_eq!(usize::try_from(executions).unwrap(), done.len());
    for one in done {
        let id = one["execution_id"].as_i64().unwrap();
        let execution = setting.app.wait_until(id, Status::Completed).await;
        assert_eq!(execution.executed_by, setting.app.caller("ana").await.user_id);
    }
}

#[tokio::test]
async fn a_doubled_ticket_submits_nothing_twice() {
    let mut setting = Setting::new().await;
    setting.app.leave_unfinished();
    setting.due("once", "numbers", json!({}), "0 minutes").await;
    let services = &setting.app.services;
    scheduler::tick(&services.db).await.unwrap();
    let due_at: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select min(due_at) from schedule_occurrences where schedule = 'once'")
            .fetch_one(&services.db)
            .await
            .unwrap();
    let fires = (0..5).map(|_| services.fire_occurrence("once", due_at));
    futures::future::try_join_all(fires).await.unwrap();
    assert_eq!(setting.app.number("select count(*) from report_executions").await, 1);
    // A worker that died after the submit, before the occurrence's row.
    setting
        .app
        .execute("update schedule_occurrences set status = 'pending', execution_id = null")
        .await;
    setting.app.services.fire_occurrence("once", due_at).await.unwrap();
    assert_eq!(setting.app.number("select count(*) from report_executions").await, 1);
    let settled = "select count(*) from schedule_occurrences
                    where schedule = 'once' and status = 'done' and execution_id is not null";
    assert_eq!(setting.app.number(settled).await, 1);
}

#[tokio::test]
async fn missed_times_follow_the_rule_and_are_told() {
    let setting = Setting::new().await;
    let window = json!({ "window_secs": 200, "overlap": "queue" });
    for rule in ["none", "latest", "all"] {
        let mut more = window.clone();
        more["catch_up"] = rule.into();
        setting.due(&format!("catch-{rule}"), "numbers", more, "10 minutes").await;
    }
    let _worker = setting.app.start_worker().await;
    scheduler::tick(&setting.app.services.db).await.unwrap();
    let count = async |name: &str, status: &str| {
        let rows = format!(
            "select count(*) from schedule_occurrences
              where schedule = '{name}' and status in ({status})
                and due_at <= date_trunc('minute', now()) "
        );
        setting.app.number(&rows).await
    };
    // In the window: the last three minutes, and the one that is not late.
    let fired = "'pending', 'done'";
    assert!((3..=4).contains(&count("catch-all", fired).await));
    assert!((1..=2).contains(&count("catch-latest", fired).await));
    assert!(count("catch-none", fired).await <= 1);
    for name in ["catch-all", "catch-latest", "catch-none"] {
        let total = count(name, "'pending', 'done', 'skipped'").await;
        assert!((11..=12).contains(&total), "{name}: each due time has a row: {total}");
        setting.app.execute(&format!("update schedules set paused_at = now(), pause_reason = 'by_hand' where name = '{name}'")).await;
    }
    setting
        .app
        .execute("update schedule_occurrences set status = 'skipped' where status = 'pending'")
        .await;
    setting
        .app
        .wait_for("what was fired to end", async || {
            setting
                .app
                .number("select count(*) from report_executions where status <> 'completed'")
                .await
                == 0
        })
        .await;
}

#[tokio::test]
async fn the_owners_rights_count_when_it_fires() {
    let setting = Setting::new().await;
    setting.due("of-ana", "numbers", json!({}), "0 minutes").await;
    setting.app.execute("update users set is_active = false where username = 'ana'").await;
    let _worker = setting.app.start_worker().await;
    scheduler::tick(&setting.app.services.db).await.unwrap();
    let failed = "select count(*) from schedule_occurrences
                   where schedule = 'of-ana' and status = 'failed' and reason = 'owner_inactive'";
    setting.app.wait_for("the refusal", async || setting.app.number(failed).await > 0).await;
    assert_eq!(setting.app.number("select count(*) from report_executions").await, 0);
}

#[tokio::test]
async fn one_that_keeps_failing_is_paused_and_audited() {
    let setting = Setting::new().await;
    setting.due("failing", "broken", json!({"pause_after_failures": 2}), "0 minutes").await;
    setting.app.execute("update schedules set next_due_at = null").await;
    let _worker = setting.app.start_worker().await;
    for expected in 1..=3 {
        let path = "/v1/schedules/failing/run";
        let answer = setting.http.post(path, &setting.token, &json!({})).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let failed = "select count(*) from report_executions where status = 'failed'";
        setting
            .app
            .wait_for("the failure", async || setting.app.number(failed).await == expected)
            .await;
        setting.settled("failing").await;
    }
    let shown = setting.show("failing").await;
    assert_eq!(shown["pause_reason"], "failing", "{shown:#}");
    let audited = "select count(*) from audit_logs where action = 'schedule.paused'";
    assert_eq!(setting.app.number(audited).await, 1);
}

#[tokio::test]
async fn an_overlap_is_skipped_and_told() {
    let mut setting = Setting::new().await;
    setting.app.leave_unfinished();
    setting.due("slow", "numbers", json!({}), "0 minutes").await;
    // Nobody runs what the first occurrence submits.
    for _ in 0..2 {
        let path = "/v1/schedules/slow/run";
        setting.http.post(path, &setting.token, &json!({})).send().await.unwrap();
    }
    let due: Vec<chrono::DateTime<chrono::Utc>> = sqlx::query_scalar(
        "select due_at from schedule_occurrences where schedule = 'slow' order by due_at",
    )
    .fetch_all(&setting.app.services.db)
    .await
    .unwrap();
    for due_at in &due {
        setting.app.services.fire_occurrence("slow", *due_at).await.unwrap();
    }
    let shown = setting.show("slow").await;
    assert_eq!(shown["occurrences"][0]["status"], "skipped", "{shown:#}");
    assert_eq!(shown["occurrences"][0]["reason"], "overlap");
    assert_eq!(shown["occurrences"][1]["status"], "done");
}

#[tokio::test]
async fn a_schedule_that_cannot_work_is_refused_by_name() {
    let setting = Setting::new().await;
    let good = json!({"name": "good", "report": "numbers", "cron": "0 6 * * MON"});
    for (key, value, pointer) in [
        ("cron", json!("61 * * * *"), "/cron"),
        ("cron", json!("0 0 30 2 *"), "/cron"),
        ("time_zone", json!("Mars/Olympus"), "/time_zone"),
        ("name", json!("No Name"), "/name"),
        ("window_secs", json!(1), "/window_secs"),
        ("parameters", json!({"x": 1}), "/parameters/x"),
        ("catch_up", json!("sometimes"), "/catch_up"),
        ("colour", json!("red"), "/colour"),
    ] {
        let mut body = good.clone();
        body[key] = value;
        let (status, answer) = setting.create(&body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{key}: {answer}");
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{answer:#}");
    }
    let (status, _) = setting.create(&good).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, answer) = setting.create(&good).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "the name is taken: {answer}");
    // Nobody else may know of it.
    let other = setting.app.token("lena").await;
    let answer = setting.http.get("/v1/schedules/good", &other).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let path = "/v1/schedules/good/next?count=2";
    let next: Value =
        setting.http.get(path, &setting.token).send().await.unwrap().json().await.unwrap();
    assert_eq!(next["times"].as_array().unwrap().len(), 2, "{next}");
}

#[tokio::test]
async fn a_back_fill_fires_what_was_left_out_with_the_days_of_then() {
    let setting = Setting::new().await;
    let parameters = "[[parameter]]\nname = \"day\"\ntype = \"date\"\n";
    setting.app.define_with("daily", parameters, "select :day as day").await;
    let body = json!({"name": "daily", "report": "daily", "cron": "0 12 * * *",
                      "parameters": {"day": "today - 1 day"}});
    let (status, answer) = setting.create(&body).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let path = "/v1/schedules/daily/backfill";
    let backfill = async |body: Value| {
        let answer = setting.http.post(path, &setting.token, &body).send().await.unwrap();
        (answer.status(), answer.json::<Value>().await.unwrap())
    };
    let range = json!({"from": "2026-03-01T12:00:00Z", "until": "2026-03-04T12:00:00Z"});
    let (status, answer) = backfill(range.clone()).await;
    assert_eq!((status, &answer["occurrences"]), (StatusCode::ACCEPTED, &json!(3)), "{answer}");
    let _worker = setting.app.start_worker().await;
    let occurrences = setting.settled("daily").await;
    assert_eq!(occurrences.len(), 3, "none waits for another: {occurrences:#?}");
    for (occurrence, day) in occurrences.iter().zip(["2026-03-02", "2026-03-01", "2026-02-28"]) {
        let id = occurrence["execution_id"].as_i64().unwrap();
        setting.app.wait_until(id, Status::Completed).await;
        let file = String::from_utf8(setting.app.result(id).await).unwrap();
        assert!(file.contains(day), "{day}: {file}");
    }
    // What has started something is not started again.
    assert_eq!(backfill(range).await.1["occurrences"], 0);
    for (body, pointer) in [
        (json!({"from": "2026-03-01T12:00:00Z", "until": "2999-01-01T00:00:00Z"}), "/until"),
        (json!({"from": "2026-03-01T12:00:00Z", "until": "2026-03-01T12:00:00Z"}), "/from"),
        (json!({"from": "2020-01-01T12:00:00Z", "until": "2026-01-01T12:00:00Z"}), "/until"),
        (json!({"from": "yesterday", "until": "2026-03-01T12:00:00Z"}), "/from"),
        (json!({"until": "2026-03-01T12:00:00Z"}), "/from"),
    ] {
        let (status, answer) = backfill(body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{answer}");
    }
}

/// Three schedulers whose machines disagree about the day, one of which stands still and comes
/// back, twice, while another is killed.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn many_schedulers_fire_each_second_once_though_clocks_differ_and_some_stand_still_or_die() {
    const DAY: i64 = 24 * 60 * 60;
    let mut setting = Setting::new().await;
    // Nobody takes the tickets: what is counted is what the schedulers did.
    setting.app.leave_unfinished();
    let clock = WrongClock::new();
    let start = |skew_secs| {
        let arguments = ["serve", "--only", "scheduler"];
        Process::start_skewed(&clock, skew_secs, &setting.app.config, &arguments)
    };
    let mut schedulers = [start(0), start(2 * DAY), start(-2 * DAY)];
    let body = json!({"name": "tick", "report": "numbers", "cron": "* * * * * *",
                      "catch_up": "all", "overlap": "queue"});
    assert_eq!(setting.create(&body).await.0, StatusCode::CREATED);
    let noted = "select count(*) from schedule_occurrences where schedule = 'tick'";
    let fired = async |more: i64| {
        let seen = setting.app.number(noted).await;
        setting
            .app
            .wait_for("due times to be noted", async || {
                setting.app.number(noted).await >= seen + more
            })
            .await;
    };
    for (scheduler, said) in schedulers.iter().zip(["today", "in two days", "two days ago"]) {
        let started = || scheduler.log().contains("scheduler started").then_some(());
        eventually(&format!("a scheduler of {said}"), LIMIT, async || started()).await;
    }
    fired(3).await;
    // One stands still, wherever it is; another is killed.
    schedulers[1].signal(Signal::STOP);
    schedulers[2].kill().await;
    // Longer than the server lets a transaction stand still.
    fired(8).await;
    schedulers[1].signal(Signal::CONT);
    schedulers[0].signal(Signal::STOP);
    fired(8).await;
    schedulers[0].signal(Signal::CONT);
    fired(3).await;
    let day_of = |scheduler: &Process| {
        let log = scheduler.log();
        // A line begins with a colour.
        let days = log.lines().filter_map(|line| line.trim_start_matches("\u{1b}[2m").get(..10));
        days.filter_map(|day| day.parse::<chrono::NaiveDate>().ok()).next()
    };
    let days: Vec<_> = schedulers.iter().filter_map(day_of).collect();
    assert_eq!((days[1] - days[0]).num_days(), 2, "the clocks did differ");
    assert_eq!((days[2] - days[0]).num_days(), -2, "the clocks did differ");
    for scheduler in [0, 1] {
        schedulers[scheduler].kill().await;
    }
    let left_out = "select extract(epoch from max(due_at) - min(due_at))::bigint + 1 - count(*)
                      from schedule_occurrences where schedule = 'tick'";
    assert_eq!(setting.app.number(left_out).await, 0, "a due time is missing");
    let skipped = "select count(*) from schedule_occurrences
                    where schedule = 'tick' and status <> 'pending'";
    assert_eq!(setting.app.number(skipped).await, 0);
    // Only a ticket that nobody took for a minute is written anew: this is over before.
    let tickets = "select count(*) from apalis.jobs where job_type = 'occurrences'";
    let tickets = setting.app.number(tickets).await;
    assert_eq!(tickets, setting.app.number(noted).await, "each due time has one ticket");
}
