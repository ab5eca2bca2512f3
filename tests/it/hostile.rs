//! What somebody with bad intent writes into every place that takes text: it is a value, and never
//! SQL, a header, a path or a script.

use std::time::Duration;

use registrar::api::openapi;
use registrar::db::executions::Status;
use registrar::service::sessions::csrf_token;
use reqwest::header::{COOKIE, HeaderValue};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ownership::{World, pages};
use crate::support::database::sql;

/// Each would leave a mark if it were taken for what it is not: on the table `canary`, on who is a
/// superuser, in the time that an answer takes, in its headers.
const TEXTS: [&str; 10] = [
    "'; delete from canary; --",
    "1; update users set is_superuser = true; --",
    "\"; drop table canary; --",
    "1) or pg_sleep(40) is not null --",
    "$$; drop table canary; $$",
    "\\'; delete from canary; --",
    "' || (select password from users limit 1) || '",
    "a\r\nx-evil: 1\r\n\r\n",
    "a\0b",
    "/* {{7*7}} ${7*7} %n */ \u{202e}\u{feff}é",
];
/// Longest time for an answer: what sleeps would be seen.
const PATIENCE: Duration = Duration::from_secs(30);
const EVIL: &str = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&";

fn encoded(text: &str) -> String {
    let all = text.bytes().map(|byte| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    all.collect()
}

/// A request that holds one of the texts in one place.
struct Probe {
    method: Method,
    /// Path of the document: its statuses are what may be answered.
    documented: String,
    /// For the message.
    place: String,
    path: String,
    header: Option<(String, HeaderValue)>,
    body: Option<Value>,
}

/// The places of a JSON document that hold something, as pointers.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), found));
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, value)| leaves(value, &format!("{at}/{index}"), found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            found.push(at.to_owned());
        }
    }
}

/// Bodies that say in SQL what they are about, beside the document's examples: conditions of holds.
fn further_bodies(path: &str) -> Vec<Value> {
    match path {
        "/v1/holds" => vec![json!({"scope": "query", "table": "audit_logs", "where": "id = 1",
                                   "reason": "a case"})],
        "/v1/archives/{table}/restore" => vec![json!({"keys": [["1"]]})],
        "/v1/schedules" => vec![json!({"name": "probe", "report": "numbers", "cron": "0 1 * * *",
                                       "deliver": {"webhook": "portal", "copy_to": "a/b"}})],
        _ => Vec::new(),
    }
}

/// Every place of an operation, with a text in it.
fn probes(world: &World, method: &Method, path: &str, operation: &Value, text: &str) -> Vec<Probe> {
    let whole = if path.contains('{') { world.case(path).map(|(_, path)| path) } else { None };
    let whole = whole.unwrap_or_else(|| path.to_owned());
    let probe = |place: &str, path: String| Probe {
        method: method.clone(),
        documented: path_key(path.as_str(), operation),
        place: place.to_owned(),
        path,
        header: None,
        body: None,
    };
    let example = &operation["requestBody"]["content"]["application/json"]["example"];
    let bodies: Vec<_> = (!example.is_null()).then(|| example.clone()).into_iter().collect();
    let mut all = Vec::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap();
        let mut made = match parameter["in"].as_str().unwrap() {
            "path" => {
                let path = path.replace(&format!("{{{name}}}"), &encoded(text));
                let path = match path.contains('{') {
                    // The other one is a real one.
                    true => path.replace("{name}", "portal").replace("{id}", "1"),
                    false => path,
                };
                probe(name, path)
            }
            "query" => probe(name, format!("{whole}?{name}={}", encoded(text))),
            "header" => {
                let Ok(value) = HeaderValue::try_from(text) else { continue };
                let mut made = probe(name, whole.clone());
                made.header = Some((name.to_owned(), value));
                made
            }
            other => panic!("{path}: a parameter in {other}"),
        };
        made.body = bodies.first().cloned();
        all.push(made);
    }
    for body in bodies.iter().chain(&further_bodies(path)) {
        let mut places = Vec::new();
        leaves(body, "", &mut places);
        for place in places {
            let mut made = probe(&place, whole.clone());
            let mut body = body.clone();
            *body.pointer_mut(&place).unwrap() = json!(text);
            made.body = Some(body);
            all.push(made);
        }
    }
    all
}

fn path_key(path: &str, operation: &Value) -> String {
    format!("{} ({path})", operation["operationId"].as_str().unwrap())
}

