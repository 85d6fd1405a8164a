//! Registry of waiting requests, and the answers that they get. Pure: no clock, no lock, no task.
//!
//! An item is *in doubt* while an event about it may have been missed. An event that names the item holds
//! all the same. An event that a message was applied does not answer items in doubt, because an earlier
//! event may have said otherwise of them: the store decides.
use std::collections::{BTreeSet, HashMap, HashSet};

use shared::event::{Committed, ItemFailed};
use shared::model::id::{ItemKey, MessageId};
use shared::model::idempotency::Fingerprint;
use shared::model::outcome::{CounterResult, ItemStatus, KeyedOutcome, KeyedVerdict};
use tokio::sync::oneshot;

use crate::wait::outcome::{Changed, Outcome};

/// Outcomes to send, with their receivers.
type Answers = Vec<(oneshot::Sender<Outcome>, Outcome)>;

#[derive(Debug, Default)]
pub struct Registry {
    items: HashMap<ItemKey, Vec<WaitEntry>>,
    /// The items above that are not keyed, by their messages.
    messages: HashMap<MessageId, HashSet<ItemKey>>,
    counters: HashMap<Box<str>, Vec<(u64, oneshot::Sender<Changed>)>>,
    /// Items in doubt that the store is not being asked about yet.
    doubted: BTreeSet<ItemKey>,
    /// Grows with every doubt.
    doubts: u64,
    number: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct WaitEntry {
    number: u64,
    fingerprint: Option<Fingerprint>,
    /// The counter after a keyed increment, reported before the verdict on it.
    standing: Option<CounterResult>,
    /// The number of the last doubt about the item; 0 for none.
    doubted_at: u64,
    sender: oneshot::Sender<Outcome>,
}

/// Place of one waiting request in the registry.
#[derive(Debug)]
pub enum Registration {
    Item(ItemKey, u64),
    Counter(Box<str>, u64),
}

impl Registry {
    pub fn register_item(
        &mut self,
        item: ItemKey,
        fingerprint: Option<Fingerprint>,
        sender: oneshot::Sender<Outcome>,
    ) -> Registration {
        self.number += 1;
        let number = self.number;
        if !self.is_closed {
            let entry = WaitEntry { number, fingerprint, standing: None, doubted_at: 0, sender };
            self.items.entry(item).or_default().push(entry);
            if let Some(message) = item.message() {
                self.messages.entry(message).or_default().insert(item);
            }
        }
        Registration::Item(item, number)
    }

    pub fn register_counter(&mut self, name: &str, sender: oneshot::Sender<Changed>) -> Registration {
        self.number += 1;
        if !self.is_closed {
            self.counters.entry(name.into()).or_default().push((self.number, sender));
        }
        Registration::Counter(name.into(), self.number)
    }

    pub fn unregister(&mut self, registration: &Registration) {
        match registration {
            Registration::Item(item, number) => {
                let Some(entries) = self.items.get_mut(item) else { return };
                entries.retain(|entry| entry.number != *number);
                if entries.is_empty() {
                    self.items.remove(item);
                    self.forget_in_message(*item);
                }
            }
            Registration::Counter(name, number) => {
                let Some(entries) = self.counters.get_mut(name) else { return };
                entries.retain(|(other, _)| other != number);
                if entries.is_empty() {
                    self.counters.remove(name);
                }
            }
        }
    }

    /// Drops the senders of all requests that wait for an item, which ends their waits. Requests that follow
    /// a counter wait on: an old value is no reason to ask again at once.
    pub fn release(&mut self) {
        self.items.clear();
        self.messages.clear();
        self.doubted.clear();
    }

    pub fn close(&mut self) {
        self.is_closed = true;
        self.release();
        self.counters.clear();
    }

    /// Returns true when no request is registered, and nothing of any request is left.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.messages.is_empty() && self.counters.is_empty()
    }

    pub fn take_counter(&mut self, name: &str) -> Option<Vec<oneshot::Sender<Changed>>> {
        let entries = self.counters.remove(name)?;
        Some(entries.into_iter().map(|(_, sender)| sender).collect())
    }

    pub fn take_counters(&mut self) -> Vec<oneshot::Sender<Changed>> {
        self.counters.drain().flat_map(|(_, entries)| entries).map(|(_, sender)| sender).collect()
    }

    pub fn on_event(&mut self, committed: &Committed) -> Answers {
        let mut answers = Answers::new();
        if self.is_empty() {
            return answers;
        }
        for standing in &committed.standings {
            self.on_standing(*standing, &mut answers);
        }
        for failed in &committed.failed {
            self.on_failed(failed, &mut answers);
        }
        for keyed in &committed.keyed {
            self.on_keyed(keyed, &mut answers);
        }
        for item in &committed.unclear {
            self.doubt(*item);
        }
        for message in committed.messages.iter().filter_map(|id| MessageId::from_uuid(*id)) {
            self.on_message(message, &mut answers);
        }
        answers
    }

    /// Takes the counter after an applied increment. The payload of a keyed increment is known only with its
    /// verdict.
    fn on_standing(&mut self, standing: CounterResult, answers: &mut Answers) {
        let (item, standing) = (standing.item, Some(standing));
        if item.is_keyed() {
            for entry in self.items.get_mut(&item).into_iter().flatten() {
                entry.standing = standing;
            }
        } else {
            self.answer_where(item, answers, |_| Some(Outcome::Applied { standing, is_own: true }));
        }
    }

