//! The accept path: preferences, identity, the batch, the confirm, the answer.
pub mod accept;
pub mod accepted;
mod canonical;
pub mod draft;
pub mod idempotency;
pub mod preferences;
pub mod receipts;
