//! Entity tags (RFC 9110, section 8.8.3) and the conditions on them.

use axum::http::header::{IF_NONE_MATCH, IF_RANGE};
use axum::http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

/// Bytes of a hash that name a representation: enough that two never share one.
const HASH_BYTES: usize = 16;

/// A strong entity tag: equal tags, equal bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ETag(String);

impl ETag {
    /// The tag of a representation.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(&Sha256::digest(bytes)[..HASH_BYTES]))
    }

    /// A tag from a hash in hex that is known already.
    pub fn from_hex(hash: &str) -> Self {
        Self(hash.bytes().filter(u8::is_ascii_hexdigit).map(char::from).collect())
    }

    /// Without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The header's value, in quotes.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::try_from(format!("\"{}\"", self.0)).expect("hexadecimal digits")
    }

    /// Whether the client has this representation: `If-None-Match`, by weak comparison.
    pub fn is_known_to(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|line| self.is_listed_in(line))
    }

    /// Our tags hold no comma, so that a list can be cut at commas: a piece of another server's
    /// tag never equals one of ours with its quotes.
    fn is_listed_in(&self, line: &str) -> bool {
        line.split(',').map(str::trim).any(|tag| {
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag == "*" || self.equals(tag)
        })
    }

    /// Whether a range of this representation may be answered: without `If-Range`, or where that
    /// names it by strong comparison. A date never does: we send none.
    pub fn permits_range(&self, headers: &HeaderMap) -> bool {
        match headers.get(IF_RANGE) {
            None => true,
            Some(value) => value.to_str().is_ok_and(|tag| self.equals(tag.trim())),
        }
    }

    fn equals(&self, quoted: &str) -> bool {
        quoted
            .strip_prefix('"')
            .and_then(|tag| tag.strip_suffix('"'))
            .is_some_and(|tag| tag == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(name: axum::http::HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a value"));
        headers
    }

    #[test]
    fn a_known_tag_is_found_in_a_list() {
        let tag = ETag::from_hex("abc123");
        for (value, expected) in [
            ("\"abc123\"", true),
            ("W/\"abc123\"", true),
            ("\"x\", \"abc123\"", true),
            ("\"x,abc123\"", false),
            ("\"x,\",\"abc123\"", true),
            ("*", true),
            ("abc123", false),
            ("\"abc\"", false),
            ("\"", false),
            ("", false),
        ] {
            assert_eq!(tag.is_known_to(&headers(IF_NONE_MATCH, value)), expected, "{value}");
        }
        assert!(!tag.is_known_to(&HeaderMap::new()));
    }

    #[test]
    fn a_range_is_permitted_only_of_the_same_bytes() {
        let tag = ETag::from_hex("abc123");
        assert!(tag.permits_range(&HeaderMap::new()));
        for (value, expected) in [
            ("\"abc123\"", true),
            ("W/\"abc123\"", false),
            ("\"other\"", false),
            ("Tue, 15 Nov 1994 08:12:31 GMT", false),
        ] {
            assert_eq!(tag.permits_range(&headers(IF_RANGE, value)), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(IF_NONE_MATCH, value.clone());
                headers.insert(IF_RANGE, value);
                let tag = ETag::of(&bytes);
                prop_assert!(!tag.permits_range(&headers));
                tag.is_known_to(&headers);
            }
        }
    }
}
