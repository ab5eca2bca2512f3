//! Passwords as Django stores them: `pbkdf2_sha256`, `argon2`, `bcrypt_sha256`.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Longest password that is looked at, in bytes; Django's forms take 4,096 characters.
const MAX_PASSWORD_BYTES: usize = 4_096;
/// Longest stored hash: Django's column has 128 characters.
const MAX_HASH_BYTES: usize = 256;
/// Dearest hash that is computed: a row must not be able to stop the service.
const MAX_ITERATIONS: u32 = 10_000_000;
const MAX_ARGON2_KIB: u32 = 1_048_576;
const MAX_BCRYPT_COST: u32 = 16;

/// How many passwords are checked at once: each takes a core for a while.
const MAX_AT_ONCE: usize = 2;

/// Bounds how many passwords are checked at once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PasswordChecker(Arc<Semaphore>);

impl Default for PasswordChecker {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_AT_ONCE)))
    }
}

impl PasswordChecker {
    /// Whether a password is the one of a stored hash. A hash that cannot be read, or of another
    /// kind, has no password. Off the runtime's threads, because it is meant to be slow.
    pub async fn verify(&self, password: &str, stored: &str) -> bool {
        if password.len() > MAX_PASSWORD_BYTES || !is_bearable(stored) {
            return false;
        }
        let Ok(_place) = self.0.acquire().await else { return false };
        let (password, stored) = (password.to_owned(), stored.to_owned());
        let checked = tokio::task::spawn_blocking(move || {
            djangohashers::check_password(&password, &stored).unwrap_or(false)
        });
        checked.await.unwrap_or(false)
    }
}

/// Whether a hash is of a kind that we know, at a price that we pay.
fn is_bearable(stored: &str) -> bool {
    if stored.len() > MAX_HASH_BYTES || !stored.is_ascii() {
        return false;
    }
    let mut parts = stored.split('$');
    match parts.next() {
        Some("pbkdf2_sha256") => {
            let iterations = parts.next().and_then(|text| text.parse::<u32>().ok());
            let is_whole = parts.clone().count() == 2 && parts.all(|part| !part.is_empty());
            iterations.is_some_and(|n| (1..=MAX_ITERATIONS).contains(&n)) && is_whole
        }
        Some("argon2") => {
            let costs = stored.split('$').find(|part| part.starts_with("m="));
            let memory = costs
                .and_then(|part| part.split(',').next())
                .and_then(|part| part.strip_prefix("m=").and_then(|text| text.parse::<u32>().ok()));
            memory.is_some_and(|kib| kib <= MAX_ARGON2_KIB)
        }
        Some("bcrypt_sha256") => {
            // `bcrypt_sha256$$2b$12$…`: the rest is bcrypt's own form.
            let cost = stored.split('$').nth(3).and_then(|text| text.parse::<u32>().ok());
            cost.is_some_and(|cost| (4..=MAX_BCRYPT_COST).contains(&cost))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn what_django_writes_is_understood() {
        // Written by Django 5.2 and 4.2 with its default salts and parameters, shortened costs.
        for stored in [
            "pbkdf2_sha256$1000$seasalt$vl+ynEY7rUvlTTtl43LiGiOELdT82XqCqt+mYFfEffY=",
            "argon2$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$Yw",
        ] {
            assert!(is_bearable(stored), "{stored}");
        }
        let made = djangohashers::make_password_with_settings(
            "lètmein",
            "seasalt",
            djangohashers::Algorithm::PBKDF2,
        );
        let checker = PasswordChecker::default();
        assert!(checker.verify("lètmein", &made).await);
        assert!(!checker.verify("letmein", &made).await);
    }

    #[tokio::test]
    async fn what_has_no_password_lets_nobody_in() {
        let checker = PasswordChecker::default();
        for stored in [
            "",
            "!",
            "!unusable",
            "x",
            "pbkdf2_sha256$",
            "pbkdf2_sha256$0$salt$hash",
            "pbkdf2_sha256$99999999999$salt$hash",
            "pbkdf2_sha256$4000000000$salt$hash",
            "argon2$argon2id$v=19$m=4294967295,t=1,p=1$c2FsdHNhbHQ$aGFzaA",
            "bcrypt_sha256$$2b$31$abc",
            "md5$salt$hash",
            "plain$$secret",
        ] {
            assert!(!checker.verify("secret", stored).await, "{stored}");
        }
    }

    proptest! {
        #[test]
        fn any_stored_text_is_read(stored in ".{0,60}") {
            is_bearable(&stored);
        }
    }
}
