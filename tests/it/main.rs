//! The one integration binary: folders and files are named after `src`.
#![expect(clippy::unwrap_used, reason = "a test says why it failed")]

mod api;
mod support;

mod backup;
mod faults;
mod idempotency;
mod layers;
mod migrations;
mod postgres;
mod queue;
mod sandbox;
mod special_values;
mod store;
mod templates;
mod worker;
mod writer;
