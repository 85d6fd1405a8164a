//! Outcomes of writes: what one transaction did, what became of each item, and why items are set
//! aside. Pure.
use std::collections::HashSet;
use std::sync::Arc;

use crate::model::id::{ItemKey, MessageId};
use crate::model::idempotency::Fingerprint;

/// A counter as stored. `version` counts the increments that were applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    pub name: Arc<str>,
    pub value: i64,
    pub version: i64,
    /// By the store's clock, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// What one committed `apply` did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Messages that were applied in this transaction; the others had been before.
    pub fresh: Vec<MessageId>,
    /// The changed counters with their new values.
    pub counters: Vec<Counter>,
    /// Value and version right after each awaited increment that was applied.
    pub standings: Vec<ItemStanding>,
    pub set_aside: Vec<SetAside>,
    /// Every keyed item of the fresh messages that was not set aside.
    pub keyed: Vec<KeyedOutcome>,
    /// The documents that were deleted.
    pub deleted: Vec<ItemKey>,
    /// The metric types that got points, each once.
    pub types: Vec<Arc<str>>,
    /// By the store's clock, in milliseconds since 1970.
    pub committed_at_ms: i64,
}

impl Applied {
    /// Adds what a later part of the same transaction did.
    pub(crate) fn absorb(&mut self, later: Self) {
        let Self { counters, standings, set_aside, deleted, types, .. } = later;
        let changed: HashSet<Arc<str>> = counters.iter().map(|counter| counter.name.clone()).collect();
        self.counters.retain(|counter| !changed.contains(&counter.name));
        self.counters.extend(counters);
        self.counters.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        self.standings.extend(standings);
        self.set_aside.extend(set_aside);
        self.deleted.extend(deleted);
        self.deleted.sort_unstable();
        self.deleted.dedup();
        self.types.extend(types);
        self.types.sort_unstable();
        self.types.dedup();
    }
}

/// A counter right after one increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemStanding {
    pub item: ItemKey,
    pub value: i64,
    pub version: i64,
}

/// What a keyed item came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyedOutcome {
    pub item: ItemKey,
    /// Of the payload that this outcome is about.
    pub fingerprint: Fingerprint,
    pub verdict: KeyedVerdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyedVerdict {
    /// The first under its key: applied now.
    Applied,
    /// Processed before, with the same payload; what it came to, the store knows.
    Repeated,
    /// Another payload was processed under this key. Never applied.
    Conflict,
}

/// An item that could not be applied, as it is written to `dead_letters`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    pub item: ItemKey,
    /// Of a keyed item.
    pub fingerprint: Option<Fingerprint>,
    pub reason: Reason,
    pub detail: String,
    /// The item as JSON.
    pub json: String,
    pub accepted_at_ms: i64,
}

/// Why an item, or a whole message, was set aside. The words are stored and answered: do not rename them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    CounterOverflow,
    /// Does not hold the schema of its collection, or a value that cannot be indexed.
    SchemaViolation,
    /// Its check took more than `collections.check_ms_max`, or those of its batch together.
    CheckOverrun,
    /// This build cannot use the definition of its collection, and nobody else checked it by that.
    DefinitionUnusable,
    Unreadable,
    /// It failed, or brought its consumer down, time and again while others were applied: by itself,
    /// or as a part of a message of which nobody could know which item does.
    NotApplied,
    /// The server refused it with a code of Postgres' short list, also when it was alone.
    RefusedByStore,
    /// Of a whole message: not one of any version that this build knows.
    Undecodable,
    /// Of a whole message, which only a newer build can read.
    UnknownVersion,
    /// Of a whole message: one of its items asks for what only a newer build knows.
    UnknownKind,
    /// Of a whole message: another body was applied under its id.
    DigestMismatch,
    /// Of a whole message: longer than any of Forebay's, so only its beginning was kept.
    TooLarge,
    /// The ledger has forgotten what was applied when its message was accepted: whether this item
    /// took effect before, nobody can know.
    TooOld,
}

impl Reason {
    pub const ALL: [Self; 13] = [
        Self::CounterOverflow,
        Self::SchemaViolation,
        Self::CheckOverrun,
        Self::DefinitionUnusable,
        Self::Unreadable,
        Self::NotApplied,
        Self::RefusedByStore,
        Self::Undecodable,
        Self::UnknownVersion,
        Self::UnknownKind,
        Self::DigestMismatch,
        Self::TooLarge,
        Self::TooOld,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::CounterOverflow => "counter_overflow",
            Self::SchemaViolation => "schema_violation",
            Self::CheckOverrun => "check_overrun",
            Self::DefinitionUnusable => "definition_unusable",
            Self::Unreadable => "unreadable",
            Self::NotApplied => "not_applied",
            Self::RefusedByStore => "refused_by_store",
            Self::Undecodable => "undecodable",
            Self::UnknownVersion => "unknown_version",
            Self::UnknownKind => "unknown_kind",
            Self::DigestMismatch => "digest_mismatch",
            Self::TooLarge => "too_large",
            Self::TooOld => "too_old",
        }
    }
}

/// What became of an item that was processed. `fingerprint` is that of the payload which was
/// processed under a key: a caller that has another one has a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Applied {
        at_ms: i64,
        fingerprint: Option<Fingerprint>,
    },
    Failed {
        at_ms: i64,
        reason: String,
        detail: String,
        fingerprint: Option<Fingerprint>,
    },
    /// So old that the ledger has forgotten what was applied then. Not of a keyed item, whose id
    /// has no time.
    Forgotten,
}
