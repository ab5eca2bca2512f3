//! One suite for every store: what Registrar asks of object storage, a folder and an S3 server do.

use std::path::Path as FilePath;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::GetRange;
use object_store::path::Path;
use registrar::config::{Config, DEFAULTS};
use registrar::store::{Store, StoreError};
use tempfile::TempDir;

use crate::support::app::use_s3;
use crate::support::moto;
use crate::support::s3::{Fault, Operation, S3Server};

/// The smallest part that S3 takes, so that tests send little.
const PART: usize = 5 * 1024 * 1024;

fn settings() -> Config {
    let mut config: Config = toml::from_str(DEFAULTS).unwrap();
    config.store.part_bytes = PART;
    config
}

fn folder_store(folder: &FilePath) -> Store {
    let mut config = settings();
    config.store.url = format!("file://{}", folder.display());
    Store::open(&config.store).unwrap()
}

fn s3_store(server: &S3Server) -> Store {
    let mut config = settings();
    use_s3(&mut config, server);
    Store::open(&config.store).unwrap()
}

#[tokio::test]
async fn a_folder_does_what_is_asked_of_a_store() {
    let folder = TempDir::new().unwrap();
    conforms(&folder_store(folder.path())).await;
}

#[tokio::test]
async fn an_s3_server_does_what_is_asked_of_a_store() {
    let server = S3Server::start();
    conforms(&s3_store(&server)).await;
    assert_eq!(server.leftover_parts(), [""; 0]);
}

async fn conforms(store: &Store) {
    small_objects_are_written_read_and_replaced(store).await;
    uploads_of_every_size_are_whole(store).await;
    an_upload_is_invisible_until_it_is_complete(store).await;
    an_aborted_upload_leaves_nothing(store).await;
    ranges_are_read(store).await;
    what_is_missing_is_told_apart(store).await;
    deleting_twice_is_no_error(store).await;
    only_the_folder_is_listed(store).await;
}

async fn small_objects_are_written_read_and_replaced(store: &Store) {
    let path = Path::from("small/object.json");
    for content in ["first", "the second, which is longer", ""] {
        store.put(&path, content.into()).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap(), content);
        assert_eq!(store.head(&path).await.unwrap().size, content.len() as u64);
    }
}

async fn uploads_of_every_size_are_whole(store: &Store) {
    for size in [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 7] {
        let path = Path::from(format!("sizes/{size}"));
        let content = content(size);
        upload(store, &path, &content).await.unwrap();
        assert!(store.get(&path).await.unwrap() == content, "{size} bytes come back as they were");
    }
}

async fn an_upload_is_invisible_until_it_is_complete(store: &Store) {
    let path = Path::from("invisible/object");
    let content = content(PART + PART / 2);
    let mut upload = store.upload(path.clone());
    for part in parts(&content) {
        upload.put(part).await.unwrap();
        assert!(store.list("invisible").await.unwrap().is_empty());
        assert!(matches!(store.head(&path).await, Err(StoreError::NotFound(_))));
    }
    upload.complete().await.unwrap();
    assert_eq!(store.list("invisible").await.unwrap().len(), 1);
}

async fn an_aborted_upload_leaves_nothing(store: &Store) {
    for size in [1, PART, 3 * PART] {
        let path = Path::from("aborted/object");
        let mut upload = store.upload(path.clone());
        for part in parts(&content(size)) {
            upload.put(part).await.unwrap();
        }
        upload.abort().await;
        assert!(store.list("aborted").await.unwrap().is_empty(), "{size} bytes are taken back");
        assert!(matches!(store.get(&path).await, Err(StoreError::NotFound(_))));
    }
}

async fn ranges_are_read(store: &Store) {
    let path = Path::from("ranges/object");
    let content = content(PART + 100);
    upload(store, &path, &content).await.unwrap();
    let size = content.len() as u64;
    let boundary = PART as u64;
    let cases = [
        (None, 0..size),
        (Some(GetRange::Bounded(0..1)), 0..1),
        (Some(GetRange::Bounded(boundary - 1..boundary + 1)), boundary - 1..boundary + 1),
        (Some(GetRange::Bounded(size - 1..size + 10)), size - 1..size),
        (Some(GetRange::Offset(boundary)), boundary..size),
        (Some(GetRange::Suffix(7)), size - 7..size),
    ];
    for (range, expected) in cases {
        let reading = store.read(&path, range.clone()).await.unwrap();
        assert_eq!((reading.size_bytes(), reading.range()), (size, expected.clone()), "{range:?}");
        let chunks: Vec<Bytes> = reading.into_stream().try_collect().await.unwrap();
        let expected = &content[expected.start as usize..expected.end as usize];
        assert!(chunks.concat() == expected, "{range:?} gives its bytes");
    }
}

async fn what_is_missing_is_told_apart(store: &Store) {
    let path = Path::from("nowhere/object");
    assert!(matches!(store.get(&path).await, Err(StoreError::NotFound(at)) if at == path));
    assert!(matches!(store.head(&path).await, Err(StoreError::NotFound(_))));
    assert!(matches!(store.read(&path, None).await, Err(StoreError::NotFound(_))));
    assert!(store.list("nowhere").await.unwrap().is_empty());
}

