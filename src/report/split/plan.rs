//! Which ranges a query is read in, if any.

use crate::report::batch::FULL_BYTES;
use crate::report::error::ReportError;
use crate::report::parameters::Value;
use crate::report::source::{CheckedQuery, Key, Range, Session};

use super::{AHEAD_BYTES, Split};

/// Less than this is read before further connections are there.
const LEAST_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
/// The share of the query's cost that finding the least and the largest key may take.
const ENDS_SHARE: f64 = 0.05;
/// Steps between two keys at which a range could begin, where no statistics tell better ones.
const STEPS: i128 = 128;
/// The share of the steps that the planner is asked about.
const PROBE: usize = 16;
/// Most ranges for each connection.
const MAX_RANGES_EACH: usize = 32;
/// What a range repeats costs less than the planner thinks, by about this factor: it assumes that
/// every range reads its tables from the disk.
const REPEATED_IS_CHEAPER: f64 = 0.25;
/// Splitting must promise to be this much quicker, for it costs the server more in all.
const WORTH_IT: f64 = 0.9;

/// The ranges in which a query is read best, in their order; `None` for as a whole.
///
/// # Errors
/// [`ReportError::Sql`]
pub(super) async fn ranges(
    session: &mut Session,
    query: &CheckedQuery,
    key: Key,
    values: &[Value],
    split: Split,
) -> Result<Option<Vec<Range>>, ReportError> {
    let whole = session.explain(query, values.iter()).await?;
    let bytes = whole.rows * (whole.row_bytes + query.columns.len() as f64);
    if split.ranges.is_none() && bytes < LEAST_BYTES {
        return Ok(None);
    }
    let ends_cost = if split.ranges.is_some() { f64::INFINITY } else { whole.cost * ENDS_SHARE };
    let ends = session.key_ends(query, key, values, ends_cost).await?;
    let steps = steps(ends, session.key_histogram(query, key).await?);
    let count = match split.ranges {
        Some(count) => Some(count),
        None => {
            let Some(probe) = probe(&steps) else { return Ok(None) };
            let part = session.explain_range(query, key, probe, values).await?;
            let share = part.rows / whole.rows;
            let repeated = ((part.cost - share * whole.cost) / (1.0 - share)).max(0.0);
            let costs = Costs { repeated: repeated / whole.cost, bytes };
            costs.best_count(split.connections)
        }
    };
    Ok(count.and_then(|count| cut(&steps, count)))
}

/// Keys at which a range could begin, ascending, with about equally many rows between them.
fn steps(ends: Option<(i64, i64)>, histogram: Vec<i64>) -> Vec<i64> {
    let mut steps = histogram;
    if let Some((least, largest)) = ends {
        steps.retain(|&step| least < step && step <= largest);
        if steps.len() < PROBE {
            let (least, width) = (i128::from(least), i128::from(largest) - i128::from(least) + 1);
            steps = (1..STEPS)
                .map(|step| least + width * step / STEPS)
                .filter(|&step| step > least)
                .filter_map(|step| i64::try_from(step).ok())
                .collect();
        }
    }
    steps.sort_unstable();
    steps.dedup();
    steps
}

/// A range in the middle, of which the planner can tell what all ranges repeat.
fn probe(steps: &[i64]) -> Option<Range> {
    let from = steps.len() / 2;
    let below = steps.get(from + (steps.len() / PROBE).max(1))?;
    Some(Range::Keys { from: steps.get(from).copied(), below: Some(*below) })
}

/// Cuts the keys into at most `count` ranges, and one of the rows without a key.
fn cut(steps: &[i64], count: usize) -> Option<Vec<Range>> {
    let mut bounds: Vec<i64> = (1..count)
        .filter_map(|index| (index * (steps.len() + 1) / count).checked_sub(1))
        .filter_map(|step| steps.get(step).copied())
        .collect();
    bounds.dedup();
    if bounds.is_empty() {
        return None;
    }
    let from = std::iter::once(None).chain(bounds.iter().copied().map(Some));
    let below = bounds.iter().copied().map(Some).chain([None]);
    let keys = from.zip(below).map(|(from, below)| Range::Keys { from, below });
    Some(keys.chain([Range::Null]).collect())
}

/// What a query takes.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// What each range repeats, as a share of the whole query.
    repeated: f64,
    /// Of all rows.
    bytes: f64,
}

