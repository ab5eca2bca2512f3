//! A small SMTP server on a real socket: it keeps what it gets, or refuses it.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A mail as it came.
#[derive(Debug, Clone)]
pub struct ReceivedMail {
    /// Who it is for, by the envelope.
    pub recipients: Vec<String>,
    /// Headers and body, as sent.
    pub data: String,
}

impl ReceivedMail {
    /// A header's value.
    pub fn header(&self, name: &str) -> &str {
        let prefix = format!("{name}: ");
        let line = self.data.lines().take_while(|line| !line.is_empty());
        line.filter_map(|line| line.strip_prefix(&prefix)).next().unwrap_or_default()
    }

    /// What follows the headers, with the soft line breaks of quoted-printable taken out.
    pub fn body(&self) -> String {
        let (_, body) = self.data.split_once("\r\n\r\n").unwrap();
        body.replace("=\r\n", "")
    }
}

/// A running server. It ends with this value.
#[derive(Debug)]
pub struct SmtpServer {
    /// `smtp://127.0.0.1:port`
    pub url: String,
    state: Shared,
    serving: JoinHandle<()>,
}

#[derive(Debug, Clone, Default)]
struct Shared {
    received: Arc<Mutex<Vec<ReceivedMail>>>,
    /// What it answers to a recipient, where it does not take them.
    refusal: Arc<Mutex<Option<&'static str>>>,
}

impl SmtpServer {
    /// Starts one that takes every mail.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("smtp://{}", listener.local_addr().unwrap());
        let state = Shared::default();
        let shared = state.clone();
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = shared.clone();
                // A client that hangs up ends its conversation, which is all.
                tokio::spawn(async move { converse(socket, shared).await.unwrap_or_default() });
            }
        });
        Self { url, state, serving }
    }

    /// From now on recipients are refused with this answer, or taken.
    pub fn refuses(&self, answer: Option<&'static str>) {
        *self.state.refusal.lock().unwrap() = answer;
    }

    /// What came so far.
    pub fn received(&self) -> Vec<ReceivedMail> {
        self.state.received.lock().unwrap().clone()
    }
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn converse(socket: TcpStream, state: Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(socket);
    stream.get_mut().write_all(b"220 sink\r\n").await?;
    let mut recipients = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "RCPT" => match *state.refusal.lock().unwrap() {
                Some(refusal) => format!("{refusal}\r\n"),
                None => {
                    let address = line.split(['<', '>']).nth(1).unwrap_or_default();
                    recipients.push(address.to_owned());
                    "250 ok\r\n".to_owned()
                }
            },
            "DATA" => {
                stream.get_mut().write_all(b"354 go on\r\n").await?;
                let mut data = String::new();
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await? == 0 {
                        return Ok(());
                    }
                    if line == ".\r\n" {
                        break;
                    }
                    data.push_str(line.strip_prefix('.').unwrap_or(&line));
                }
                let recipients = std::mem::take(&mut recipients);
                state.received.lock().unwrap().push(ReceivedMail { recipients, data });
                "250 kept\r\n".to_owned()
            }
            "QUIT" => {
                stream.get_mut().write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => "250 ok\r\n".to_owned(),
        };
        stream.get_mut().write_all(answer.as_bytes()).await?;
    }
}
