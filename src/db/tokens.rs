//! `api_tokens` and the rights behind them: users, roles and permissions.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

/// The owner of a valid token.
#[derive(Debug, sqlx::FromRow)]
pub struct Principal {
    /// The token.
    pub token_id: i64,
    /// Its owner.
    pub user_id: i32,
    /// Whether the owner may do everything.
    pub is_superuser: bool,
    /// Codenames of the permissions that the owner's roles give.
    pub permissions: Vec<String>,
    /// Codenames that the token is limited to; `None` for all.
    pub scopes: Option<Vec<String>>,
}

/// Finds the owner of the token with this hash, if the token is neither revoked nor expired and
/// the account is active and not deleted. Rights are read now, so a change counts at once.
///
/// # Errors
/// The database's.
pub async fn find_principal(
    pool: &PgPool,
    token_sha256: &[u8],
) -> Result<Option<Principal>, sqlx::Error> {
    sqlx::query_as(
        "select t.id as token_id, u.id as user_id, coalesce(u.is_superuser, false) as is_superuser,
                array(select distinct p.codename::text
                        from user_roles ur
                        join role_permissions rp on rp.role_id = ur.role_id
                        join permissions p on p.id = rp.permission_id
                       where ur.user_id = u.id) as permissions,
                t.scopes
           from api_tokens t
           join users u on u.id = t.user_id
          where t.token_sha256 = $1
            and t.revoked_at is null
            and (t.expires_at is null or t.expires_at > now())
            and u.is_active
            and u.deleted_at is null",
    )
    .bind(token_sha256)
    .fetch_optional(pool)
    .await
}

/// An account and its rights.
#[derive(Debug, sqlx::FromRow)]
pub struct Account {
    /// Its number.
    pub user_id: i32,
    /// Whether it may do everything.
    pub is_superuser: bool,
    /// Codenames of the permissions that its roles give.
    pub permissions: Vec<String>,
}

/// The account, if it is active and not deleted, with the rights that it has now.
///
/// # Errors
/// The database's.
pub async fn find_account(
    connection: &mut PgConnection,
    user_id: i32,
) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as(
        "select u.id as user_id, coalesce(u.is_superuser, false) as is_superuser,
                array(select distinct p.codename::text
                        from user_roles ur
                        join role_permissions rp on rp.role_id = ur.role_id
                        join permissions p on p.id = rp.permission_id
                       where ur.user_id = u.id) as permissions
           from users u
          where u.id = $1
            and u.is_active
            and u.deleted_at is null",
    )
    .bind(user_id)
    .fetch_optional(connection)
    .await
}

/// Notes that a token was used, to the minute: a hot token costs one write a minute.
///
/// # Errors
/// The database's.
pub async fn touch(pool: &PgPool, token_id: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update api_tokens
            set last_used_at = now()
          where id = $1
            and (last_used_at is null or last_used_at < now() - interval '1 minute')",
    )
    .bind(token_id)
    .execute(pool)
    .await?;
    Ok(())
}

/// A token to be stored.
#[derive(Debug)]
pub struct NewToken<'a> {
    /// The owner.
    pub user_id: i32,
    /// What it is for.
    pub name: &'a str,
    /// The visible part.
    pub prefix: &'a str,
    /// The hash of the whole.
    pub token_sha256: &'a [u8],
    /// Permission codenames, `None` for all that the owner has.
    pub scopes: Option<&'a [String]>,
    /// Days until it expires.
    pub expires_after_days: Option<i32>,
    /// Number of a token that it does not outlive.
    pub not_after: Option<i64>,
}

/// A token as operators see it.
#[derive(Debug, Clone, serde::Serialize, sqlx::FromRow)]
pub struct TokenRow {
    /// Its number.
    pub id: i64,
    /// The owner's username.
    pub username: String,
    /// What it is for.
    pub name: String,
    /// The visible part.
    pub prefix: String,
    /// Permission codenames that it is limited to.
    pub scopes: Option<Vec<String>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was used last, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was taken back.
    pub revoked_at: Option<DateTime<Utc>>,
    /// Whether it opens anything now: neither ended nor taken back, and its owner active.
    pub is_valid: bool,
}

