use registrar::retention::error::RetentionError;
use registrar::retention::restore::{Which, restore_table};

use super::world::{World, policy};
use crate::support::database::Contents;

const NOTES: &str = "
    create table notes (
        id bigint generated always as identity primary key,
        body text not null, extra json, at timestamptz,
        size int generated always as (length(body)) stored);
    create index on notes (at);";

fn notes() -> registrar::policy::Policy {
    policy("archive", "[[table]]\nname = \"notes\"\nage = \"at\"\nafter = \"5 years\"\n")
}

#[tokio::test]
async fn old_rows_move_whole_and_the_rest_stays() {
    let world = World::new(
        Contents::Schema,
        &format!(
            "{NOTES}
             insert into notes (body, extra, at)
             select 'note ' || n, json_build_object('n', n), now() - n * interval '1 month' + interval '1 hour'
               from generate_series(1, 120) n;"
        ),
    )
    .await;
    let before = world.text("select string_agg(n::text, '|' order by id) from notes n").await;
    let tables = world.run(&notes()).await;
    assert_eq!((tables[0].eligible, tables[0].done, tables[0].skipped), (60, 60, 0));
    assert_eq!(world.number("select count(*) from notes").await, 60);
    let after = world
        .text(
            "select string_agg(n::text, '|' order by id)
               from (select id, body, extra, at, size from notes
                     union all select id, body, extra, at, size from archive.notes) n",
        )
        .await;
    assert_eq!(before, after, "no row is lost, doubled or changed");
    assert_eq!(world.number("select count(*) from everything.notes").await, 120);
    let again = world.run(&notes()).await;
    assert_eq!(again[0].done, 0, "a second run changes nothing");
    assert_ne!(tables[0].keys_hash, "0".repeat(32));
    world.end().await;
}

#[tokio::test]
async fn exactly_at_the_cutoff_stays_and_a_microsecond_earlier_goes() {
    let world = World::new(
        Contents::Schema,
        &format!(
            "{NOTES}
             insert into notes (body, at) values
                ('at', '2019-03-01 00:00:00+02'), ('before', '2019-02-28 23:59:59.999999+02'),
                ('after', '2019-03-01 00:00:00.000001+02'), ('null', null),
                ('old', '0001-01-01'), ('far', '9999-12-31'), ('inf', 'infinity'),
                ('minus', '-infinity'), ('1899', '1899-12-30');"
        ),
    )
    .await;
    let policy = policy(
        "archive",
        "[schedule]\ncron = \"0 2 * * *\"\ntimezone = \"Africa/Harare\"\n\
         [limits]\nmax_rows = 100\n[[table]]\nname = \"notes\"\nage = \"at\"\nafter = \"5 years\"\n",
    );
    // Midnight of a leap day's next day in Harare, UTC+2.
    let as_of = "2024-03-01T00:00:00+02:00".parse().unwrap();
    let preview = world.preview_at(&policy, Some(as_of)).await.unwrap();
    assert_eq!((preview.tables[0].eligible, preview.tables[0].indeterminate), (1, 6));
    world.run_at(&policy, Some(as_of)).await;
    assert_eq!(world.text("select string_agg(body, ',') from archive.notes").await, "before");
    world.end().await;
}