    fn on_failed(&mut self, failed: &ItemFailed, answers: &mut Answers) {
        let ItemFailed { item, fingerprint, reason, detail } = failed;
        self.answer_where(*item, answers, |entry| {
            Some(if entry.has_other(*fingerprint) {
                Outcome::Conflict
            } else {
                Outcome::Failed { reason: reason.clone(), detail: detail.clone() }
            })
        });
    }

    fn on_keyed(&mut self, keyed: &KeyedOutcome, answers: &mut Answers) {
        let KeyedOutcome { item, fingerprint, verdict } = *keyed;
        if verdict == KeyedVerdict::Repeated {
            // The key was processed before, and its outcome was reported then: only the store knows it.
            self.doubt(item);
            return;
        }
        self.answer_where(item, answers, |entry| {
            let other = entry.has_other(Some(fingerprint));
            match verdict {
                KeyedVerdict::Applied if other => Some(Outcome::Conflict),
                KeyedVerdict::Applied => Some(Outcome::Applied { standing: entry.standing, is_own: true }),
                // The verdict is about another payload. The request with the right one gets its own verdict.
                KeyedVerdict::Conflict if other || entry.fingerprint.is_none() => None,
                KeyedVerdict::Conflict | KeyedVerdict::Repeated => Some(Outcome::Conflict),
            }
        });
        if verdict == KeyedVerdict::Conflict {
            // The key was processed with another payload, perhaps long ago.
            self.doubt(item);
        }
    }

    fn on_message(&mut self, message: MessageId, answers: &mut Answers) {
        for item in self.messages.get(&message).cloned().unwrap_or_default() {
            self.answer_where(item, answers, |entry| {
                (entry.doubted_at == 0).then_some(Outcome::Applied { standing: None, is_own: true })
            });
            // The entries left are in doubt. A read that is under way may have looked before the commit.
            self.doubt(item);
        }
    }

    pub fn doubt_all(&mut self) {
        self.doubts += 1;
        for (item, entries) in &mut self.items {
            self.doubted.insert(*item);
            for entry in entries {
                entry.doubted_at = self.doubts;
            }
        }
    }

    fn doubt(&mut self, item: ItemKey) {
        let Some(entries) = self.items.get_mut(&item) else { return };
        self.doubts += 1;
        self.doubted.insert(item);
        for entry in entries {
            entry.doubted_at = self.doubts;
        }
    }

    pub fn has_doubts(&self) -> bool {
        !self.doubted.is_empty()
    }

    /// Up to `count` items that the store must be asked about, and the mark of this moment.
    pub fn take_doubted(&mut self, count: usize) -> (Vec<ItemKey>, u64) {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(item) = self.doubted.pop_first()
        {
            if self.items.contains_key(&item) {
                taken.push(item);
            }
        }
        (taken, self.doubts)
    }

    /// Keeps items in doubt, because the store could not be asked.
    pub fn put_back(&mut self, items: Vec<ItemKey>) {
        self.doubted.extend(items);
    }

    /// Takes the answer of the store, which was asked after the mark was taken. An item that the store does
    /// not know, or of a time that it has forgotten, will be committed later, and all events about it come
    /// later still.
    pub fn apply_update(
        &mut self,
        items: &[ItemKey],
        statuses: Vec<Option<ItemStatus>>,
        mark: u64,
    ) -> Answers {
        let mut answers = Answers::new();
        for (item, status) in items.iter().zip(statuses) {
            if let Some(status) = status.filter(|status| *status != ItemStatus::Forgotten) {
                self.answer_where(*item, &mut answers, |entry| {
                    Outcome::of(&status, entry.fingerprint, entry.standing)
                });
                continue;
            }
            for entry in self.items.get_mut(item).into_iter().flatten() {
                if entry.doubted_at <= mark {
                    entry.doubted_at = 0;
                }
            }
        }
        answers
    }

    /// Takes out the entries that have an answer.
    fn answer_where(
        &mut self,
        item: ItemKey,
        answers: &mut Answers,
        answer: impl Fn(&WaitEntry) -> Option<Outcome>,
    ) {
        let Some(entries) = self.items.get_mut(&item) else { return };
        let mut index = 0;
        while index < entries.len() {
            match answer(&entries[index]) {
                Some(outcome) => answers.push((entries.swap_remove(index).sender, outcome)),
                None => index += 1,
            }
        }
        if entries.is_empty() {
            self.items.remove(&item);
            self.forget_in_message(item);
        }
    }

    fn forget_in_message(&mut self, item: ItemKey) {
        let Some(message) = item.message() else { return };
        let Some(items) = self.messages.get_mut(&message) else { return };
        items.remove(&item);
        if items.is_empty() {
            self.messages.remove(&message);
        }
    }
}

impl WaitEntry {
    /// Returns true when the entry is about another payload than the one that was processed.
    fn has_other(&self, processed: Option<Fingerprint>) -> bool {
        self.fingerprint.is_some_and(|own| processed.is_some_and(|processed| processed != own))
    }
}
