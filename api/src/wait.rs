//! Requests that wait for the outcome of a write or the change of a counter.
pub mod outcome;
pub mod recent_keys;
pub mod reconcile;
mod registry;
pub mod waiters;
