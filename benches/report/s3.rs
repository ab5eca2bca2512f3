//! An S3 server on a real socket, in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use registrar::config::StoreConfig;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

const BUCKET: &str = "bench";
const ACCESS_KEY: &str = "bench";
const SECRET_KEY: &str = "secret-of-the-bench";

/// What a client needs.
pub struct Access {
    endpoint: String,
}

impl Access {
    /// Access to the server at `endpoint`.
    pub fn to(endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned() }
    }

    /// Makes the server the store.
    pub fn apply(&self, store: &mut StoreConfig) {
        store.url = format!("s3://{BUCKET}");
        store.endpoint = Some(self.endpoint.clone());
        store.region = Some("us-east-1".to_owned());
        store.access_key_id = Some(ACCESS_KEY.to_owned());
        store.secret_access_key = Some(SECRET_KEY.into());
        store.allow_http = true;
    }
}

/// A running server, which ends with this value.
pub struct Server {
    child: Child,
    bucket: PathBuf,
    /// Where it listens.
    pub endpoint: String,
}

impl Server {
    /// Starts a server over `folder`, with an empty bucket.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        let bucket = folder.join(BUCKET);
        std::fs::create_dir_all(&bucket)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("s3")
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()
            .context("start the S3 server")?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let mut endpoint = String::new();
        BufReader::new(stdout).read_line(&mut endpoint)?;
        Ok(Self { child, bucket, endpoint: endpoint.trim().to_owned() })
    }

    /// Where an object of the bucket is on the disk.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.bucket.join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves `folder` until it is killed; says on standard output where.
pub async fn serve(folder: &Path) -> anyhow::Result<()> {
    let files = s3s_fs::FileSystem::new(folder)
        .map_err(|error| anyhow::anyhow!("open {}: {error:?}", folder.display()))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
    let router = axum::Router::new().fallback(move |request: Request| {
        let service = service.clone();
        async move { answer(&service, request).await }
    });
    Ok(axum::serve(listener, router).await?)
}

async fn answer(service: &S3Service, request: Request) -> Response {
    match service.call(request.map(s3s::Body::http_body_unsync)).await {
        Ok(response) => response.map(Body::new),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
    }
}
