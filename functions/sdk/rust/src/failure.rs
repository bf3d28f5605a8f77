//! How a handler gives up on an event.

use std::fmt::{self, Display};

/// Why a handler did not succeed, and what should become of its event. Nothing that it sent leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Keep the event for another attempt: the cause may go away.
    Retry(String),
    /// Make the event a dead letter: another attempt would end the same.
    Reject(String),
}

impl Failure {
    /// Asks for another attempt. Made for `map_err(Failure::retry)`.
    pub fn retry(why: impl Display) -> Self {
        Self::Retry(why.to_string())
    }

    /// Gives up on the event. Made for `map_err(Failure::reject)`.
    pub fn reject(why: impl Display) -> Self {
        Self::Reject(why.to_string())
    }

    /// The same, said of `what`.
    pub(crate) fn about(self, what: impl Display) -> Self {
        match self {
            Self::Retry(why) => Self::Retry(format!("{what}: {why}")),
            Self::Reject(why) => Self::Reject(format!("{what}: {why}")),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry(why) => write!(f, "to be retried: {why}"),
            Self::Reject(why) => write!(f, "rejected: {why}"),
        }
    }
}

impl std::error::Error for Failure {}
