//! Settings: one commented default file, embedded; then a file; then the environment.
//!
//! Everything is typed and checked before anything starts; an error names the key and what was
//! expected. The only module that reads environment variables.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

mod network;

pub use network::Network;

/// The commented defaults, which are the manual too.
pub const DEFAULTS: &str = include_str!("config.default.toml");

/// All settings of a process.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the truth is.
    pub database: DatabaseConfig,
    /// The API's listener and limits.
    pub http: HttpConfig,
    /// The listener of health and metrics, in every process.
    pub operations: OperationsConfig,
    /// Signing in to the web pages.
    pub console: ConsoleConfig,
    /// Where results are.
    pub store: StoreConfig,
    /// How reports are run.
    pub worker: WorkerConfig,
    /// What reports may take.
    pub report: ReportConfig,
    /// Lifecycle policies.
    pub lifecycle: LifecycleConfig,
    /// Idempotency keys.
    pub idempotency: IdempotencyConfig,
    /// Erasures of people.
    pub erasure: ErasureConfig,
    /// Backups: for whom, how long.
    pub backup: BackupConfig,
    /// Webhooks: what may be called.
    pub webhook: WebhookConfig,
    /// Mails of scheduled reports.
    pub email: EmailConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// URL of the application's database.
    pub url: Option<SecretString>,
    /// URL for reports.
    pub report_url: Option<SecretString>,
    /// Password of the report role.
    pub report_password: Option<SecretString>,
    /// How far behind the replica of `report_url` may be; 0: however far.
    pub replica_max_lag_secs: u64,
    /// Size of the pool.
    pub max_connections: NonZeroU32,
    /// Longest wait for a connection.
    pub acquire_timeout_secs: NonZeroU64,
}

/// `[http]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Largest body.
    pub max_body_bytes: NonZeroUsize,
    /// Most requests in work.
    pub max_in_flight: NonZeroUsize,
    /// Longest request, downloads apart.
    pub request_timeout_secs: NonZeroU64,
    /// How long `/readyz` says no before connections are refused.
    pub shutdown_delay_secs: u64,
    /// Longest wait for open requests at the end.
    pub shutdown_grace_secs: u64,
}

/// `[operations]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationsConfig {
    /// Address and port of `/healthz`, `/readyz` and `/metrics` alone.
    pub listen: Option<SocketAddr>,
    /// Where spans are sent, without `/v1/traces`.
    pub otlp_endpoint: Option<url::Url>,
}

/// `[console]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Whether browsers send the session only over HTTPS, and to this machine's own address.
    pub secure_cookies: bool,
    /// Longest session.
    pub max_age_hours: NonZeroU32,
    /// Longest time that a session is not used.
    pub idle_minutes: NonZeroU32,
}

/// `[store]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// A folder or `s3://bucket/prefix`.
    pub url: String,
    /// Address of an S3 server that is not AWS.
    pub endpoint: Option<String>,
    /// S3 region.
    pub region: Option<String>,
    /// S3 access key.
    pub access_key_id: Option<String>,
    /// S3 secret key.
    pub secret_access_key: Option<SecretString>,
    /// Whether `http://` endpoints are permitted.
    pub allow_http: bool,
    /// Size of one part of an upload.
    pub part_bytes: usize,
    /// Longest retrying of one request.
    pub retry_secs: NonZeroU64,
    /// Whether clients may be sent to the store with a signed link.
    pub signed_links: bool,
    /// Longest wait for the answer to one request.
    pub request_timeout_secs: NonZeroU64,
    /// Age at which a file of no execution is deleted.
    pub sweep_after_hours: NonZeroU32,
}

/// `[worker]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// Reports at once.
    pub concurrency: NonZeroUsize,
    /// Length of a lease.
    pub lease_secs: NonZeroU32,
    /// Time between two looks for orphans.
    pub reap_interval_ms: NonZeroU64,
    /// Longest wait for running reports at the end.
    pub shutdown_grace_secs: u64,
    /// First pause between attempts.
    pub retry_base_ms: NonZeroU32,
}

/// `[report]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportConfig {
    /// Folder of templates.
    pub templates_dir: PathBuf,
    /// Longest attempt.
    pub timeout_secs: NonZeroU64,
    /// Most rows.
    pub max_rows: NonZeroU64,
    /// Largest file.
    pub max_bytes: NonZeroU64,
    /// Most unfinished executions of a user.
    pub max_active_per_user: NonZeroU32,
    /// Most executions of a user that run at once, over all processes.
    pub max_running_per_user: NonZeroU32,
    /// Most executions that run at once, over all processes.
    pub max_running: NonZeroU32,
    /// Attempts before giving up.
    pub max_attempts: NonZeroU32,
    /// Longest wait for a lock.
    pub lock_timeout_ms: NonZeroU32,
    /// Days that results are kept.
    pub expires_after_days: NonZeroU32,
    /// Connections of a report that is read in ranges.
    pub split_connections: NonZeroUsize,
}

/// `[lifecycle]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifecycleConfig {
    /// Folder of policies.
    pub jobs_dir: PathBuf,
}

