//! What holds for every schema and all data: generated trees of tables with keys of several types
//! and columns, self references and every ON DELETE, rows of all ages, some of them held.

use std::fmt::Write as _;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::world::{World, policy};
use crate::support::database::Contents;

const CASES: u32 = 12;

/// A table: its parent among those before it, and whether it references itself.
#[derive(Debug, Clone)]
struct TableShape {
    parent: Option<usize>,
    on_delete: &'static str,
    is_composite: bool,
    is_tree: bool,
    key: KeyType,
    rows: usize,
}

/// The type of a key, and its value made of a number.
#[derive(Debug, Clone, Copy)]
enum KeyType {
    Int,
    Text,
    Uuid,
    Time,
}

impl KeyType {
    fn name(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Text => "text",
            Self::Uuid => "uuid",
            Self::Time => "timestamptz",
        }
    }

    fn of(self, number: &str) -> String {
        match self {
            Self::Int => format!("{number}::int"),
            Self::Text => format!("$$ключ\"'\\ $$ || {number}::text || chr(39)"),
            Self::Uuid => format!("md5({number}::text)::uuid"),
            Self::Time => {
                format!("timestamptz '2000-02-29' + {number} * interval '0.000001 second'")
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Shape {
    tables: Vec<TableShape>,
    keep_children: bool,
    purge: bool,
    seed: u32,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let on_delete = prop::sample::select(vec!["cascade", "set null", "no action", "restrict"]);
    let key = prop::sample::select(vec![KeyType::Int, KeyType::Text, KeyType::Uuid, KeyType::Time]);
    let table = (
        any::<prop::sample::Index>(),
        any::<bool>(),
        on_delete,
        any::<(bool, bool)>(),
        (key, 0..60_usize),
    );
    (prop::collection::vec(table, 1..5), any::<(bool, bool)>(), any::<u32>()).prop_map(
        |(tables, (keep_children, purge), seed)| Shape {
            tables: tables
                .into_iter()
                .enumerate()
                .map(
                    |(
                        number,
                        (parent, is_root, on_delete, (is_composite, is_tree), (key, rows)),
                    )| {
                        let parent = (number > 0 && !is_root).then(|| parent.index(number.max(1)));
                        TableShape { parent, on_delete, is_composite, is_tree, key, rows }
                    },
                )
                .collect(),
            keep_children,
            purge,
            seed,
        },
    )
}

impl Shape {
    fn ddl(&self) -> String {
        let mut sql = String::new();
        for (n, table) in self.tables.iter().enumerate() {
            let key = if table.is_composite { "primary key (a, b)" } else { "primary key (a)" };
            let own = table.key.name();
            let parents = table.parent.map_or("int", |parent| self.tables[parent].key.name());
            let _ = write!(
                sql,
                "create table t{n} (n int, a {own}, b text, at timestamptz, body text,
                     pa {parents}, pb text, ua {own}, ub text, {key});"
            );
            let mut reference = |own: &str, to: usize, on_delete: &str| {
                let composite = self.tables[to].is_composite;
                let (columns, target) = if composite {
                    (format!("{own}a, {own}b"), "(a, b)")
                } else {
                    (format!("{own}a"), "(a)")
                };
                let _ = write!(
                    sql,
                    "alter table t{n} add foreign key ({columns}) references t{to} {target}
                        on delete {on_delete};
                     create index on t{n} ({columns});"
                );
            };
            if let Some(parent) = table.parent {
                reference("p", parent, table.on_delete);
            }
            if table.is_tree {
                reference("u", n, "cascade");
            }
        }
        sql
    }

    /// Rows by arithmetic from the seed: ages around the cutoff, references to rows that exist.
    fn data(&self) -> String {
        let mut sql = String::new();
        let seed = self.seed % 10_000;
        for (n, table) in self.tables.iter().enumerate() {
            let parents = table.parent.map_or(0, |parent| self.tables[parent].rows);
            let parent = format!("nullif((g * 31 + {seed}) % {} + 1, 1)", parents.max(1));
            let parent = if parents < 2 { "null::int".to_owned() } else { parent };
            let (key, own_parent) = (table.key.of("g"), table.key.of("u"));
            let parent_key = table.parent.map_or(KeyType::Int, |parent| self.tables[parent].key);
            let parent_key = parent_key.of("p");
            let up = if table.is_tree { "nullif(g / 2, 0)" } else { "null::int" };
            let _ = write!(
                sql,
                "insert into t{n}
                 select g, {key}, 'k' || g,
                        (array[now() - interval '6 years', now() - interval '4 years', null,
                               'infinity', '0001-01-01', now() - interval '5 years 1 day',
                               now() - interval '9 years'])
                            [(g * 7 + {seed} / 3) % 7 + 1],
                        repeat('x', g % 5) || {n}, {parent_key}, 'k' || p,
                        {own_parent}, 'k' || u
                   from generate_series(1, {}) g,
                        lateral (select {parent} as p, {up} as u) links;",
                table.rows
            );
        }
        let held = self.seed as usize % self.tables.len();
        let _ = write!(
            sql,
            "insert into holds (scope, table_name, condition, reason)
             values ('query', 't{held}', 'n % 5 = 0', 'property');"
        );
        sql
    }

    fn policy(&self) -> registrar::policy::Policy {
        let mut text = String::new();
        if self.keep_children && !self.purge {
            text.push_str(
                "[[table]]\nname = \"t0\"\nage = \"at\"\nafter = \"5 years\"\n\
                 keep_children = true\n",
            );
        } else {
            for n in 0..self.tables.len() {
                let _ =
                    write!(text, "[[table]]\nname = \"t{n}\"\nage = \"at\"\nafter = \"5 years\"\n");
                if self.purge {
                    text.push_str("if_referenced = \"refuse\"\n");
                }
            }
        }
        policy(if self.purge { "purge" } else { "archive" }, &text)
    }

    fn held_table(&self) -> usize {
        self.seed as usize % self.tables.len()
    }

    /// Every row of one table, with its place, as text.
    fn rows_of(&self, n: usize, which: &str, with_archive: bool) -> String {
        let columns = "n, a, b, at, body, pa, pb, ua, ub";
        let archive = if with_archive {
            format!(" union all select {columns} from archive.t{n}")
        } else {
            String::new()
        };
        format!(
            "select coalesce(string_agg(r::text, '|' order by n), '')
               from (select {columns} from t{n}{archive}) r where {which}"
        )
    }
}

/// The hash over the keys of a live table, as runs report it of rows that went.
async fn keys_hash(world: &World, shape: &Shape, n: usize) -> u128 {
    let key = if shape.tables[n].is_composite { "a::text, b::text" } else { "a::text" };
    let half = |seed| {
        format!(
            "lpad(to_hex(coalesce(bit_xor(hashtextextended(
                 concat_ws(chr(31), {key}), {seed})), 0)), 16, '0')"
        )
    };
    let hash = world.text(&format!("select {} || {} from t{n}", half(0), half(1))).await;
    u128::from_str_radix(&hash, 16).unwrap()
}

