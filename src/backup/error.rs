//! What can go wrong with a backup, in words that say what to do.

use std::io;
use std::path::PathBuf;

use super::manifest::BackupId;
use crate::store::StoreError;

/// Why a backup could not be made, read, proven, restored or deleted.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Nobody is named who could open it.
    #[error(
        "a backup holds everything the database does, and backup.encrypt_to names nobody to encrypt \
         it for: `registrar backup key` makes a key; --plain or backup.allow_plain stores it open"
    )]
    NotEncrypted,
    /// A recipient is none.
    #[error("backup.encrypt_to: `{0}` must be an age recipient, like age1…")]
    BadRecipient(String),
    /// The file of identities cannot be used.
    #[error("backup.identity_file: cannot read age identities from {}: {reason}", .path.display())]
    BadIdentities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never its contents.
        reason: String,
    },
    /// The backup is encrypted and nobody said with which key to open it.
    #[error(
        "this backup is encrypted for {0}: name the file with its age identity as \
         backup.identity_file or --identity"
    )]
    NoIdentity(String),
    /// None of the identities opens it.
    #[error("none of the given identities opens this backup: it is encrypted for {0}")]
    WrongKey(String),
    /// The URL of a database cannot be used. The message does not show it: it may hold a password.
    #[error("{0} must be a URL like postgres://user@host:5432/database")]
    BadUrl(&'static str),
    /// A statement failed.
    #[error("cannot {action}{}", sqlstate(.source))]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// The programs or a private server cannot be used.
    #[error(transparent)]
    Postgres(#[from] crate::postgres::Error),
    /// `pg_dump` or `pg_restore` failed.
    #[error("{program} failed: {message}")]
    Program {
        /// Which.
        program: &'static str,
        /// Its first error, without the details that can hold rows.
        message: String,
    },
    /// A pipe or a thread broke.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored is not what was stored.
    #[error("backup {id} is damaged: {what}")]
    Damaged {
        /// Which backup.
        id: BackupId,
        /// What was found.
        what: String,
    },
    /// There is no such backup.
    #[error("there is no backup `{0}`; `registrar backup list` shows those that exist")]
    NotFound(String),
    /// A backup that is being deleted cannot be used.
    #[error("backup {0} is being deleted")]
    Deleting(BackupId),
    /// A manifest of a newer version, or not one of ours.
    #[error("the manifest of backup {id} cannot be read: {reason}")]
    Manifest {
        /// Which backup.
        id: String,
        /// Why not.
        reason: String,
    },
    /// A database with something in it is not restored into.
    #[error(
        "the database holds {found} already: a backup is restored into an empty database only \
         (`createdb`), so that nothing is mixed or overwritten"
    )]
    NotEmpty {
        /// The first thing found.
        found: String,
    },
    /// A table that was asked for is not in the backup.
    #[error("backup {id} has no table `{table}`")]
    NoTable {
        /// Which backup.
        id: BackupId,
        /// As asked for.
        table: String,
    },
    /// The name of a stanza is none.
    #[error("backup.pgbackrest.stanza must be 1 to 64 letters, digits, hyphens and underscores")]
    BadStanza,
    /// A policy asks for pgBackRest, and the settings do not say of which stanza.
    #[error("backup.pgbackrest.stanza must name pgBackRest's stanza of this database's server")]
    NoStanza,
    /// The log that a restore needs does not arrive in the repository.
    #[error(
        "the write-ahead log up to {file} was not archived in time: archive_mode must be on and \
         archive_command be `pgbackrest … archive-push %p`"
    )]
    NotArchived {
        /// The file.
        file: String,
    },
    /// A backup of pgBackRest is restored by pgBackRest.
    #[error(
        "{0} is a backup of pgBackRest, which restores whole servers: `pgbackrest --stanza=… \
         --set={0} restore`, and then `registrar hold replay` and `registrar erasure replay`"
    )]
    Physical(BackupId),
    /// The restored rows are not those of the snapshot.
    #[error("the restored tables differ from the snapshot: {0}")]
    Differs(String),
}

impl BackupError {
    /// For `map_err`: what was tried when a statement failed.
    pub(super) fn database(action: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { action, source }
    }

    /// For `map_err`: what was tried when a pipe or a file failed.
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// Whether a safety rule refused, rather than something failing.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NotEncrypted | Self::NotEmpty { .. } | Self::Deleting(_) | Self::Physical(_)
        )
    }

    /// Whether it says that the backup itself is bad, and not the surroundings of the attempt.
    pub fn condemns_backup(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Differs(_))
    }
}

/// The code and not the text: PostgreSQL's DETAIL can hold whole rows.
fn sqlstate(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(database) => {
            format!(": {} (SQLSTATE {})", database.message(), database.code().unwrap_or_default())
        }
        None => format!(": {error}"),
    }
}
