//! Nobody reaches what is of another, by any number or name that a path can hold: every path of the
//! API's document and of the console's router has a case here, or the test fails.

use std::collections::BTreeMap;

use registrar::api::openapi;
use registrar::service::sessions::csrf_token;
use reqwest::header::{COOKIE, SET_COOKIE};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::TestApp;
use crate::support::database::sql;
use crate::support::http::Http;

/// May do nothing here.
const NOBODY: &str = "nobody";
/// May run reports, and do with her own executions, schedules and tokens what she likes.
const LENA: &str = "lena";
/// Sees everybody's executions and the lifecycle, and may change none of it.
const AUDITOR: &str = "audit";

/// Who is told what of a thing that is of somebody else.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Of a user: for others it is not there.
    Owned,
    /// Of a user, of the kind that everybody has: who has no rights at all is told the same.
    Everybodys,
    /// For those with a permission: others are told that they lack it.
    Guarded,
}

impl Kind {
    /// What [`LENA`] is answered, who has things of this kind herself.
    const fn told(self) -> StatusCode {
        match self {
            Self::Owned | Self::Everybodys => StatusCode::NOT_FOUND,
            Self::Guarded => StatusCode::FORBIDDEN,
        }
    }

    /// What [`NOBODY`] is answered, before anything is looked for.
    const fn told_without_rights(self) -> StatusCode {
        match self {
            Self::Everybodys => StatusCode::NOT_FOUND,
            Self::Owned | Self::Guarded => StatusCode::FORBIDDEN,
        }
    }
}

/// The beginning of paths, the kind of what is there, and what stands for the names in braces.
type Things = (&'static str, Kind, Vec<(&'static str, String)>);

/// Things of others, and who they are of.
pub struct World {
    pub app: TestApp,
    pub http: Http,
    things: Vec<Things>,
}

impl World {
    pub async fn new() -> Self {
        let mut app = TestApp::new().await;
        app.leave_unfinished();
        let http = app.http().await;
        app.define("numbers", "select n from generate_series(1, 3) as n").await;
        app.define_with("secret", "permission = \"audit.view\"", "select 1 as n").await;
        let mut world = Self { app, http, things: Vec::new() };
        let executions = world.executions().await;
        let made = world.made_over_the_api().await;
        world.written().await;
        let id = |name: &'static str, value: &str| vec![(name, value.to_owned())];
        let run = world.app.number("select max(id) from lifecycle_runs").await.to_string();
        let delivery = world.app.number("select max(id) from outbox_deliveries").await.to_string();
        let token = made["token"].as_str().unwrap()[..12].to_owned();
        let number = |key: &str| made[key].to_string();
        world.things = vec![
            ("executions/{id}", Kind::Owned, id("id", &executions.to_string())),
            ("schedules/{name}", Kind::Owned, id("name", "nightly")),
            ("tokens/{prefix}", Kind::Everybodys, id("prefix", &token)),
            ("reports/{slug}", Kind::Guarded, id("slug", "secret")),
            ("policies/{name}", Kind::Guarded, id("name", "archive-audit-logs")),
            ("runs/{id}", Kind::Guarded, id("id", &run)),
            ("holds/{id}", Kind::Guarded, id("id", &number("hold"))),
            ("erasures/{id}", Kind::Guarded, id("id", &number("erasure"))),
            ("backups/{id}", Kind::Guarded, id("id", "20260301T013000Z-1a2b3c4d")),
            ("queues/{name}", Kind::Guarded, id("name", "reports")),
            ("workers/{id}", Kind::Guarded, id("id", "worker-7")),
            ("archives/{table}", Kind::Guarded, id("table", "audit_logs")),
            (
                "webhooks/{name}",
                Kind::Guarded,
                vec![("name", "portal".to_owned()), ("id", delivery)],
            ),
        ];
        world
    }

