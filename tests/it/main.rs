//! The one integration binary: folders and files are named after `src`.
#![expect(clippy::unwrap_used, reason = "a test says why it failed")]

mod api;
mod support;

mod backup;
mod console;
mod deliveries;
mod doctor;
mod erasures;
mod estimates;
mod fairness;
mod fault_matrix;
mod faults;
mod hostile;
mod idempotency;
mod layers;
mod migrations;
mod operations;
mod ownership;
mod pgbackrest;
mod postgres;
mod queue;
mod queues;
mod retention;
mod sandbox;
mod schedules;
mod sharing;
mod snapshots;
mod soak;
mod special_values;
mod split;
mod store;
mod sweep;
mod templates;
mod topology;
mod webhooks;
mod workbooks;
mod worker;
mod writer;
