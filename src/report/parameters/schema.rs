//! The parameters of a definition as JSON Schema (draft 2020-12), for documents, forms and clients
//! that check before they send.
//!
//! The schema says what JSON Schema can say. What it cannot, such as the bounds of dates, is in the
//! description; [`Definition::bind`] is what decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::declare::whole_pattern;
use super::read::{Bounds, Rules};
use super::{MAX_LIST_ITEMS, Parameter, ParameterType};
use crate::report::choices::Choices;
use crate::report::definition::Definition;

/// Relative days, as `today - 30 days`.
const RELATIVE_DATE: &str = r"^today( *[+-] *[0-9]{1,5} *(day|week|month|year)s?)?$";

/// Relative instants: hours only from `now`.
const RELATIVE_TIME: &str = r"^(today( *[+-] *[0-9]{1,5} *(day|week|month|year)s?)?|now( *[+-] *[0-9]{1,5} *(hour|day|week|month|year)s?)?)$";

const WHOLE_NUMBER: &str = "^(0|-?[1-9][0-9]{0,18})$";

const DECIMAL_NUMBER: &str = r"^-?[0-9]+(\.[0-9]+)?$";

impl Definition {
    /// The schema of the object that [`Definition::bind`] takes. Properties are in the order of
    /// the declaration. `x-postgres-type` names the type that a value is bound as.
    pub fn json_schema(&self) -> Json {
        self.json_schema_with(&BTreeMap::new())
    }

    /// As [`Self::json_schema`], with what the queries for choices returned, by parameter.
    pub fn json_schema_with(&self, choices: &BTreeMap<String, Arc<Choices>>) -> Json {
        let properties: Map<String, Json> = self
            .parameters()
            .iter()
            .map(|parameter| {
                let choices = choices.get(parameter.name());
                (parameter.name().to_owned(), property(parameter, choices.map(Arc::as_ref)))
            })
            .collect();
        let required: Vec<&str> =
            self.parameters().iter().filter(|p| p.is_required()).map(Parameter::name).collect();
        let mut schema = object(json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.title(),
        }));
        if !self.description().is_empty() {
            schema.insert("description".to_owned(), json!(self.description()));
        }
        schema.append(&mut object(json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        })));
        Json::Object(schema)
    }
}

fn property(parameter: &Parameter, choices: Option<&Choices>) -> Json {
    let (mut value, notes) = value_schema(&parameter.rules);
    if let Some(choices) = choices {
        let nullable = parameter.is_nullable() && !parameter.list;
        insert_choices(&mut value, parameter.parameter_type(), choices, nullable);
    }
    if parameter.list {
        let mut list = object(json!({"type": "array", "items": value, "maxItems": MAX_LIST_ITEMS}));
        if parameter.required {
            list.insert("minItems".to_owned(), json!(1));
        }
        value = list;
    }
    if parameter.is_nullable() {
        allow_null(&mut value);
    }
    let mut property = Map::new();
    property.insert("title".to_owned(), json!(parameter.label()));
    let description: Vec<&str> =
        parameter.description().into_iter().chain(notes.iter().map(String::as_str)).collect();
    if !description.is_empty() {
        property.insert("description".to_owned(), json!(description.join(" ")));
    }
    property.append(&mut value);
    if let Some(default) = parameter.default_value() {
        property.insert("default".to_owned(), default.clone());
    }
    if let Some(example) = parameter.example() {
        property.insert("examples".to_owned(), json!([example]));
    }
    property.insert("x-postgres-type".to_owned(), json!(parameter.pg_type()));
    Json::Object(property)
}