    /// A completed execution of ana's.
    async fn executions(&self) -> i64 {
        let ana = self.app.token("ana").await;
        let path = "/v1/reports/numbers/executions";
        let answer = self.http.post(path, &ana, &json!({})).send().await.unwrap();
        let id = answer.json::<Value>().await.unwrap()["id"].as_i64().unwrap();
        let worker = self.app.start_worker().await;
        self.app.wait_until_ended(id).await;
        worker.stop().await;
        id
    }

    async fn made_over_the_api(&self) -> BTreeMap<&'static str, Value> {
        let (ana, admin) = (self.app.token("ana").await, self.app.token("admin").await);
        let until = "2030-01-01T00:00:00Z";
        let subject = self.app.number("select max(id)::bigint from users where not is_staff").await;
        let url = format!("{}/hook", self.http.base);
        let mut made = BTreeMap::new();
        for (name, key, token, path, body) in [
            (
                "schedule",
                "name",
                &ana,
                "/v1/schedules",
                json!({"name": "nightly",
             "report": "numbers", "cron": "0 2 * * *"}),
            ),
            ("token", "prefix", &ana, "/v1/tokens", json!({"name": "mine"})),
            (
                "hold",
                "id",
                &admin,
                "/v1/holds",
                json!({"scope": "table", "table": "audit_logs",
             "reason": "a case", "until": until}),
            ),
            ("erasure", "id", &admin, "/v1/erasures", json!({"subject": subject.to_string()})),
            (
                "webhook",
                "name",
                &admin,
                "/v1/webhooks",
                json!({"name": "portal", "url": url,
             "events": ["run.finished"]}),
            ),
        ] {
            let answer = self.http.post(path, token, &body).send().await.unwrap();
            let status = answer.status();
            let body: Value = answer.json().await.unwrap();
            assert!(status.is_success(), "{path}: {body}");
            made.insert(name, body[key].clone());
        }
        made
    }

    /// What only workers make, as they would.
    async fn written(&self) {
        for statement in [
            "insert into lifecycle_runs (policy, kind, policy_digest, code_version, as_of, status,
                                         origin, requested_by)
             values ('archive-audit-logs', 'archive', repeat('a', 64), 'x', now(),
                     'needs_approval', 'user', 4)",
            "with event as (insert into outbox_events (type, data)
                            values ('run.finished', '{}') returning id)
             insert into outbox_deliveries (event_id, webhook_id, status, ended_at)
             select event.id, webhooks.id, 'failed', now() from event cross join webhooks",
            "insert into backups (id, taken_at, finished_at, purpose, database_name,
                                  server_version, size_bytes, dump_bytes, row_count, duration_ms,
                                  encrypted)
             values ('20260301T013000Z-1a2b3c4d', now(), now(), 'manual', 'd', '15', 1, 1, 1, 1,
                     false)",
            "insert into workers (id, host, pid, lock_key) values ('worker-7', 'h', 1, 7)",
        ] {
            self.app.execute(statement).await;
        }
    }

    /// The kind of a path and the path with names of things of others; `None`: there is no case.
    pub fn case(&self, path: &str) -> Option<(Kind, String)> {
        let rest = path.trim_start_matches("/v1").trim_start_matches('/');
        let of = |start: &str| rest == start || rest.starts_with(&format!("{start}/"));
        let (_, kind, names) = self.things.iter().find(|(start, _, _)| of(start))?;
        let mut path = path.to_owned();
        for (name, value) in names {
            path = path.replace(&format!("{{{name}}}"), value);
        }
        (!path.contains('{')).then_some((*kind, path))
    }

    /// Every row of every table, as a few digits of each. When a token was last used is no change.
    async fn everything(&self) -> BTreeMap<String, String> {
        let tables: Vec<String> = sqlx::query_scalar(
            "select format('%I.%I', schemaname, tablename) from pg_tables
              where schemaname in ('public', 'apalis') and tablename not like '%migrations'",
        )
        .fetch_all(&self.app.services.db)
        .await
        .unwrap();
        let mut all = BTreeMap::new();
        for table in tables {
            let digest = format!(
                "select count(*) || ' rows, '
                        || coalesce(md5(string_agg(row, '' order by row)), '')
                   from (select (to_jsonb(t) - 'last_used_at' - 'seen_at')::text as row
                           from {table} t) rows"
            );
            let digest = sqlx::query_scalar(sql(&digest)).fetch_one(&self.app.services.db).await;
            all.insert(table, digest.unwrap());
        }
        all
    }

    /// What is sent to an operation, whole and well-formed, by whoever has the token.
    fn request(&self, operation: &Operation, path: &str, token: Option<&str>) -> RequestBuilder {
        let mut request = self.http.request(operation.method.clone(), path);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        match &operation.body {
            Some(body) => request.json(body),
            None => request,
        }
    }
}

