//! JSON with some of its values taken out, and everything else byte for byte as it was.
//!
//! The text is copied, never parsed into numbers and back: PostgreSQL's `jsonb` holds numbers
//! that no Rust type does. The input is what a `json` or `jsonb` column printed.

use std::collections::BTreeSet;

/// Deepest nesting that is looked into. What lies deeper becomes null: nobody can vouch for it.
const MAX_DEPTH: u32 = 128;
/// Stands where a key named a person.
const ERASED_KEY: &str = "\"erased\"";

/// Which values of a document go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scrub {
    keys: BTreeSet<String>,
    paths: Vec<JsonPath>,
}

/// A path like `$.person.name`, `$.rows[*].email` or `$.**.phone`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    /// Any key or position.
    Any,
    /// Any number of keys and positions.
    Deep,
}

/// The text is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a path like `$.person.name`, `$.rows[*].email` or `$.**.phone`")]
pub struct BadPath;

impl std::str::FromStr for JsonPath {
    type Err = BadPath;

    fn from_str(text: &str) -> Result<Self, BadPath> {
        let rest = text.strip_prefix('$').ok_or(BadPath)?.replace("[*]", ".*");
        let rest = rest.strip_prefix('.').ok_or(BadPath)?;
        let steps = rest.split('.').map(|step| match step {
            "*" => Ok(Step::Any),
            "**" => Ok(Step::Deep),
            key if !key.is_empty() && !key.contains(['[', ']', '*', '"']) => {
                Ok(Step::Key(normal(key)))
            }
            _ => Err(BadPath),
        });
        Ok(Self(steps.collect::<Result<_, _>>()?))
    }
}

impl JsonPath {
    fn matches(&self, place: &[Option<String>]) -> bool {
        matches_steps(&self.0, place)
    }
}

fn matches_steps(steps: &[Step], place: &[Option<String>]) -> bool {
    match (steps.split_first(), place.split_first()) {
        (None, None) => true,
        (Some((Step::Deep, rest)), _) if matches_steps(rest, place) => true,
        (Some((Step::Deep, _)), Some((_, deeper))) => matches_steps(steps, deeper),
        (Some((Step::Any, rest)), Some((_, deeper))) => matches_steps(rest, deeper),
        (Some((Step::Key(key), rest)), Some((Some(name), deeper))) => {
            key == name && matches_steps(rest, deeper)
        }
        _ => false,
    }
}

/// `phoneNumber`, `phone-number` and `PHONE_NUMBER` are one name: applications write all of them.
fn normal(key: &str) -> String {
    key.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

impl Scrub {
    /// Takes out what stands under these keys, at any depth, and at these paths.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>, paths: Vec<JsonPath>) -> Self {
        Self { keys: keys.into_iter().map(normal).collect(), paths }
    }

    /// The document without those values.
    pub fn apply(&self, text: &str) -> String {
        rewrite(text, &mut |seen| match seen {
            Seen::Member(place) => {
                let under_key =
                    place.last().and_then(Option::as_ref).is_some_and(|k| self.keys.contains(k));
                under_key || self.paths.iter().any(|path| path.matches(place))
            }
            Seen::Key(_) | Seen::Text(_) => false,
        })
    }
}

/// The document without texts, numbers and keys that `names` says name somebody.
pub fn redact(text: &str, mut names: impl FnMut(&str) -> bool) -> String {
    rewrite(text, &mut |seen| match seen {
        Seen::Member(_) => false,
        Seen::Key(text) | Seen::Text(text) => names(text),
    })
}

/// Every text of a document: keys, strings, and the digits of numbers.
pub fn texts(text: &str) -> Vec<String> {
    let mut texts = Vec::new();
    rewrite(text, &mut |seen| {
        if let Seen::Key(text) | Seen::Text(text) = seen {
            texts.push(text.to_owned());
        }
        false
    });
    texts
}

