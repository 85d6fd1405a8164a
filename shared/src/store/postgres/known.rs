//! State of the database that this process remembers, to ask it less. All of it is bounded, may be forgotten
//! at any time, and is remembered only after a commit.
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, Mutex};

use super::collections::CompiledDefinitions;
use super::keys;
use super::partitions::Partitions;
use super::points::KnownTypes;
use super::rollups::KnownRollups;
use crate::config;
use crate::store::rules::checks::Checks;

#[derive(Debug)]
pub struct KnownState {
    pub partitions: Partitions,
    pub compiled: CompiledDefinitions,
    pub checks: Arc<Checks>,
    pub types: KnownTypes,
    pub rollups: KnownRollups,
    /// The hour before which all rollups of hours were deleted last; 0 when none were.
    pub hours_pruned_before: AtomicI32,
    /// Last key that was looked at for pruning: keys before it have dead letters.
    keys_pruned: Mutex<Option<keys::PgKeyPosition>>,
}

impl KnownState {
    pub fn new(config: &config::Collections) -> Self {
        Self {
            partitions: Partitions::default(),
            compiled: CompiledDefinitions::default(),
            checks: Checks::new(config),
            types: KnownTypes::default(),
            rollups: KnownRollups::default(),
            hours_pruned_before: AtomicI32::default(),
            keys_pruned: Mutex::default(),
        }
    }

    pub fn last_key(&self) -> Option<keys::PgKeyPosition> {
        *self.keys_pruned.lock().expect("no code panics while it holds this lock")
    }

    /// Moves the beginning of the next look; it stays when there was no key.
    pub fn looked_at_keys(&self, last: Option<keys::PgKeyPosition>) {
        let mut pruned = self.keys_pruned.lock().expect("no code panics while it holds this lock");
        *pruned = last.or(*pruned);
    }
}
