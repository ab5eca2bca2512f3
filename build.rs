//! Without this, cargo does not see a new file in `migrations/` until something else changes.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=sample-data");
}
