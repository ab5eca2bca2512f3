//! Folders of templates.

use std::path::Path;

use super::super::{TemplateError, load_templates};

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

#[test]
fn templates_are_loaded_in_the_order_of_their_slugs() {
    let dir = tempfile::tempdir().unwrap();
    // Sorted as texts, `a-b.sql` stands before `a.sql`.
    for slug in ["b", "a-b", "a"] {
        write(dir.path(), &format!("{slug}.toml"), "title = 'T'");
        write(dir.path(), &format!("{slug}.sql"), "select 1");
    }
    write(dir.path(), "README.md", "Templates.");
    write(dir.path(), ".a.toml", "not saved yet");
    let definitions = load_templates(dir.path()).unwrap();
    let slugs: Vec<_> = definitions.iter().map(|d| d.slug().as_str()).collect();
    assert_eq!(slugs, ["a", "a-b", "b"]);
}

#[test]
fn every_bad_template_is_reported_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["good", "Bad_Name", "broken"] {
        write(dir.path(), &format!("{name}.sql"), "select 1");
    }
    for name in ["good", "Bad_Name", "lonely", "latin"] {
        write(dir.path(), &format!("{name}.toml"), "title = 'T'");
    }
    write(dir.path(), "broken.toml", "title = ''");
    write(dir.path(), "orphan.sql", "select 1");
    std::fs::write(dir.path().join("latin.sql"), b"select '\xe9'").unwrap();
    write(dir.path(), "large.toml", "title = 'T'");
    write(dir.path(), "large.sql", &" ".repeat(1024 * 1024 + 1));

    let errors = load_templates(dir.path()).unwrap_err();
    let shown: Vec<_> = errors
        .iter()
        .map(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
        .collect();
    assert_eq!(
        shown,
        [
            "Bad_Name.toml: the name of a template",
            "broken.toml: title must be 1 to 255 characters",
            "large.sql: a template's file must be at most 1048576 bytes",
            "cannot read latin.sql",
            "lonely.toml: must have lonely.sql beside it",
            "orphan.sql: must have orphan.toml beside it",
        ]
    );
    let missing = load_templates(&dir.path().join("none")).unwrap_err();
    assert!(matches!(missing.as_slice(), [TemplateError::Read { .. }]));
}
