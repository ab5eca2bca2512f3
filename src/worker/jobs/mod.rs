//! One thin file per job.

pub mod maintain;
pub mod run_report;
