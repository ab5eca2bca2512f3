//! What is known of a backup, as stored beside it. A manifest never changes; verifications and
//! pins are objects of their own.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::fingerprint::Table;
use crate::config::BackupCompression;

/// The form of manifests that this version writes and reads.
pub const FORMAT: u32 = 1;

/// A backup's number: the second it was begun, and what makes it the only one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    /// A new number.
    pub fn new(now: DateTime<Utc>) -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        Self(format!("{}-{}", now.format("%Y%m%dT%H%M%SZ"), &unique[..8]))
    }

    /// Whether pgBackRest made it, whose name of it this is.
    pub fn is_physical(&self) -> bool {
        is_label(&self.0)
    }

    /// As in paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |(index, c): (usize, char)| match index {
            8 => c == 'T',
            15 => c == 'Z',
            16 => c == '-',
            17.. => c.is_ascii_digit() || ('a'..='f').contains(&c),
            _ => c.is_ascii_digit(),
        };
        let is_dump = text.len() == 25 && text.chars().enumerate().all(fits);
        if is_dump || is_label(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be a backup's number, like 20260301T000000Z-1a2b3c4d".to_owned())
        }
    }
}

/// Such as `20260301-013000F` or `20260301-013000F_20260302-013000I`.
fn is_label(text: &str) -> bool {
    let is_time = |text: &str| {
        text.len() == 15
            && text
                .bytes()
                .enumerate()
                .all(|(at, byte)| if at == 8 { byte == b'-' } else { byte.is_ascii_digit() })
    };
    let (full, later) =
        text.split_once('_').map_or((text, None), |(full, rest)| (full, Some(rest)));
    let is_later = |later: &str| later.strip_suffix(['D', 'I']).is_some_and(is_time);
    full.strip_suffix('F').is_some_and(is_time) && later.is_none_or(is_later)
}

impl TryFrom<String> for BackupId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Written before anything else of a backup: who makes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    /// The database, so that a store shared by two of them is not swept by the wrong one.
    pub database: String,
    /// By the database's clock.
    pub started_at: DateTime<Utc>,
}

/// Everything about a backup that was known when it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// Its number.
    pub id: BackupId,
    /// Version of Registrar that made it.
    pub registrar_version: String,
    /// By the database's clock, as all times here.
    pub started_at: DateTime<Utc>,
    /// When all was stored.
    pub finished_at: DateTime<Utc>,
    /// Why it was made.
    pub purpose: Purpose,
    /// Which database.
    pub database: SourceDatabase,
    /// The state that it holds.
    pub snapshot: Snapshot,
    /// What was stored.
    pub stored: Stored,
    /// How long its parts took.
    pub timings: Timings,
    /// Rows and checksums of the snapshot.
    pub tables: Vec<Table>,
    /// The policy that asked for it; none: a person or a migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// How far the ledger was just before the snapshot: a restore must find no less of it.
    #[serde(default)]
    pub ledger: LedgerPosition,
}

/// How many objects the ledger had. They are never deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPosition {
    /// Of erasures.
    pub erasures: usize,
    /// Of holds.
    pub holds: usize,
}

/// Why a backup was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// By a person.
    Manual,
    /// By a schedule.
    Scheduled,
    /// Before the schema was changed: the way back.
    PreMigration,
}

impl Purpose {
    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Scheduled => "scheduled",
            Self::PreMigration => "pre-migration",
        }
    }
}

/// Where the rows came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceDatabase {
    /// Its name.
    pub name: String,
    /// As the server says, such as `15.18`.
    pub server_version: String,
    /// Its major version.
    pub server_major: u32,
    /// The newest migration that was applied.
    pub schema_version: Option<i64>,
    /// Version of `pg_dump`.
    pub pg_dump_version: String,
    /// Roles that own or may use something: a restore gives rights back where they all exist.
    pub roles: Vec<String>,
}

/// A state of the database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was taken.
    pub taken_at: DateTime<Utc>,
    /// Where the write-ahead log was.
    pub lsn: String,
}

/// The dump as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    /// Its name in the backup's folder.
    pub object: String,
    /// Bytes stored.
    pub size_bytes: u64,
    /// Of what is stored, in hex.
    pub sha256: String,
    /// Bytes that `pg_dump` wrote.
    pub dump_bytes: u64,
    /// How they are compressed.
    pub compression: BackupCompression,
    /// Who can open it; empty: anybody.
    pub encrypted_to: Vec<String>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Timings {
    /// Dump, compression, encryption and upload, which go side by side.
    pub dump_ms: u64,
    /// Rows and checksums, beside the dump.
    pub checksums_ms: u64,
    /// All of it.
    pub total_ms: u64,
}

/// The outcome of a verification.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verification {
    /// Which backup.
    pub id: BackupId,
    /// By the clock of the database that asked.
    pub verified_at: DateTime<Utc>,
    /// Whether every table came back as it was.
    pub good: bool,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Tables compared.
    pub tables: usize,
    /// Rows compared.
    pub rows: i64,
    /// Milliseconds of it all.
    pub duration_ms: u64,
    /// The server that it was restored on, such as `15.18`.
    pub server_version: String,
}

/// Why a backup must not be deleted, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Its name, unique for a backup.
    pub name: String,
    /// In the words of who set it.
    pub reason: String,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// Somebody reads the backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Use {
    /// `verify` or `restore`.
    pub by: String,
    /// A process that was killed says nothing more: after this it does not count.
    pub expires_at: DateTime<Utc>,
}

/// A deletion under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deleting {
    /// When it was decided.
    pub decided_at: DateTime<Utc>,
    /// Why.
    pub reason: String,
    /// Tries so far.
    pub attempts: u32,
    /// What went wrong the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_parsed_and_nothing_else_is() {
        let id = BackupId::new(DateTime::from_timestamp(1_772_323_200, 0).unwrap());
        assert!(id.as_str().starts_with("20260301T000000Z-"), "{id}");
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        for label in ["20260301-013000F", "20260301-013000F_20260302-013000I"] {
            assert!(label.parse::<BackupId>().is_ok_and(|id| id.is_physical()), "{label}");
        }
        assert!(!id.is_physical());
        for wrong in [
            "",
            "20260301-013000F_",
            "20260301-013000I",
            "../../../results",
            "20260301T000000Z-1a2b3c4",
            "20260301T000000Z_1a2b3c4d",
        ] {
            assert!(wrong.parse::<BackupId>().is_err(), "{wrong}");
        }
    }
}
