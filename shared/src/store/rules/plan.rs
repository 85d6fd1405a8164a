//! Plan of a transaction, once it is known which messages are new and which keys are free. Pure, for both
//! stores.
//!
//! Items stand in the order of messages and items. Of several items with one key the first that is processed
//! counts, set aside or not; a repetition does nothing, and another payload never does.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use crate::model::id::{ItemKey, MessageId};
use crate::model::idempotency::{Fingerprint, Keyed};
use crate::model::message::{Entry, Message};
use crate::model::outcome::{KeyedOutcome, KeyedVerdict, Reason, SetAside};
use crate::model::write::{Delete, Document, Increment, Item, Point, Write};

/// Maximum of characters in the detail of an item that was set aside: parsers quote their input.
const DETAIL_LENGTH_MAX: usize = 1_000;

const TOO_OLD: &str = "its message came after the ledger had forgotten what was applied when it was accepted";

/// One item that takes effect in this transaction.
#[derive(Debug)]
pub struct PlannedWrite<'a, T> {
    pub write: &'a T,
    pub message: &'a Message,
    pub index: usize,
}

impl<T> Clone for PlannedWrite<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for PlannedWrite<'_, T> {}

impl<'a, T> PlannedWrite<'a, T> {
    fn position(&self) -> ItemRef<'a> {
        ItemRef { message: self.message, index: self.index }
    }

    pub fn item(&self) -> ItemKey {
        self.message.item_key(self.index)
    }

    /// Returns the position of the item among all items, by time.
    pub fn place(&self) -> Uuid {
        self.message.place(self.index).as_uuid()
    }

    pub fn is_awaited(&self) -> bool {
        self.message.is_awaited(self.index)
    }

    pub fn is_keyed(&self) -> bool {
        self.message.entries[self.index].keyed().is_some()
    }

    pub fn set_aside(&self, reason: Reason, detail: &str) -> SetAside {
        set_aside(self.message, self.index, reason, detail)
    }
}

/// An item of a message.
#[derive(Clone, Copy, Debug)]
pub struct ItemRef<'a> {
    pub message: &'a Message,
    pub index: usize,
}

impl ItemRef<'_> {
    pub fn set_aside(self, reason: Reason, detail: &str) -> SetAside {
        set_aside(self.message, self.index, reason, detail)
    }
}

/// Writes of the fresh messages, by kind.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    pub increments: Vec<PlannedWrite<'a, Increment>>,
    pub documents: Vec<PlannedWrite<'a, Document>>,
    pub deletes: Vec<PlannedWrite<'a, Delete>>,
    pub points: Vec<PlannedWrite<'a, Point>>,
    /// Items that are not applied, whatever the store holds.
    pub aside: Vec<SetAside>,
    pub keyed: Vec<KeyedOutcome>,
    /// Items of the whole transaction, also in a part of the plan.
    pub own: Arc<OwnWrites>,
}

/// Items and messages that the store reports as processed only because this transaction is about to.
#[derive(Debug, Default)]
pub struct OwnWrites {
    messages: HashSet<MessageId>,
    keys: HashSet<ItemKey>,
}

impl OwnWrites {
    pub fn holds(&self, item: ItemKey) -> bool {
        self.keys.contains(&item) || item.message().is_some_and(|message| self.messages.contains(&message))
    }
}

/// Entry for `keyed_writes` under a key.
pub struct KeyEntry {
    pub fingerprint: Fingerprint,
    /// Lower bound of the entry's time: a store with a clock that is behind must not take the key for older
    /// than its message, because accept times decide which keys may be forgotten.
    pub accepted_at_ms: i64,
}

/// The keys of a batch with the fingerprint that comes first and the accept time that comes last,
/// sorted.
pub fn keys(fresh: &[&Message]) -> BTreeMap<ItemKey, KeyEntry> {
    let mut keys = BTreeMap::new();
    for message in fresh {
        let accepted_at_ms = message.accepted_at_ms;
        for Keyed { id, fingerprint } in message.entries.iter().filter_map(Entry::keyed) {
            let entered = keys.entry(id).or_insert(KeyEntry { fingerprint, accepted_at_ms });
            entered.accepted_at_ms = entered.accepted_at_ms.max(accepted_at_ms);
        }
    }
    keys
}

