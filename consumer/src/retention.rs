//! Retention: the limit before which the store may forget, and the deletion.
pub mod forget_before;
pub mod housekeeping;
