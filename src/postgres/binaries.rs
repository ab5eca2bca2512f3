//! Finds the PostgreSQL server programs on this machine.
//!
//! What counts is one folder that holds `initdb`, `pg_ctl` and `postgres` together: Debian puts
//! wrappers of some of them into PATH and the programs themselves elsewhere.

use std::{
    ffi::OsStr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::Error;

/// The oldest major version that Registrar supports.
pub const OLDEST_SUPPORTED_MAJOR: u32 = 15;

/// How to get the server programs; part of every error that misses them.
pub(super) const HOW_TO_INSTALL: &str = "\
Install the PostgreSQL server, version 15 or newer:
  Debian, Ubuntu   apt-get install postgresql
  Fedora           dnf install postgresql-server
  macOS            brew install postgresql@17
or set REGISTRAR_POSTGRES_BIN to the folder that holds initdb, pg_ctl and postgres.";

/// The programs a private cluster needs; a folder counts only if it has them all.
const PROGRAMS: [&str; 3] = ["initdb", "pg_ctl", "postgres"];

/// Where packages put them, in order of preference: `*` stands for a version.
pub(super) const PLACES: [&str; 5] = [
    "/usr/lib/postgresql/*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/pgsql-*/bin",
    // Source builds with the default prefix.
    "/usr/local/pgsql/bin",
];

/// A folder with the PostgreSQL server programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// Finds the programs in `explicit` or, without it, in PATH and then where packages put
    /// them, the newest version first.
    ///
    /// # Errors
    /// The programs are missing, incomplete in `explicit`, or all older than
    /// [`OLDEST_SUPPORTED_MAJOR`]; the message says what to install.
    pub fn find(explicit: Option<&Path>) -> Result<Self, Error> {
        if let Some(dir) = explicit {
            return Self::in_explicit(dir);
        }
        search(std::env::var_os("PATH").as_deref(), &PLACES)
    }

    /// The folder that holds the programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The major version, such as 15.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn in_explicit(dir: &Path) -> Result<Self, Error> {
        if let Some(missing) = PROGRAMS.iter().find(|name| !is_program(&dir.join(name))) {
            return Err(Error::BinariesIncomplete { dir: dir.to_owned(), missing });
        }
        match major_version(dir) {
            Some(major) if major >= OLDEST_SUPPORTED_MAJOR => {
                // The server is started from another folder than ours.
                let dir = std::path::absolute(dir).map_err(Error::io("find", dir))?;
                Ok(Self { dir, major })
            }
            found => Err(Error::BinariesTooOld { dir: dir.to_owned(), found }),
        }
    }
}

/// Looks through the folders of `path` (in the form of PATH), then through `places`.
fn search(path: Option<&OsStr>, places: &[&str]) -> Result<Binaries, Error> {
    let from_path = path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    let groups = std::iter::once(from_path).chain(places.iter().map(|place| matching(place)));
    let mut too_old = None;
    for dir in groups.flatten() {
        // A relative entry of PATH means another folder for the server than for us.
        let complete = PROGRAMS.iter().all(|name| is_program(&dir.join(name)));
        if !dir.is_absolute() || !complete {
            continue;
        }
        match major_version(&dir) {
            Some(major) if major >= OLDEST_SUPPORTED_MAJOR => return Ok(Binaries { dir, major }),
            found => {
                too_old.get_or_insert((dir, found));
            }
        }
    }
    match too_old {
        Some((dir, found)) => Err(Error::BinariesTooOld { dir, found }),
        None => Err(Error::BinariesMissing),
    }
}

/// The folders that `place` stands for, the highest version first.
pub(super) fn matching(place: &str) -> Vec<PathBuf> {
    let Some((before, after)) = place.split_once('*') else {
        return vec![PathBuf::from(place)];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, PathBuf::from(format!("{before}{version}{after}"))))
        })
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, dir)| dir).collect()
}

pub(super) fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn major_version(dir: &Path) -> Option<u32> {
    let output = Command::new(dir.join("postgres"))
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    parse_major(std::str::from_utf8(&output.stdout).ok()?)
}

/// Reads 15 from `postgres (PostgreSQL) 15.18 (Debian 15.18-0)`, also from `17beta1`.
pub(super) fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(dir: &Path, programs: &[&str], version: &str) {
        std::fs::create_dir_all(dir).unwrap();
        for name in programs {
            let path = dir.join(name);
            let script = format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n");
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn major_versions_are_read_from_releases_and_betas() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major("postgres (PostgreSQL) \n"), None);
        assert_eq!(parse_major("something else 15.1"), None);
    }

    #[test]
    fn the_newest_version_of_a_place_wins_and_incomplete_folders_do_not_count() {
        let root = tempfile::tempdir().unwrap();
        fake(&root.path().join("9/bin"), &PROGRAMS, "9.6.1");
        fake(&root.path().join("16/bin"), &PROGRAMS, "16.2");
        fake(&root.path().join("17/bin"), &PROGRAMS, "17.1");
        fake(&root.path().join("18/bin"), &["pg_ctl", "psql"], "18.0");
        let place = format!("{}/*/bin", root.path().display());

        let found = search(None, &[&place]).unwrap();

        assert_eq!(found.major(), 17);
        assert_eq!(found.dir(), root.path().join("17/bin"));
    }

    #[test]
    fn a_complete_folder_in_path_wins_over_packages_and_wrappers_do_not() {
        let root = tempfile::tempdir().unwrap();
        let (wrappers, own) = (root.path().join("wrappers"), root.path().join("own"));
        fake(&wrappers, &["pg_ctl", "psql"], "17.1");
        fake(&own, &PROGRAMS, "16.0");
        fake(&root.path().join("17/bin"), &PROGRAMS, "17.1");
        let place = format!("{}/*/bin", root.path().display());
        let path = std::env::join_paths([&wrappers, &own]).unwrap();

        assert_eq!(search(Some(&path), &[&place]).unwrap().dir(), own);
    }

    #[test]
    fn old_and_missing_programs_are_told_apart_and_both_say_what_to_install() {
        let root = tempfile::tempdir().unwrap();
        fake(&root.path().join("14/bin"), &PROGRAMS, "14.9");
        let place = format!("{}/*/bin", root.path().display());

        let old = search(None, &[&place]).unwrap_err();
        assert!(matches!(&old, Error::BinariesTooOld { found: Some(14), .. }));
        let missing = search(None, &[]).unwrap_err();
        assert!(matches!(&missing, Error::BinariesMissing));
        for error in [old, missing] {
            let text = error.to_string();
            for hint in ["apt-get install", "dnf install", "brew install"] {
                assert!(text.contains(hint), "{text}");
            }
        }
    }

    #[test]
    fn an_explicit_folder_must_hold_every_program() {
        let root = tempfile::tempdir().unwrap();
        fake(root.path(), &["initdb", "pg_ctl"], "17.1");

        let error = Binaries::find(Some(root.path())).unwrap_err();

        assert!(error.to_string().contains("postgres"), "{error}");
    }
}
