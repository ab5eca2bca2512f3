//! The benchmark from start to end: tables, alternating runs, table of results, `bench.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Write, stderr, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

use crate::SessionArgs;
use crate::contender::{Contender, Place};
use crate::data;
use crate::ground::Ground;
use crate::outcome::{Run, measure, median};
use crate::s3::Server;
use crate::{backup, lifecycle, pages, queue};

/// What the worker's memory may grow by, in MiB.
const PEAK_LIMIT_MIB: f64 = 64.0;

/// Runs of what works on the whole of a large database.
const LONG_RUNS: usize = 3;

/// What is measured through the service, on a database of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Archive,
    Anonymize,
    Purge,
    Backup,
    Queue,
    Pages,
}

impl Operation {
    const ALL: [Self; 6] =
        [Self::Archive, Self::Anonymize, Self::Purge, Self::Backup, Self::Queue, Self::Pages];

    const fn name(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Anonymize => "anonymize",
            Self::Purge => "purge",
            Self::Backup => "backup",
            Self::Queue => "queue",
            Self::Pages => "pages",
        }
    }
}

/// What one contender took for one number of rows.
#[derive(Debug, Default)]
struct Measured {
    runs: Vec<Run>,
    size_bytes: Option<u64>,
}

impl Measured {
    fn wall_s(&self) -> Option<f64> {
        median(self.runs.iter().map(|run| run.wall_s))
    }

    fn cpu_s(&self) -> Option<f64> {
        median(self.runs.iter().filter_map(|run| run.usage?.cpu_s))
    }

    fn peak_mib(&self) -> Option<f64> {
        median(self.runs.iter().filter_map(|run| run.usage?.peak_mib))
    }
}

/// By rows and the contender's place in the table.
type Results = BTreeMap<(u64, usize), Measured>;

/// Runs the benchmark.
pub fn run(arguments: &SessionArgs) -> anyhow::Result<()> {
    let (runs, rows, small_rows) = match arguments.quick {
        true => (1, arguments.rows / 10, arguments.small_rows / 10),
        false => (arguments.runs, arguments.rows, arguments.small_rows),
    };
    let folder = std::path::absolute(arguments.target.join("bench"))?;
    std::fs::create_dir_all(&folder)?;
    let place = Place {
        database_url: arguments.database_url.clone().context("DATABASE_URL is not set")?,
        s3: Server::start(&folder.join("s3"))?,
        folder,
        python: arguments.python.clone(),
    };
    let chosen = chosen(arguments)?;
    let began = Instant::now();
    say(&format!("load of the machine before: {}", load()))?;
    let mut results = Results::new();
    if !chosen.is_empty() {
        say(&format!("making tables of {rows} rows"))?;
        measure(place.psql(&data::tables(rows)))?;
        for statement in data::SETTLE {
            measure(place.psql(statement))?;
        }
    }
    for size in [rows, small_rows] {
        for round in 1..=runs {
            for &(index, contender) in &chosen {
                if contender.is_slow() && size != small_rows {
                    continue;
                }
                say(&format!("{size} rows, run {round} of {runs}: {}", contender.name()))?;
                let (run, size_bytes) = place.run(contender, size)?;
                let measured = results.entry((size, index)).or_default();
                measured.runs.push(run);
                measured.size_bytes = size_bytes;
            }
        }
        check_bytes(&place, &chosen)?;
    }
    print_table(&results)?;
    let mut report = report(&results, rows, small_rows);
    let path = arguments.target.join("bench.json");
    save(&path, &report)?;
    operate(arguments, &place, runs.min(LONG_RUNS), &mut report, &path)?;
    print_report(&report)?;
    say(&format!("load of the machine after: {}", load()))?;
    say(&format!("wrote {} after {:.0} s", path.display(), began.elapsed().as_secs_f64()))
}

/// Writes what is known so far: what fails later takes nothing of it away.
fn save(path: &Path, report: &Map<String, Value>) -> anyhow::Result<()> {
    Ok(std::fs::write(path, serde_json::to_vec_pretty(report)?)?)
}

fn chosen(arguments: &SessionArgs) -> anyhow::Result<Vec<(usize, Contender)>> {
    let contenders = Contender::ALL.iter().map(|contender| contender.name());
    let names: Vec<_> = contenders.chain(Operation::ALL.map(Operation::name)).collect();
    if let Some(unknown) = arguments.only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("no contender `{unknown}`: {}", names.join(", "));
    }
    Ok(Contender::ALL
        .into_iter()
        .enumerate()
        .filter(|(_, contender)| !contender.is_python() || arguments.python.is_some())
        .filter(|(_, contender)| {
            arguments.only.is_empty() || arguments.only.iter().any(|only| only == contender.name())
        })
        .collect())
}

