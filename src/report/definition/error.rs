//! What is wrong with a definition.

use std::fmt;

use crate::report::sql::Position;

/// Everything that is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct DefinitionError {
    /// At least one fault.
    faults: Vec<DefinitionFault>,
}

impl DefinitionError {
    /// `faults` must not be empty.
    pub(super) fn new(faults: Vec<DefinitionFault>) -> Self {
        debug_assert!(!faults.is_empty(), "an error without a fault");
        Self { faults }
    }

    /// The faults, those of the spec before those of the SQL.
    pub fn faults(&self) -> &[DefinitionFault] {
        &self.faults
    }
}

impl fmt::Display for DefinitionError {
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

/// One thing that is wrong with a definition.
///
/// Shown as `grades.toml: parameter `since` default must be a date like 2024-01-31`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinitionFault {
    /// The file, or `spec` or `query` for a definition that is kept in the database.
    pub file: String,
    /// Where in the file, if that is known.
    pub position: Option<Position>,
    /// The key: ``parameter `since` default``. Empty if it is about the file as a whole.
    pub key: String,
    /// What was expected there.
    pub expected: String,
}

impl fmt::Display for DefinitionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "{} ", self.key)?;
        }
        f.write_str(&self.expected)
    }
}
