//! Pages of lists: how long one is, and whether there is another behind it.

use super::query::QueryReader;
use crate::service::MAX_PAGE;

/// Entries on a page where the caller names none.
const DEFAULT_PAGE: i64 = 50;

/// Takes `limit`: how many entries the page has.
pub fn limit(query: &mut QueryReader) -> i64 {
    query.within("limit", DEFAULT_PAGE, 1..=MAX_PAGE)
}

/// Cuts a page off entries of which one more than `limit` was asked for, and returns its last one
/// where more follow.
pub fn cut<T>(entries: &mut Vec<T>, limit: i64) -> Option<&T> {
    let size = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = entries.len() > size;
    entries.truncate(size);
    entries.last().filter(|_| more)
}
