//! Who is refused, in which order, and how that reads.

use registrar::report::definition::load_templates;
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Answering, Api, pointers};
use crate::support::TestApp;
use crate::support::app::templates_dir;

#[tokio::test]
async fn without_a_token_everything_below_v1_is_401() {
    let api = Api::with_numbers().await;
    for (method, path) in [
        (Method::GET, "/v1/reports"),
        (Method::GET, "/v1/reports/unknown"),
        (Method::POST, "/v1/reports/numbers/executions"),
        (Method::GET, "/v1/executions?colour=red"),
        (Method::GET, "/v1/executions/1"),
        (Method::GET, "/v1/executions/x"),
        (Method::POST, "/v1/executions/1/cancel"),
        (Method::POST, "/v1/executions/1/retry"),
        (Method::GET, "/v1/executions/1/result"),
        (Method::GET, "/v1/executions/1/manifest"),
    ] {
        let answer = api.request(method, path).answer().await;
        answer.problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), r#"Bearer realm="registrar""#, "{path}");
    }
}

#[tokio::test]
async fn a_token_that_is_not_valid_is_401_and_says_so() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let revoked = api.app.token("ana").await;
    let prefix: String = revoked.chars().take(12).collect();
    api.app.services.revoke_token(&api.app.operator(), &prefix).await.unwrap();
    for value in [
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Basic {token}"),
        format!("Bearer {token}x"),
        format!("Bearer {}", &token[4..]),
        format!("Bearer {revoked}"),
        format!("Bearer rgs_{}", "0".repeat(5_000)),
    ] {
        let answer = api.get("/v1/reports").header("authorization", &value).answer().await;
        answer.problem(401, "unauthenticated");
        let challenge = answer.header("www-authenticate");
        assert!(challenge.contains(r#"error="invalid_token""#), "{value}: {challenge}");
    }
    let answer = api.get("/v1/reports").bearer_auth(&token).answer().await;
    assert_eq!(answer.status, 200);
    let lower = api.get("/v1/reports").header("authorization", format!("bearer {token}"));
    assert_eq!(lower.answer().await.status, 200);
}

#[tokio::test]
async fn without_the_permission_403_comes_before_404() {
    let api = Api::with_numbers().await;
    let token = api.app.token("nobody").await;
    for (method, path) in [
        (Method::GET, "/v1/reports"),
        (Method::GET, "/v1/reports/unknown"),
        (Method::GET, "/v1/reports/No%20Slug"),
        (Method::GET, "/v1/executions"),
        (Method::GET, "/v1/executions/4711"),
        (Method::GET, "/v1/executions/x"),
        (Method::POST, "/v1/executions/4711/cancel"),
        (Method::POST, "/v1/executions/4711/retry"),
        (Method::GET, "/v1/executions/4711/result"),
        (Method::GET, "/v1/executions/4711/manifest"),
    ] {
        let request = api.request(method, path).bearer_auth(&token);
        let problem = request.answer().await.problem(403, "forbidden");
        assert!(problem["detail"].as_str().unwrap().contains("reports."), "{path}: {problem}");
    }
    let problem = api.submit("unknown", &token).answer().await.problem(403, "forbidden");
    assert_eq!(problem["detail"], "the permission `reports.run` is needed");
}

#[tokio::test]
async fn a_report_that_asks_for_a_permission_is_403_without_it_and_not_listed() {
    let api = Api::start(TestApp::new()).await;
    api.app.sync_templates().await;
    let personal: Vec<String> = load_templates(&templates_dir())
        .unwrap()
        .iter()
        .filter(|definition| definition.permission() == Some("reports.personal"))
        .map(|definition| definition.slug().to_string())
        .collect();
    assert!(!personal.is_empty());
    let lecturer = api.app.token("lena").await;
    let list = api.get("/v1/reports").bearer_auth(&lecturer).answer().await.json(200);
    for slug in &personal {
        let path = format!("/v1/reports/{slug}");
        api.get(&path).bearer_auth(&lecturer).answer().await.problem(403, "forbidden");
        api.submit(slug, &lecturer).answer().await.problem(403, "forbidden");
        let listed = list["reports"].as_array().unwrap();
        assert!(!listed.iter().any(|report| report["slug"] == slug.as_str()), "{slug}");
    }
}

#[tokio::test]
async fn an_execution_of_somebody_else_is_404_except_for_those_who_see_all() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let (ana, lena) = (api.app.token("ana").await, api.app.token("lena").await);
    let (audit, olga) = (api.app.token("audit").await, api.app.token("olga").await);
    let id = api.submit("numbers", &ana).answer().await.id();
    let path = format!("/v1/executions/{id}");
    for below in ["", "/result", "/manifest"] {
        let request = api.get(&format!("{path}{below}")).bearer_auth(&lena);
        request.answer().await.problem(404, "not-found");
    }
    for below in ["/cancel", "/retry"] {
        let request = api.post(&format!("{path}{below}")).bearer_auth(&lena);
        request.answer().await.problem(404, "not-found");
    }
    let seen = api.get(&path).bearer_auth(&audit).answer().await.json(200);
    assert_eq!(seen["id"], id);
    // Seeing all is not cancelling all.
    let request = api.post(&format!("{path}/cancel")).bearer_auth(&audit);
    request.answer().await.problem(403, "forbidden");
    // The operator runs no reports, but looks after everybody's.
    assert_eq!(api.get(&path).bearer_auth(&olga).answer().await.json(200)["id"], id);
    let cancelled = api.post(&format!("{path}/cancel")).bearer_auth(&olga).answer().await;
    assert_eq!(cancelled.json(202)["status"], "cancelled");
}

