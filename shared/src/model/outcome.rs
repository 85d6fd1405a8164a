//! Outcomes of writes: the effects of one transaction, the status of each item, and the reasons for dead
//! letters. Pure.
use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::id::{ItemKey, MessageId};
use crate::model::idempotency::{Fingerprint, item_key};

/// Counter as stored. `version` counts the increments that were applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    pub name: Arc<str>,
    pub value: i64,
    pub version: i64,
    /// Time of the last change by the store's clock, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// Effects of one committed `apply`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Messages that were applied in this transaction; the others had been before.
    pub fresh: Vec<MessageId>,
    /// Changed counters with their new values.
    pub counters: Vec<Counter>,
    /// Value and version right after each awaited increment that was applied.
    pub standings: Vec<CounterResult>,
    pub set_aside: Vec<SetAside>,
    /// Outcome of each keyed item of the fresh messages that was not dead-lettered.
    pub keyed: Vec<KeyedOutcome>,
    /// Documents that were deleted.
    pub deleted: Vec<ItemKey>,
    /// Metric types that got points, each once.
    pub types: Vec<Arc<str>>,
    /// Time of the commit by the store's clock, in milliseconds since 1970.
    pub committed_at_ms: i64,
}

impl Applied {
    /// Adds the effects of a later part of the same transaction.
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

/// Counter right after one increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterResult {
    #[serde(with = "item_key")]
    pub item: ItemKey,
    pub value: i64,
    pub version: i64,
}

/// Outcome of a keyed item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyedOutcome {
    #[serde(with = "item_key")]
    pub item: ItemKey,
    /// Fingerprint of the payload that this outcome is about.
    pub fingerprint: Fingerprint,
    pub verdict: KeyedVerdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyedVerdict {
    /// The first under its key: applied now.
    Applied,
    /// Processed before, with the same payload; the store knows its status.
    Repeated,
    /// Another payload was processed under this key. Never applied.
    Conflict,
}

/// Item that could not be applied, as it is written to `dead_letters`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    pub item: ItemKey,
    /// Fingerprint of a keyed item.
    pub fingerprint: Option<Fingerprint>,
    pub reason: Reason,
    pub detail: String,
    /// The item as JSON.
    pub json: String,
    pub accepted_at_ms: i64,
}

/// Reasons for dead letters, for an item or a whole message. The words are stored and answered: do not
/// rename them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    CounterOverflow,
    /// Does not satisfy the schema of its collection, or has a value that cannot be indexed.
    SchemaViolation,
    /// Its check took more than `collections.check_ms_max`, or those of its batch together.
    CheckOverrun,
    /// This build cannot use the definition of its collection, and no other build checked the item by that
    /// definition.
    DefinitionUnusable,
    Unreadable,
    /// Item that failed, or brought its consumer down, time and again while others were applied: by itself,
    /// or as a part of a message in which the failing item could not be found.
    NotApplied,
    /// The server refused it with a code of Postgres' short list, also when it was alone.
    RefusedByStore,
    /// Whole message in no version that this build knows.
    Undecodable,
    /// Whole message that only a newer build can read.
    UnknownVersion,
    /// Whole message with an item of a kind that only a newer build knows.
    UnknownKind,
    /// Whole message under whose id another body was applied.
    DigestMismatch,
    /// Whole message that is longer than any of Forebay's, so only its beginning was kept.
    TooLarge,
    /// The ledger has forgotten the writes from the time when its message was accepted: it cannot be known
    /// whether this item took effect before.
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

/// Status of an item that was processed. `fingerprint` is that of the payload which was processed under a
/// key: a caller that has another one has a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemStatus {
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
    /// Item so old that the ledger has forgotten the writes of that time. Never the status of a keyed item,
    /// whose id has no time.
    Forgotten,
}

impl ItemStatus {
    /// Fingerprint of the payload that a keyed item was processed with.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Applied { fingerprint, .. } | Self::Failed { fingerprint, .. } => *fingerprint,
            Self::Forgotten => None,
        }
    }
}
