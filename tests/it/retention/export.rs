//! Rows that are written to the store, and read back, before they leave.

use std::collections::BTreeSet;
use std::time::Duration;

use registrar::retention::error::RetentionError;
use registrar::retention::run::{self, RunExport};
use registrar::store::Store;
use registrar::writer::parquet::read_texts;
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use sqlx::PgPool;

use super::runs::Lifecycle;
use super::world::{World, policy};
use crate::support::database::{Contents, sql};
use crate::support::eventually;
use crate::support::lying_store::lying_store;
use crate::support::s3::{Fault, Operation};

const LIMIT: Duration = Duration::from_secs(60);
const EXPORT: &str = "export = { format = \"parquet\" }\n";
const NOTES: &str = "
    create table notes (id int primary key, body text, extra jsonb, at timestamptz, raw bytea);
    create table lines (id uuid primary key default gen_random_uuid(), note int references notes,
        price numeric);
    create index on lines (note);";

type Texts = Vec<Vec<Option<String>>>;

fn notes(rest: &str) -> registrar::policy::Policy {
    policy(
        "archive",
        &format!("[[table]]\nname = \"notes\"\nage = \"at\"\nafter = \"5 years\"\n{rest}"),
    )
}

/// The files of a run, and the rows in them by table; each file is what its note says.
async fn files(db: &PgPool, store: &Store, run_id: i64, table: &str) -> (Vec<RunExport>, Texts) {
    let mut exports = run::exports_of(db, run_id, 0, 10_000).await.unwrap();
    exports.retain(|file| file.table_name == table);
    let mut rows = Texts::new();
    for file in &exports {
        let bytes = store.get(&file.object_path.as_str().into()).await.unwrap();
        assert_eq!(hex::encode(Sha256::digest(&bytes)), file.sha256);
        assert_eq!(i64::try_from(bytes.len()).unwrap(), file.size_bytes);
        let read = read_texts(bytes).unwrap();
        assert_eq!(i64::try_from(read.len()).unwrap(), file.row_count);
        rows.extend(read);
    }
    (exports, rows)
}

/// The same rows as the database has them in the archive.
async fn archived(db: &PgPool, columns: &[&str], table: &str) -> Texts {
    let texts: Vec<_> = columns.iter().map(|column| format!("{column}::text")).collect();
    let query = format!("select array[{}] from archive.{table} order by id", texts.join(", "));
    sqlx::query_scalar(sql(query)).fetch_all(db).await.unwrap()
}

fn by_key(mut rows: Texts) -> Texts {
    rows.sort_by_key(|row| row[0].as_ref().map(|id| (id.len(), id.clone())));
    rows
}

#[tokio::test]
async fn every_row_that_leaves_stands_in_a_file_as_it_was() {
    let world = World::new(
        Contents::Schema,
        &format!(
            "{NOTES}
             insert into notes
             select n, case when n % 7 <> 0 then 'note \"' || n end, json_build_object('n', n),
                    now() - interval '6 years', decode(to_hex(n + 4096), 'hex')
               from generate_series(1, 1200) n;
             insert into notes values (0, 'young', null, now(), null);
             insert into lines (note, price) select n, n / 3.0 from generate_series(1, 300) n;"
        ),
    )
    .await;
    let id = world.start(&notes(&format!("keep_children = true\n{EXPORT}")), None).await;
    // What a killed worker would have left.
    let stray = format!("archive/{id:010}/notes/000001-stray.parquet");
    world.store.put(&stray.as_str().into(), "x".into()).await.unwrap();
    world.work(&notes(&format!("keep_children = true\n{EXPORT}")), id).await.unwrap();

    let (exports, rows) = files(&world.db, &world.store, id, "notes").await;
    assert!(exports.len() > 1, "{exports:?}");
    assert_eq!(rows.len(), 1_200);
    let columns = ["id", "body", "extra", "at", "raw"];
    assert_eq!(by_key(rows), by_key(archived(&world.db, &columns, "notes").await));
    let (_, lines) = files(&world.db, &world.store, id, "lines").await;
    let columns = ["id", "note", "price"];
    assert_eq!(by_key(lines), by_key(archived(&world.db, &columns, "lines").await));
    assert!(world.store.get(&stray.as_str().into()).await.is_err(), "no note names it");
    let mut connection = world.db.acquire().await.unwrap();
    let tables = run::tables_of(&mut connection, id).await.unwrap();
    assert_eq!((tables[0].done, tables[0].exported_rows), (1_200, 1_200));
    assert!(tables[0].exported_bytes > 0);
    drop(connection);
    world.end().await;
}

