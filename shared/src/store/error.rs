//! The error of all operations of the store.
use std::sync::Arc;

use crate::model::id::MessageId;

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was changed, or it is unknown whether it was; the same call may succeed later.
    #[error("the store is not available: {0}")]
    Unavailable(Arc<str>),
    /// The store is there and had no time for this call: all its connections were in use, or it ended a
    /// statement that took too long. As with `Unavailable`, the same call may succeed later; other calls need
    /// not suffer.
    #[error("the store is busy: {0}")]
    Busy(Arc<str>),
    /// The store answers other calls, and failed here: a time limit, a panic, or a refusal of unknown
    /// meaning. When the request itself is the reason, the same call fails again.
    #[error("the store failed: {0}")]
    Failed(Arc<str>),
    /// A message with this id and another body was applied before: never acknowledge it.
    #[error("message {0} was applied with another body")]
    DigestMismatch(MessageId),
}
