//! Signing in to the console: with the application's own accounts, or with a token.
//!
//! What a guesser learns is the same whatever was wrong: unknown name, wrong password, closed
//! account and unusable password give one answer, no sooner than `FAILURE_FLOOR`, after checking
//! a hash of the same cost. Tries are counted by account and address in the database, so that N
//! processes count together, before the password is looked at. A session's secret is new at each
//! sign-in: what a browser held before is ended, not taken over.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::access::token_hash;
use super::{Caller, ServiceError, Services};
use crate::db::audit::{self, Actor, Event};
use crate::db::sessions::{self, OpenedWith, SessionRow};
use crate::db::tokens;

/// Tries are counted over this time.
const WINDOW_SECS: i32 = 900;
/// Most tries for one account from one address, for one account, and from one address. The middle
/// one is high: nobody should be able to lock somebody else out from one place.
const MAX_PAIR: i32 = 10;
const MAX_ACCOUNT: i32 = 100;
const MAX_ADDRESS: i32 = 100;
/// A failure is answered no sooner than this after the request came.
const FAILURE_FLOOR: Duration = Duration::from_millis(500);
/// Checked where there is no account to borrow a hash from.
const DECOY: &str = "pbkdf2_sha256$1000000$registrar$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// Longest name that is looked for, in characters.
const MAX_USERNAME_CHARS: usize = 150;
/// Ended sessions and old tries deleted beside a sign-in.
const PRUNE_BATCH: i64 = 100;
/// Random bits of a session, in bytes.
const SECRET_BYTES: usize = 32;

/// Who is signed in.
#[derive(Debug, Clone)]
pub struct Session {
    /// With the rights of this moment.
    pub caller: Caller,
    /// What the account is called by.
    pub username: String,
    /// What every form of this session repeats.
    pub csrf_token: String,
}

/// What a form must repeat: only who knows the cookie can compute it.
pub fn csrf_token(secret: &str) -> String {
    hex::encode(Sha256::digest(format!("registrar csrf {secret}")))
}

impl Services {
    /// Signs in with name and password, and returns the new session's secret. `before` is the
    /// secret that the browser had: that session ends.
    ///
    /// # Errors
    /// [`ServiceError::Unauthenticated`] whatever was wrong, [`ServiceError::TooManySignIns`].
    pub async fn sign_in(
        &self,
        username: &str,
        password: &str,
        before: Option<&str>,
        actor: &Actor,
    ) -> Result<String, ServiceError> {
        let floor = Instant::now() + FAILURE_FLOOR;
        let outcome = self.try_password(username, password, before, actor).await;
        if matches!(outcome, Err(ServiceError::Unauthenticated)) {
            tokio::time::sleep_until(floor).await;
        }
        outcome
    }

    async fn try_password(
        &self,
        username: &str,
        password: &str,
        before: Option<&str>,
        actor: &Actor,
    ) -> Result<String, ServiceError> {
        self.count_attempt(username, actor.ip_address).await?;
        let known = match username.chars().count() {
            1..=MAX_USERNAME_CHARS if !username.contains('\0') => {
                sessions::find_credentials(&self.db, username).await?
            }
            _ => None,
        };
        let stored = match &known {
            Some(account) if account.password.contains('$') => account.password.clone(),
            // An account without a password takes as long as one with.
            _ => sessions::find_decoy(&self.db).await?.unwrap_or_else(|| DECOY.to_owned()),
        };
        let matches = self.passwords.verify(password, &stored).await;
        match known {
            Some(account) if matches && stored == account.password => {
                let with = OpenedWith::Password(&account.password);
                self.open(account.user_id, with, before, actor, username).await
            }
            known => {
                self.record_failure(known.map(|account| account.user_id), actor).await?;
                Err(ServiceError::Unauthenticated)
            }
        }
    }

    /// Signs in with a token, whose scopes and life the session shares.
    ///
    /// # Errors
    /// [`ServiceError::Unauthenticated`], [`ServiceError::TooManySignIns`].
    pub async fn sign_in_with_token(
        &self,
        token: &str,
        before: Option<&str>,
        actor: &Actor,
    ) -> Result<String, ServiceError> {
        self.count_attempt("", actor.ip_address).await?;
        let Some(principal) = tokens::find_principal(&self.db, &token_hash(token)).await? else {
            self.record_failure(None, actor).await?;
            return Err(ServiceError::Unauthenticated);
        };
        let with = OpenedWith::Token(principal.token_id);
        self.open(principal.user_id, with, before, actor, "").await
    }

    /// Finds out whose session this is.
    ///
    /// # Errors
    /// [`ServiceError::Unauthenticated`] for one that is unknown or over.
    pub async fn authenticate_session(
        &self,
        secret: &str,
        actor: Actor,
        trace_id: String,
    ) -> Result<Session, ServiceError> {
        if secret.len() != SECRET_BYTES * 2 {
            return Err(ServiceError::Unauthenticated);
        }
        let idle = i32::try_from(self.config.console.idle_minutes.get().saturating_mul(60));
        let row = sessions::find(&self.db, &token_hash(secret), idle.unwrap_or(i32::MAX))
            .await?
            .ok_or(ServiceError::Unauthenticated)?;
        sessions::touch(&self.db, row.id).await?;
        let SessionRow { id: _, user_id, username, is_superuser, permissions, token_id, scopes } =
            row;
        let token = token_id.map(|id| (id, scopes));
        let actor = Actor { user_id: Some(user_id), ..actor };
        let caller = Caller::signed_in(is_superuser, permissions, token, actor, trace_id);
        Ok(Session { caller, username, csrf_token: csrf_token(secret) })
    }

