//! Makes a [`Parameter`] of its declaration, or says everything that is wrong with it.

use std::num::NonZeroU32;

use regex::RegexBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::literal::Literal;
use super::read::{
    Bounds, Pattern, Problem, Rules, TextRules, date_moment, decimal, instant_moment,
};
use super::relative::Moment;
use super::{MAX_LIST_ITEMS, MAX_NAME_BYTES, Parameter, ParameterType};
use crate::report::sql::{NamedSql, is_placeholder_name};

/// The largest `max_length`, in characters.
const MAX_MAX_LENGTH: u32 = 1_000_000;

/// The most choices of an enum: a person picks one from a list.
const MAX_CHOICES: usize = 1_000;

/// The longest choice, label, description and pattern, in characters.
const MAX_CHOICE_LENGTH: usize = 255;
const MAX_LABEL_LENGTH: usize = 255;
const MAX_DESCRIPTION_LENGTH: usize = 2_000;
const MAX_PATTERN_LENGTH: usize = 500;

/// The longest query for choices, in characters.
const MAX_CHOICES_QUERY_LENGTH: usize = 10_000;

/// Memory of a compiled pattern, in bytes. It keeps `\w{1000}{1000}` out.
const MAX_PATTERN_BYTES: usize = 256 * 1024;

/// A parameter as it stands in a template or in the stored JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::report) struct ParameterDocument {
    pub(in crate::report) name: String,
    #[serde(rename = "type")]
    parameter_type: ParameterType,
    #[serde(default)]
    list: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default)]
    required: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<Literal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    choices: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    choices_query: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min: Option<Literal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<Literal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_length: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    example: Option<Literal>,
}

/// What is wrong with one key of a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::report) struct Fault {
    /// The key: `default`.
    pub(in crate::report) key: &'static str,
    /// What was expected: `must be a date like 2024-01-31`.
    pub(in crate::report) expected: String,
}

impl Fault {
    pub(in crate::report) fn new(key: &'static str, expected: impl Into<String>) -> Self {
        Self { key, expected: expected.into() }
    }
}

impl Parameter {
    /// Checks a declaration.
    pub(in crate::report) fn declare(document: ParameterDocument) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        check_texts(&document, &mut faults);
        let rules = rules(&document, &mut faults);
        check_choices_query(&document, &mut faults);
        if document.required && document.default.is_some() {
            faults.push(Fault::new("default", "must be left out, as the parameter is required"));
        }
        let ParameterDocument {
            name,
            parameter_type: _,
            list,
            label,
            description,
            required,
            default,
            choices: _,
            choices_query,
            min: _,
            max: _,
            pattern: _,
            max_length: _,
            example,
        } = document;
        let rules = match rules {
            Some(rules) if faults.is_empty() => rules,
            Some(_) | None => return Err(faults),
        };
        let mut parameter = Self {
            name,
            rules,
            list,
            label,
            description,
            required,
            choices_query,
            default: None,
            example: None,
        };
        let mut literal = |key, literal: Option<Literal>| {
            literal.and_then(|Literal(value)| match parameter.normal_form(&value) {
                Ok(value) => Some(value),
                Err(problem) => {
                    faults.push(problem.into_fault(key));
                    None
                }
            })
        };
        let default = literal("default", default);
        let example = literal("example", example);
        if !faults.is_empty() {
            return Err(faults);
        }
        parameter.default = default;
        parameter.example = example;
        Ok(parameter)
    }

    /// The declaration in normal form: declaring it again gives the same parameter.
    pub(in crate::report) fn document(&self) -> ParameterDocument {
        let mut document = ParameterDocument {
            name: self.name.clone(),
            parameter_type: self.parameter_type(),
            list: self.list,
            label: self.label.clone(),
            description: self.description.clone(),
            required: self.required,
            default: self.default.clone().map(Literal),
            choices: None,
            choices_query: self.choices_query.clone(),
            min: None,
            max: None,
            pattern: None,
            max_length: None,
            example: self.example.clone().map(Literal),
        };
        let mut bounds = |min: Option<Json>, max: Option<Json>| {
            document.min = min.map(Literal);
            document.max = max.map(Literal);
        };
        match &self.rules {
            Rules::Text(TextRules { pattern, max_length }) => {
                document.pattern = pattern.as_ref().map(|pattern| pattern.source.clone());
                document.max_length = max_length.and_then(NonZeroU32::new);
            }
            Rules::Integer(Bounds { min, max }) => bounds(min.map(Json::from), max.map(Json::from)),
            Rules::Bigint(b) => bounds(text_of(b.min.as_ref()), text_of(b.max.as_ref())),
            Rules::Numeric(b) => bounds(text_of(b.min.as_ref()), text_of(b.max.as_ref())),
            Rules::Date(b) => bounds(text_of(b.min.as_ref()), text_of(b.max.as_ref())),
            Rules::Timestamptz(b) => bounds(text_of(b.min.as_ref()), text_of(b.max.as_ref())),
            Rules::Enum(choices) => document.choices = Some(choices.clone()),
            Rules::Boolean | Rules::Uuid => {}
        }
        document
    }

    /// The one way to write a default or an example: relative dates stay relative, everything else
    /// is checked and written as [`Value::to_json`](super::Value::to_json) does.
    fn normal_form(&self, value: &Json) -> Result<Json, Problem> {
        match value {
            Json::Array(items)
                if self.list
                    && items.len() <= MAX_LIST_ITEMS
                    && items.iter().any(|item| self.relative(item).is_some()) =>
            {
                let one = Self { list: false, ..self.clone() };
                items.iter().map(|item| one.normal_form(item)).collect()
            }
            _ if self.list => self.fixed(value),
            _ => self.relative(value).map_or_else(|| self.fixed(value), Ok),
        }
    }

    fn fixed(&self, value: &Json) -> Result<Json, Problem> {
        match self.read(value, None) {
            Ok(value) => Ok(value.to_json()),
            Err(mut problems) => Err(problems.remove(0)),
        }
    }

    fn relative(&self, item: &Json) -> Option<Json> {
        match &self.rules {
            Rules::Date(_) => match date_moment(item)? {
                Moment::Relative(relative) => Some(relative.to_string().into()),
                Moment::Fixed(_) => None,
            },
            Rules::Timestamptz(_) => match instant_moment(item)? {
                Moment::Relative(relative) => Some(relative.to_string().into()),
                Moment::Fixed(_) => None,
            },
            Rules::Text(_)
            | Rules::Integer(_)
            | Rules::Bigint(_)
            | Rules::Numeric(_)
            | Rules::Boolean
            | Rules::Uuid
            | Rules::Enum(_) => None,
        }
    }
}

