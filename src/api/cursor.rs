//! Cursors of lists: opaque to clients, and bound to the filter that they were made for.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::db::executions::Filter;

/// The first byte of a cursor; another layout gets another number.
const VERSION: u8 = 1;
/// Bytes of the filter's hash: a slip is noticed, and nothing secret is protected.
const FILTER_BYTES: usize = 8;
const LENGTH: usize = 1 + 8 + FILTER_BYTES;

/// Where the page behind `last` begins, for lists with this filter.
pub fn encode(filter: &Filter, last: i64) -> String {
    encode_any(&identity(filter), last)
}

/// The same for lists of other things: `identity` is what the cursor is bound to.
pub fn encode_any(identity: &Value, last: i64) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend(last.to_be_bytes());
    bytes.extend(hash(identity));
    hex::encode(bytes)
}

/// Reads a cursor; `None` where it is none, or one of another filter.
pub fn decode(filter: &Filter, text: &str) -> Option<i64> {
    decode_any(&identity(filter), text)
}

/// The same for lists of other things.
pub fn decode_any(identity: &Value, text: &str) -> Option<i64> {
    let mut bytes = [0; LENGTH];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    let (version, rest) = bytes.split_first()?;
    let (last, bound_to) = rest.split_first_chunk::<8>()?;
    let legal = *version == VERSION && bound_to == hash(identity);
    legal.then(|| i64::from_be_bytes(*last))
}

fn identity(filter: &Filter) -> Value {
    let Filter { executed_by, status, slug, before: _ } = filter;
    json!([executed_by, status, slug])
}

fn hash(identity: &Value) -> [u8; FILTER_BYTES] {
    let mut hash = [0; FILTER_BYTES];
    hash.copy_from_slice(&Sha256::digest(identity.to_string())[..FILTER_BYTES]);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::executions::Status;
    use proptest::prelude::*;

    fn filter(status: Option<Status>) -> Filter {
        Filter { status, ..Filter::default() }
    }

    #[test]
    fn a_cursor_of_another_filter_is_refused() {
        let cursor = encode(&filter(Some(Status::Failed)), 71);
        assert_eq!(decode(&filter(Some(Status::Failed)), &cursor), Some(71));
        assert_eq!(decode(&filter(Some(Status::Completed)), &cursor), None);
        assert_eq!(decode(&filter(None), &cursor), None);
    }

    proptest! {
        #[test]
        fn every_position_comes_back(last in any::<i64>()) {
            prop_assert_eq!(decode(&filter(None), &encode(&filter(None), last)), Some(last));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,80}") {
            decode(&filter(None), &text);
        }
    }
}
