//! One thin file per job.

pub mod back_up;
pub mod maintain;
pub mod run_report;
