//! The accept path: preferences, identity, the batch, the confirm, the answer.
pub mod accept;
pub mod batcher;
mod canonical;
pub mod checking;
pub mod draft;
pub mod idempotency;
pub mod preferences;
