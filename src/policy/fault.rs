//! What is wrong with the files of a jobs folder.

use std::fmt;
use std::path::Path;

/// Everything that is wrong with a folder's files, sorted by file and line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    /// At least one fault.
    faults: Vec<PolicyFault>,
}

impl PolicyError {
    /// `faults` must not be empty.
    pub(super) fn new(mut faults: Vec<PolicyFault>) -> Self {
        debug_assert!(!faults.is_empty(), "an error without a fault");
        faults.sort_by(|a, b| (&a.file, a.line, &a.key).cmp(&(&b.file, b.line, &b.key)));
        Self { faults }
    }

    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        Self::new(vec![PolicyFault {
            file: path.display().to_string(),
            line: None,
            key: String::new(),
            expected: format!("cannot be read: {error}"),
        }])
    }

    /// The faults.
    pub fn faults(&self) -> &[PolicyFault] {
        &self.faults
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

/// One thing that is wrong with a file.
///
/// Shown as ``archive-logs.toml:12: `table[1].after` must be a calendar interval …``.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PolicyFault {
    /// The file's name, without its folder.
    pub file: String,
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// The key: `table[1].after`. Empty if it is about the file as a whole.
    pub key: String,
    /// What was expected there.
    pub expected: String,
}

impl fmt::Display for PolicyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "`{}` ", self.key)?;
        }
        f.write_str(&self.expected)
    }
}
