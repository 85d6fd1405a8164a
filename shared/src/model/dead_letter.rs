//! Dead letters, that is items and whole messages, and the requests and answers of a redrive. Pure.
use bytes::Bytes;
use uuid::Uuid;

use super::outcome::Reason;
use crate::model::id::{BodyId, MessageId};
use crate::model::message::Undecodable;

/// Bytes of the items after which a page ends: it has one at least.
pub const PAGE_BYTES_MAX: i64 = 8 << 20;

/// Detail of an item that was not tried.
pub const NEEDS_FORCE: &str = "nobody can know whether it was applied before: needs force";

/// Dead letter as stored: an item, or a whole message ([`MESSAGE_KIND`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Key of the item, without its check; for a message, the hash of its body.
    pub id: Uuid,
    pub kind: String,
    pub reason: String,
    pub detail: String,
    /// The item as JSON; for a message, its body: as text, or as `base64:` and the encoding of one that is
    /// no text.
    pub item: String,
    /// Time at which the item was accepted; for a message, at which it was dead-lettered first.
    pub accepted_at_ms: i64,
    /// Time of the last failure, by the store's clock.
    pub set_aside_at_ms: i64,
    pub discarded_at_ms: Option<i64>,
}

/// Filter of dead letters; a member that is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    pub kind: Option<String>,
    pub reason: Option<String>,
    pub id: Option<Uuid>,
}

impl DeadLetterFilter {
    /// Bounds that an index takes: ids are above the first and not above the second.
    pub(crate) fn bounds(&self, after: Option<Uuid>) -> (Uuid, Uuid) {
        let after = after.unwrap_or(Uuid::nil());
        match self.id {
            None => (after, Uuid::max()),
            Some(id) => (after.max(Uuid::from_u128(id.as_u128().saturating_sub(1))), id),
        }
    }

    /// True when the filter has a text with NUL, which Postgres takes nowhere and no letter has.
    pub(crate) fn has_nul(&self) -> bool {
        [&self.kind, &self.reason].into_iter().flatten().any(|text| text.contains('\0'))
    }
}

/// A page of dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterPage {
    pub filter: DeadLetterFilter,
    /// Selects the discarded ones, or the others.
    pub discarded: bool,
    pub after: Option<Uuid>,
    pub limit: u32,
}

/// Request to apply dead letters once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redrive {
    pub filter: DeadLetterFilter,
    /// Only letters with greater ids, so that one that failed again does not come again.
    pub after: Option<Uuid>,
    pub limit: u32,
    /// Reports what would come of it, and changes nothing.
    pub dry_run: bool,
    /// Applies also letters that are [`Reason::TooOld`], and messages that would be: they may then take
    /// effect a second time.
    pub force: bool,
}

impl Redrive {
    pub(crate) fn page(&self) -> DeadLetterPage {
        let Self { filter, after, limit, .. } = self.clone();
        DeadLetterPage { filter, discarded: false, after, limit }
    }
}

impl DeadLetterPage {
    /// Start of the next page, if there may be one behind these letters.
    pub(crate) fn next(&self, letters: &[DeadLetter]) -> Option<Uuid> {
        let is_full = letters.len() >= self.limit as usize || bytes(letters) >= PAGE_BYTES_MAX;
        letters.last().filter(|_| is_full).map(|last| last.id)
    }
}

/// Bytes of the items.
pub(crate) fn bytes(letters: &[DeadLetter]) -> i64 {
    letters.iter().map(|letter| i64::try_from(letter.item.len()).unwrap_or(i64::MAX)).sum()
}

impl DeadLetter {
    pub(crate) fn is_message(&self) -> bool {
        self.kind == MESSAGE_KIND
    }
}

/// Result of one page of a redrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedrivenPage {
    /// Results by ascending id. Letters that another redrive holds at the moment are left out.
    pub items: Vec<Redriven>,
    /// Start of the next page, behind these; `None` when there were no more.
    pub next: Option<Uuid>,
}

