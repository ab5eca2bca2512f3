//! `certificates`: the chain of sealed records. Rows are added and marked as stored, never changed.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

/// Held while a certificate is added: the chain has one end.
const CHAIN_LOCK: &str = "registrar certificates";

/// A certificate.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct CertificateRow {
    /// Its place in the chain.
    pub id: i64,
    /// What it is about: `erasure-12`, `run-7`.
    pub subject: String,
    /// The exact text that was sealed.
    pub document: String,
    /// Its hash.
    pub sha256: String,
    /// The hash of the one before.
    pub previous_sha256: String,
    /// The key of the seal.
    pub key_id: String,
    /// The seal.
    pub mac: String,
    /// When it was sealed.
    pub sealed_at: DateTime<Utc>,
    /// When its copy was in the store.
    pub stored_at: Option<DateTime<Utc>>,
    /// When it was taken up from the store, where it was not sealed in this database.
    pub adopted_at: Option<DateTime<Utc>>,
}

impl CertificateRow {
    /// The sealed text and its seal, a line of JSON each: what is copied to the store.
    pub fn to_lines(&self) -> String {
        let seal = serde_json::json!({
            "sha256": self.sha256,
            "key_id": self.key_id,
            "mac": self.mac,
        });
        format!("{}\n{seal}\n", self.document)
    }
}

/// The columns of [`CertificateRow`]; `concat!` because SQL must be static.
macro_rules! select_certificate {
    ($tail:literal) => {
        concat!(
            "select id, about as subject, document, sha256::text, previous_sha256::text, key_id, mac::text,
                    sealed_at, stored_at, adopted_at
               from certificates ",
            $tail
        )
    };
}

/// The end of the chain: number and hash of the last, and the time of this transaction. The chain
/// stays locked until the transaction ends.
///
/// # Errors
/// The database's.
pub async fn lock_end(
    connection: &mut PgConnection,
) -> Result<(Option<(i64, String)>, DateTime<Utc>), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(CHAIN_LOCK)
        .execute(&mut *connection)
        .await?;
    let last = sqlx::query_as("select id, sha256::text from certificates order by id desc limit 1")
        .fetch_optional(&mut *connection)
        .await?;
    let now = sqlx::query_scalar("select now()").fetch_one(connection).await?;
    Ok((last, now))
}

/// Adds a certificate.
///
/// # Errors
/// The database's.
pub async fn insert(
    connection: &mut PgConnection,
    row: &CertificateRow,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into certificates
                (id, about, document, sha256, previous_sha256, key_id, mac, sealed_at, stored_at,
                 adopted_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(row.id)
    .bind(&row.subject)
    .bind(&row.document)
    .bind(&row.sha256)
    .bind(&row.previous_sha256)
    .bind(&row.key_id)
    .bind(&row.mac)
    .bind(row.sealed_at)
    .bind(row.stored_at)
    .bind(row.adopted_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Lets new erasures have numbers above one that a certificate of the store tells of.
///
/// # Errors
/// The database's.
pub async fn skip_erasure_number(
    connection: &mut PgConnection,
    number: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "select setval(pg_get_serial_sequence('erasures', 'id'),
                       greatest($1, nextval(pg_get_serial_sequence('erasures', 'id')) - 1, 1))",
    )
    .bind(number)
    .execute(connection)
    .await?;
    Ok(())
}

/// Certificates whose copy is not known to be in the store, oldest first.
///
/// # Errors
/// The database's.
pub async fn list_unstored(pool: &PgPool, limit: i64) -> Result<Vec<CertificateRow>, sqlx::Error> {
    sqlx::query_as(select_certificate!("where stored_at is null order by id limit $1"))
        .bind(limit)
        .fetch_all(pool)
        .await
}

/// Notes that a certificate's copy is in the store.
///
/// # Errors
/// The database's.
pub async fn mark_stored(pool: &PgPool, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query("update certificates set stored_at = now() where id = $1 and stored_at is null")
        .bind(id)
        .execute(pool)
        .await?;
    Ok(())
}

/// The newest certificate about something.
///
/// # Errors
/// The database's.
pub async fn find(pool: &PgPool, subject: &str) -> Result<Option<CertificateRow>, sqlx::Error> {
    sqlx::query_as(select_certificate!("where about = $1 order by id desc limit 1"))
        .bind(subject)
        .fetch_optional(pool)
        .await
}

/// Certificates behind a place in the chain, in order.
///
/// # Errors
/// The database's.
pub async fn list_after(
    pool: &PgPool,
    after: i64,
    limit: i64,
) -> Result<Vec<CertificateRow>, sqlx::Error> {
    sqlx::query_as(select_certificate!("where id > $1 order by id limit $2"))
        .bind(after)
        .bind(limit)
        .fetch_all(pool)
        .await
}
