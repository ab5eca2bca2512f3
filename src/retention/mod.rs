//! The data lifecycle over any schema, driven by policies and the catalog.
//!
//! Nothing here knows which tables exist: a policy names them, [`catalog`] says how they hang
//! together, [`sql`] is the one gate through which statements made of their names reach a server.

pub mod account;
pub mod anonymize;
pub mod catalog;
pub mod certificate;
pub mod condition;
pub mod hold;
pub mod keyring;
pub mod ledger;
pub mod sql;
pub mod treatment;
