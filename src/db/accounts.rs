//! Accounts, as far as a report tells of them.

use sqlx::PgPool;

/// The name that an account logs in with; `None` if there is no such account.
pub async fn find_username(pool: &PgPool, id: i32) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select username from users where id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await
}
