//! `Range` (RFC 9110, section 14) over bytes.
//!
//! One range is answered. Several, other units and what cannot be read are passed over, which
//! the standard permits: the client gets the whole.

use axum::http::HeaderMap;
use axum::http::header::RANGE;

/// What of a file was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// These bytes; they exist, and there is at least one.
    Part(std::ops::Range<u64>),
    /// Bytes that the file does not have.
    Unsatisfiable,
}

/// Reads `Range` for a file of `size` bytes.
pub fn wanted(headers: &HeaderMap, size: u64) -> Wanted {
    let mut values = headers.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Wanted::Whole };
    value.to_str().ok().and_then(|text| read(text, size)).unwrap_or(Wanted::Whole)
}

/// `bytes=first-last`, `bytes=first-` or `bytes=-length`.
fn read(text: &str, size: u64) -> Option<Wanted> {
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let bytes = match (first, last) {
        ("", length) => size.saturating_sub(position(length)?)..size,
        (first, "") => position(first)?..size,
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            if last < first {
                return None;
            }
            first..size.min(last.saturating_add(1))
        }
    };
    Some(if bytes.start < bytes.end { Wanted::Part(bytes) } else { Wanted::Unsatisfiable })
}

/// Digits; a number too large to read lies behind every file.
fn position(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    fn check(text: &str, size: u64) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_str(text).expect("a value"));
        wanted(&headers, size)
    }

    #[test]
    fn one_range_is_read() {
        for (text, expected) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-99", 0..100),
            ("bytes=10-", 10..100),
            ("bytes=90-1000", 90..100),
            ("Bytes=99-99999999999999999999999", 99..100),
            ("bytes=-1", 99..100),
            ("bytes=-100", 0..100),
            ("bytes=-99999999999999999999999", 0..100),
        ] {
            assert_eq!(check(text, 100), Wanted::Part(expected), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_not_there_cannot_be_had() {
        for text in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(check(text, 100), Wanted::Unsatisfiable, "{text}");
        }
        assert_eq!(check("bytes=-5", 0), Wanted::Unsatisfiable);
        assert_eq!(check("bytes=0-", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn what_is_no_single_range_gives_the_whole() {
        for text in
            ["bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=0-1,5-6", "rows=0-1", "0-1", ""]
        {
            assert_eq!(check(text, 100), Wanted::Whole, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_header_gives_bytes_that_exist(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            size in any::<u64>(),
        ) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(RANGE, value);
                if let Wanted::Part(part) = wanted(&headers, size) {
                    prop_assert!(part.start < part.end && part.end <= size);
                }
            }
        }

        #[test]
        fn any_two_positions_give_bytes_that_exist(
            first in any::<u64>(), last in any::<u64>(), size in any::<u64>(),
        ) {
            for text in [
                format!("bytes={first}-{last}"), format!("bytes={first}-"), format!("bytes=-{last}"),
            ] {
                if let Wanted::Part(part) = check(&text, size) {
                    prop_assert!(part.start < part.end && part.end <= size, "{}", text);
                }
            }
        }
    }
}
