//! A server over data that a program restores, for as long as somebody looks at them.
//!
//! Nobody gets in but over a socket in its own folder, which only the server's account and root may
//! enter: there every role is let in, because whose passwords are in the data is not known. It
//! reads no settings of the data's own but those of recovery, and archives nothing.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::account::Account;
use super::home::Home;
use super::server::Server;
use super::{Binaries, Error, blocking};

/// How long it may take to replay the write-ahead log.
const RECOVERY_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);

/// A running server over restored data, which end with this value.
#[derive(Debug)]
pub struct RestoredCluster {
    /// Present until it is stopped.
    server: Option<Server>,
    home: Home,
    port: u16,
}

/// Where the data go.
#[derive(Debug)]
pub struct RestoreInto {
    /// The empty folder to fill.
    pub data: PathBuf,
    /// Where it is when the server starts: what is written into settings must say this.
    pub data_later: PathBuf,
    account: Account,
}

impl RestoreInto {
    /// A command of the account that must own the data.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.account.command(program, Path::new("/"))
    }
}

/// A command of the account that servers run as: `postgres` where we are root, else ourselves.
pub fn command_of_server_account(program: impl AsRef<OsStr>) -> Command {
    Account::for_new_cluster().command(program, Path::new("/"))
}

impl RestoredCluster {
    /// Has `restore` fill the data, starts the server and waits until recovery is over.
    ///
    /// # Errors
    /// As [`super::PrivateCluster::start`], and what `restore` says in
    /// [`Error::Restore`].
    pub async fn start<F>(binaries: Binaries, restore: F) -> Result<Self, Error>
    where
        F: FnOnce(&RestoreInto) -> Result<(), String> + Send + 'static,
    {
        blocking(move || Self::start_server(&binaries, restore)).await
    }

    fn start_server(
        binaries: &Binaries,
        restore: impl FnOnce(&RestoreInto) -> Result<(), String>,
    ) -> Result<Self, Error> {
        let home = Home::temporary()?;
        match Self::start_in(&home, binaries, restore) {
            Ok(server) => Ok(Self { port: server.port(), server: Some(server), home }),
            Err(error) => {
                home.remove_if_temporary()?;
                Err(error)
            }
        }
    }

    fn start_in(
        home: &Home,
        binaries: &Binaries,
        restore: impl FnOnce(&RestoreInto) -> Result<(), String>,
    ) -> Result<Server, Error> {
        home.account().check_reach(&binaries.program("postgres"))?;
        home.fill(|data, _password| {
            let into = RestoreInto {
                data: data.to_owned(),
                data_later: home.data(),
                account: home.account().clone(),
            };
            restore(&into).map_err(Error::Restore)
        })?;
        let files = [("settings.conf", ""), ("access.conf", "local all all trust\n")];
        for (name, text) in files {
            let path = home.dir().join(name);
            // New, never through a link: the folder is the server's account's.
            let written = std::fs::File::create_new(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
            written.map_err(Error::io("write", path))?;
        }
        let in_home = |name: &str| home.dir().join(name).display().to_string();
        let settings = [
            ("config_file", in_home("settings.conf")),
            ("hba_file", in_home("access.conf")),
            ("unix_socket_directories", home.dir().display().to_string()),
            ("unix_socket_permissions", "0700".to_owned()),
            ("listen_addresses", String::new()),
            ("archive_mode", "off".to_owned()),
            // Nobody is let in before recovery is over, and limits of the source do not matter.
            ("hot_standby", "off".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        Server::start(home, binaries, &settings, RECOVERY_LIMIT)
    }

    /// The folder of its socket.
    pub fn socket_dir(&self) -> &Path {
        self.home.dir()
    }

    /// Its port, which names the socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the server and removes the data.
    ///
    /// # Errors
    /// It cannot be ended, or the data not be removed.
    pub async fn stop(mut self) -> Result<(), Error> {
        blocking(move || self.stop_server()).await
    }

    fn stop_server(&mut self) -> Result<(), Error> {
        let Some(server) = self.server.take() else { return Ok(()) };
        server.stop(true)?;
        self.home.remove_if_temporary()
    }
}

impl Drop for RestoredCluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop_server() {
            tracing::error!(error = %error, "a server over restored data was not stopped: {error}");
        }
    }
}
