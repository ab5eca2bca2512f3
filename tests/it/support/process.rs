//! The real binary as a child process, to be killed, paused and measured.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use registrar::config::Config;
use rustix::process::{Pid, Signal, kill_process};
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::app::LOOPBACK;
use super::eventually;
#[cfg(target_os = "linux")]
use super::skew::WrongClock;

/// How long a process may take to end after SIGTERM or SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A running `registrar`.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Working directory, so that no `registrar.toml` of the checkout is read, and log.
    folder: TempDir,
}

/// What a process may write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Whatever it likes.
    Usual,
    /// There is no folder for temporary files.
    WithoutScratch,
    /// No file grows beyond this: writing more fails, as on a disk that is full.
    FullAt {
        /// Largest file.
        mib: u64,
    },
}

impl Process {
    /// Runs `registrar` with these arguments and settings.
    pub fn start(config: &Config, arguments: &[&str]) -> Self {
        Self::start_on(Disk::Usual, config, arguments)
    }

    /// As [`Process::start`], on a machine whose clock is so many seconds ahead, or behind.
    #[cfg(target_os = "linux")]
    pub fn start_skewed(
        clock: &WrongClock,
        skew_secs: i64,
        config: &Config,
        arguments: &[&str],
    ) -> Self {
        let skew = [
            ("LD_PRELOAD", clock.library().display().to_string()),
            ("TEST_CLOCK_SKEW_SECS", skew_secs.to_string()),
        ];
        Self::start_with(Disk::Usual, &skew, config, arguments)
    }

    /// As [`Process::start`], with its temporary files in a folder of the test's.
    pub fn start_in(scratch: &Path, config: &Config, arguments: &[&str]) -> Self {
        let scratch = [("TMPDIR", scratch.display().to_string())];
        Self::start_with(Disk::Usual, &scratch, config, arguments)
    }

    /// As [`Process::start`], on a disk of this kind.
    pub fn start_on(disk: Disk, config: &Config, arguments: &[&str]) -> Self {
        Self::start_with(disk, &[], config, arguments)
    }

