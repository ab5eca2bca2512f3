//! `console_sessions` and `sign_in_attempts`: who is signed in, and who tries to be.

use sqlx::{PgConnection, PgPool};

/// An account as somebody who signs in names it.
#[derive(Debug, sqlx::FromRow)]
pub struct Credentials {
    /// Its number.
    pub user_id: i32,
    /// The hash that the application stored.
    pub password: String,
}

/// Finds an active account by its name.
///
/// # Errors
/// The database's.
pub async fn find_credentials(
    pool: &PgPool,
    username: &str,
) -> Result<Option<Credentials>, sqlx::Error> {
    sqlx::query_as(
        "select id as user_id, password
           from users
          where username = $1 and is_active and deleted_at is null",
    )
    .bind(username)
    .fetch_optional(pool)
    .await
}

/// The stored hash of another account: checking it takes as long as checking a real one.
///
/// # Errors
/// The database's.
pub async fn find_decoy(pool: &PgPool) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select password
           from users
          where password like '%$%' and is_active and deleted_at is null
          order by id
          limit 1",
    )
    .fetch_optional(pool)
    .await
}

/// What a session was opened with.
#[derive(Debug, Clone, Copy)]
pub enum OpenedWith<'a> {
    /// The password of which this is the stored hash.
    Password(&'a str),
    /// The token of this number.
    Token(i64),
}

/// Opens a session and returns its number.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    user_id: i32,
    opened_with: OpenedWith<'_>,
    session_sha256: &[u8],
    max_age_secs: i32,
) -> Result<i64, sqlx::Error> {
    let (password, token) = match opened_with {
        OpenedWith::Password(hash) => (Some(hash), None),
        OpenedWith::Token(id) => (None, Some(id)),
    };
    sqlx::query_scalar(
        "insert into console_sessions
                (user_id, token_id, session_sha256, password_sha256, expires_at)
         values ($1, $2, $3, sha256(convert_to($4, 'UTF8')), now() + make_interval(secs => $5))
         returning id",
    )
    .bind(user_id)
    .bind(token)
    .bind(session_sha256)
    .bind(password)
    .bind(f64::from(max_age_secs))
    .fetch_one(connection)
    .await
}

/// Who is signed in, with the rights of this moment.
#[derive(Debug, sqlx::FromRow)]
pub struct SessionRow {
    /// The session.
    pub id: i64,
    /// The account.
    pub user_id: i32,
    /// What it is called by.
    pub username: String,
    /// Whether it may do everything.
    pub is_superuser: bool,
    /// Codenames of the permissions that its roles give.
    pub permissions: Vec<String>,
    /// The token that it was opened with; `None` for a password.
    pub token_id: Option<i64>,
    /// Codenames that the token is limited to; `None` for all.
    pub scopes: Option<Vec<String>>,
}

/// Finds a session that is in force: in time, used lately, not ended, of an active account, and
/// what it was opened with is still valid.
///
/// # Errors
/// The database's.
pub async fn find(
    pool: &PgPool,
    session_sha256: &[u8],
    idle_secs: i32,
) -> Result<Option<SessionRow>, sqlx::Error> {
    sqlx::query_as(
        "select s.id, u.id as user_id, u.username,
                coalesce(u.is_superuser, false) as is_superuser,
                array(select distinct p.codename::text
                        from user_roles ur
                        join role_permissions rp on rp.role_id = ur.role_id
                        join permissions p on p.id = rp.permission_id
                       where ur.user_id = u.id) as permissions,
                s.token_id, t.scopes
           from console_sessions s
           join users u on u.id = s.user_id
           left join api_tokens t on t.id = s.token_id
          where s.session_sha256 = $1
            and s.revoked_at is null
            and s.expires_at > now()
            and s.seen_at > now() - make_interval(secs => $2)
            and u.is_active
            and u.deleted_at is null
            and (s.token_id is null
                 or t.revoked_at is null and (t.expires_at is null or t.expires_at > now()))
            and (s.token_id is not null
                 or s.password_sha256 = sha256(convert_to(u.password, 'UTF8')))",
    )
    .bind(session_sha256)
    .bind(f64::from(idle_secs))
    .fetch_optional(pool)
    .await
}

/// Notes that a session was used, to the minute.
///
/// # Errors
/// The database's.
pub async fn touch(pool: &PgPool, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update console_sessions
            set seen_at = now()
          where id = $1 and seen_at < now() - interval '1 minute'",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(())
}

/// Ends a session. `None`: there is none, or it had ended.
///
/// # Errors
/// The database's.
pub async fn revoke(
    connection: &mut PgConnection,
    session_sha256: &[u8],
) -> Result<Option<(i64, i32)>, sqlx::Error> {
    sqlx::query_as(
        "update console_sessions
            set revoked_at = now()
          where session_sha256 = $1 and revoked_at is null
         returning id, user_id",
    )
    .bind(session_sha256)
    .fetch_optional(connection)
    .await
}

/// Counts a try, and returns how many there were in the window.
///
/// # Errors
/// The database's.
pub async fn count_attempt(
    connection: &mut PgConnection,
    subject_sha256: &[u8],
    window_secs: i32,
) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar(
        "insert into sign_in_attempts as known (subject_sha256) values ($1)
         on conflict (subject_sha256) do update
            set attempts = case when known.window_started_at > now() - make_interval(secs => $2)
                                then least(known.attempts, 1000000) + 1 else 1 end,
                window_started_at =
                    case when known.window_started_at > now() - make_interval(secs => $2)
                         then known.window_started_at else now() end
         returning attempts",
    )
    .bind(subject_sha256)
    .bind(f64::from(window_secs))
    .fetch_one(connection)
    .await
}

/// Takes a try back that succeeded.
///
/// # Errors
/// The database's.
pub async fn uncount_attempt(
    connection: &mut PgConnection,
    subject_sha256: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update sign_in_attempts set attempts = attempts - 1
          where subject_sha256 = $1 and attempts > 1",
    )
    .bind(subject_sha256)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets the tries of somebody who has signed in.
///
/// # Errors
/// The database's.
pub async fn forget_attempts(
    connection: &mut PgConnection,
    subject_sha256: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query("delete from sign_in_attempts where subject_sha256 = $1")
        .bind(subject_sha256)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes up to `limit` sessions that ended a day ago, and tries of an earlier hour.
///
/// Only what [`find`] can never find again goes: its condition on `expires_at` is narrower.
///
/// # Errors
/// The database's.
pub async fn prune(connection: &mut PgConnection, limit: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "delete from console_sessions
          where id in (select id
                         from console_sessions
                        where expires_at < now() - interval '1 day'
                        order by expires_at
                        limit $1
                          for update skip locked)",
    )
    .bind(limit)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "delete from sign_in_attempts
          where subject_sha256 in (select subject_sha256
                                     from sign_in_attempts
                                    where window_started_at < now() - interval '1 hour'
                                    order by window_started_at
                                    limit $1
                                      for update skip locked)",
    )
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(())
}