async fn holds_for(shape: Shape) -> Result<(), TestCaseError> {
    let world = World::new(Contents::Schema, &format!("{}{}", shape.ddl(), shape.data())).await;
    let policy = shape.policy();
    let held = shape.rows_of(shape.held_table(), "n % 5 = 0", false);
    let held_before = world.text(&held).await;
    let mut before = Vec::new();
    let mut young = Vec::new();
    const YOUNG: &str = "at is null or at >= now() - interval '5 years' or at < '1900-01-01'";
    for n in 0..shape.tables.len() {
        before.push(world.text(&shape.rows_of(n, "true", false)).await);
        young.push(world.text(&shape.rows_of(n, YOUNG, false)).await);
    }
    let mut hashes = Vec::new();
    for n in 0..shape.tables.len() {
        hashes.push(keys_hash(&world, &shape, n).await);
    }
    let preview = world.preview(&policy).await;
    let tables = world.run(&policy).await;
    // Whatever is not in its table any more is accounted for, by number and by key.
    for (n, before) in hashes.into_iter().enumerate() {
        let name = format!("t{n}");
        let accounts = tables.iter().filter(|table| table.table_name == name);
        let gone = accounts
            .map(|table| u128::from_str_radix(&table.keys_hash, 16).unwrap())
            .fold(0, |all, hash| all ^ hash);
        prop_assert_eq!(before ^ keys_hash(&world, &shape, n).await, gone, "{}", name);
    }
    // What stays above a held row, however deep, is blocked: nothing was skipped.
    prop_assert!(tables.iter().all(|table| table.skipped == 0), "{tables:?}");
    prop_assert_eq!(world.text(&held).await, held_before, "held rows are as they were");
    if !shape.keep_children || shape.purge {
        for (n, young) in young.iter().enumerate() {
            let now = world.text(&shape.rows_of(n, YOUNG, false)).await;
            prop_assert_eq!(&now, young, "nothing younger is touched");
        }
        // Trees apart, a preview knows what stays.
        if shape.tables.iter().all(|table| !table.is_tree) {
            let seen: Vec<_> = preview.tables.iter().map(|table| table.eligible).collect();
            let done: Vec<_> = tables.iter().map(|table| table.done).collect();
            prop_assert_eq!(seen, done);
        }
    }
    if !shape.purge {
        for (n, before) in before.iter().enumerate() {
            let exists = world
                .number(&format!(
                    "select count(*) from pg_class where oid = to_regclass('archive.t{n}')"
                ))
                .await;
            let now = world.text(&shape.rows_of(n, "true", exists == 1)).await;
            prop_assert_eq!(&now, before, "every row is in exactly one place, unchanged");
        }
    }
    let again = world.run(&policy).await;
    prop_assert!(again.iter().all(|table| table.done == 0), "a second run changes nothing");
    world.end().await;
    Ok(())
}

#[test]
fn whatever_the_schema_each_row_is_in_one_place_and_held_and_young_rows_stay() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config {
        cases: CASES,
        max_shrink_iters: 8,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config)
        .run(&shapes(), |shape| runtime.block_on(Box::pin(holds_for(shape))));
    outcome.unwrap();
}