#[tokio::test]
async fn names_that_nothing_can_have_are_404() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    for path in [
        "/v1/executions/0",
        "/v1/executions/-1",
        "/v1/executions/007",
        "/v1/executions/1e3",
        "/v1/executions/99999999999999999999999999",
        "/v1/executions/9223372036854775807",
        "/v1/executions/%00",
        "/v1/executions/%ff%fe",
        "/v1/executions/%F0%9F%98%80",
        "/v1/executions/..%2f..%2fetc",
        "/v1/reports/%00",
        "/v1/reports/%ff",
        "/v1/reports/';drop%20table%20users;--",
        "/v1/reports/UPPER",
        "/v1/executions/%00/result",
        "/v1/executions/%ff/manifest",
        "/v1/nothing",
        "/v1",
        "/v2/reports",
        "/favicon.ico",
        "/v1/reports/",
        "/problems/unknown",
        "/problems/%ff",
    ] {
        api.get(path).bearer_auth(&token).answer().await.problem(404, "not-found");
    }
    let long = format!("/v1/reports/{}", "a".repeat(4_000));
    let answer = api.get(&long).bearer_auth(&token).answer().await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.len() < 1_000, "a long path is not repeated");
}

#[tokio::test]
async fn another_method_is_405_with_the_methods_that_there_are() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    for (method, path, allowed) in [
        (Method::DELETE, "/v1/reports", "GET,HEAD"),
        (Method::GET, "/v1/executions/1/cancel", "POST"),
        (Method::PUT, "/v1/reports/numbers/executions", "POST"),
        (Method::POST, "/healthz", "GET,HEAD"),
        (Method::from_bytes(b"BREW").unwrap(), "/metrics", "GET,HEAD"),
    ] {
        let answer = api.request(method, path).bearer_auth(&token).answer().await;
        answer.problem(405, "method-not-allowed");
        assert_eq!(answer.header("allow"), allowed, "{path}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_declared_as_json_is_415() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let request = || api.post("/v1/reports/numbers/executions").bearer_auth(&token);
    request().answer().await.problem(415, "unsupported-media-type");
    for kind in ["text/plain", "application/x-www-form-urlencoded", "json", ""] {
        let answer = request().header("content-type", kind).body("{}").answer().await;
        answer.problem(415, "unsupported-media-type");
    }
    let odd = HeaderValue::from_bytes(b"application/\xff").unwrap();
    let answer = request().header("content-type", odd).body("{}").answer().await;
    answer.problem(415, "unsupported-media-type");
}

#[tokio::test]
async fn a_body_that_is_not_json_is_400_and_says_where() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    for body in [
        &b""[..],
        b"{",
        b"{\"parameters\": {\"a\": 1e999}}",
        b"{\"format\": \"\xff\"}",
        b"{\"format\": \"csv\"} trailing",
        b"\x00",
        "[".repeat(100_000).as_bytes(),
    ] {
        let request = api.post("/v1/reports/numbers/executions").bearer_auth(&token);
        let answer =
            request.header("content-type", "application/json").body(body.to_vec()).answer().await;
        let problem = answer.problem(400, "malformed-body");
        assert_eq!(pointers(&problem), [""]);
        assert!(problem["detail"].as_str().unwrap().contains("line 1"), "{problem}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413() {
    let app = TestApp::new().with(|config| {
        config.http.max_body_bytes = 200.try_into().unwrap();
    });
    let api = Api::start(app).await;
    api.define_numbers().await;
    let token = api.app.token("ana").await;
    let body = json!({"parameters": {"text": "a".repeat(300)}});
    let request = || api.post("/v1/reports/numbers/executions").bearer_auth(&token);
    request().json(&body).answer().await.problem(413, "body-too-large");
    // What is announced is refused before it is sent.
    let address = api.http.base.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/reports/numbers/executions HTTP/1.1\r\nhost: registrar\r\n\
         authorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: 99999999999\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // Without a length that is announced, the limit is met while reading.
    let pieces = futures::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>("[1,".repeat(50))));
    let chunked = request()
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(pieces));
    chunked.answer().await.problem(413, "body-too-large");
}

