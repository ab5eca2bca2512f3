//! Entries of the erasure ledger that runs wrote before they deleted people.

use sqlx::{PgConnection, PgExecutor};

use crate::retention::ledger::LedgerObject;

/// Notes an entry, in the transaction in which its people go.
///
/// # Errors
/// The database's.
pub async fn note_purge(
    connection: &mut PgConnection,
    run_id: i64,
    written: &LedgerObject,
    people: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into purge_ledger (object_path, sha256, run_id, people) values ($1, $2, $3, $4)",
    )
    .bind(&written.path)
    .bind(&written.sha256)
    .bind(run_id)
    .bind(people)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes an entry that was carried out by a replay, unless it is noted already.
///
/// # Errors
/// The database's.
pub async fn note_replayed_purge(
    executor: impl PgExecutor<'_>,
    run_id: i64,
    written: &LedgerObject,
    people: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into purge_ledger (object_path, sha256, run_id, people, is_replayed)
         values ($1, $2, $3, $4, true)
         on conflict (object_path) do nothing",
    )
    .bind(&written.path)
    .bind(&written.sha256)
    .bind(run_id)
    .bind(people)
    .execute(executor)
    .await?;
    Ok(())
}

/// The entries that a run of this database has noted.
///
/// # Errors
/// The database's.
pub async fn purges_of(
    connection: &mut PgConnection,
    run_id: i64,
) -> Result<Vec<LedgerObject>, sqlx::Error> {
    sqlx::query_as(
        "select object_path as path, sha256::text as sha256
           from purge_ledger
          where run_id = $1 and not is_replayed
          order by object_path",
    )
    .bind(run_id)
    .fetch_all(connection)
    .await
}

/// At most `limit` noted entries behind a path.
///
/// # Errors
/// The database's.
pub async fn purges_after(
    connection: &mut PgConnection,
    after: &str,
    limit: i64,
) -> Result<Vec<LedgerObject>, sqlx::Error> {
    sqlx::query_as(
        "select object_path as path, sha256::text as sha256
           from purge_ledger
          where object_path > $1
          order by object_path
          limit $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await
}