/// Fingerprints that were in `keyed_writes` before this transaction. Keys that are missing here were entered
/// by it.
pub type Earlier = HashMap<ItemKey, Fingerprint>;

impl<'a> Plan<'a> {
    /// Plans messages that have no other row in the ledger. `too_old` are those that may have had one.
    pub fn of(fresh: &[&'a Message], too_old: &HashSet<MessageId>, earlier: &Earlier) -> Self {
        let mut plan = Self::default();
        let mut processed = earlier.clone();
        for message in fresh.iter().copied() {
            for (index, entry) in message.entries.iter().enumerate() {
                let verdict = entry.keyed().map(|keyed| {
                    let verdict = judge(&mut processed, keyed);
                    (KeyedOutcome { item: keyed.id, fingerprint: keyed.fingerprint, verdict }, verdict)
                });
                let takes_effect = verdict.is_none_or(|(_, verdict)| verdict == KeyedVerdict::Applied);
                plan.keyed.extend(verdict.map(|(outcome, _)| outcome));
                if takes_effect && too_old.contains(&message.id) {
                    plan.aside.push(set_aside(message, index, Reason::TooOld, TOO_OLD));
                } else if takes_effect {
                    plan.add(message, index, entry);
                }
            }
        }
        plan.own = Arc::new(OwnWrites {
            messages: fresh.iter().map(|message| message.id).collect(),
            keys: processed.into_keys().filter(|key| !earlier.contains_key(key)).collect(),
        });
        plan
    }

    /// Plans items that come a second time. Each takes effect, because its row in the dead letters is the
    /// token for it.
    pub fn redriven(messages: &'a [Message]) -> Self {
        let mut plan = Self::default();
        for message in messages {
            for (index, entry) in message.entries.iter().enumerate() {
                plan.add(message, index, entry);
            }
        }
        plan
    }

    /// Returns the items that take effect, in the order of these messages and of their items.
    pub fn places(&self, messages: &[&'a Message]) -> Vec<ItemRef<'a>> {
        let ranks: HashMap<MessageId, usize> =
            messages.iter().enumerate().map(|(rank, message)| (message.id, rank)).collect();
        // Named one by one, so that a new kind of write is not forgotten here.
        let Self { increments, documents, deletes, points, aside: _, keyed: _, own: _ } = self;
        let mut places: Vec<_> = increments.iter().map(PlannedWrite::position).collect();
        places.extend(documents.iter().map(PlannedWrite::position));
        places.extend(deletes.iter().map(PlannedWrite::position));
        places.extend(points.iter().map(PlannedWrite::position));
        places.sort_by_key(|place| (ranks.get(&place.message.id).copied(), place.index));
        places
    }

    /// Returns the part of the plan for these items.
    pub fn part(&self, places: &[ItemRef<'a>]) -> Self {
        let places: HashSet<ItemKey> = places.iter().map(|place| place.message.place(place.index)).collect();
        let is_in = |message: &Message, index| places.contains(&message.place(index));
        Self {
            increments: only(&self.increments, is_in),
            documents: only(&self.documents, is_in),
            deletes: only(&self.deletes, is_in),
            points: only(&self.points, is_in),
            aside: Vec::new(),
            keyed: Vec::new(),
            own: Arc::clone(&self.own),
        }
    }

    fn add(&mut self, message: &'a Message, index: usize, entry: &'a Entry) {
        match entry {
            Entry::Item(Item { write, .. }) => match write {
                Write::Increment(write) => self.increments.push(PlannedWrite { write, message, index }),
                Write::Document(write) => self.documents.push(PlannedWrite { write, message, index }),
                Write::Delete(write) => self.deletes.push(PlannedWrite { write, message, index }),
                Write::Point(write) => self.points.push(PlannedWrite { write, message, index }),
            },
            Entry::Unreadable { detail, .. } => {
                self.aside.push(set_aside(message, index, Reason::Unreadable, detail));
            }
        }
    }

    /// Returns the outcomes of keyed items, without those that were set aside.
    pub fn keyed_outcomes(&self, set_aside: &[SetAside]) -> Vec<KeyedOutcome> {
        let aside: HashSet<ItemKey> = set_aside.iter().map(|aside| aside.item).collect();
        let is_aside = |outcome: &KeyedOutcome| {
            outcome.verdict == KeyedVerdict::Applied && aside.contains(&outcome.item)
        };
        self.keyed.iter().filter(|outcome| !is_aside(outcome)).copied().collect()
    }
}

fn only<'a, T>(
    tasks: &[PlannedWrite<'a, T>],
    is_in: impl Fn(&Message, usize) -> bool,
) -> Vec<PlannedWrite<'a, T>> {
    tasks.iter().filter(|task| is_in(task.message, task.index)).copied().collect()
}

fn judge(processed: &mut Earlier, Keyed { id, fingerprint }: Keyed) -> KeyedVerdict {
    match processed.insert(id, fingerprint) {
        None => KeyedVerdict::Applied,
        Some(before) if before == fingerprint => KeyedVerdict::Repeated,
        Some(before) => {
            processed.insert(id, before);
            KeyedVerdict::Conflict
        }
    }
}

/// Replaces NUL, which Postgres takes in no text. A parser's complaint may quote one, so that one such item
/// would fail its whole batch for ever: `nothing_that_a_message_can_carry_fails_its_batch`.
fn visible(character: char) -> char {
    if character == '\0' { char::REPLACEMENT_CHARACTER } else { character }
}

/// Returns a detail as it is stored: short, and such that every store takes it.
pub fn detail_of(text: &str) -> String {
    text.chars().take(DETAIL_LENGTH_MAX).map(visible).collect()
}

pub fn set_aside(message: &Message, index: usize, reason: Reason, detail: &str) -> SetAside {
    let entry = &message.entries[index];
    let json = match entry {
        Entry::Item(item) => serde_json::to_string(item).expect("an item has a JSON form"),
        Entry::Unreadable { json, .. } => json.to_string(),
    };
    SetAside {
        item: message.item_key(index),
        fingerprint: entry.keyed().map(|keyed| keyed.fingerprint),
        reason,
        detail: detail_of(detail),
        json: json.chars().map(visible).collect(),
        accepted_at_ms: message.accepted_at_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{IdIssuer, Kind};
    use crate::model::idempotency;
    use KeyedVerdict::{Applied, Conflict, Repeated};

    fn item(key: Option<&str>, by: i64) -> Entry {
        let write = Write::Increment(Increment { counter: "a".into(), by });
        let keyed = key.map(|key| Keyed {
            id: idempotency::id_of("p", Kind::Increment, key, 0),
            fingerprint: idempotency::fingerprint_of("POST", "a", &by.to_string()),
        });
        Entry::Item(Item { write, keyed })
    }

    fn message(ids: &mut IdIssuer, entries: Vec<Entry>) -> Message {
        Message {
            id: ids.next(5),
            digest: [0; 16],
            accepted_at_ms: 5,
            entries,
            awaited: Vec::new(),
            first: 0,
        }
    }

    #[test]
    fn the_first_under_a_key_counts_whatever_message_it_came_in() {
        let mut ids = IdIssuer::new(1, 1);
        let one = message(&mut ids, vec![item(Some("k"), 1), item(None, 2), item(Some("k"), 1)]);
        let two = message(&mut ids, vec![item(Some("k"), 3), item(Some("k"), 1), item(Some("l"), 4)]);
        let fresh = [&one, &two];
        assert_eq!(keys(&fresh).len(), 2);
        let plan = Plan::of(&fresh, &HashSet::new(), &Earlier::new());
        let applied: Vec<i64> = plan.increments.iter().map(|task| task.write.by).collect();
        assert_eq!(applied, [1, 2, 4]);
        let verdicts: Vec<_> = plan.keyed.iter().map(|outcome| outcome.verdict).collect();
        assert_eq!(verdicts, [Applied, Repeated, Conflict, Repeated, Applied]);
    }

    #[test]
    fn what_was_processed_before_decides() {
        let mut ids = IdIssuer::new(1, 1);
        let message = message(&mut ids, vec![item(Some("k"), 1), item(Some("k"), 2)]);
        let id = message.item_key(0);
        let earlier = Earlier::from([(id, idempotency::fingerprint_of("POST", "a", "2"))]);
        let plan = Plan::of(&[&message], &HashSet::new(), &earlier);
        assert!(plan.increments.is_empty());
        let verdicts: Vec<_> = plan.keyed.iter().map(|outcome| outcome.verdict).collect();
        assert_eq!(verdicts, [KeyedVerdict::Conflict, KeyedVerdict::Repeated]);
    }

    #[test]
    fn of_a_message_that_is_too_old_nothing_is_applied_but_what_a_key_tells_is_told() {
        let mut ids = IdIssuer::new(1, 1);
        let unreadable =
            Entry::Unreadable { kind: Kind::Point, keyed: None, json: "{}".into(), detail: "d".into() };
        let old = message(&mut ids, vec![item(None, 1), item(Some("k"), 2), item(Some("l"), 3), unreadable]);
        let new = message(&mut ids, vec![item(None, 4)]);
        let earlier = Earlier::from([(old.item_key(1), idempotency::fingerprint_of("POST", "a", "2"))]);
        let plan = Plan::of(&[&old, &new], &HashSet::from([old.id]), &earlier);
        assert_eq!(plan.increments.iter().map(|task| task.write.by).collect::<Vec<_>>(), [4]);
        let aside: Vec<_> = plan.aside.iter().map(|aside| (aside.item, aside.reason)).collect();
        assert_eq!(aside, [0, 2, 3].map(|index| (old.item_key(index), Reason::TooOld)));
        let outcomes = plan.keyed_outcomes(&plan.aside);
        assert_eq!(
            outcomes.iter().map(|outcome| (outcome.item, outcome.verdict)).collect::<Vec<_>>(),
            [(old.item_key(1), Repeated)]
        );
    }

    #[test]
    fn a_first_that_is_set_aside_is_not_told_as_applied() {
        let mut ids = IdIssuer::new(1, 1);
        let message = message(&mut ids, vec![item(Some("k"), 1), item(Some("k"), 2)]);
        let plan = Plan::of(&[&message], &HashSet::new(), &Earlier::new());
        let aside = plan.increments[0].set_aside(Reason::CounterOverflow, "too\0much");
        assert_eq!(aside.detail, "too\u{fffd}much");
        let outcomes = plan.keyed_outcomes(&[aside]);
        assert_eq!(
            outcomes.iter().map(|outcome| outcome.verdict).collect::<Vec<_>>(),
            [KeyedVerdict::Conflict]
        );
    }

    #[test]
    fn text_that_a_store_might_refuse_is_made_visible_and_short() {
        let mut ids = IdIssuer::new(1, 1);
        let detail = format!("unknown field `\0{}`", "x".repeat(1 << 20));
        let entry = Entry::Unreadable { kind: Kind::Point, keyed: None, json: "{}".into(), detail };
        let message = message(&mut ids, vec![entry]);
        let plan = Plan::of(&[&message], &HashSet::new(), &Earlier::new());
        assert_eq!(plan.aside[0].item, message.id.item(Kind::Point, 0));
        assert!(!plan.aside[0].detail.contains('\0'));
        assert_eq!(plan.aside[0].detail.chars().count(), DETAIL_LENGTH_MAX);
    }
}
