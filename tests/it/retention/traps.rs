//! The traps of the shipped schema, by name: foreign keys that delete along (users → enrollments →
//! course_enrollments, academic_sessions → course_enrollments). On sample data, and counted over
//! every table: what is gone from a table is what the run says of it, and not a row more.

use std::collections::BTreeMap;

use registrar::policy::{PauseWhen, Policies, Policy};
use registrar::retention::run::RunTable;

use super::world::{World, policy};
use crate::support::app::jobs_dir;
use crate::support::database::Contents;

/// What a run writes for itself.
const OWN: [&str; 3] = ["lifecycle_runs", "lifecycle_run_tables", "lifecycle_run_exports"];

/// Rows of every live table.
async fn counts(world: &World) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for table in world.catalog().await.tables() {
        let name = table.name.plain();
        if table.name.schema.as_str() == "public" && !OWN.contains(&name.as_str()) {
            let rows = world.number(&format!("select count(*) from {}", table.name)).await;
            counts.insert(name, rows);
        }
    }
    counts
}

/// Runs a policy; whatever it says it did, nothing else is gone.
async fn run_counted(world: &World, policy: &Policy) -> Vec<RunTable> {
    let before = counts(world).await;
    let tables = world.run(policy).await;
    for (name, rows) in counts(world).await {
        let of_it = tables.iter().filter(|table| table.table_name == name);
        let done: i64 = of_it.map(|table| table.done).sum();
        assert_eq!(before[&name] - rows, done, "rows of {name} are gone unplanned: {tables:?}");
    }
    tables
}

fn rule(name: &str, age: &str, rest: &str) -> String {
    format!("[[table]]\nname = \"{name}\"\nage = \"{age}\"\nafter = \"1 day\"\n{rest}\n")
}

/// Everybody's account was deleted long ago, and every session and enrollment is over.
async fn everything_is_old() -> World {
    let setup = "
        update users set deleted_at = now() - interval '1 year';
        update academic_sessions set start_date = '2001-01-01', end_date = '2001-06-30';
        update enrollments set enrollment_date = '2001-01-01';
        insert into users (username, email, password, first_name, last_name, deleted_at)
        values ('untied', 'untied@example.org', 'x', 'Un', 'Tied', now() - interval '1 year')";
    let world = World::new(Contents::SampleData, setup).await;
    for table in ["users", "enrollments", "course_enrollments", "academic_sessions"] {
        assert!(world.number(&format!("select count(*) from {table}")).await > 0, "{table}");
    }
    world
}

#[tokio::test]
async fn deleting_users_never_takes_enrollments_along_unplanned() {
    let world = everything_is_old().await;
    let enrolled = world.number("select count(distinct student_id) from enrollments").await;
    for rest in ["if_referenced = \"refuse\"", "if_referenced = \"anonymize\""] {
        let purge = policy("purge", &rule("users", "deleted_at", rest));
        let preview = world.preview(&purge).await;
        assert!(preview.tables[0].blocked >= enrolled, "{rest}");
        let tables = run_counted(&world, &purge).await;
        assert_eq!(tables[0].done, preview.tables[0].eligible, "{rest}");
        let left = "select count(distinct student_id) from enrollments join users on users.id = student_id";
        assert_eq!(world.number(left).await, enrolled, "{rest}");
    }
    let gone = world.number("select count(*) from users where username = 'untied'").await;
    assert_eq!(gone, 0, "who is referenced by nothing goes");
    world.end().await;
}

#[tokio::test]
async fn a_cascade_that_leaves_a_table_out_stops_above_it() {
    let world = everything_is_old().await;
    let courses = world.number("select count(*) from course_enrollments").await;
    let enrolled = "select count(*) from users where exists (
        select from enrollments e join course_enrollments c on c.enrollment_id = e.id
         where e.student_id = users.id)";
    let before = world.number(enrolled).await;
    assert!(before > 0);
    // `course_enrollments` hangs below `enrollments`, and nobody named it.
    let rest = "if_referenced = \"cascade\"\ncascade = [\"enrollments\"]";
    let purge = policy("purge", &rule("users", "deleted_at", rest));
    run_counted(&world, &purge).await;
    assert_eq!(world.number(enrolled).await, before);
    assert_eq!(world.number("select count(*) from course_enrollments").await, courses);
    world.end().await;
}

#[tokio::test]
async fn archiving_sessions_never_takes_course_enrollments_along_unplanned() {
    let world = everything_is_old().await;
    let courses = world.number("select count(*) from course_enrollments").await;
    let used = "select count(*) from academic_sessions s where exists (
        select from course_enrollments where academic_session_id = s.id)";
    let before = world.number(used).await;
    assert!(before > 0);
    let archive = policy("archive", &rule("academic_sessions", "end_date", ""));
    let tables = run_counted(&world, &archive).await;
    assert_eq!(tables[0].blocked, before);
    assert_eq!(world.number(used).await, before);
    assert_eq!(world.number("select count(*) from course_enrollments").await, courses);

    // Enrollments above course enrollments are the same trap.
    let archive = policy("archive", &rule("enrollments", "enrollment_date", ""));
    run_counted(&world, &archive).await;
    assert_eq!(world.number("select count(*) from course_enrollments").await, courses);

    // Said so, they go along, and nothing else does.
    let both = rule("course_enrollments", "academic_sessions.end_date", "")
        + &rule("academic_sessions", "end_date", "");
    let tables = run_counted(&world, &policy("archive", &both)).await;
    assert_eq!((tables[0].done, tables[0].table_name.as_str()), (courses, "course_enrollments"));
    assert_eq!(world.number("select count(*) from archive.course_enrollments").await, courses);
    world.end().await;
}

#[tokio::test]
async fn the_shipped_policies_take_nothing_that_they_do_not_name() {
    let world = everything_is_old().await;
    let policies = Policies::load(&jobs_dir()).unwrap_or_else(|error| panic!("{error}"));
    for shipped in policies.policies.values() {
        if !["archive", "purge"].contains(&shipped.kind.name()) {
            continue;
        }
        // Ceilings are not what this is about.
        let mut shipped = shipped.clone();
        (shipped.limits.max_rows, shipped.limits.max_share) = (None, None);
        // Nor is the load of the machine that the tests run on.
        shipped.limits.pause_when = PauseWhen::default();
        run_counted(&world, &shipped).await;
    }
    world.end().await;
}
