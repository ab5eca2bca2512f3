//! What a policy does.

use std::num::NonZeroU32;

use serde::Serialize;
use serde_json::{Map, Value};

use super::age::{Age, AgePath};
use super::condition::Condition;
use super::name::{ColumnName, PolicyName, TableName};

/// What a policy does.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// Moves old rows to the archive schema.
    Archive(Archive),
    /// Carries out erasures.
    Anonymize(Anonymize),
    /// Makes old rows anonymous.
    #[serde(rename = "anonymize")]
    AnonymizeRows(AnonymizeRows),
    /// Deletes old rows.
    Purge(Purge),
    /// Deletes report results past their time.
    ExpireResults(ExpireResults),
    /// Makes a backup.
    Backup(Backup),
    /// Restores a backup into a scratch database and compares.
    VerifyBackup(VerifyBackup),
    /// Deletes backups that no tier keeps.
    PruneBackups(PruneBackups),
    /// Runs a report.
    Report(ScheduledReport),
}

impl Kind {
    /// As in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Archive(_) => "archive",
            Self::Anonymize(_) | Self::AnonymizeRows(_) => "anonymize",
            Self::Purge(_) => "purge",
            Self::ExpireResults(_) => "expire-results",
            Self::Backup(_) => "backup",
            Self::VerifyBackup(_) => "verify-backup",
            Self::PruneBackups(_) => "prune-backups",
            Self::Report(_) => "report",
        }
    }

    /// Whether it moves, changes or deletes rows of the application.
    pub fn is_destructive(&self) -> bool {
        match self {
            Self::Archive(_) | Self::Anonymize(_) | Self::AnonymizeRows(_) | Self::Purge(_) => true,
            Self::ExpireResults(_)
            | Self::Backup(_)
            | Self::VerifyBackup(_)
            | Self::PruneBackups(_)
            | Self::Report(_) => false,
        }
    }
}

/// `kind = "archive"`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archive {
    /// At least one, none twice. The order comes from the catalog.
    #[serde(rename = "table")]
    pub tables: Vec<ArchiveTable>,
}

/// A table whose old rows move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchiveTable {
    /// The live table.
    pub name: TableName,
    /// What tells its age.
    pub age: AgePath,
    /// How old it must be.
    pub after: Age,
    /// What else must hold of the row and its parents.
    #[serde(rename = "where")]
    pub condition: Option<Condition>,
    /// Whether its children are archived with it; otherwise it stays while any of them stays.
    pub keep_children: bool,
    /// Whether the rows are written to the store as well.
    pub export: Option<Export>,
}

/// Rows written to the store before they leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Export {
    /// The file's format.
    pub format: ExportFormat,
    /// Whether the file is read back before the rows leave.
    pub verify: bool,
    /// How long the file is kept; `None`: for ever.
    pub keep: Option<Age>,
}

/// A format of exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// `parquet`
    Parquet,
}

/// `kind = "anonymize"` of people
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Anonymize {
    /// The table whose rows are people.
    pub subject: TableName,
    /// Who is due.
    pub when: AnonymizeWhen,
    /// How long a request can be taken back.
    pub grace: Age,
    /// In which order traces are removed.
    pub order: AnonymizeOrder,
    /// What is counted afterwards.
    pub k_anonymity: Option<KAnonymity>,
}

/// Who is due to be anonymized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum AnonymizeWhen {
    /// Erasures whose grace is over.
    #[serde(rename = "erasures.due")]
    ErasuresDue,
}

/// In which order a person's traces are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnonymizeOrder {
    /// What points at the person first, the person's row last: links are cut only when nothing
    /// needs them any more.
    SatellitesFirst,
}

/// Groups of people who share their quasi-identifiers must not be small.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KAnonymity {
    /// Columns of the subject's table.
    pub quasi: Vec<ColumnName>,
    /// The smallest group, at least 2.
    pub k: NonZeroU32,
    /// What a smaller one means.
    pub on_fail: OnFewerThanK,
}

/// What a group smaller than k means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFewerThanK {
    /// The run tells.
    Report,
    /// The run fails, after its work.
    Fail,
}

/// `kind = "anonymize"` of rows
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AnonymizeRows {
    /// At least one, none twice.
    #[serde(rename = "table")]
    pub tables: Vec<AnonymizeTable>,
}

/// A table whose old rows are made anonymous, as the classification says of each column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AnonymizeTable {
    /// The table, live or archived.
    pub name: TableName,
    /// What tells its age.
    pub age: AgePath,
    /// How old it must be.
    pub after: Age,
    /// What else must hold of the row and its parents.
    #[serde(rename = "where")]
    pub condition: Option<Condition>,
    /// The columns that are treated; empty: all that have a treatment.
    pub columns: Vec<ColumnName>,
}

/// `kind = "purge"`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Purge {
    /// At least one, none twice. The order comes from the catalog.
    #[serde(rename = "table")]
    pub tables: Vec<PurgeTable>,
}

/// A table whose old rows are deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PurgeTable {
    /// The table, live or archived.
    pub name: TableName,
    /// What tells its age.
    pub age: AgePath,
    /// How old it must be.
    pub after: Age,
    /// What else must hold of the row and its parents.
    #[serde(rename = "where")]
    pub condition: Option<Condition>,
    /// What happens to a row that others reference.
    pub if_referenced: IfReferenced,
}

/// What happens to a row that others reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IfReferenced {
    /// It stays.
    Refuse,
    /// It stays, as nobody's: the person is erased.
    Anonymize,
    /// Rows of these tables that reference it are deleted first. Any other reference refuses.
    Cascade(Vec<TableName>),
}

/// `kind = "expire-results"`: each result has a time of its own, so there is nothing to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpireResults {}

/// `kind = "backup"`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// What makes it.
    pub engine: BackupEngine,
    /// age recipients. Empty: not encrypted.
    pub encrypt_to: Vec<String>,
    /// How often one is restored into a scratch database and compared.
    pub verify: BackupVerification,
    /// Which are kept.
    pub keep: Keep,
}

/// What makes a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum BackupEngine {
    /// Logical.
    #[serde(rename = "pg_dump")]
    PgDump,
    /// Physical.
    #[serde(rename = "pgbackrest")]
    PgBackRest,
}

/// How often a backup is restored and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupVerification {
    /// Only by hand.
    Never,
    /// Each one.
    Always,
    /// The newest, once a day.
    Daily,
    /// The newest, once a week.
    Weekly,
    /// The newest, once a month.
    Monthly,
}

/// How many backups each tier keeps. At least one in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Keep {
    /// The newest of so many days.
    pub daily: u32,
    /// The newest of so many weeks.
    pub weekly: u32,
    /// The newest of so many months.
    pub monthly: u32,
    /// The newest of so many years.
    pub yearly: u32,
}

/// `kind = "verify-backup"`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyBackup {
    /// The policy whose newest backup is verified.
    pub backup: PolicyName,
}

/// `kind = "prune-backups"`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PruneBackups {
    /// The policy whose backups are pruned, by its `keep`.
    pub backup: PolicyName,
}

/// `kind = "report"`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScheduledReport {
    /// The definition's slug.
    pub report: PolicyName,
    /// The result's format.
    pub format: String,
    /// As in a submission.
    pub parameters: Map<String, Value>,
}