impl World {
    async fn send(&self, probe: &Probe, token: &str) -> Response {
        let mut request = self.http.request(probe.method.clone(), &probe.path);
        request = request.bearer_auth(token).timeout(PATIENCE);
        if let Some((name, value)) = &probe.header {
            request = request.header(name, value);
        }
        if let Some(body) = &probe.body {
            request = request.json(body);
        }
        let Probe { documented, place, .. } = probe;
        let answer = request.send().await;
        answer.unwrap_or_else(|error| panic!("{documented} at {place}: {error}"))
    }

    async fn is_unharmed(&self, what: &str) {
        let harm = "select (select count(*) from canary)
                         + (select count(*) from users where is_superuser)";
        assert_eq!(self.app.number(harm).await, 1, "{what}");
    }
}

#[tokio::test]
async fn text_is_a_value_in_every_parameter_of_every_operation() {
    let world = World::new().await;
    world.app.execute("create table canary as select 1 as n").await;
    world.app.execute("update users set is_superuser = false").await;
    let admin = world.app.token("admin").await;
    let document = serde_json::to_value(openapi()).unwrap();
    let (mut sent, mut faults) = (0, Vec::new());
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            for text in TEXTS {
                for probe in probes(&world, &method, path, operation, text) {
                    let answer = world.send(&probe, &admin).await;
                    let status = answer.status();
                    let what = format!("{} at {} with {text:?}", probe.documented, probe.place);
                    let has_header = answer.headers().contains_key("x-evil");
                    let body = answer.bytes().await.unwrap_or_default();
                    let body = String::from_utf8_lossy(&body);
                    let is_told = operation["responses"].get(status.as_str()).is_some();
                    let leaks = body.contains("pbkdf2_sha256");
                    if has_header || status.as_u16() >= 500 || !is_told || leaks {
                        faults.push(format!("{what}: {status} {body:.300}"));
                    }
                    sent += 1;
                }
            }
            world.is_unharmed(&format!("{method} {path}")).await;
        }
    }
    assert!(faults.is_empty(), "{} of {sent}: {faults:#?}", faults.len());
    assert!(sent > 1_000, "{sent}");
}

#[tokio::test]
async fn text_is_a_value_in_every_field_and_query_of_the_console() {
    let world = World::new().await;
    world.app.execute("create table canary as select 1 as n").await;
    world.app.execute("update users set is_superuser = false").await;
    let session = world.session("admin").await;
    let cookie = format!("registrar_session={session}");
    let csrf = csrf_token(&session);
    let names = [
        "q",
        "report",
        "status",
        "mine",
        "before",
        "from",
        "until",
        "user_id",
        "action",
        "entity_type",
        "entity_id",
        "user",
        "notice",
        "preview",
        "next",
        "scope",
        "table",
        "keys",
        "where",
        "reason",
        "subject_id",
        "name",
        "url",
        "events",
        "scopes",
        "expires_after_days",
        "delivery",
        "digest",
        "format",
        "schedule_name",
        "cron",
        "time_zone",
        "webhook",
        "copy_to",
        "email",
        "act",
        "nonce",
        "reader",
        "run_id",
        "p.t",
        "which",
        "title",
        "query",
    ];
    let lists = [
        "/reports",
        "/executions",
        "/schedules",
        "/runs",
        "/holds",
        "/erasures",
        "/webhooks",
        "/tokens",
        "/audit",
        "/backups",
        "/policies",
        "/queues",
        "/overview",
    ];
    let forms = [
        "/reports/numbers",
        "/reports/numbers/estimate",
        "/reports/numbers/schedules",
        "/executions/bulk",
        "/holds",
        "/erasures",
        "/webhooks",
        "/tokens",
    ];
    for text in TEXTS {
        let all = names.map(|name| (name, text));
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let query = query.extend_pairs(all).finish();
        let gets = lists.iter().map(|path| (Method::GET, format!("{path}?{query}")));
        let named = pages().into_iter().map(|(method, path)| {
            (
                method,
                format!("/{}", path.trim_start_matches('/'))
                    .split('/')
                    .map(|part| if part.starts_with('{') { encoded(text) } else { part.to_owned() })
                    .collect::<Vec<_>>()
                    .join("/"),
            )
        });
        let posts = forms.iter().map(|path| (Method::POST, (*path).to_owned()));
        for (method, path) in gets.chain(named).chain(posts) {
            let mut fields = all.to_vec();
            fields.push(("csrf", &csrf));
            let request = match method {
                Method::GET => world.http.request(Method::GET, &path),
                _ => world.form(&path, &fields),
            };
            let answer = request.header(COOKIE, &cookie).timeout(PATIENCE).send().await.unwrap();
            let status = answer.status();
            assert!(!answer.headers().contains_key("x-evil"), "{path}");
            let page = answer.text().await.unwrap();
            assert!(status.as_u16() < 500, "{method} {path} with {text:?}: {status} {page}");
        }
        world.is_unharmed(text).await;
    }
}

