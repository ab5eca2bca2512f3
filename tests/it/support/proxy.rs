//! A TCP proxy in front of PostgreSQL that can cut every connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use registrar::config::Config;
use registrar::db::REPORT_ROLE;
use secrecy::ExposeSecret;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};
use url::Url;

use super::database::REPORT_PASSWORD;

/// Passes connections on until it is told to cut them.
#[derive(Debug)]
pub struct PostgresProxy {
    address: SocketAddr,
    refuses: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    accepting: JoinHandle<()>,
}

impl PostgresProxy {
    /// Starts a proxy in front of the server of a URL.
    pub async fn start(url: &str) -> Self {
        let url = Url::parse(url).unwrap();
        let host = url.host_str().expect("the tests' server listens on TCP").to_owned();
        let target = (host, url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let refuses = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let accepting =
            tokio::spawn(accept(listener, target, Arc::clone(&refuses), Arc::clone(&connections)));
        Self { address, refuses, connections, accepting }
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

    /// Ends every connection, without a word to either side. Returns how many there were.
    pub fn cut(&self) -> usize {
        let cut: Vec<AbortHandle> = self.connections.lock().unwrap().drain(..).collect();
        let open = cut.iter().filter(|connection| !connection.is_finished()).count();
        cut.iter().for_each(AbortHandle::abort);
        open
    }

    /// Whether new connections are refused.
    pub fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    target: (String, u16),
    refuses: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
) {
    while let Ok((mut client, _)) = listener.accept().await {
        if refuses.load(Ordering::SeqCst) {
            continue; // dropped: closed
        }
        let target = target.clone();
        let connection = tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(target).await else { return };
            // How it ends does not matter: both sides see their socket close.
            let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
        connections.lock().unwrap().push(connection.abort_handle());
    }
}
