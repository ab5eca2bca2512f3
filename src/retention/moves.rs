//! One chunk of an archive or a purge: lock, look again, act, account.
//!
//! 1. A window of the table is walked (see [`super::walk`]). In it the rows that may go are locked
//!    with SKIP LOCKED: a row that somebody works on is left for a later pass.
//! 2. What goes along with them is collected and locked, from parents to children. From here on
//!    nobody can add a reference to any of these rows: it would have to lock what we have locked.
//! 3. One statement with a fresh snapshot deletes them all, each root row only if it is still
//!    eligible, not held and not referenced, and stores them in the archive. One statement, because
//!    foreign keys are checked at its end: circles can go, and nothing is left to cascade to.
//! 4. What left and what arrived are compared by count and checksum; a difference rolls back.
//!
//! Where the policy asks for an export, what is about to leave is written to the store between 2 and
//! 3, and so is the ledger's entry of people who are about to be deleted. The cursor is stored in the
//! same transaction. Where nothing can go along, nothing is written to the store and no foreign key
//! points at the table, nobody can come between 1 and 3: they are one statement.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use tokio::time::Instant;

use super::archive::{ARCHIVE_RUN_ID, ARCHIVED_AT, archive_name, row_hash, run_literal};
use super::catalog::{Catalog, Table};
use super::chunk::{Progress, Step};
use super::error::RetentionError;
use super::export::{Exported, Exporter, Wanted};
use super::guard::Guard;
use super::people_ledger::{PeopleLedger, Told};
use super::reference::References;
use super::rule::{Action, Rule, key_match};
use super::run::{self, ChunkDone};
use super::sql::{Ident, TableName, dynamic, list};
use super::walk::{From, Walk};

/// The row that has arrived in the archive, in a statement.
const KEPT: &str = "\"~kept\"";

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
    /// In which order.
    pub walk: Walk<'a>,
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
    /// Tells the ledger of people before they leave.
    pub ledger: Option<&'a PeopleLedger<'a>>,
    /// Time of the last chunk that the store, the holds and the account took.
    pub elsewhere: Duration,
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
        let began = Instant::now();
        self.guard.for_chunk(connection).await?;
        self.elsewhere = began.elapsed();
        let guard = self.guard.clone();
        let held = |table: &TableName, alias: &Ident| guard.predicate(table, alias);
        let references = References::now(self.catalog, &held);
        if self.is_alone() {
            let (window, gone) = self.move_window(connection, &references, rows).await?;
            let Some(last) = window.last else { return Ok(Progress::End) };
            self.account(connection, &gone, &Files::new(), &[], last).await?;
            return Ok(Progress::More { walked: window.walked });
        }
        let (window, roots) = self.lock_window(connection, &references, rows).await?;
        let Some(last) = window.last else { return Ok(Progress::End) };
        let roots = Places::from([(self.rule.table.clone(), roots)]);
        let places = match self.collect_along(connection, &references, roots).await? {
            Some(places) => places,
            None if window.walked > 1 => return Ok(Progress::TooMany),
            // This one row cannot go: something below it must stay.
            None => Places::new(),
        };
        let Some(files) = self.export(connection, &references, &places).await? else {
            return Ok(Progress::TooMany);
        };
        let told = self.tell_ledger(connection, &places).await?;
        let gone = self.act(connection, &references, &places).await?;
        if self.exporter.is_some() && !are_in_files(&gone, &files) || !are_told(&gone, &told) {
            // A parent has changed between the two: another look tells what may go.
            return Ok(Progress::TooMany);
        }
        self.account(connection, &gone, &files, &told, last).await?;
        Ok(Progress::More { walked: window.walked })
    }

    fn elsewhere(&self) -> Duration {
        self.elsewhere
    }
}

