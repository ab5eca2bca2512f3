//! `Prefer` (RFC 7240): how long a client would like to wait.
//!
//! Preferences are wishes: what cannot be read or is not known is passed over.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The request's header.
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Says which wishes were granted.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// Longest wait.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

/// How long the client would like to wait, at most [`MAX_WAIT`]; by default, not at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wait(u64);

impl Wait {
    /// Finds `wait=N`. The first one counts where there are several.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        headers
            .get_all(PREFER)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|line| line.split(','))
            .find_map(wait_of)
    }

    /// As long as that.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// `Preference-Applied`, with the wait that was granted.
    pub fn applied(self) -> (HeaderName, HeaderValue) {
        let value = HeaderValue::try_from(format!("wait={}", self.0)).expect("ASCII");
        (PREFERENCE_APPLIED, value)
    }
}

/// Reads `wait=N` or `wait="N"`, with or without parameters behind it.
fn wait_of(preference: &str) -> Option<Wait> {
    let (name, value) = preference.split(';').next()?.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // A number too large to read is as good as the longest wait.
    Some(Wait(value.parse::<u64>().unwrap_or(u64::MAX).min(MAX_WAIT.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wait(lines: &[&'static str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(PREFER, HeaderValue::from_static(line));
        }
        Wait::from_headers(&headers).map(|wait| wait.0)
    }

    #[test]
    fn a_wait_is_found_among_preferences() {
        for (lines, expected) in [
            (&["wait=5"][..], Some(5)),
            (&["respond-async, WAIT = 7"], Some(7)),
            (&["respond-async", "wait=\"9\"; foo=bar"], Some(9)),
            (&["wait=3, wait=8"], Some(3)),
            (&["wait=0"], Some(0)),
            (&["wait=31"], Some(30)),
            (&["wait=99999999999999999999999999"], Some(30)),
        ] {
            assert_eq!(wait(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_no_wait_is_passed_over() {
        for line in ["", "wait", "wait=", "wait=-1", "wait=1.5", "wait=\"", "await=5", ",;=,"] {
            assert_eq!(wait(&[line]), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(PREFER, value);
                let wait = Wait::from_headers(&headers);
                prop_assert!(wait.is_none_or(|wait| wait.duration() <= MAX_WAIT));
            }
        }
    }
}
