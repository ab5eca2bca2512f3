//! Bearer tokens: made once, shown once, stored as a hash.
//!
//! A token can do what its owner can, narrowed by its scopes. So that nobody comes to rights by
//! making one: its scopes are never wider than what its maker may do; without `tokens.manage`
//! people make tokens for themselves only, and none that outlives the token they use for that. A
//! token with scopes makes none at all, unless `tokens.manage` is among them: otherwise one that
//! leaked would live on in its children.

use serde_json::json;
use sqlx::PgConnection;

use super::access::{TOKEN_PREFIX, token_hash};
use super::{Caller, Permission, ServiceError, Services};
use crate::db::audit;
use crate::db::tokens::{self, Filter, NewToken, TokenRow, Visible};

/// Random bits of a token, in bytes.
const TOKEN_BYTES: usize = 32;
/// Characters of a token that may be seen: the fixed beginning and eight more.
const VISIBLE_CHARS: usize = TOKEN_PREFIX.len() + 8;
/// Longest name, in characters, as the table has it.
const MAX_NAME_CHARS: usize = 100;
/// Longest name of a permission, as the table has it.
const MAX_SCOPE_CHARS: usize = 100;
/// Most scopes of a token.
const MAX_SCOPES: usize = 50;
/// Longest life that can be asked for: ten years.
const MAX_DAYS: i32 = 3650;
/// Most tokens of one account that are valid at once.
const MAX_VALID_TOKENS: i64 = 100;
/// Most tokens that are listed at once.
pub const MAX_LISTED: i64 = 1_000;

/// A token to be made.
#[derive(Debug, Clone, Default)]
pub struct TokenOrder {
    /// Username of the owner; the caller, where it is not given.
    pub owner: Option<String>,
    /// What it is for.
    pub name: String,
    /// Permissions that it is limited to; all that the owner has, where they are not given.
    pub scopes: Option<Vec<String>>,
    /// Days until it expires.
    pub expires_after_days: Option<i32>,
}

/// A token that was just made: the only time that it can be read.
#[derive(Debug)]
pub struct CreatedToken {
    /// What can be seen of it later too.
    pub row: TokenRow,
    /// The whole.
    pub token: String,
}

/// Which tokens are asked for, of those that the caller may know of.
#[derive(Debug, Clone, Default)]
pub struct TokenFilter {
    /// Only of this user.
    pub username: Option<String>,
    /// Only the caller's own.
    pub mine: bool,
    /// Only those with a smaller number.
    pub before: Option<i64>,
    /// At most so many; [`MAX_LISTED`] at most.
    pub limit: i64,
}

impl Services {
    /// Makes a token, for the caller or, with `tokens.manage`, for another account.
    ///
    /// # Errors
    /// Forbidden, [`ServiceError::BadField`]; [`ServiceError::Refused`] where the account has as
    /// many tokens as it may have.
    pub async fn create_token(
        &self,
        caller: &Caller,
        order: TokenOrder,
    ) -> Result<CreatedToken, ServiceError> {
        let manages = caller.may(Permission::TokensManage.codename());
        if !manages && caller.is_scoped() {
            caller.require(Permission::TokensManage)?;
        }
        check_name(&order.name)?;
        check_days(order.expires_after_days)?;
        let mut tx = self.db.begin().await?;
        let owner = find_owner(&mut tx, caller, order.owner.as_deref()).await?;
        check_scopes(&mut tx, caller, owner, order.scopes.as_deref()).await?;
        if tokens::count_valid(&mut tx, owner).await? >= MAX_VALID_TOKENS {
            let message = format!(
                "an account has at most {MAX_VALID_TOKENS} valid tokens: revoke some first"
            );
            return Err(ServiceError::refused("too_many_tokens", message));
        }
        let token = new_token()?;
        let new = NewToken {
            user_id: owner,
            name: &order.name,
            prefix: &token[..VISIBLE_CHARS],
            token_sha256: &token_hash(&token),
            scopes: order.scopes.as_deref(),
            expires_after_days: order.expires_after_days,
            not_after: if manages { None } else { caller.token_id },
        };
        let row = tokens::insert(&mut tx, new).await?;
        let details = json!({
            "prefix": row.prefix, "user_id": owner, "scopes": row.scopes,
            "expires_at": row.expires_at, "trace_id": caller.trace_id,
        });
        record(&mut tx, caller, "token.created", row.id, details).await?;
        tx.commit().await?;
        Ok(CreatedToken { row, token })
    }

