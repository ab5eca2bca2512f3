//! What openpyxl and LibreOffice see in our workbooks is what they see in the library's own.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

/// Names a Python that has openpyxl and moto; `script/test` sets it once `script/bootstrap readers` has put
/// that and LibreOffice in place.
const PYTHON: &str = "REGISTRAR_READERS_PYTHON";

#[test]
fn other_readers_see_what_they_see_in_the_librarys_files() {
    let Some(python) = env::var_os(PYTHON) else {
        eprintln!("left out: {PYTHON} is not set, run script/test");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (ours, _) = written(&every_kind(), &rows_of_every_kind(), None);
    let pairs = [("kinds", (ours, by_the_library(&every_kind()))), ("layout", layout::both())];
    for (name, (ours, library)) in pairs {
        fs::write(folder.path().join(format!("{name}.ours.xlsx")), ours).unwrap();
        fs::write(folder.path().join(format!("{name}.library.xlsx")), library).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers/compare.py");
    let output = Command::new(python).arg(script).arg(folder.path()).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("4 comparisons"), "{out}{err}");
}
