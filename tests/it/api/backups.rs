//! Backups over HTTP: the list, and having one proven.

use registrar::backup::manifest::Purpose;
use registrar::db::audit::Actor;
use registrar::service::backups::create_options;
use reqwest::Method;
use secrecy::SecretString;

use super::Answering;
use crate::support::TestApp;
use crate::support::database::server_url;

#[tokio::test]
async fn backups_are_listed_and_proven_on_request() {
    let app = TestApp::new()
        .with(|config| {
            config.backup.allow_plain = true;
            config.backup.verify_server_url = Some(SecretString::from(server_url()));
        })
        .await;
    let options = create_options(&app.config.backup, Purpose::Manual, false, None).unwrap();
    let id = app.services.create_backup(&Actor::system(), &options).await.unwrap().id;
    let http = app.http().await;
    let token = app.token("admin").await;

    let list = http.get("/v1/backups", &token).answer().await.json(200);
    assert_eq!(list["backups"][0]["id"], id.as_str());
    assert_eq!(list["backups"][0]["encrypted"], false);
    assert!(list["backups"][0]["verified_good"].is_null());
    let path = format!("/v1/backups/{id}/verify");
    let asked = http.request(Method::POST, &path).bearer_auth(&token).answer().await.json(202);
    assert_eq!(asked["status"], "requested");
    let worker = app.start_worker().await;
    app.wait_for("the verification", async || {
        let list = http.get("/v1/backups", &token).answer().await.json(200);
        list["backups"][0]["verified_good"] == true
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn backups_are_for_those_who_may() {
    let app = TestApp::new().await;
    let http = app.http().await;
    let (nobody, auditor) = (app.token("lena").await, app.token("audit").await);
    let admin = app.token("admin").await;
    let unknown = "/v1/backups/20200101T000000Z-00000000/verify";
    http.request(Method::GET, "/v1/backups").answer().await.problem(401, "unauthenticated");
    http.get("/v1/backups", &nobody).answer().await.problem(403, "forbidden");
    http.get("/v1/backups", &auditor).answer().await.json(200);
    let post = |path: &str, token: &str| http.request(Method::POST, path).bearer_auth(token);
    post(unknown, &auditor).answer().await.problem(403, "forbidden");
    post("/v1/backups/..%2Fx/verify", &auditor).answer().await.problem(403, "forbidden");
    post(unknown, &admin).answer().await.problem(404, "not-found");
    post("/v1/backups/..%2Fx/verify", &admin).answer().await.problem(404, "not-found");
}
