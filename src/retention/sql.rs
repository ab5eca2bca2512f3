//! Names and literals as types, and the engine's one gate for dynamic SQL.
//!
//! A statement of the engine is put together from fixed text, [`Ident`]s and [`TableName`]s of the
//! catalog (always quoted), [`Literal`]s, and conditions that an operator wrote in a policy file;
//! all other values are bound. [`dynamic`] is the only place that declares such a text safe.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The schema of a table that is named without one.
pub const DEFAULT_SCHEMA: &str = "public";

/// A column, table or constraint by its exact name. Displays as `"name"`, ready for a statement.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ident(String);

impl Ident {
    /// A name as the catalog has it: case matters, nothing is folded.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

impl From<&str> for Ident {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// A table with its schema. Displays as `"schema"."table"`; see [`TableName::plain`] for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Its schema.
    pub schema: Ident,
    /// Its own name.
    pub name: Ident,
}

impl TableName {
    /// A table of a schema.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: Ident::new(schema), name: Ident::new(name) }
    }

    /// As people write it: `table`, or `schema.table` outside [`DEFAULT_SCHEMA`].
    pub fn plain(&self) -> String {
        if self.schema.as_str() == DEFAULT_SCHEMA {
            self.name.as_str().to_owned()
        } else {
            format!("{}.{}", self.schema.as_str(), self.name.as_str())
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// The text is not the name of a table.
#[derive(Debug, Clone, thiserror::Error)]
#[error("must be a table's name, with or without its schema, like `orders` or `archive.orders`")]
pub struct BadTableName;

impl FromStr for TableName {
    type Err = BadTableName;

    /// Reads `table` or `schema.table`. Names that hold a dot cannot be written so.
    fn from_str(text: &str) -> Result<Self, BadTableName> {
        let (schema, name) = text.split_once('.').unwrap_or((DEFAULT_SCHEMA, text));
        if schema.is_empty() || name.is_empty() || name.contains('.') || text.contains('\0') {
            return Err(BadTableName);
        }
        Ok(Self::new(schema, name))
    }
}

impl Serialize for TableName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.plain())
    }
}

/// A text value inside a statement, for the places where nothing can be bound. Displays quoted,
/// right under every setting of `standard_conforming_strings`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Literal(String);

impl Literal {
    /// This text. PostgreSQL's text cannot hold a NUL: it is left out.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into().replace('\0', ""))
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doubled = self.0.replace('\'', "''");
        if doubled.contains('\\') {
            write!(f, " E'{}'", doubled.replace('\\', "\\\\"))
        } else {
            write!(f, "'{doubled}'")
        }
    }
}

/// Names side by side: `"a", "b"`, each behind `prefix` (`t.` for example).
pub fn list<'a>(prefix: &str, names: impl IntoIterator<Item = &'a Ident>) -> String {
    let parts: Vec<_> = names.into_iter().map(|name| format!("{prefix}{name}")).collect();
    parts.join(", ")
}

/// The gate: declares a statement that was put together here safe to send.
#[expect(
    clippy::disallowed_methods,
    reason = "the gate: names are quoted, values bound, conditions come from policy files"
)]
pub fn dynamic(sql: String) -> SqlStr {
    AssertSqlSafe(sql).into_sql_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_literals_are_quoted() {
        assert_eq!(Ident::new("a\"b").to_string(), "\"a\"\"b\"");
        assert_eq!(TableName::new("Archive", "x").to_string(), "\"Archive\".\"x\"");
        assert_eq!(Literal::new("it's").to_string(), "'it''s'");
        assert_eq!(Literal::new("a\\'b").to_string(), " E'a\\\\''b'");
    }

    #[test]
    fn a_table_is_read_with_or_without_its_schema() {
        let read = |text: &str| text.parse::<TableName>().map(|name| name.plain());
        assert_eq!(read("orders").unwrap(), "orders");
        assert_eq!(read("public.orders").unwrap(), "orders");
        assert_eq!(read("archive.orders").unwrap(), "archive.orders");
        for bad in ["", ".", "a.", ".a", "a.b.c"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
