//! One chunk of an archive or a purge: lock, look again, act, account.
//!
//! 1. A window of the primary key is walked. In it the rows that may go are locked with SKIP
//!    LOCKED: a row that somebody works on is left for a later pass.
//! 2. What goes along with them is collected and locked, from parents to children. From here on
//!    nobody can add a reference to any of these rows: it would have to lock what we have locked.
//! 3. One statement with a fresh snapshot deletes them all, each root row only if it is still
//!    eligible, not held and not referenced, and stores them in the archive. One statement, because
//!    foreign keys are checked at its end: circles can go, and nothing is left to cascade to.
//! 4. What left and what arrived are compared by count and checksum; a difference rolls back.
//!
//! Where the policy asks for an export, what is about to leave is written to the store between 2 and
//! 3. The cursor is stored in the same transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::archive::{ARCHIVE_RUN_ID, ARCHIVED_AT, archive_name, row_hash, run_literal};
use super::catalog::{Catalog, Table};
use super::chunk::{Progress, Step};
use super::error::RetentionError;
use super::export::{Exported, Exporter, Wanted};
use super::guard::Guard;
use super::reference::References;
use super::rule::{Action, Rule, key_match};
use super::run::{self, ChunkDone};
use super::sql::{Ident, Literal, TableName, dynamic, list};

/// A walk through one table.
#[derive(Debug)]
pub struct Move<'a> {
    /// The database's tables.
    pub catalog: &'a Catalog,
    /// What goes.
    pub rule: &'a Rule,
    /// For whom.
    pub run_id: i64,
    /// The rule's place among the run's tables.
    pub position: i32,
    /// The places of the tables whose rows go along.
    pub along_positions: BTreeMap<TableName, i32>,
    /// Where the walk is.
    pub from: From,
    /// Where it ends.
    pub last_key: Vec<String>,
    /// Root rows that went so far.
    pub moved: i64,
    /// The holds, brought up to date in every chunk.
    pub guard: Guard,
    /// Writes rows to the store before they leave.
    pub exporter: Option<Exporter<'a>>,
    /// Time of the last chunk that the store took.
    pub elsewhere: Duration,
}

/// Where a walk goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// With this key.
    At(Vec<String>),
    /// Behind this key.
    After(Vec<String>),
}

/// Rows by their place in the table; they are locked, so they stay there.
type Places = BTreeMap<TableName, Vec<String>>;

/// Files by the table whose rows they hold, with their numbers.
type Files = BTreeMap<TableName, (i32, Exported)>;

/// What left a table.
struct Gone {
    table: TableName,
    done: ChunkDone,
    /// Exclusive or of the rows' hashes, for an archive.
    hash: i64,
}

/// What step 1 found.
struct Window {
    walked: i64,
    last: Option<Vec<String>>,
    places: Vec<String>,
}

impl Step for Move<'_> {
    fn name(&self) -> String {
        self.rule.table.plain()
    }

    async fn chunk(
        &mut self,
        connection: &mut PgConnection,
        rows: i64,
    ) -> Result<Progress, RetentionError> {
        self.guard.for_chunk(connection).await?;
        let guard = self.guard.clone();
        let held = |table: &TableName, alias: &Ident| guard.predicate(table, alias);
        let references = References::now(self.catalog, &held);
        let window = self.lock_window(connection, &references, rows).await?;
        let Some(last) = window.last else { return Ok(Progress::End) };
        let roots = Places::from([(self.rule.table.clone(), window.places)]);
        let places = match self.collect_along(connection, &references, roots).await? {
            Some(places) => places,
            None if window.walked > 1 => return Ok(Progress::TooMany),
            // This one row cannot go: something below it must stay.
            None => Places::new(),
        };
        let Some(files) = self.export(connection, &references, &places).await? else {
            return Ok(Progress::TooMany);
        };
        let gone = self.act(connection, &references, &places).await?;
        if self.exporter.is_some() && !are_in_files(&gone, &files) {
            // A parent has changed between the two: another look tells what may go.
            return Ok(Progress::TooMany);
        }
        for Gone { table, done, hash: _ } in &gone {
            if *table == self.rule.table {
                self.moved += done.rows;
            }
            let position = self.position_of(table);
            if let (Some(exporter), Some((number, file))) = (self.exporter, files.get(table)) {
                exporter.note(connection, position, *number, file).await?;
            }
            run::store_chunk(connection, self.run_id, position, done).await?;
            metrics::counter!(
                "registrar_lifecycle_rows_total", "action" => self.rule.action.as_str()
            )
            .increment(u64::try_from(done.rows).unwrap_or(0));
        }
        run::store_cursor(connection, self.run_id, self.position, &last).await?;
        self.from = From::After(last);
        Ok(Progress::More { walked: window.walked })
    }

    fn elsewhere(&self) -> Duration {
        self.elsewhere
    }
}

