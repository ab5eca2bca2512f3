//! Tests that need a live PostgreSQL.

mod writer;
