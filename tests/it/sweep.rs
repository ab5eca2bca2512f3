//! What is in the store for nobody is found and goes; what somebody needs stays.

use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use registrar::db::audit::Actor;
use registrar::db::executions::Status;
use registrar::queue::{self, MaintenanceTicket};
use registrar::store::ObjectPath;
use serde_json::json;

use crate::support::TestApp;
use crate::support::process::Process;
use crate::support::s3::{Fault, Operation};

/// Twenty megabytes, three parts of an upload.
const LARGE: &str = "select n, repeat('x', 1000) as x from generate_series(1, 20000) n";

/// Writes a file below the folder of a local store, last written so long ago.
fn place(app: &TestApp, path: &str, age: Duration) -> PathBuf {
    let file = Path::new(&app.config.store.url).join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "left behind").unwrap();
    let written = File::options().write(true).open(&file).unwrap();
    written.set_modified(SystemTime::now() - age).unwrap();
    file
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test]
async fn files_of_nobody_go_and_lost_files_are_told() {
    let app = TestApp::new().await;
    app.define("one", "select 1 as one").await;
    let kept = app.run("one", json!({})).await;
    let lost = app.run("one", json!({})).await;
    let path = kept.result_file_path.clone().unwrap();
    let folder = path.rsplit_once("/1/").unwrap().0.to_owned();
    std::fs::remove_file(Path::new(&app.config.store.url).join(lost.result_file_path.unwrap()))
        .unwrap();
    let second = Duration::from_secs(1);
    // Of an attempt that can publish no more; a staged one; of executions that nobody knows.
    let gone = [
        place(&app, &format!("{folder}/7/one.csv"), second),
        place(&app, &format!("{folder}/7/one.csv#1"), second),
        place(&app, "results/2020/01/4711/1/old.csv", 2 * DAY),
        place(&app, "results/2020/01/4711/1/old.csv#3", 2 * DAY),
    ];
    // Too young to be sure of, not ours, and not below `results/`.
    let stays = [
        place(&app, "results/2020/01/4712/1/young.csv", second),
        place(&app, "results/2020/01/4712/1/young.csv#1", second),
        place(&app, "results/notes.txt", 2 * DAY),
        place(&app, "other/2020/01/4711/1/old.csv", 2 * DAY),
    ];

    let seen = app.services.sweep(&Actor::system(), false).await.unwrap();
    assert_eq!((seen.orphaned_files, seen.unfinished_uploads, seen.unknown_files), (2, 2, 1));
    assert_eq!((seen.missing_files, seen.missing.as_slice()), (1, [lost.id].as_slice()));
    assert!(gone.iter().chain(&stays).all(|file| file.exists()), "looking deletes nothing");

    // The same from the command line, which says by its exit code that a file is lost.
    let mut look = Process::start(&app.config, &["store", "sweep"]);
    assert_eq!(look.ended().await.code(), Some(1), "{}", look.log());
    assert!(look.log().contains("2 files of nobody"), "{}", look.log());
    let mut act = Process::start(&app.config, &["store", "sweep", "--delete", "--json"]);
    act.ended().await;
    // Behind what it logged of the sweep.
    let log = act.log();
    let document = &log[log.find("{\n").expect("a document")..];
    let swept: serde_json::Value = serde_json::from_str(document).expect("JSON");
    assert_eq!((&swept["orphaned_files"], &swept["deleted"]), (&json!(2), &json!(true)));
    assert!(gone.iter().all(|file| !file.exists()));
    assert!(stays.iter().all(|file| file.exists()));
    assert_eq!(app.csv(kept.id).await, "one\n1\n");
    let recorded = "select count(*) from audit_logs where action = 'store.swept'";
    assert_eq!(app.number(recorded).await, 3, "each sweep that found something");
}

#[tokio::test]
async fn many_files_without_rows_are_another_databases_and_stay() {
    let app = TestApp::new().await;
    let files: Vec<_> = (0..150)
        .map(|id| place(&app, &format!("results/2020/01/{}/1/a.csv", 9000 + id), 2 * DAY))
        .collect();
    let swept = app.services.sweep(&Actor::system(), true).await.unwrap();
    assert_eq!((swept.foreign_files, swept.orphaned_files), (150, 0));
    assert!(files.iter().all(|file| file.exists()));
}

