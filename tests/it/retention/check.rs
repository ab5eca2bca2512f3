//! `policy check`, on the shipped policies and on a schema made to be wrong.

use registrar::policy::Policies;
use registrar::retention::catalog::Catalog;
use registrar::retention::check;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::TestApp;
use crate::support::app::jobs_dir;
use crate::support::database::{Contents, TestDatabase, sql};
use crate::support::process::Process;

/// What `policy check` finds with these files, after these statements; warnings begin so.
async fn find(contents: Contents, statements: &str, files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let policies = Policies::load(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    find_with(contents, statements, &policies).await
}

async fn find_with(contents: Contents, statements: &str, policies: &Policies) -> Vec<String> {
    let database = TestDatabase::create(contents).await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    connection.execute(sqlx::raw_sql(sql(statements))).await.unwrap();
    let found = check::check(&mut connection, policies).await.unwrap();
    connection.close().await.unwrap();
    database.drop_now().await;
    found.iter().map(ToString::to_string).collect()
}

fn expect(found: &[String], expected: &str) {
    assert!(
        found.iter().any(|line| line.contains(expected)),
        "{expected}\nin\n{}",
        found.join("\n")
    );
}

fn policy(kind: &str, rest: &str) -> String {
    format!("kind = \"{kind}\"\ndescription = \"x\"\nowner = \"y\"\n{rest}")
}

fn table(name: &str, age: &str, after: &str, rest: &str) -> String {
    format!("[[table]]\nname = \"{name}\"\nage = \"{age}\"\nafter = \"{after}\"\n{rest}\n")
}

/// Fails when a migration adds a column that `jobs/classification.toml` does not class, or takes
/// one away that it does. The message says which line to add.
#[tokio::test]
async fn the_shipped_policies_fit_the_shipped_schema() {
    let policies = Policies::load(&jobs_dir()).unwrap_or_else(|error| panic!("{error}"));
    let found = find_with(Contents::Schema, "select 1", &policies).await;
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[tokio::test]
async fn a_column_that_is_not_classed_or_is_gone_is_found_live_and_archived() {
    let policies = Policies::load(&jobs_dir()).unwrap();
    let statements = "create schema if not exists archive;
        alter table users add column nickname text; alter table users drop column city cascade;
        create table surveys (id int primary key, answer text);
        create table archive.audit_logs (
            id bigint primary key, mood text, archived_at timestamptz, archive_run_id bigint);
        create table archive.forgotten (id int primary key);";
    let found = find_with(Contents::Schema, statements, &policies).await;
    expect(&found, "classification.toml: `users.nickname` is not classed: add `nickname = { class");
    expect(&found, "`users.city` is classed, but there is no such column: take it out");
    expect(&found, "`surveys` is not classed: add a table [surveys]");
    expect(&found, "`archive.audit_logs.mood` is kept in the archive and is not classed");
    expect(&found, "`archive.forgotten` is an archive of a table that is gone");
}

#[tokio::test]
async fn coverage_tells_the_class_of_every_column() {
    let database = TestDatabase::create(Contents::Schema).await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let catalog = Catalog::read(&mut connection).await.unwrap();
    let columns: i64 = sqlx::query_scalar(
        "select count(*) from information_schema.columns c
           join information_schema.tables t using (table_schema, table_name)
          where t.table_type = 'BASE TABLE'
            and c.table_schema not in ('pg_catalog', 'information_schema')",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let policies = Policies::load(&jobs_dir()).unwrap();
    let covered = check::coverage(&catalog, &policies.classification);
    assert_eq!(i64::try_from(covered.len()).unwrap(), columns);
    let unclassed: Vec<_> = covered.iter().filter(|column| column.class.is_none()).collect();
    assert!(unclassed.is_empty(), "{unclassed:?}");
    connection.close().await.unwrap();
    database.drop_now().await;
}

const SCHEMA: &str = "
    create table people (
        id int primary key, email varchar(20) unique not null, phone text not null, born date,
        deleted_at timestamptz, note text);
    create table terms (id int primary key, ends date not null);
    create table visits (
        id int primary key, person_id int references people on delete cascade,
        term_id int references terms, other_term_id int references terms, state text, at time,
        old jsonb);
    create table bills (id int primary key, visit_id int references visits, paid_at timestamptz);
    create table heap (at timestamptz);";

#[tokio::test]
async fn names_keys_ages_indexes_and_conditions_are_checked() {
    let tables = [
        table("nowhere", "at", "5 years", ""),
        table("heap", "at", "5 years", ""),
        table("visits", "terms.ends", "5 years", ""),
        table("bills", "visit_id.nothing", "5 years", "where = \"visits.state = 'shut'\""),
        table("people", "phone", "5 years", "keep_children = true\nwhere = \"shut\""),
        table("terms", "ends", "5 years", "keep_children = true\nwhere = \"random() < 1\""),
    ];
    let text = policy("archive", &tables.concat());
    let found = find(Contents::Nothing, SCHEMA, &[("p.toml", &text)]).await;
    for expected in [
        "p.toml: `nowhere` is no table of the database: mend the name",
        "p.toml: `heap` has no primary key",
        "p.toml: `visits` has several foreign keys to `terms`: name the column of one instead",
        "p.toml: `visits.nothing` is what the age of `bills` is told from, but there is no such",
        "p.toml: `bills` has no index that leads with (visit_id) to find the rows of an old parent: \
         create index concurrently on \"public\".\"bills\" (\"visit_id\")",
        "p.toml: `people.phone` is text, and an age is a date",
        "p.toml: `people` has a `where` that is refused by the database: column \"shut\"",
        "p.toml: `terms` has a `where` that calls `random`",
        "p.toml: `terms` has no index that leads with (ends) to find old rows",
        "p.toml: `visits` has no index that leads with (term_id) and each row that leaves `terms`",
        // Nothing is classed here.
        "classification.toml: `people` is not classed",
    ] {
        expect(&found, expected);
    }
}

#[tokio::test]
async fn a_treatment_that_does_not_fit_its_column_is_refused_before_a_row_is_read() {
    let classification = r#"
[people]
id         = { class = "personal", treat = "token" }
email      = { class = "personal", treat = "token", suffix = "@x" }
phone      = { class = "personal", treat = "null" }
born       = { class = "quasi", treat = "constant", value = "someday" }
deleted_at = { class = "none" }
note       = { class = "free_text", treat = "scrub_json", of = "nobody" }
gone       = { class = "none" }
[people.account]
deleted_at = "deleted_at"
frees      = ["email"]
names      = ["email", "surname"]
[terms]
id   = { class = "none" }
ends = { class = "quasi", treat = "truncate", to = "year" }
[visits]
subject = [{ through = "state" }, { kind = "people", id = "at" }]
id            = { class = "none" }
person_id     = { class = "quasi", treat = "null" }
term_id       = { class = "none" }
other_term_id = { class = "none" }
state         = { class = "none" }
at            = { class = "quasi", treat = "family" }
old           = { class = "personal", treat = "scrub_json", of = "people" }
[bills]
id       = { class = "none" }
visit_id = { class = "none" }
[ghosts]
a = { class = "none" }
"#;
    let unique = "create unique index on bills (paid_at)";
    let statements = format!("{SCHEMA}{unique}");
    let files = [("classification.toml", classification)];
    let found = find(Contents::Nothing, &statements, &files).await;
    for expected in [
        "`people.id` is part of the primary key: it can only be kept",
        "`people.id` is integer, which `token` cannot treat",
        "`people.email` holds 20 characters, and `token` writes up to 26",
        "`people.phone` is NOT NULL, and `null` writes NULL",
        "`people.born` must have a `value` of its type date",
        "`people.note` is text, which `scrub_json` cannot treat",
        "`people.note` takes its keys from `nobody`, which is not classed",
        "`people.gone` is classed, but there is no such column",
        "`people.surname` is named by `account`, but there is no such column",
        "`terms` has treated columns, and nothing ties its rows to a person: add `subject`",
        "`visits.person_id` is a foreign key: it can only be kept",
        "`visits.person_id` ties rows with treated columns to a person: add \"person_id\" to `subject`",
        "`visits.state` is `through`, so it must be a foreign key",
        "`visits.kind` is named by `subject`, but there is no such column",
        "`visits.at` is time without time zone, which `family` cannot treat",
        "`bills.paid_at` is not classed",
        "`ghosts` is classed, but there is no such table",
        "`heap` is not classed",
    ] {
        expect(&found, expected);
    }
    let constant = "[bills]\nid = { class = \"none\" }\nvisit_id = { class = \"none\" }\n\
                    paid_at = { class = \"quasi\", treat = \"constant\", value = \"2020-01-01\" }";
    let found = find(Contents::Nothing, &statements, &[("classification.toml", constant)]).await;
    expect(&found, "`bills.paid_at` is unique, and `constant` writes a value twice: take `token`");
}

const INDEXED: &str = "
    create schema archive;
    create table people (id int primary key, deleted_at timestamptz);
    create table visits (
        id int primary key, person_id int references people on delete cascade, at timestamptz);
    create table bills (id int primary key, visit_id int references visits, at timestamptz);
    create index on people (deleted_at) where deleted_at is not null;
    create index on visits (person_id); create index on visits (at);
    create index on bills (visit_id); create index on bills (at);";

/// Findings of policies over [`INDEXED`], those of the missing classes left out.
async fn contradictions(files: &[(&str, String)]) -> Vec<String> {
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let mut found = find(Contents::Nothing, INDEXED, &files).await;
    found.retain(|line| !line.starts_with("classification.toml"));
    found
}

#[tokio::test]
async fn policies_that_contradict_each_other_are_found() {
    let archive = |tables: &[String]| policy("archive", &tables.concat());
    let purge = |tables: &[String]| policy("purge", &tables.concat());
    let visits = |after: &str| table("visits", "at", after, "");
    let bills = |after: &str| table("bills", "at", after, "");
    let people = |rest: &str| table("people", "deleted_at", "30 days", rest);

    let agree = archive(&[visits("5 years"), bills("5 years")]);
    let anonymize = purge(&[people("if_referenced = \"anonymize\"")]);
    let found = contradictions(&[("a.toml", agree.clone()), ("p.toml", anonymize)]).await;
    assert!(found.is_empty(), "{found:?}");

    for (files, expected) in [
        (
            vec![("a.toml", archive(&[visits("5 years"), bills("7 years")]))],
            "a.toml: `visits` leaves after 5 years, but rows of `bills` that reference it stay for 7 years",
        ),
        (
            vec![("a.toml", archive(&[visits("5 years")]))],
            "a.toml: `visits` is archived, but no policy moves `bills`",
        ),
        (
            vec![("a.toml", agree.clone()), ("b.toml", archive(&[bills("6 years")]))],
            "b.toml: `bills` is in a.toml too: two policies of kind `archive` would race",
        ),
        (
            vec![
                ("a.toml", agree.clone()),
                (
                    "p.toml",
                    purge(&[people(
                        "if_referenced = \"cascade\"\ncascade = [\"visits\", \"bills\"]",
                    )]),
                ),
            ],
            "p.toml: `people` is deleted, and archived rows of `visits` would point at nothing: purge `archive.visits` first",
        ),
        (
            vec![("a.toml", agree.clone()), ("p.toml", purge(&[bills("4 years")]))],
            "p.toml: `bills` is deleted after 4 years, before a.toml archives it after 5 years",
        ),
        (
            vec![
                ("a.toml", agree.clone()),
                ("p.toml", purge(&[table("archive.bills", "at", "5 years", "")])),
            ],
            "p.toml: `archive.bills` is deleted after 5 years, as soon as a.toml has archived it",
        ),
        (
            vec![("p.toml", purge(&[people("if_referenced = \"refuse\"")]))],
            "warning: p.toml: `people` is never deleted while rows of `visits` reference it",
        ),
        (
            vec![(
                "p.toml",
                purge(&[people("if_referenced = \"cascade\"\ncascade = [\"visits\"]")]),
            )],
            "warning: p.toml: `bills` references `visits`, so rows of it keep rows of `people`",
        ),
    ] {
        expect(&contradictions(&files).await, expected);
    }
    // One that is switched off contradicts nobody.
    let off = archive(&[bills("6 years")]).replace("owner =", "enabled = false\nowner =");
    let found = contradictions(&[("a.toml", agree), ("b.toml", off)]).await;
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn the_command_exits_with_3_when_something_does_not_fit() {
    let app = TestApp::new().await;
    let mut fits = Process::start(&app.config, &["policy", "check"]);
    assert_eq!(fits.ended().await.code(), Some(0), "{}", fits.log());
    app.services
        .db
        .execute(sqlx::raw_sql("alter table users add column nickname text"))
        .await
        .unwrap();
    for arguments in [["policy", "check"], ["policy", "coverage"]] {
        let mut refused = Process::start(&app.config, &arguments);
        assert_eq!(refused.ended().await.code(), Some(3), "{}", refused.log());
    }
    let mut listed = Process::start(&app.config, &["hold", "list", "--json"]);
    assert_eq!(listed.ended().await.code(), Some(0), "{}", listed.log());
}
