//! Results that a request can wait for: the outcome of an item, or the change of a counter.
use shared::model::idempotency::Fingerprint;
use shared::model::outcome::{CounterResult, ItemStatus};

/// Outcome of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied {
        /// The counter after an increment, unless the value was lost on the way.
        standing: Option<CounterResult>,
        /// False for a keyed item with an outcome from the store: another request may have
        /// brought it.
        is_own: bool,
    },
    /// The item was dead-lettered.
    Failed { reason: Box<str>, detail: Box<str> },
    /// Another payload was processed under the item's key.
    Conflict,
}

impl Outcome {
    /// Outcome from the status that the store knows; `None` when the store has forgotten it. `payload` is the
    /// fingerprint of the caller's payload.
    pub fn of(
        status: &ItemStatus,
        payload: Option<Fingerprint>,
        standing: Option<CounterResult>,
    ) -> Option<Self> {
        let has_other = |processed: &Option<Fingerprint>| {
            payload.is_some_and(|own| processed.is_some_and(|processed| processed != own))
        };
        Some(match status {
            ItemStatus::Forgotten => return None,
            ItemStatus::Applied { fingerprint, .. } | ItemStatus::Failed { fingerprint, .. }
                if has_other(fingerprint) =>
            {
                Self::Conflict
            }
            ItemStatus::Applied { fingerprint, .. } => {
                Self::Applied { standing, is_own: fingerprint.is_none() }
            }
            ItemStatus::Failed { reason, detail, .. } => {
                Self::Failed { reason: reason.as_str().into(), detail: detail.as_str().into() }
            }
        })
    }
}

/// A counter may have changed: look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed;

/// Result that a request waits for. The name is a metric label.
pub trait WaitResult {
    fn name(&self) -> &'static str;
}

impl WaitResult for Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Applied { .. } => "applied",
            Self::Failed { .. } => "failed",
            Self::Conflict => "conflict",
        }
    }
}

impl WaitResult for Changed {
    fn name(&self) -> &'static str {
        "changed"
    }
}
