//! Universal rules over generated schemas and data: the engine has never seen these tables.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use registrar::db::erasures::Status;
use registrar::retention::hold::Placement;
use tempfile::TempDir;

use crate::support::TestApp;
use crate::support::database::sql;

/// Generated worlds.
const WORLDS: u32 = 12;
/// People of a world; the first two are erased, one after the other.
const PEOPLE: i32 = 6;

/// A satellite table.
#[derive(Debug, Clone)]
struct Satellite {
    /// Columns of its primary key.
    key: Key,
    /// The table before it is its parent, and its rows are tied to people through it.
    is_child: bool,
    /// Its rows may be about a person as well.
    has_about: bool,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy)]
enum Key {
    Number,
    Text,
    Pair,
}

#[derive(Debug, Clone)]
struct Row {
    owner: Option<i32>,
    about: Option<i32>,
    /// Whose names stand in its document and note.
    named: Option<i32>,
    where_named: u8,
}

fn any_row() -> impl Strategy<Value = Row> {
    let person = || prop::option::of(1..=PEOPLE);
    (person(), person(), person(), 0_u8..6).prop_map(|(owner, about, named, where_named)| Row {
        owner,
        about,
        named,
        where_named,
    })
}

fn any_satellite() -> impl Strategy<Value = Satellite> {
    let key = prop_oneof![Just(Key::Number), Just(Key::Text), Just(Key::Pair)];
    (key, any::<bool>(), any::<bool>(), prop::collection::vec(any_row(), 0..12))
        .prop_map(|(key, is_child, has_about, rows)| Satellite { key, is_child, has_about, rows })
}

fn name(person: i32) -> String {
    format!("unique-person-{person}")
}

fn mail(person: i32) -> String {
    format!("p{person}@mail.example")
}

/// The schema, the data, and the classification of a world.
fn build(satellites: &[Satellite]) -> (Vec<String>, String) {
    let mut statements = vec![
        "create table \"People\" (nr integer primary key, \"Login\" varchar(40) not null unique,
         mail text unique, boss integer references \"People\", born date, gone timestamptz)"
            .to_owned(),
    ];
    let mut toml = "[People]\nsubject = []\n".replace("subject = []\n", "");
    toml.push_str(
        "nr = { class = \"none\" }\nLogin = { class = \"personal\", treat = \"token\", length = 24 }\n\
         mail = { class = \"personal\", treat = \"null\" }\nboss = { class = \"none\" }\n\
         born = { class = \"quasi\", treat = \"truncate\", to = \"month\" }\ngone = { class = \"none\" }\n\
         [People.account]\ndeleted_at = \"gone\"\nfrees = [\"Login\"]\nnames = [\"Login\"]\n",
    );
    for person in 1..=PEOPLE {
        // A self reference: everybody's boss is the one before.
        let boss = if person > 1 { (person - 1).to_string() } else { "null".to_owned() };
        statements.push(format!(
            "insert into \"People\" values ({person}, '{}', '{}', {boss}, '199{person}-03-17')",
            name(person),
            mail(person)
        ));
    }
    for (at, satellite) in satellites.iter().enumerate() {
        let is_child =
            satellite.is_child && at > 0 && matches!(satellites[at - 1].key, Key::Number);
        let key = match satellite.key {
            Key::Number => "a integer primary key",
            Key::Text => "a text primary key",
            Key::Pair => "a integer, b text, primary key (b, a)",
        };
        let owner = if is_child {
            format!("parent integer references s{}", at - 1)
        } else {
            "owner integer references \"People\"".to_owned()
        };
        statements.push(format!(
            "create table s{at} ({key}, {owner}, kind text, subject bigint, doc jsonb, note text,
                                 address inet)"
        ));
        let tied = if is_child { "{ through = \"parent\" }" } else { "\"owner\"" };
        let about =
            if satellite.has_about { ", { kind = \"people\", id = \"subject\" }" } else { "" };
        let owner = if is_child { "parent" } else { "owner" };
        let pair =
            if matches!(satellite.key, Key::Pair) { "b = { class = \"none\" }\n" } else { "" };
        toml.push_str(
            &format!(
                "[s{at}]\nsubject = [{tied}{about}]\na = {{ class = \"none\" }}\n{pair}\
             {owner} = {{ class = \"none\" }}\nkind = {{ class = \"none\" }}\n\
             subject_ = {{ class = \"none\" }}\n\
             doc = {{ class = \"personal\", treat = \"scrub_json\", of = \"People\" }}\n\
             note = {{ class = \"free_text\", treat = \"null\" }}\n\
             address = {{ class = \"personal\", treat = \"network\", bits = [16, 32] }}\n"
            )
            .replace("subject_ = { class = \"none\" }\n", ""),
        );
        let parents = if is_child { satellites[at - 1].rows.len() } else { 0 };
        for (n, row) in satellite.rows.iter().enumerate() {
            let key = match satellite.key {
                Key::Number => format!("{n}"),
                Key::Text => format!("'key {n}'"),
                Key::Pair => format!("{n}, 'b'"),
            };
            let number = |person: Option<i32>| person.map_or("null".to_owned(), |p| p.to_string());
            let tied = if is_child {
                if parents == 0 { "null".to_owned() } else { (n % parents).to_string() }
            } else {
                number(row.owner)
            };
            let about = if satellite.has_about { row.about } else { None };
            let (doc, note) = match (row.named, row.where_named) {
                (Some(p), 0) => (format!("{{\"x\": [\"{}\"]}}", mail(p)), "nothing".to_owned()),
                (Some(p), 1) => (format!("{{\"{}\": 1.50}}", name(p)), "nothing".to_owned()),
                (Some(p), 2) => {
                    ("{\"mail\": \"other@x.example\"}".to_owned(), name(p).to_uppercase())
                }
                (Some(p), 3) => (format!("\"to {}.\"", mail(p)), format!("for {}", mail(p))),
                _ => ("{\"Login\": \"somebody\", \"n\": 1e3}".to_owned(), "all is well".to_owned()),
            };
            statements.push(format!(
                "insert into s{at} values ({key}, {tied}, {}, {}, '{doc}', '{note}', '10.1.2.{n}')",
                if about.is_some() { "'people'" } else { "null" },
                number(about),
            ));
        }
    }
    (statements, toml)
}

