//! What the database's own records say: sealed when something ends, and compared again later.

use serde_json::{Value, json};

use crate::db::erasures::{Erasure, TableCount};
use crate::retention::run::{Run, RunStatus, RunTable};

/// Fields of a run that never change, whatever happens to it.
const UNCHANGING: [&str; 9] = [
    "id",
    "policy",
    "kind",
    "policy_digest",
    "code_version",
    "as_of",
    "origin",
    "requested_by",
    "created_at",
];

/// What the database's own record of an erasure says.
pub fn record_of(erasure: &Erasure, rows: &[TableCount]) -> Value {
    json!({
        "table": erasure.subject_table,
        "ledger_token": erasure.ledger_token,
        "requested_at": erasure.requested_at,
        "begun_at": erasure.begun_at,
        "verified_at": erasure.verified_at,
        "completed_at": erasure.completed_at,
        "attempts": erasure.attempt,
        "rows": rows,
    })
}

/// What the database's own record of a run says, table by table. Field by field, because a field
/// that is added to the types later must not change what was sealed before.
pub fn record_of_run(run: &Run, tables: &[RunTable], erasures_asked: i64) -> Value {
    let tables: Vec<_> = tables
        .iter()
        .map(|table| {
            json!({
                "table": table.table_name,
                "action": table.action,
                "status": table.status,
                "cutoff": table.cutoff,
                "total": table.total,
                "eligible": table.eligible,
                "held": table.held,
                "indeterminate": table.indeterminate,
                "blocked": table.blocked,
                "done": table.done,
                "skipped": table.skipped,
                "chunks": table.chunks,
                "bytes_done": table.bytes_done,
                "keys_hash": table.keys_hash,
                "exported_rows": table.exported_rows,
                "exports_sha256": table.exports_sha256,
                "started_at": table.started_at,
                "completed_at": table.completed_at,
            })
        })
        .collect();
    json!({
        "id": run.id,
        "policy": run.policy,
        "kind": run.kind,
        "policy_digest": run.policy_digest,
        "code_version": run.code_version,
        "as_of": run.as_of,
        "status": run.status,
        "origin": run.origin,
        "preview_digest": run.preview_digest,
        "requested_by": run.requested_by,
        "approved_by": run.approved_by,
        "approved_at": run.approved_at,
        "attempts": run.attempt,
        "error_code": run.error_code,
        "error_message": run.error_message,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "completed_at": run.completed_at,
        "erasures_asked": erasures_asked,
        "tables": tables,
    })
}

/// Whether everything that was sealed is so still. What a later version tells in addition was not
/// sealed, and does not count.
pub(super) fn agrees(sealed: &Value, now: &Value) -> bool {
    match (sealed, now) {
        (Value::Object(sealed), Value::Object(now)) => {
            sealed.iter().all(|(name, value)| now.get(name).is_some_and(|now| agrees(value, now)))
        }
        (Value::Array(sealed), Value::Array(now)) => {
            sealed.len() == now.len() && sealed.iter().zip(now).all(|(a, b)| agrees(a, b))
        }
        (sealed, now) => sealed == now,
    }
}

/// Whether it is the same run, wherever it stands.
pub(super) fn is_same_run(sealed: &Value, now: &Value) -> bool {
    UNCHANGING.iter().all(|name| agrees(&sealed[*name], &now[*name]))
}

/// The state of a run that a record tells of. One that is not final was sealed when a failed run
/// was taken up again.
pub(super) fn status_of(record: &Value) -> Option<RunStatus> {
    record["status"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_must_be_so_still_and_no_more() {
        let sealed = json!({"a": 1, "list": [{"b": "x"}]});
        assert!(agrees(&sealed, &json!({"a": 1, "list": [{"b": "x", "new": 2}], "new": 3})));
        for other in [
            json!({"a": 2, "list": [{"b": "x"}]}),
            json!({"list": [{"b": "x"}]}),
            json!({"a": 1, "list": [{"b": "y"}]}),
            json!({"a": 1, "list": []}),
            json!({"a": 1, "list": [{"b": "x"}, {"b": "x"}]}),
        ] {
            assert!(!agrees(&sealed, &other), "{other}");
        }
    }
}