/// `concat!` because SQL must be static.
macro_rules! row {
    ($from:literal, $tail:literal) => {
        concat!(
            "select t.id, u.username, t.name, t.prefix, t.scopes, t.created_at, t.expires_at,
                    t.last_used_at, t.revoked_at,
                    t.revoked_at is null and coalesce(t.expires_at > now(), true)
                        and coalesce(u.is_active, false) and u.deleted_at is null as is_valid
               from ",
            $from,
            " t join users u on u.id = t.user_id ",
            $tail
        )
    };
}

/// Stores a token.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    token: NewToken<'_>,
) -> Result<TokenRow, sqlx::Error> {
    sqlx::query_as(concat!(
        "with made as (
             insert into api_tokens (user_id, name, prefix, token_sha256, scopes, expires_at)
             values ($1, $2, $3, $4, $5,
                     -- `least` passes over what is null.
                     least(now() + make_interval(days => $6),
                           (select expires_at from api_tokens where id = $7)))
             returning *
         ) ",
        row!("made", "")
    ))
    .bind(token.user_id)
    .bind(token.name)
    .bind(token.prefix)
    .bind(token.token_sha256)
    .bind(token.scopes)
    .bind(token.expires_after_days)
    .bind(token.not_after)
    .fetch_one(connection)
    .await
}

/// The number of an active account.
///
/// # Errors
/// The database's.
pub async fn find_owner(
    connection: &mut PgConnection,
    username: &str,
) -> Result<Option<i32>, sqlx::Error> {
    sqlx::query_scalar(
        "select id from users where username = $1 and is_active and deleted_at is null",
    )
    .bind(username)
    .fetch_optional(connection)
    .await
}

/// How many tokens of an account are valid.
///
/// # Errors
/// The database's.
pub async fn count_valid(connection: &mut PgConnection, user_id: i32) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "select count(*)
           from api_tokens
          where user_id = $1 and revoked_at is null and (expires_at is null or expires_at > now())",
    )
    .bind(user_id)
    .fetch_one(connection)
    .await
}

/// Those of the codenames that the table of permissions does not have.
///
/// # Errors
/// The database's.
pub async fn unknown_permissions(
    connection: &mut PgConnection,
    codenames: &[String],
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select given.codename
           from unnest($1::text[]) as given (codename)
          where not exists (select from permissions p where p.codename = given.codename)",
    )
    .bind(codenames)
    .fetch_all(connection)
    .await
}

/// Which tokens somebody may know of.
#[derive(Debug, Clone, Copy)]
pub struct Visible {
    /// Only of this account.
    pub of: Option<i32>,
    /// Only this one.
    pub only: Option<i64>,
}

/// Which tokens are asked for.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Among these.
    pub visible: Visible,
    /// Only of this user.
    pub username: Option<&'a str>,
    /// Only those with a smaller number.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: i64,
}

/// Lists tokens, newest first.
///
/// # Errors
/// The database's.
pub async fn list(pool: &PgPool, filter: Filter<'_>) -> Result<Vec<TokenRow>, sqlx::Error> {
    sqlx::query_as(row!(
        "api_tokens",
        "where ($1::int is null or t.user_id = $1)
           and ($2::bigint is null or t.id = $2)
           and ($3::text is null or u.username = $3)
           and ($4::bigint is null or t.id < $4)
         order by t.id desc
         limit $5"
    ))
    .bind(filter.visible.of)
    .bind(filter.visible.only)
    .bind(filter.username)
    .bind(filter.before)
    .bind(filter.limit)
    .fetch_all(pool)
    .await
}

/// Finds a token by its visible part.
///
/// # Errors
/// The database's.
pub async fn find(
    connection: &mut PgConnection,
    visible: Visible,
    prefix: &str,
) -> Result<Option<TokenRow>, sqlx::Error> {
    sqlx::query_as(row!(
        "api_tokens",
        "where t.prefix = $3
           and ($1::int is null or t.user_id = $1)
           and ($2::bigint is null or t.id = $2)"
    ))
    .bind(visible.of)
    .bind(visible.only)
    .bind(prefix)
    .fetch_optional(connection)
    .await
}

/// Takes a token back. `false`: it was taken back before.
///
/// # Errors
/// The database's.
pub async fn revoke(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let revoked = sqlx::query(
        "update api_tokens
            set revoked_at = now()
          where id = $1 and revoked_at is null",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(revoked.rows_affected() == 1)
}
