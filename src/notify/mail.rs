//! Mails, one at a time, over SMTP.
//!
//! A mail holds a link to the service, where rights are checked when it is followed, and never a
//! link that opens the file by itself.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lettre::message::header::ContentType;
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use secrecy::ExposeSecret;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::EmailConfig;

/// Mails at once: each may hold a file in memory.
const MAX_MAILS: usize = 4;

/// A mail to be sent.
#[derive(Debug)]
pub struct Mail {
    /// Who gets it.
    pub to: String,
    /// Its subject, ASCII.
    pub subject: String,
    /// Its text.
    pub text: String,
    /// The same for each attempt: mail programs know repetitions by it.
    pub message_id: String,
    /// When it was written.
    pub date: DateTime<Utc>,
    /// A file that comes with it.
    pub attachment: Option<AttachedFile>,
}

/// A file that comes with a mail.
#[derive(Debug)]
pub struct AttachedFile {
    /// Its name.
    pub name: String,
    /// Its media type.
    pub media_type: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Why a mail did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailFailure {
    /// The server refuses it for good (5xx).
    Refused,
    /// The server refuses it for now (4xx), or does not answer.
    Unreachable,
    /// It did not answer in time.
    TimedOut,
    /// The address or the settings cannot be used.
    Unusable,
}

impl MailFailure {
    /// For programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Unusable => "unusable",
        }
    }

    /// Whether another attempt can help.
    pub const fn may_pass(self) -> bool {
        match self {
            Self::Refused | Self::Unusable => false,
            Self::Unreachable | Self::TimedOut => true,
        }
    }
}

/// Sends mails.
#[derive(Debug, Clone)]
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    places: Arc<Semaphore>,
}

/// The settings cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MailerError {
    /// `email.url`
    #[error("email.url must be a URL like smtps://user:password@mail.example:465")]
    Url,
    /// `email.from`
    #[error("email.from must be an address like Registrar <registrar@example.org>")]
    From,
}

impl Mailer {
    /// A mailer with these settings; `None` where they name no server.
    ///
    /// # Errors
    /// [`MailerError`]
    pub fn new(config: &EmailConfig) -> Result<Option<Self>, MailerError> {
        let Some(url) = &config.url else { return Ok(None) };
        let from = config.from.parse().map_err(|_| MailerError::From)?;
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.expose_secret())
            .map_err(|_| MailerError::Url)?
            .timeout(Some(Duration::from_secs(config.timeout_secs.get().into())))
            .build();
        Ok(Some(Self { transport, from, places: Arc::new(Semaphore::new(MAX_MAILS)) }))
    }

    /// A place among the mails that are written and sent at once. Keep it until the mail is sent.
    pub async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    /// Sends a mail.
    ///
    /// # Errors
    /// [`MailFailure`]; the server's own words can hold the address, and are dropped.
    pub async fn send(&self, mail: Mail) -> Result<(), MailFailure> {
        let message = self.compose(mail).ok_or(MailFailure::Unusable)?;
        match self.transport.send(message).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_permanent() => Err(MailFailure::Refused),
            Err(error) if error.is_timeout() => Err(MailFailure::TimedOut),
            Err(_) => Err(MailFailure::Unreachable),
        }
    }

    fn compose(&self, mail: Mail) -> Option<Message> {
        let Mail { to, subject, text, message_id, date, attachment } = mail;
        let builder = Message::builder()
            .from(self.from.clone())
            .to(to.parse().ok()?)
            .subject(subject)
            .message_id(Some(format!("<{message_id}@registrar.invalid>")))
            .date(date.into());
        let message = match attachment {
            None => builder.header(ContentType::TEXT_PLAIN).body(text),
            Some(AttachedFile { name, media_type, bytes }) => {
                let media_type = ContentType::parse(&media_type).ok()?;
                let file = Attachment::new(name).body(bytes, media_type);
                builder.multipart(
                    MultiPart::mixed().singlepart(SinglePart::plain(text)).singlepart(file),
                )
            }
        };
        message.ok()
    }
}
