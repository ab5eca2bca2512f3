//! Why an attempt ended without a result, for programs, for people and for the retry.

use crate::report::decode::DecodeError;
use crate::store::StoreError;
use crate::writer::WriteError;

/// An attempt ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The server refused or broke off the query.
    #[error("the query failed with SQLSTATE {sqlstate}")]
    Sql {
        /// Five characters, see PostgreSQL's appendix A.
        sqlstate: String,
        /// The server's primary message, kept only where it speaks of the SQL text and not of
        /// values.
        message: Option<String>,
    },
    /// The database cannot be reached, or went away.
    #[error("the report database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// The query returns no columns: it is not a SELECT.
    #[error("the query returns no columns")]
    NoColumns,
    /// The stored definition cannot be used.
    #[error("the definition cannot be used: {0}")]
    Definition(String),
    /// The attempt took longer than it may.
    #[error("the report took longer than {limit_secs} s")]
    Timeout {
        /// The limit.
        limit_secs: u64,
    },
    /// The result has more rows than it may.
    #[error("the report has more than {max_rows} rows")]
    RowLimit {
        /// The limit.
        max_rows: u64,
    },
    /// The file is larger than it may be.
    #[error("the file is larger than {max_bytes} bytes")]
    ByteLimit {
        /// The limit.
        max_bytes: u64,
    },
    /// A value is not in the format that its type has.
    #[error("column {column} holds a value that cannot be read")]
    Decode {
        /// The column's name.
        column: String,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The file cannot be written.
    #[error("the file cannot be written")]
    Write(#[source] WriteError),
    /// The store failed.
    #[error("the object store is not available")]
    Store(#[from] StoreError),
    /// The thread that writes the file panicked.
    #[error("the writer panicked")]
    Panicked,
    /// Somebody asked the attempt to stop: cancelled, fenced off, or the process ends.
    #[error("the attempt was stopped")]
    Stopped,
}

impl From<sqlx::Error> for ReportError {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else { return Self::Unavailable(error) };
        let sqlstate = database.code().map(|code| code.into_owned()).unwrap_or_default();
        // Class 08 and 57P: the connection or the server went; 53300: no room for a connection.
        if sqlstate.starts_with("08") || sqlstate.starts_with("57P") || sqlstate == "53300" {
            return Self::Unavailable(error);
        }
        // Class 42 speaks of the SQL text (names, syntax, rights). Other messages quote values.
        let message = sqlstate.starts_with("42").then(|| database.message().to_owned());
        Self::Sql { sqlstate, message }
    }
}

impl From<WriteError> for ReportError {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

impl ReportError {
    /// For programs: one of a bounded set, stored as `error_code` and a label of metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Sql { sqlstate, .. } => match sqlstate.as_str() {
                "42501" => "permission_denied",
                "25006" => "read_only",
                "57014" => "query_cancelled",
                "53400" => "temp_file_limit",
                "55P03" => "lock_timeout",
                "40001" | "40P01" => "serialization",
                _ => "sql_error",
            },
            Self::Unavailable(_) => "database_unavailable",
            Self::NoColumns | Self::Definition(_) => "bad_definition",
            Self::Timeout { .. } => "timeout",
            Self::RowLimit { .. } => "row_limit",
            Self::ByteLimit { .. } => "byte_limit",
            Self::Decode { .. } => "bad_value",
            Self::Write(_) => "write_failed",
            Self::Store(_) => "store_unavailable",
            Self::Panicked => "panic",
            Self::Stopped => "stopped",
        }
    }

    /// Whether another try can succeed where this one failed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Store(_) | Self::Panicked | Self::Stopped => true,
            Self::Sql { .. } => matches!(self.code(), "lock_timeout" | "serialization"),
            Self::NoColumns
            | Self::Definition(_)
            | Self::Timeout { .. }
            | Self::RowLimit { .. }
            | Self::ByteLimit { .. }
            | Self::Decode { .. }
            | Self::Write(_) => false,
        }
    }

    /// What may be stored and shown: never a value of a row.
    pub fn public_message(&self) -> String {
        match self {
            Self::Sql { sqlstate, message: Some(message) } => {
                format!("{message} (SQLSTATE {sqlstate})")
            }
            Self::Sql { sqlstate, message: None } => {
                format!("{} (SQLSTATE {sqlstate})", condition(sqlstate))
            }
            other => other.to_string(),
        }
    }
}

/// PostgreSQL's name of a condition, in words. The server's own message would quote values.
fn condition(sqlstate: &str) -> &'static str {
    match sqlstate {
        "22003" => "a number is out of range",
        "22007" | "22008" => "a date or time cannot be read or is out of range",
        "22012" => "division by zero",
        "22023" => "a parameter of a function has a value it cannot take",
        "22026" | "22001" => "a text is too long",
        "22P02" => "a value cannot be read as the type that is asked for",
        "25006" => "the query tried to write; reports are read-only",
        "40001" | "40P01" => "the query collided with another transaction",
        "53400" => "the query needed more temporary space than reports may have",
        "54000" | "54001" | "54011" | "54023" => "the query is too complex",
        "55P03" => "a table was locked for too long",
        "57014" => "the query was cancelled on the server",
        "0A000" => "the query uses a feature that reports cannot use",
        _ if sqlstate.starts_with("22") => "a value is not valid",
        _ if sqlstate.starts_with("21") => "a subquery returned more than one row",
        _ if sqlstate.starts_with("53") => "the server is out of resources",
        _ => "the query failed",
    }
}
