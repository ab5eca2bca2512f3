//! Registrar: background reports and data lifecycle for PostgreSQL applications.
//!
//! ```text
//!           ┌── api ──┐                                             ┌── report ── writer ──┐
//! client ──►│ console │──► service ──► queue (PostgreSQL) ──► worker │                      │──► store
//!           │  cli ───┘        ▲                                     └── backup ────────────┘
//! clock ───► scheduler ────────┘            db: SQL for our own tables, beside service and worker
//! ```
//!
//! Data flows down and never back up. The modules below are in reading order.

pub mod calendar;
pub mod config;
pub mod telemetry;

pub mod api;
pub mod cli;
pub mod console;
pub mod queue;
pub mod scheduler;
pub mod schema;
pub mod service;
pub mod worker;

pub mod backup;
pub mod db;
pub mod notify;
pub mod policy;
pub mod postgres;
pub mod report;
pub mod retention;
pub mod store;
pub mod writer;
