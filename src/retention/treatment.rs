//! What is done to a value so that it no longer names a person: pure functions over texts.
//!
//! Every treatment is a fixed point: treating a treated value changes nothing. That is what makes
//! a second run harmless, lets a run that was killed begin again from the top, and lets the
//! verification tell a treated row from an untreated one without remembering anything.
//!
//! Values are given and taken in PostgreSQL's text form, under `DateStyle = ISO` and in UTC. What
//! a treatment makes of a column is known before any row is read: see [`Facts`].

use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU8, NonZeroU32};

use super::keyring::Key;

mod agent;
mod fit;
pub mod json;

pub use fit::Misfit;

/// Random-looking bits in one character of a token.
const BITS_PER_CHAR: u32 = 5;
/// Fewest bits of a token in a unique column: two of a million rows collide once in 10^12 runs.
pub const MIN_UNIQUE_BITS: u32 = 80;
/// Characters of a token where nothing else is said: 160 bits.
pub const DEFAULT_TOKEN_CHARS: u8 = 32;
/// Most characters that a SHA-256 fills; longer tokens end in padding.
pub const MAX_TOKEN_CHARS: u8 = 51;
/// What stands before a password that nothing can match, as Django writes it.
const UNUSABLE_PREFIX: &str = "!";
/// Characters behind it, as Django writes them.
const UNUSABLE_CHARS: u8 = 40;
/// RFC 4648, in small letters: tokens read the same in columns that ignore case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A treatment with everything that it needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Treatment {
    /// The value goes.
    Null,
    /// Every value becomes this one.
    Constant(String),
    /// A keyed hash of the row's key: unique, and the same again with the same key.
    Token(TokenShape),
    /// The beginning of a date or text stays.
    Truncate(Truncation),
    /// The network of an IP address stays.
    Network(NetworkBits),
    /// The family of a user agent stays.
    Family,
    /// In JSON, the values under these keys become null.
    ScrubJson(json::Scrub),
    /// A password that no login can match.
    UnusablePassword,
    /// The object that the value names is deleted from the store, then the value goes.
    DeleteObject,
    /// The value stays.
    Keep,
}

/// How a token looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenShape {
    /// Before the token.
    pub prefix: String,
    /// Characters of the token itself; [`MAX_TOKEN_CHARS`] of them say something.
    pub chars: NonZeroU8,
    /// Behind the token.
    pub suffix: String,
}

/// What of a value stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncation {
    /// A date or time becomes the first of its year.
    Year,
    /// A date or time becomes the first of its month.
    Month,
    /// So many characters of a text.
    Chars(NonZeroU32),
}

/// How many leading bits of an address stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkBits {
    /// Of an IPv4 address, at most 32.
    pub v4: u8,
    /// Of an IPv6 address, at most 128.
    pub v6: u8,
}

/// What treated values still say about a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anonymity {
    /// The value says nothing about which person it was.
    Anonymous,
    /// Whoever holds the key can tell the person again.
    Pseudonymous,
    /// The value is coarser, but still the person's.
    Generalised,
    /// The value is as it was.
    Unchanged,
}

/// What is known about the values that a treatment writes, before it has seen one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Longest text written, in characters; `None` where it is never longer than the value.
    pub max_chars: Option<u32>,
    /// It can write NULL over something that is not.
    pub can_write_null: bool,
    /// Different rows get different values.
    pub keeps_unique: bool,
    /// What its values still say.
    pub anonymity: Anonymity,
}

/// Which value is treated: what a token is made from.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The table, without its schema: an archived row has the token of the live one.
    pub table: &'a str,
    /// The column.
    pub column: &'a str,
    /// The row's key in text form.
    pub row: &'a [String],
}

impl TokenShape {
    /// A bare token of the usual length.
    pub fn plain() -> Self {
        let chars = NonZeroU8::new(DEFAULT_TOKEN_CHARS).expect("not zero");
        Self { prefix: String::new(), chars, suffix: String::new() }
    }

    fn max_chars(&self) -> u32 {
        let around = self.prefix.chars().count() + self.suffix.chars().count();
        u32::try_from(around).unwrap_or(u32::MAX).saturating_add(u32::from(self.chars.get()))
    }
}