#[tokio::test]
async fn nothing_leaves_when_the_file_is_not_what_was_written() {
    let mut world = World::new(
        Contents::Schema,
        &format!(
            "{NOTES}
             insert into notes (id, at)
             select n, now() - interval '6 years' from generate_series(1, 2000) n;"
        ),
    )
    .await;
    world.store = lying_store();
    let policy = notes(EXPORT);
    let id = world.start(&policy, None).await;
    let error = world.work(&policy, id).await.expect_err("the second file is the first");
    assert!(matches!(error, RetentionError::Unequal { .. }), "{error}");
    let first = world.number("select count(*) from archive.notes").await;
    assert!(first > 0, "the first file was right");
    assert_eq!(world.number("select count(*) from notes").await, 2_000 - first);
    let noted = world.number("select sum(row_count)::bigint from lifecycle_run_exports").await;
    assert_eq!(noted, first);
    world.end().await;
}

#[tokio::test]
async fn files_are_removed_at_their_time_unless_a_hold_keeps_them() {
    let world = World::new(
        Contents::Schema,
        &format!(
            "{NOTES}
             insert into notes (id, at)
             select n, now() - interval '6 years' from generate_series(1, 10) n;"
        ),
    )
    .await;
    let policy = notes("export = { format = \"parquet\", keep = \"7 years\" }\n");
    world.run(&policy).await;
    let kept = "select count(*) from lifecycle_run_exports
                 where expires_at between now() + interval '6 years 364 days'
                                      and now() + interval '7 years' and removed_at is null";
    assert_eq!(world.number(kept).await, 1);
    world
        .execute(
            "update lifecycle_run_exports set expires_at = now() - interval '1 second';
             insert into holds (scope, table_name, key_columns, keys, reason)
             values ('rows', 'notes', '{id}', '[[\"3\"]]', 'a court asks');",
        )
        .await;
    world.run(&policy).await;
    let (held, _) = files(&world.db, &world.store, 1, "notes").await;
    assert!(held[0].removed_at.is_none());
    world.execute("update holds set released_at = now(), release_reason = 'settled'").await;
    world.run(&policy).await;
    let gone = run::exports_of(&world.db, 1, 0, 10).await.unwrap();
    assert!(gone[0].removed_at.is_some());
    assert!(world.store.get(&gone[0].object_path.as_str().into()).await.is_err());
    assert_eq!(world.number("select count(*) from archive.notes").await, 10);
    world.end().await;
}

#[tokio::test]
async fn a_store_that_refuses_loses_no_row_and_the_run_goes_on() {
    let world = Lifecycle::on_s3("[limits]\nchunk_target = \"20ms\"", 2_000, EXPORT).await;
    let s3 = world.app.s3.as_ref().unwrap();
    s3.fail(Fault::Refuse, Operation::Put, 2);
    let id = world.start().await;
    let worker = world.app.start_worker().await;
    world.wait(id, "completed").await;
    worker.stop().await;
    let (_, rows) = files(&world.app.services.db, &world.app.services.store, id, "notes").await;
    let ids: BTreeSet<_> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!((rows.len(), ids.len()), (2_000, 2_000));
    assert_eq!(world.app.number("select count(*) from archive.notes").await, 2_000);
}

#[tokio::test]
async fn the_files_of_a_run_are_sealed_in_its_certificate() {
    let world = Lifecycle::exporting("", 40, EXPORT).await;
    let (app, operator) = (&world.app, world.app.operator());
    let id = world.start().await;
    let worker = app.start_worker().await;
    world.wait(id, "completed").await;
    worker.stop().await;
    let (exports, _) = files(&app.services.db, &app.services.store, id, "notes").await;
    let sealed = app.services.certificate(&operator, &format!("run-{id}")).await.unwrap();
    let sealed: serde_json::Value = serde_json::from_str(&sealed.document).unwrap();
    let all: Vec<u8> = exports.iter().flat_map(|file| hex::decode(&file.sha256).unwrap()).collect();
    let table = &sealed["record"]["tables"][0];
    assert_eq!(table["exports_sha256"], hex::encode(Sha256::digest(all)));
    assert_eq!(table["exported_rows"], 40);
    let found = app.services.verify_certificates(&operator, None).await.unwrap();
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    app.execute("update lifecycle_run_exports set sha256 = repeat('0', 64)").await;
    let found = app.services.verify_certificates(&operator, None).await.unwrap();
    assert!(!found.findings.is_empty(), "another file in its place is seen");
}

