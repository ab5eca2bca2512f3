//! The one integration binary: folders and files are named after `src`.

mod support;

mod layers;
mod postgres;
mod worker;
mod writer;
