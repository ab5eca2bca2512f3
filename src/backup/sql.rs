//! The gate of this engine for SQL that it puts together: names come from the catalog, quoted by
//! the server, or are our own.

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// SQL that was made by the server's `format` from its catalog, or holds only a name of ours.
#[expect(clippy::disallowed_methods, reason = "the gate of the backup engine")]
pub(super) fn trusted(text: String) -> SqlStr {
    AssertSqlSafe(text).into_sql_str()
}
