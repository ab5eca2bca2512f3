//! The lifecycle engine, on the shipped schema and on ones it has never seen.

mod catalog;
mod hold;
