//! Reads one JSON value by the rules of its parameter.

use std::fmt;

use chrono::{DateTime, NaiveDate, SubsecRound, Timelike, Utc};
use regex::Regex;
use serde_json::Value as Json;
use uuid::Uuid;

use super::decimal::Decimal;
use super::relative::{Anchor, Clock, Moment, Relative, is_in_range};
use super::{
    DEFAULT_MAX_LENGTH, MAX_LIST_ITEMS, Parameter, ParameterErrorCode as Code, ParameterType, Value,
};

/// How many items of one list are reported: the rest will be wrong in the same way.
const MAX_ITEM_PROBLEMS: usize = 20;

/// Length of `2024-01-31` and of a hyphenated UUID.
const DATE_LENGTH: usize = 10;
const UUID_LENGTH: usize = 36;

/// The type of a parameter, with what it allows beyond the type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rules {
    Text(TextRules),
    Integer(Bounds<i32>),
    Bigint(Bounds<i64>),
    Numeric(Bounds<Decimal>),
    Boolean,
    Date(Bounds<Moment<NaiveDate>>),
    Timestamptz(Bounds<Moment<DateTime<Utc>>>),
    Uuid,
    /// The choices.
    Enum(Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct TextRules {
    pub(super) pattern: Option<Pattern>,
    /// In characters; `None` for [`DEFAULT_MAX_LENGTH`].
    pub(super) max_length: Option<u32>,
}

/// A regular expression that the whole text must match.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    /// As declared.
    pub(super) source: String,
    /// The same, tied to both ends.
    pub(super) whole: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// The smallest and the largest value that are allowed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bounds<T> {
    pub(super) min: Option<T>,
    pub(super) max: Option<T>,
}

/// Why a value was refused, without the value.
#[derive(Debug)]
pub(super) struct Problem {
    /// The index in the list.
    pub(super) item: Option<usize>,
    pub(super) code: Code,
    /// What was expected: `must be …`.
    pub(super) expected: String,
}

impl Problem {
    pub(super) fn new(code: Code, expected: impl Into<String>) -> Self {
        Self { item: None, code, expected: expected.into() }
    }
}

impl Rules {
    pub(super) fn parameter_type(&self) -> ParameterType {
        match self {
            Self::Text(_) => ParameterType::Text,
            Self::Integer(_) => ParameterType::Integer,
            Self::Bigint(_) => ParameterType::Bigint,
            Self::Numeric(_) => ParameterType::Numeric,
            Self::Boolean => ParameterType::Boolean,
            Self::Date(_) => ParameterType::Date,
            Self::Timestamptz(_) => ParameterType::Timestamptz,
            Self::Uuid => ParameterType::Uuid,
            Self::Enum(_) => ParameterType::Enum,
        }
    }
}

impl<T: Clone + fmt::Display> Bounds<T> {
    /// Checks `value`. `resolve` gives the bound as it is now, or `None` if that is not known yet.
    fn check<V: PartialOrd>(
        &self,
        value: V,
        resolve: impl Fn(&T) -> Option<V>,
    ) -> Result<V, Problem> {
        if let Some(min) = &self.min
            && resolve(min).is_some_and(|min| value < min)
        {
            return Err(Problem::new(Code::Min, format!("must be at least {min}")));
        }
        if let Some(max) = &self.max
            && resolve(max).is_some_and(|max| value > max)
        {
            return Err(Problem::new(Code::Max, format!("must be at most {max}")));
        }
        Ok(value)
    }
}

impl Parameter {
    /// Reads a value that is not null. Without a clock nothing relative is accepted, and relative
    /// bounds are not checked: they were, when the value was first given.
    pub(super) fn read(&self, given: &Json, clock: Option<&Clock>) -> Result<Value, Vec<Problem>> {
        match &self.rules {
            Rules::Text(rules) => {
                self.read_each(given, |v| rules.read(v), Value::Text, Value::TextList)
            }
            Rules::Integer(bounds) => {
                self.read_each(given, |v| integer(v, bounds), Value::Integer, Value::IntegerList)
            }
            Rules::Bigint(bounds) => {
                self.read_each(given, |v| bigint(v, bounds), Value::Bigint, Value::BigintList)
            }
            Rules::Numeric(bounds) => {
                self.read_each(given, |v| numeric(v, bounds), Value::Numeric, Value::NumericList)
            }
            Rules::Boolean => self.read_each(given, boolean, Value::Boolean, Value::BooleanList),
            Rules::Date(bounds) => {
                self.read_each(given, |v| date(v, bounds, clock), Value::Date, Value::DateList)
            }
            Rules::Timestamptz(bounds) => self.read_each(
                given,
                |v| timestamptz(v, bounds, clock),
                Value::Timestamptz,
                Value::TimestamptzList,
            ),
            Rules::Uuid => self.read_each(given, uuid, Value::Uuid, Value::UuidList),
            Rules::Enum(choices) => {
                self.read_each(given, |v| choice(v, choices), Value::Text, Value::TextList)
            }
        }
    }

