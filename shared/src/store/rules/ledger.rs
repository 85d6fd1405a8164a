//! Selection of the new messages of a batch by the answer of the ledger. Pure, for both stores.
use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::model::id::{ItemKey, MessageId};
use crate::model::message::Message;
use crate::store::StoreError;

/// Treatment of new messages that are so old that their ledger rows may have been dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooOld {
    /// Sets their items aside: the rule for messages from the queue.
    SetAside,
    /// Does nothing, so that a person decides.
    Refuse,
    /// Applies them: a person has decided.
    Apply,
}

impl TooOld {
    /// Returns the messages to set aside; `None` when nothing is done.
    pub fn set_aside(self, too_old: HashSet<MessageId>) -> Option<HashSet<MessageId>> {
        match self {
            Self::SetAside => Some(too_old),
            Self::Refuse => too_old.is_empty().then_some(too_old),
            Self::Apply => Some(HashSet::new()),
        }
    }
}

/// Returns the messages of a batch, each id once. Callers promise different ids. A copy that comes all the
/// same is ignored; the same id with another body is refused.
pub fn distinct(batch: &[Message]) -> Result<Vec<&Message>, StoreError> {
    let mut digests = HashMap::with_capacity(batch.len());
    let mut distinct = Vec::with_capacity(batch.len());
    for message in batch {
        match digests.insert(message.id, message.digest) {
            None => distinct.push(message),
            Some(digest) if digest == message.digest => {}
            Some(_) => return Err(StoreError::DigestMismatch(message.id)),
        }
    }
    Ok(distinct)
}

/// Parts a batch, in its order, into messages that this transaction inserted into the ledger, and the
/// others.
pub fn part<'a>(batch: &[&'a Message], inserted: &HashSet<Uuid>) -> (Vec<&'a Message>, Vec<&'a Message>) {
    batch.iter().partition(|message| inserted.contains(&message.id.as_uuid()))
}

/// Low watermark of the queue, and the time for which keys are promised.
#[derive(Clone, Copy)]
pub struct ForgetBounds {
    pub before_ms: i64,
    pub remembered_ms: i64,
}

/// Result of pruning some keys; `P` is the position of a key.
pub struct PrunedKeys<P> {
    pub rows: u64,
    /// The last key that was looked at, deleted or not; `None` when there was none.
    pub last: Option<P>,
    /// There may be more behind it.
    pub more: bool,
}

/// Returns the time before which keys and tombstones may be forgotten, given the floor.
///
/// A message that was not applied, because no build could read it, may hold a repetition and may be redriven
/// at any time, unless it lies below the floor. It came within `remembered_ms`, the time for which a key is
/// promised to hold it back; and the floor may be behind the low watermark.
pub fn keys_before_ms(before_ms: i64, floor: MessageId, remembered_ms: i64) -> i64 {
    before_ms.min(floor.time_ms().saturating_sub(remembered_ms))
}

/// Returns true for an unknown item that is so old that it may have been applied. A keyed item names no
/// message.
pub fn is_forgotten(item: ItemKey, floor: Option<Uuid>) -> bool {
    item.message().is_some_and(|message| floor.is_some_and(|floor| message.as_uuid() <= floor))
}

/// Compares messages that had been applied before with their ledger rows.
pub fn compare(seen: &[&Message], stored: &HashMap<Uuid, Vec<u8>>) -> Result<(), StoreError> {
    for message in seen {
        match stored.get(&message.id.as_uuid()) {
            Some(digest) if digest[..] == message.digest[..] => {}
            Some(_) => return Err(StoreError::DigestMismatch(message.id)),
            // Pruned between two statements: on the next attempt it is a new message.
            None => {
                let text = format!("the ledger row of {} vanished while it was read", message.id);
                return Err(StoreError::Unavailable(text.into()));
            }
        }
    }
    Ok(())
}
