//! Telling others over HTTP, as Standard Webhooks has it: <https://www.standardwebhooks.com>.
//!
//! Signs and sends one message once. Nothing here knows the database, retries or what a message
//! tells: that is the worker's and the service's.

pub mod address;
pub mod post;
pub mod signature;

pub use post::{Failure, Message, Sender};
pub use signature::Secret;
