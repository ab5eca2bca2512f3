//! The folder of one cluster: the data, the password and the log, and who may use them.
//!
//! ```text
//! <home>/data/          what PostgreSQL calls the data directory; belongs to the server's account
//! <home>/password       of the role `registrar`, for kept clusters; readable by its owner only
//! <home>/postgres.log   of the last start
//! ```
//!
//! A lock on the folder itself, held as long as the value lives, keeps a second process out.
//! As root, everything but `data` stays root's: a file that the server's account could
//! replace by a link must never be opened or given away by root.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::{
    Error,
    account::{Account, Identity, is_root},
};

/// How much of the log an error shows.
const LOG_TAIL_LINES: usize = 20;
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// Where clusters go whose own place the server's account cannot reach: survives a restart of
/// the machine, unlike the temporary folder.
const STAND_IN_PARENT: &str = "/var/tmp";

/// The password's length in bytes, before it is written as hexadecimal digits.
const PASSWORD_BYTES: usize = 24;

/// One cluster's folder, locked for us.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    account: Account,
    is_temporary: bool,
    /// Where the user wanted it, when it had to go elsewhere.
    relocated_from: Option<PathBuf>,
    /// Closing it gives up the lock.
    _lock: File,
}

impl Home {
    /// Opens or makes the folder of a cluster that is kept.
    pub(super) fn kept(wanted: &Path) -> Result<Self, Error> {
        let wanted = resolve(wanted)?;
        match Self::kept_at(&wanted) {
            Err(Error::Unreachable { .. }) => {
                let dir = stand_in(&wanted);
                make_stand_in(&dir)?;
                let home = Self::kept_at(&dir)?;
                Ok(Self { relocated_from: Some(wanted), ..home })
            }
            result => result,
        }
    }

    fn kept_at(dir: &Path) -> Result<Self, Error> {
        let account = match fs::symlink_metadata(dir.join("data")) {
            Ok(data) => {
                let owner = Identity { uid: data.uid(), gid: data.gid() };
                Account::for_owner(owner)
                    .ok_or_else(|| Error::NotOwner { home: dir.to_owned(), owner: owner.uid })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Account::for_new_cluster(),
            Err(error) => return Err(Error::io("look at", dir.join("data"))(error)),
        };
        account.check_reach(dir)?;
        if !dir.exists() {
            DirBuilder::new().recursive(true).create(dir).map_err(Error::io("create", dir))?;
            set_mode(dir, 0o711)?;
            // The folders above it are new as well, and made under the caller's umask.
            account.check_reach(dir)?;
        }
        let lock = lock(dir)?;
        let dir = dir.to_owned();
        Ok(Self { dir, account, is_temporary: false, relocated_from: None, _lock: lock })
    }

    /// Makes a folder that lives as long as the cluster.
    pub(super) fn temporary() -> Result<Self, Error> {
        let account = Account::for_new_cluster();
        let mut result = Err(Error::io("use", "/tmp")(io::ErrorKind::NotFound.into()));
        for parent in [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")] {
            let Ok(parent) = parent.canonicalize() else { continue };
            result = account.check_reach(&parent).map(|()| parent);
            if result.is_ok() {
                break;
            }
        }
        let parent = result?;
        let made = tempfile::Builder::new()
            .prefix("registrar-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&parent);
        // Kept, because the server's guard removes it when we cannot.
        let dir = made.map_err(Error::io("create a folder in", parent))?.keep();
        let lock = lock(&dir)?;
        let home = Self { dir, account, is_temporary: true, relocated_from: None, _lock: lock };
        home.give_away(&home.dir)?;
        Ok(home)
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What PostgreSQL calls the data directory.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    pub(super) fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    pub(super) fn relocated_from(&self) -> Option<&Path> {
        self.relocated_from.as_deref()
    }

    /// The major version that wrote the data, or nothing when there are none yet.
    pub(super) fn data_version(&self) -> Option<String> {
        let text = fs::read_to_string(self.data().join("PG_VERSION")).ok()?;
        Some(text.trim().to_owned())
    }

    /// A new log file, in place of that of the last start, so that it cannot grow for ever.
    pub(super) fn new_log(&self) -> Result<File, Error> {
        let path = self.log_path();
        remove_if_exists(&path)?;
        new_private_file(&path)
    }

    /// The last lines of the log.
    pub(super) fn log_tail(&self) -> String {
        read_tail(&self.log_path()).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// The password of a cluster made earlier.
    pub(super) fn password(&self) -> Result<SecretString, Error> {
        let path = self.dir.join("password");
        let text = fs::read_to_string(&path).map_err(Error::io("read", path))?;
        Ok(text.trim_end().to_owned().into())
    }

    /// Makes a password, hands a file with it to `init` together with the folder to fill, and
    /// puts both in place when `init` succeeds: a cluster is there whole or not at all.
    pub(super) fn fill(
        &self,
        init: impl FnOnce(&Path, &Path) -> Result<(), Error>,
    ) -> Result<SecretString, Error> {
        let (new_data, pwfile) = (self.dir.join("data.new"), self.dir.join("password.new"));
        remove_tree(&new_data)?;
        let mut builder = DirBuilder::new();
        builder.mode(0o700).create(&new_data).map_err(Error::io("create", &new_data))?;
        self.give_away(&new_data)?;

        let password = random_password()?;
        self.write_password(&pwfile, &password, self.account.drop_to())?;
        let made = init(&new_data, &pwfile);
        remove_if_exists(&pwfile)?;
        if let Err(error) = made {
            remove_tree(&new_data)?;
            return Err(error);
        }
        if !self.is_temporary {
            let path = self.dir.join("password");
            remove_if_exists(&path)?;
            self.write_password(&path, &password, None)?;
        }
        fs::rename(&new_data, self.data()).map_err(Error::io("move into place", new_data))?;
        Ok(password)
    }

    fn write_password(
        &self,
        path: &Path,
        password: &SecretString,
        owner: Option<Identity>,
    ) -> Result<(), Error> {
        remove_if_exists(path)?;
        let mut file = new_private_file(path)?;
        if let Some(Identity { uid, gid }) = owner {
            // By handle: the name could have been replaced by now.
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))
                .map_err(Error::io("give away", path))?;
        }
        writeln!(file, "{}", password.expose_secret()).map_err(Error::io("write", path))
    }

    /// Gives a folder that we have just made to the server's account.
    fn give_away(&self, path: &Path) -> Result<(), Error> {
        let Some(Identity { uid, gid }) = self.account.drop_to() else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(Error::io("give away", path))
    }

    /// Removes the folder of a temporary cluster; the server must have ended.
    pub(super) fn remove_if_temporary(&self) -> Result<(), Error> {
        if self.is_temporary { remove_tree(&self.dir) } else { Ok(()) }
    }
}

/// The absolute path without links, of which the last parts need not exist yet.
fn resolve(wanted: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(wanted).map_err(Error::io("find", wanted))?;
    for ancestor in absolute.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            let rest = absolute.strip_prefix(ancestor).expect("an ancestor is a prefix");
            // Joining an empty path would add a slash at the end.
            return Ok(if rest.as_os_str().is_empty() { real } else { real.join(rest) });
        }
    }
    Ok(absolute)
}