impl Treatment {
    /// As in `classification.toml`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Constant(_) => "constant",
            Self::Token(_) => "token",
            Self::Truncate(_) => "truncate",
            Self::Network(_) => "network",
            Self::Family => "family",
            Self::ScrubJson(_) => "scrub_json",
            Self::UnusablePassword => "unusable_password",
            Self::DeleteObject => "delete_object",
            Self::Keep => "keep",
        }
    }

    /// What its values will be like.
    pub fn facts(&self) -> Facts {
        let unchanged = Facts {
            max_chars: None,
            can_write_null: false,
            keeps_unique: false,
            anonymity: Anonymity::Generalised,
        };
        match self {
            Self::Null | Self::DeleteObject => {
                Facts { can_write_null: true, anonymity: Anonymity::Anonymous, ..unchanged }
            }
            Self::Constant(text) => Facts {
                max_chars: Some(u32::try_from(text.chars().count()).unwrap_or(u32::MAX)),
                anonymity: Anonymity::Anonymous,
                ..unchanged
            },
            Self::Token(shape) => Facts {
                max_chars: Some(shape.max_chars()),
                can_write_null: false,
                keeps_unique: u32::from(shape.chars.get()) * BITS_PER_CHAR >= MIN_UNIQUE_BITS,
                anonymity: Anonymity::Pseudonymous,
            },
            Self::UnusablePassword => Facts {
                max_chars: Some(u32::from(UNUSABLE_CHARS) + 1),
                can_write_null: false,
                keeps_unique: true,
                anonymity: Anonymity::Anonymous,
            },
            // `10.1.2.3` becomes `10.1.2.0/24`, and `::1` a longer text still.
            Self::Network(_) => Facts { max_chars: Some(43), ..unchanged },
            Self::Family => Facts { max_chars: Some(agent::LONGEST_CHARS), ..unchanged },
            Self::ScrubJson(_) | Self::Truncate(_) => unchanged,
            Self::Keep => {
                Facts { keeps_unique: true, anonymity: Anonymity::Unchanged, ..unchanged }
            }
        }
    }

    /// Whether the result depends on the key.
    pub const fn is_keyed(&self) -> bool {
        match self {
            Self::Token(_) | Self::UnusablePassword => true,
            Self::Null
            | Self::Constant(_)
            | Self::Truncate(_)
            | Self::Network(_)
            | Self::Family
            | Self::ScrubJson(_)
            | Self::DeleteObject
            | Self::Keep => false,
        }
    }

    /// Whether the result depends on the value; the others need not read it.
    pub const fn reads_value(&self) -> bool {
        match self {
            Self::Truncate(_) | Self::Network(_) | Self::Family | Self::ScrubJson(_) => true,
            Self::Null
            | Self::Constant(_)
            | Self::Token(_)
            | Self::UnusablePassword
            | Self::DeleteObject
            | Self::Keep => false,
        }
    }

    /// The treated value. NULL stays NULL: that nothing is known is no trace, and tokens where
    /// there was nothing would make up data. The caller passes `Some("")` for a value that
    /// [`Treatment::reads_value`] says is not needed.
    pub fn apply(&self, key: &Key, place: Place<'_>, value: Option<&str>) -> Option<String> {
        let value = value?;
        match self {
            Self::Null | Self::DeleteObject => None,
            Self::Constant(text) => Some(text.clone()),
            Self::Token(shape) => {
                let token = token(key, "token", place, shape.chars.get());
                Some(format!("{}{token}{}", shape.prefix, shape.suffix))
            }
            Self::UnusablePassword => {
                let token = token(key, "password", place, UNUSABLE_CHARS);
                Some(format!("{UNUSABLE_PREFIX}{token}"))
            }
            Self::Truncate(truncation) => truncation.apply(value),
            Self::Network(bits) => bits.apply(value),
            Self::Family => Some(agent::family(value).to_owned()),
            Self::ScrubJson(scrub) => Some(scrub.apply(value)),
            Self::Keep => Some(value.to_owned()),
        }
    }
}

/// A keyed hash of a place. The label keeps tokens of different uses apart.
fn token(key: &Key, label: &str, place: Place<'_>, chars: u8) -> String {
    let mut parts: Vec<&[u8]> =
        vec![label.as_bytes(), place.table.as_bytes(), place.column.as_bytes()];
    parts.extend(place.row.iter().map(String::as_bytes));
    base32(&key.mac("anonymize", &parts), usize::from(chars))
}

/// The first characters of some bytes in base 32.
pub(super) fn base32(bytes: &[u8], chars: usize) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let five = |at: usize| (at..at + 5).fold(0, |digit, at| digit << 1 | bit(at));
    (0..chars).map(|index| char::from(ALPHABET[usize::from(five(index * 5))])).collect()
}

impl Truncation {
    /// What cannot be read as a date goes: garbage is not worth a person's name.
    fn apply(self, value: &str) -> Option<String> {
        match self {
            Self::Chars(chars) => Some(value.chars().take(chars.get() as usize).collect()),
            // Says nothing about anybody.
            Self::Year | Self::Month if matches!(value, "infinity" | "-infinity") => {
                Some(value.to_owned())
            }
            Self::Year => first_of(value, false),
            Self::Month => first_of(value, true),
        }
    }
}

/// The first day of the year or month of `2001-05-17`, `2001-05-17 10:00:00+00` or
/// `0044-03-15 BC`, without the time.
fn first_of(value: &str, keep_month: bool) -> Option<String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let era = if value.ends_with(" BC") { " BC" } else { "" };
    let day = value.split([' ', 'T']).next()?;
    let mut parts = day.split('-');
    let (year, month) = (parts.next()?, parts.next()?);
    if !digits(year) || !digits(month) || !parts.next().is_some_and(digits) {
        return None;
    }
    let has_time = value.contains(':');
    let month = if keep_month { month } else { "01" };
    let time = if has_time { " 00:00:00+00" } else { "" };
    Some(format!("{year}-{month}-01{time}{era}"))
}

impl NetworkBits {
    /// What cannot be read as an address goes.
    fn apply(self, value: &str) -> Option<String> {
        let (address, prefix) = match value.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (value, None),
        };
        if let Ok(address) = address.parse::<Ipv4Addr>() {
            let bits = prefix.unwrap_or(32).min(self.v4).min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let network = Ipv4Addr::from(u32::from(address) & mask);
            return Some(format!("{network}/{bits}"));
        }
        let address = address.parse::<Ipv6Addr>().ok()?;
        let bits = prefix.unwrap_or(128).min(self.v6).min(128);
        let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
        let network = Ipv6Addr::from(u128::from(address) & mask);
        Some(format!("{network}/{bits}"))
    }
}

#[cfg(test)]
mod tests;
