//! The one error type. Each variant is a user's mistake; each message names the argument, what was expected, what came.

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// An argument has a value outside its domain.
    #[error("{argument}: expected {expected}, got {got}")]
    Value {
        /// Name of the argument as the caller wrote it.
        argument: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What came.
        got: String,
    },
}

impl Error {
    pub(crate) fn value(argument: &'static str, expected: impl Into<String>, got: impl std::fmt::Display) -> Self {
        Self::Value { argument, expected: expected.into(), got: got.to_string() }
    }
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
