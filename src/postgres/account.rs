//! The account the server runs as. PostgreSQL refuses root, so as root the children of this
//! module's parent drop to an unprivileged account; as anybody else they stay who we are.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStringExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::Error;

/// Accounts to drop to, the best first: packages make `postgres` (macOS `_postgres`) for this.
const UNPRIVILEGED: [&str; 3] = ["postgres", "_postgres", "nobody"];

/// What `nobody` is where no file says so.
const NOBODY: Identity = Identity { uid: 65534, gid: 65534 };

/// What children keep of our environment. The rest may hold secrets of the application, and
/// `PG*` variables would change what the server does.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];

/// Prints the first of its arguments that the caller cannot enter or run.
const FIRST_BLOCKED: &str = r#"for path do [ -x "$path" ] || { printf %s "$path"; exit 1; }; done"#;

/// A user and its group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Who the server's processes are.
#[derive(Debug, Clone)]
pub(super) struct Account {
    name: String,
    /// Set when we are root and children must become somebody else.
    drop_to: Option<Identity>,
}

impl Account {
    /// The account for a new cluster.
    pub(super) fn for_new_cluster() -> Self {
        if !is_root() {
            return Self::ourselves();
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = UNPRIVILEGED.iter().find_map(|name| Some((*name, look_up(&passwd, name)?)));
        let (name, identity) = found.unwrap_or(("nobody", NOBODY));
        Self { name: name.to_owned(), drop_to: Some(identity) }
    }

    /// The account for a cluster that exists: as root its owner, so that `sudo` and plain use
    /// of one cluster do not fight over its files.
    pub(super) fn for_owner(owner: Identity) -> Option<Self> {
        match (is_root(), owner.uid) {
            (true, 0) => None,
            (true, uid) => Some(Self { name: format!("with id {uid}"), drop_to: Some(owner) }),
            (false, uid) => (uid == rustix::process::geteuid().as_raw()).then(Self::ourselves),
        }
    }

    fn ourselves() -> Self {
        Self { name: "who runs this".to_owned(), drop_to: None }
    }

    /// Whom files must be given to, when that is not ourselves.
    pub(super) fn drop_to(&self) -> Option<Identity> {
        self.drop_to
    }

    /// A child of this account: in a process group of its own, so that an interrupt typed at
    /// the terminal reaches our caller's command and not the server, and in `dir`, because our
    /// working folder may be closed to the account.
    pub(super) fn command(&self, program: impl AsRef<OsStr>, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::null()).current_dir(dir).process_group(0);
        for name in KEPT_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        // Messages of the server and of the operating system in one known language; without it
        // the server refuses to start on macOS.
        command.env("LC_ALL", "C");
        if let Some(Identity { uid, gid }) = self.drop_to {
            // With root's rights at hand, std also empties the supplementary groups.
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Checks that the account can enter every folder on the way to `wanted`, and `wanted`
    /// itself if it exists. Asking beats reading permission bits: access lists count too.
    pub(super) fn check_reach(&self, wanted: &Path) -> Result<(), Error> {
        if self.drop_to.is_none() {
            return Ok(());
        }
        let mut way: Vec<&Path> = wanted.ancestors().filter(|path| path.exists()).collect();
        way.reverse();
        let output = self
            .command("/bin/sh", Path::new("/"))
            .args(["-c", FIRST_BLOCKED, "sh"])
            .args(&way)
            .output()
            .map_err(Error::io("run /bin/sh as an unprivileged user for", wanted))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Unreachable {
            user: self.name.clone(),
            blocked: PathBuf::from(OsString::from_vec(output.stdout)),
            wanted: wanted.to_owned(),
        })
    }
}

/// Whether we may act as other users.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Finds `name` in the text of a passwd file.
fn look_up(passwd: &str, name: &str) -> Option<Identity> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let (uid, gid) = (fields.nth(1)?, fields.next()?);
        let identity = Identity { uid: parse_id(uid)?, gid: parse_id(gid)? };
        (identity.uid != 0).then_some(identity)
    })
}

/// Reads a user or group id; macOS writes those of `nobody` as -2.
fn parse_id(text: &str) -> Option<u32> {
    text.parse().ok().or_else(|| text.parse::<i32>().ok().map(i32::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_lines_are_read_and_accounts_with_roots_id_are_not_taken() {
        let passwd = "# comment\nroot:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n\
                      postgres:x:101:104:PostgreSQL,,,:/var/lib:/bin/bash\nnobody:*:-2:-2::/:\n";
        assert_eq!(look_up(passwd, "postgres"), Some(Identity { uid: 101, gid: 104 }));
        let nobody = Identity { uid: u32::MAX - 1, gid: u32::MAX - 1 };
        assert_eq!(look_up(passwd, "nobody"), Some(nobody));
        assert_eq!(look_up(passwd, "toor"), None);
        assert_eq!(look_up(passwd, "post"), None);
    }

    #[test]
    fn children_are_never_root_and_do_not_see_our_environment() {
        let account = Account::for_new_cluster();
        let output = account
            .command("/bin/sh", Path::new("/"))
            .args(["-c", "id -u; id -G; env | cut -d= -f1 | sort"])
            .output()
            .unwrap();

        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines();
        assert_ne!(lines.next(), Some("0"));
        let groups = lines.next().unwrap();
        assert!(!is_root() || !groups.split(' ').any(|group| group == "0"), "groups {groups}");
        for name in lines {
            let known = ["LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"];
            assert!(KEPT_VARIABLES.contains(&name) || known.contains(&name), "{name} leaked");
        }
    }

    #[test]
    fn a_closed_folder_on_the_way_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let account = Account::for_new_cluster();
        let closed = account.check_reach(&inner);
        if is_root() {
            assert!(closed.unwrap_err().to_string().contains(root.path().to_str().unwrap()));
        } else {
            closed.unwrap();
        }

        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        account.check_reach(&inner).unwrap();
    }
}
