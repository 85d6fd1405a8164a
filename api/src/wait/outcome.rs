//! What a request can wait for: the outcome of an item, or the change of a counter.
use shared::model::idempotency::Fingerprint;
use shared::model::outcome::{CounterResult, ItemStatus};

/// What an item came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied {
        /// Of an increment, unless it was lost on the way.
        standing: Option<CounterResult>,
        /// False when it is a keyed item of which only the store was asked: then another request
        /// may have brought it.
        is_own: bool,
    },
    /// It was set aside.
    Failed { reason: Box<str>, detail: Box<str> },
    /// Another payload was processed under its key.
    Conflict,
}

impl Outcome {
    /// Of what the store knows. `payload` is the fingerprint of the caller's payload; `None` of what the store
    /// has forgotten.
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

/// What somebody waits for. The word is a metric label.
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