/// What a query for choices returned, each with its title. A list that is not complete only helps
/// who fills in a form: other values may be right too, and the server decides.
fn insert_choices(
    schema: &mut Map<String, Json>,
    parameter_type: ParameterType,
    choices: &Choices,
    nullable: bool,
) {
    let value = |text: &str| match parameter_type {
        ParameterType::Integer | ParameterType::Bigint => {
            text.parse::<i64>().map_or_else(|_| json!(text), Json::from)
        }
        ParameterType::Text
        | ParameterType::Numeric
        | ParameterType::Boolean
        | ParameterType::Date
        | ParameterType::Timestamptz
        | ParameterType::Uuid
        | ParameterType::Enum => json!(text),
    };
    let mut all: Vec<Json> = choices
        .all
        .iter()
        .map(|choice| match &choice.label {
            Some(label) => json!({"const": value(&choice.value), "title": label}),
            None => json!({"const": value(&choice.value)}),
        })
        .collect();
    if !choices.is_complete {
        schema.insert("x-some-choices".to_owned(), Json::Array(all));
        return;
    }
    if nullable {
        all.push(json!({"type": "null"}));
    }
    schema.insert("oneOf".to_owned(), Json::Array(all));
}

/// The schema of one value, and sentences about what it leaves out.
fn value_schema(rules: &Rules) -> (Map<String, Json>, Vec<String>) {
    match rules {
        Rules::Text(text) => {
            let mut schema = object(json!({"type": "string", "maxLength": text.max_length()}));
            if let Some(pattern) = &text.pattern {
                schema.insert("pattern".to_owned(), json!(whole_pattern(&pattern.source)));
            }
            (schema, Vec::new())
        }
        Rules::Integer(bounds) => {
            let minimum = bounds.min.unwrap_or(i32::MIN);
            let maximum = bounds.max.unwrap_or(i32::MAX);
            let schema = json!({"type": "integer", "minimum": minimum, "maximum": maximum});
            (object(schema), Vec::new())
        }
        Rules::Bigint(bounds) => {
            let mut schema =
                object(json!({"type": ["integer", "string"], "pattern": WHOLE_NUMBER}));
            insert_bound(&mut schema, "minimum", bounds.min.map(Json::from));
            insert_bound(&mut schema, "maximum", bounds.max.map(Json::from));
            (schema, bound_notes(bounds))
        }
        Rules::Numeric(bounds) => {
            let mut schema =
                object(json!({"type": ["number", "string"], "pattern": DECIMAL_NUMBER}));
            let number = |bound: &super::decimal::Decimal| bound.to_json_number().map(Json::Number);
            insert_bound(&mut schema, "minimum", bounds.min.as_ref().and_then(number));
            insert_bound(&mut schema, "maximum", bounds.max.as_ref().and_then(number));
            (schema, bound_notes(bounds))
        }
        Rules::Boolean => (object(json!({"type": "boolean"})), Vec::new()),
        Rules::Date(bounds) => (moment_schema("date", RELATIVE_DATE), bound_notes(bounds)),
        Rules::Timestamptz(bounds) => {
            (moment_schema("date-time", RELATIVE_TIME), bound_notes(bounds))
        }
        Rules::Uuid => (object(json!({"type": "string", "format": "uuid"})), Vec::new()),
        Rules::Enum(choices) => (object(json!({"type": "string", "enum": choices})), Vec::new()),
    }
}

/// A fixed value of `format`, or a relative one.
fn moment_schema(format: &str, relative: &str) -> Map<String, Json> {
    object(json!({
        "type": "string",
        "anyOf": [{"format": format}, {"pattern": relative}],
    }))
}

/// Bounds in words: `minimum` and `maximum` hold for numbers only, not for strings.
fn bound_notes<T: ToString>(bounds: &Bounds<T>) -> Vec<String> {
    let min = bounds.min.iter().map(|min| format!("At least {}.", min.to_string()));
    let max = bounds.max.iter().map(|max| format!("At most {}.", max.to_string()));
    min.chain(max).collect()
}

fn insert_bound(schema: &mut Map<String, Json>, key: &str, bound: Option<Json>) {
    if let Some(bound) = bound {
        schema.insert(key.to_owned(), bound);
    }
}

/// Lets a schema also accept null, which stands for SQL NULL.
fn allow_null(schema: &mut Map<String, Json>) {
    if let Some(types) = schema.get_mut("type") {
        let mut with_null = match types.take() {
            Json::Array(types) => types,
            one => vec![one],
        };
        with_null.push(json!("null"));
        *types = Json::Array(with_null);
    }
    if let Some(Json::Array(choices)) = schema.get_mut("enum") {
        choices.push(Json::Null);
    }
}

fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(map) => map,
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
            Map::new()
        }
    }
}
