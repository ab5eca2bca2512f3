//! Bearer tokens: made once, shown once, stored as a hash.

use serde_json::json;

use super::access::{TOKEN_PREFIX, token_hash};
use super::{ServiceError, Services};
use crate::db::audit::{self, Actor};
use crate::db::tokens::{self, NewToken, TokenRow};

/// Random bits of a token, in bytes.
const TOKEN_BYTES: usize = 32;
/// Characters of a token that may be seen: the fixed beginning and eight more.
const VISIBLE_CHARS: usize = TOKEN_PREFIX.len() + 8;

/// A token that was just made: the only time that it can be read.
#[derive(Debug)]
pub struct CreatedToken {
    /// Its number.
    pub id: i64,
    /// The visible part.
    pub prefix: String,
    /// The whole.
    pub token: String,
}

impl Services {
    /// Makes a token for an account.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] where no active account has the username.
    pub async fn create_token(
        &self,
        username: &str,
        name: &str,
        scopes: Option<&[String]>,
        expires_after_days: Option<i32>,
    ) -> Result<CreatedToken, ServiceError> {
        let mut secret = [0; TOKEN_BYTES];
        getrandom::fill(&mut secret)
            .map_err(|error| ServiceError::Internal(anyhow::anyhow!("no random bits: {error}")))?;
        let token = format!("{TOKEN_PREFIX}{}", hex::encode(secret));
        let prefix = token[..VISIBLE_CHARS].to_owned();
        let mut tx = self.db.begin().await?;
        let new = NewToken {
            username,
            name,
            prefix: &prefix,
            token_sha256: &token_hash(&token),
            scopes,
            expires_after_days,
        };
        let (id, user_id) = tokens::insert(&mut tx, new)
            .await?
            .ok_or(ServiceError::NotFound { what: "active account" })?;
        let event = audit::Event {
            action: "token.created",
            entity_type: "api_tokens",
            entity_id: Some(id),
            details: json!({ "prefix": prefix, "user_id": user_id, "scopes": scopes }),
        };
        audit::record(&mut tx, &Actor::system(), event).await?;
        tx.commit().await?;
        Ok(CreatedToken { id, prefix, token })
    }

    /// Lists tokens, newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_tokens(&self, username: Option<&str>) -> Result<Vec<TokenRow>, ServiceError> {
        Ok(tokens::list(&self.db, username).await?)
    }

    /// Takes a token back, at once.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] where no valid token has this prefix.
    pub async fn revoke_token(&self, prefix: &str) -> Result<(), ServiceError> {
        let mut tx = self.db.begin().await?;
        let id = tokens::revoke(&mut tx, prefix)
            .await?
            .ok_or(ServiceError::NotFound { what: "valid token" })?;
        let event = audit::Event {
            action: "token.revoked",
            entity_type: "api_tokens",
            entity_id: Some(id),
            details: json!({ "prefix": prefix }),
        };
        audit::record(&mut tx, &Actor::system(), event).await?;
        tx.commit().await?;
        Ok(())
    }
}