#[tokio::test]
async fn what_the_store_does_not_delete_is_left_for_the_next_sweep() {
    let app = TestApp::new().on_s3().await;
    app.define("one", "select 1 as one").await;
    let kept = app.run("one", json!({})).await;
    let path = kept.result_file_path.unwrap();
    let folder = path.rsplit_once("/1/").unwrap().0;
    let (s3, store) = (app.s3.as_ref().unwrap(), &app.services.store);
    for attempt in 7..=9 {
        let path = ObjectPath::from(format!("{folder}/{attempt}/one.csv"));
        store.put(&path, Bytes::from_static(b"left behind")).await.unwrap();
        let mut upload = store.upload(ObjectPath::from(format!("{folder}/{attempt}/two.csv")));
        for _ in 0..2 {
            upload.put(Bytes::from(vec![b'x'; store.part_bytes()])).await.unwrap();
        }
        app.wait_for("the parts", async || !s3.leftover_parts().is_empty()).await;
        // As a killed process leaves it.
        std::mem::forget(upload);
    }
    s3.fail(Fault::Refuse, Operation::Delete, 2);
    s3.fail(Fault::Refuse, Operation::AbortUpload, 1);

    let mut first = Process::start(&app.config, &["store", "sweep", "--delete"]);
    assert_eq!(first.ended().await.code(), Some(1), "{}", first.log());
    assert!(first.log().contains("2 of these the store did not delete"), "{}", first.log());
    let second = app.services.sweep(&Actor::system(), true).await.unwrap();
    let left = (second.orphaned_files, second.unfinished_uploads, second.stuck);
    assert_eq!(left, (1, 1, 0), "the others were gone");
    let third = app.services.sweep(&Actor::system(), true).await.unwrap();
    assert!(third.is_clean(), "{third:?}");
    assert_eq!(app.csv(kept.id).await, "one\n1\n");
}

#[tokio::test]
async fn a_store_that_answers_no_deletion_is_not_asked_for_each() {
    let app = TestApp::new()
        .on_s3()
        .with(|config| config.store.request_timeout_secs = NonZeroU64::MIN)
        .await;
    let s3 = app.s3.as_ref().unwrap();
    app.define("one", "select 1 as one").await;
    let lost = app.run("one", json!({})).await;
    let path = ObjectPath::from(lost.result_file_path.unwrap());
    let folder = path.as_ref().rsplit_once("/1/").unwrap().0.to_owned();
    app.services.store.delete(&path).await.unwrap();
    for attempt in 1_001..=1_020 {
        let path = ObjectPath::from(format!("{folder}/{attempt}/one.csv"));
        app.services.store.put(&path, Bytes::from_static(b"left behind")).await.unwrap();
        // Each of the next requests meets its own.
        s3.fail(Fault::Hang, Operation::Delete, attempt - 1_000);
    }
    let asked = s3.count(Operation::Delete);
    let swept = app.services.sweep(&Actor::system(), true).await.unwrap();
    assert_eq!((swept.orphaned_files, swept.stuck), (20, 20));
    assert_eq!((swept.finished, swept.missing_files), (true, 1), "it looked at the rest");
    let asked = s3.count(Operation::Delete) - asked;
    assert!(asked < 20, "asked {asked} times");
}

#[tokio::test]
async fn a_result_that_the_store_keeps_does_not_keep_those_behind_it() {
    let app = TestApp::new().on_s3().await;
    app.define("one", "select 1 as one").await;
    let mut ids = Vec::new();
    for hours in [3, 2, 1] {
        let id = app.run("one", json!({})).await.id;
        let past = format!(
            "update report_executions set expires_at = now() - interval '{hours} h' where id = {id}"
        );
        app.execute(&past).await;
        ids.push(id);
    }
    let s3 = app.s3.as_ref().unwrap();
    s3.fail(Fault::Refuse, Operation::Delete, 1);
    let first = app.services.expire_results().await.unwrap();
    assert_eq!((first.expired, first.stuck), (2, 1));
    assert_eq!(app.execution(ids[0]).await.status, Status::Completed, "its file is there");
    assert_eq!(app.csv(ids[0]).await, "one\n1\n");
    for id in &ids[1..] {
        assert_eq!(app.execution(*id).await.status, Status::Expired);
    }
    let second = app.services.expire_results().await.unwrap();
    assert_eq!((second.expired, second.stuck), (1, 0));
    assert!(app.stored().await.is_empty());
}

#[tokio::test]
async fn an_upload_of_a_killed_worker_is_taken_back_and_a_living_ones_is_not() {
    let app = TestApp::new().on_s3().await;
    app.define("large", LARGE).await;
    let s3 = app.s3.as_ref().unwrap();
    s3.fail(Fault::Hang, Operation::UploadPart, 2);
    let id = app.submit("large", json!({})).await;
    let mut first = app.start_worker_process().await;
    app.wait_for("the second part", async || s3.count(Operation::UploadPart) >= 2).await;
    // While it lives, its upload is nobody's business.
    let swept = app.services.sweep(&Actor::system(), true).await.unwrap();
    assert!(swept.uploads_listed, "the request is signed as the server expects");
    assert_eq!(swept.unfinished_uploads, 0);
    first.kill().await;
    let second = app.start_worker().await;
    app.wait_until(id, Status::Completed).await;
    assert_ne!(s3.leftover_parts(), [""; 0], "a killed process takes nothing back");

    // Housekeeping does it, as it does four times a day.
    let mut connection = app.services.db.acquire().await.unwrap();
    queue::enqueue_maintenance(&mut connection, MaintenanceTicket::SweepStore).await.unwrap();
    drop(connection);
    app.wait_for("the sweep", async || s3.leftover_parts().is_empty()).await;
    second.stop().await;
    assert_eq!(app.csv(id).await.lines().count(), 20_001);
    let swept = app.services.sweep(&Actor::system(), true).await.unwrap();
    assert!(swept.is_clean(), "{swept:?}");
}
