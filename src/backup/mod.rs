//! Backups: made, listed, proven by restore, restored, pruned.
//!
//! ```text
//!  pg_dump ──► zstd or gzip ──► age ──► SHA-256 ──► parts ──► store: dump, then its manifest
//!     │ one exported snapshot
//!  rows and checksum of each table ─────────────────────────────────────► manifest
//! ```
//! What is promised: no dump is ever whole on this machine's disk or in its memory; a backup
//! exists once its manifest does, which is written last and never changed; what proves it good is
//! a restore whose rows and checksums are those of the snapshot. The catalog is the store, so it
//! outlives the database. Physical backups are pgBackRest's: see [`pgbackrest`]. Nothing here knows a queue, HTTP, a schedule, or which tables exist.

pub mod catalog;
pub mod create;
pub mod database;
pub mod error;
mod fingerprint;
pub mod keep;
pub mod manifest;
pub mod pgbackrest;
pub mod prune;
pub mod restore;
pub mod seal;
pub mod verify;

mod sql;
mod tool;

pub use catalog::{Catalog, Entry};
pub use create::{CreateOptions, create};
pub use database::Database;
pub use error::BackupError;
pub use manifest::{BackupId, Manifest, Pin, Verification};
pub use restore::{RestoreOptions, restore};
pub use verify::{Scratch, verify};