    /// Ends a session, at once and for every process.
    ///
    /// # Errors
    /// The database's. A session that is over already is none.
    pub async fn sign_out(&self, secret: &str, actor: &Actor) -> Result<(), ServiceError> {
        let mut tx = self.db.begin().await?;
        end(&mut tx, secret, actor).await?;
        Ok(tx.commit().await?)
    }

    async fn open(
        &self,
        user_id: i32,
        with: OpenedWith<'_>,
        before: Option<&str>,
        actor: &Actor,
        username: &str,
    ) -> Result<String, ServiceError> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes)
            .map_err(|error| ServiceError::Internal(anyhow::anyhow!("no random bits: {error}")))?;
        let secret = hex::encode(bytes);
        let max_age = i32::try_from(self.config.console.max_age_hours.get().saturating_mul(3_600));
        let actor = Actor { user_id: Some(user_id), ..actor.clone() };
        let mut tx = self.db.begin().await?;
        if let Some(before) = before {
            end(&mut tx, before, &actor).await?;
        }
        sessions::prune(&mut tx, PRUNE_BATCH).await?;
        let max_age = max_age.unwrap_or(i32::MAX);
        let id = sessions::insert(&mut tx, user_id, with, &token_hash(&secret), max_age).await?;
        // Only what fails stays counted: a whole office may sit behind one address.
        for (hash, _) in counted(username, actor.ip_address) {
            sessions::uncount_attempt(&mut tx, &hash).await?;
        }
        if !username.is_empty() {
            sessions::forget_attempts(&mut tx, &pair(username, actor.ip_address)).await?;
        }
        let how = match with {
            OpenedWith::Password(_) => "password",
            OpenedWith::Token(_) => "token",
        };
        record(&mut tx, &actor, "session.opened", id, json!({ "with": how })).await?;
        tx.commit().await?;
        Ok(secret)
    }

    /// Counts a try before anything is looked at, so that many at once count as many.
    async fn count_attempt(
        &self,
        username: &str,
        address: Option<IpAddr>,
    ) -> Result<(), ServiceError> {
        let mut connection = self.db.acquire().await?;
        for (hash, most) in counted(username, address) {
            if sessions::count_attempt(&mut connection, &hash, WINDOW_SECS).await? > most {
                return Err(ServiceError::TooManySignIns { retry_after_secs: WINDOW_SECS });
            }
        }
        Ok(())
    }

    async fn record_failure(
        &self,
        user_id: Option<i32>,
        actor: &Actor,
    ) -> Result<(), ServiceError> {
        let mut connection = self.db.acquire().await?;
        let event = Event {
            action: "session.refused",
            entity_type: "users",
            entity_id: user_id.map(i64::from),
            // Not the name that was given: people type passwords into that field.
            details: json!({}),
        };
        Ok(audit::record(&mut connection, actor, event).await?)
    }
}

async fn end(
    connection: &mut sqlx::PgConnection,
    secret: &str,
    actor: &Actor,
) -> Result<(), sqlx::Error> {
    let Some((id, user_id)) = sessions::revoke(connection, &token_hash(secret)).await? else {
        return Ok(());
    };
    let actor = Actor { user_id: Some(user_id), ..actor.clone() };
    record(connection, &actor, "session.closed", id, json!({})).await
}

async fn record(
    connection: &mut sqlx::PgConnection,
    actor: &Actor,
    action: &str,
    id: i64,
    details: serde_json::Value,
) -> Result<(), sqlx::Error> {
    let event = Event { action, entity_type: "console_sessions", entity_id: Some(id), details };
    audit::record(connection, actor, event).await
}

/// What a try is counted by, and how many each may have. A token cannot be guessed: only the
/// address counts.
fn counted(username: &str, address: Option<IpAddr>) -> Vec<(Vec<u8>, i32)> {
    let mut subjects = Vec::new();
    if !username.is_empty() {
        subjects.push((pair(username, address), MAX_PAIR));
        subjects.push((subject("account", username), MAX_ACCOUNT));
    }
    if let Some(address) = address {
        subjects.push((subject("address", &address.to_string()), MAX_ADDRESS));
    }
    subjects
}

fn pair(username: &str, address: Option<IpAddr>) -> Vec<u8> {
    let address = address.map(|address| address.to_string()).unwrap_or_default();
    subject("pair", &format!("{address} {}", username.to_lowercase()))
}

/// Names and addresses are counted without being kept.
fn subject(kind: &str, value: &str) -> Vec<u8> {
    Sha256::digest(format!("registrar {kind} {}", value.to_lowercase())).to_vec()
}
