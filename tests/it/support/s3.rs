//! A real S3 server on a real socket, in this process, which can fail on demand.
//!
//! It runs on a thread and a runtime of its own: stopping it ends every connection at once, as if
//! the machine were gone, and it comes back on the same port with what was stored. What a real
//! server does wholly or not at all (begin an upload, complete it, take it back) it does to its end
//! before: the library does it in steps, and a cut between them leaves parts of no upload.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{RwLock, Semaphore};

/// The only bucket.
pub const BUCKET: &str = "results";
/// Keys of its only account.
pub const ACCESS_KEY: &str = "tests";
/// See [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "secret-of-the-tests";

/// How long requests to the disk may hold up the server's end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Write an object in one request.
    Put,
    /// Begin a multipart upload.
    BeginUpload,
    /// Send a part.
    UploadPart,
    /// Make a multipart upload visible.
    CompleteUpload,
    /// Take a multipart upload back.
    AbortUpload,
    /// Delete objects.
    Delete,
    /// Read an object, or list.
    Get,
    /// List multipart uploads that were begun and not ended.
    ListUploads,
    /// Anything else.
    Other,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused, with a status that no client tries again.
    Refuse,
    /// It is answered with "try again later", once.
    Busy,
    /// It is answered with "internal error", once.
    Broken,
    /// It is never answered.
    Hang,
    /// It is answered when the test calls [`S3Server::release`]: with "internal error" if the
    /// server is broken down by then, otherwise as if nothing had been.
    Hold,
}

#[derive(Debug, Default)]
struct Plan {
    /// Fault, operation, and at which request of that operation from now on; counts down.
    faults: Vec<(Fault, Operation, u32)>,
    seen: Vec<Operation>,
    /// What every request meets.
    down: Option<Fault>,
}

/// The server, running or stopped.
#[derive(Debug)]
pub struct S3Server {
    root: TempDir,
    address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    released: Arc<Semaphore>,
    /// Read by what is done wholly or not at all, written by the server's end.
    whole: Arc<RwLock<()>>,
    running: Option<Runtime>,
}

impl S3Server {
    /// Starts a server with an empty bucket on a free port.
    pub fn start() -> Self {
        super::install_crypto();
        let root = TempDir::new().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let released = Arc::new(Semaphore::new(0));
        let (plan, whole) = (Arc::default(), Arc::default());
        let mut server = Self { root, address, plan, released, whole, running: None };
        server.start_again();
        server
    }

    /// Starts a stopped server, on the port that it had.
    pub fn start_again(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("s3")
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let router = router(self);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        self.running = Some(runtime);
    }

    /// Ends the server and all its connections, and waits until its port is free.
    pub fn stop(&mut self) {
        let Some(runtime) = self.running.take() else { return };
        // On a thread, because a runtime must not be waited for in another one.
        let whole = Arc::clone(&self.whole);
        let ending = std::thread::spawn(move || {
            let _done = runtime
                .block_on(async { tokio::time::timeout(END_LIMIT, whole.write_owned()).await });
            runtime.shutdown_timeout(END_LIMIT);
        });
        ending.join().unwrap();
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets the `nth` request from now (1 is the next) of a kind meet a fault.
    pub fn fail(&self, fault: Fault, operation: Operation, nth: u32) {
        self.plan.lock().unwrap().faults.push((fault, operation, nth));
    }

    /// Lets every request meet a fault, until it is told otherwise. What hangs stays hanging.
    pub fn break_down(&self, fault: Option<Fault>) {
        self.plan.lock().unwrap().down = fault;
    }

    /// Takes back the faults that no request has met.
    pub fn heal(&self) {
        let mut plan = self.plan.lock().unwrap();
        plan.faults.clear();
        plan.down = None;
    }

    /// Lets one request go on that is held, or will be.
    pub fn release(&self) {
        self.released.add_permits(1);
    }

    /// How many requests of a kind came in.
    pub fn count(&self, operation: Operation) -> usize {
        self.plan.lock().unwrap().seen.iter().filter(|seen| **seen == operation).count()
    }

    /// Parts of uploads that were neither completed nor aborted.
    pub fn leftover_parts(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".upload")).collect()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn router(server: &S3Server) -> axum::Router {
    let root = server.root.path().to_owned();
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(&root).unwrap());
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = Service { inner: builder.build(), whole: Arc::clone(&server.whole) };
    let (plan, released) = (Arc::clone(&server.plan), Arc::clone(&server.released));
    axum::Router::new().fallback(move |request: Request| {
        let (service, plan) = (service.clone(), Arc::clone(&plan));
        let (released, root) = (Arc::clone(&released), root.clone());
        async move {
            let operation = operation(&request);
            let fault = plan.lock().unwrap().meet(operation);
            match fault {
                None if operation == Operation::ListUploads => {
                    list_uploads(&service, request, &root).await
                }
                None => answer(&service, request).await,
                Some(Fault::Refuse) => refuse(request, StatusCode::FORBIDDEN).await,
                Some(Fault::Busy) => refuse(request, StatusCode::SERVICE_UNAVAILABLE).await,
                Some(Fault::Broken) => refuse(request, StatusCode::INTERNAL_SERVER_ERROR).await,
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::Hold) => {
                    released.acquire().await.expect("it is never closed").forget();
                    let down = plan.lock().unwrap().down;
                    match down {
                        Some(_) => refuse(request, StatusCode::INTERNAL_SERVER_ERROR).await,
                        None => answer(&service, request).await,
                    }
                }
            }
        }
    })
}

