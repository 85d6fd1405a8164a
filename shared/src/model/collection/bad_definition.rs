//! Reasons for which a definition cannot be used.

/// Longest explanation of an error in characters: it may quote a schema.
const DETAIL_LENGTH_MAX: usize = 200;

/// Reason for which a definition cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct BadDefinition {
    /// JSON pointer into the definition.
    pub pointer: String,
    pub detail: String,
}

pub(super) fn bad(pointer: impl Into<String>, detail: impl Into<String>) -> BadDefinition {
    BadDefinition { pointer: pointer.into(), detail: detail.into() }
}

pub(super) fn cut(text: &str) -> String {
    text.chars().take(DETAIL_LENGTH_MAX).collect()
}
