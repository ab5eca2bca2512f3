//! `certificates`: the chain of sealed records. Rows are added and marked as stored, never changed.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, PgPool};

/// Held while a certificate is added: the chain has one end.
const CHAIN_LOCK: &str = "registrar certificates";
/// Held while certificates are copied to the store, and its head is moved.
const COPIES_LOCK: &str = "registrar certificate copies";

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
pub async fn list_unstored(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<CertificateRow>, sqlx::Error> {
    sqlx::query_as(select_certificate!("where stored_at is null order by id limit $1"))
        .bind(limit)
        .fetch_all(connection)
        .await
}

/// Notes that copies of certificates are in the store.
///
/// # Errors
/// The database's.
pub async fn mark_stored(connection: &mut PgConnection, ids: &[i64]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update certificates set stored_at = now() where id = any ($1) and stored_at is null",
    )
    .bind(ids)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes the copying of certificates for this transaction, unless another process is at it.
///
/// # Errors
/// The database's.
pub async fn try_lock_copies(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(COPIES_LOCK)
        .fetch_one(connection)
        .await
}

/// The hash of a certificate by its place in the chain.
///
/// # Errors
/// The database's.
pub async fn hash_of(
    connection: &mut PgConnection,
    id: i64,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select sha256::text from certificates where id = $1")
        .bind(id)
        .fetch_optional(connection)
        .await
}

/// Lets new runs have numbers above one that a certificate of the store tells of.
///
/// # Errors
/// The database's.
pub async fn skip_run_number(
    connection: &mut PgConnection,
    number: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "select setval(pg_get_serial_sequence('lifecycle_runs', 'id'),
                       greatest($1, nextval(pg_get_serial_sequence('lifecycle_runs', 'id')) - 1, 1))",
    )
    .bind(number)
    .execute(connection)
    .await?;
    Ok(())
}

/// Runs that have ended and whose end no certificate tells of, oldest first. The state that the
/// newest certificate of a run tells of decides, never a time: a time can be changed.
///
/// # Errors
/// The database's.
pub async fn list_unsealed_runs(
    executor: impl PgExecutor<'_>,
    limit: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select r.id
           from lifecycle_runs r
          where r.status in ('completed', 'failed', 'cancelled')
            and coalesce((select c.document::jsonb -> 'record' ->> 'status'
                            from certificates c
                           where c.about = 'run-' || r.id
                           order by c.id desc
                           limit 1), 'pending') not in ('completed', 'failed', 'cancelled')
          order by r.id
          limit $1",
    )
    .bind(limit)
    .fetch_all(executor)
    .await
}

/// Whether a certificate tells of the end of this run, and it was not taken up again since.
///
/// # Errors
/// The database's.
pub async fn is_run_sealed(connection: &mut PgConnection, id: i64) -> Result<bool, sqlx::Error> {
    let unsealed: Option<bool> = sqlx::query_scalar(
        "select document::jsonb -> 'record' ->> 'status' in ('completed', 'failed', 'cancelled')
           from certificates
          where about = 'run-' || $1
          order by id desc
          limit 1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(unsealed.unwrap_or(false))
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
    executor: impl PgExecutor<'_>,
    after: i64,
    limit: i64,
) -> Result<Vec<CertificateRow>, sqlx::Error> {
    sqlx::query_as(select_certificate!("where id > $1 order by id limit $2"))
        .bind(after)
        .bind(limit)
        .fetch_all(executor)
        .await
}