#[tokio::test]
async fn the_cutoff_is_calendar_time_in_the_policys_zone() {
    let world = World::new(
        Contents::Schema,
        "create table days (id int primary key, d date, t timestamp, z timestamptz);
         insert into days values
            (1, '2019-02-28', '2019-02-28 12:00', '2019-02-28 12:00-05'),
            (2, '2019-02-27', '2019-02-28 11:59:59.999999', '2019-02-28 11:59:59.999999-05');",
    )
    .await;
    // Noon of the leap day in New York: five years before is the 28th, at noon there.
    let as_of = "2024-02-29T12:00:00-05:00".parse().unwrap();
    for age in ["d", "t", "z"] {
        let policy = policy(
            "purge",
            &format!(
                "[schedule]\ncron = \"0 2 * * *\"\ntimezone = \"America/New_York\"\n\
                 [limits]\nmax_rows = 100\n[[table]]\nname = \"days\"\nage = \"{age}\"\nafter = \"5 years\"\n\
                 if_referenced = \"refuse\"\n"
            ),
        );
        let preview = world.preview_at(&policy, Some(as_of)).await.unwrap();
        assert_eq!(preview.tables[0].sample_keys, ["2"], "{age}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_parent_with_a_live_child_stays_whatever_on_delete_says() {
    for on_delete in ["cascade", "set null", "no action", "restrict"] {
        let world = World::new(
            Contents::Schema,
            &format!(
                "create table parents (id int primary key, at date);
                 create table children (id int primary key,
                     p int references parents on delete {on_delete});
                 insert into parents values (1, '2000-01-01'), (2, '2000-01-01');
                 insert into children values (1, 1);"
            ),
        )
        .await;
        let policy =
            policy("archive", "[[table]]\nname = \"parents\"\nage = \"at\"\nafter = \"5 years\"\n");
        let preview = world.preview(&policy).await;
        assert_eq!((preview.tables[0].eligible, preview.tables[0].blocked), (1, 1));
        let tables = world.run(&policy).await;
        assert_eq!((tables[0].done, tables[0].blocked), (1, 1));
        assert_eq!(world.text("select c::text from children c").await, "(1,1)");
        world.end().await;
    }
}

#[tokio::test]
async fn children_go_along_with_composite_keys_circles_and_self_references() {
    let world = World::new(
        Contents::Schema,
        "create table boxes (a int, b uuid, at date, inside_a int, inside_b uuid,
             primary key (a, b), foreign key (inside_a, inside_b) references boxes);
         create table things (id text primary key, a int, b uuid, lid text,
             foreign key (a, b) references boxes on delete cascade);
         create table lids (id text primary key, thing text references things on delete cascade);
         alter table things add foreign key (lid) references lids;
         insert into boxes select n, gen_random_uuid(), '2000-01-01' from generate_series(1, 50) n;
         update boxes x set inside_a = y.a, inside_b = y.b from boxes y
          where y.a = x.a + 1 and x.a % 10 <> 0;
         insert into things select 't' || a, a, b from boxes;
         insert into lids select 'l' || a, 't' || a from boxes;
         update things set lid = 'l' || substr(id, 2);",
    )
    .await;
    let policy = policy(
        "archive",
        "[[table]]\nname = \"boxes\"\nage = \"at\"\nafter = \"5 years\"\nkeep_children = true\n",
    );
    let preview = world.preview(&policy).await;
    assert_eq!(preview.tables[0].eligible, 50);
    let tables = world.run(&policy).await;
    let done: Vec<_> = tables.iter().map(|t| (t.table_name.as_str(), t.done)).collect();
    assert_eq!(done[0], ("boxes", 50), "{done:?}");
    assert_eq!(world.number("select count(*) from archive.things").await, 50);
    assert_eq!(world.number("select count(*) from archive.lids").await, 50);
    assert_eq!(world.number("select count(*) from boxes").await, 0);
    world.end().await;
}

#[tokio::test]
async fn a_tree_in_one_table_goes_from_its_leaves() {
    let world = World::new(
        Contents::Schema,
        "create table tree (id int primary key, up int references tree on delete cascade, at date);
         insert into tree select n, nullif(n / 2, 0), '2000-01-01' from generate_series(1, 63) n;
         update tree set at = current_date where id = 40;
         update tree set up = 7 where id = 7;",
    )
    .await;
    let policy = policy(
        "purge",
        "[[table]]\nname = \"tree\"\nage = \"at\"\nafter = \"1 year\"\nif_referenced = \"refuse\"\n",
    );
    let tables = world.run(&policy).await;
    // 40 is young: 20, 10, 5, 2 and 1 have it below them.
    assert_eq!(
        world.text("select string_agg(id::text, ',' order by id) from tree").await,
        "1,2,5,10,20,40"
    );
    assert_eq!((tables[0].done, tables[0].blocked), (57, 5));
    world.end().await;
}

#[tokio::test]
async fn a_policy_that_changed_is_not_run_on() {
    let world = World::new(Contents::Schema, NOTES).await;
    let id = world.start(&notes(), None).await;
    let changed =
        policy("archive", "[[table]]\nname = \"notes\"\nage = \"at\"\nafter = \"1 year\"\n");
    let error = world.work(&changed, id).await.expect_err("another policy");
    assert!(matches!(error, RetentionError::Refused { code: "policy_changed", .. }), "{error}");
    world.end().await;
}

#[tokio::test]
async fn archived_rows_come_back_as_they_were_or_say_what_is_in_the_way() {
    let world = World::new(
        Contents::Schema,
        "create table teams (id int primary key, name text unique, up int references teams,
             at date, initial text generated always as (left(name, 1)) stored);
         insert into teams
         select n, 'team ' || n, nullif(n / 2, 0), '2000-01-01' from generate_series(1, 40) n;
         update teams set up = 1 where id = 1;",
    )
    .await;
    let policy =
        policy("archive", "[[table]]\nname = \"teams\"\nage = \"at\"\nafter = \"1 year\"\n");
    let before = world.text("select string_agg(t::text, '|' order by id) from teams t").await;
    world.run(&policy).await;
    assert_eq!(world.number("select count(*) from archive.teams").await, 40);
    world
        .execute("insert into teams values (3, 'new', null, now()), (99, 'team 40', null, now())")
        .await;
    let catalog = world.catalog().await;
    let table = "teams".parse().unwrap();
    let found = restore_table(&world.db, &catalog, &table, &Which::Run(1)).await.unwrap();
    // 3 stands in its own place, so its children have a parent; 40's name is taken.
    assert_eq!((found.restored, found.key_taken, found.unique_taken), (38, 1, 1));
    assert_eq!(world.number("select count(*) from archive.teams").await, 2);
    world
        .execute(
            "update teams set up = null where up = 3; delete from teams where id in (3, 99);
                   update teams set up = 3 where false",
        )
        .await;
    let found = restore_table(&world.db, &catalog, &table, &Which::All).await.unwrap();
    assert_eq!((found.restored, found.conflicts()), (2, 0));
    world.execute("update teams set up = id / 2 where id in (6, 7)").await;
    let after = world.text("select string_agg(t::text, '|' order by id) from teams t").await;
    assert_eq!(before, after);
    world.end().await;
}

