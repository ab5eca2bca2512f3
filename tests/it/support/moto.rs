//! moto, an S3 server of other people's, where it is installed.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use registrar::config::{Config, DEFAULTS};
use registrar::store::Store;
use tempfile::TempDir;

use super::app::use_s3_at;
use super::eventually;
use super::s3::BUCKET;

/// Names a Python that has moto: see `script/test`.
const PYTHON: &str = "REGISTRAR_READERS_PYTHON";
/// How long an interpreter may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server with an empty bucket.
#[derive(Debug)]
pub struct Server {
    child: Child,
    endpoint: String,
    /// Of its log.
    _folder: TempDir,
}

impl Server {
    /// Starts it on a free port; `None` where it is not installed, which is told.
    pub async fn start() -> Option<Self> {
        let Some(python) = std::env::var_os(PYTHON) else {
            super::tell(&format!("left out: {PYTHON} is not set, run script/test"));
            return None;
        };
        super::install_crypto();
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("log");
        let log = File::create(&path).unwrap();
        let child = Command::new(python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let endpoint = eventually("moto to listen", START_LIMIT, async || {
            let log = std::fs::read_to_string(&path).unwrap();
            let address = log.split_once("Running on ")?.1;
            address.split_once('\n').map(|(address, _)| address.trim().to_owned())
        })
        .await;
        let server = Self { child, endpoint, _folder: folder };
        let bucket = format!("{}/{BUCKET}", server.endpoint);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        assert!(client.put(bucket).send().await.unwrap().status().is_success());
        Some(server)
    }

    /// A store on it, with the smallest parts.
    pub fn store(&self) -> Store {
        let mut config: Config = toml::from_str(DEFAULTS).unwrap();
        use_s3_at(&mut config, self.endpoint.clone());
        config.store.part_bytes = 5 << 20;
        Store::open(&config.store).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}