/// The stand-in for a place that the server's account cannot reach: the same for the same place.
fn stand_in(wanted: &Path) -> PathBuf {
    let digest = Sha256::digest(wanted.as_os_str().as_encoded_bytes());
    Path::new(STAND_IN_PARENT).join(format!("registrar-{}", hex::encode(&digest[..6])))
}

/// Everybody may write to the parent and guess the name, so it must turn out to be root's.
fn make_stand_in(dir: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => set_mode(dir, 0o711),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(dir).map_err(Error::io("look at", dir))?;
            let is_ours = found.is_dir() && found.uid() == 0 && is_root();
            if is_ours { Ok(()) } else { Err(Error::Untrusted { path: dir.to_owned() }) }
        }
        Err(error) => Err(Error::io("create", dir)(error)),
    }
}

fn lock(dir: &Path) -> Result<File, Error> {
    let folder = File::open(dir).map_err(Error::io("open", dir))?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => {
            let pid = super::server::recorded_pid(&dir.join("data"));
            Err(Error::InUse { home: dir.to_owned(), pid })
        }
        Err(TryLockError::Error(error)) => Err(Error::io("lock", dir)(error)),
    }
}

fn random_password() -> Result<SecretString, Error> {
    let mut bytes = [0; PASSWORD_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::io("read random bytes from", "the system")(error.into()))?;
    Ok(hex::encode(bytes).into())
}

/// A file that did not exist before and that only its owner may read.
fn new_private_file(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.append(true).create_new(true).mode(0o600);
    options.open(path).map_err(Error::io("create", path))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(Error::io("set the permissions of", path))
}

fn remove_if_exists(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_user_of_a_folder_is_kept_out_until_the_first_is_done() {
        let root = tempfile::tempdir().unwrap();
        set_mode(root.path(), 0o755).unwrap();
        let place = root.path().join("cluster");
        let first = Home::kept(&place).unwrap();

        assert!(matches!(Home::kept(&place), Err(Error::InUse { pid: None, .. })));
        drop(first);
        Home::kept(&place).unwrap();
    }

    #[test]
    fn a_cluster_that_could_not_be_made_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        set_mode(root.path(), 0o755).unwrap();
        let home = Home::kept(root.path()).unwrap();
        let result = home.fill(|data, _| {
            fs::write(data.join("half"), "made").unwrap();
            Err(Error::Init { home: PathBuf::new(), log: String::new() })
        });

        assert!(matches!(result, Err(Error::Init { .. })));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_password_file_is_for_its_owner_only_and_every_password_differs() {
        let root = tempfile::tempdir().unwrap();
        set_mode(root.path(), 0o755).unwrap();
        let home = Home::kept(root.path()).unwrap();
        let password = home.fill(|_, pwfile| {
            assert_eq!(fs::metadata(pwfile).unwrap().mode() & 0o777, 0o600);
            Ok(())
        });

        let file = fs::metadata(root.path().join("password")).unwrap();
        assert_eq!(file.mode() & 0o777, 0o600);
        let stored = home.password().unwrap();
        assert_eq!(stored.expose_secret(), password.unwrap().expose_secret());
        assert_ne!(stored.expose_secret(), random_password().unwrap().expose_secret());
        assert!(!root.path().join("password.new").exists());
    }

    #[test]
    fn the_tail_of_a_long_log_is_its_last_lines() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let text: Vec<String> = (0..5000).map(|line| format!("line {line}")).collect();
        fs::write(&path, text.join("\n")).unwrap();

        let tail = read_tail(&path).unwrap();

        assert_eq!(tail.lines().count(), LOG_TAIL_LINES);
        assert!(tail.ends_with("line 4998\nline 4999"), "{tail}");
    }

    #[test]
    fn the_stand_in_of_a_place_is_stable_and_its_own() {
        assert_eq!(stand_in(Path::new("/root/a")), stand_in(Path::new("/root/a")));
        assert_ne!(stand_in(Path::new("/root/a")), stand_in(Path::new("/root/b")));
    }
}
