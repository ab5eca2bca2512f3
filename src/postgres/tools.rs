//! Finds `pg_dump` and `pg_restore` of a server's major version.
//!
//! The folder where the server programs were found may hold links to them and nothing else, and
//! Debian's `/usr/bin/pg_dump` is a wrapper that picks a version by itself: so each candidate is
//! followed to where it really is, and asked for its version.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    Error,
    binaries::{PLACES, is_program, matching, parse_major},
};

/// The programs of a backup; a folder counts only if it has both.
const PROGRAMS: [&str; 2] = ["pg_dump", "pg_restore"];

/// `pg_dump` and `pg_restore` of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTools {
    dir: PathBuf,
    version: String,
}

impl ClientTools {
    /// Finds the programs of the major version `major` in `explicit` or, without it, where
    /// packages put them and then in PATH.
    ///
    /// # Errors
    /// [`Error::ToolsMissing`], which names the version and how to get it.
    pub fn find(explicit: Option<&Path>, major: u32) -> Result<Self, Error> {
        let path = std::env::var_os("PATH");
        let candidates: Vec<PathBuf> = match explicit {
            Some(dir) => vec![dir.to_owned()],
            None => everywhere(path.as_deref()),
        };
        let mut found = Vec::new();
        for dir in candidates {
            let Some(dir) = real_folder(&dir) else { continue };
            let Some(version) = version_of(&dir) else { continue };
            if parse_major(&version) == Some(major) {
                let version = number_of(&version).to_owned();
                return Ok(Self { dir, version });
            }
            found.push(number_of(&version).to_owned());
        }
        found.sort();
        found.dedup();
        Err(Error::ToolsMissing { major, found: found.join(", ") })
    }

    /// The version, such as `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// `pg_dump`, ready for arguments.
    pub fn pg_dump(&self) -> Command {
        Command::new(self.dir.join("pg_dump"))
    }

    /// `pg_restore`, ready for arguments.
    pub fn pg_restore(&self) -> Command {
        Command::new(self.dir.join("pg_restore"))
    }
}

fn everywhere(path: Option<&OsStr>) -> Vec<PathBuf> {
    let from_path = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>());
    PLACES.iter().flat_map(|place| matching(place)).chain(from_path.unwrap_or_default()).collect()
}

/// The folder that really holds the programs: `dir`, or where its server program is a link to.
fn real_folder(dir: &Path) -> Option<PathBuf> {
    if !dir.is_absolute() {
        return None;
    }
    let server = dir.join("postgres").canonicalize().ok();
    let behind = server.and_then(|server| server.parent().map(Path::to_owned));
    let holds_all = |dir: &PathBuf| PROGRAMS.iter().all(|name| is_program(&dir.join(name)));
    [behind, Some(dir.to_owned())].into_iter().flatten().find(holds_all)
}

fn version_of(dir: &Path) -> Option<String> {
    let output = Command::new(dir.join("pg_dump"))
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()
}

/// Reads `15.18` from `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn number_of(version: &str) -> &str {
    let after = version.split_once("(PostgreSQL) ").map_or(version, |(_, after)| after);
    after.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn fake(dir: &Path, name: &str, version: &str) {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n"))
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn links_to_the_server_lead_to_its_tools() {
        let root = tempfile::tempdir().unwrap();
        let (real, links) = (root.path().join("real"), root.path().join("links"));
        for name in ["postgres", "pg_dump", "pg_restore"] {
            fake(&real, name, "16.3 (Debian 16.3-1)");
        }
        std::fs::create_dir(&links).unwrap();
        symlink(real.join("postgres"), links.join("postgres")).unwrap();

        let tools = ClientTools::find(Some(&links), 16).unwrap();

        assert_eq!(tools.version(), "16.3");
        assert_eq!(tools.dir, real.canonicalize().unwrap());
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        for name in PROGRAMS {
            fake(root.path(), name, "16.3");
        }
        let error = ClientTools::find(Some(root.path()), 17).unwrap_err().to_string();
        assert!(error.contains("pg_dump of PostgreSQL 17") && error.contains("16.3"), "{error}");
    }
}
