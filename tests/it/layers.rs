//! The architecture's invariants, which are mostly absences: who may know whom.
//!
//! A new edge is an edit of a table below, and so a visible decision (see ARCHITECTURE.md).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of the crate a module may use.
const MODULES: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "api",
            "backup",
            "config",
            "console",
            "db",
            "policy",
            "postgres",
            "report",
            "retention",
            "scheduler",
            "schema",
            "service",
            "store",
            "telemetry",
            "worker",
            "writer",
        ],
    ),
    (
        "api",
        &[
            "backup",
            "config",
            "db",
            "policy",
            "report",
            "retention",
            "schema",
            "service",
            "store",
            "writer",
        ],
    ),
    // Pages share the API's front: session, limits, trace, problems and their status codes.
    ("console", &["api", "db", "report", "retention", "service", "writer"]),
    (
        "service",
        &[
            "backup",
            "calendar",
            "config",
            "db",
            "notify",
            "policy",
            "postgres",
            "queue",
            "report",
            "retention",
            "schema",
            "store",
            "writer",
        ],
    ),
    ("worker", &["db", "notify", "queue", "report", "retention", "service", "store"]),
    ("scheduler", &["calendar", "db", "queue"]),
    ("queue", &["db"]),
    ("notify", &["config"]),
    ("schema", &["db", "queue"]),
    ("backup", &["config", "postgres", "store"]),
    ("report", &["config", "store", "writer"]),
    ("retention", &["db", "policy", "store", "writer"]),
    ("writer", &[]),
    ("calendar", &[]),
    ("store", &["config"]),
    ("db", &["calendar", "config"]),
    ("policy", &[]),
    ("postgres", &[]),
    ("telemetry", &["config"]),
    ("config", &[]),
];

/// Crates with one owner, or a few, and who that is.
const CRATES: &[(&str, &[&str])] = &[
    ("axum", &["api", "console"]),
    ("minijinja", &["console"]),
    ("djangohashers", &["service"]),
    ("base64", &["api", "notify"]),
    ("hyper", &["api"]),
    ("hyper_util", &["api"]),
    ("tower", &["api"]),
    ("apalis", &["worker"]),
    ("apalis_postgres", &["queue", "worker"]),
    ("object_store", &["store"]),
    ("quick_xml", &["store"]),
    ("rust_xlsxwriter", &["writer"]),
    ("zip", &["writer"]),
    ("parquet", &["writer"]),
    ("flate2", &["backup", "writer"]),
    ("zstd", &["backup", "writer"]),
    ("age", &["backup"]),
    ("tokio_cron_scheduler", &["scheduler"]),
    ("croner", &["calendar", "policy"]),
    ("lettre", &["notify"]),
    ("ring", &["notify", "retention"]),
    ("aho_corasick", &["retention"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("reqwest", &["cli", "notify", "telemetry"]),
    ("rustls", &["cli"]),
    ("config", &["config"]),
    (
        "sqlx",
        &[
            "backup",
            "cli",
            "db",
            "postgres",
            "queue",
            "report",
            "retention",
            "scheduler",
            "schema",
            "service",
            "worker",
        ],
    ),
];

/// Words of the application that Registrar ships with. The engine works for any other.
const APPLICATION_NOUNS: &[&str] = &[
    "academic",
    "course",
    "enrollment",
    "enrolment",
    "faculty",
    "faculties",
    "institution",
    "innovation",
    "milestone",
    "programme",
    "student",
];

#[test]
fn modules_use_only_what_the_table_allows() {
    let mut faults = Vec::new();
    for file in sources() {
        let Some(allowed) = MODULES.iter().find(|(name, _)| *name == file.module) else {
            faults.push(format!("{}: module `{}` is not in the table", file.name, file.module));
            continue;
        };
        for used in words_after(&file.code, "crate::") {
            let known = MODULES.iter().any(|(name, _)| *name == used);
            if known && used != file.module && !allowed.1.contains(&used.as_str()) {
                faults.push(format!("{}: `{}` may not use `{used}`", file.name, file.module));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_outside_crate_stays_with_its_owner() {
    let mut faults = Vec::new();
    for file in sources() {
        for (name, owners) in CRATES {
            if !owners.contains(&file.module.as_str()) && uses_crate(&file.code, name) {
                faults.push(format!("{}: `{name}` belongs to {owners:?}", file.name));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_engine_knows_no_noun_of_the_application() {
    let mut faults = Vec::new();
    for file in sources().filter(|file| !file.name.starts_with("cli/demo")) {
        let code = file.code.to_lowercase();
        for noun in APPLICATION_NOUNS.iter().filter(|noun| code.contains(**noun)) {
            faults.push(format!("{} speaks of `{noun}`", file.name));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Machines disagree about the time, and their clocks step: what is due, expired or too old is told
/// by the database's `now()`, and durations by a clock that only goes forward. (The signer of S3
/// requests reads the machine's clock, inside object_store: S3 refuses a clock that is far off. And
/// `doctor` compares it with the others, and spans are stamped where they happen.)
#[test]
fn no_decision_is_made_by_the_machines_clock() {
    let mut faults = Vec::new();
    let tellers = ["service/doctor.rs", "telemetry/otlp.rs"];
    for file in sources().filter(|file| !tellers.contains(&file.name.as_str())) {
        for clock in ["SystemTime", "Utc::now", "Local::now"] {
            if file.code.contains(clock) {
                faults.push(format!("{} reads `{clock}`", file.name));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_tables_name_nothing_that_is_gone() {
    let modules: BTreeSet<_> = sources().map(|file| file.module).collect();
    for (name, _) in MODULES {
        assert!(modules.contains(*name), "`{name}` is in the table and not in src/");
    }
    for (name, owners) in CRATES {
        for owner in *owners {
            let used = sources().any(|file| file.module == *owner && uses_crate(&file.code, name));
            assert!(used, "`{owner}` does not use `{name}`: take it off the table");
        }
    }
}

struct Source {
    /// Below `src/`.
    name: String,
    /// The first folder, or the file's own name.
    module: String,
    /// Without comments and without the tests at the end.
    code: String,
}

fn sources() -> impl Iterator<Item = Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.into_iter().filter_map(move |path| {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let module = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if module == "lib" || module == "main" || name.ends_with("tests.rs") {
            return None;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code = code.lines().map(without_comment).collect::<Vec<_>>().join("\n");
        Some(Source { name, module, code })
    })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn without_comment(line: &str) -> &str {
    let trimmed = line.trim_start();
    if trimmed.starts_with("//") { "" } else { line }
}

/// The word after each occurrence of `prefix`, and each first word of `prefix{a, b::c}`.
fn words_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let list = match rest.strip_prefix('{') {
            Some(list) => list.split("};").next().unwrap_or_default(),
            None => rest,
        };
        let whole = rest.starts_with('{');
        for (index, item) in list.split(',').enumerate() {
            if index > 0 && !whole {
                break;
            }
            let item = item.trim_start();
            let end = item.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(item.len());
            words.insert(item[..end].to_owned());
        }
    }
    words
}

/// Whether the code says `name::` where no other word ends.
fn uses_crate(code: &str, name: &str) -> bool {
    let needle = format!("{name}::");
    code.match_indices(&needle).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}
