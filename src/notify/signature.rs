//! Secrets and signatures: HMAC-SHA-256 over `id.timestamp.body`, in base64 behind `v1,`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// How every secret begins, so that scanners and people see what it is.
const PREFIX: &str = "whsec_";
/// Standard Webhooks asks for 24 to 64.
const SECRET_BYTES: usize = 32;

/// What sender and receiver share. Never shown but by [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// A new one; `None` where the system gives no random bits.
    pub fn generate() -> Option<Self> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The one of these bytes, if it is as long as a secret.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes, to be sealed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As its owner needs it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(self.0))
    }

    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let mut context = hmac::Context::with_key(&key);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

/// The value of `webhook-signature`: one signature for each secret, the newest first.
pub fn signatures(secrets: &[Secret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let all: Vec<_> = secrets.iter().map(|secret| secret.sign(id, timestamp, body)).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hmac over the same bytes.
    #[test]
    fn a_signature_is_what_others_compute() {
        let secret = Secret::from_bytes(&[b'k'; SECRET_BYTES]).expect("32 bytes");
        assert_eq!(secret.reveal(), "whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=");
        let body = br#"{"type":"webhook.ping"}"#;
        let signed = signatures(&[secret.clone(), secret], "msg_1", 1_700_000_000, body);
        let (first, second) = signed.split_once(' ').expect("two signatures");
        assert_eq!(first, second);
        assert_eq!(first, "v1,LjYFNHy4R7/P54HgaNMTnOdY+nPHfoMkAZJFb72iR+o=");
    }

    #[test]
    fn secrets_are_new_each_time_and_not_shown() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(one, other);
        assert_eq!(format!("{one:?}"), "Secret(…)");
    }
}