/// Letter that was tried once more, and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redriven {
    pub id: Uuid,
    pub outcome: RedriveOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedriveOutcome {
    Applied,
    FailedAgain {
        reason: String,
        detail: String,
    },
    /// Item or message that was not tried, and is left as it is: see [`Redrive::force`].
    NeedsForce,
}

impl RedriveOutcome {
    /// Reason and detail of a letter that is a dead letter still.
    pub fn failure(&self) -> Option<(&str, &str)> {
        match self {
            Self::Applied => None,
            Self::FailedAgain { reason, detail } => Some((reason, detail)),
            Self::NeedsForce => Some((Reason::TooOld.name(), NEEDS_FORCE)),
        }
    }
}

/// Value of `kind` for a dead letter that is a whole message.
pub const MESSAGE_KIND: &str = "message";

/// Longest body that is kept whole, in bytes. No message of the API is longer: the check of the
/// configuration ensures that.
pub const BODY_BYTES_MAX: usize = 32 << 20;

/// Message that cannot be applied, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadMessage {
    pub(crate) body: Bytes,
    reason: Reason,
    pub(crate) detail: String,
}

impl DeadMessage {
    pub fn undecodable(body: Bytes, error: &Undecodable) -> Self {
        Self { body, reason: reason_of(error), detail: error.to_string() }
    }

    /// Message under whose id another body was applied.
    pub fn reused(body: Bytes, id: MessageId) -> Self {
        Self { body, reason: Reason::DigestMismatch, detail: mismatch(id) }
    }

    /// Message that can be read, and failed alone too often, also without its items.
    pub fn not_applied(body: Bytes, why: &str) -> Self {
        Self { body, reason: Reason::NotApplied, detail: why.to_owned() }
    }

    pub fn id(&self) -> BodyId {
        BodyId::of(&self.body)
    }

    /// Reason for which it is among the dead letters.
    pub fn reason(&self) -> Reason {
        if self.body.len() > BODY_BYTES_MAX { Reason::TooLarge } else { self.reason }
    }

    /// Length of its body.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

pub(crate) fn reason_of(error: &Undecodable) -> Reason {
    match error {
        Undecodable::Version(_) => Reason::UnknownVersion,
        Undecodable::Kind(_) => Reason::UnknownKind,
        Undecodable::Malformed(_) | Undecodable::Id(_) | Undecodable::Items(_) => Reason::Undecodable,
    }
}

/// Detail of a message whose id belongs to another body.
pub(crate) fn mismatch(id: MessageId) -> String {
    format!("message {id} was applied with another body")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(item: String) -> DeadLetter {
        DeadLetter {
            id: Uuid::max(),
            kind: "point".into(),
            reason: "unreadable".into(),
            detail: String::new(),
            item,
            accepted_at_ms: 7,
            set_aside_at_ms: 8,
            discarded_at_ms: None,
        }
    }

    #[test]
    fn a_page_has_a_next_one_when_its_rows_or_its_bytes_ended_it() {
        let page = |limit| DeadLetterPage {
            filter: DeadLetterFilter::default(),
            discarded: false,
            after: None,
            limit,
        };
        let small = [letter("{}".into())];
        assert_eq!((page(1).next(&small), page(2).next(&small)), (Some(Uuid::max()), None));
        let large = [letter("x".repeat(usize::try_from(PAGE_BYTES_MAX).expect("fits")))];
        assert_eq!(page(2).next(&large), Some(Uuid::max()));
        assert_eq!(page(0).next(&[]), None);
    }

    #[test]
    fn bounds_hold_exactly_what_is_asked_for() {
        let [low, id, high] = [4, 5, 6].map(Uuid::from_u128);
        let one = DeadLetterFilter { id: Some(id), ..DeadLetterFilter::default() };
        assert_eq!(one.bounds(None), (low, id));
        assert_eq!(one.bounds(Some(high)), (high, id));
        assert_eq!(DeadLetterFilter::default().bounds(Some(id)), (id, Uuid::max()));
        let nil = DeadLetterFilter { id: Some(Uuid::nil()), ..DeadLetterFilter::default() };
        assert_eq!(nil.bounds(None), (Uuid::nil(), Uuid::nil()));
    }
}