/// What a rewriter is asked about: whether it goes.
enum Seen<'a> {
    /// A value by the names of what it lies in; `None` for a position in an array.
    Member(&'a [Option<String>]),
    /// The text of a key.
    Key(&'a str),
    /// The text of a string, or the digits of a number.
    Text(&'a str),
}

fn rewrite(text: &str, goes: &mut dyn FnMut(Seen<'_>) -> bool) -> String {
    let mut copy = Copy { input: text, at: 0, output: String::with_capacity(text.len()), goes };
    let mut place = Vec::new();
    match copy.value(&mut place) {
        Ok(()) if copy.input[copy.at..].trim().is_empty() => copy.output,
        // Not JSON, which a JSON column cannot hold: nothing of it can be vouched for.
        _ => "null".to_owned(),
    }
}

/// The text is not JSON.
struct NotJson;

struct Copy<'a> {
    input: &'a str,
    at: usize,
    output: String,
    goes: &'a mut dyn FnMut(Seen<'_>) -> bool,
}

impl Copy<'_> {
    fn value(&mut self, place: &mut Vec<Option<String>>) -> Result<(), NotJson> {
        self.space();
        let start = self.output.len();
        let is_top = place.is_empty();
        let too_deep = place.len() >= MAX_DEPTH as usize;
        let gone = too_deep || (!is_top && (self.goes)(Seen::Member(place)));
        if gone {
            self.skip()?;
        } else {
            match self.peek().ok_or(NotJson)? {
                b'{' => self.object(place)?,
                b'[' => self.array(place)?,
                _ => {
                    let scalar = self.scalar()?;
                    if let Some(text) = readable(&scalar)
                        && (self.goes)(Seen::Text(&text))
                    {
                        self.output.truncate(start);
                        self.output.push_str("null");
                        return Ok(());
                    }
                    self.output.push_str(&scalar);
                }
            }
            return Ok(());
        }
        self.output.truncate(start);
        self.output.push_str("null");
        Ok(())
    }

    fn object(&mut self, place: &mut Vec<Option<String>>) -> Result<(), NotJson> {
        self.take();
        loop {
            self.space();
            match self.peek().ok_or(NotJson)? {
                b'}' => return self.end(),
                b',' => self.take(),
                b'"' => {
                    let key = self.scalar()?;
                    let name = readable(&key).ok_or(NotJson)?;
                    let shown = if (self.goes)(Seen::Key(&name)) { ERASED_KEY } else { &key };
                    self.output.push_str(shown);
                    self.space();
                    if self.peek() != Some(b':') {
                        return Err(NotJson);
                    }
                    self.take();
                    place.push(Some(normal(&name)));
                    self.value(place)?;
                    place.pop();
                }
                _ => return Err(NotJson),
            }
        }
    }

    fn array(&mut self, place: &mut Vec<Option<String>>) -> Result<(), NotJson> {
        self.take();
        loop {
            self.space();
            match self.peek().ok_or(NotJson)? {
                b']' => return self.end(),
                b',' => self.take(),
                _ => {
                    place.push(None);
                    self.value(place)?;
                    place.pop();
                }
            }
        }
    }

    /// Passes a value without copying it. No recursion, so any depth will do.
    fn skip(&mut self) -> Result<(), NotJson> {
        let mut depth = 0_u64;
        loop {
            self.skip_space();
            match self.peek().ok_or(NotJson)? {
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1).ok_or(NotJson)?;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => self.at += 1,
                _ => drop(self.scalar()?),
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// A string with its quotes, a number, or a word.
    fn scalar(&mut self) -> Result<String, NotJson> {
        let rest = &self.input[self.at..];
        let bytes = rest.as_bytes();
        let end = if bytes.first() == Some(&b'"') {
            let mut escaped = false;
            let close = bytes.iter().skip(1).position(|byte| {
                let closes = *byte == b'"' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                closes
            });
            close.ok_or(NotJson)? + 2
        } else {
            let stop = |b: &u8| matches!(b, b',' | b'}' | b']' | b':') || b.is_ascii_whitespace();
            bytes.iter().position(stop).unwrap_or(bytes.len())
        };
        if end == 0 {
            return Err(NotJson);
        }
        self.at += end;
        Ok(rest[..end].to_owned())
    }

    fn peek(&self) -> Option<u8> {
        self.input.as_bytes().get(self.at).copied()
    }

    fn take(&mut self) {
        self.output.push_str(&self.input[self.at..=self.at]);
        self.at += 1;
    }

    fn end(&mut self) -> Result<(), NotJson> {
        self.take();
        Ok(())
    }

    fn space(&mut self) {
        let start = self.at;
        self.skip_space();
        self.output.push_str(&self.input[start..self.at]);
    }

    fn skip_space(&mut self) {
        let rest = &self.input.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    }
}

/// What a string says, or a number's digits; `None` for true, false and null.
fn readable(scalar: &str) -> Option<String> {
    match scalar.as_bytes().first() {
        Some(b'"') => serde_json::from_str(scalar).ok(),
        Some(b'-' | b'0'..=b'9') => Some(scalar.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn scrub(keys: &[&str], paths: &[&str]) -> Scrub {
        let paths = paths.iter().map(|path| path.parse().expect("a path")).collect();
        Scrub::new(keys.iter().copied(), paths)
    }

    #[test]
    fn values_under_classed_keys_go_at_any_depth_and_in_any_spelling() {
        let text = r#"{"a": [{"phoneNumber": {"x": [1, 2]}}], "phone-number": "1", "city": "H"}"#;
        assert_eq!(
            scrub(&["phone_number"], &[]).apply(text),
            r#"{"a": [{"phoneNumber": null}], "phone-number": null, "city": "H"}"#
        );
    }

    #[test]
    fn paths_are_followed() {
        let text = r#"{"rows": [{"name": "a"}, {"name": "b"}], "name": "c", "x": {"name": "d"}}"#;
        for (path, expected) in [
            (
                "$.rows[*].name",
                r#"{"rows": [{"name": null}, {"name": null}], "name": "c", "x": {"name": "d"}}"#,
            ),
            (
                "$.name",
                r#"{"rows": [{"name": "a"}, {"name": "b"}], "name": null, "x": {"name": "d"}}"#,
            ),
            (
                "$.**.name",
                r#"{"rows": [{"name": null}, {"name": null}], "name": null, "x": {"name": null}}"#,
            ),
            (
                "$.*.name",
                r#"{"rows": [{"name": "a"}, {"name": "b"}], "name": "c", "x": {"name": null}}"#,
            ),
        ] {
            assert_eq!(scrub(&[], &[path]).apply(text), expected, "{path}");
        }
        for bad in ["", "$", "name", "$.", "$.a..b", "$.a[0]"] {
            assert_eq!(bad.parse::<JsonPath>(), Err(BadPath), "{bad}");
        }
    }

    #[test]
    fn numbers_that_no_type_holds_are_copied() {
        let text = r#"[1e400, 0.10000000000000000000000000000001, "\u0041\"", -0]"#;
        assert_eq!(scrub(&["a"], &[]).apply(text), text);
    }

    #[test]
    fn what_names_somebody_is_redacted_wherever_it_stands() {
        let text =
            r#"{"to": "ann@x.org", "ann@x.org": 1, "n": 263771, "t": true, "l": ["Ann", "b"]}"#;
        let names = |text: &str| ["ann@x.org", "263771", "Ann"].contains(&text);
        assert_eq!(
            redact(text, names),
            r#"{"to": null, "erased": 1, "n": null, "t": true, "l": [null, "b"]}"#
        );
    }

    #[test]
    fn what_is_nested_too_deeply_goes() {
        let text = format!("{}\"secret\"{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(!scrub(&[], &[]).apply(&text).contains("secret"));
        assert_eq!(scrub(&["a"], &[]).apply("{\"a\": "), "null");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~é\"\\\\\n]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("name|email|city|x|é\"", inner, 0..5)
                    .prop_map(Value::from_iter),
            ]
        })
    }

    /// The plain way, over a parsed document.
    fn oracle(value: &Value, keys: &[&str]) -> Value {
        match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| {
                    let gone = keys.contains(&key.as_str());
                    (key.clone(), if gone { Value::Null } else { oracle(value, keys) })
                })
                .collect(),
            Value::Array(items) => items.iter().map(|item| oracle(item, keys)).collect(),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn scrubbing_is_what_the_plain_way_makes_and_a_fixed_point(value in any_json()) {
            let keys = ["name", "email"];
            let scrub = scrub(&keys, &[]);
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let once = scrub.apply(&text);
                let read: Value = serde_json::from_str(&once).unwrap();
                prop_assert_eq!(&read, &oracle(&value, &keys));
                prop_assert_eq!(scrub.apply(&once), once);
            }
            let untouched = super::Scrub::default().apply(&value.to_string());
            prop_assert_eq!(untouched, value.to_string());
        }

        #[test]
        fn any_text_is_taken_without_a_panic(text in ".{0,60}") {
            scrub(&["a"], &["$.**"]).apply(&text);
        }
    }

    #[test]
    fn a_document_is_not_gone_as_a_whole() {
        assert_eq!(scrub(&["a"], &["$.**.b"]).apply(&json!("a").to_string()), "\"a\"");
    }
}
