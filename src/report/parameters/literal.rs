//! Values as they are written in templates and in JSON.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;

/// A value as it is written in TOML or JSON, before the type of its parameter is known. The dates
/// of TOML become the strings that JSON has for them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub(in crate::report) struct Literal(pub(in crate::report) Json);

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LiteralVisitor)
    }
}

struct LiteralVisitor;

impl<'de> Visitor<'de> for LiteralVisitor {
    type Value = Literal;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, number, boolean or date, or a list of these")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Literal, E> {
        Ok(Literal(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Literal, E> {
        Ok(Literal(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Literal, E> {
        Ok(Literal(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Literal, E> {
        serde_json::Number::from_f64(value)
            .map(|number| Literal(Json::Number(number)))
            .ok_or_else(|| E::custom("must be a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Literal, E> {
        Ok(Literal(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Literal, A::Error> {
        let mut items = Vec::new();
        while let Some(Literal(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Literal(Json::Array(items)))
    }

    // The deserializer of TOML hands out dates as maps that only its own type can read.
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Literal, A::Error> {
        let date = toml::value::Datetime::deserialize(MapAccessDeserializer::new(map))
            .map_err(|_| A::Error::invalid_type(Unexpected::Map, &self))?;
        Ok(Literal(date.to_string().into()))
    }
}
