//! Exact decimal numbers, as text.

use std::cmp::Ordering;
use std::fmt;

/// The most digits of a number. PostgreSQL allows 131,072 before the point; nobody reports that,
/// and every one costs the server time.
const MAX_DIGITS: usize = 1_000;

/// A decimal number in its one shortest form: no plus sign, no exponent, no leading zeros, no
/// trailing zeros behind the point, no negative zero. Equal numbers are equal texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decimal(String);

impl Decimal {
    /// Reads `-12.50`. Exponents are not accepted: `1e100000` is short to write and long to store.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = match digits.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (digits, ""),
        };
        let is_digits = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
            return None;
        }
        if whole.len() + fraction.len() > MAX_DIGITS {
            return None;
        }
        let whole = match whole.trim_start_matches('0') {
            "" => "0",
            whole => whole,
        };
        let fraction = fraction.trim_end_matches('0');
        let sign = if negative && (whole, fraction) != ("0", "") { "-" } else { "" };
        let point = if fraction.is_empty() { "" } else { "." };
        Some(Self(format!("{sign}{whole}{point}{fraction}")))
    }

    /// Reads a JSON number. One that came with a fraction is a binary float by now: up to 15
    /// significant digits it is surely what was written, beyond that `None`.
    pub(super) fn from_json_number(number: &serde_json::Number) -> Option<Self> {
        const CERTAIN_DIGITS: usize = 15;
        if number.is_i64() || number.is_u64() {
            return Self::parse(&number.to_string());
        }
        let decimal = Self::parse(&number.as_f64()?.to_string())?;
        let digits: String = decimal.0.chars().filter(char::is_ascii_digit).collect();
        let significant = digits.trim_start_matches('0').trim_end_matches('0').len();
        (significant <= CERTAIN_DIGITS).then_some(decimal)
    }

    /// The same as a JSON number, `None` if a binary float cannot hold it.
    pub(super) fn to_json_number(&self) -> Option<serde_json::Number> {
        if let Ok(whole) = self.0.parse::<i64>() {
            return Some(whole.into());
        }
        let number = serde_json::Number::from_f64(self.0.parse().ok()?)?;
        (Self::from_json_number(&number).as_ref() == Some(self)).then_some(number)
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// Sign, whole part and fraction.
    fn parts(&self) -> (bool, &str, &str) {
        let (negative, digits) = match self.0.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, self.0.as_str()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        (negative, whole, fraction)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let (negative, whole, fraction) = self.parts();
        let (other_negative, other_whole, other_fraction) = other.parts();
        // Without leading zeros the longer whole part is the larger one, and without trailing
        // zeros the order of fractions is that of their text.
        let by_size = || {
            (whole.len(), whole, fraction).cmp(&(other_whole.len(), other_whole, other_fraction))
        };
        match (negative, other_negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => by_size(),
            (true, true) => by_size().reverse(),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
