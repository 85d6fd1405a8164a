//! What this process remembers of its database, to ask it less. All of it is bounded, may be
//! forgotten at any time, and is remembered only after a commit.
use std::sync::atomic::AtomicI32;

use super::collections::Compiled;
use super::partitions::Partitions;
use super::points::KnownTypes;
use super::rollups::KnownRollups;

#[derive(Debug, Default)]
pub struct Known {
    pub partitions: Partitions,
    pub compiled: Compiled,
    pub types: KnownTypes,
    pub rollups: KnownRollups,
    /// The hour before which all rollups of hours were deleted last; 0 when none were.
    pub hours_pruned_before: AtomicI32,
}