/// Something that the document describes.
struct Operation {
    method: Method,
    path: String,
    body: Option<Value>,
}

/// The operations whose path holds a number or a name, with an example of what they take. Reading
/// ones first and deleting ones last, so that what is asked for is there until its end.
fn operations() -> Vec<Operation> {
    let document = serde_json::to_value(openapi()).unwrap();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let body = &operation["requestBody"]["content"]["application/json"]["example"];
            let body = (!body.is_null()).then(|| body.clone());
            all.push(Operation { method, path: path.clone(), body });
        }
    }
    // It explains the problems that all may have, to everybody.
    all.retain(|operation| operation.path.contains('{') && operation.path != "/problems/{name}");
    all.sort_by_key(|operation| match operation.method {
        Method::GET => 0,
        Method::DELETE => 2,
        _ => 1,
    });
    all
}

#[tokio::test]
async fn nobody_reaches_what_is_of_another_by_any_path_of_the_document() {
    let world = World::new().await;
    let nobody = world.app.token(NOBODY).await;
    let lena = world.app.token(LENA).await;
    let auditor = world.app.token(AUDITOR).await;
    let before = world.everything().await;
    let operations = operations();
    assert!(operations.len() > 40, "{}", operations.len());
    let mut faults = Vec::new();
    for operation in &operations {
        let Operation { method, path, body: _ } = operation;
        let Some((kind, path)) = world.case(path) else {
            panic!("{method} {path} has no case here: whose is it, and who may not reach it?")
        };
        let answer = async |token| {
            let answer = world.request(operation, &path, token).send().await.unwrap();
            (answer.status(), answer.text().await.unwrap())
        };
        for (who, token, told) in [
            ("without a token", None, StatusCode::UNAUTHORIZED),
            ("for nobody", Some(nobody.as_str()), kind.told_without_rights()),
            ("for lena", Some(lena.as_str()), kind.told()),
        ] {
            let (status, text) = answer(token).await;
            if status != told {
                faults.push(format!("{method} {path} {who}: {status}, not {told}: {text}"));
            }
        }
        if method != Method::GET && !path.ends_with("/executions") && !path.ends_with("/formats") {
            let (status, text) = answer(Some(&auditor)).await;
            if ![403, 404].contains(&status.as_u16()) {
                faults.push(format!("{method} {path} for audit: {status}: {text}"));
            }
        }
    }
    let after = world.everything().await;
    for (table, rows) in &before {
        assert_eq!(after.get(table), Some(rows), "{table} is as it was");
    }
    // And the things are there: an administrator reaches each of them by the same request.
    let admin = world.app.token("admin").await;
    for operation in &operations {
        let Operation { method, path, body: _ } = operation;
        // They come with the end of what they certify, and with the first archived row.
        if path.ends_with("/certificate") || path.starts_with("/v1/archives/") {
            continue;
        }
        let (_, path) = world.case(path).unwrap();
        let answer = world.request(operation, &path, Some(&admin)).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        if [401, 403, 404].contains(&status.as_u16()) {
            faults.push(format!("{method} {path} for an administrator: {status}: {text}"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The verbs of paths that end with one.
const VERBS: &[(&str, &[&str])] = &[
    ("/schedules/{name}/{verb}", &["pause", "resume", "delete", "run", "backfill"]),
    ("/runs/{id}/{verb}", &["approve", "pause", "resume", "cancel"]),
    ("/queues/{name}/{verb}", &["pause", "resume"]),
    ("/webhooks/{name}/{verb}", &["ping", "disable", "enable", "replay", "delete", "secret"]),
];

/// Paths of the console that hold a number or a name, each with its method.
pub fn pages() -> Vec<(Method, String)> {
    let source = include_str!("../../src/console/mod.rs");
    let mut all = Vec::new();
    for route in source.split(".route(\"").skip(1) {
        let (path, handlers) = route.split_once("\",").expect("a path and its handlers");
        if !path.contains('{') || path.starts_with("/assets/") {
            continue;
        }
        let handlers = handlers.split(".route(").next().unwrap().split(';').next().unwrap();
        let verbs = VERBS.iter().find(|(known, _)| *known == path).map(|(_, verbs)| *verbs);
        let paths = match verbs {
            Some(verbs) => verbs.iter().map(|verb| path.replace("{verb}", verb)).collect(),
            None => vec![path.to_owned()],
        };
        for path in paths {
            for (word, method) in [("get(", Method::GET), ("post(", Method::POST)] {
                if handlers.contains(word) {
                    all.push((method, path.clone()));
                }
            }
        }
    }
    all
}

/// Everything that forms ask for, at once: each takes what is its own.
const FIELDS: &[(&str, &str)] = &[
    ("reason", "over"),
    ("format", "csv"),
    ("nonce", "x"),
    ("digest", "x"),
    ("schedule_name", "taken"),
    ("cron", "0 2 * * *"),
    ("from", "2026-01-01"),
    ("until", "2026-01-02"),
    ("run_id", "1"),
];

impl World {
    /// The secret of a new session of the console.
    pub async fn session(&self, username: &str) -> String {
        let token = self.app.token(username).await;
        let request = self.form("/sign-in", &[("token", &token)]);
        let answer = request.send().await.unwrap();
        let cookie = answer.headers()[SET_COOKIE].to_str().unwrap();
        let (_, rest) = cookie.split_once('=').unwrap();
        rest.split(';').next().unwrap().to_owned()
    }

    pub fn form(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(fields);
        let request = self.http.request(Method::POST, path);
        request.header("content-type", "application/x-www-form-urlencoded").body(body.finish())
    }

    pub async fn visit(&self, session: &str, method: &Method, path: &str) -> (StatusCode, String) {
        let csrf = csrf_token(session);
        let mut fields = FIELDS.to_vec();
        fields.push(("csrf", &csrf));
        let request = match *method {
            Method::GET => self.http.request(Method::GET, path),
            _ => self.form(path, &fields),
        };
        let cookie = format!("registrar_session={session}");
        let answer = request.header(COOKIE, cookie).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }
}

#[tokio::test]
async fn nobody_reaches_what_is_of_another_by_any_path_of_the_console() {
    let world = World::new().await;
    let pages = pages();
    assert!(pages.len() > 30, "{pages:?}");
    let nobody = world.session(NOBODY).await;
    let lena = world.session(LENA).await;
    let before = world.everything().await;
    let mut faults = Vec::new();
    for (method, path) in &pages {
        let Some((kind, path)) = world.case(path) else {
            panic!("{method} {path} has no case here: whose is it, and who may not reach it?")
        };
        for (session, told) in [(&nobody, kind.told_without_rights()), (&lena, kind.told())] {
            let (status, _) = world.visit(session, method, &path).await;
            if status != told {
                faults.push(format!("{method} {path}: {status}, not {told}"));
            }
        }
    }
    let after = world.everything().await;
    for (table, rows) in &before {
        assert_eq!(after.get(table), Some(rows), "{table} is as it was");
    }
    let admin = world.session("admin").await;
    for (method, path) in pages.iter().filter(|(method, _)| *method == Method::GET) {
        let (_, path) = world.case(path).unwrap();
        if path.ends_with("/events") {
            continue;
        }
        let (status, _) = world.visit(&admin, method, &path).await;
        if status != 200 {
            faults.push(format!("{method} {path} for an administrator: {status}"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