async fn deleting_twice_is_no_error(store: &Store) {
    let path = Path::from("deleted/object");
    store.put(&path, "x".into()).await.unwrap();
    store.delete(&path).await.unwrap();
    assert!(matches!(store.get(&path).await, Err(StoreError::NotFound(_))));
    store.delete(&path).await.unwrap();
}

async fn only_the_folder_is_listed(store: &Store) {
    for path in ["list/7/a", "list/7/b/c", "list/71/a", "list/8"] {
        store.put(&Path::from(path), "x".into()).await.unwrap();
    }
    let listed = store.list("list/7").await.unwrap();
    let mut paths: Vec<_> = listed.iter().map(|object| object.location.as_ref()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["list/7/a", "list/7/b/c"]);
}

#[tokio::test]
async fn an_aborted_upload_leaves_no_file_on_the_disk() {
    let folder = TempDir::new().unwrap();
    let store = folder_store(folder.path());
    an_aborted_upload_leaves_nothing(&store).await;
    assert_eq!(files_below(folder.path()), 0);
}

#[tokio::test]
async fn a_refused_part_fails_the_upload_and_aborting_it_leaves_no_parts() {
    let server = S3Server::start();
    let store = s3_store(&server);
    server.fail(Fault::Refuse, Operation::UploadPart, 2);
    let path = Path::from("refused/object");
    let error = upload(&store, &path, &content(4 * PART)).await.expect_err("part 2 is refused");
    assert!(matches!(error, StoreError::Request { action: "write", .. }), "{error:?}");
    assert!(matches!(store.head(&path).await, Err(StoreError::NotFound(_))));
    assert_eq!(server.count(Operation::AbortUpload), 1);
    assert_eq!(server.leftover_parts(), [""; 0]);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let server = S3Server::start();
    let store = s3_store(&server);
    for operation in
        [Operation::BeginUpload, Operation::UploadPart, Operation::CompleteUpload, Operation::Put]
    {
        server.fail(Fault::Busy, operation, 1);
    }
    let (large, small) = (Path::from("busy/large"), Path::from("busy/small"));
    let content = content(2 * PART + 1);
    upload(&store, &large, &content).await.unwrap();
    assert!(store.get(&large).await.unwrap() == content);
    upload(&store, &small, b"small").await.unwrap();
    assert_eq!(store.get(&small).await.unwrap(), "small");
}

/// The tests' own server does not know the request that lists unfinished uploads, and answers it
/// with code of ours. This is a server of other people's.
#[tokio::test]
async fn uploads_left_behind_are_found_on_a_server_that_lists_them() {
    let Some(server) = moto::Server::start().await else { return };
    let store = server.store();
    let mut ours = Vec::new();
    for number in 0..3 {
        let path = Path::from(format!("results/2020/01/{number}/1/a b & c=é.csv"));
        left_behind(&store, &path).await;
        ours.push(path);
    }
    left_behind(&store, &Path::from("resultsets/2020/01/9/1/a.csv")).await;
    upload(&store, &Path::from("results/2020/01/5/1/whole.csv"), &content(PART + 1)).await.unwrap();

    let mut found = store.list_unfinished("results").await.unwrap();
    found.sort_by_key(|upload| upload.path.to_string());
    assert_eq!(found.iter().map(|upload| upload.path.clone()).collect::<Vec<_>>(), ours);
    store.abort_unfinished(&found[0]).await.unwrap();
    store.abort_unfinished(&found[0]).await.unwrap();
    assert_eq!(store.list_unfinished("results").await.unwrap().len(), 2);
    assert_eq!(store.list("results").await.unwrap().len(), 1, "what is whole stays");
}

/// Begins an upload, sends parts and forgets it, as a process does that is killed.
async fn left_behind(store: &Store, path: &Path) {
    let mut upload = store.upload(path.clone());
    for part in parts(&content(4 * PART)) {
        upload.put(part).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_comes_back_has_what_was_stored() {
    let mut server = S3Server::start();
    let store = s3_store(&server);
    let path = Path::from("kept/object");
    store.put(&path, "kept".into()).await.unwrap();
    server.stop();
    server.start_again();
    assert_eq!(store.get(&path).await.unwrap(), "kept");
}

#[test]
fn a_location_that_cannot_be_used_is_refused_by_name() {
    let mut config = settings();
    for url in ["gopher://results", "/dev/null/results"] {
        config.store.url = url.to_owned();
        let error = Store::open(&config.store).expect_err(url);
        assert!(error.to_string().starts_with("store.url"), "{url}: {error}");
    }
}

/// Uploads as the pipeline does: whole parts, and an abort after a failure.
async fn upload(store: &Store, path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut upload = store.upload(path.clone());
    let uploaded = async {
        for part in parts(content) {
            upload.put(part).await?;
        }
        upload.complete().await
    }
    .await;
    if uploaded.is_err() {
        upload.abort().await;
    }
    uploaded
}

fn parts(content: &[u8]) -> impl Iterator<Item = Bytes> {
    content.chunks(PART).map(Bytes::copy_from_slice)
}

/// Bytes in which every part differs from every other.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251 + index / PART) as u8).collect()
}

fn files_below(folder: &FilePath) -> usize {
    let entries = std::fs::read_dir(folder).unwrap();
    let count = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => files_below(&entry.path()),
        false => 1,
    };
    entries.map(|entry| count(entry.unwrap())).sum()
}
