//! The parameters of a report: how they are declared, and how given values are checked.
//!
//! A [`Parameter`] is only made from a declaration that holds together, so that what
//! is checked here is the caller's values alone. [`Definition::bind`] takes a JSON object and gives
//! [`BoundParameters`], in which everything relative (`today - 30 days`) is resolved: they are stored
//! with the execution, and a retry on the next day reads the same rows.
//!
//! What a caller may write:
//!
//! | type | JSON |
//! |---|---|
//! | `text`, `enum` | string |
//! | `integer` | number without a fraction |
//! | `bigint` | the same, or a string of digits: JSON numbers lose digits beyond 2^53 |
//! | `numeric` | number of up to 15 significant digits, or a string of digits with a decimal point |
//! | `boolean` | `true` or `false` |
//! | `date` | `"2024-01-31"`, or relative: `"today - 30 days"` |
//! | `timestamptz` | RFC 3339 with an offset, or relative: `"today"` is its midnight, `"now - 2 hours"` |
//! | `uuid` | the hyphenated form |
//! | a list of these | array, at most [`MAX_LIST_ITEMS`] |
//!
//! A parameter that is not given takes its default, or is NULL without one. An explicit `null` says
//! that there is no value, and is accepted only where leaving the parameter out says so too: of a
//! parameter that is neither required nor has a default. Taken for the default it would hide that
//! the caller meant something else, and no query is written for a NULL where it has a default.
//!
//! No message repeats what was given: reports are about people, and messages end up in logs.
//!
//! [`Definition::bind`]: crate::report::definition::Definition::bind

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

mod bind;
mod decimal;
mod declare;
mod literal;
mod read;
mod relative;
mod schema;
#[cfg(test)]
mod tests;
mod value;

pub use self::bind::{BoundParameter, BoundParameters};
pub(in crate::report) use self::declare::{ParameterDocument, check_text};
use self::read::Rules;
pub use self::value::Value;

/// The most items of a list: a larger set of keys belongs in a table.
pub const MAX_LIST_ITEMS: usize = 10_000;

/// The most characters of a text for which the definition sets no `max_length`.
pub const DEFAULT_MAX_LENGTH: u32 = 10_000;

/// The most parameters of a definition.
pub const MAX_PARAMETERS: usize = crate::report::sql::MAX_NAMES;

/// The longest name of a parameter, in bytes: PostgreSQL's limit for identifiers.
pub const MAX_NAME_BYTES: usize = 63;

/// What a parameter holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// Any text.
    Text,
    /// A whole number of 32 bits.
    Integer,
    /// A whole number of 64 bits.
    Bigint,
    /// An exact decimal number.
    Numeric,
    /// True or false.
    Boolean,
    /// A day, from 0001-01-01 to 9999-12-31.
    Date,
    /// An instant, to the microsecond.
    Timestamptz,
    /// A UUID.
    Uuid,
    /// One of the texts that the definition lists; bound as text.
    Enum,
}

impl ParameterType {
    /// The name of the type in PostgreSQL, or of its array type.
    pub const fn pg_type(self, list: bool) -> &'static str {
        match (self, list) {
            (Self::Text | Self::Enum, false) => "text",
            (Self::Text | Self::Enum, true) => "text[]",
            (Self::Integer, false) => "int4",
            (Self::Integer, true) => "int4[]",
            (Self::Bigint, false) => "int8",
            (Self::Bigint, true) => "int8[]",
            (Self::Numeric, false) => "numeric",
            (Self::Numeric, true) => "numeric[]",
            (Self::Boolean, false) => "bool",
            (Self::Boolean, true) => "bool[]",
            (Self::Date, false) => "date",
            (Self::Date, true) => "date[]",
            (Self::Timestamptz, false) => "timestamptz",
            (Self::Timestamptz, true) => "timestamptz[]",
            (Self::Uuid, false) => "uuid",
            (Self::Uuid, true) => "uuid[]",
        }
    }

    /// The name in templates.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Bigint => "bigint",
            Self::Numeric => "numeric",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Timestamptz => "timestamptz",
            Self::Uuid => "uuid",
            Self::Enum => "enum",
        }
    }
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A declared parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    name: String,
    rules: Rules,
    list: bool,
    label: Option<String>,
    description: Option<String>,
    required: bool,
    choices_query: Option<String>,
    /// In normal form: what [`Value::to_json`] gives, or a relative date.
    default: Option<Json>,
    /// In normal form, as the default.
    example: Option<Json>,
}

impl Parameter {
    /// The name, as in the SQL and in a caller's JSON.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it holds; for a list, what each item holds.
    pub fn parameter_type(&self) -> ParameterType {
        self.rules.parameter_type()
    }

    /// Whether it holds many values.
    pub fn is_list(&self) -> bool {
        self.list
    }

    /// The name of its type in PostgreSQL: `text`, `int4[]`, ….
    pub fn pg_type(&self) -> &'static str {
        self.parameter_type().pg_type(self.list)
    }

    /// What a person reads beside the input: the label, or the name without one.
    pub fn label(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.name)
    }

    /// What it means, in a sentence.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// Whether a caller must give a value that is not null.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Whether a caller may write `null`: where no value is what leaving it out means.
    pub fn is_nullable(&self) -> bool {
        !self.required && self.default.is_none()
    }

    /// The value where none is given, as a caller would write it; dates may be relative.
    pub fn default_value(&self) -> Option<&Json> {
        self.default.as_ref()
    }

    /// A value that would do, for documents and forms.
    pub fn example(&self) -> Option<&Json> {
        self.example.as_ref()
    }

    /// The query that returns what may be chosen, and in a second column how it is called.
    pub fn choices_query(&self) -> Option<&str> {
        self.choices_query.as_deref()
    }

    /// The texts to choose from; empty for every type but `enum`.
    pub fn choices(&self) -> &[String] {
        match &self.rules {
            Rules::Enum(choices) => choices,
            Rules::Text(_)
            | Rules::Integer(_)
            | Rules::Bigint(_)
            | Rules::Numeric(_)
            | Rules::Boolean
            | Rules::Date(_)
            | Rules::Timestamptz(_)
            | Rules::Uuid => &[],
        }
    }
}

/// A given parameter that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error, utoipa::ToSchema)]
#[error("{pointer}: {message}")]
pub struct ParameterError {
    /// JSON pointer (RFC 6901) into the request: `/parameters/codes/3`.
    pub pointer: String,
    /// What is wrong, for programs.
    pub code: ParameterErrorCode,
    /// What was expected, for people. Never holds what was given.
    pub message: String,
}

/// What is wrong with a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ParameterErrorCode {
    /// Not given, or null, or an empty list, and required.
    Required,
    /// The report has no parameter of that name.
    Unknown,
    /// Not of the declared type; of a parameter with a default, also null.
    Type,
    /// Not one of the choices.
    Choice,
    /// Less than the smallest that is allowed.
    Min,
    /// More than the largest that is allowed.
    Max,
    /// Does not match the pattern.
    Pattern,
    /// Longer than allowed, in characters.
    MaxLength,
    /// More items than allowed.
    TooMany,
    /// Holds U+0000, which PostgreSQL cannot store in text.
    NulCharacter,
}

impl ParameterErrorCode {
    /// The code as it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Unknown => "unknown",
            Self::Type => "type",
            Self::Choice => "choice",
            Self::Min => "min",
            Self::Max => "max",
            Self::Pattern => "pattern",
            Self::MaxLength => "max_length",
            Self::TooMany => "too_many",
            Self::NulCharacter => "nul_character",
        }
    }
}

impl fmt::Display for ParameterErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
