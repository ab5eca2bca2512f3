//! The lifecycle engine, on the shipped schema and on ones it has never seen.

mod archive;
mod catalog;
mod certificates;
mod check;
mod due;
mod export;
mod hold;
mod killed;
mod properties;
mod refusals;
mod rows;
mod runs;
mod throttle;
mod traps;
mod walk;
mod world;
