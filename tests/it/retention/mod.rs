//! The lifecycle engine, on the shipped schema and on ones it has never seen.

mod archive;
mod catalog;
mod certificates;
mod check;
mod due;
mod hold;
mod properties;
mod runs;
mod world;
