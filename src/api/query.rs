//! Query parameters, one by one: an unknown one, a repeated one or one that cannot be read is
//! refused by name.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::error::ProblemKind;
use super::problem::{FieldError, Problem};

/// Most parameters that are looked at.
const MAX_PAIRS: usize = 50;
/// Longest name that is repeated in an error, in characters.
const MAX_NAME_CHARS: usize = 100;

/// The parameters that were not taken yet, and what was wrong with those that were.
#[derive(Debug)]
pub struct QueryReader {
    pairs: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl QueryReader {
    /// Reads the part of a URL behind `?`.
    pub fn new(query: Option<&str>) -> Self {
        let mut pairs: Vec<_> = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .take(MAX_PAIRS + 1)
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        let mut errors = Vec::new();
        if pairs.len() > MAX_PAIRS {
            pairs.clear();
            errors.push(FieldError::query("*", "too_many", format!("at most {MAX_PAIRS}")));
        }
        Self { pairs, errors }
    }

    /// Takes a parameter, as text.
    pub fn take(&mut self, name: &'static str) -> Option<String> {
        let mut found = None;
        let mut count = 0;
        self.pairs.retain_mut(|(key, value)| {
            let hit = key == name;
            if hit {
                count += 1;
                found = Some(std::mem::take(value));
            }
            !hit
        });
        if count > 1 {
            self.refuse(name, "repeated", "may be given only once");
            return None;
        }
        // PostgreSQL cannot compare it with any text.
        if found.as_ref().is_some_and(|text| text.contains('\0')) {
            self.refuse(name, "invalid", "must be without the character U+0000");
            return None;
        }
        found
    }

    /// Takes a parameter and reads it; `expected` says how it should look.
    pub fn parse<T: FromStr>(&mut self, name: &'static str, expected: &str) -> Option<T> {
        let text = self.take(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.refuse(name, "invalid", expected);
        }
        parsed
    }

    /// Takes a parameter and reads it as a number of a range; `default` where it is not given.
    pub fn within<T>(&mut self, name: &'static str, default: T, range: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + Display,
    {
        let expected = format!("must be between {} and {}", range.start(), range.end());
        let value = self.parse(name, &expected).unwrap_or(default);
        if !range.contains(&value) {
            self.refuse(name, "invalid", &expected);
        }
        value
    }

    /// Refuses a parameter for a reason of the handler's own.
    pub fn refuse(&mut self, name: &'static str, code: &'static str, message: &str) {
        self.errors.push(FieldError::query(name, code, message));
    }

    /// Refuses what was not taken.
    ///
    /// # Errors
    /// One [`Problem`] that names every parameter that was refused.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in self.pairs {
            let name: String = name.chars().take(MAX_NAME_CHARS).collect();
            self.errors.push(FieldError::query(name, "unknown", "there is no such parameter"));
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(Problem::with_errors(ProblemKind::InvalidQuery, self.errors))
    }
}

/// Operations without query parameters take this: whoever sends one is told that it does nothing.
#[derive(Debug)]
pub struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        QueryReader::new(parts.uri.query()).finish().map(|()| Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_taken_is_unknown() {
        let mut query = QueryReader::new(Some("limit=5&colour=red"));
        assert_eq!(query.parse::<u8>("limit", "a number"), Some(5));
        assert!(query.finish().is_err());
    }

    #[test]
    fn a_repeated_parameter_is_refused() {
        let mut query = QueryReader::new(Some("limit=5&limit=6"));
        assert_eq!(query.take("limit"), None);
        assert!(query.finish().is_err());
    }

    #[test]
    fn a_parameter_that_no_text_can_hold_is_refused() {
        let mut query = QueryReader::new(Some("policy=a%00b"));
        assert_eq!(query.take("policy"), None);
        assert!(query.finish().is_err());
    }

    #[test]
    fn no_query_is_an_empty_one() {
        let mut query = QueryReader::new(None);
        assert_eq!(query.take("limit"), None);
        assert!(query.finish().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,300}") {
            let mut query = QueryReader::new(Some(&text));
            query.parse::<i64>("limit", "a number");
            let _ = query.finish();
        }
    }
}
