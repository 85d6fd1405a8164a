//! Messages that no consumer could apply: read from the dead queue, or kept whole by an older version.
pub mod dead_queue;
pub mod rescue;
