//! Holds on a schema that Registrar has never seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use registrar::db::holds;
use registrar::policy::{Classification, Policies};
use registrar::retention::hold::{Holds, PlaceError, Placement, Scope, place};
use registrar::retention::sql::TableName;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgConnection, PgPool, Row};

use crate::support::database::{Contents, TestDatabase, sql};

const CLASSIFICATION: &str = r#"
[logs]
subject = [{ entity = "people", id = "entity_id" }]
[letters]
subject = ["written_by"]
[offices]
subject = [{ through = "branch_id" }]
"#;

/// People with visits and notes below them, what merely points at them, and an archive.
const SCHEMA: &str = "
    create schema if not exists archive;
    create table people (id int primary key, boss_id int references people on delete cascade);
    create table visits (
        person_id int not null references people on delete cascade, seq int not null,
        primary key (person_id, seq));
    create table notes (
        id bigint primary key, person_id int, seq int, grade text,
        foreign key (person_id, seq) references visits on delete cascade);
    create table branches (id int primary key, head_id int references people on delete set null);
    create table items (id int primary key, branch_id int references branches on delete cascade);
    create table offices (id int primary key, branch_id int references branches);
    create table logs (id int primary key, entity text, entity_id text, actor_id int);
    create table letters (id int primary key, written_by text);
    create table archive.visits (person_id int, seq int, run int, primary key (person_id, seq));
    create table archive.notes (
        id bigint primary key, person_id int, seq int, grade text, run int);";

struct World {
    database: TestDatabase,
    db: PgPool,
    classification: Arc<Classification>,
}

impl World {
    async fn new() -> Self {
        let database = TestDatabase::create(Contents::Schema).await;
        let db = PgPoolOptions::new().max_connections(8).connect(&database.url).await.unwrap();
        db.execute(sqlx::raw_sql(sql(SCHEMA))).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("classification.toml"), CLASSIFICATION).unwrap();
        let classification = Policies::load(folder.path()).unwrap().classification;
        Self { database, db, classification: Arc::new(classification) }
    }

    async fn execute(&self, statements: &str) {
        self.db.execute(sqlx::raw_sql(sql(statements))).await.unwrap();
    }

    async fn place(&self, placement: Placement) -> Result<i64, PlaceError> {
        let mut tx = self.db.begin().await.unwrap();
        let (id, _) = place(&mut tx, placement, "a case in court", None, None).await?;
        tx.commit().await.unwrap();
        Ok(id)
    }

    async fn release(&self, id: i64) -> bool {
        let mut tx = self.db.begin().await.unwrap();
        holds::lock_exclusive(&mut tx).await.unwrap();
        let done = holds::release(&mut tx, id, None, "settled").await.unwrap();
        tx.commit().await.unwrap();
        done
    }

    async fn holds(&self) -> Holds {
        let mut connection = self.db.acquire().await.unwrap();
        Holds::load(&mut connection, Arc::clone(&self.classification)).await.unwrap()
    }

    /// Keys of the rows that are held.
    async fn held(&self, table: &str, key: &str) -> Vec<String> {
        let table: TableName = table.parse().unwrap();
        let predicate = self.holds().await.predicate(&table, "t");
        let query =
            format!("select ({key})::text, {predicate} as held from {table} as t order by 1");
        let rows = sqlx::query(sql(query)).fetch_all(&self.db).await.unwrap();
        // Never NULL: a destructive statement asks for `not` it.
        let held = rows.iter().filter(|row| row.get::<bool, _>(1));
        held.map(|row| row.get(0)).collect()
    }

    async fn end(self) {
        self.db.close().await;
        self.database.drop_now().await;
    }
}

fn table(name: &str) -> TableName {
    name.parse().unwrap()
}

fn rows(name: &str, keys: &[&[&str]]) -> Placement {
    let keys = keys.iter().map(|key| key.iter().map(|&value| value.to_owned()).collect());
    Placement::Rows { table: table(name), keys: keys.collect() }
}

fn person(id: &str) -> Placement {
    Placement::Subject { table: table("people"), key: vec![id.to_owned()] }
}