/// Measures the chosen operations.
fn operate(
    arguments: &SessionArgs,
    place: &Place,
    runs: usize,
    report: &mut Map<String, Value>,
    path: &Path,
) -> anyhow::Result<()> {
    let is_chosen = |operation: &Operation| {
        arguments.only.is_empty() || arguments.only.iter().any(|only| only == operation.name())
    };
    let chosen: Vec<_> = Operation::ALL.into_iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        return Ok(());
    }
    say("making accounts and audit rows")?;
    let ground = Ground::prepare(&place.database_url, place.folder.join("ground"))?;
    for operation in chosen {
        match operation {
            Operation::Archive => lifecycle::archive(&ground, runs, report)?,
            Operation::Anonymize => lifecycle::anonymize(&ground, runs, report)?,
            Operation::Purge => lifecycle::purge(&ground, runs, report)?,
            Operation::Backup => backup::run(&ground, runs, report)?,
            Operation::Queue => queue::run(&ground, report)?,
            Operation::Pages => pages::run(&ground, report)?,
        }
        save(path, report)?;
    }
    Ok(())
}

/// Our CSV must be psql's, byte for byte: otherwise the comparison is worth nothing.
fn check_bytes(place: &Place, chosen: &[(usize, Contender)]) -> anyhow::Result<()> {
    let ran = |contender| chosen.iter().any(|&(_, other)| other == contender);
    if !ran(Contender::PsqlCopy) {
        return Ok(());
    }
    let theirs = place.file(Contender::PsqlCopy);
    for contender in [Contender::Csv, Contender::CsvS3].into_iter().filter(|&ours| ran(ours)) {
        let equal = are_equal(&place.file(contender), &theirs)?;
        ensure!(equal, "the file of {} differs from psql's", contender.name());
    }
    if ran(Contender::CsvSplit) {
        let ours = digest_of_lines(&place.file(Contender::CsvSplit))?;
        ensure!(ours == digest_of_lines(&theirs)?, "the split file has other lines than psql's");
    }
    Ok(())
}

/// How many lines a file has, and a sum over them that does not depend on their order: the query
/// has none, and a range may be planned otherwise than the whole.
fn digest_of_lines(path: &Path) -> anyhow::Result<(u64, u64)> {
    let mut file = BufReader::new(File::open(path)?);
    let (mut line, mut count, mut sum) = (Vec::new(), 0, 0_u64);
    while file.read_until(b'\n', &mut line)? > 0 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&line);
        sum = sum.wrapping_add(hasher.finish());
        count += 1;
        line.clear();
    }
    Ok((count, sum))
}

fn are_equal(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let mut files = [BufReader::new(File::open(one)?), BufReader::new(File::open(other)?)];
    loop {
        let [one, other] = &mut files;
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if length == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left[..length] != right[..length] {
            return Ok(false);
        }
        one.consume(length);
        other.consume(length);
    }
}

fn print_table(results: &Results) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(
        out,
        "\n{:>9}  {:24} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>4}",
        "rows", "", "median s", "least s", "most s", "our cpu", "peak MiB", "file MB", "runs"
    )?;
    for (&(rows, index), measured) in results {
        let walls = measured.runs.iter().map(|run| run.wall_s);
        writeln!(
            out,
            "{rows:>9}  {:24} {:>8} {:>8.3} {:>8.3} {:>8} {:>9} {:>9} {:>4}",
            Contender::ALL[index].name(),
            shown(measured.wall_s(), 3),
            walls.clone().fold(f64::INFINITY, f64::min),
            walls.fold(0.0, f64::max),
            shown(measured.cpu_s(), 2),
            shown(measured.peak_mib(), 1),
            shown(measured.size_bytes.map(|bytes| bytes as f64 / 1e6), 1),
            measured.runs.len(),
        )?;
    }
    Ok(())
}

fn shown(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
}

