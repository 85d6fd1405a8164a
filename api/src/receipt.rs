//! The receipt of a write, as clients see it.
use serde::Serialize;
use shared::model::dead_letter::DeadLetter;
use shared::model::id::{IdKeys, ItemId};
use shared::model::idempotency::Fingerprint;
use shared::model::outcome::ItemStatus;
use utoipa::ToSchema;

use crate::rfc3339::rfc3339;
use crate::target::Target;
use crate::wait::outcome::Outcome;

/// What became of a write.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Receipt {
    id: String,
    /// `unknown` when only a newer version knows it.
    #[schema(example = "increment")]
    kind: &'static str,
    /// `accepted`: durable, not yet applied; without `message` also of a write with an Idempotency-Key that
    /// was forgotten. `applied`: took effect; of a deletion also that its collection
    /// does not hold the document. `failed`: set aside.
    /// `conflict`: another payload was processed under its Idempotency-Key.
    #[schema(example = "applied")]
    status: &'static str,
    /// RFC 3339, UTC: the time in the id, which is that of the 202, or later where the clock of the replica had
    /// been set back. A keyed id has no time: there it is known of what was set aside only.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_at: Option<String>,
    /// Of what was set aside, where its item can be read, and of a refusal, which the request itself names.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    /// RFC 3339, UTC, by the store's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_at: Option<String>,
    /// Why it was set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "counter_overflow")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Receipt {
    pub fn accepted(id: ItemId) -> Self {
        Self {
            id: id.to_string(),
            kind: id.key().kind_name(),
            status: "accepted",
            accepted_at: id.key().message().map(|message| rfc3339(message.time_ms())),
            target: None,
            applied_at: None,
            failed_at: None,
            reason: None,
            detail: None,
        }
    }

    /// Receipt of a write with a key that was processed with another payload.
    pub fn conflict(id: ItemId) -> Self {
        Self { status: "conflict", ..Self::accepted(id) }
    }

    /// Receipt from the status that the store knows; `None` when the store has forgotten it. `payload` is the
    /// fingerprint that the client holds.
    pub fn of_status(id: ItemId, payload: Option<Fingerprint>, status: Option<ItemStatus>) -> Option<Self> {
        let has_other = |processed: Option<Fingerprint>| {
            payload.is_some_and(|own| processed.is_some_and(|processed| processed != own))
        };
        Some(match status {
            None => Self::accepted(id),
            Some(ItemStatus::Forgotten) => return None,
            Some(ItemStatus::Applied { fingerprint, .. } | ItemStatus::Failed { fingerprint, .. })
                if has_other(fingerprint) =>
            {
                Self::conflict(id)
            }
            Some(ItemStatus::Applied { at_ms, .. }) => {
                Self { status: "applied", applied_at: Some(rfc3339(at_ms)), ..Self::accepted(id) }
            }
            Some(ItemStatus::Failed { at_ms, reason, detail, .. }) => Self {
                status: "failed",
                failed_at: Some(rfc3339(at_ms)),
                reason: Some(reason),
                detail: Some(detail),
                ..Self::accepted(id)
            },
        })
    }

    /// Receipt from an outcome that an event reported, without the time of the outcome, which only the
    /// store knows.
    pub fn of_outcome(id: ItemId, outcome: Outcome) -> Self {
        match outcome {
            Outcome::Applied { .. } => Self { status: "applied", ..Self::accepted(id) },
            Outcome::Failed { reason, detail } => Self {
                status: "failed",
                reason: Some(reason.into()),
                detail: Some(detail.into()),
                ..Self::accepted(id)
            },
            Outcome::Conflict => Self::conflict(id),
        }
    }

    /// Adds the target, which the request itself names.
    pub fn about(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Adds the target from the dead letter, and the accept time when the id has none.
    pub fn with_letter(self, letter: Option<&DeadLetter>, ids: &IdKeys) -> Self {
        let Some(letter) = letter else { return self };
        let accepted_at = self.accepted_at.or_else(|| Some(rfc3339(letter.accepted_at_ms)));
        Self { accepted_at, target: Target::of_letter(letter, ids), ..self }
    }

    pub fn is_failed(&self) -> bool {
        self.status == "failed"
    }

    pub fn is_applied(&self) -> bool {
        self.status == "applied"
    }

    pub fn is_settled(&self) -> bool {
        self.status != "accepted"
    }
}