    fn read_each<T>(
        &self,
        given: &Json,
        read: impl Fn(&Json) -> Result<T, Problem>,
        one: fn(T) -> Value,
        many: fn(Vec<T>) -> Value,
    ) -> Result<Value, Vec<Problem>> {
        if !self.list {
            return read(given).map(one).map_err(|problem| vec![problem]);
        }
        let Json::Array(items) = given else {
            return Err(vec![Problem::new(Code::Type, "must be a list")]);
        };
        if items.len() > MAX_LIST_ITEMS {
            let expected = format!("must have at most {MAX_LIST_ITEMS} items");
            return Err(vec![Problem::new(Code::TooMany, expected)]);
        }
        if items.is_empty() && self.required {
            return Err(vec![Problem::new(Code::Required, "must have at least one item")]);
        }
        let mut values = Vec::with_capacity(items.len());
        let mut problems = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match read(item) {
                Ok(value) => values.push(value),
                Err(problem) => problems.push(Problem { item: Some(index), ..problem }),
            }
            if problems.len() == MAX_ITEM_PROBLEMS {
                break;
            }
        }
        if problems.is_empty() { Ok(many(values)) } else { Err(problems) }
    }
}

impl TextRules {
    /// The most characters.
    pub(super) fn max_length(&self) -> u32 {
        self.max_length.unwrap_or(DEFAULT_MAX_LENGTH)
    }

    fn read(&self, given: &Json) -> Result<String, Problem> {
        let text = given.as_str().ok_or_else(|| Problem::new(Code::Type, "must be text"))?;
        if text.contains('\0') {
            let expected = "must not hold the character U+0000";
            return Err(Problem::new(Code::NulCharacter, expected));
        }
        let max_length = self.max_length();
        if text.chars().nth(max_length as usize).is_some() {
            let expected = format!("must have at most {max_length} characters");
            return Err(Problem::new(Code::MaxLength, expected));
        }
        match &self.pattern {
            Some(pattern) if !pattern.whole.is_match(text) => {
                let expected = format!("must match the pattern `{}`", pattern.source);
                Err(Problem::new(Code::Pattern, expected))
            }
            Some(_) | None => Ok(text.to_owned()),
        }
    }
}

fn choice(given: &Json, choices: &[String]) -> Result<String, Problem> {
    let text = given.as_str().ok_or_else(|| Problem::new(Code::Type, "must be text"))?;
    if choices.iter().any(|choice| choice == text) {
        Ok(text.to_owned())
    } else {
        let expected = format!("must be one of `{}`", choices.join("`, `"));
        Err(Problem::new(Code::Choice, expected))
    }
}

fn integer(given: &Json, bounds: &Bounds<i32>) -> Result<i32, Problem> {
    let expected = "must be a whole number without quotes";
    let number = given.as_i64().ok_or_else(|| Problem::new(Code::Type, expected))?;
    let number = i32::try_from(number).map_err(|_| {
        let (code, bound, limit) = if number < 0 {
            (Code::Min, "least", bounds.min.unwrap_or(i32::MIN))
        } else {
            (Code::Max, "most", bounds.max.unwrap_or(i32::MAX))
        };
        Problem::new(code, format!("must be at {bound} {limit}"))
    })?;
    bounds.check(number, |bound| Some(*bound))
}

fn bigint(given: &Json, bounds: &Bounds<i64>) -> Result<i64, Problem> {
    let number = match given {
        Json::Number(number) => number.as_i64(),
        // `+5` and `005` are refused, so that equal numbers have few spellings.
        Json::String(text) => text.parse().ok().filter(|n: &i64| n.to_string() == *text),
        Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_) => None,
    };
    let number = number.ok_or_else(|| {
        let expected = "must be a whole number of up to 64 bits, as a number or a string of digits";
        Problem::new(Code::Type, expected)
    })?;
    bounds.check(number, |bound| Some(*bound))
}