/// Every row of a world by table and key, as text.
async fn world(app: &TestApp, tables: usize) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let names = (0..tables).map(|at| format!("s{at}")).chain(["\"People\"".to_owned()]);
    for table in names {
        let query = format!(
            "select '{table} ' || (t.*)::text, t.ctid::text || ' ' || (t.*)::text from {table} t"
        );
        let rows: Vec<(String, String)> =
            sqlx::query_as(sql(query)).fetch_all(&app.services.db).await.unwrap();
        all.extend(rows);
    }
    all
}

/// The rows that are neither the person's nor name them.
async fn rows_of_others(app: &TestApp, satellites: &[Satellite], person: i32) -> Vec<String> {
    let mut all = Vec::new();
    for (at, _) in satellites.iter().enumerate() {
        let has_owner = "select exists (select from information_schema.columns
                                         where table_name = $1 and column_name = 'owner')";
        let has_owner: bool = sqlx::query_scalar(has_owner)
            .bind(format!("s{at}"))
            .fetch_one(&app.services.db)
            .await
            .unwrap();
        if !has_owner {
            continue;
        }
        let query = format!(
            "select (t.*)::text from s{at} t
              where owner is distinct from {person} and subject is distinct from {person}
                and doc::text !~* '{name}|{mail}' and note !~* '{name}|{mail}'
              order by 1",
            name = name(person),
            mail = mail(person),
        );
        let rows: Vec<String> =
            sqlx::query_scalar(sql(query)).fetch_all(&app.services.db).await.unwrap();
        all.extend(rows);
    }
    let query = format!("select (t.*)::text from \"People\" t where nr <> {person} order by 1");
    let rows: Vec<String> =
        sqlx::query_scalar(sql(query)).fetch_all(&app.services.db).await.unwrap();
    all.extend(rows);
    all
}

#[tokio::test]
async fn in_any_world_nobody_is_left_and_nobody_else_is_touched() {
    let strategy = prop::collection::vec(any_satellite(), 1..5);
    let mut runner = TestRunner::deterministic();
    for number in 0..WORLDS {
        let satellites = strategy.new_tree(&mut runner).unwrap().current();
        check(number, &satellites).await;
    }
}

async fn check(number: u32, satellites: &[Satellite]) {
    let (statements, toml) = build(satellites);
    let jobs = TempDir::new().unwrap();
    fs::write(jobs.path().join("classification.toml"), &toml).unwrap();
    let folder = jobs.path().to_owned();
    let app = TestApp::new()
        .with(|config| {
            config.lifecycle.jobs_dir = folder;
            config.erasure.chunk_rows = std::num::NonZeroU32::new(2).unwrap();
        })
        .await;
    for statement in statements {
        app.execute(&statement).await;
    }
    for person in [2, 1] {
        let others = rows_of_others(&app, satellites, person).await;
        let operator = app.operator();
        let asked = app.services.request_erasure(&operator, None, &person.to_string()).await;
        let erasure = asked.unwrap_or_else(|error| panic!("world {number}: {error}\n{toml}"));
        app.execute("update erasures set due_at = now(), run_at = now()").await;
        // Verification is true exactly when no trace remains: one that a hold keeps is found, and
        // once it may go it goes.
        let hold = if number.is_multiple_of(2) {
            let reason = "a case".parse().unwrap();
            let table = "s0".parse().unwrap();
            let placement = Placement::Table { table };
            let placed = app.services.place_hold(&operator, placement, &reason, None).await;
            Some((placed.expect("a hold").id, reason))
        } else {
            None
        };
        app.services.carry_out_erasures().await.unwrap();
        if let Some((hold, reason)) = hold {
            let text = world(&app, satellites.len()).await;
            let remains = text.iter().any(|(_, row)| {
                let row = row.to_lowercase();
                row.contains(&super::properties::name(person)) || row.contains(&mail(person))
            });
            let status = app.services.erasure(&operator, erasure.id).await.unwrap().status;
            assert!(!remains || status == Status::Held, "world {number}: {status} with a trace");
            app.services.release_hold(&operator, hold, &reason).await.unwrap();
            app.execute("update erasures set run_at = now() where status <> 'completed'").await;
            app.services.carry_out_erasures().await.unwrap();
        }
        let ended = app.services.erasure(&operator, erasure.id).await.unwrap();
        assert_eq!(ended.status, Status::Completed, "world {number}: {ended:?}\n{satellites:#?}");
        let everything = world(&app, satellites.len()).await;
        for (name, row) in &everything {
            let row = row.to_lowercase();
            let left =
                row.contains(&super::properties::name(person)) || row.contains(&mail(person));
            assert!(!left, "world {number}: {name}");
        }
        let after = rows_of_others(&app, satellites, person).await;
        for row in others {
            assert!(after.contains(&row), "world {number}: {row}");
        }
        // A second go changes nothing, even where the marker was lost.
        app.execute(
            "update erasures set status = 'waiting', completed_at = null, verified_at = null,
                                 run_at = now() where id = (select max(id) from erasures)",
        )
        .await;
        app.services.carry_out_erasures().await.unwrap();
        assert_eq!(world(&app, satellites.len()).await, everything, "world {number}: a second go");
    }
}
