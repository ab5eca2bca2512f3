//! Whoever shares the run of another execution ends with it.
//!
//! What may be shared is decided by one key, `reuse_key`: the same version of a report, the same
//! resolved parameters, the same file, and the same rights. The rights of a run are the permissions
//! that its version asks of whoever runs it. Reports are all read as one database role and know
//! nothing of the caller, so two callers who hold these permissions are answered with the same
//! rows; both are checked, at their submit and again at each download.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::Permission;
use crate::db::audit::{self, Actor};
use crate::db::executions::{self, Status};
use crate::queue;
use crate::report::definition::Definition;

/// What makes two executions the same, as SHA-256 in hex.
pub(super) fn reuse_key(
    (definition_id, version): (i32, i32),
    definition: &Definition,
    parameters: &Value,
    format: &str,
    options: &Value,
) -> String {
    let rights = [Some(Permission::ReportsRun.codename()), definition.permission()];
    let mut key = json!([definition_id, version, parameters, format, options, rights]);
    key.sort_all_objects();
    hex::encode(Sha256::digest(key.to_string()))
}

/// Ends those who share a run, in the transaction that ends it. Returns how many.
///
/// # Errors
/// The database's.
pub async fn end_followers(
    connection: &mut PgConnection,
    leader: i64,
    status: Status,
) -> Result<usize, sqlx::Error> {
    let (action, followers) = match status {
        Status::Pending | Status::Processing => return Ok(0),
        Status::Completed => {
            let completed = executions::complete_followers(connection, leader).await?;
            ("execution.completed", completed)
        }
        Status::Failed => {
            ("execution.failed", executions::fail_followers(connection, leader).await?)
        }
        Status::Cancelling | Status::Cancelled | Status::Expired => {
            let next = executions::promote_follower(connection, leader).await?;
            if let Some(next) = next {
                queue::enqueue_execution(connection, next, 0).await?;
            }
            ("execution.promoted", next.into_iter().collect())
        }
    };
    for &follower in &followers {
        let event = audit::Event {
            action,
            entity_type: "report_executions",
            entity_id: Some(follower),
            details: json!({ "shared_from": leader }),
        };
        audit::record(connection, &Actor::system(), event).await?;
    }
    Ok(followers.len())
}
