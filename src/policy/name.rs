//! Names: of policies, of tables and of columns.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// PostgreSQL's limit, in bytes. A longer name would be cut, and then mean another thing.
const MAX_IDENTIFIER_BYTES: usize = 63;
const MAX_POLICY_NAME_BYTES: usize = 100;

/// The name of a policy: its file's, without `.toml`. Safe in URLs and object keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PolicyName(String);

impl PolicyName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PolicyName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if text.len() <= MAX_POLICY_NAME_BYTES && text.split('-').all(is_word) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Policy)
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A column, spelled as the catalog spells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ColumnName(String);

impl ColumnName {
    /// The text, not quoted.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ColumnName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_identifier(text) { Ok(Self(text.to_owned())) } else { Err(NameError::Column) }
    }
}

impl fmt::Display for ColumnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A table, spelled as the catalog spells it: `orders`, or `archive.orders` outside of `public`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    schema: String,
    table: String,
}

impl TableName {
    /// The schema that a table without one is in.
    pub const DEFAULT_SCHEMA: &str = "public";

    /// The schema, not quoted.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The table without its schema, not quoted.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The table of the same name in `schema`.
    ///
    /// # Errors
    /// `schema` is no identifier.
    pub fn in_schema(&self, schema: &str) -> Result<Self, NameError> {
        format!("{schema}.{}", self.table).parse()
    }
}

impl FromStr for TableName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (schema, table) = text.split_once('.').unwrap_or((Self::DEFAULT_SCHEMA, text));
        if is_identifier(schema) && is_identifier(table) {
            Ok(Self { schema: schema.to_owned(), table: table.to_owned() })
        } else {
            Err(NameError::Table)
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema != Self::DEFAULT_SCHEMA {
            write!(f, "{}.", self.schema)?;
        }
        f.write_str(&self.table)
    }
}

impl Serialize for TableName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is not the name it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Of a policy.
    #[error(
        "must be words of lower case letters and digits joined by hyphens, at most \
         {MAX_POLICY_NAME_BYTES} characters, like `archive-logs`"
    )]
    Policy,
    /// Of a column.
    #[error("must be the name of a column, at most {MAX_IDENTIFIER_BYTES} bytes, without a dot")]
    Column,
    /// Of a table.
    #[error(
        "must be the name of a table, `table` or `schema.table`, each part at most \
         {MAX_IDENTIFIER_BYTES} bytes"
    )]
    Table,
}

/// Quotes and dots are legal in PostgreSQL's names, but then nobody could tell the parts of a path.
fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_IDENTIFIER_BYTES
        && !text.contains(|c: char| c == '.' || c == '"' || c.is_control() || c.is_whitespace())
}
