//! Requests that wait for what becomes of a write.
pub mod outcome;
pub mod recent_keys;
pub mod reconcile;
mod registry;
pub mod waiters;