#[tokio::test]
async fn a_hold_over_a_person_is_over_what_is_theirs_and_nothing_else() {
    let world = World::new().await;
    world
        .execute(
            "insert into people values (1, null), (2, 1), (3, null);
             insert into visits values (1, 1), (2, 1), (3, 1);
             insert into archive.visits values (1, 2, 0), (2, 2, 0);
             insert into notes values (10, 1, 1), (20, 2, 1);
             insert into archive.notes values
                 (11, 1, 1, null, 0), (12, 1, 2, null, 0), (21, 2, 1, null, 0), (31, null, null, null, 0);
             insert into branches values (1, 1), (2, 2), (3, null);
             insert into items values (1, 1), (2, 2);
             insert into offices values (1, 1), (2, 2), (3, 3);
             insert into logs values
                 (1, 'people', '1', 2), (2, 'people', '2', 1), (3, 'visits', '1', 1), (4, null, null, null);
             insert into letters values (1, '1'), (2, '2'), (3, null), (4, 'not a number');",
        )
        .await;
    assert!(world.holds().await.is_empty());
    assert_eq!(world.held("people", "id").await, Vec::<String>::new());
    world.place(person("1")).await.unwrap();
    for (table, key, expected) in [
        // Not 2, who reports to 1.
        ("people", "id", vec!["1"]),
        ("visits", "(person_id, seq)", vec!["(1,1)"]),
        ("archive.visits", "(person_id, seq)", vec!["(1,2)"]),
        ("notes", "id", vec!["10"]),
        // One below a live visit, one below an archived one.
        ("archive.notes", "id", vec!["11", "12"]),
        ("branches", "id", vec!["1"]),
        // Goes with the branch, which outlives the person: not theirs.
        ("items", "id", vec![]),
        // The same, but the classification says that it is.
        ("offices", "id", vec!["1"]),
        ("logs", "id", vec!["1"]),
        ("letters", "id", vec!["1"]),
    ] {
        assert_eq!(world.held(table, key).await, expected, "{table}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_hold_follows_its_row_into_the_archive_and_back() {
    let world = World::new().await;
    world.execute("insert into people values (1); insert into visits values (1, 1), (1, 2)").await;
    let hold = world.place(rows("visits", &[&["1", "2"]])).await.unwrap();
    let key = "(person_id, seq)";
    assert_eq!(world.held("visits", key).await, ["(1,2)"]);
    let archive = "with gone as (delete from visits returning *)
                   insert into archive.visits select *, 7 from gone";
    world.execute(archive).await;
    assert_eq!(world.held("archive.visits", key).await, ["(1,2)"]);
    // One that is placed while the row is away, by the archive's name.
    world.place(rows("archive.visits", &[&["1", "1"]])).await.unwrap();
    let restore = "with back as (delete from archive.visits returning person_id, seq)
                   insert into visits select * from back";
    world.execute(restore).await;
    assert_eq!(world.held("visits", key).await, ["(1,1)", "(1,2)"]);
    assert!(world.release(hold).await);
    assert_eq!(world.held("visits", key).await, ["(1,1)"]);
    assert!(!world.release(hold).await, "a hold is released once");
    world.end().await;
}

#[tokio::test]
async fn an_archive_that_is_made_later_is_seen_by_the_next_chunk() {
    let world = World::new().await;
    world.execute("drop table archive.visits, archive.notes").await;
    world.execute("insert into people values (1); insert into visits values (1, 1)").await;
    world.place(person("1")).await.unwrap();
    let mut holds = world.holds().await;
    world
        .execute(
            "create table archive.visits (person_id int, seq int, primary key (person_id, seq));
             create table archive.notes (id bigint primary key, person_id int, seq int);
             insert into archive.visits select * from visits; delete from visits;
             insert into archive.notes values (5, 1, 1)",
        )
        .await;
    let mut tx = world.db.begin().await.unwrap();
    assert!(holds.for_chunk(&mut tx).await.unwrap());
    assert!(!holds.for_chunk(&mut tx).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(world.held("archive.notes", "id").await, ["5"]);
    let _ = holds.predicate(&table("archive.notes"), "t");
    world.end().await;
}

#[tokio::test]
async fn a_hold_that_would_keep_nothing_or_break_statements_is_refused() {
    let world = World::new().await;
    world
        .execute(
            "insert into people values (1); create table heap (a int);
             create function roll() returns int language sql volatile as 'select 4'",
        )
        .await;
    let query = |name: &str, condition: &str| Placement::Query {
        table: table(name),
        condition: condition.parse().unwrap(),
    };
    let wholly = |name: &str| Placement::Table { table: table(name) };
    for (placement, expected) in [
        (wholly("nowhere"), "`nowhere` must be a table"),
        (rows("heap", &[&["1"]]), "`heap` has no primary key"),
        (rows("people", &[]), "there must be 1 to"),
        (rows("people", &[&["1", "2"]]), "each key must have a value for each of `id`"),
        (rows("people", &[&["one"]]), "each key must be a value of the type of `id`"),
        (rows("people", &[&["99999999999"]]), "each key must be a value of the type of `id`"),
        (rows("people", &[&["1"], &["2"]]), "1 of the 2 keys name a row of `people`"),
        (person("5"), "0 of the 1 keys name a row"),
        (query("notes", "mark = 'A'"), "the condition is refused by the database: column \"mark\""),
        (query("notes", "grade"), "argument of WHERE must be type boolean"),
        (query("notes", "id = 'x'"), "invalid input syntax"),
        (query("notes", "grade = "), "syntax error"),
        (query("notes", "random() < 0.5"), "calls `random`"),
        (query("notes", "id = ROLL ()"), "calls `roll`"),
        (query("notes", "run = 1"), "column \"run\" does not exist"),
    ] {
        let error = world.place(placement.clone()).await.expect_err(expected);
        let text = error.to_string();
        assert!(text.contains(expected), "{placement:?}: {text}");
    }
    let mut tx = world.db.begin().await.unwrap();
    let past = chrono::DateTime::from_timestamp(1_000_000_000, 0);
    let error = place(&mut tx, person("1"), "late", past, None).await.unwrap_err();
    assert!(matches!(error, PlaceError::Past));
    drop(tx);
    assert!(world.holds().await.is_empty());
    world.end().await;
}

#[tokio::test]
async fn keys_are_kept_as_the_database_writes_them() {
    let world = World::new().await;
    world.execute("insert into people values (7)").await;
    let mut tx = world.db.begin().await.unwrap();
    let asked = rows("people", &[&["007"], &[" 7"], &["7"]]);
    // Three spellings of one row are asked for, and one row is there.
    assert!(matches!(
        place(&mut tx, asked, "x", None, None).await,
        Err(PlaceError::Missing { asked: 3, found: 1, .. }),
    ));
    drop(tx);
    let mut tx = world.db.begin().await.unwrap();
    let (_, scope) = place(&mut tx, rows("people", &[&["007"]]), "x", None, None).await.unwrap();
    let Scope::Rows { keys, .. } = scope else { panic!("{scope:?}") };
    assert_eq!(keys.values, [["7"]]);
    drop(tx);
    world.end().await;
}

#[tokio::test]
async fn a_hold_ends_at_its_time_and_the_down_migration_refuses_before() {
    let world = World::new().await;
    world.execute("insert into people values (1)").await;
    let mut tx = world.db.begin().await.unwrap();
    let soon: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select now() + interval '1 day'").fetch_one(&mut *tx).await.unwrap();
    place(&mut tx, person("1"), "x", Some(soon), None).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(world.held("people", "id").await, ["1"]);
    let down = include_str!("../../../migrations/0014_create_holds.down.sql");
    let refused = world.db.execute(sqlx::raw_sql(sql(down))).await.unwrap_err();
    assert!(refused.to_string().contains("a hold is in force"), "{refused}");
    world.execute("update holds set placed_at = now() - interval '2 days', until = now() - interval '1 second'").await;
    assert_eq!(world.held("people", "id").await, Vec::<String>::new());
    world.execute(down).await;
    world.end().await;
}

#[tokio::test]
async fn a_hold_that_cannot_be_read_stops_everything() {
    let world = World::new().await;
    world
        .execute(
            "insert into holds (scope, table_name, condition, reason)
             values ('query', 'notes', 'true) or (true', 'damaged')",
        )
        .await;
    let mut connection = world.db.acquire().await.unwrap();
    let error = Holds::load(&mut connection, Arc::default()).await.unwrap_err();
    assert!(error.to_string().contains("hold 1 cannot be read"), "{error}");
    drop(connection);
    world.end().await;
}

/// A hold over visits and notes of up to six people, as a model knows it.
#[derive(Debug, Clone)]
enum Model {
    Person(i32),
    Visit(i32, i32),
    Notes(BTreeSet<i64>),
    AllVisits,
    Graded(&'static str),
}

/// Where each visit is (or is not), and each note with its visit and grade.
#[derive(Debug, Clone)]
struct Case {
    visits: BTreeMap<(i32, i32), bool>,
    notes: Vec<((i32, i32), Option<&'static str>, bool)>,
    holds: Vec<Model>,
}

fn case() -> impl Strategy<Value = Case> {
    let visit = (1..=6_i32, 1..=2_i32);
    let grade = prop_oneof![Just(None), Just(Some("A")), Just(Some("B'"))];
    let model = prop_oneof![
        (1..=6_i32).prop_map(Model::Person),
        (1..=6_i32, 1..=2_i32).prop_map(|(person, seq)| Model::Visit(person, seq)),
        prop::collection::btree_set(0..8_i64, 1..4).prop_map(Model::Notes),
        Just(Model::AllVisits),
        prop_oneof![Just("A"), Just("B'")].prop_map(Model::Graded),
    ];
    (
        prop::collection::btree_map(visit.clone(), any::<bool>(), 1..8),
        prop::collection::vec((visit, grade, any::<bool>()), 0..8),
        prop::collection::vec(model, 0..4),
    )
        .prop_map(|(visits, notes, holds)| {
            // A live note needs a live visit; an archived one needs either.
            let notes = notes.into_iter().filter_map(|(visit, grade, archived)| {
                let visit_archived = *visits.get(&visit)?;
                Some((visit, grade, archived || visit_archived))
            });
            let notes = notes.collect();
            Case { visits, notes, holds }
        })
}

#[tokio::test]
async fn rows_are_held_exactly_when_a_model_says_so_live_and_archived() {
    let world = World::new().await;
    let mut runner = TestRunner::deterministic();
    for _ in 0..60 {
        let case = case().new_tree(&mut runner).unwrap().current();
        fill(&world, &case).await;
        for hold in &case.holds {
            let placement = match hold {
                Model::Person(person) => self::person(&person.to_string()),
                Model::Visit(person, seq) => {
                    rows("visits", &[&[&person.to_string(), &seq.to_string()]])
                }
                Model::Notes(ids) => {
                    let keys = ids.iter().map(|id| vec![id.to_string()]).collect();
                    Placement::Rows { table: table("notes"), keys }
                }
                Model::AllVisits => Placement::Table { table: table("visits") },
                Model::Graded(grade) => {
                    let condition = format!("grade = '{}'", grade.replace('\'', "''"));
                    let condition = condition.parse().unwrap();
                    Placement::Query { table: table("notes"), condition }
                }
            };
            // One that names what is not there is refused, and holds nothing.
            let exists = match hold {
                Model::Person(_) | Model::AllVisits | Model::Graded(_) => true,
                Model::Visit(person, seq) => case.visits.contains_key(&(*person, *seq)),
                Model::Notes(ids) => ids.iter().all(|id| *id < case.notes.len() as i64),
            };
            assert_eq!(world.place(placement).await.is_ok(), exists, "{hold:?} {case:?}");
        }
        let held_visit = |visit: (i32, i32)| {
            case.holds.iter().any(|hold| match hold {
                Model::Person(person) => visit.0 == *person,
                Model::Visit(person, seq) => visit == (*person, *seq),
                Model::AllVisits => true,
                Model::Notes(_) | Model::Graded(_) => false,
            })
        };
        let held_note = |id: usize| {
            let (visit, grade, _) = case.notes[id];
            case.holds.iter().any(|hold| match hold {
                Model::Person(person) => visit.0 == *person,
                Model::Notes(ids) => {
                    ids.contains(&(id as i64)) && ids.iter().all(|id| *id < case.notes.len() as i64)
                }
                Model::Graded(held) => grade == Some(*held),
                Model::Visit(..) | Model::AllVisits => false,
            })
        };
        for (home, archived) in [("visits", false), ("archive.visits", true)] {
            let visits =
                case.visits.iter().filter(|(visit, at)| **at == archived && held_visit(**visit));
            let expected: Vec<_> = visits.map(|((p, s), _)| format!("({p},{s})")).collect();
            assert_eq!(world.held(home, "(person_id, seq)").await, expected, "{home} {case:?}");
        }
        for (home, archived) in [("notes", false), ("archive.notes", true)] {
            let ids = 0..case.notes.len();
            let expected: Vec<_> = ids
                .filter(|id| case.notes[*id].2 == archived && held_note(*id))
                .map(|id| id.to_string())
                .collect();
            assert_eq!(world.held(home, "id").await, expected, "{home} {case:?}");
        }
        // The statement that holds protect from, as an engine would write it.
        let holds = world.holds().await;
        for home in ["notes", "archive.notes", "visits", "archive.visits"] {
            let home = table(home);
            let delete =
                format!("delete from {home} as t where not {}", holds.predicate(&home, "t"));
            world.execute(&delete).await;
        }
        let left: i64 = sqlx::query_scalar("select count(*) from archive.notes")
            .fetch_one(&world.db)
            .await
            .unwrap();
        let expected =
            (0..case.notes.len()).filter(|id| case.notes[*id].2 && held_note(*id)).count();
        assert_eq!(left, expected as i64, "{case:?}");
    }
    world.end().await;
}

async fn fill(world: &World, case: &Case) {
    let mut statements =
        "truncate holds, people, visits, notes, archive.visits, archive.notes cascade;
         insert into people select generate_series(1, 6);"
            .to_owned();
    for ((person, seq), archived) in &case.visits {
        statements += &if *archived {
            format!("insert into archive.visits values ({person}, {seq}, 0);")
        } else {
            format!("insert into visits values ({person}, {seq});")
        };
    }
    for (id, ((person, seq), grade, archived)) in case.notes.iter().enumerate() {
        let home = if *archived { "archive.notes" } else { "notes" };
        let grade =
            grade.map_or("null".to_owned(), |grade| format!("'{}'", grade.replace('\'', "''")));
        statements += &format!(
            "insert into {home} (id, person_id, seq, grade) values ({id}, {person}, {seq}, {grade});"
        );
    }
    world.execute(&statements).await;
}

#[tokio::test]
async fn an_acknowledged_hold_is_never_missed_by_chunks_that_run_meanwhile() {
    const ROWS: i32 = 3_000;
    let world = World::new().await;
    world.execute(&format!("insert into people select generate_series(1, {ROWS})")).await;
    let done = Arc::new(AtomicBool::new(false));
    let chunks = (0..2).map(|_| {
        let (url, classification) = (world.database.url.clone(), Arc::clone(&world.classification));
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let mut holds = Holds::load(&mut connection, classification).await.unwrap();
            while !done.load(Ordering::Relaxed) {
                let mut tx = connection.begin().await.unwrap();
                holds.for_chunk(&mut tx).await.unwrap();
                let predicate = holds.predicate(&table("people"), "t");
                let chunk = format!(
                    "delete from people where id in (
                         select t.id from people as t where not {predicate}
                          order by id limit 20 for update skip locked)"
                );
                sqlx::query(sql(chunk)).execute(&mut *tx).await.unwrap();
                tx.commit().await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    });
    let chunks: Vec<_> = chunks.collect();
    // From the end, so that rows are left for as long as this goes on.
    let mut acknowledged = Vec::new();
    for id in (1..=ROWS).rev().step_by(29) {
        let asked =
            tokio::time::timeout(Duration::from_secs(20), world.place(person(&id.to_string())));
        match asked.await.expect("a hold waits for a chunk and no longer") {
            Ok(_) => acknowledged.push(id),
            // Gone before it was asked for: told so, and nothing was promised.
            Err(PlaceError::Missing { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(acknowledged.len() >= 5, "the chunks were faster than the test: {acknowledged:?}");
    tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let count: i64 = sqlx::query_scalar("select count(*) from people")
                .fetch_one(&world.db)
                .await
                .unwrap();
            if count == acknowledged.len() as i64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("everything that is not held goes, and nothing that is");
    done.store(true, Ordering::Relaxed);
    for chunk in chunks {
        chunk.await.unwrap();
    }
    let mut left: Vec<i32> = sqlx::query_scalar("select id from people order by id desc")
        .fetch_all(&world.db)
        .await
        .unwrap();
    left.sort_by(|a, b| b.cmp(a));
    assert_eq!(left, acknowledged);
    world.end().await;
}
