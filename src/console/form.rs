//! The form of a report: fields from the JSON Schema of its parameters, and back.
//!
//! The form decides nothing: what it cannot read it hands on as text, and the report's own check
//! says what is wrong with it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::request::Fields;
use crate::api::{FieldError, Problem};

/// Before the name of a parameter, so that none is taken for a field of the form's own.
const PREFIX: &str = "p.";

/// A field.
#[derive(Debug, Serialize)]
pub struct Field {
    name: String,
    label: String,
    description: Option<String>,
    required: bool,
    kind: &'static str,
    options: Vec<Choice>,
    example: Option<String>,
    value: String,
    values: Vec<String>,
    fault: Option<String>,
    described: bool,
    #[serde(skip)]
    pg_type: String,
    #[serde(skip)]
    is_list: bool,
}

/// A choice.
#[derive(Debug, Clone, Serialize)]
pub struct Choice {
    value: String,
    label: String,
}

impl Choice {
    /// A choice and how it is called.
    pub fn new(value: impl Into<String>, label: impl Into<String>) -> Self {
        Self { value: value.into(), label: label.into() }
    }
}

/// The fields of a schema, filled with `values`, or else with the defaults.
pub fn fields(schema: &Json, values: Option<&Map<String, Json>>) -> Vec<Field> {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    properties
        .iter()
        .map(|(name, property)| {
            let given = values.map_or_else(|| property.get("default"), |values| values.get(name));
            field(name, property, required.contains(&name.as_str()), given)
        })
        .collect()
}

fn field(name: &str, property: &Json, required: bool, given: Option<&Json>) -> Field {
    let is_list = property.get("items").is_some();
    let one = if is_list { &property["items"] } else { property };
    let pg_type = property["x-postgres-type"].as_str().unwrap_or_default().to_owned();
    let (mut options, is_complete) = options(one);
    if pg_type == "bool" {
        options = vec![Choice::new("true", "yes"), Choice::new("false", "no")];
    }
    let kind = match pg_type.trim_end_matches("[]") {
        _ if is_list && is_complete => "multi",
        _ if is_list => "lines",
        "bool" => "select",
        _ if is_complete => "select",
        "date" | "timestamptz" => "date",
        "int4" | "int8" | "numeric" => "number",
        _ => "text",
    };
    let values = match given {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Array(items)) => items.iter().map(text).collect(),
        Some(one) => vec![text(one)],
    };
    let description = property["description"].as_str().map(str::to_owned);
    Field {
        name: name.to_owned(),
        label: property["title"].as_str().unwrap_or(name).to_owned(),
        required,
        kind,
        options,
        example: property["examples"].get(0).map(text),
        value: values.first().cloned().unwrap_or_default(),
        values,
        fault: None,
        described: description.is_some(),
        description,
        pg_type,
        is_list,
    }
}

/// The choices of a value, and whether there are no others.
fn options(one: &Json) -> (Vec<Choice>, bool) {
    let titled = |all: &Json| {
        let all = all.as_array().into_iter().flatten();
        let choices = all.filter_map(|choice| {
            let value = text(choice.get("const")?);
            let label = choice["title"].as_str().map_or_else(|| value.clone(), str::to_owned);
            Some(Choice { value, label })
        });
        choices.collect::<Vec<_>>()
    };
    if let Some(all) = one["enum"].as_array() {
        let all = all.iter().filter(|choice| !choice.is_null()).map(text);
        return (all.map(|value| Choice::new(value.clone(), value)).collect(), true);
    }
    match (one.get("oneOf"), one.get("x-some-choices")) {
        (Some(all), _) => (titled(all), true),
        (None, Some(some)) => (titled(some), false),
        (None, None) => (Vec::new(), false),
    }
}

fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The object `parameters` of a submission. What is left empty is left out: the default counts.
pub fn parameters(fields: &[Field], form: &Fields) -> Map<String, Json> {
    let mut all = Map::new();
    for field in fields {
        let name = format!("{PREFIX}{}", field.name);
        let given: Vec<&str> = match field.kind {
            "lines" => form.all(&name).flat_map(str::lines).collect(),
            _ => form.all(&name).collect(),
        };
        let mut given = given.into_iter().map(str::trim).filter(|text| !text.is_empty());
        let value = if field.is_list {
            let items: Vec<Json> = given.map(|text| value(&field.pg_type, text)).collect();
            if items.is_empty() { continue } else { json!(items) }
        } else {
            match given.next() {
                Some(text) => value(&field.pg_type, text),
                None => continue,
            }
        };
        all.insert(field.name.clone(), value);
    }
    all
}

fn value(pg_type: &str, text: &str) -> Json {
    let number = || text.parse::<i64>().map_or_else(|_| json!(text), Json::from);
    match pg_type.trim_end_matches("[]") {
        "int4" | "int8" => number(),
        "bool" => match text {
            "true" => json!(true),
            "false" => json!(false),
            other => json!(other),
        },
        _ => json!(text),
    }
}

/// Notes what is wrong with which field, and returns what belongs to none.
pub fn note_faults(fields: &mut [Field], problem: &Problem) -> Option<String> {
    let mut by_name: BTreeMap<String, &FieldError> = BTreeMap::new();
    let mut others = Vec::new();
    for error in problem.errors() {
        let pointer = error.pointer.as_deref().unwrap_or_default();
        match pointer.strip_prefix("/parameters/").and_then(|rest| rest.split('/').next()) {
            Some(name) => {
                by_name.insert(name.replace("~1", "/").replace("~0", "~"), error);
            }
            None => {
                // Named after the API's fields, which those of the form are called like.
                let field = pointer.trim_start_matches('/').replace(['_', '/'], " ");
                let gap = if field.is_empty() { "" } else { ": " };
                others.push(format!("{field}{gap}{}", error.message));
            }
        }
    }
    for field in fields {
        if let Some(error) = by_name.get(&field.name) {
            field.fault = Some(error.message.clone());
            field.described = true;
        }
    }
    match (others.is_empty(), by_name.is_empty()) {
        (false, _) => Some(others.join("; ")),
        (true, false) => Some("Some values need another look.".to_owned()),
        (true, true) => Some(problem.detail().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Json {
        json!({
            "required": ["since"],
            "properties": {
                "since": {"title": "Since", "type": "string", "default": "today - 30 days",
                          "x-postgres-type": "date"},
                "unit": {"type": ["integer", "null"], "x-postgres-type": "int4",
                         "oneOf": [{"const": 3, "title": "Physics"}, {"type": "null"}]},
                "codes": {"type": "array", "items": {"type": "string"},
                          "x-postgres-type": "text[]"},
                "open": {"type": "boolean", "x-postgres-type": "bool"},
                "grade": {"enum": ["a", "b", null], "x-postgres-type": "text"},
            }
        })
    }

    #[test]
    fn each_type_has_its_field() {
        let fields = fields(&schema(), None);
        let kinds: Vec<_> = fields.iter().map(|field| field.kind).collect();
        assert_eq!(kinds, ["date", "select", "lines", "select", "select"]);
        assert_eq!(fields[0].value, "today - 30 days");
        assert_eq!(fields[1].options.len(), 1);
    }

    #[test]
    fn a_form_becomes_parameters() {
        let fields = fields(&schema(), None);
        let form = Fields::parse(
            b"p.since=2026-01-31&p.unit=3&p.codes=A%0D%0A%0D%0AB&p.open=true&p.grade=&csrf=x",
        );
        assert_eq!(
            Json::Object(parameters(&fields, &form)),
            json!({"since": "2026-01-31", "unit": 3, "codes": ["A", "B"], "open": true})
        );
    }

    #[test]
    fn what_cannot_be_read_is_handed_on() {
        let fields = fields(&schema(), None);
        let form = Fields::parse(b"p.unit=three&p.open=maybe&p.since=");
        assert_eq!(
            Json::Object(parameters(&fields, &form)),
            json!({"unit": "three", "open": "maybe"})
        );
    }
}