impl Problem {
    fn into_fault(self, key: &'static str) -> Fault {
        match self.item {
            Some(index) => Fault::new(key, format!("item {index}: {}", self.expected)),
            None => Fault::new(key, self.expected),
        }
    }
}

fn text_of<T: ToString>(bound: Option<&T>) -> Option<Json> {
    bound.map(|bound| bound.to_string().into())
}

/// Checks what concerns no type: name, label and description.
fn check_texts(document: &ParameterDocument, faults: &mut Vec<Fault>) {
    if !is_placeholder_name(&document.name) || document.name.len() > MAX_NAME_BYTES {
        faults.push(Fault::new(
            "name",
            format!(
                "must be lower case letters, digits and underscores, not start with a digit, and \
                 be at most {MAX_NAME_BYTES} long"
            ),
        ));
    }
    let texts = [
        ("label", &document.label, MAX_LABEL_LENGTH),
        ("description", &document.description, MAX_DESCRIPTION_LENGTH),
    ];
    for (key, text, max_length) in texts {
        if let Some(text) = text
            && let Err(expected) = check_text(text, max_length)
        {
            faults.push(Fault::new(key, expected));
        }
    }
}

/// A query for the choices is one SELECT without parameters; whether it runs, only the server tells.
fn check_choices_query(document: &ParameterDocument, faults: &mut Vec<Fault>) {
    let Some(query) = &document.choices_query else { return };
    let has_choices = match document.parameter_type {
        ParameterType::Text
        | ParameterType::Integer
        | ParameterType::Bigint
        | ParameterType::Uuid => true,
        ParameterType::Numeric
        | ParameterType::Boolean
        | ParameterType::Date
        | ParameterType::Timestamptz
        | ParameterType::Enum => false,
    };
    if !has_choices {
        let expected = "must be left out: only text, integer, bigint and uuid have one";
        faults.push(Fault::new("choices_query", expected));
    }
    if let Err(expected) = check_text(query, MAX_CHOICES_QUERY_LENGTH) {
        faults.push(Fault::new("choices_query", expected));
        return;
    }
    match NamedSql::parse(query) {
        Ok(query) if query.names().next().is_some() => {
            faults.push(Fault::new("choices_query", "must not use parameters"));
        }
        Ok(_) => {}
        Err(error) => faults.push(Fault::new("choices_query", error.kind().to_string())),
    }
}

/// Checks a text of a definition: something that people read, and that JSON in PostgreSQL holds.
pub(in crate::report) fn check_text(text: &str, max_length: usize) -> Result<(), String> {
    let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.trim().is_empty() || text.chars().nth(max_length).is_some() {
        Err(format!("must be 1 to {max_length} characters"))
    } else if text.contains(is_control) {
        Err("must not hold control characters".to_owned())
    } else {
        Ok(())
    }
}

