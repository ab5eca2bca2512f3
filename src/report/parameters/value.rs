//! Checked values, ready to be bound.

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use serde_json::Value as Json;
use uuid::Uuid;

/// The value of one parameter. Lists have a variant of their own for each type, because that is
/// how they are bound.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// SQL NULL, of the parameter's type.
    Null,
    /// `text`; enums too.
    Text(String),
    /// `int4`
    Integer(i32),
    /// `int8`
    Bigint(i64),
    /// `numeric`, as digits with an optional sign and point: never an exponent, never NaN.
    Numeric(String),
    /// `bool`
    Boolean(bool),
    /// `date`, in the years 1 to 9999.
    Date(NaiveDate),
    /// `timestamptz`, in whole microseconds, in the years 1 to 9999.
    Timestamptz(DateTime<Utc>),
    /// `uuid`
    Uuid(Uuid),
    /// `text[]`
    TextList(Vec<String>),
    /// `int4[]`
    IntegerList(Vec<i32>),
    /// `int8[]`
    BigintList(Vec<i64>),
    /// `numeric[]`, each as [`Value::Numeric`].
    NumericList(Vec<String>),
    /// `bool[]`
    BooleanList(Vec<bool>),
    /// `date[]`
    DateList(Vec<NaiveDate>),
    /// `timestamptz[]`
    TimestamptzList(Vec<DateTime<Utc>>),
    /// `uuid[]`
    UuidList(Vec<Uuid>),
}

impl Value {
    /// The canonical JSON of the value: equal values are equal JSON. `bigint` and `numeric` are
    /// strings, so that no reader rounds them.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Text(text) | Self::Numeric(text) => text.as_str().into(),
            Self::Integer(number) => (*number).into(),
            Self::Bigint(number) => number.to_string().into(),
            Self::Boolean(flag) => (*flag).into(),
            Self::Date(day) => day_text(*day).into(),
            Self::Timestamptz(instant) => instant_text(*instant).into(),
            Self::Uuid(uuid) => uuid.to_string().into(),
            Self::TextList(items) | Self::NumericList(items) => items.as_slice().into(),
            Self::IntegerList(items) => items.as_slice().into(),
            Self::BigintList(items) => items.iter().map(i64::to_string).collect(),
            Self::BooleanList(items) => items.as_slice().into(),
            Self::DateList(items) => items.iter().copied().map(day_text).collect(),
            Self::TimestamptzList(items) => items.iter().copied().map(instant_text).collect(),
            Self::UuidList(items) => items.iter().map(Uuid::to_string).collect(),
        }
    }
}

/// `2024-01-31`
pub(super) fn day_text(day: NaiveDate) -> String {
    day.format("%Y-%m-%d").to_string()
}

/// RFC 3339 in UTC, with six digits of the second.
pub(super) fn instant_text(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::Micros, true)
}