/// `[idempotency]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyConfig {
    /// Hours that a key is remembered.
    pub retention_hours: NonZeroU32,
}

/// `[erasure]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErasureConfig {
    /// Name of the key that new tokens are made with.
    pub active_key: String,
    /// Keys by name, in hexadecimal.
    #[serde(default)]
    pub keys: BTreeMap<String, SecretString>,
    /// People in one go.
    pub batch: NonZeroU32,
    /// Rows in one transaction.
    pub chunk_rows: NonZeroU32,
    /// Length of a lease.
    pub lease_secs: NonZeroU32,
    /// Pause before what could not be ended is tried again.
    pub retry_secs: NonZeroU32,
}

/// `[backup]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupConfig {
    /// age recipients: whose keys open a backup.
    pub encrypt_to: Vec<String>,
    /// Whether a backup may be stored without encryption.
    pub allow_plain: bool,
    /// File with the age identities that open backups.
    pub identity_file: Option<PathBuf>,
    /// How a dump is compressed.
    pub compression: BackupCompression,
    /// How hard.
    pub compression_level: u32,
    /// Folder with `pg_dump` and `pg_restore`.
    pub tools_dir: Option<PathBuf>,
    /// Server for verifications instead of a private one.
    pub verify_server_url: Option<SecretString>,
    /// Longest wait of a migration for a lock.
    pub migration_lock_timeout_secs: NonZeroU32,
    /// How often a migration is tried that others are in the way of.
    pub migration_lock_tries: NonZeroU32,
    /// How many backups are kept.
    pub keep: KeepConfig,
    /// Where pgBackRest is.
    pub pgbackrest: PgBackRestConfig,
}

/// `[backup.pgbackrest]`: of policies whose engine it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PgBackRestConfig {
    /// The program.
    pub program: PathBuf,
    /// Its settings; without it its own default.
    pub config_file: Option<PathBuf>,
    /// Its name of the cluster. Without it no backup of pgBackRest is listed.
    pub stanza: Option<String>,
    /// What it makes.
    pub backup_type: PhysicalType,
}

/// What pgBackRest makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhysicalType {
    /// Everything.
    Full,
    /// What has changed since the last full one.
    Diff,
    /// What has changed since the last one.
    Incr,
}

/// `[backup.keep]`, of backups that no policy asked for: how many periods of each length keep their
/// last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepConfig {
    /// Days.
    pub daily: u32,
    /// Weeks.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
    /// Days that a backup made before a migration is pinned.
    pub pre_migration_days: u32,
}

/// How a dump is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupCompression {
    /// Zstandard, level 1 to 19.
    Zstd,
    /// gzip, level 1 to 9.
    Gzip,
}

/// `[webhook]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Whether `http://` may be called.
    pub allow_http: bool,
    /// Addresses that may be called though they are not public.
    pub allow_networks: Vec<Network>,
    /// Longest request.
    pub timeout_secs: NonZeroU32,
    /// Hours that a secret goes on signing beside its successor.
    pub rotation_hours: NonZeroU16,
    /// Days that events and their deliveries are kept.
    pub keep_days: NonZeroU16,
}

/// `[email]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailConfig {
    /// The server, with user and password.
    pub url: Option<SecretString>,
    /// Who mails are from.
    pub from: String,
    /// Where people see an execution; `{execution}` is its number.
    pub link: Option<String>,
    /// Largest file that may be attached.
    pub attach_max_bytes: u64,
    /// Longest silence of the server.
    pub timeout_secs: NonZeroU32,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// One line of text or of JSON per event.
    pub format: LogFormat,
    /// Which events.
    pub filter: String,
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A source is not readable, or a value has the wrong type. The message names the key.
    #[error("cannot read the settings: {0}")]
    Read(#[from] config::ConfigError),
    /// A value is out of its range.
    #[error("{key} must be {expected}")]
    Invalid {
        /// The key, as in the file.
        key: &'static str,
        /// What was expected.
        expected: &'static str,
    },
}

/// What the command line says about settings.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config FILE`
    pub file: Option<PathBuf>,
    /// `--database-url URL` or `DATABASE_URL`
    pub database_url: Option<String>,
}

impl Config {
    /// Reads defaults, file and environment, and checks them.
    pub fn load(overrides: &Overrides) -> Result<Self, ConfigError> {
        let environment = config::Environment::with_prefix("REGISTRAR")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("backup.encrypt_to")
            .with_list_parse_key("webhook.allow_networks");
        Self::build(overrides, environment)
    }

