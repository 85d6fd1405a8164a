//! Path of a message: delivered, merged with others, applied in one transaction, announced, acknowledged.
//! A message that fails alone is held aside.
pub mod announce;
mod apply;
pub(crate) mod attempts;
pub(crate) mod batch_log;
pub mod merge;
pub mod session;
pub mod suspects;