#[tokio::test]
async fn a_run_that_exports_and_is_killed_again_and_again_has_each_row_in_one_file() {
    const ROWS: usize = 6_000;
    let world = Lifecycle::exporting("[limits]\nchunk_target = \"5ms\"", 6_000, EXPORT).await;
    let (db, store) = (&world.app.services.db, &world.app.services.store);
    let id = world.start().await;
    let mut kills = 0;
    loop {
        let mut worker = world.app.start_worker_process().await;
        let from = world.app.number("select count(*) from notes").await;
        let step = i64::from(kills) * 131 % 500 + 1;
        let ended = eventually("rows to go, or the end", LIMIT, async || {
            let left = world.app.number("select count(*) from notes").await;
            if left == 2 { Some(true) } else { (left <= from - step).then_some(false) }
        })
        .await;
        if ended || kills >= 8 {
            world.wait(id, "completed").await;
            worker.signal(Signal::TERM);
            worker.ended().await;
            break;
        }
        worker.kill().await;
        kills += 1;
        let (_, rows) = files(db, store, id, "notes").await;
        let archived = world.app.number("select count(*) from archive.notes").await;
        assert_eq!(i64::try_from(rows.len()).unwrap(), archived, "no row is gone without its file");
    }
    assert!(kills >= 2, "killed {kills} times");
    let (exports, rows) = files(db, store, id, "notes").await;
    let ids: BTreeSet<_> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!((rows.len(), ids.len()), (ROWS, ROWS), "each row is in one file");
    let noted: BTreeSet<_> = exports.into_iter().map(|file| file.object_path).collect();
    let stored = store.list(&format!("archive/{id:010}")).await.unwrap();
    let stored: BTreeSet<_> = stored.iter().map(|object| object.location.to_string()).collect();
    assert_eq!(stored, noted, "no file is left that nobody knows of");
}

#[tokio::test]
async fn runs_that_end_early_leave_no_file_that_nobody_knows_of() {
    let world = Lifecycle::exporting("", 40, EXPORT).await;
    let (app, store) = (&world.app, &world.app.services.store);
    let stray = async |id: i64| {
        // What a killed worker would have left.
        let path = format!("archive/{id:010}/notes/000001-stray.parquet");
        store.put(&path.as_str().into(), "x".into()).await.unwrap();
    };
    let left = async |id: i64| store.list(&format!("archive/{id:010}")).await.unwrap().len();
    let cancelled = world.start().await;
    stray(cancelled).await;
    app.services.cancel_run(&app.operator(), cancelled).await.unwrap();
    assert_eq!(left(cancelled).await, 0);

    let failed = world.start().await;
    stray(failed).await;
    world.write("[limits]\nmax_rows = 7");
    let worker = app.start_worker().await;
    world.wait(failed, "failed").await;
    eventually("the file to be removed", LIMIT, async || (left(failed).await == 0).then_some(()))
        .await;
    worker.stop().await;
}

#[tokio::test]
async fn the_files_of_a_run_are_listed_over_http_and_at_the_command_line() {
    let world = Lifecycle::exporting("", 30, EXPORT).await;
    let id = world.start().await;
    let worker = world.app.start_worker().await;
    world.wait(id, "completed").await;
    worker.stop().await;
    let http = world.app.http().await;
    let admin = world.app.token("admin").await;
    let path = format!("/v1/runs/{id}/exports");
    let answer = http.get(&path, &admin).send().await.unwrap();
    let page: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(page["exports"][0]["row_count"], 30);
    let answer = http.get(&format!("{path}?skip=-1"), &admin).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let reader = world.app.token("ana").await;
    assert_eq!(http.get(&path, &reader).send().await.unwrap().status(), 403);
    let listed = world.cli(&["run", "exports", &id.to_string(), "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed, page["exports"]);
    let missing = http.get("/v1/runs/999/exports", &admin).send().await.unwrap();
    assert_eq!(missing.status(), 404);
}
