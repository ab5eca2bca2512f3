//! The data lifecycle over any schema, driven by policies and the catalog.
//!
//! Nothing here knows which tables exist: a policy names them, [`catalog`] says how they hang
//! together, [`sql`] is the one gate through which statements made of their names reach a server.
//!
//! ```text
//! policy ─► rule ─► plan ─► preview ─► digest
//!                    │
//!                    └────► engine ─► chunk loop ─► move (lock, look again, act, account)
//!                                                    │
//!                            run, run tables ◄───────┘   each chunk one transaction
//! ```

pub mod account;
pub mod anonymize;
pub mod archive;
mod calm;
pub mod catalog;
pub mod certificate;
pub mod check;
pub mod chunk;
pub mod condition;
pub mod engine;
pub mod error;
pub mod export;
pub mod guard;
pub mod hold;
pub mod keyring;
pub mod ledger;
pub mod moves;
pub mod people_ledger;
pub mod plan;
pub mod reference;
pub mod restore;
pub mod rule;
pub mod run;
pub mod sql;
pub mod treat;
pub mod treatment;
pub mod walk;