    fn start_with(
        disk: Disk,
        more: &[(&str, String)],
        config: &Config,
        arguments: &[&str],
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let program = env!("CARGO_BIN_EXE_registrar");
        let mut command = match disk {
            Disk::Usual | Disk::WithoutScratch => Command::new(program),
            Disk::FullAt { mib } => {
                // The signal is ignored by what a shell starts that ignores it. Blocks of 512 bytes.
                let limited = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", mib * 2048);
                let mut shell = Command::new("sh");
                shell.args(["-c", &limited, program]);
                shell
            }
        };
        command.args(arguments).envs(environment(config)).current_dir(folder.path());
        command.envs(more.iter().map(|(name, value)| (name, value)));
        if disk == Disk::WithoutScratch {
            command.env("TMPDIR", folder.path().join("no-such-folder"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { child: command.spawn().unwrap(), folder }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// A file that it wrote where it was started.
    pub fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal: `KILL`, `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the end of registrar", END_LIMIT, async || self.child.try_wait().unwrap()).await
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The largest memory that it ever had resident.
    pub fn peak_memory_bytes(&self) -> u64 {
        let path = PathBuf::from(format!("/proc/{}/status", self.pid()));
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
        kib * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::KILL);
            self.child.wait().unwrap();
        }
        if std::thread::panicking() {
            super::tell(&format!("log of registrar {}:\n{}", self.pid(), self.log()));
        }
    }
}

/// The settings that tests change, as the environment of a process.
fn environment(config: &Config) -> Vec<(String, String)> {
    let Config {
        database,
        http,
        operations,
        console: _,
        store,
        worker,
        report,
        lifecycle,
        idempotency: _,
        erasure,
        backup,
        webhook,
        email,
        log,
    } = config;
    let secret = |secret: &Option<secrecy::SecretString>| {
        secret.as_ref().map(|secret| secret.expose_secret().to_owned())
    };
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let settings: [(&str, Option<String>); _] = [
        ("DATABASE__URL", secret(&database.url)),
        ("DATABASE__REPORT_URL", secret(&database.report_url)),
        ("DATABASE__REPLICA_MAX_LAG_SECS", Some(database.replica_max_lag_secs.to_string())),
        ("DATABASE__REPORT_PASSWORD", secret(&database.report_password)),
        ("DATABASE__MAX_CONNECTIONS", Some(database.max_connections.to_string())),
        ("DATABASE__ACQUIRE_TIMEOUT_SECS", Some(database.acquire_timeout_secs.to_string())),
        ("HTTP__LISTEN", Some(http.listen.to_string())),
        ("HTTP__SHUTDOWN_DELAY_SECS", Some(http.shutdown_delay_secs.to_string())),
        ("HTTP__SHUTDOWN_GRACE_SECS", Some(http.shutdown_grace_secs.to_string())),
        (
            "OPERATIONS__OTLP_ENDPOINT",
            operations.otlp_endpoint.as_ref().map(|url| url.as_str().to_owned()),
        ),
        ("OPERATIONS__LISTEN", operations.listen.map(|address| address.to_string())),
        ("STORE__URL", Some(store.url.clone())),
        ("STORE__ENDPOINT", store.endpoint.clone()),
        ("STORE__REGION", store.region.clone()),
        ("STORE__ACCESS_KEY_ID", store.access_key_id.clone()),
        ("STORE__SECRET_ACCESS_KEY", secret(&store.secret_access_key)),
        ("STORE__ALLOW_HTTP", Some(store.allow_http.to_string())),
        ("STORE__PART_BYTES", Some(store.part_bytes.to_string())),
        ("STORE__SIGNED_LINKS", Some(store.signed_links.to_string())),
        ("STORE__RETRY_SECS", Some(store.retry_secs.to_string())),
        ("STORE__REQUEST_TIMEOUT_SECS", Some(store.request_timeout_secs.to_string())),
        ("WORKER__CONCURRENCY", Some(worker.concurrency.to_string())),
        ("WORKER__LEASE_SECS", Some(worker.lease_secs.to_string())),
        ("WORKER__REAP_INTERVAL_MS", Some(worker.reap_interval_ms.to_string())),
        ("WORKER__SHUTDOWN_GRACE_SECS", Some(worker.shutdown_grace_secs.to_string())),
        ("WORKER__RETRY_BASE_MS", Some(worker.retry_base_ms.to_string())),
        ("REPORT__TEMPLATES_DIR", Some(report.templates_dir.display().to_string())),
        ("REPORT__TIMEOUT_SECS", Some(report.timeout_secs.to_string())),
        ("REPORT__LOCK_TIMEOUT_MS", Some(report.lock_timeout_ms.to_string())),
        ("REPORT__MAX_ROWS", Some(report.max_rows.to_string())),
        ("REPORT__MAX_BYTES", Some(report.max_bytes.to_string())),
        ("REPORT__MAX_RUNNING_PER_USER", Some(report.max_running_per_user.to_string())),
        ("REPORT__MAX_RUNNING", Some(report.max_running.to_string())),
        ("REPORT__MAX_ATTEMPTS", Some(report.max_attempts.to_string())),
        ("LIFECYCLE__JOBS_DIR", Some(lifecycle.jobs_dir.display().to_string())),
        (
            "BACKUP__ENCRYPT_TO",
            (!backup.encrypt_to.is_empty()).then(|| backup.encrypt_to.join(",")),
        ),
        ("BACKUP__ALLOW_PLAIN", Some(backup.allow_plain.to_string())),
        ("BACKUP__IDENTITY_FILE", path(&backup.identity_file)),
        ("BACKUP__TOOLS_DIR", path(&backup.tools_dir)),
        ("BACKUP__VERIFY_SERVER_URL", secret(&backup.verify_server_url)),
        ("BACKUP__KEEP__DAILY", Some(backup.keep.daily.to_string())),
        ("BACKUP__KEEP__WEEKLY", Some(backup.keep.weekly.to_string())),
        ("BACKUP__KEEP__MONTHLY", Some(backup.keep.monthly.to_string())),
        ("BACKUP__KEEP__YEARLY", Some(backup.keep.yearly.to_string())),
        ("WEBHOOK__ALLOW_HTTP", Some(webhook.allow_http.to_string())),
        (
            "WEBHOOK__ALLOW_NETWORKS",
            (!webhook.allow_networks.is_empty()).then(|| LOOPBACK.to_owned()),
        ),
        ("WEBHOOK__TIMEOUT_SECS", Some(webhook.timeout_secs.to_string())),
        ("EMAIL__URL", secret(&email.url)),
        ("EMAIL__ATTACH_MAX_BYTES", Some(email.attach_max_bytes.to_string())),
        ("LOG__FILTER", Some(log.filter.clone())),
    ];
    let given = settings.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let keys = erasure.keys.iter().map(|(id, key)| {
        (format!("ERASURE__KEYS__{}", id.to_uppercase()), key.expose_secret().to_owned())
    });
    let erasure = [
        ("ERASURE__CHUNK_ROWS".to_owned(), erasure.chunk_rows.to_string()),
        ("ERASURE__LEASE_SECS".to_owned(), erasure.lease_secs.to_string()),
        ("ERASURE__RETRY_SECS".to_owned(), erasure.retry_secs.to_string()),
    ];
    given
        .chain(keys)
        .chain(erasure)
        .map(|(key, value)| (format!("REGISTRAR__{key}"), value))
        .collect()
}
