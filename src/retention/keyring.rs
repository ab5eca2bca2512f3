//! Keys that live outside the database: for tokens, for the ledger, and for what a cancelled
//! erasure needs back.
//!
//! A copy of the database without the keys can neither link a token to a person nor open what
//! was sealed. Keys have names and are rotated by adding one: what was made with an older key
//! names it. Cryptography is ring's, which the TLS of the store and the database uses already.

use std::collections::BTreeMap;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// The keys of an installation.
#[derive(Debug, Clone)]
pub struct Keyring {
    active: String,
    keys: BTreeMap<String, Key>,
}

/// One key. Never shown.
#[derive(Clone)]
pub struct Key([u8; KEY_BYTES]);

/// A key is missing or cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No keys are set.
    #[error(
        "erasure.keys must name at least one key of 32 bytes in hexadecimal: \
         `openssl rand -hex 32` makes one"
    )]
    NoKeys,
    /// A key is not 32 bytes in hexadecimal.
    #[error("erasure.keys.{id} must be 32 bytes in hexadecimal, 64 digits")]
    BadKey {
        /// Its name.
        id: String,
    },
    /// There is no key of that name.
    #[error("erasure.keys has no key `{id}`, which is needed")]
    UnknownKey {
        /// The name.
        id: String,
    },
    /// What was sealed cannot be opened: with another key, or it was changed.
    #[error("what was sealed with key `{id}` cannot be opened: another key, or it was changed")]
    CannotOpen {
        /// The key's name.
        id: String,
    },
    /// The system has no random bits.
    #[error("the system gives no random bits")]
    NoRandom,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Keyring {
    /// Reads keys; `active` is the one that new tokens are made with.
    ///
    /// # Errors
    /// [`KeyError`] naming the setting.
    pub fn new<'a>(
        active: &str,
        keys: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, KeyError> {
        let mut read = BTreeMap::new();
        for (id, text) in keys {
            let bytes = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
            let bytes = bytes.ok_or_else(|| KeyError::BadKey { id: id.to_owned() })?;
            read.insert(id.to_owned(), Key(bytes));
        }
        if read.is_empty() {
            return Err(KeyError::NoKeys);
        }
        let keyring = Self { active: active.to_owned(), keys: read };
        keyring.key(active)?;
        Ok(keyring)
    }

    /// The name of the key for what is new.
    pub fn active_id(&self) -> &str {
        &self.active
    }

    /// The key for what is new.
    pub fn active(&self) -> &Key {
        &self.keys[&self.active]
    }

    /// The names of all keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    /// A key by name.
    ///
    /// # Errors
    /// [`KeyError::UnknownKey`]
    pub fn key(&self, id: &str) -> Result<&Key, KeyError> {
        self.keys.get(id).ok_or_else(|| KeyError::UnknownKey { id: id.to_owned() })
    }

    /// Opens what [`Key::seal`] made with the key of that name.
    ///
    /// # Errors
    /// [`KeyError::UnknownKey`] and [`KeyError::CannotOpen`]
    pub fn open(&self, id: &str, about: &str, sealed: &[u8]) -> Result<Vec<u8>, KeyError> {
        let failed = || KeyError::CannotOpen { id: id.to_owned() };
        self.key(id)?.open(about, sealed).ok_or_else(failed)
    }
}

impl Key {
    /// A key of these bytes.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// HMAC-SHA-256 over parts. Each goes in behind its length, so that no two lists of parts
    /// read the same; `purpose` keeps uses apart.
    pub fn mac(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        for part in std::iter::once(purpose.as_bytes()).chain(parts.iter().copied()) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut mac = [0; 32];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }

    /// Encrypts with AES-256-GCM; `about` must be the same again to open it.
    ///
    /// # Errors
    /// [`KeyError::NoRandom`]
    pub fn seal(&self, about: &str, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| KeyError::NoRandom)?;
        let mut sealed = plain.to_vec();
        self.cipher()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(about.as_bytes()),
                &mut sealed,
            )
            .expect("a value of a few kilobytes is not too long");
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn open(&self, about: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = sealed.to_vec();
        let plain = self.cipher().open_in_place(nonce, Aad::from(about.as_bytes()), &mut text);
        Some(plain.ok()?.to_vec())
    }

    /// Tokens and ciphers never share a key.
    fn cipher(&self) -> LessSafeKey {
        let derived = self.mac("seal", &[]);
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &derived).expect("32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0101010101010101010101010101010101010101010101010101010101010101";
    const TWO: &str = "0202020202020202020202020202020202020202020202020202020202020202";

    #[test]
    fn keys_are_read_or_refused_by_name() {
        assert_eq!(Keyring::new("k1", []).unwrap_err(), KeyError::NoKeys);
        assert_eq!(
            Keyring::new("k1", [("k1", "abc")]).unwrap_err(),
            KeyError::BadKey { id: "k1".to_owned() }
        );
        assert_eq!(
            Keyring::new("k2", [("k1", ONE)]).unwrap_err(),
            KeyError::UnknownKey { id: "k2".to_owned() }
        );
        assert!(!format!("{:?}", Keyring::new("k1", [("k1", ONE)])).contains("01"));
    }

    #[test]
    fn what_was_sealed_opens_with_its_key_only_and_unchanged_only() {
        let keys = Keyring::new("k2", [("k1", ONE), ("k2", TWO)]).expect("two keys");
        let sealed = keys.active().seal("erasure 1", b"ann").expect("random bits");
        assert_eq!(keys.open("k2", "erasure 1", &sealed).expect("it opens"), b"ann");
        assert!(!sealed.windows(3).any(|bytes| bytes == b"ann"));
        let cannot = KeyError::CannotOpen { id: "k1".to_owned() };
        assert_eq!(keys.open("k1", "erasure 1", &sealed).unwrap_err(), cannot);
        assert!(keys.open("k2", "erasure 2", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(keys.open("k2", "erasure 1", &changed).is_err(), "byte {at}");
        }
        assert!(keys.open("k2", "erasure 1", &sealed[..5]).is_err());
    }

    #[test]
    fn macs_keep_parts_and_purposes_apart() {
        let key = Key::from_bytes([1; 32]);
        let base = key.mac("a", &[b"1", b"23"]);
        assert_ne!(base, key.mac("a", &[b"12", b"3"]));
        assert_ne!(base, key.mac("b", &[b"1", b"23"]));
        assert_eq!(base, key.mac("a", &[b"1", b"23"]));
    }
}
