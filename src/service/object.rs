//! JSON objects that are nothing else.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Reads an object only: a struct alone is read from an array as well, field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Map::<String, Value>::deserialize(deserializer)?;
        serde_json::from_value(Value::Object(object)).map(Self).map_err(Error::custom)
    }
}

/// The same for a field that may be missing or null.
///
/// # Errors
/// It is something else, or the object is not as it should be.
pub fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(read)| read))
}
