//! Reading a TOML file key by key, so that every fault is found in one go, each with its line.
//! Knows nothing of policies.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::PolicyFault;

/// One file and the faults found in it so far.
pub(super) struct Source<'a> {
    file: &'a str,
    text: &'a str,
    faults: RefCell<Vec<PolicyFault>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, faults: RefCell::default() }
    }

    /// The file's tables; `None`, with the faults noted, if it is not TOML.
    pub(super) fn parse(&self) -> Option<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let span = error.span().unwrap_or_default();
            self.note("", Some(span), format!("is not TOML: {}", error.message()));
        }
        errors.is_empty().then(|| table.into_inner())
    }

    pub(super) fn note(&self, key: &str, span: Option<Range<usize>>, expected: String) {
        let line = span
            .map(|span| self.text.get(..span.start).unwrap_or(self.text).matches('\n').count() + 1);
        let file = self.file.to_owned();
        self.faults.borrow_mut().push(PolicyFault { file, line, key: key.to_owned(), expected });
    }

    /// `built`, if nothing was noted.
    pub(super) fn finish<T>(self, built: Option<T>) -> Result<T, Vec<PolicyFault>> {
        let faults = self.faults.into_inner();
        match built {
            Some(built) if faults.is_empty() => Ok(built),
            _ => Err(faults),
        }
    }
}

/// A table, of which each key is read once. Those that nobody read are unknown.
pub(super) struct Reader<'s, 'a> {
    source: &'s Source<'a>,
    path: String,
    span: Option<Range<usize>>,
    entries: Vec<Entry<'s, 'a>>,
    asked: RefCell<Vec<&'static str>>,
}

struct Entry<'s, 'a> {
    key: &'s str,
    key_span: Range<usize>,
    value: &'s Spanned<DeValue<'a>>,
    read: Cell<bool>,
}

impl<'s, 'a> Reader<'s, 'a> {
    pub(super) fn new(source: &'s Source<'a>, table: &'s DeTable<'a>) -> Self {
        Self::within(source, table, String::new(), None)
    }

    fn within(
        source: &'s Source<'a>,
        table: &'s DeTable<'a>,
        path: String,
        span: Option<Range<usize>>,
    ) -> Self {
        let entries = table.iter().map(|(key, value)| Entry {
            key: key.get_ref(),
            key_span: key.span(),
            value,
            read: Cell::new(false),
        });
        Self { source, path, span, entries: entries.collect(), asked: RefCell::default() }
    }

    /// The value of `key`, if it is there.
    pub(super) fn optional(&self, key: &'static str) -> Option<Item<'s, 'a>> {
        self.asked.borrow_mut().push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(self.take(entry))
    }

    /// The value of `key`; its absence is noted.
    pub(super) fn required(&self, key: &'static str) -> Option<Item<'s, 'a>> {
        let item = self.optional(key);
        if item.is_none() {
            self.source.note(&join(&self.path, key), self.span.clone(), "is missing".to_owned());
        }
        item
    }

    /// Every key that was not read yet, with its value.
    pub(super) fn rest(&self) -> Vec<(&'s str, Item<'s, 'a>)> {
        let left = self.entries.iter().filter(|entry| !entry.read.get());
        left.map(|entry| (entry.key, self.take(entry))).collect()
    }

    /// Notes a fault of the table as a whole.
    pub(super) fn fault(&self, expected: impl Into<String>) {
        self.source.note(&self.path, self.span.clone(), expected.into());
    }

    /// Notes each key that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.asked.borrow().join("`, `");
        for entry in self.entries.iter().filter(|entry| !entry.read.get()) {
            let expected = format!("is not a key here; the keys are `{known}`");
            self.source.note(&join(&self.path, entry.key), Some(entry.key_span.clone()), expected);
        }
    }

    fn take(&self, entry: &Entry<'s, 'a>) -> Item<'s, 'a> {
        entry.read.set(true);
        // Of the table of a `[header]` the key tells the line, of a value the value does.
        let span =
            if entry.value.get_ref().is_table() { &entry.key_span } else { &entry.value.span() };
        Item {
            source: self.source,
            path: join(&self.path, entry.key),
            span: span.clone(),
            value: entry.value.get_ref(),
        }
    }
}