impl Move<'_> {
    /// Tables that reference themselves are walked from the end: children usually come later.
    fn order(&self) -> (&'static str, &'static str, &'static str) {
        if is_backward(self.catalog, self.rule) { ("desc", "<", ">=") } else { ("asc", ">", "<=") }
    }

    async fn lock_window(
        &self,
        connection: &mut PgConnection,
        references: &References<'_>,
        rows: i64,
    ) -> Result<Window, RetentionError> {
        let (rule, alias) = (self.rule, self.rule.alias());
        let (direction, behind, up_to) = self.order();
        let key: Vec<_> = rule.key.iter().map(|column| &column.name).collect();
        let (start, from) = match &self.from {
            From::At(key) => (format!("{behind}="), key),
            From::After(key) => (behind.to_owned(), key),
        };
        let ordered: Vec<_> = key.iter().map(|column| format!("{column} {direction}")).collect();
        let reversed = if direction == "asc" { "desc" } else { "asc" };
        let last: Vec<_> = key.iter().map(|column| format!("{column} {reversed}")).collect();
        let texts: Vec<_> = key.iter().map(|column| format!("{column}::text")).collect();
        let statement = format!(
            "with walked as materialized (
                 select t.ctid as place, {columns}
                   from {table} as t
                  where {row} {start} {from} and {row} {up_to} {end}
                  order by {ordered}
                  limit {rows}),
             chosen as materialized (
                 select {alias}.ctid as place
                   from {table} as {alias}
                  where {alias}.ctid = any (array(select place from walked))
                    and {eligible} and not {held} and not {blocked}
                    for update of {alias} skip locked)
             select (select count(*) from walked) as walked,
                    (select array[{texts}] from walked order by {last} limit 1) as last,
                    (select coalesce(array_agg(place::text), '{{}}') from chosen) as places",
            columns = list("t.", key.iter().copied()),
            table = rule.place,
            row = format_args!("({})", list("t.", key.iter().copied())),
            from = key_literal(rule, from),
            end = key_literal(rule, &self.last_key),
            ordered = ordered.join(", "),
            eligible = rule.is_eligible(),
            held = references.is_held(rule),
            blocked = references.is_blocked(rule),
            texts = texts.join(", "),
            last = last.join(", "),
        );
        let row = sqlx::query(dynamic(statement)).persistent(false).fetch_one(connection).await?;
        Ok(Window { walked: row.get("walked"), last: row.get("last"), places: row.get("places") })
    }

    /// Locks everything that goes along. `None`: something in it must stay.
    async fn collect_along(
        &self,
        connection: &mut PgConnection,
        references: &References<'_>,
        mut places: Places,
    ) -> Result<Option<Places>, RetentionError> {
        let along = &self.rule.along;
        let mut open: Vec<(TableName, Vec<String>)> = if along.is_empty() {
            Vec::new()
        } else {
            places.clone().into_iter().filter(|(_, rows)| !rows.is_empty()).collect()
        };
        // Each round only goes on from rows that were not known: it ends with the rows.
        while let Some((parent, rows)) = open.pop() {
            let keys = self.catalog.table(&parent).map(|table| table.referenced_by.as_slice());
            for key in keys.unwrap_or_default().iter().filter(|k| along.contains(&k.child)) {
                let Some(child) = self.catalog.table(&key.child) else { continue };
                let known = places.entry(key.child.clone()).or_default();
                let (c, p) = (Ident::new("~child"), Ident::new("~parent"));
                let statement = format!(
                    "select {c}.ctid::text as place, {stays} as stays
                       from {} as {c}
                      where exists (select from {from} as {p}
                                     where {p}.ctid = any ($1::text[]::tid[]) and {on})
                        and not {c}.ctid = any ($2::text[]::tid[])
                        for update of {c}",
                    key.child,
                    from = self.source(&parent),
                    stays = references.must_stay(child, &c, along),
                    on = key_match(&key.child_columns, &c, &key.parent_columns, &p),
                );
                let found: Vec<(String, bool)> = sqlx::query_as(dynamic(statement))
                    .bind(&rows)
                    .bind(known.as_slice())
                    .persistent(false)
                    .fetch_all(&mut *connection)
                    .await?;
                if found.iter().any(|(_, stays)| *stays) {
                    return Ok(None);
                }
                let found: Vec<_> = found.into_iter().map(|(place, _)| place).collect();
                if !found.is_empty() {
                    known.extend(found.iter().cloned());
                    open.push((key.child.clone(), found));
                }
            }
        }
        Ok(Some(places))
    }

    /// Where rows of a table are locked.
    fn source<'b>(&'b self, table: &'b TableName) -> &'b TableName {
        if *table == self.rule.table { &self.rule.place } else { table }
    }

    fn position_of(&self, table: &TableName) -> i32 {
        self.along_positions.get(table).copied().unwrap_or(self.position)
    }

    /// Writes what is about to leave to the store, if the policy says so. `None`: it is too much
    /// for one file, and there are fewer rows that could be tried.
    async fn export(
        &mut self,
        connection: &mut PgConnection,
        references: &References<'_>,
        places: &Places,
    ) -> Result<Option<Files>, RetentionError> {
        self.elsewhere = Duration::ZERO;
        let mut files = Files::new();
        let Some(exporter) = self.exporter else { return Ok(Some(files)) };
        let roots = places.get(&self.rule.table).map_or(0, Vec::len);
        for (name, rows) in places.iter().filter(|(_, rows)| !rows.is_empty()) {
            let Some(table) = self.catalog.table(name) else { continue };
            let number = run::next_export(connection, self.run_id, self.position_of(name)).await?;
            let condition = self.again(references, table);
            let wanted = Wanted { table, source: self.source(name), condition, places: rows };
            match exporter.write(connection, &wanted, number).await? {
                Some(exported) => {
                    self.elsewhere += exported.took;
                    files.insert(name.clone(), (number, exported));
                }
                None if roots > 1 => return Ok(None),
                None => {
                    let message = format!(
                        "one row of `{}` takes along more rows than a file can hold",
                        self.rule.table.plain()
                    );
                    return Err(RetentionError::refused("export_failed", message));
                }
            }
        }
        Ok(Some(files))
    }

    async fn act(
        &self,
        connection: &mut PgConnection,
        references: &References<'_>,
        places: &Places,
    ) -> Result<Vec<Gone>, RetentionError> {
        let going: Vec<_> = places
            .iter()
            .filter(|(_, rows)| !rows.is_empty())
            .filter_map(|(name, rows)| Some((self.catalog.table(name)?, rows)))
            .collect();
        if going.is_empty() {
            return Ok(Vec::new());
        }
        let mut parts = Vec::new();
        let mut counts = Vec::new();
        for (number, (table, _)) in going.iter().enumerate() {
            parts.extend(self.statements(references, table, number));
            counts.push(self.counts(table, number));
        }
        let statement =
            format!("with {} {} order by number", parts.join(", "), counts.join(" union all "));
        let mut query = sqlx::query(dynamic(statement)).persistent(false);
        for (_, rows) in &going {
            query = query.bind(rows.as_slice());
        }
        let rows = query.fetch_all(connection).await.map_err(|error| self.explain(error))?;
        let mut done = Vec::new();
        for (row, (table, _)) in rows.iter().zip(&going) {
            let (gone, kept): (i64, i64) = (row.get("gone"), row.get("kept"));
            let (left, arrived): (i64, i64) = (row.get("left_hash"), row.get("kept_hash"));
            if self.rule.action == Action::Archive && (gone != kept || left != arrived) {
                return Err(RetentionError::Unequal { table: table.name.plain() });
            }
            let keys = (row.get("keys_0"), row.get("keys_1"));
            let chunk = ChunkDone { rows: gone, bytes: row.get("bytes"), keys };
            done.push(Gone { table: table.name.clone(), done: chunk, hash: left });
        }
        Ok(done)
    }

    /// What must still be true of a locked row, over the row as its table's name.
    fn again(&self, references: &References<'_>, table: &Table) -> String {
        if table.name != self.rule.table || self.rule.along.contains(&table.name) {
            return String::new();
        }
        format!(
            " and {} and not {} and not {}",
            self.rule.is_eligible(),
            references.is_held(self.rule),
            references.is_blocked(self.rule)
        )
    }

    fn statements(&self, references: &References<'_>, table: &Table, number: usize) -> Vec<String> {
        let columns: Vec<_> = table.columns.iter().map(|column| &column.name).collect();
        let alias = &table.name.name;
        let again = self.again(references, table);
        let mut parts = vec![format!(
            "gone_{number} as (
                 delete from {} as {alias}
                  where {alias}.ctid = any (${}::text[]::tid[]){again}
                 returning {})",
            self.source(&table.name),
            number + 1,
            list(&format!("{alias}."), columns.iter().copied()),
        )];
        if self.rule.action == Action::Archive {
            let names = list("", columns.iter().copied());
            parts.push(format!(
                "kept_{number} as (
                     insert into {} ({names}, {ARCHIVED_AT}, {ARCHIVE_RUN_ID})
                     select {names}, now(), {} from gone_{number}
                     returning {names})",
                archive_name(&table.name),
                run_literal(self.run_id),
            ));
        }
        parts
    }

    fn counts(&self, table: &Table, number: usize) -> String {
        let key: Vec<_> = table.primary_key.iter().map(|k| format!("g.{k}::text")).collect();
        let key = format!("concat_ws(chr(31), {})", key.join(", "));
        let columns: Vec<_> = table.columns.iter().map(|column| &column.name).collect();
        let kept = match self.rule.action {
            Action::Archive => format!(
                "(select count(*) as rows, coalesce(bit_xor({}), 0) as hash from kept_{number} k)",
                row_hash(table, "k", &columns)
            ),
            Action::Purge => "(select 0::bigint as rows, 0::bigint as hash)".to_owned(),
        };
        let left = match self.rule.action {
            Action::Archive => row_hash(table, "g", &columns),
            Action::Purge => "0::bigint".to_owned(),
        };
        format!(
            "select {number} as number, l.*, k.rows as kept, k.hash as kept_hash
               from (select count(*) as gone, coalesce(bit_xor({left}), 0) as left_hash,
                            coalesce(bit_xor(hashtextextended({key}, 0)), 0) as keys_0,
                            coalesce(bit_xor(hashtextextended({key}, 1)), 0) as keys_1,
                            coalesce(sum(pg_column_size(g.*)), 0)::bigint as bytes
                       from gone_{number} g) l
              cross join {kept} k"
        )
    }

    /// Keys that are in the archive already: the same row cannot be in two places.
    fn explain(&self, error: sqlx::Error) -> RetentionError {
        let code = error.as_database_error().and_then(|e| e.code()).map(|code| code.into_owned());
        if code.as_deref() == Some("23505") && self.rule.action == Action::Archive {
            let message = format!(
                "the archive of `{}` has rows with the same keys already: restore or purge those",
                self.rule.table.plain()
            );
            return RetentionError::refused("archive_conflict", message);
        }
        error.into()
    }
}

/// Whether the rows that left are those in the files, no more and no fewer.
fn are_in_files(gone: &[Gone], files: &Files) -> bool {
    gone.iter().all(|gone| {
        files
            .get(&gone.table)
            .is_some_and(|(_, file)| (file.rows, file.hash) == (gone.done.rows, gone.hash))
    })
}

/// Whether a walk goes from the last key to the first.
pub(super) fn is_backward(catalog: &Catalog, rule: &Rule) -> bool {
    catalog.table(&rule.table).is_some_and(Table::is_self_referencing)
}

fn key_literal(rule: &Rule, key: &[String]) -> String {
    let parts: Vec<_> = rule
        .key
        .iter()
        .zip(key)
        .map(|(column, value)| format!("{}::{}", Literal::new(value.as_str()), column.type_sql))
        .collect();
    format!("({})", parts.join(", "))
}
