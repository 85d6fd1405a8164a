//! What may be forgotten, and the work of deleting it.
pub mod housekeeping;
pub mod low_watermark;
