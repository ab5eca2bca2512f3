//! Definition + parameters → stream of rows → writer → store.

pub mod decode;
pub mod definition;
pub mod parameters;
pub mod sql;
