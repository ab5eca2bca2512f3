//! Lifecycle policies: the files of the jobs folder as types that cannot be wrong.
//!
//! [`Policies::load`] reads a folder whole and names everything that is wrong in it, file, line and
//! key. Whether the names exist in a database is not known here: see `retention::check`.
//! Nothing here knows which tables exist, connects to anything or reads a clock.

mod account;
mod age;
mod classification;
mod condition;
mod conduct;
mod fault;
mod kind;
mod name;
mod read;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use chrono_tz::Tz;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use account::{Account, Revocation};
pub use age::{Age, AgeError, AgePath, AgePathError, Timespan, TimespanError};
pub use classification::{
    CLASSIFICATION_FILE, Class, Classification, ClassifiedColumn, ClassifiedTable, NoClass,
    Sensitivity, SubjectLink, Treatment, TruncateTo,
};
pub use condition::{Condition, ConditionError};
pub use conduct::{Approval, ApprovalRule, CatchUp, Limits, Overlap, PauseWhen, Schedule, Share};
pub use fault::{PolicyError, PolicyFault};
pub use kind::{
    Anonymize, AnonymizeOrder, AnonymizeRows, AnonymizeTable, AnonymizeWhen, Archive, ArchiveTable,
    Backup, BackupEngine, BackupVerification, ExpireResults, Export, ExportFormat, IfReferenced,
    KAnonymity, Keep, Kind, OnFewerThanK, PruneBackups, Purge, PurgeTable, ScheduledReport,
    VerifyBackup,
};
pub use name::{ColumnName, NameError, PolicyName, TableName};

/// The largest file of a jobs folder, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The most files of a jobs folder.
const MAX_FILES: usize = 1_000;

/// A declared rule: one file of the jobs folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Policy {
    /// The file's name.
    pub name: PolicyName,
    /// What it does, for people.
    pub description: String,
    /// Who answers for it.
    pub owner: String,
    /// Whether it may run.
    pub enabled: bool,
    /// The zone of the cutoff and of the schedule.
    #[serde(serialize_with = "zone_name")]
    pub time_zone: Tz,
    /// When it runs by itself; `None`: only by hand.
    pub schedule: Option<Schedule>,
    /// What one run may do.
    pub limits: Limits,
    /// When a second person is asked.
    pub approval: Approval,
    /// What it does.
    #[serde(flatten)]
    pub kind: Kind,
}

impl Policy {
    /// SHA-256 of the content in normal form, in hex: comments, order and spaces do not count.
    pub fn digest(&self) -> String {
        digest(self)
    }

    /// Reads the text of `<name>.toml`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_toml(name: PolicyName, text: &str) -> Result<Self, PolicyError> {
        read::policy(name, text).map_err(PolicyError::new)
    }
}

/// A jobs folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Policies {
    /// By name.
    pub policies: BTreeMap<PolicyName, Policy>,
    /// Of every column; empty where the folder has no `classification.toml`.
    pub classification: Classification,
}

impl Policies {
    /// Reads every `*.toml` of the folder `dir`. Files of other kinds are passed over.
    ///
    /// # Errors
    /// Everything that is wrong with any of them, sorted by file and line.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let mut found = Self::default();
        let mut faults = Vec::new();
        for file in list(dir)? {
            let path = dir.join(&file);
            let text = read(&path, &file)?;
            if file == CLASSIFICATION_FILE {
                match Classification::from_toml(&text) {
                    Ok(classification) => found.classification = classification,
                    Err(more) => faults.extend(more),
                }
                continue;
            }
            match file.trim_end_matches(".toml").parse::<PolicyName>() {
                Ok(name) => match read::policy(name, &text) {
                    Ok(policy) => {
                        found.policies.insert(policy.name.clone(), policy);
                    }
                    Err(more) => faults.extend(more),
                },
                Err(error) => faults.push(PolicyFault {
                    file,
                    line: None,
                    key: String::new(),
                    expected: format!("is named wrongly: the name {error}"),
                }),
            }
        }
        // A file that could not be read is not a missing one.
        if faults.is_empty() {
            faults.extend(found.missing_backups());
        }
        if faults.is_empty() { Ok(found) } else { Err(PolicyError::new(faults)) }
    }

    /// The policy `name`.
    pub fn get(&self, name: &str) -> Option<&Policy> {
        self.policies.values().find(|policy| policy.name.as_str() == name)
    }

    fn missing_backups(&self) -> Vec<PolicyFault> {
        let named = self.policies.values().filter_map(|policy| match &policy.kind {
            Kind::VerifyBackup(VerifyBackup { backup })
            | Kind::PruneBackups(PruneBackups { backup }) => Some((policy, backup)),
            Kind::Archive(_)
            | Kind::Anonymize(_)
            | Kind::AnonymizeRows(_)
            | Kind::Purge(_)
            | Kind::ExpireResults(_)
            | Kind::Backup(_)
            | Kind::Report(_) => None,
        });
        let is_backup = |name: &PolicyName| {
            self.policies.get(name).is_some_and(|policy| matches!(policy.kind, Kind::Backup(_)))
        };
        named
            .filter(|(_, backup)| !is_backup(backup))
            .map(|(policy, backup)| PolicyFault {
                file: format!("{}.toml", policy.name),
                line: None,
                key: "backup".to_owned(),
                expected: format!("must name a policy of kind `backup`, and `{backup}` is none"),
            })
            .collect()
    }
}

fn list(dir: &Path) -> Result<Vec<String>, PolicyError> {
    let unreadable = |error| PolicyError::unreadable(dir, &error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        // Editors leave hidden files beside those they have open.
        if name.ends_with(".toml") && !name.starts_with('.') {
            files.push(name);
        }
    }
    if files.len() > MAX_FILES {
        return Err(unreadable(std::io::Error::other(format!("it holds over {MAX_FILES} files"))));
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path, file: &str) -> Result<String, PolicyError> {
    let unreadable = |error| PolicyError::unreadable(Path::new(file), &error);
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        let error = format!("it holds over {MAX_FILE_BYTES} bytes");
        return Err(unreadable(std::io::Error::other(error)));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// SHA-256 of the normal form, in hex. Maps are sorted, and fields have the order of the types.
fn digest(content: &impl Serialize) -> String {
    let json = serde_json::to_vec(content).expect("names and numbers only: nothing can fail");
    hex::encode(Sha256::digest(json))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn zone_name<S: serde::Serializer>(zone: &Tz, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(zone.name())
}