#[tokio::test]
async fn held_rows_stay_as_they_are_and_so_do_their_parents() {
    let world = World::new(
        Contents::Schema,
        "create table files (id int primary key, at date);
         create table pages (id int primary key, file int references files on delete cascade,
             at date);
         insert into files select n, '2000-01-01' from generate_series(1, 10) n;
         insert into pages select n, (n + 1) / 2, '2000-01-01' from generate_series(1, 20) n;
         insert into holds (scope, table_name, key_columns, keys, reason)
         values ('rows', 'pages', '{id}', '[[\"7\"], [\"8\"]]', 'a court asks for them'),
                ('rows', 'files', '{id}', '[[\"9\"]]', 'this one too');",
    )
    .await;
    let before = world
        .text("select string_agg(p::text, '|' order by id) from pages p where id in (7, 8)")
        .await;
    for (along, kind) in [("", "archive"), ("keep_children = true\n", "archive")] {
        let pages = "[[table]]\nname = \"pages\"\nage = \"at\"\nafter = \"1 year\"\n";
        let files =
            format!("[[table]]\nname = \"files\"\nage = \"at\"\nafter = \"1 year\"\n{along}");
        let policy =
            policy(kind, &if along.is_empty() { format!("{pages}{files}") } else { files });
        let preview = world.preview(&policy).await;
        let files = preview.tables.last().unwrap();
        assert_eq!((files.eligible, files.held, files.blocked), (8, 1, 1), "{along}");
        if along.is_empty() {
            assert_eq!((preview.tables[0].eligible, preview.tables[0].held), (18, 2));
            continue;
        }
        let tables = world.run(&policy).await;
        assert_eq!((tables[0].done, tables[0].held, tables[0].blocked), (8, 1, 1));
        assert_eq!(tables[1].done, 16);
    }
    assert_eq!(world.text("select string_agg(id::text, ',' order by id) from files").await, "4,9");
    let after = world
        .text("select string_agg(p::text, '|' order by id) from pages p where id in (7, 8)")
        .await;
    assert_eq!(before, after);
    world.end().await;
}

