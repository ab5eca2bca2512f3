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
    /// A file of a backup.
    Backup {
        /// The backup's number.
        id: &'a str,
        /// Which of its files.
        file: BackupFile<'a>,
    },
    /// What `readyz` and `doctor` write to see that writing works.
    Probe(&'a str),
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
    /// Where the object is.
    pub fn path(&self) -> Path {
        Path::from(match self {
            Self::Result { attempt, extension } => {
                format!("{}/{}.{extension}", attempt.folder(), attempt.slug)
            }
            Self::Manifest(attempt) => {
                format!("{}/{}.manifest.json", attempt.folder(), attempt.slug)
            }
            Self::Backup { id, file } => format!("{}/{}", backup_folder(id), file.name()),
            Self::Probe(name) => format!("probes/{name}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_the_documentation_says() {
        let created_at = DateTime::from_timestamp(1_772_323_200, 0).expect("a time");
        let attempt = AttemptKey { created_at, execution: 71, attempt: 2, slug: "gpa-ranking" };
        assert_eq!(
            ObjectKey::Result { attempt, extension: "csv" }.path().to_string(),
            "results/2026/03/71/2/gpa-ranking.csv"
        );
        assert_eq!(
            ObjectKey::Manifest(attempt).path().to_string(),
            "results/2026/03/71/2/gpa-ranking.manifest.json"
        );
        let backup = |file| ObjectKey::Backup { id: "20260301T000000Z-1a2b3c4d", file }.path();
        assert_eq!(
            backup(BackupFile::Manifest).to_string(),
            "backups/20260301T000000Z-1a2b3c4d/manifest.json"
        );
    }
}
