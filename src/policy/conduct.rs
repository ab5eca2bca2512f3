//! How a policy runs, whatever its kind: when, within which limits, and who has to agree.

use serde::Serialize;

use super::age::Timespan;

/// When a policy runs by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Five fields, or six with seconds first; known to be readable.
    pub cron: String,
    /// What becomes of occurrences that were missed.
    pub catch_up: CatchUp,
    /// How late an occurrence may still start.
    pub window: Timespan,
    /// What happens while the run before is not done.
    pub overlap: Overlap,
}

/// What becomes of occurrences that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// Nothing.
    None,
    /// The latest runs.
    Latest,
    /// Each runs.
    All,
}

/// What happens while the run before is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The occurrence is left out.
    Skip,
    /// It waits.
    Queue,
}

/// What one run may do, and how hard it may press.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// Most rows of a run; above, it asks for approval.
    pub max_rows: Option<u64>,
    /// Most of a table's rows; above, it asks for approval.
    pub max_share: Option<Share>,
    /// The size of a chunk adapts to this. Whoever needs a row of a chunk waits for so long.
    pub chunk_target: Timespan,
    /// Longest wait for a lock.
    pub lock_timeout: Timespan,
    /// What makes a run wait.
    pub pause_when: PauseWhen,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_rows: None,
            max_share: None,
            chunk_target: Timespan::from_millis(75),
            lock_timeout: Timespan::from_millis(200),
            pause_when: PauseWhen::default(),
        }
    }
}

/// A share of a table's rows: more than none, at most all.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Share(f64);

impl Share {
    pub(super) fn new(share: f64) -> Option<Self> {
        (share > 0.0 && share <= 1.0).then_some(Self(share))
    }

    /// As a fraction of one.
    pub fn fraction(self) -> f64 {
        self.0
    }
}

/// Signs of load that make a run wait between two chunks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PauseWhen {
    /// A replica is this far behind.
    pub replica_lag: Option<Timespan>,
    /// A transaction has been open for this long: it keeps dead rows from being removed.
    pub oldest_transaction: Option<Timespan>,
    /// The machine's load divided by its cores.
    pub load_per_core: Option<f64>,
    /// Longest wait: a run that could do nothing for so long fails, and can be resumed.
    pub at_most: Timespan,
}

impl Default for PauseWhen {
    fn default() -> Self {
        Self {
            replica_lag: None,
            oldest_transaction: None,
            load_per_core: None,
            at_most: Timespan::from_millis(12 * 3_600_000),
        }
    }
}

/// When a second person is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Approval {
    /// Which runs need it.
    pub required_for: ApprovalRule,
    /// The permission of the person who approves.
    pub by: String,
}

/// Which runs need approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalRule {
    /// None, not even those above a ceiling: they stop.
    Never,
    /// Those that a person starts, and those above a ceiling.
    Manual,
    /// Those above a ceiling.
    OverCeiling,
    /// All.
    Always,
}
