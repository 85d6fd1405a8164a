//! Dead letters: items, and whole messages, that were set aside; and what a redrive asks and answers.
//! Pure.
use bytes::Bytes;
use uuid::Uuid;

use super::outcome::Reason;
use crate::model::id::{BodyId, MessageId};
use crate::model::message::Undecodable;

/// Bytes of the items after which a page ends: it has one at least.
pub const PAGE_BYTES_MAX: i64 = 8 << 20;

/// What is told of an item that was not tried.
pub const NEEDS_FORCE: &str = "nobody can know whether it was applied before: needs force";

/// What was set aside, as stored: an item, or a whole message ([`MESSAGE_KIND`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The item's key, without its check. Of a message, the hash of its body.
    pub id: Uuid,
    pub kind: String,
    pub reason: String,
    pub detail: String,
    /// The item as JSON. Of a message, its body: text, or `base64:` and what is none.
    pub item: String,
    /// Of a message, when it was set aside first.
    pub accepted_at_ms: i64,
    /// When it failed last, by the store's clock.
    pub set_aside_at_ms: i64,
    pub discarded_at_ms: Option<i64>,
}

/// Which of them; what is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    pub kind: Option<String>,
    pub reason: Option<String>,
    pub id: Option<Uuid>,
}

impl DeadLetterFilter {
    /// Ids are above the first and not above the second: bounds that an index takes.
    pub(crate) fn bounds(&self, after: Option<Uuid>) -> (Uuid, Uuid) {
        let after = after.unwrap_or(Uuid::nil());
        match self.id {
            None => (after, Uuid::max()),
            Some(id) => (after.max(Uuid::from_u128(id.as_u128().saturating_sub(1))), id),
        }
    }

    /// Whether a text is asked for that Postgres takes nowhere, and which nothing has.
    pub(crate) fn has_nul(&self) -> bool {
        [&self.kind, &self.reason].into_iter().flatten().any(|text| text.contains('\0'))
    }
}

/// A page of dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterPage {
    pub filter: DeadLetterFilter,
    /// The discarded ones, or the others.
    pub discarded: bool,
    pub after: Option<Uuid>,
    pub limit: u32,
}

/// What to apply once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redrive {
    pub filter: DeadLetterFilter,
    /// Those with greater ids, so that what failed again is not met again.
    pub after: Option<Uuid>,
    pub limit: u32,
    /// Tells what would come of it, and changes nothing.
    pub dry_run: bool,
    /// Applies also what is [`Reason::TooOld`], and messages that would be: it may then take effect a
    /// second time.
    pub force: bool,
}

impl Redrive {
    pub(crate) fn page(&self) -> DeadLetterPage {
        let Self { filter, after, limit, .. } = self.clone();
        DeadLetterPage { filter, discarded: false, after, limit }
    }
}

impl DeadLetterPage {
    /// Where the next page begins, if there may be one behind these letters.
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

/// What came of a redrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedrivenPage {
    /// By ascending id. Those that another redrive holds at the moment are left out.
    pub items: Vec<Redriven>,
    /// Goes on behind these; `None` when there were no more.
    pub next: Option<Uuid>,
}

/// What was tried once more.
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
    /// Not tried, and left as it is: see [`Redrive::force`].
    NeedsForce,
}

impl RedriveOutcome {
    /// Reason and detail of what is a dead letter still.
    pub fn failure(&self) -> Option<(&str, &str)> {
        match self {
            Self::Applied => None,
            Self::FailedAgain { reason, detail } => Some((reason, detail)),
            Self::NeedsForce => Some((Reason::TooOld.name(), NEEDS_FORCE)),
        }
    }
}

/// `kind` of a dead letter that is a whole message.
pub const MESSAGE_KIND: &str = "message";

/// The longest body that is kept whole. No message of the API is longer: the configuration is
/// checked for that.
pub const BODY_BYTES_MAX: usize = 32 << 20;

/// A message that cannot be applied, with why.
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

    /// Another body was applied under its id.
    pub fn reused(body: Bytes, id: MessageId) -> Self {
        Self { body, reason: Reason::DigestMismatch, detail: mismatch(id) }
    }

    /// It can be read, and failed alone too often, also without its items.
    pub fn not_applied(body: Bytes, why: &str) -> Self {
        Self { body, reason: Reason::NotApplied, detail: why.to_owned() }
    }

    pub fn id(&self) -> BodyId {
        BodyId::of(&self.body)
    }

    /// Why it is among the dead letters.
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
