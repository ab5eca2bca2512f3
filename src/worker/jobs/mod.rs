//! One thin file per job.

pub mod back_up;
pub mod deliver;
pub mod fire_occurrence;
pub mod maintain;
pub mod run_policy;
pub mod run_report;
