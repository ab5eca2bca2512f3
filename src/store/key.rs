//! Every path that Registrar writes, in one place.

use chrono::{DateTime, Datelike, Utc};
use object_store::path::Path;

/// An object in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectKey<'a> {
    /// The file of an attempt.
    Result {
        /// Which attempt.
        attempt: AttemptKey<'a>,
        /// Extension of the file, without the first dot.
        extension: &'a str,
    },
    /// What the file holds and how it was made.
    Manifest(AttemptKey<'a>),
    /// What `readyz` and `doctor` write to see that writing works.
    Probe(&'a str),
}

/// The folder of an attempt: two attempts can never write the same object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptKey<'a> {
    /// When the execution was submitted: sets year and month.
    pub created_at: DateTime<Utc>,
    /// The execution.
    pub execution: i64,
    /// The attempt.
    pub attempt: i32,
    /// The report's slug, which names the file.
    pub slug: &'a str,
}

/// The folder of every result.
pub const RESULTS: &str = "results";

/// The execution and attempt that an object below [`RESULTS`] belongs to; `None` for a name that
/// is not ours.
pub fn attempt_of(path: &Path) -> Option<(i64, i32)> {
    let parts: Vec<_> = path.parts().collect();
    let [results, year, month, execution, attempt, _file] = parts.as_slice() else { return None };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_ours = results.as_ref() == RESULTS
        && [year, month, execution, attempt].iter().all(|part| is_number(part.as_ref()));
    if !is_ours {
        return None;
    }
    Some((execution.as_ref().parse().ok()?, attempt.as_ref().parse().ok()?))
}

/// The folder of one attempt of an execution.
pub fn attempt_folder(created_at: DateTime<Utc>, execution: i64, attempt: i32) -> String {
    format!("{}/{attempt}", execution_folder(created_at, execution))
}

impl AttemptKey<'_> {
    fn folder(&self) -> String {
        attempt_folder(self.created_at, self.execution, self.attempt)
    }
}

/// The folder of all attempts of an execution.
pub fn execution_folder(created_at: DateTime<Utc>, execution: i64) -> String {
    format!("results/{:04}/{:02}/{execution}", created_at.year(), created_at.month())
}

impl ObjectKey<'_> {
    /// The folder of probes.
    pub const PROBES: &'static str = "probes";

    /// Where the object is.
    pub fn path(&self) -> Path {
        Path::from(match self {
            Self::Result { attempt, extension } => {
                format!("{}/{}.{extension}", attempt.folder(), attempt.slug)
            }
            Self::Manifest(attempt) => {
                format!("{}/{}.manifest.json", attempt.folder(), attempt.slug)
            }
            Self::Probe(name) => format!("{}/{name}", Self::PROBES),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_the_documentation_says() {
        let created_at = DateTime::from_timestamp(1_772_323_200, 0).expect("a time");
        let attempt = AttemptKey { created_at, execution: 71, attempt: 2, slug: "gpa-ranking" };
        assert_eq!(
            ObjectKey::Result { attempt, extension: "csv" }.path().to_string(),
            "results/2026/03/71/2/gpa-ranking.csv"
        );
        let path = ObjectKey::Manifest(attempt).path();
        assert_eq!(attempt_of(&path), Some((71, 2)));
        for foreign in ["results/2026/03/71/2", "results/2026/03/x/2/a.csv", "backups/1/1/1/1/a"] {
            assert_eq!(attempt_of(&Path::from(foreign)), None, "{foreign}");
        }
        assert_eq!(
            ObjectKey::Manifest(attempt).path().to_string(),
            "results/2026/03/71/2/gpa-ranking.manifest.json"
        );
    }
}