/// A value and where it stands. Each method notes a fault and gives `None` if it is another thing.
pub(super) struct Item<'s, 'a> {
    source: &'s Source<'a>,
    path: String,
    span: Range<usize>,
    value: &'s DeValue<'a>,
}

impl<'s, 'a> Item<'s, 'a> {
    pub(super) fn fault(&self, expected: impl Into<String>) {
        self.source.note(&self.path, Some(self.span.clone()), expected.into());
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    pub(super) fn text(&self) -> Option<&'s str> {
        self.value.as_str().or_else(|| self.not("a text"))
    }

    pub(super) fn flag(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.not("true or false"))
    }

    /// A whole number of `bounds`.
    pub(super) fn whole(&self, bounds: Range<u64>) -> Option<u64> {
        let number = self
            .value
            .as_integer()
            .and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok());
        let expected = || format!("a whole number from {} to {}", bounds.start, bounds.end - 1);
        number.filter(|number| bounds.contains(number)).or_else(|| self.not(&expected()))
    }

    /// A number.
    pub(super) fn number(&self) -> Option<f64> {
        let integer = self.value.as_integer().map(toml::de::DeInteger::as_str);
        let float = self.value.as_float().map(toml::de::DeFloat::as_str);
        let number = integer.or(float).and_then(|text| text.parse::<f64>().ok());
        number.filter(|number| number.is_finite()).or_else(|| self.not("a number"))
    }

    /// A text that is a `T`, whose error says what was expected.
    pub(super) fn parse<T: FromStr<Err: Display>>(&self) -> Option<T> {
        self.text()?.parse().map_err(|error: T::Err| self.fault(error.to_string())).ok()
    }

    /// One of the texts of `choices`.
    pub(super) fn choose<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("`, `");
        found.or_else(|| self.not(&format!("one of `{}`", names())))
    }

    /// The elements of an array, at least one and at most `most`.
    pub(super) fn array(&self, most: usize) -> Option<Vec<Item<'s, 'a>>> {
        let array = self.value.as_array().or_else(|| self.not("an array"))?;
        if array.is_empty() || array.len() > most {
            return self.not(&format!("an array of 1 to {most} elements"));
        }
        let items = array.iter().enumerate().map(|(index, value)| Item {
            source: self.source,
            path: format!("{}[{index}]", self.path),
            span: value.span(),
            value: value.get_ref(),
        });
        Some(items.collect())
    }

    /// The elements of an array, each read by `read`, of which no two may be the same.
    pub(super) fn each<T: PartialEq>(
        &self,
        most: usize,
        read: impl Fn(&Item<'s, 'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.array(most)?;
        let values: Vec<_> = items.iter().map(read).collect();
        for (index, item) in items.iter().enumerate() {
            if values[index].is_some() && values[..index].contains(&values[index]) {
                item.fault("is there twice");
            }
        }
        values.into_iter().collect()
    }

    /// A table, inline or not.
    pub(super) fn table(&self) -> Option<Reader<'s, 'a>> {
        let table = self.value.as_table().or_else(|| self.not("a table"))?;
        Some(Reader::within(self.source, table, self.path.clone(), Some(self.span.clone())))
    }

    /// The value as JSON; dates as text.
    pub(super) fn json(&self) -> Option<serde_json::Value> {
        use serde_json::Value;
        match self.value {
            DeValue::String(text) => Some(Value::String(text.to_string())),
            DeValue::Boolean(flag) => Some(Value::Bool(*flag)),
            DeValue::Datetime(datetime) => Some(Value::String(datetime.to_string())),
            DeValue::Integer(integer) => {
                let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
                number.map(Value::from).or_else(|| self.not("a whole number of 64 bits"))
            }
            DeValue::Float(_) => self.number().map(Value::from),
            DeValue::Array(_) => self
                .array(1_000)?
                .iter()
                .map(Item::json)
                .collect::<Option<Vec<_>>>()
                .map(Value::Array),
            DeValue::Table(_) => self.not("a text, a number, true, false or an array of these"),
        }
    }

    fn not<T>(&self, expected: &str) -> Option<T> {
        self.fault(format!("must be {expected}"));
        None
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
