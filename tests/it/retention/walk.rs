//! Few old rows among many: what a run costs depends on what it does, not on the table's size.

use registrar::policy::Policy;
use registrar::retention::run;

use super::world::{World, policy};
use crate::support::database::Contents;

/// 30,000 rows; 3,000 of them old, many of the same age; five without an age; three at the cutoff.
const SETUP: &str = "
    create table notes (id int primary key, at timestamptz, body text);
    create index on notes (at) where at is not null;
    insert into notes
    select n, timestamptz '2025-01-01' + n * interval '1 second', 'young'
      from generate_series(1, 30000) n;
    update notes set at = timestamptz '2010-01-01' + (id % 7) * interval '1 microsecond'
     where id % 10 = 0;
    insert into notes values (-1, null), (-2, 'infinity'), (-3, '-infinity'), (-4, '0001-01-01'),
        (-5, '9999-12-31');
    insert into notes values (40001, timestamptz '2020-06-01 00:00+00' - interval '1 microsecond'),
        (40002, '2020-06-01 00:00+00'),
        (40003, timestamptz '2020-06-01 00:00+00' + interval '1 microsecond');
    vacuum (analyze) notes";

const KEPT: &str = "select md5(string_agg(n::text, ',' order by id)) from notes n
                     where not (at >= '1900-01-01' and at < '2020-06-01 00:00+00')";

fn old_notes(kind: &str, limits: &str) -> Policy {
    let if_referenced = if kind == "purge" { "if_referenced = \"refuse\"\n" } else { "" };
    policy(
        kind,
        &format!(
            "timezone = \"UTC\"\n[limits]\n{limits}\n[[table]]\nname = \"notes\"\nage = \"at\"\n\
             after = \"5 years\"\n{if_referenced}"
        ),
    )
}

async fn world() -> World {
    let world = World::new(Contents::Schema, "select 1").await;
    // VACUUM is no part of a transaction, and several statements are one.
    for statement in SETUP.split(";\n") {
        world.execute(statement).await;
    }
    world
}

#[tokio::test]
async fn a_purge_of_few_does_not_walk_over_the_others() {
    let world = world().await;
    let as_of = "2025-06-01T00:00:00Z".parse().unwrap();
    let kept = world.text(KEPT).await;
    // So slow a target lets chunks grow to their largest.
    let policy = old_notes("purge", "chunk_target = \"10s\"");
    let tables = world.run_at(&policy, Some(as_of)).await;
    assert_eq!((tables[0].eligible, tables[0].done, tables[0].indeterminate), (3_001, 3_001, 5));
    assert_eq!(world.number("select count(*) from notes").await, 30_000 - 3_000 + 5 + 2);
    assert_eq!(world.text(KEPT).await, kept, "rows at the cutoff and without an age stay");
    assert!(tables[0].chunks <= 3, "500, 2,000 and the rest: {}", tables[0].chunks);
    let last = tables[0].last_key.as_ref().expect("a walk has an end");
    assert_eq!(last.len(), 2, "only rows that are old enough are walked, by age and key");
    world.end().await;
}

#[tokio::test]
async fn a_walk_by_age_goes_on_where_it_was_cut_off() {
    let world = world().await;
    let as_of = "2025-06-01T00:00:00Z".parse().unwrap();
    // The row that makes the third chunk fail is among those of the same age.
    world
        .execute(
            "create sequence gone;
             create function fail_once() returns trigger language plpgsql as
                 'begin
                      if nextval(''gone'') = 2700 then raise exception ''no''; end if;
                      return old;
                  end';
             create trigger fail before delete on notes for each row execute function fail_once();",
        )
        .await;
    let policy = old_notes("archive", "chunk_target = \"10s\"");
    let seen = world.preview_at(&policy, Some(as_of)).await.unwrap();
    let id = world.start(&policy, Some(as_of)).await;
    world.work(&policy, id).await.expect_err("the trigger fails");
    let mut connection = world.db.acquire().await.unwrap();
    let before = run::tables_of(&mut connection, id).await.unwrap();
    assert_eq!((before[0].chunks, before[0].done), (2, 2_500));
    let cursor = before[0].cursor.as_ref().expect("it is stored with the chunk");
    assert!(cursor[0].starts_with("2010-01-01"), "the age comes first: {cursor:?}");
    let key: i64 = cursor[1].parse().unwrap();
    assert_eq!(key % 10, 0);

    assert!(run::give_back(&mut connection, id, 1).await.unwrap());
    world.work(&policy, id).await.expect("the second attempt does the rest");
    let after = run::tables_of(&mut connection, id).await.unwrap();
    assert_eq!((after[0].done, after[0].pass, after[0].skipped), (3_001, 1, 0));
    assert_eq!(after[0].keys_hash, seen.tables[0].keys_hash, "each row once, and no other");
    assert_eq!(world.number("select count(*) from archive.notes").await, 3_001);
    drop(connection);
    world.end().await;
}

#[tokio::test]
async fn many_rows_of_one_age_are_walked_by_their_key() {
    let world = World::new(
        Contents::Schema,
        "create table notes (id int primary key, at timestamptz);
         create index on notes (at);
         insert into notes
         select n, case when n % 10 = 0 then timestamptz '2010-01-01' else now() end
           from generate_series(1, 120000) n;
         analyze notes;",
    )
    .await;
    let policy = old_notes("purge", "chunk_target = \"10s\"");
    let id = world.start(&policy, None).await;
    world.work(&policy, id).await.expect("it works");
    let mut connection = world.db.acquire().await.unwrap();
    let tables = run::tables_of(&mut connection, id).await.unwrap();
    assert_eq!((tables[0].done, tables[0].pass), (12_000, 1));
    assert_eq!(tables[0].last_key.as_ref().map(Vec::len), Some(1), "the key alone");
    assert!(tables[0].chunks <= 16, "of 10,000 rows each: {}", tables[0].chunks);
    drop(connection);
    world.end().await;
}