#[tokio::test]
async fn tables_of_one_name_in_several_schemas_have_archives_and_holds_of_their_own() {
    let world = World::new(
        Contents::Schema,
        "create schema sales;
         create schema lab;
         create table sales.orders (id int primary key, at date);
         create table lab.orders (id int primary key, at date);
         create table orders (id int primary key, at date);
         insert into sales.orders select n, '2000-01-01' from generate_series(1, 4) n;
         insert into lab.orders select * from sales.orders;
         insert into orders select * from sales.orders;
         insert into holds (scope, table_name, key_columns, keys, reason)
         values ('rows', 'sales.orders', '{id}', '[[\"1\"]]', 'held while it is live');",
    )
    .await;
    let rules = |names: [&str; 3], rest: &str| {
        let rule = |name| {
            format!("[[table]]\nname = \"{name}\"\nage = \"at\"\nafter = \"1 year\"\n{rest}")
        };
        names.map(rule).concat()
    };
    let live = rules(["sales.orders", "lab.orders", "orders"], "");
    let tables = world.run(&policy("archive", &live)).await;
    let done: Vec<_> = tables.iter().map(|t| (t.table_name.as_str(), t.done, t.held)).collect();
    assert_eq!(done, [("lab.orders", 4, 0), ("orders", 4, 0), ("sales.orders", 3, 1)]);
    let everywhere = "select (select count(*) from everything.sales__orders)
                           + (select count(*) from everything.lab__orders)
                           + (select count(*) from everything.orders)";
    assert_eq!(world.number(everywhere).await, 12);

    world
        .execute(
            "insert into holds (scope, table_name, key_columns, keys, reason)
             values ('rows', 'sales.orders', '{id}', '[[\"3\"]]', 'held in the archive');",
        )
        .await;
    let archives = ["archive.sales__orders", "archive.lab__orders", "archive.orders"];
    let tables =
        world.run(&policy("purge", &rules(archives, "if_referenced = \"refuse\"\n"))).await;
    let done: Vec<_> = tables.iter().map(|t| (t.table_name.as_str(), t.done, t.held)).collect();
    assert_eq!(
        done,
        [("archive.lab__orders", 4, 0), ("archive.orders", 4, 0), ("archive.sales__orders", 2, 1)]
    );
    assert_eq!(
        world.text("select string_agg(id::text, ',') from archive.sales__orders").await,
        "3"
    );

    let catalog = world.catalog().await;
    let table = "sales.orders".parse().unwrap();
    let found = restore_table(&world.db, &catalog, &table, &Which::All).await.unwrap();
    assert_eq!((found.restored, found.conflicts()), (1, 0));
    let tables = world.run(&policy("archive", &live)).await;
    assert_eq!(tables[2].held, 2, "a hold follows the row there and back");
    world.end().await;
}

#[tokio::test]
async fn a_purge_of_an_archive_that_is_not_made_yet_has_nothing_to_do() {
    let world = World::new(Contents::Schema, NOTES).await;
    let purge = policy(
        "purge",
        "[[table]]\nname = \"archive.notes\"\nage = \"at\"\nafter = \"7 years\"\n\
         if_referenced = \"refuse\"\n",
    );
    let preview = world.preview(&purge).await;
    let expected = "nothing to do in `archive.notes`: the archive table is not made yet";
    assert_eq!(preview.warnings, [expected]);
    assert!(world.run(&purge).await.is_empty());
    world.execute("insert into notes (body, at) values ('x', now() - interval '8 years')").await;
    world.run(&notes()).await;
    assert_eq!(world.run(&purge).await[0].done, 1);
    let unknown = policy(
        "purge",
        "[[table]]\nname = \"archive.nothing\"\nage = \"at\"\nafter = \"7 years\"\n\
         if_referenced = \"refuse\"\n",
    );
    let error = world.preview_at(&unknown, None).await.expect_err("an archive of nothing");
    assert!(error.to_string().contains("`archive.nothing` does not exist"), "{error}");
    world.end().await;
}

#[tokio::test]
async fn rows_above_a_held_one_are_blocked_at_any_depth_of_a_tree_or_a_circle() {
    let world = World::new(
        Contents::Schema,
        "create table tree (id int primary key, up int references tree, at date);
         insert into tree select n, nullif(n / 2, 0), '2000-01-01' from generate_series(1, 63) n;
         create table leaves (id int primary key, of int references tree, next int);
         create table stems (id int primary key, of int references leaves, at date);
         alter table leaves add foreign key (next) references stems;
         insert into leaves select n, 20 + n from generate_series(1, 9) n;
         insert into stems select n, n from generate_series(1, 9) n;
         update leaves set next = id % 9 + 1;
         insert into holds (scope, table_name, key_columns, keys, reason)
         values ('rows', 'tree', '{id}', '[[\"63\"]]', 'a leaf of the tree'),
                ('rows', 'stems', '{id}', '[[\"5\"]]', 'one of a circle');",
    )
    .await;
    let policy = policy(
        "archive",
        "[[table]]\nname = \"tree\"\nage = \"at\"\nafter = \"1 year\"\nkeep_children = true\n",
    );
    // 63 is held, and below 31, 15, 7, 3 and 1. The circle of leaves hangs on 21 to 29, whose
    // parents are 10 to 14, 5 to 7, 2, 3 and 1.
    let stays = "1,2,3,5,6,7,10,11,12,13,14,15,21,22,23,24,25,26,27,28,29,31,63";
    let preview = world.preview(&policy).await;
    let seen = &preview.tables[0];
    assert_eq!((seen.held, seen.blocked, seen.eligible), (1, 22, 40));
    let tables = world.run(&policy).await;
    let tree = &tables[0];
    assert_eq!((tree.held, tree.blocked, tree.skipped), (1, 22, 0), "{tables:?}");
    assert_eq!(world.text("select string_agg(id::text, ',' order by id) from tree").await, stays);
    assert_eq!(world.number("select count(*) from leaves").await, 9);
    world.end().await;
}