#[tokio::test]
async fn the_name_of_a_file_is_the_slugs_whatever_people_write() {
    let world = World::new().await;
    let (admin, rui) = (world.app.token("admin").await, world.app.token("rui").await);
    let put = async |slug: &str, title: &str| {
        let body = json!({"title": title, "query": "select 1 as n",
                          "column": [{"name": "n", "label": title}]});
        let path = format!("/v1/reports/{slug}");
        let request = world.http.request(Method::PUT, &path).bearer_auth(&rui).json(&body);
        request.send().await.unwrap().status().as_u16()
    };
    let long = "x".repeat(300);
    let names = [
        "a\r\nx-evil: 1",
        "a\"; filename=\"evil.exe",
        "a;b",
        "..",
        "../../etc/passwd",
        "..\\..\\x",
        "/etc/passwd",
        "C:\\x",
        "a\0b",
        "é漢字",
        "\u{202e}fdp.exe",
        "%2e%2e%2f",
        "a b",
        "-",
        "",
        long.as_str(),
    ];
    let stored = world.app.number("select count(*) from report_definitions").await;
    for name in names {
        let status = put(&encoded(name), "A title").await;
        assert!([404, 405, 422].contains(&status), "{name:?}: {status}");
    }
    assert_eq!(world.app.number("select count(*) from report_definitions").await, stored);
    let worker = world.app.start_worker().await;
    for (index, title) in names.into_iter().enumerate() {
        let slug = format!("named-{index}");
        let status = put(&slug, title).await;
        if status == 422 {
            // Titles without text or with control characters.
            continue;
        }
        assert_eq!(status, 201, "{title:?}");
        for format in ["csv", "xlsx", "ndjson", "parquet"] {
            let path = format!("/v1/reports/{slug}/executions");
            let request = world.http.post(&path, &admin, &json!({"format": format}));
            let answer: Value = request.send().await.unwrap().json().await.unwrap();
            let id = answer["id"].as_i64().unwrap();
            world.app.wait_until(id, Status::Completed).await;
            let path = format!("/v1/executions/{id}/result");
            let answer = world.http.get(&path, &admin).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{title:?}");
            let name = format!("{slug}-{id}.{format}");
            assert_eq!(
                answer.headers()["content-disposition"].to_str().unwrap(),
                format!("attachment; filename=\"{name}\"; filename*=UTF-8''{name}"),
            );
            assert!(!answer.headers().contains_key("x-evil"), "{title:?}");
        }
    }
    worker.stop().await;
    for path in world.app.stored().await {
        let first = path.split('/').next().unwrap();
        let is_ours = ["results", "ledger", "certificates"].contains(&first);
        assert!(is_ours && !path.contains(".."), "{path}");
    }
}

/// What would lead out of a folder, if it were taken for a path.
const WAYS_OUT: [&str; 14] = [
    "..",
    "../x",
    "a/../../b",
    "/etc/passwd",
    "a//b",
    "a/./b",
    "%2e%2e/x",
    "%2e%2e%2fx",
    "a\\b",
    "..\\x",
    "C:\\x",
    "a\0b",
    "~/x",
    "",
];

#[tokio::test]
async fn no_copy_goes_where_its_schedule_must_not_write() {
    let world = World::new().await;
    let ana = world.app.token("ana").await;
    let session = world.session("ana").await;
    let cookie = format!("registrar_session={session}");
    let csrf = csrf_token(&session);
    let long = "x/".repeat(200);
    for folder in WAYS_OUT.into_iter().chain([long.as_str()]) {
        let body = json!({"name": "copied", "report": "numbers", "cron": "0 1 * * *",
                          "deliver": {"copy_to": folder}});
        let answer = world.http.post("/v1/schedules", &ana, &body).send().await.unwrap();
        assert_eq!(answer.status(), 422, "{folder:?}: {}", answer.text().await.unwrap());
        // In a form, nothing is no wish, and NUL is left out.
        if folder.is_empty() || folder.contains('\0') {
            continue;
        }
        let fields = [
            ("schedule_name", "copied"),
            ("cron", "0 1 * * *"),
            ("time_zone", "UTC"),
            ("copy_to", folder),
            ("csrf", csrf.as_str()),
        ];
        let request = world.form("/reports/numbers/schedules", &fields).header(COOKIE, &cookie);
        assert_eq!(request.send().await.unwrap().status(), 422, "{folder:?}");
    }
    assert_eq!(world.app.number("select count(*) from schedules where name = 'copied'").await, 0);
}

