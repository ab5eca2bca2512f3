//! One message, sent once. What comes back is a status and nothing else: the answer's body is not
//! read, because it can be endless and could hold anything.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode, redirect};

use super::address::{AddressRefused, Guard};
use super::signature::{Secret, signatures};
use crate::config::WebhookConfig;

/// Longest pause that a receiver may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// A message for one receiver.
#[derive(Debug)]
pub struct Message<'a> {
    /// Where to.
    pub url: &'a str,
    /// The same for each attempt: receivers know repetitions by it.
    pub id: &'a str,
    /// Seconds since the epoch, by the database's clock.
    pub timestamp: i64,
    /// JSON.
    pub body: Vec<u8>,
    /// The newest first.
    pub secrets: &'a [Secret],
}

/// Why a message did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The receiver answered with a status other than 2xx.
    Status {
        /// Which.
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// It wants nothing more: 410.
    Gone,
    /// It answered with another address, where nobody asked us to go.
    Redirected {
        /// Which 3xx.
        status: u16,
    },
    /// It did not answer in time.
    TimedOut,
    /// Its address is not public.
    AddressRefused,
    /// No connection: name, network, TLS.
    Unreachable,
    /// The URL or the secret that is stored cannot be used.
    Unusable,
}

impl Failure {
    /// For programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Gone => "gone",
            Self::Redirected { .. } => "redirected",
            Self::TimedOut => "timed_out",
            Self::AddressRefused => "address_refused",
            Self::Unreachable => "unreachable",
            Self::Unusable => "unusable",
        }
    }

    /// The status of the answer, where there was one.
    pub const fn status(self) -> Option<u16> {
        match self {
            Self::Status { status, .. } | Self::Redirected { status } => Some(status),
            Self::Gone => Some(410),
            Self::TimedOut | Self::AddressRefused | Self::Unreachable | Self::Unusable => None,
        }
    }
}

/// Sends messages.
#[derive(Debug, Clone)]
pub struct Sender {
    client: Client,
    guard: Guard,
}

impl Sender {
    /// A sender with these settings.
    ///
    /// # Errors
    /// The system has no roots of trust, or no TLS.
    pub fn new(config: &WebhookConfig) -> Result<Self, reqwest::Error> {
        let guard = Guard::new(&config.allow_networks, config.allow_http);
        let timeout = Duration::from_secs(config.timeout_secs.get().into());
        let client = Client::builder()
            .user_agent(concat!("Registrar/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(std::sync::Arc::new(guard.clone()))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            // A kept connection would outlive the look at its address.
            .pool_max_idle_per_host(0)
            .connect_timeout(timeout)
            .timeout(timeout)
            .build()?;
        Ok(Self { client, guard })
    }

    /// Sends a message and answers with the status of a receiver that took it.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn send(&self, message: Message<'_>) -> Result<u16, Failure> {
        let url = self.guard.read(message.url).map_err(|_| Failure::Unusable)?;
        let Message { url: _, id, timestamp, body, secrets } = message;
        if secrets.is_empty() {
            return Err(Failure::Unusable);
        }
        let request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signatures(secrets, id, timestamp, &body))
            .body(body);
        let answer = request.send().await.map_err(|error| failure(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(status.as_u16());
        }
        Err(match status {
            StatusCode::GONE => Failure::Gone,
            status if status.is_redirection() => Failure::Redirected { status: status.as_u16() },
            status => {
                let seconds =
                    answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                let seconds = seconds.and_then(|text| text.parse().ok()).map(Duration::from_secs);
                Failure::Status {
                    status: status.as_u16(),
                    retry_after: seconds.map(|pause| pause.min(MAX_RETRY_AFTER)),
                }
            }
        })
    }
}

/// What of an error is told; its own text can hold the URL.
fn failure(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        return Failure::TimedOut;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<AddressRefused>() {
            return Failure::AddressRefused;
        }
        source = cause.source();
    }
    Failure::Unreachable
}
