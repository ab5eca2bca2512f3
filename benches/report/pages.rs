//! How long pages of the console and lists of the API take, with a million executions and two
//! million audit rows: each is asked for again and again over HTTP, all in turn, and what counts is
//! the slowest one's median.

use std::fmt::Write;
use std::time::Instant;

use anyhow::{Context, ensure};
use reqwest::{Client, RequestBuilder};
use serde_json::{Map, Value};

use crate::ground::{Ground, RUN};
use crate::history::{self, EXECUTIONS};
use crate::outcome::median;
use crate::service::Service;
use crate::session::{add, say};

/// How often each is asked for.
const ROUNDS: usize = 25;
/// What a page may take, in milliseconds.
const LIMIT_MS: f64 = 50.0;
/// Words for every state of an execution.
const STATES: [&str; 7] =
    ["pending", "processing", "cancelling", "completed", "failed", "cancelled", "expired"];

/// A form with all that forms have.
const FORM: &str = "title = \"A form\"\n
[[parameter]]\nname = \"day\"\ntype = \"date\"\nlabel = \"Day\"\ndefault = \"today\"\n
[[parameter]]\nname = \"kind\"\ntype = \"enum\"\nlabel = \"Kind\"\nchoices = [\"a\", \"b\"]\n\
default = \"a\"\n";

/// Somebody who looks.
struct Visitor {
    client: Client,
    base: String,
    token: String,
    cookie: String,
}

/// Something to look at, and how long that took each time.
struct Timed {
    path: String,
    is_page: bool,
    by: &'static str,
    taken_ms: Vec<f64>,
}

impl Timed {
    fn median_ms(&self) -> f64 {
        median(self.taken_ms.iter().copied()).unwrap_or_default()
    }
}

/// Measures pages.
pub fn run(ground: &Ground, report: &mut Map<String, Value>) -> anyhow::Result<()> {
    // As the command line does; `Err` only says that it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ground.copy()?;
    history::make_roles(ground)?;
    ground.sql(RUN, "update users set is_superuser = true where id = 1")?;
    write_reports(ground)?;
    ground.registrar(RUN, &["report", "sync"])?;
    let token =
        |user: &str| ground.registrar(RUN, &["token", "create", "--user", user, "--name", "bench"]);
    let (operator, analyst) = (token("user1")?, token("user2")?);
    let runtime = tokio::runtime::Runtime::new()?;
    let service = Service::start(ground, None)?;
    for token in [&operator, &analyst] {
        runtime.block_on(service.submit("one-row", token, 1, 1, true))?;
    }
    drop(service);
    history::make(ground)?;
    let service = Service::start(ground, Some("api"))?;
    let mut timed = runtime.block_on(async {
        let operator = Visitor::sign_in(&service.base, operator).await?;
        let analyst = Visitor::sign_in(&service.base, analyst).await?;
        look(ground, &operator, &analyst).await
    })?;
    timed.sort_by(|one, other| other.median_ms().total_cmp(&one.median_ms()));
    print(&timed)?;
    for (name, is_page) in [("console_page_median_ms", true), ("api_list_median_ms", false)] {
        let slowest = timed.iter().find(|timed| timed.is_page == is_page).map(Timed::median_ms);
        add(report, name, EXECUTIONS, ROUNDS, "ms", slowest, Some(LIMIT_MS));
    }
    Ok(())
}

fn write_reports(ground: &Ground) -> anyhow::Result<()> {
    let folder = ground.folder.join("reports");
    let write = |slug: &str, toml: &str, sql: &str| {
        std::fs::write(folder.join(format!("{slug}.toml")), toml)?;
        std::fs::write(folder.join(format!("{slug}.sql")), sql)
    };
    for number in 1..=history::REPORTS {
        let toml = format!("title = \"Report {number}\"\n");
        write(&format!("report-{number}"), &toml, "select 1 as number\n")?;
    }
    write("rare", "title = \"Seldom run\"\n", "select 1 as number\n")?;
    write("never", "title = \"Never run\"\n", "select 1 as number\n")?;
    write("form", FORM, "select :day::date as day, :kind::text as kind\n")?;
    Ok(())
}

