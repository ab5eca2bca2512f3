//! `migrations/checks`: what must hold of the data from a version on.
//!
//! A check is a query that selects, as text, what breaks it. The number in its name is the version
//! from which it can be asked.

use sqlx::PgConnection;

use super::SchemaError;

/// Violations shown of one check.
const SHOWN: usize = 3;

/// Each check: from which version, its name, its query.
const CHECKS: &[(i64, &str, &str)] = &[
    (
        6,
        "0006_leases_have_an_owner",
        include_str!("../../migrations/checks/0006_leases_have_an_owner.sql"),
    ),
    (
        15,
        "0015_verified_backups_ended_before",
        include_str!("../../migrations/checks/0015_verified_backups_ended_before.sql"),
    ),
];

/// What the checks of `version` and before it find, in words.
pub(super) async fn broken(
    connection: &mut PgConnection,
    version: i64,
) -> Result<Vec<String>, SchemaError> {
    let mut broken = Vec::new();
    for (since, name, query) in CHECKS {
        if *since > version {
            continue;
        }
        let found: Vec<String> = sqlx::query_scalar(*query)
            .fetch_all(&mut *connection)
            .await
            .map_err(SchemaError::statement("run a check of migrations/checks"))?;
        if !found.is_empty() {
            let shown = found.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
            broken.push(format!("check {name}: {} violations ({shown}…)", found.len()));
        }
    }
    Ok(broken)
}

#[cfg(test)]
mod tests {
    use super::CHECKS;

    #[test]
    fn every_file_is_a_check() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/checks");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let expected: Vec<_> = CHECKS.iter().map(|(_, name, _)| format!("{name}.sql")).collect();
        assert_eq!(files, expected);
        for (version, name, _) in CHECKS {
            assert!(name.starts_with(&format!("{version:04}_")), "{name}");
        }
    }
}