impl Costs {
    /// The number of ranges that promises to be quickest, `None` if none is worth it.
    fn best_count(self, connections: usize) -> Option<usize> {
        (1..=MAX_RANGES_EACH)
            .map(|each| each * connections)
            .map(|count| (count, self.time(count, connections)))
            .filter(|&(_, time)| time < WORTH_IT)
            .min_by(|(_, one), (_, other)| one.total_cmp(other))
            .map(|(count, _)| count)
    }

    /// How long `count` ranges take, as a share of what the whole query takes.
    fn time(self, count: usize, connections: usize) -> f64 {
        let work = 1.0 + count as f64 * self.repeated * REPEATED_IS_CHEAPER;
        // Of a range only as much is read ahead as there is memory for; the rest comes when it
        // is its turn, while the other connections have no more room.
        let range = self.bytes / count as f64 + FULL_BYTES as f64;
        let ahead = AHEAD_BYTES as f64 / ((connections - 1) as f64 * range);
        let side_by_side = ahead.min(1.0);
        work * (1.0 - side_by_side + side_by_side / connections as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1024.0 * 1024.0;

    fn keys(ranges: Option<Vec<Range>>) -> Vec<(Option<i64>, Option<i64>)> {
        let ranges = ranges.unwrap();
        let (last, keys) = ranges.split_last().unwrap();
        assert_eq!(*last, Range::Null);
        let keys = keys.iter().map(|range| match *range {
            Range::Keys { from, below } => (from, below),
            Range::Null => panic!("NULL comes last"),
        });
        keys.collect()
    }

    #[test]
    fn ranges_join_each_other_and_are_open_at_the_ends() {
        let steps: Vec<i64> = (1..100).collect();
        assert_eq!(
            keys(cut(&steps, 4)),
            [(None, Some(25)), (Some(25), Some(50)), (Some(50), Some(75)), (Some(75), None)]
        );
        assert_eq!(keys(cut(&[7], 2)), [(None, Some(7)), (Some(7), None)]);
        for count in 2..300 {
            let keys = keys(cut(&steps, count));
            assert!(keys.len() <= count);
            assert!(keys.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert!(
                keys.iter().all(|(from, below)| from.is_none() || below.is_none() || from < below)
            );
        }
    }

    #[test]
    fn without_keys_there_is_nothing_to_cut() {
        assert_eq!(cut(&[], 8), None);
        assert_eq!(cut(&[1, 2, 3], 1), None);
        assert_eq!(probe(&[]), None);
    }

    #[test]
    fn steps_lie_between_the_ends() {
        assert_eq!(steps(None, vec![3, 1, 2, 2]), [1, 2, 3]);
        let histogram: Vec<i64> = (0..100).map(|step| step * 10).collect();
        assert_eq!(steps(Some((500, 999)), histogram.clone()).first(), Some(&510));
        // All of the histogram lies below: the keys were given out since.
        let later = steps(Some((10_000, 11_279)), histogram);
        assert_eq!((later.len(), later[0], later[126]), (127, 10_010, 11_270));
        assert!(steps(Some((5, 5)), Vec::new()).is_empty());
        assert_eq!(steps(Some((5, 7)), Vec::new()), [6, 7]);
        let all = steps(Some((i64::MIN, i64::MAX)), Vec::new());
        assert_eq!((all.len(), all[63]), (127, 0));
    }

    #[test]
    fn splitting_must_pay() {
        let costs = |repeated, bytes| Costs { repeated, bytes };
        // A million rows of a join: about what fits into memory at a time.
        let count = costs(0.17, 180.0 * MIB).best_count(2).unwrap();
        assert!((4..=8).contains(&count), "{count}");
        // Nothing is repeated: small ranges cost nothing.
        assert!(costs(0.0, 180.0 * MIB).best_count(2).unwrap() >= 5);
        // Everything is: the key does not reach into the query.
        assert_eq!(costs(1.0, 180.0 * MIB).best_count(2), None);
        // Far more than there is memory for, and ranges that are not cheap.
        assert_eq!(costs(0.17, 20_000.0 * MIB).best_count(2), None);
        assert_eq!(costs(0.0, 180.0 * MIB).best_count(4).unwrap() % 4, 0);
    }
}