impl Visitor {
    async fn sign_in(base: &str, token: String) -> anyhow::Result<Self> {
        let redirect = reqwest::redirect::Policy::none();
        let client = Client::builder().no_proxy().redirect(redirect).build()?;
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("token", &token);
        let request = client
            .post(format!("{base}/sign-in"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.finish());
        let response = request.send().await?;
        let cookie = response.headers().get("set-cookie").context("a session")?.to_str()?;
        let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
        Ok(Self { client, base: base.to_owned(), token, cookie })
    }

    fn request(&self, timed: &Timed) -> RequestBuilder {
        let request = self.client.get(format!("{}{}", self.base, timed.path));
        match timed.is_page {
            true => request.header("cookie", &self.cookie),
            false => request.bearer_auth(&self.token),
        }
    }

    /// How long an answer takes to its last byte.
    async fn time(&self, timed: &mut Timed) -> anyhow::Result<()> {
        let began = Instant::now();
        let response = self.request(timed).send().await?;
        let status = response.status();
        let body = response.text().await?;
        timed.taken_ms.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(status == 200, "{} {}: {status}: {body}", timed.by, timed.path);
        Ok(())
    }

    /// A cursor in the midst of a list: the place in it is a number.
    async fn cursor_at(&self, list: &str, id: u64) -> anyhow::Result<String> {
        let response = self.client.get(format!("{}{list}", self.base)).bearer_auth(&self.token);
        let page: Value = response.send().await?.json().await?;
        let next = page["next"].as_str().with_context(|| format!("more of {list}"))?;
        let (path, cursor) = next.split_once("cursor=").context("a cursor")?;
        let (version, rest) = cursor.split_at(2);
        Ok(format!("{path}cursor={version}{id:016x}{}", &rest[16..]))
    }
}

/// Looks at everything in turn, again and again.
async fn look(
    ground: &Ground,
    operator: &Visitor,
    analyst: &Visitor,
) -> anyhow::Result<Vec<Timed>> {
    let mut timed = Vec::new();
    let one = |user: u32| {
        let find = format!("select min(id) from report_executions where executed_by = {user}");
        ground.sql(RUN, &find)
    };
    let (of_operator, of_analyst) = (one(1)?, one(2)?);
    let run = ground.sql(RUN, "select max(id) from lifecycle_runs")?;
    let mut add = |by: &'static str, is_page: bool, paths: Vec<String>| {
        let all = paths.into_iter();
        timed.extend(all.map(|path| Timed { path, is_page, by, taken_ms: Vec::new() }));
    };
    add("operator", true, pages(&of_operator));
    add("operator", true, operators_pages(&run));
    add("analyst", true, pages(&of_analyst));
    for (by, visitor) in [("operator", operator), ("analyst", analyst)] {
        let mut paths = lists();
        for list in
            ["/v1/executions", "/v1/executions?status=failed", "/v1/executions?report=report-1"]
        {
            paths.push(visitor.cursor_at(list, EXECUTIONS / 2).await?);
        }
        add(by, false, paths);
    }
    let mut lists = operators_lists(&run);
    for list in ["/v1/audit", "/v1/audit?action=user.updated"] {
        lists.push(operator.cursor_at(list, EXECUTIONS / 2).await?);
    }
    add("operator", false, lists);
    say(&format!("{} pages and lists, {ROUNDS} times each", timed.len()))?;
    for _ in 0..ROUNDS {
        for one in &mut timed {
            let visitor = if one.by == "analyst" { analyst } else { operator };
            visitor.time(one).await?;
        }
    }
    Ok(timed)
}

/// What analysts open, and operators too.
fn pages(execution: &str) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/reports",
        "/reports?q=seldom",
        "/reports/form",
        "/executions",
        "/executions?mine=true",
        "/executions?report=report-1",
        "/executions?report=report-20",
        "/executions?report=rare",
        "/executions?report=never",
        "/executions?report=report-1&status=pending",
        "/executions?report=rare&status=failed&mine=true",
        "/executions?before=500000",
        "/executions?before=500000&status=cancelled",
        "/schedules",
        "/schedules/nightly-10",
        "/tokens",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.extend(STATES.map(|state| format!("/executions?status={state}")));
    paths.extend(STATES.map(|state| format!("/executions?mine=true&status={state}")));
    paths.push(format!("/executions/{execution}"));
    paths
}

fn operators_pages(run: &str) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/overview",
        "/queues",
        "/schedules/nightly-1",
        "/policies",
        "/policies/archive-audit-logs",
        "/runs",
        "/runs?status=failed",
        "/runs?status=paused",
        "/holds",
        "/erasures",
        "/backups",
        "/webhooks",
        "/webhooks/portal",
        "/tokens?user=user77",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.extend(audit_queries().map(|query| format!("/audit{query}")));
    paths.push("/audit?from=2020-01-01&until=2020-02-01".to_owned());
    paths.push("/audit?until=2019-01-01".to_owned());
    paths.push(format!("/runs/{run}"));
    paths
}

/// Searches that find much, little and nothing, at the end of the log and far from it.
fn audit_queries() -> [&'static str; 10] {
    [
        "",
        "?user_id=2",
        "?user_id=1",
        "?action=execution.submitted",
        "?action=user.updated",
        "?action=queue.paused",
        "?entity_type=users&entity_id=77",
        "?entity_type=queues",
        "?entity_type=users",
        "?user_id=200&action=execution.submitted",
    ]
}

fn lists() -> Vec<String> {
    let mut paths: Vec<String> = [
        "/v1/reports",
        "/v1/executions?limit=200",
        "/v1/executions?report=rare",
        "/v1/executions?report=never",
        "/v1/executions?report=report-1&status=pending",
        "/v1/schedules",
        "/v1/tokens",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.extend(STATES.map(|state| format!("/v1/executions?status={state}")));
    paths
}

fn operators_lists(run: &str) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/v1/queues",
        "/v1/policies",
        "/v1/runs",
        "/v1/holds",
        "/v1/erasures",
        "/v1/backups",
        "/v1/webhooks",
        "/v1/webhooks/portal/deliveries",
        "/v1/audit?from=2020-01-01T00:00:00Z&until=2020-02-01T00:00:00Z",
        "/v1/audit?until=2019-01-01T00:00:00Z",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.extend(audit_queries().map(|query| format!("/v1/audit{query}")));
    paths.push(format!("/v1/runs/{run}"));
    paths
}

/// Each with its median and maximum, the slowest first.
fn print(timed: &[Timed]) -> anyhow::Result<()> {
    let mut table = format!("{:>10} {:>10}  of each page and list, in ms\n", "median", "maximum");
    for one in timed {
        let most = one.taken_ms.iter().copied().fold(0.0, f64::max);
        let (median, by, path) = (one.median_ms(), one.by, &one.path);
        writeln!(table, "{median:>10.1} {most:>10.1}  {by} {path}")?;
    }
    say(&table)
}
