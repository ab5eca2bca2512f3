//! Accounts, as far as reports and their delivery need them.

use sqlx::PgPool;

/// The name that an account logs in with; `None` if there is no such account.
pub async fn find_username(pool: &PgPool, id: i32) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select username from users where id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await
}

/// The address of an account; `None` if it is not active, deleted, or there is none.
///
/// # Errors
/// The database's.
pub async fn find_email(pool: &PgPool, id: i32) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select email from users where id = $1 and is_active and deleted_at is null")
        .bind(id)
        .fetch_optional(pool)
        .await
}
