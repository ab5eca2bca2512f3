//! `report_executions`: the truth about every run of a report.
//!
//! ```text
//!            ┌────────── give back, retry, rescue ───────────┐
//!            ▼                                               │
//! submit → pending ── claim (attempt + 1, lease) ──► processing ──► completed ──► expired
//!            │                                        │     │
//!            │ cancel                          cancel │     └──► failed
//!            ▼                                        ▼
//!        cancelled ◄──── backend is gone ──────── cancelling
//! ```
//!
//! Each arrow is one statement in one of the rooms below, guarded by the state it starts from and,
//! where a worker acts, by the attempt it claimed. A worker that was paused and comes back finds
//! that its attempt is not the current one, and can change nothing.

mod backends;
mod claim;
mod files;
mod naming;
mod orphans;
mod reading;
mod sharing;
mod status;
mod transitions;

pub use self::backends::{
    Backend, BackendSignal, backend_of, connection_name, note_backend, signal_backend,
};
pub use self::claim::{Caps, Claimed, claim_next, look_if_nobody_claims, park_one};
pub use self::files::{FileOwner, find_file_owners, list_results};
pub use self::naming::{Naming, expire_now, is_naming_open, list_naming};
pub use self::orphans::{
    Expiring, Orphan, any_is_parked, list_expiring, lock_orphans, lock_unticketed,
};
pub use self::reading::{
    Execution, Filter, count_active, find, find_format, list, outlook, queue_depth,
    queue_up_submits,
};
pub use self::sharing::{
    LeftBehind, Shareable, complete_followers, fail_followers, find_shareable, insert_shared,
    is_shared, list_left_behind, lock_sharing, promote_follower,
};
pub use self::status::{Status, UnknownStatus};
pub use self::transitions::{
    Beat, CancelRequest, NewExecution, Published, expire, fail, finish_cancel, give_back,
    heartbeat, insert, look, note_ticket, publish, request_cancel, retry_by_hand, retry_later,
};