#[tokio::test]
async fn every_field_of_a_submission_that_is_wrong_is_named() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let submit = async |body: serde_json::Value| {
        let request = api.post("/v1/reports/numbers/executions").bearer_auth(&token);
        request.json(&body).answer().await.problem(422, "invalid-input")
    };
    assert_eq!(pointers(&submit(json!([])).await), [""]);
    let problem = submit(json!({
        "parameters": 1, "format": "pdf", "reader": "eye", "byte_order_mark": 1,
        "delimiter": "\u{0}", "a/b": 1, "colour": "red",
    }))
    .await;
    let mut all = pointers(&problem);
    all.sort_unstable();
    let expected =
        ["/a~1b", "/byte_order_mark", "/colour", "/delimiter", "/format", "/parameters", "/reader"];
    assert_eq!(all, expected);
}

#[tokio::test]
async fn every_parameter_that_is_wrong_is_named() {
    let api = Api::start(TestApp::new()).await;
    let parameters = r#"
        [[parameter]]
        name = "since"
        type = "date"
        required = true
        [[parameter]]
        name = "codes"
        type = "text"
        list = true
        [[parameter]]
        name = "top"
        type = "integer"
        max = 10
    "#;
    let sql = "select :since::date as since, :codes::text[] as codes, :top::int as top";
    api.app.define_with("typed", parameters, sql).await;
    let token = api.app.token("ana").await;
    for (given, expected) in [
        (json!({}), vec!["/parameters/since"]),
        (
            json!({"since": "yesterday", "codes": ["a", 1, "b\u{0}"], "top": 11, "x": 1}),
            vec![
                "/parameters/codes/1",
                "/parameters/codes/2",
                "/parameters/since",
                "/parameters/top",
                "/parameters/x",
            ],
        ),
        (json!({"since": "2024-01-31", "a/~\u{0}": null}), vec!["/parameters/a~1~0\u{0}"]),
    ] {
        for query in ["", "?validate_only=true"] {
            let path = format!("/v1/reports/typed/executions{query}");
            let request = api.post(&path).bearer_auth(&token);
            let answer = request.json(&json!({"parameters": given})).answer().await;
            let problem = answer.problem(422, "invalid-input");
            let mut all = pointers(&problem);
            all.sort_unstable();
            assert_eq!(all, expected, "{problem}");
        }
    }
}

