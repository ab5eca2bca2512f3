//! Every path that Registrar writes, in one place.

use chrono::{DateTime, Datelike, Utc};
use object_store::path::Path;

/// An object in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectKey<'a> {
    /// The file of an attempt.
    Result {
        /// Which attempt.
        attempt: AttemptKey<'a>,
        /// Extension of the file, without the first dot.
        extension: &'a str,
    },
    /// What the file holds and how it was made.
    Manifest(AttemptKey<'a>),
    /// An entry of the erasure ledger.
    Ledger(LedgerKey<'a>),
    /// An entry of the erasure ledger about everybody whom one chunk of a run deletes.
    PurgeLedger {
        /// When it was written: sets the year.
        begun_at: DateTime<Utc>,
        /// SHA-256 of its bytes, in hexadecimal: nobody writes over the entry of another.
        sha256: &'a str,
    },
    /// The copy of a hold.
    Hold(HoldKey<'a>),
    /// The copy of a certificate.
    Certificate {
        /// Its place in the chain.
        number: i64,
        /// SHA-256 of its document, in hexadecimal: two certificates never share an object.
        sha256: &'a str,
    },
    /// The end of the chain of certificates.
    CertificateHead,
    /// A file of a backup.
    Backup {
        /// The backup's number.
        id: &'a str,
        /// Which of its files.
        file: BackupFile<'a>,
    },
    /// Rows that a lifecycle run wrote out before they left their table.
    ArchiveFile {
        /// The run.
        run: i64,
        /// The table.
        table: &'a str,
        /// The file's place among the table's.
        number: i32,
        /// SHA-256 of the file, in hexadecimal: two files never share an object.
        sha256: &'a str,
    },
    /// The copy of a result that a schedule asked for.
    Copy {
        /// The folder that it asked for.
        folder: &'a str,
        /// The execution.
        execution: i64,
        /// Name of the file.
        file_name: &'a str,
    },
    /// What is known of a backup that pgBackRest keeps in its own repository.
    Physical {
        /// pgBackRest's name of the cluster.
        stanza: &'a str,
        /// pgBackRest's name of the backup.
        label: &'a str,
        /// Which of the files.
        file: PhysicalFile<'a>,
    },
    /// What `readyz` and `doctor` write to see that writing works.
    Probe(&'a str),
}

/// Folders of the store that hold Registrar's own objects: nothing that an application's row names
/// is ever looked for there.
const OWN_FOLDERS: [&str; 8] = [
    "archive",
    "backups",
    "certificates",
    "deliveries",
    "ledger",
    "pgbackrest",
    "probes",
    "results",
];

/// The path of an object that an application's row names: none where the text is no path, or one
/// of Registrar's own.
pub fn foreign_object(text: &str) -> Option<Path> {
    let path = Path::parse(text).ok()?;
    let first = path.parts().next()?;
    (!OWN_FOLDERS.contains(&first.as_ref())).then_some(path)
}

/// The folder of the erasure ledger.
pub const LEDGER_FOLDER: &str = "ledger/erasures";
/// The folder of the copies of holds.
pub const HOLD_FOLDER: &str = "ledger/holds";
/// The folder of the certificates.
pub const CERTIFICATE_FOLDER: &str = "certificates";

/// An entry of the ledger: never written twice with another content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerKey<'a> {
    /// What the ledger calls the person.
    pub token: &'a str,
    /// When the act began: sets the year too.
    pub begun_at: DateTime<Utc>,
    /// `begun` or `completed`.
    pub step: &'a str,
}

/// A moment of a hold: never written twice with another content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldKey<'a> {
    /// When it was placed.
    pub placed_at: DateTime<Utc>,
    /// Its number, which a restored database may give again: the time tells them apart.
    pub id: i64,
    /// `placed` or `released`.
    pub step: &'a str,
    /// Extension of the file, without the first dot.
    pub extension: &'a str,
}

/// The files of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupFile<'a> {
    /// Written first: who makes it.
    Started,
    /// The dump, by the name that its manifest gives.
    Dump(&'a str),
    /// Written last: without it there is no backup.
    Manifest,
    /// The outcome of a verification, by its time.
    Verification(&'a str),
    /// Why it must not be deleted.
    Pin(&'a str),
    /// Who reads it just now.
    Use(&'a str),
    /// It is being deleted: written before the first of its files goes, deleted last.
    Deleting,
}

/// What is kept of a backup of pgBackRest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhysicalFile<'a> {
    /// The state that a verification compares with.
    Checkpoint,
    /// The outcome of a verification, by its time.
    Verification(&'a str),
}

/// The folder of what is kept of the backups of a stanza.
pub fn physical_folder(stanza: &str) -> String {
    format!("pgbackrest/{stanza}")
}

/// The folder of all backups.
pub const BACKUPS: &str = "backups";

/// The folder of one backup.
pub fn backup_folder(id: &str) -> String {
    format!("{BACKUPS}/{id}")
}

impl BackupFile<'_> {
    fn name(self) -> String {
        match self {
            Self::Started => "started.json".to_owned(),
            Self::Dump(name) => name.to_owned(),
            Self::Manifest => "manifest.json".to_owned(),
            Self::Verification(at) => format!("verifications/{at}.json"),
            Self::Pin(name) => format!("pins/{name}.json"),
            Self::Use(who) => format!("uses/{who}.json"),
            Self::Deleting => "deleting.json".to_owned(),
        }
    }
}

/// The folder of an attempt: two attempts can never write the same object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptKey<'a> {
    /// When the execution was submitted: sets year and month.
    pub created_at: DateTime<Utc>,
    /// The execution.
    pub execution: i64,
    /// The attempt.
    pub attempt: i32,
    /// The report's slug, which names the file.
    pub slug: &'a str,
}

/// The folder of the copy of an execution's result, below the one that its schedule asked for.
pub fn copy_folder(folder: &str, execution: i64) -> String {
    format!("{COPIES}/{folder}/{execution}")
}

/// The folder of all copies.
pub const COPIES: &str = "deliveries";

/// The execution whose result an object below [`COPIES`] copies; `None` for a name that is not ours.
pub fn copied_execution(path: &Path) -> Option<i64> {
    let parts: Vec<_> = path.parts().collect();
    let [copies, _, .., execution, _file] = parts.as_slice() else { return None };
    (copies.as_ref() == COPIES).then(|| execution.as_ref().parse().ok())?
}

/// The folder of every result.
pub const RESULTS: &str = "results";

/// The execution and attempt that an object below [`RESULTS`] belongs to; `None` for a name that
/// is not ours.
pub fn attempt_of(path: &Path) -> Option<(i64, i32)> {
    let parts: Vec<_> = path.parts().collect();
    let [results, year, month, execution, attempt, _file] = parts.as_slice() else { return None };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_ours = results.as_ref() == RESULTS
        && [year, month, execution, attempt].iter().all(|part| is_number(part.as_ref()));
    if !is_ours {
        return None;
    }
    Some((execution.as_ref().parse().ok()?, attempt.as_ref().parse().ok()?))
}

/// The folder of one attempt of an execution.
pub fn attempt_folder(created_at: DateTime<Utc>, execution: i64, attempt: i32) -> String {
    format!("{}/{attempt}", execution_folder(created_at, execution))
}

impl AttemptKey<'_> {
    fn folder(&self) -> String {
        attempt_folder(self.created_at, self.execution, self.attempt)
    }
}

/// The folder of all attempts of an execution.
pub fn execution_folder(created_at: DateTime<Utc>, execution: i64) -> String {
    format!("results/{:04}/{:02}/{execution}", created_at.year(), created_at.month())
}

impl ObjectKey<'_> {
    /// The folder of probes.
    pub const PROBES: &'static str = "probes";

    /// The folder of a run's [`ObjectKey::ArchiveFile`]s.
    pub fn archive_folder(run: i64) -> String {
        format!("archive/{run:010}")
    }

    /// Where the object is.
    pub fn path(&self) -> Path {
        Path::from(match self {
            Self::Result { attempt, extension } => {
                format!("{}/{}.{extension}", attempt.folder(), attempt.slug)
            }
            Self::Manifest(attempt) => {
                format!("{}/{}.manifest.json", attempt.folder(), attempt.slug)
            }
            Self::Ledger(LedgerKey { token, begun_at, step }) => format!(
                "{LEDGER_FOLDER}/{:04}/{token}/{}.{step}.json",
                begun_at.year(),
                begun_at.format("%Y%m%dT%H%M%S%6fZ"),
            ),
            Self::PurgeLedger { begun_at, sha256 } => {
                format!("{LEDGER_FOLDER}/{:04}/purges/{sha256}.json", begun_at.year())
            }
            Self::Hold(HoldKey { placed_at, id, step, extension }) => format!(
                "{HOLD_FOLDER}/{}-{id}.{step}.{extension}",
                placed_at.format("%Y%m%dT%H%M%S%6fZ"),
            ),
            Self::Certificate { number, sha256 } => {
                format!("{CERTIFICATE_FOLDER}/{number:010}-{sha256}.jsonl")
            }
            Self::CertificateHead => format!("{CERTIFICATE_FOLDER}/head.json"),
            Self::ArchiveFile { run, table, number, sha256 } => {
                format!("{}/{table}/{number:06}-{sha256}.parquet", Self::archive_folder(*run))
            }
            Self::Copy { folder, execution, file_name } => {
                format!("{}/{file_name}", copy_folder(folder, *execution))
            }
            Self::Physical { stanza, label, file } => {
                let folder = physical_folder(stanza);
                match file {
                    PhysicalFile::Checkpoint => format!("{folder}/{label}/checkpoint.json"),
                    PhysicalFile::Verification(at) => {
                        format!("{folder}/{label}/verifications/{at}.json")
                    }
                }
            }
            Self::Probe(name) => format!("{}/{name}", Self::PROBES),
            Self::Backup { id, file } => format!("{}/{}", backup_folder(id), file.name()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_applications_row_names_no_object_of_ours() {
        let named = |text: &str| foreign_object(text).map(|path| path.to_string());
        assert_eq!(named("avatars/7.png").as_deref(), Some("avatars/7.png"));
        for text in ["", "/", "ledger/erasures/x", "/results/1", "certificates", "a//b", "../x"] {
            assert_eq!(named(text), None, "{text}");
        }
    }

    #[test]
    fn paths_are_as_the_documentation_says() {
        let created_at = DateTime::from_timestamp(1_772_323_200, 0).expect("a time");
        let attempt = AttemptKey { created_at, execution: 71, attempt: 2, slug: "gpa-ranking" };
        assert_eq!(
            ObjectKey::Result { attempt, extension: "csv" }.path().to_string(),
            "results/2026/03/71/2/gpa-ranking.csv"
        );
        let path = ObjectKey::Manifest(attempt).path();
        assert_eq!(attempt_of(&path), Some((71, 2)));
        for foreign in ["results/2026/03/71/2", "results/2026/03/x/2/a.csv", "backups/1/1/1/1/a"] {
            assert_eq!(attempt_of(&Path::from(foreign)), None, "{foreign}");
        }
        assert_eq!(
            ObjectKey::Manifest(attempt).path().to_string(),
            "results/2026/03/71/2/gpa-ranking.manifest.json"
        );
        let entry = LedgerKey { token: "ab12", begun_at: created_at, step: "begun" };
        assert_eq!(
            ObjectKey::Ledger(entry).path().to_string(),
            "ledger/erasures/2026/ab12/20260301T000000000000Z.begun.json"
        );
        let entry = ObjectKey::PurgeLedger { begun_at: created_at, sha256: "ab12" };
        assert_eq!(entry.path().to_string(), "ledger/erasures/2026/purges/ab12.json");
        assert_eq!(
            ObjectKey::Certificate { number: 12, sha256: "ab" }.path().to_string(),
            "certificates/0000000012-ab.jsonl"
        );
        let file = ObjectKey::ArchiveFile { run: 7, table: "orders", number: 3, sha256: "ab" };
        assert_eq!(file.path().to_string(), "archive/0000000007/orders/000003-ab.parquet");
        let copy = ObjectKey::Copy { folder: "monthly/ranking", execution: 71, file_name: "a.csv" };
        assert_eq!(copy.path().to_string(), "deliveries/monthly/ranking/71/a.csv");
        assert_eq!(copied_execution(&copy.path()), Some(71));
        assert_eq!(copied_execution(&Path::from("deliveries/71/a.csv")), None);
        let backup = |file| ObjectKey::Backup { id: "20260301T000000Z-1a2b3c4d", file }.path();
        assert_eq!(
            backup(BackupFile::Manifest).to_string(),
            "backups/20260301T000000Z-1a2b3c4d/manifest.json"
        );
    }
}