impl Move<'_> {
    /// Whether rows go by themselves: no foreign key points at them, and nothing is to be done
    /// between finding and moving them.
    fn is_alone(&self) -> bool {
        let is_referenced =
            self.catalog.table(&self.rule.table).is_none_or(|t| !t.referenced_by.is_empty());
        let is_person = self.ledger.is_some_and(|ledger| ledger.concerns(&self.rule.table));
        !is_referenced && !is_person && self.rule.along.is_empty() && self.exporter.is_none()
    }

    /// Adds what went to the run's account, and moves the cursor.
    async fn account(
        &mut self,
        connection: &mut PgConnection,
        gone: &[Gone],
        files: &Files,
        told: &[Told],
        last: Vec<String>,
    ) -> Result<(), RetentionError> {
        let began = Instant::now();
        for told in told {
            if let Some(ledger) = self.ledger {
                ledger.note(connection, told).await?;
            }
        }
        for Gone { table, done, hash: _ } in gone {
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
        self.elsewhere += began.elapsed();
        Ok(())
    }

    /// The rows of a window that may go, by their place and locked.
    fn chosen(&self, references: &References<'_>) -> String {
        let (rule, alias) = (self.rule, self.rule.alias());
        format!(
            "select {alias}.ctid as place
               from {table} as {alias}
              where {alias}.ctid = any (array(select place from walked))
                and {eligible} and not {held} and not {blocked}
                for update of {alias} skip locked",
            table = rule.place,
            eligible = rule.is_eligible(),
            held = references.is_held(rule),
            blocked = references.is_blocked(rule),
        )
    }

    async fn lock_window(
        &self,
        connection: &mut PgConnection,
        references: &References<'_>,
        rows: i64,
    ) -> Result<(Window, Vec<String>), RetentionError> {
        let statement = format!(
            "with walked as materialized ({window}),
             chosen as materialized ({chosen})
             select (select count(*) from walked) as walked, ({last}) as last,
                    (select coalesce(array_agg(place::text), '{{}}') from chosen) as places",
            window = self.walk.window(&self.from),
            chosen = self.chosen(references),
            last = self.walk.last_of_window(),
        );
        let row = self.walked(connection, statement, rows).await?;
        let window = Window { walked: row.get("walked"), last: row.get("last") };
        Ok((window, row.get("places")))
    }

    /// All at once, for rows that go by themselves.
    async fn move_window(
        &self,
        connection: &mut PgConnection,
        references: &References<'_>,
        rows: i64,
    ) -> Result<(Window, Vec<Gone>), RetentionError> {
        let table = self.catalog.table(&self.rule.table);
        let Some(table) = table else { return Ok((Window { walked: 0, last: None }, Vec::new())) };
        let chosen = format!("array({})", self.chosen(references));
        let statement = format!(
            "with walked as materialized ({window}), {moved}
             select w.*, c.*
               from (select (select count(*) from walked) as walked, ({last}) as last) w
              cross join ({counts}) c",
            window = self.walk.window(&self.from),
            moved = self.statements(table, 0, &chosen, "").join(", "),
            last = self.walk.last_of_window(),
            counts = self.counts(table, 0),
        );
        let row = self.walked(connection, statement, rows).await?;
        let window = Window { walked: row.get("walked"), last: row.get("last") };
        Ok((window, vec![self.gone(&row, table)?]))
    }

    async fn walked(
        &self,
        connection: &mut PgConnection,
        statement: String,
        rows: i64,
    ) -> Result<PgRow, RetentionError> {
        let query = sqlx::query(dynamic(statement))
            .bind(rows)
            .bind(self.last_key.as_slice())
            .bind(self.from.row());
        query.fetch_one(connection).await.map_err(|error| self.explain(error))
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

    /// Tells the ledger of the people among the rows that are about to leave.
    async fn tell_ledger(
        &mut self,
        connection: &mut PgConnection,
        places: &Places,
    ) -> Result<Vec<Told>, RetentionError> {
        let mut told = Vec::new();
        let Some(ledger) = self.ledger else { return Ok(told) };
        for (name, rows) in places {
            let some = ledger.tell(connection, name, self.source(name), rows).await?;
            self.elsewhere += some.as_ref().map_or(Duration::ZERO, |some| some.took);
            told.extend(some);
        }
        Ok(told)
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
            let places = format!("${}::text[]::tid[]", number + 1);
            let again = self.again(references, table);
            parts.extend(self.statements(table, number, &places, &again));
            counts.push(self.counts(table, number));
        }
        let statement =
            format!("with {} {} order by number", parts.join(", "), counts.join(" union all "));
        let mut query = sqlx::query(dynamic(statement));
        for (_, rows) in &going {
            query = query.bind(rows.as_slice());
        }
        let rows = query.fetch_all(connection).await.map_err(|error| self.explain(error))?;
        rows.iter().zip(&going).map(|(row, (table, _))| self.gone(row, table)).collect()
    }

    /// What left a table, which must be what arrived.
    fn gone(&self, row: &PgRow, table: &Table) -> Result<Gone, RetentionError> {
        let (gone, kept): (i64, i64) = (row.get("gone"), row.get("kept"));
        let (left, arrived): (i64, i64) = (row.get("left_hash"), row.get("kept_hash"));
        if self.rule.action == Action::Archive && (gone != kept || left != arrived) {
            return Err(RetentionError::Unequal { table: table.name.plain() });
        }
        let keys = (row.get("keys_0"), row.get("keys_1"));
        let done = ChunkDone { rows: gone, bytes: row.get("bytes"), keys };
        Ok(Gone { table: table.name.clone(), done, hash: left })
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

    /// Deletes the rows at these places and, for an archive, keeps them there.
    fn statements(&self, table: &Table, number: usize, places: &str, again: &str) -> Vec<String> {
        let columns: Vec<_> = table.columns.iter().map(|column| &column.name).collect();
        let alias = &table.name.name;
        let mut parts = vec![format!(
            "gone_{number} as (
                 delete from {} as {alias}
                  where {alias}.ctid = any ({places}){again}
                 returning {})",
            self.source(&table.name),
            list(&format!("{alias}."), columns.iter().copied()),
        )];
        if self.rule.action == Action::Archive {
            let names = list("", columns.iter().copied());
            parts.push(format!(
                "kept_{number} as (
                     insert into {} as {KEPT} ({names}, {ARCHIVED_AT}, {ARCHIVE_RUN_ID})
                     select {names}, now(), {} from gone_{number}
                     returning {} as hash)",
                archive_name(&table.name),
                run_literal(self.run_id),
                row_hash(table, KEPT, &columns),
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
                "(select count(*) as rows, coalesce(bit_xor(hash), 0) as hash from kept_{number})"
            ),
            Action::Purge | Action::Anonymize => {
                "(select 0::bigint as rows, 0::bigint as hash)".to_owned()
            }
        };
        let left = match self.rule.action {
            Action::Archive => row_hash(table, "g", &columns),
            Action::Purge | Action::Anonymize => "0::bigint".to_owned(),
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

/// Whether as many people left as the ledger was told of.
fn are_told(gone: &[Gone], told: &[Told]) -> bool {
    told.iter().all(|told| {
        gone.iter().any(|gone| gone.table == told.table && gone.done.rows == told.people)
    })
}

/// Whether the rows that left are those in the files, no more and no fewer.
fn are_in_files(gone: &[Gone], files: &Files) -> bool {
    gone.iter().all(|gone| {
        files
            .get(&gone.table)
            .is_some_and(|(_, file)| (file.rows, file.hash) == (gone.done.rows, gone.hash))
    })
}