#[tokio::test]
async fn query_parameters_that_are_wrong_are_400_and_named() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    for (path, name) in [
        ("/v1/executions?limit=0", "limit"),
        ("/v1/executions?limit=201", "limit"),
        ("/v1/executions?limit=many", "limit"),
        ("/v1/executions?limit=1&limit=2", "limit"),
        ("/v1/executions?limit=99999999999999999999", "limit"),
        ("/v1/executions?status=done", "status"),
        ("/v1/executions?status=%00", "status"),
        ("/v1/executions?report=No%20Slug", "report"),
        ("/v1/executions?report=%ff%00", "report"),
        ("/v1/executions?mine=perhaps", "mine"),
        ("/v1/executions?cursor=0", "cursor"),
        ("/v1/executions?cursor=%ff", "cursor"),
        ("/v1/executions?colour=red", "colour"),
        ("/v1/executions?%00=1", "\u{0}"),
        ("/v1/reports?limit=1", "limit"),
        ("/v1/reports/numbers?verbose=1", "verbose"),
        ("/v1/executions/1?wait=5", "wait"),
        ("/v1/executions/1/result?colour=red", "colour"),
        ("/v1/executions/1/manifest?pretty", "pretty"),
    ] {
        let problem =
            api.get(path).bearer_auth(&token).answer().await.problem(400, "invalid-query");
        assert_eq!(problem["errors"][0]["parameter"], name, "{path}");
    }
    let path = "/v1/reports/numbers/executions?validate_only=maybe";
    let request = api.post(path).bearer_auth(&token).json(&json!({}));
    let problem = request.answer().await.problem(400, "invalid-query");
    assert_eq!(problem["errors"][0]["parameter"], "validate_only");
    let many = format!("/v1/executions?{}", "a=1&".repeat(1_000));
    api.get(&many).bearer_auth(&token).answer().await.problem(400, "invalid-query");
}

#[tokio::test]
async fn odd_headers_are_never_a_500() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    let values = [
        &b"\xff\xfe"[..],
        b"",
        b",,,;;;===\"\"\"",
        b"bytes=-,=--",
        b"bytes=18446744073709551616-18446744073709551617",
        b"wait=18446744073709551616",
        b"wait=\"\xf0\x9f\x98\x80\"",
        b"W/W/\"\"\"*",
        b"00-00000000000000000000000000000000-0000000000000000-00",
    ];
    for name in [
        "range",
        "if-range",
        "if-none-match",
        "prefer",
        "traceparent",
        "user-agent",
        "accept",
        "content-type",
        "idempotency-key",
        "forwarded",
        "x-forwarded-for",
    ] {
        for value in values {
            let value = HeaderValue::from_bytes(value).unwrap();
            for below in ["", "/result", "/manifest"] {
                let request = api.get(&format!("/v1/executions/{id}{below}")).bearer_auth(&token);
                let answer = request.header(name, &value).answer().await;
                assert!(answer.status.as_u16() < 500, "{name}: {value:?}: {}", answer.text());
            }
        }
    }
}

#[tokio::test]
async fn a_trace_goes_through_answer_problem_execution_and_audit() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let answer = api.submit("numbers", &token).header("traceparent", &traceparent).answer().await;
    assert_eq!(answer.header("trace-id"), TRACE);
    let ours = answer.header("traceparent");
    assert!(ours.starts_with(&format!("00-{TRACE}-")) && ours != traceparent, "{ours}");
    assert_eq!(answer.json(202)["trace_id"], TRACE);
    let recorded = api
        .app
        .number(&format!(
            "select count(*) from audit_logs
              where action = 'execution.submitted' and new_values ->> 'trace_id' = '{TRACE}'"
        ))
        .await;
    assert_eq!(recorded, 1);
    let problem = api.get("/nothing").header("traceparent", &traceparent).answer().await;
    assert_eq!(problem.problem(404, "not-found")["trace_id"], TRACE);
    // Without a trace of the client's, each request has one of its own.
    let (first, second) = (api.get("/healthz").answer().await, api.get("/healthz").answer().await);
    assert_eq!(first.header("trace-id").len(), 32);
    assert_ne!(first.header("trace-id"), second.header("trace-id"));
}

#[tokio::test]
async fn the_audit_knows_address_and_agent_of_the_connection() {
    let mut api = Api::with_numbers().await;
    api.app.leave_unfinished();
    let token = api.app.token("ana").await;
    let agent = [b"caf\xc3\xa9\xff\x09".as_slice(), &[b'x'; 2_000]].concat();
    let agent = HeaderValue::from_bytes(&agent).unwrap();
    let request = api.submit("numbers", &token).header("user-agent", agent);
    let id = request.header("x-forwarded-for", "203.0.113.9").answer().await.id();
    let (address, agent): (String, String) = sqlx::query_as(
        "select host(ip_address), user_agent
           from audit_logs
          where action = 'execution.submitted' and entity_id = $1",
    )
    .bind(id)
    .fetch_one(&api.app.services.db)
    .await
    .unwrap();
    assert_eq!(address, "127.0.0.1");
    assert_eq!(agent, format!("caf\u{e9}{}", "x".repeat(508)));
}