#[tokio::test]
async fn rows_of_partitioned_tables_move_and_come_back_like_others() {
    let world = World::new(
        Contents::Schema,
        "create table readings (id int, at timestamptz, body text, primary key (id, at))
             partition by range (at);
         create table readings_old partition of readings
             for values from (minvalue) to ('2015-01-01') partition by list (id);
         create table readings_odd partition of readings_old for values in (1, 3, 5, 7, 9);
         create table readings_even (body text, at timestamptz not null, id int not null);
         alter table readings_old attach partition readings_even default;
         create table readings_new partition of readings default;
         create table remarks (id int primary key, reading int, at timestamptz,
             foreign key (reading, at) references readings on delete cascade);
         create table marks (id int primary key, reading int, at timestamptz,
             foreign key (reading, at) references readings_odd (id, at) on delete cascade);
         insert into readings select n, '2001-01-01', 'odd or even' from generate_series(1, 3000) n;
         insert into readings select n, now() - interval '1 day', 'new' from generate_series(1, 50) n;
         insert into readings select n, now() - interval '6 years', 'old' from generate_series(1, 50) n;
         insert into remarks values (1, 2, '2001-01-01');
         insert into marks values (1, 3, '2001-01-01');
         insert into holds (scope, table_name, key_columns, keys, reason)
         values ('rows', 'readings', '{id,at}', '[[\"4\", \"2001-01-01 00:00:00+00\"]]', 'held');
         analyze readings;",
    )
    .await;
    let readings = |kind, rest: &str| {
        policy(
            kind,
            &format!("[[table]]\nname = \"readings\"\nage = \"at\"\nafter = \"5 years\"\n{rest}"),
        )
    };
    let everything = "select md5(string_agg(r::text, '|' order by id, at))
        from (select id, at, body from everything.readings) r";
    let archive = readings("archive", "export = { format = \"parquet\" }\n");
    let before =
        world.text("select md5(string_agg(r::text, '|' order by id, at)) from readings r").await;
    let preview = world.preview(&archive).await;
    let tables = world.run(&archive).await;
    assert_eq!(preview.tables[0].eligible, tables[0].done);
    assert_eq!((tables[0].done, tables[0].held, tables[0].blocked), (3_047, 1, 2), "{tables:?}");
    assert_eq!(tables[0].exported_rows, 3_047);
    assert!(tables[0].size_before > Some(0) && tables[0].size_after > Some(0));
    assert_eq!(world.text(everything).await, before);
    assert_eq!(world.number("select count(*) from remarks").await, 1);
    assert_eq!(world.number("select count(*) from marks").await, 1);

    let catalog = world.catalog().await;
    let table = "readings".parse().unwrap();
    let found = restore_table(&world.db, &catalog, &table, &Which::All).await.unwrap();
    assert_eq!((found.restored, found.conflicts()), (3_047, 0));
    let after =
        world.text("select md5(string_agg(r::text, '|' order by id, at)) from readings r").await;
    assert_eq!(after, before);

    let tables = world.run(&readings("purge", "if_referenced = \"refuse\"\n")).await;
    assert_eq!(tables[0].done, 3_047);
    let cascade = readings("purge", "if_referenced = \"cascade\"\ncascade = [\"remarks\"]\n");
    assert_eq!(world.run(&cascade).await[0].done, 1, "2 goes, with what was said of it");
    let along = policy(
        "purge",
        "[[table]]\nname = \"remarks\"\nage = \"at\"\nafter = \"5 years\"\n\
         if_referenced = \"cascade\"\ncascade = [\"readings\"]\n",
    );
    let error = world.preview_at(&along, None).await.expect_err("along with others");
    assert!(error.to_string().contains("`readings` is partitioned"), "{error}");
    world.end().await;
}