    /// Lists tokens that the caller may know of, newest first: everybody's with `tokens.manage`,
    /// otherwise one's own, and with a token that has scopes that token only.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_tokens(
        &self,
        caller: &Caller,
        filter: TokenFilter,
    ) -> Result<Vec<TokenRow>, ServiceError> {
        let TokenFilter { username, mine, before, limit } = filter;
        if username.as_deref().is_some_and(|username| username.contains('\0')) {
            return Ok(Vec::new());
        }
        let mut visible = visible_to(caller);
        if mine {
            visible.of = Some(caller.user_id.unwrap_or(0));
        }
        let limit = limit.clamp(1, MAX_LISTED);
        let filter = Filter { visible, username: username.as_deref(), before, limit };
        Ok(tokens::list(&self.db, filter).await?)
    }

    /// Finds a token by its visible beginning.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], also for one that the caller may not know of.
    pub async fn show_token(
        &self,
        caller: &Caller,
        prefix: &str,
    ) -> Result<TokenRow, ServiceError> {
        find(&mut *self.db.acquire().await?, caller, prefix).await
    }

    /// Takes a token back, at once; one that was taken back before stays so. Answers with what it
    /// is now.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], also for one that the caller may not know of.
    pub async fn revoke_token(
        &self,
        caller: &Caller,
        prefix: &str,
    ) -> Result<TokenRow, ServiceError> {
        let mut tx = self.db.begin().await?;
        let token = find(&mut tx, caller, prefix).await?;
        if tokens::revoke(&mut tx, token.id).await? {
            let details = json!({ "prefix": prefix, "trace_id": caller.trace_id });
            record(&mut tx, caller, "token.revoked", token.id, details).await?;
        }
        let token = find(&mut tx, caller, prefix).await?;
        tx.commit().await?;
        Ok(token)
    }
}

fn new_token() -> Result<String, ServiceError> {
    let mut secret = [0; TOKEN_BYTES];
    getrandom::fill(&mut secret)
        .map_err(|error| ServiceError::Internal(anyhow::anyhow!("no random bits: {error}")))?;
    Ok(format!("{TOKEN_PREFIX}{}", hex::encode(secret)))
}

fn visible_to(caller: &Caller) -> Visible {
    if caller.may(Permission::TokensManage.codename()) {
        return Visible { of: None, only: None };
    }
    let only = if caller.is_scoped() { caller.token_id } else { None };
    Visible { of: Some(caller.user_id.unwrap_or(0)), only }
}

async fn find(
    connection: &mut PgConnection,
    caller: &Caller,
    prefix: &str,
) -> Result<TokenRow, ServiceError> {
    let found = match prefix.bytes().all(|b| b.is_ascii_graphic()) {
        true => tokens::find(connection, visible_to(caller), prefix).await?,
        false => None,
    };
    found.ok_or(ServiceError::NotFound { what: "token" })
}

/// The account that a token is made for. Who may not make one for others is not told which others
/// there are.
async fn find_owner(
    connection: &mut PgConnection,
    caller: &Caller,
    username: Option<&str>,
) -> Result<i32, ServiceError> {
    let found = match username {
        // PostgreSQL has no such text, and would refuse to look for it.
        Some(username) if username.contains('\0') => None,
        Some(username) => tokens::find_owner(connection, username).await?,
        None => caller.user_id,
    };
    if found.is_none() || found != caller.user_id {
        caller.require(Permission::TokensManage)?;
    }
    let expected = "must be the username of an active account".to_owned();
    found.ok_or(ServiceError::BadField { field: "/user", expected })
}

fn check_name(name: &str) -> Result<(), ServiceError> {
    let fits = (1..=MAX_NAME_CHARS).contains(&name.chars().count());
    if fits && !name.trim().is_empty() && !name.contains(char::is_control) {
        return Ok(());
    }
    let expected = format!("must be a line of 1 to {MAX_NAME_CHARS} characters");
    Err(ServiceError::BadField { field: "/name", expected })
}

fn check_days(days: Option<i32>) -> Result<(), ServiceError> {
    if days.is_none_or(|days| (1..=MAX_DAYS).contains(&days)) {
        return Ok(());
    }
    let expected = format!("must be between 1 and {MAX_DAYS}");
    Err(ServiceError::BadField { field: "/expires_after_days", expected })
}

async fn check_scopes(
    connection: &mut PgConnection,
    caller: &Caller,
    owner: i32,
    scopes: Option<&[String]>,
) -> Result<(), ServiceError> {
    let refuse = |expected: String| Err(ServiceError::BadField { field: "/scopes", expected });
    let Some(scopes) = scopes else {
        let own = caller.user_id == Some(owner) && !caller.is_scoped();
        return match own || caller.may_everything() {
            true => Ok(()),
            false => refuse("must be given: without them the token could do more than you".into()),
        };
    };
    if !(1..=MAX_SCOPES).contains(&scopes.len()) {
        return refuse(format!("must be 1 to {MAX_SCOPES} permissions"));
    }
    let is_name = |scope: &String| {
        (1..=MAX_SCOPE_CHARS).contains(&scope.len()) && scope.bytes().all(|b| b.is_ascii_graphic())
    };
    if !scopes.iter().all(is_name) {
        return refuse("must be names of permissions like `reports.run`".to_owned());
    }
    if let Some(missing) = scopes.iter().find(|scope| !caller.may(scope)) {
        return refuse(format!("must be permissions that you have: `{missing}` is not"));
    }
    // Who may everything may also what nobody has ever heard of.
    let unknown = tokens::unknown_permissions(connection, scopes).await?;
    match unknown.iter().find(|name| Permission::ALL.iter().all(|p| p.codename() != **name)) {
        Some(unknown) => refuse(format!("must be names of permissions: `{unknown}` is not")),
        None => Ok(()),
    }
}

async fn record(
    connection: &mut PgConnection,
    caller: &Caller,
    action: &str,
    id: i64,
    details: serde_json::Value,
) -> Result<(), sqlx::Error> {
    let event = audit::Event { action, entity_type: "api_tokens", entity_id: Some(id), details };
    audit::record(connection, &caller.actor, event).await
}