#[tokio::test]
async fn no_path_leads_to_a_file_of_the_machine() {
    let world = World::new().await;
    let admin = world.app.token("admin").await;
    let places = [
        "/",
        "/assets/",
        "/v1/policies/",
        "/v1/reports/",
        "/v1/executions/",
        "/v1/backups/",
        "/v1/archives/",
        "/problems/",
        "/reports/",
        "/policies/",
        "/v1/runs/",
    ];
    let ways = [
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%5c..%5cCargo.toml",
        "//etc/passwd",
        "%2fetc%2fpasswd",
        "classification",
        "..%2fjobs%2fclassification",
        "classification.toml%00",
        "%ff%fe",
        "..%252f..%252fetc%252fpasswd",
        "file:%2f%2f%2fetc%2fpasswd",
    ];
    for place in places {
        for way in ways {
            // By hand: clients tidy paths before they send them.
            let answer = raw_get(&world.http.base, &format!("{place}{way}"), &admin).await;
            let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
            assert!([303, 400, 404, 405].contains(&status), "{place}{way}: {answer}");
            for leak in ["root:x:", "[package]", "[table"] {
                assert!(!answer.contains(leak), "{place}{way}: {answer}");
            }
        }
    }
}

async fn raw_get(base: &str, path: &str, token: &str) -> String {
    let address = base.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
         connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Puts a script wherever a page shows text.
const STORED: [&str; 13] = [
    "update report_definitions set name = $1, description = $1",
    "update report_executions
        set error_message = $1, error_code = left($1, 50), status = 'failed',
            parameters = jsonb_build_object($1, $1)",
    "update api_tokens set name = left($1, 100)",
    "update lifecycle_runs
        set error_message = $1, error_code = left($1, 50), waiting_for = left($1, 200),
            code_version = left($1, 50)",
    "update holds set reason = $1",
    "update outbox_deliveries set error = left($1, 30)",
    "update outbox_events set type = left($1, 50)",
    "update backups
        set verify_problem = $1, verified_at = now(), verified_good = false,
            database_name = left($1, 63), server_version = left($1, 50)",
    "update workers set host = $1",
    "update webhooks set url = $1",
    "update schedules set pause_reason = left($1, 50), paused_at = now()",
    "insert into audit_logs (action, entity_type, new_values)
     values (left($1, 100), left($1, 100), jsonb_build_object($1, 1))",
    "update erasures set waits_because = left($1, 50), subject_id = $1",
];

#[tokio::test]
async fn what_is_stored_anywhere_is_shown_and_not_run() {
    let world = World::new().await;
    let session = world.session("admin").await;
    let token = world.app.token("admin").await;
    for statement in STORED {
        let statement = sqlx::query(sql(statement)).bind(EVIL);
        statement.execute(&world.app.services.db).await.unwrap();
    }
    sqlx::query(
        "update users set username = $1, first_name = left($1, 30) where username = 'admin'",
    )
    .bind(EVIL)
    .execute(&world.app.services.db)
    .await
    .unwrap();
    let lists = [
        "/reports",
        "/executions",
        "/schedules",
        "/overview",
        "/queues",
        "/policies",
        "/runs",
        "/holds",
        "/erasures",
        "/backups",
        "/webhooks",
        "/tokens",
        "/audit",
    ];
    let named = pages()
        .into_iter()
        .filter(|(method, path)| *method == Method::GET && !path.ends_with("/events"));
    let named = named.map(|(_, path)| world.case(&path).unwrap().1);
    let mut shown = 0;
    for path in lists.map(str::to_owned).into_iter().chain(named) {
        let (status, page) = world.visit(&session, &Method::GET, &path).await;
        assert_eq!(status, 200, "{path}: {page}");
        for bad in ["<script>alert", "<img src=x"] {
            assert!(!page.contains(bad), "{bad} in {path}: {page}");
        }
        shown += page.matches("&lt;script&gt;alert").count();
    }
    assert!(shown > 20, "it is shown, {shown} times");
    // What comes as JSON is not taken for a page.
    for path in ["/v1/reports", "/v1/executions", "/v1/audit", "/v1/holds", "/v1/nothing"] {
        let answer = world.http.get(path, &token).send().await.unwrap();
        let kind = answer.headers()["content-type"].to_str().unwrap();
        assert!(kind.contains("json"), "{path}: {kind}");
    }
}
