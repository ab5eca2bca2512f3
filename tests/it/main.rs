//! The one integration binary: folders and files are named after `src`.

mod postgres;
mod writer;
