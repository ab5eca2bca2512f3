//! Downloads.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Answering, Api};
use crate::support::TestApp;

const FILE: &[u8] = b"n\n1\n2\n3\n";

#[tokio::test]
async fn a_result_comes_whole_with_all_that_describes_it() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let path = format!("/v1/executions/{id}/result");
    let answer = api.get(&path).bearer_auth(&token).answer().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, FILE);
    let digest = Sha256::digest(FILE);
    for (name, value) in [
        ("content-type", "text/csv; charset=utf-8".to_owned()),
        ("content-length", FILE.len().to_string()),
        (
            "content-disposition",
            format!("attachment; filename=\"numbers-{id}.csv\"; filename*=UTF-8''numbers-{id}.csv"),
        ),
        ("etag", format!("\"{}\"", hex::encode(digest))),
        ("repr-digest", format!("sha-256=:{}:", STANDARD.encode(digest))),
        ("accept-ranges", "bytes".to_owned()),
        ("cache-control", "private, no-store".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
    ] {
        assert_eq!(answer.header(name), value);
    }
}

#[tokio::test]
async fn head_describes_a_result_and_is_no_download() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let path = format!("/v1/executions/{id}/result");
    let head = api.request(Method::HEAD, &path).bearer_auth(&token).answer().await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), FILE.len().to_string());
    assert!(head.body.is_empty());
    let downloads = async || {
        let recorded = api.app.audit(id).await;
        recorded.iter().filter(|action| *action == "execution.downloaded").count()
    };
    assert_eq!(downloads().await, 0);
    let tag = head.header("etag");
    let known = api.get(&path).bearer_auth(&token).header("if-none-match", tag).answer().await;
    assert_eq!(known.status, 304);
    assert_eq!(downloads().await, 0);
    assert_eq!(api.get(&path).bearer_auth(&token).answer().await.body, FILE);
    assert_eq!(downloads().await, 1);
}

#[tokio::test]
async fn a_range_gives_exactly_these_bytes() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let path = format!("/v1/executions/{id}/result");
    for (range, bytes, content_range) in [
        ("bytes=0-0", &b"n"[..], "bytes 0-0/8"),
        ("bytes=2-3", b"1\n", "bytes 2-3/8"),
        ("bytes=6-", b"3\n", "bytes 6-7/8"),
        ("bytes=6-4711", b"3\n", "bytes 6-7/8"),
        ("bytes=-4", b"2\n3\n", "bytes 4-7/8"),
        ("bytes=-4711", FILE, "bytes 0-7/8"),
    ] {
        let answer = api.get(&path).bearer_auth(&token).header("range", range).answer().await;
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.body, bytes, "{range}");
        assert_eq!(answer.header("content-range"), content_range);
        assert_eq!(answer.header("content-length"), bytes.len().to_string());
    }
    for range in ["bytes=8-", "bytes=-0", "bytes=99999999999999999999-"] {
        let answer = api.get(&path).bearer_auth(&token).header("range", range).answer().await;
        answer.problem(416, "range-not-satisfiable");
        assert_eq!(answer.header("content-range"), "bytes */8");
    }
    for range in ["bytes=3-2", "rows=1-2", "bytes=0-1,4-5", "bytes"] {
        let answer = api.get(&path).bearer_auth(&token).header("range", range).answer().await;
        assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, FILE), "{range}");
    }
}

#[tokio::test]
async fn a_range_of_another_file_gives_the_whole() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let path = format!("/v1/executions/{id}/result");
    let tag = format!("\"{}\"", hex::encode(Sha256::digest(FILE)));
    for (if_range, status) in [
        (tag.as_str(), 206),
        ("\"other\"", 200),
        (&format!("W/{tag}"), 200),
        ("Tue, 15 Nov 1994 08:12:31 GMT", 200),
    ] {
        let request = api.get(&path).bearer_auth(&token).header("range", "bytes=0-0");
        let answer = request.header("if-range", if_range).answer().await;
        assert_eq!(answer.status.as_u16(), status, "{if_range}");
    }
}

#[tokio::test]
async fn a_result_of_many_parts_comes_back_whole_from_an_s3_server() {
    let api = Api::start(TestApp::new().on_s3()).await;
    let sql = "select n, repeat('x', 100) as x from generate_series(1, 100000) n";
    api.app.define("large", sql).await;
    let token = api.app.token("ana").await;
    let id = api.completed("large", &token).await;
    let path = format!("/v1/executions/{id}/result");
    let answer = api.get(&path).bearer_auth(&token).answer().await;
    assert_eq!(hex::encode(Sha256::digest(&answer.body)), answer.header("etag").trim_matches('"'));
    let request = api.get(&path).bearer_auth(&token).header("range", "bytes=8388600-8388620");
    assert_eq!(request.answer().await.body, &answer.body[8_388_600..=8_388_620]);
}

#[tokio::test]
async fn the_manifest_describes_the_file() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let path = format!("/v1/executions/{id}/manifest");
    let answer = api.get(&path).bearer_auth(&token).answer().await;
    let manifest = answer.json(200);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(manifest["sha256"], hex::encode(Sha256::digest(FILE)));
    assert_eq!(manifest["row_count"], 3);
    assert_eq!(manifest["parameters"], json!({}));
}