    fn build(overrides: &Overrides, environment: config::Environment) -> Result<Self, ConfigError> {
        let mut builder = config::Config::builder()
            .add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        builder = match &overrides.file {
            Some(file) => builder.add_source(toml_file(file).required(true)),
            None => builder.add_source(toml_file(Path::new("registrar.toml")).required(false)),
        };
        builder = builder.add_source(environment);
        if let Some(url) = &overrides.database_url {
            // Only where neither file nor REGISTRAR__DATABASE__URL says otherwise.
            builder = builder.set_default("database.url", url.as_str())?;
        }
        let config: Self = builder.build()?.try_deserialize()?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key, expected| Err(ConfigError::Invalid { key, expected });
        if !(5 * 1024 * 1024..=512 * 1024 * 1024).contains(&self.store.part_bytes) {
            return invalid("store.part_bytes", "between 5 MiB (S3's minimum) and 512 MiB");
        }
        if self.store.url.is_empty() {
            return invalid("store.url", "a folder or s3://bucket/prefix");
        }
        if self.worker.lease_secs.get() < 3 {
            return invalid("worker.lease_secs", "at least 3");
        }
        if self.database.max_connections.get() < 5 {
            return invalid("database.max_connections", "at least 5");
        }
        if self.report.split_connections.get() > 16 {
            return invalid("report.split_connections", "at most 16");
        }
        if self.erasure.chunk_rows.get() > 10_000 {
            return invalid("erasure.chunk_rows", "at most 10000");
        }
        if self.erasure.batch.get() > 10_000 {
            return invalid("erasure.batch", "at most 10000");
        }
        if self.report.max_attempts.get() > 100 {
            return invalid("report.max_attempts", "at most 100");
        }
        if self.webhook.timeout_secs.get() > 60 {
            return invalid("webhook.timeout_secs", "at most 60");
        }
        if self.email.link.as_ref().is_some_and(|link| !link.contains("{execution}")) {
            return invalid("email.link", "a URL with {execution} in it");
        }
        if self.email.attach_max_bytes > 20 * 1024 * 1024 {
            return invalid("email.attach_max_bytes", "at most 20 MiB: it is kept in memory");
        }
        if self.email.timeout_secs.get() > 300 {
            return invalid("email.timeout_secs", "at most 300");
        }
        self.backup.validate()
    }
}

impl BackupConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key, expected| Err(ConfigError::Invalid { key, expected });
        let (levels, expected) = match self.compression {
            BackupCompression::Zstd => (1..=19, "between 1 and 19 for zstd"),
            BackupCompression::Gzip => (1..=9, "between 1 and 9 for gzip"),
        };
        if !levels.contains(&self.compression_level) {
            return invalid("backup.compression_level", expected);
        }
        let KeepConfig { daily, weekly, monthly, yearly, pre_migration_days: _ } = self.keep;
        if daily + weekly + monthly + yearly == 0 {
            return invalid("backup.keep", "at least 1 in one of its tiers");
        }
        if [daily, weekly, monthly, yearly].iter().any(|kept| *kept > 10_000) {
            return invalid("backup.keep", "at most 10000 in each of its tiers");
        }
        Ok(())
    }
}

fn toml_file(path: &Path) -> config::File<config::FileSourceFile, config::FileFormat> {
    config::File::new(&path.to_string_lossy(), config::FileFormat::Toml)
}

impl WorkerConfig {
    /// Length of a lease.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(u64::from(self.lease_secs.get()))
    }

    /// Longest wait for running reports after SIGTERM.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> config::Environment {
        let source = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        config::Environment::with_prefix("REGISTRAR")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("backup.encrypt_to")
            .with_list_parse_key("webhook.allow_networks")
            .source(Some(source))
    }

    fn load(pairs: &[(&str, &str)]) -> Result<Config, String> {
        let overrides = Overrides { file: None, database_url: Some("postgres://fallback".into()) };
        Config::build(&overrides, environment(pairs)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_complete_and_valid() {
        let config = load(&[]).expect("the embedded defaults load");
        assert_eq!(config.worker.lease_secs.get(), 20);
        assert_eq!(config.log.format, LogFormat::Text);
    }

    #[test]
    fn the_environment_wins_over_the_defaults() {
        let config = load(&[("REGISTRAR__WORKER__CONCURRENCY", "9")]).expect("a number");
        assert_eq!(config.worker.concurrency.get(), 9);
    }

    #[test]
    fn a_wrong_value_is_refused_by_name() {
        let cases = [
            ("REGISTRAR__WORKER__CONCURRENCY", "0", "worker.concurrency"),
            ("REGISTRAR__WORKER__CONCURRENCY", "many", "worker.concurrency"),
            ("REGISTRAR__STORE__PART_BYTES", "10", "store.part_bytes must be between 5 MiB"),
            ("REGISTRAR__HTTP__LISTEN", "nowhere", "http.listen"),
            ("REGISTRAR__WORKER__CONCURENCY", "4", "concurency"),
            ("REGISTRAR__LOG__FORMAT", "xml", "log.format"),
            ("REGISTRAR__BACKUP__COMPRESSION_LEVEL", "20", "backup.compression_level must be"),
            ("REGISTRAR__WEBHOOK__ALLOW_NETWORKS", "10.0.0.0/99", "allow_networks"),
            ("REGISTRAR__EMAIL__LINK", "https://registrar.example", "email.link must be a URL"),
            ("REGISTRAR__WEBHOOK__TIMEOUT_SECS", "61", "webhook.timeout_secs must be at most 60"),
            ("REGISTRAR__BACKUP__KEEP__DAILY", "99999", "backup.keep must be at most"),
        ];
        for (key, value, expected) in cases {
            let error = load(&[(key, value)]).expect_err(key);
            assert!(error.contains(expected), "{key}={value}: {error}");
        }
    }
}
