//! What makes a run wait between two chunks: real transactions, load and replicas.

use std::time::Duration;

use registrar::postgres::{Binaries, ClusterOptions, DataDir, PrivateCluster};
use sqlx::{Connection, Executor, PgConnection};

use super::runs::Lifecycle;
use super::world::{World, policy};
use crate::support::database::{Contents, sql};
use crate::support::eventually;

const LIMIT: Duration = Duration::from_secs(60);

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn run_sql(connection: &mut PgConnection, statements: &str) {
    connection.execute(sqlx::raw_sql(sql(statements))).await.unwrap();
}

#[tokio::test]
async fn a_long_transaction_makes_a_run_wait_and_say_so_until_it_ends() {
    let world =
        Lifecycle::new("[limits]\npause_when = { oldest_transaction = \"1s\" }", 2_000).await;
    let services = &world.app.services;
    let mut transaction = services.db.begin().await.unwrap();
    let opened = "select now() - interval '1 second' > xact_start from pg_stat_activity
                   where pid = $1";
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *transaction).await.unwrap();
    eventually("the transaction to be old", LIMIT, async || {
        let is_old: bool =
            sqlx::query_scalar(opened).bind(pid).fetch_one(&services.db).await.unwrap();
        is_old.then_some(())
    })
    .await;
    let id = world.start().await;
    let worker = world.app.start_worker().await;
    let waiting = eventually("the run to wait", LIMIT, async || {
        let run = services.show_run(&world.app.operator(), id).await.unwrap().run;
        run.waiting_for.clone().map(|_| run)
    })
    .await;
    let reason = waiting.waiting_for.as_deref().unwrap();
    assert_eq!(reason, "a transaction has been open for over 1s");
    assert!(waiting.waiting_since >= waiting.started_at);
    assert_eq!(world.app.number("select count(*) from notes").await, 2_002, "nothing was done");
    transaction.rollback().await.unwrap();
    world.wait(id, "completed").await;
    worker.stop().await;
    let run = services.show_run(&world.app.operator(), id).await.unwrap().run;
    assert_eq!((run.waiting_for, run.waiting_since), (None, None));
    assert_eq!(world.app.number("select count(*) from notes").await, 2);
}

#[tokio::test]
async fn a_wait_has_an_end_and_the_run_can_be_resumed() {
    // Every machine has some load.
    let rest = "[limits]\npause_when = { load_per_core = 0.000001, at_most = \"1s\" }";
    let world = Lifecycle::new(rest, 100).await;
    let id = world.start().await;
    let worker = world.app.start_worker().await;
    world.wait(id, "failed").await;
    worker.stop().await;
    let run = world.app.services.show_run(&world.app.operator(), id).await.unwrap().run;
    assert_eq!(run.error_code.as_deref(), Some("busy"));
    let message = run.error_message.unwrap();
    assert!(message.contains("for 1s: this machine's load is over 0.000001 per core"), "{message}");
    assert_eq!(world.app.number("select count(*) from notes").await, 102);
    world.app.services.resume_run(&world.app.operator(), id).await.expect("it can go on");
}

#[tokio::test]
async fn a_replica_that_falls_behind_makes_a_run_wait() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = PrivateCluster::start(ClusterOptions {
        data: DataDir::Keep(folder.path().join("cluster")),
        binaries: Binaries::find(None).unwrap(),
        settings: [("fsync", "off"), ("wal_level", "logical")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    })
    .await
    .unwrap();
    let world = World::on(
        &cluster.database_url(),
        Contents::Schema,
        "create table notes (id int primary key, at timestamptz);
         insert into notes
         select n, now() - interval '6 years' from generate_series(1, 40000) n;
         create table copied (id int primary key);
         create publication copied for table copied;",
    )
    .await;
    // A slot is not made in a transaction that has written, and several statements are one.
    world.execute("select pg_create_logical_replication_slot('copied', 'pgoutput')").await;
    // The replica is another database of the same server: what it lacks is the same.
    let mut replica = connect(&cluster.database_url()).await;
    run_sql(&mut replica, "create table copied (id int primary key)").await;
    run_sql(
        &mut replica,
        &format!(
            "create subscription copied connection '{}' publication copied
               with (create_slot = false, copy_data = false)",
            world.database.url
        ),
    )
    .await;
    let replays = "select count(*) from pg_stat_replication where replay_lsn is not null";
    eventually("the replica to answer", LIMIT, async || {
        (world.number(replays).await == 1).then_some(())
    })
    .await;
    let mut blocked = connect(&cluster.database_url()).await;
    run_sql(&mut blocked, "begin; lock table copied in access exclusive mode").await;
    world.execute("insert into copied values (1)").await;

    let policy = policy(
        "archive",
        "[limits]\nmax_rows = 100_000\nchunk_target = \"1ms\"\npause_when = { replica_lag = \"1s\" }\n\
         [[table]]\nname = \"notes\"\nage = \"at\"\nafter = \"5 years\"\n",
    );
    let id = world.start(&policy, None).await;
    let waits = format!("select waiting_for from lifecycle_runs where id = {id}");
    let (worked, left) = tokio::join!(world.work(&policy, id), async {
        eventually("the run to wait", LIMIT, async || {
            (world.text(&waits).await == "a replica is over 1s behind").then_some(())
        })
        .await;
        let left = world.number("select count(*) from notes").await;
        run_sql(&mut blocked, "rollback").await;
        left
    });
    worked.expect("it goes on when the replica does");
    assert!(left > 0, "it waited before it was done");
    assert_eq!(world.number("select count(*) from archive.notes").await, 40_000);
    run_sql(&mut replica, "drop subscription copied").await;
    world.end().await;
    drop((replica, blocked));
    cluster.stop().await.unwrap();
}