#[tokio::test]
async fn while_there_is_no_result_it_is_409_with_the_state() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.submit("numbers", &token).answer().await.id();
    for (status, change) in
        [("pending", None), ("cancelled", Some(format!("/v1/executions/{id}/cancel")))]
    {
        if let Some(change) = change {
            api.post(&change).bearer_auth(&token).answer().await.json(202);
        }
        for below in ["result", "manifest"] {
            let request = api.get(&format!("/v1/executions/{id}/{below}")).bearer_auth(&token);
            let problem = request.answer().await.problem(409, "wrong-state");
            assert_eq!(problem["execution_status"], status);
        }
    }
}

#[tokio::test]
async fn an_expired_result_is_410_and_its_execution_stays() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    api.app.execute("update report_executions set expires_at = now()").await;
    assert_eq!(api.app.services.expire_results().await.unwrap().expired, 1);
    for below in ["result", "manifest"] {
        let request = api.get(&format!("/v1/executions/{id}/{below}")).bearer_auth(&token);
        request.answer().await.problem(410, "expired");
    }
    let request = api.get(&format!("/v1/executions/{id}")).bearer_auth(&token);
    let execution = request.answer().await.json(200);
    assert_eq!(execution["status"], "expired");
    assert_eq!(execution["result"]["rows"], 3);
}

#[tokio::test]
async fn rights_are_checked_at_the_download() {
    let api = Api::start(TestApp::new()).await;
    let sql = "select 1 as n";
    api.app.define_with("private", "permission = \"reports.personal\"\n", sql).await;
    let token = api.app.token("ana").await;
    let id = api.completed("private", &token).await;
    let path = format!("/v1/executions/{id}/result");
    assert_eq!(api.get(&path).bearer_auth(&token).answer().await.status, 200);
    api.app
        .execute(
            "delete from role_permissions
              where permission_id = (select id from permissions
                                      where codename = 'reports.personal')",
        )
        .await;
    api.get(&path).bearer_auth(&token).answer().await.problem(403, "forbidden");
}

#[tokio::test]
async fn a_file_that_is_not_the_published_one_is_not_sent() {
    let api = Api::with_numbers().await;
    let token = api.app.token("ana").await;
    let id = api.completed("numbers", &token).await;
    let stored = api.app.execution(id).await.result_file_path.unwrap();
    let path = registrar::store::ObjectPath::from(stored.as_str());
    api.app.services.store.put(&path, "n\n1\n".into()).await.unwrap();
    let request = || api.get(&format!("/v1/executions/{id}/result")).bearer_auth(&token);
    let problem = request().answer().await.problem(500, "internal");
    assert!(!problem.to_string().contains(&stored), "what happened is in the log only");
    api.app.services.store.delete(&path).await.unwrap();
    request().answer().await.problem(404, "not-found");
}

#[tokio::test]
async fn a_result_that_is_deleted_is_gone_at_once_and_its_execution_stays() {
    let api = Api::with_numbers().await;
    let (ana, lena) = (api.app.token("ana").await, api.app.token("lena").await);
    let audit = api.app.token("audit").await;
    let id = api.completed("numbers", &ana).await;
    let path = format!("/v1/executions/{id}");
    let delete = |token: &str| api.request(Method::DELETE, &path).bearer_auth(token).answer();
    delete(&lena).await.problem(404, "not-found");
    delete(&audit).await.problem(403, "forbidden");
    assert_eq!(api.app.stored().await.len(), 2, "the file and its manifest");
    let deleted = delete(&ana).await.json(200);
    assert_eq!(deleted["status"], "expired");
    assert_eq!(api.app.stored().await, Vec::<String>::new());
    let result = api.get(&format!("{path}/result")).bearer_auth(&ana).answer().await;
    result.problem(410, "expired");
    assert_eq!(delete(&ana).await.json(200)["status"], "expired", "again is the same");
    let times = api.app.audit(id).await;
    let times = times.iter().filter(|action| *action == "execution.result_deleted").count();
    assert_eq!(times, 1);
}

#[tokio::test]
async fn what_has_no_result_is_not_deleted() {
    let api = Api::with_numbers().await;
    let ana = api.app.token("ana").await;
    let id = api.submit("numbers", &ana).answer().await.id();
    let path = format!("/v1/executions/{id}");
    let delete = || api.request(Method::DELETE, &path).bearer_auth(&ana).answer();
    assert_eq!(delete().await.problem(409, "wrong-state")["execution_status"], "pending");
    api.post(&format!("{path}/cancel")).bearer_auth(&ana).answer().await.json(202);
    assert_eq!(delete().await.problem(409, "wrong-state")["execution_status"], "cancelled");
}

#[tokio::test]
async fn deleting_a_shared_result_leaves_the_others_theirs() {
    let api = Api::with_numbers().await;
    let (ana, rui) = (api.app.token("ana").await, api.app.token("rui").await);
    let first = api.completed("numbers", &ana).await;
    let shared = api
        .post("/v1/reports/numbers/executions")
        .bearer_auth(&rui)
        .json(&json!({"reuse": {"max_age_secs": 600}}))
        .answer()
        .await
        .id();
    let delete = |id: i64, token: &str| {
        let path = format!("/v1/executions/{id}");
        api.request(Method::DELETE, &path).bearer_auth(token).answer()
    };
    delete(first, &ana).await.json(200);
    for what in ["result", "manifest"] {
        let path = format!("/v1/executions/{shared}/{what}");
        assert_eq!(api.get(&path).bearer_auth(&rui).answer().await.status, 200, "{what}");
    }
    delete(shared, &rui).await.json(200);
    assert_eq!(api.app.stored().await, Vec::<String>::new(), "the last one takes the file along");
}
