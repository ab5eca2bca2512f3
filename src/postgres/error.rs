//! What can go wrong with a private cluster, in words that say what to do.

use std::{io, path::PathBuf};

use super::binaries::HOW_TO_INSTALL;

/// Why a private cluster could not be found, made, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data of a server were not restored.
    #[error("the data were not restored: {0}")]
    Restore(String),
    /// No folder with the server programs was found.
    #[error("the PostgreSQL server programs are not on this machine\n{HOW_TO_INSTALL}")]
    BinariesMissing,
    /// The folder the user named lacks a program.
    #[error("{} has no `{missing}`\n{HOW_TO_INSTALL}", .dir.display())]
    BinariesIncomplete {
        /// The folder the user named.
        dir: PathBuf,
        /// The first program it lacks.
        missing: &'static str,
    },
    /// Server programs exist, but none is new enough.
    #[error("PostgreSQL in {} is {}\n{HOW_TO_INSTALL}", .dir.display(), too_old(*.found))]
    BinariesTooOld {
        /// The first folder with server programs.
        dir: PathBuf,
        /// Its major version, where it told one.
        found: Option<u32>,
    },
    /// No `pg_dump` of the server's version was found.
    #[error(
        "no pg_dump of PostgreSQL {major}, the server's version, is on this machine{}\n\
         Install it (Debian: apt-get install postgresql-client-{major}), or name its folder as \
         backup.tools_dir or REGISTRAR_POSTGRES_BIN",
        others(.found)
    )]
    ToolsMissing {
        /// The server's major version.
        major: u32,
        /// The versions that are there.
        found: String,
    },
    /// The account the server runs as cannot reach a folder it needs.
    #[error(
        "the user {user}, which runs the server because PostgreSQL refuses root, cannot enter \
         {}: allow it with `chmod a+x`, or choose another place than {}",
        .blocked.display(), .wanted.display()
    )]
    Unreachable {
        /// The account's name.
        user: String,
        /// The outermost folder it cannot enter.
        blocked: PathBuf,
        /// What it has to reach.
        wanted: PathBuf,
    },
    /// The cluster was made by another account.
    #[error(
        "the cluster in {} belongs to the user with id {owner}: run as that user, or remove it",
        .home.display()
    )]
    NotOwner {
        /// The cluster's folder.
        home: PathBuf,
        /// The owner's user id.
        owner: u32,
    },
    /// Somebody else holds the predictable name of the stand-in folder.
    #[error("{} exists and is not a folder of root: remove it first", .path.display())]
    Untrusted {
        /// The stand-in folder.
        path: PathBuf,
    },
    /// The cluster is running already.
    #[error(
        "the cluster in {} is in use{}: stop it first, or choose another folder",
        .home.display(), by(*.pid)
    )]
    InUse {
        /// The cluster's folder.
        home: PathBuf,
        /// The server's process, as far as it is known.
        pid: Option<i32>,
    },
    /// The data were written by another major version.
    #[error(
        "the cluster in {} was made by PostgreSQL {data}, the programs found are version \
         {binaries}: set REGISTRAR_POSTGRES_BIN to the programs of version {data}, or remove it",
        .home.display()
    )]
    OtherVersion {
        /// The cluster's folder.
        home: PathBuf,
        /// What the data say.
        data: String,
        /// What the programs are.
        binaries: u32,
    },
    /// `initdb` failed.
    #[error("initdb could not make a cluster in {}; it said:\n{log}", .home.display())]
    Init {
        /// The cluster's folder.
        home: PathBuf,
        /// The last lines of the log.
        log: String,
    },
    /// The server ended before it took connections.
    #[error("the PostgreSQL server in {} did not start; its log ends:\n{log}", .home.display())]
    Start {
        /// The cluster's folder.
        home: PathBuf,
        /// The last lines of the log.
        log: String,
    },
    /// The server did not take connections in time.
    #[error(
        "the PostgreSQL server in {} was not ready within {limit_secs} s; its log ends:\n{log}",
        .home.display()
    )]
    StartTimeout {
        /// The cluster's folder.
        home: PathBuf,
        /// How long it was given, in seconds.
        limit_secs: u64,
        /// The last lines of the log.
        log: String,
    },
    /// The server would not end, not even when killed.
    #[error("the PostgreSQL server (process {pid}) did not stop")]
    Stop {
        /// The server's process.
        pid: i32,
    },
    /// The new server could not be asked for its database.
    #[error("cannot make the database `registrar` in the private cluster")]
    Database {
        /// What the connection said.
        #[source]
        source: sqlx::Error,
    },
    /// A command to run with the cluster could not be started.
    #[error("cannot run `{program}`")]
    Command {
        /// The command's first word.
        program: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Names what was tried on which path, for `map_err`.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

fn too_old(found: Option<u32>) -> String {
    match found {
        Some(major) => format!("version {major}, which is too old"),
        None => "of no version it would tell".to_owned(),
    }
}

fn by(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" by the server with process id {pid}")).unwrap_or_default()
}

fn others(found: &str) -> String {
    if found.is_empty() { String::new() } else { format!(" (there is {found})") }
}