/// The comparisons: name → ours, theirs, ratio (above 1: ours is faster or smaller), runs, unit.
fn report(results: &Results, rows: u64, small_rows: u64) -> Map<String, Value> {
    use Contender::{
        Csv, CsvS3, CsvSplit, Ndjson, Parquet, PsqlCopy, PythonOpenpyxl, PythonXlsxwriter,
        RustXlsxwriter, RustXlsxwriterLevel3, ServerCopyBinary, ServerCopyText, Xlsx, XlsxS3,
    };
    let mut report = Map::new();
    for (name, rows, ours, theirs) in [
        ("csv_vs_psql_copy", rows, Csv, PsqlCopy),
        ("csv_s3_vs_psql_copy", rows, CsvS3, PsqlCopy),
        ("csv_split_vs_psql_copy", rows, CsvSplit, PsqlCopy),
        ("parquet_vs_psql_copy", rows, Parquet, PsqlCopy),
        ("ndjson_vs_psql_copy", rows, Ndjson, PsqlCopy),
        ("csv_vs_server_copy_text", rows, Csv, ServerCopyText),
        ("csv_vs_server_copy_binary", rows, Csv, ServerCopyBinary),
        ("xlsx_vs_our_csv", rows, Xlsx, Csv),
        ("xlsx_s3_vs_our_csv", rows, XlsxS3, Csv),
        ("xlsx_vs_rust_xlsxwriter", rows, Xlsx, RustXlsxwriter),
        ("xlsx_vs_rust_xlsxwriter_level_3", rows, Xlsx, RustXlsxwriterLevel3),
        ("xlsx_vs_python_xlsxwriter", small_rows, Xlsx, PythonXlsxwriter),
        ("xlsx_vs_python_openpyxl", small_rows, Xlsx, PythonOpenpyxl),
        ("csv_vs_psql_copy_small", small_rows, Csv, PsqlCopy),
        ("xlsx_vs_rust_xlsxwriter_small", small_rows, Xlsx, RustXlsxwriter),
    ] {
        let (Some(ours), Some(theirs)) = (of(results, rows, ours), of(results, rows, theirs))
        else {
            continue;
        };
        add(&mut report, name, rows, ours.runs.len(), "s", ours.wall_s(), theirs.wall_s());
    }
    if let (Some(ours), Some(theirs)) =
        (of(results, rows, Xlsx), of(results, rows, RustXlsxwriterLevel3))
    {
        let mb = |measured: &Measured| measured.size_bytes.map(|bytes| bytes as f64 / 1e6);
        add(&mut report, "xlsx_file_size", rows, ours.runs.len(), "MB", mb(ours), mb(theirs));
    }
    for (name, rows, ours) in [
        ("csv_peak_mib", rows, Csv),
        ("csv_s3_peak_mib", rows, CsvS3),
        ("csv_split_peak_mib", rows, CsvSplit),
        ("xlsx_peak_mib", rows, Xlsx),
        ("csv_peak_mib_small", small_rows, Csv),
        ("xlsx_peak_mib_small", small_rows, Xlsx),
    ] {
        let (Some(ours), Some(idle)) =
            (of(results, rows, ours), of(results, rows, Contender::Idle))
        else {
            continue;
        };
        let above = ours.peak_mib().zip(idle.peak_mib()).map(|(peak, idle)| peak - idle);
        add(&mut report, name, rows, ours.runs.len(), "MiB", above, Some(PEAK_LIMIT_MIB));
    }
    report
}

fn of(results: &Results, rows: u64, contender: Contender) -> Option<&Measured> {
    let index = Contender::ALL.iter().position(|&other| other == contender)?;
    results.get(&(rows, index))
}

/// Adds a comparison of what is better when it is less.
pub fn add(
    report: &mut Map<String, Value>,
    name: &str,
    rows: u64,
    runs: usize,
    unit: &str,
    ours: Option<f64>,
    theirs: Option<f64>,
) {
    if let (Some(ours), Some(theirs)) = (ours, theirs) {
        let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
        let entry = json!({
            "ours": rounded(ours), "theirs": rounded(theirs), "ratio": rounded(theirs / ours),
            "runs": runs, "unit": unit, "rows": rows,
        });
        report.insert(name.to_owned(), entry);
    }
}

fn print_report(report: &Map<String, Value>) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "\n{:32} {:>9} {:>9} {:>9} {:>7}  unit", "", "rows", "ours", "theirs", "ratio")?;
    for (name, entry) in report {
        let number = |key: &str| entry[key].as_f64().unwrap_or_default();
        let unit = entry["unit"].as_str().unwrap_or_default();
        writeln!(
            out,
            "{name:32} {:>9} {:>9.3} {:>9.3} {:>7.2}  {unit}",
            entry["rows"].as_u64().unwrap_or_default(),
            number("ours"),
            number("theirs"),
            number("ratio")
        )?;
    }
    Ok(())
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").map_or_else(
        |_| "unknown".to_owned(),
        |text| text.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
    )
}

/// A line about how far it is, on stderr because stdout is for the results.
pub fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(stderr(), "bench: {line}")?)
}
