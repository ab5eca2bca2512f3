//! The states of an execution.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// State of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Waits for a worker.
    Pending,
    /// A worker has it.
    Processing,
    /// Somebody asked for its end; its query may still be running.
    Cancelling,
    /// The result is there.
    Completed,
    /// It ended without a result; the error says why.
    Failed,
    /// It was cancelled, and nothing of it runs any more.
    Cancelled,
    /// The result was deleted at its time.
    Expired,
}

impl Status {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Processing,
        Self::Cancelling,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// As stored and as in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether nothing more will happen to the run itself.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Processing | Self::Cancelling => false,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired => true,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownStatus)
    }
}

impl TryFrom<String> for Status {
    type Error = UnknownStatus;

    fn try_from(text: String) -> Result<Self, UnknownStatus> {
        text.parse()
    }
}

/// The text is not the name of a state.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be pending, processing, cancelling, completed, failed, cancelled or expired")]
pub struct UnknownStatus;
