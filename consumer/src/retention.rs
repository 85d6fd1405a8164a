//! What may be forgotten, and the work of deleting it.
pub mod forget_before;
pub mod housekeeping;
