//! Telling others: over HTTP, as Standard Webhooks (<https://www.standardwebhooks.com>) has it, and
//! by mail.
//!
//! Sends one message once. Nothing here knows the database, retries or what a message
//! tells: that is the worker's and the service's.

pub mod address;
pub mod mail;
pub mod post;
pub mod signature;

pub use post::{Failure, Message, Sender};
pub use signature::Secret;
