//! A TCP proxy in front of PostgreSQL that can cut every connection.
//!
//! On a thread and a runtime of its own, because a test's runtime stands still while its app is
//! dropped, and dropping asks the database.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use registrar::config::Config;
use registrar::db::REPORT_ROLE;
use secrecy::ExposeSecret;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use url::Url;

use super::database::REPORT_PASSWORD;

/// Passes connections on until it is told to cut them.
#[derive(Debug)]
pub struct PostgresProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<(String, u16)>,
    refuses: AtomicBool,
    connections: Mutex<Vec<AbortHandle>>,
}

impl PostgresProxy {
    /// Starts a proxy in front of the server of a URL.
    pub fn start(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::new(target(url)),
            refuses: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, runtime: Some(runtime) }
    }

    /// The same URL, through the proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.into()
    }

    /// The URL of the report role, through the proxy.
    pub fn report_url(&self, config: &Config) -> String {
        let url = config.database.url.as_ref().expect("tests have one").expose_secret();
        let mut url = Url::parse(&self.url(url)).unwrap();
        url.set_username(REPORT_ROLE).unwrap();
        url.set_password(Some(REPORT_PASSWORD)).unwrap();
        url.into()
    }

    /// Passes new connections on to another server, for example the same one on a new port.
    pub fn point_to(&self, url: &str) {
        *self.shared.target.lock().unwrap() = target(url);
    }

    /// Ends every connection, without a word to either side. Returns how many there were.
    pub fn cut(&self) -> usize {
        let cut: Vec<AbortHandle> = self.shared.connections.lock().unwrap().drain(..).collect();
        let open = cut.iter().filter(|connection| !connection.is_finished()).count();
        cut.iter().for_each(AbortHandle::abort);
        open
    }

    /// Whether new connections are refused.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn target(url: &str) -> (String, u16) {
    let url = Url::parse(url).unwrap();
    let host = url.host_str().expect("the tests' server listens on TCP").to_owned();
    (host, url.port().unwrap_or(5432))
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((mut client, _)) = listener.accept().await {
        if shared.refuses.load(Ordering::SeqCst) {
            continue; // dropped: closed
        }
        let target = shared.target.lock().unwrap().clone();
        let connection = tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(target).await else { return };
            // How it ends does not matter: both sides see their socket close.
            let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
        shared.connections.lock().unwrap().push(connection.abort_handle());
    }
}