/// The rules of the type, and a fault for each key that the type does not have.
fn rules(document: &ParameterDocument, faults: &mut Vec<Fault>) -> Option<Rules> {
    let parameter_type = document.parameter_type;
    let is_text = parameter_type == ParameterType::Text;
    let is_ordered = match parameter_type {
        ParameterType::Integer
        | ParameterType::Bigint
        | ParameterType::Numeric
        | ParameterType::Date
        | ParameterType::Timestamptz => true,
        ParameterType::Text
        | ParameterType::Boolean
        | ParameterType::Uuid
        | ParameterType::Enum => false,
    };
    let keys = [
        ("choices", document.choices.is_some(), parameter_type == ParameterType::Enum),
        ("min", document.min.is_some(), is_ordered),
        ("max", document.max.is_some(), is_ordered),
        ("pattern", document.pattern.is_some(), is_text),
        ("max_length", document.max_length.is_some(), is_text),
    ];
    for (key, is_given, is_allowed) in keys {
        if is_given && !is_allowed {
            let expected = format!("must be left out, as the type `{parameter_type}` has none");
            faults.push(Fault::new(key, expected));
        }
    }
    Some(match parameter_type {
        ParameterType::Text => Rules::Text(text_rules(document, faults)),
        ParameterType::Integer => Rules::Integer(bounds(
            document,
            faults,
            "a whole number of up to \
            32 bits",
            |v| v.as_i64().and_then(|n| i32::try_from(n).ok()),
        )),
        ParameterType::Bigint => Rules::Bigint(bounds(
            document,
            faults,
            "a whole number of up to 64 bits",
            |v| match v {
                Json::String(text) => text.parse().ok(),
                _ => v.as_i64(),
            },
        )),
        ParameterType::Numeric => {
            Rules::Numeric(bounds(document, faults, "a decimal number", decimal))
        }
        ParameterType::Boolean => Rules::Boolean,
        ParameterType::Date => Rules::Date(bounds(
            document,
            faults,
            "a date like 2024-01-31, or relative like `today - 30 days`",
            date_moment,
        )),
        ParameterType::Timestamptz => Rules::Timestamptz(bounds(
            document,
            faults,
            "a time like 2024-01-31T09:00:00+02:00, or relative like `now - 2 hours`",
            instant_moment,
        )),
        ParameterType::Uuid => Rules::Uuid,
        ParameterType::Enum => Rules::Enum(choices(document, faults)?),
    })
}

fn bounds<T: PartialOrd>(
    document: &ParameterDocument,
    faults: &mut Vec<Fault>,
    expected: &str,
    read: impl Fn(&Json) -> Option<T>,
) -> Bounds<T> {
    let mut bound = |key, literal: &Option<Literal>| {
        let Literal(value) = literal.as_ref()?;
        let bound = read(value);
        if bound.is_none() {
            faults.push(Fault::new(key, format!("must be {expected}")));
        }
        bound
    };
    let min = bound("min", &document.min);
    let max = bound("max", &document.max);
    if let (Some(min), Some(max)) = (&min, &max)
        && min > max
    {
        faults.push(Fault::new("min", "must not be above max"));
    }
    Bounds { min, max }
}

fn text_rules(document: &ParameterDocument, faults: &mut Vec<Fault>) -> TextRules {
    let max_length = document.max_length.map(NonZeroU32::get);
    if max_length.is_some_and(|length| length > MAX_MAX_LENGTH) {
        faults.push(Fault::new("max_length", format!("must be at most {MAX_MAX_LENGTH}")));
    }
    let pattern = document.pattern.as_ref().and_then(|source| {
        let pattern = compile(source);
        if pattern.is_none() {
            let expected = format!(
                "must be a regular expression of at most {MAX_PATTERN_LENGTH} characters that \
                 compiles to at most {MAX_PATTERN_BYTES} bytes"
            );
            faults.push(Fault::new("pattern", expected));
        }
        pattern
    });
    TextRules { pattern, max_length }
}

/// Compiles a pattern twice: alone, so that `a)|(b` does not pass for a part of the whole, and
/// tied to both ends of the text, so that a forgotten `^` does not let everything in.
fn compile(source: &str) -> Option<Pattern> {
    if check_text(source, MAX_PATTERN_LENGTH).is_err() {
        return None;
    }
    let build = |text: &str| RegexBuilder::new(text).size_limit(MAX_PATTERN_BYTES).build().ok();
    build(source)?;
    let whole = build(&whole_pattern(source))?;
    Some(Pattern { source: source.to_owned(), whole })
}

/// The pattern tied to both ends.
pub(super) fn whole_pattern(source: &str) -> String {
    format!("^(?:{source})$")
}

fn choices(document: &ParameterDocument, faults: &mut Vec<Fault>) -> Option<Vec<String>> {
    let choices = document.choices.clone().unwrap_or_default();
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        let expected = format!("must be a list of 1 to {MAX_CHOICES} texts");
        faults.push(Fault::new("choices", expected));
        return None;
    }
    for (index, choice) in choices.iter().enumerate() {
        if let Err(expected) = check_text(choice, MAX_CHOICE_LENGTH) {
            faults.push(Fault::new("choices", format!("item {index}: {expected}")));
        } else if choices[..index].contains(choice) {
            let expected = format!("item {index}: must not be there twice");
            faults.push(Fault::new("choices", expected));
        }
    }
    Some(choices)
}