/// What the server's library lacks. It checks the signature, and then says that it cannot.
async fn list_uploads(service: &Service, request: Request, root: &Path) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let checked = answer(service, request).await;
    if checked.status() != StatusCode::NOT_IMPLEMENTED {
        return checked;
    }
    let prefix = url::form_urlencoded::parse(query.as_bytes())
        .find_map(|(name, value)| (name == "prefix").then(|| value.into_owned()))
        .unwrap_or_default();
    let mut uploads = String::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // .bucket-{bucket}.object-{key}.upload-{id}.metadata.json, both in base64.
        let parts: Vec<_> = name.split('.').collect();
        let ["", _bucket, object, upload, "metadata", "json"] = parts.as_slice() else { continue };
        let (Some(key), Some(id)) =
            (object.strip_prefix("object-"), upload.strip_prefix("upload-"))
        else {
            continue;
        };
        let key = String::from_utf8(URL_SAFE_NO_PAD.decode(key).unwrap()).unwrap();
        if !key.starts_with(&prefix) {
            continue;
        }
        let since: chrono::DateTime<chrono::Utc> =
            entry.metadata().unwrap().modified().unwrap().into();
        let since = since.to_rfc3339();
        uploads.push_str(&format!(
            "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>{since}</Initiated>\
             <StorageClass>STANDARD</StorageClass></Upload>"
        ));
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListMultipartUploadsResult \
         xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>{BUCKET}</Bucket>\
         <IsTruncated>false</IsTruncated>{uploads}</ListMultipartUploadsResult>"
    )
    .into_response()
}

/// Answers after the whole request: before it the client would see a broken connection.
async fn refuse(request: Request, status: StatusCode) -> Response {
    let _read = axum::body::to_bytes(request.into_body(), usize::MAX).await;
    status.into_response()
}

/// The library's server.
#[derive(Clone)]
struct Service {
    inner: S3Service,
    /// See [`S3Server`].
    whole: Arc<RwLock<()>>,
}

/// Carries a request out in a task of its own: a server goes on with what its client asked for,
/// also when the client has left.
async fn answer(service: &Service, request: Request) -> Response {
    let Service { inner, whole } = service.clone();
    let is_whole = matches!(
        operation(&request),
        Operation::BeginUpload | Operation::CompleteUpload | Operation::AbortUpload
    );
    let answering = async move {
        let _until_done = match is_whole {
            true => Some(whole.read_owned().await),
            false => None,
        };
        inner.call(request.map(s3s::Body::http_body_unsync)).await
    };
    match tokio::spawn(answering).await.expect("the server does not panic") {
        Ok(response) => response.map(Body::new),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
    }
}

impl Plan {
    fn meet(&mut self, operation: Operation) -> Option<Fault> {
        self.seen.push(operation);
        if let Some(fault) = self.down {
            return Some(fault);
        }
        for (_, of, left) in &mut self.faults {
            if *of == operation {
                *left = left.saturating_sub(1);
            }
        }
        let due = self.faults.iter().position(|(_, of, left)| *of == operation && *left == 0)?;
        Some(self.faults.remove(due).0)
    }
}

fn operation(request: &Request) -> Operation {
    let query = request.uri().query().unwrap_or_default();
    match *request.method() {
        Method::PUT if query.contains("partNumber=") => Operation::UploadPart,
        Method::PUT => Operation::Put,
        Method::POST if query.contains("uploadId=") => Operation::CompleteUpload,
        Method::POST if query.starts_with("uploads") => Operation::BeginUpload,
        Method::DELETE if query.contains("uploadId=") => Operation::AbortUpload,
        Method::DELETE => Operation::Delete,
        Method::POST if query.starts_with("delete") => Operation::Delete,
        Method::GET if query.starts_with("uploads") => Operation::ListUploads,
        Method::GET => Operation::Get,
        _ => Operation::Other,
    }
}
