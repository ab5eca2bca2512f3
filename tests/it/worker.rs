//! From a submit to a published file, and everything that can come between.

use registrar::db::executions::Status;
use serde_json::json;

use crate::support::TestApp;

#[tokio::test]
async fn a_submitted_report_is_run_and_published() {
    let app = TestApp::new().await;
    app.define("numbers", "select n, 'row ' || n as text from generate_series(1, 3) n").await;
    let execution = app.run("numbers", json!({})).await;
    assert_eq!(execution.status, Status::Completed, "{execution:#?}");
    assert_eq!(app.csv(execution.id).await, "n,text\n1,row 1\n2,row 2\n3,row 3\n");
}