fn numeric(given: &Json, bounds: &Bounds<Decimal>) -> Result<String, Problem> {
    let number = decimal(given).ok_or_else(|| {
        let expected = "must be a decimal number: a number of up to 15 digits, or a string of \
                        up to 1000 like \"1234.50\"";
        Problem::new(Code::Type, expected)
    })?;
    Ok(bounds.check(number, |bound| Some(bound.clone()))?.into_string())
}

pub(super) fn decimal(given: &Json) -> Option<Decimal> {
    match given {
        Json::Number(number) => Decimal::from_json_number(number),
        Json::String(text) => Decimal::parse(text),
        Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_) => None,
    }
}

fn boolean(given: &Json) -> Result<bool, Problem> {
    given.as_bool().ok_or_else(|| Problem::new(Code::Type, "must be true or false without quotes"))
}

fn uuid(given: &Json) -> Result<Uuid, Problem> {
    given
        .as_str()
        .filter(|text| text.len() == UUID_LENGTH)
        .and_then(|text| Uuid::try_parse(text).ok())
        .ok_or_else(|| {
            let expected = "must be a UUID like 123e4567-e89b-12d3-a456-426614174000";
            Problem::new(Code::Type, expected)
        })
}

fn date(
    given: &Json,
    bounds: &Bounds<Moment<NaiveDate>>,
    clock: Option<&Clock>,
) -> Result<NaiveDate, Problem> {
    let resolve = |moment: &Moment<NaiveDate>| match moment {
        Moment::Fixed(day) => Some(*day),
        Moment::Relative(relative) => clock.and_then(|clock| relative.date(clock.today)),
    };
    let day = date_moment(given).and_then(|moment| resolve(&moment)).ok_or_else(|| {
        Problem::new(
            Code::Type,
            match clock {
                Some(_) => "must be a date like 2024-01-31, or relative like `today - 30 days`",
                None => "must be a date like 2024-01-31",
            },
        )
    })?;
    bounds.check(day, resolve)
}

fn timestamptz(
    given: &Json,
    bounds: &Bounds<Moment<DateTime<Utc>>>,
    clock: Option<&Clock>,
) -> Result<DateTime<Utc>, Problem> {
    let resolve = |moment: &Moment<DateTime<Utc>>| match moment {
        Moment::Fixed(instant) => Some(*instant),
        Moment::Relative(relative) => clock.and_then(|clock| relative.instant(clock)),
    };
    let instant = instant_moment(given).and_then(|moment| resolve(&moment)).ok_or_else(|| {
        Problem::new(
            Code::Type,
            match clock {
                Some(_) => {
                    "must be a time with an offset like 2024-01-31T09:00:00+02:00, or relative \
                     like `now - 2 hours`"
                }
                None => "must be a time with an offset like 2024-01-31T09:00:00+02:00",
            },
        )
    })?;
    bounds.check(instant, resolve)
}

/// Reads a day or a relative day.
pub(super) fn date_moment(given: &Json) -> Option<Moment<NaiveDate>> {
    let text = given.as_str()?;
    if let Ok(relative) = text.parse::<Relative>() {
        return (relative.anchor() == Anchor::Today).then_some(Moment::Relative(relative));
    }
    // chrono also takes `2024-1-31` and longer years.
    let has_shape = text.len() == DATE_LENGTH
        && text.bytes().enumerate().all(|(index, byte)| match index {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    (has_shape && is_in_range(day)).then_some(Moment::Fixed(day))
}

/// Reads an instant or a relative one.
pub(super) fn instant_moment(given: &Json) -> Option<Moment<DateTime<Utc>>> {
    let text = given.as_str()?;
    if let Ok(relative) = text.parse::<Relative>() {
        return Some(Moment::Relative(relative));
    }
    let instant = DateTime::parse_from_rfc3339(text).ok()?.to_utc();
    // chrono keeps a leap second as a second of more than 10^9 nanoseconds, PostgreSQL has none.
    let is_leap_second = instant.nanosecond() >= 1_000_000_000;
    (!is_leap_second && is_in_range(instant.date_naive()))
        .then(|| Moment::Fixed(instant.trunc_subsecs(6)))
}
