//! Requests that wait: for the outcome of an item, or for a change of a counter. One registry for
//! the whole process, shared by its workers.
//!
//! A request takes a [`Seat`], registers before its write can be sent (or before it reads the
//! store), and waits. Events settle it, and after a hole one batched read of the store does
//! ([`reconcile`](crate::wait::reconcile)). It stops waiting when its time is up, when the store is known to be away, when no
//! consumer runs or when the process stops. Nothing here knows HTTP, and nothing here promises: who is not answered
//! answers 202.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use shared::event::Committed;
use shared::model::id::ItemKey;
use shared::model::idempotency::Fingerprint;
use shared::model::outcome::{Counter, Fate};
use shared::runtime::breaker::Breaker;
use tokio::sync::{Notify, oneshot};

use crate::metrics::metrics;
use crate::wait::outcome::{Changed, Outcome, Told};
use crate::wait::registry::{Book, Place};

/// The registry.
pub struct Waiters {
    book: Mutex<Book>,
    /// Seats that are taken.
    open: AtomicUsize,
    open_max: usize,
    store_breaker: Arc<Breaker>,
    /// Every consumer that is heard says that it cannot reach the store.
    consumers_are_away: AtomicBool,
    /// No consumer runs, as far as events show.
    consumers_are_missing: AtomicBool,
    /// There are items in doubt.
    pub(super) doubted: Notify,
}

/// The right to wait, given back when dropped.
pub struct Seat {
    waiters: Arc<Waiters>,
    since: Instant,
}

/// A registered request. Dropping it takes it out of the registry.
pub struct Waiter<T: Told> {
    seat: Seat,
    place: Place,
    told: oneshot::Receiver<T>,
    /// How it ended, once it did.
    ended: Option<&'static str>,
}

impl Waiters {
    pub fn new(open_max: usize, store_breaker: Arc<Breaker>) -> Arc<Self> {
        Arc::new(Self {
            book: Mutex::default(),
            open: AtomicUsize::new(0),
            open_max,
            store_breaker,
            consumers_are_away: AtomicBool::new(false),
            consumers_are_missing: AtomicBool::new(false),
            doubted: Notify::new(),
        })
    }

    /// To wait for an item: `None` when too many wait, or nothing is applied for now.
    pub fn seat(self: &Arc<Self>) -> Option<Seat> {
        if self.is_vain() {
            metrics().waits_refused.inc();
            return None;
        }
        self.seat_for_counter()
    }

    /// To follow a counter, which a store that is away does not end: `None` when too many wait.
    pub fn seat_for_counter(self: &Arc<Self>) -> Option<Seat> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.open_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            metrics().waits_refused.inc();
            return None;
        }
        metrics().waiters.inc();
        Some(Seat { waiters: self.clone(), since: Instant::now() })
    }

    /// Takes what an event said of items. After a hole call [`doubt_all`](Self::doubt_all) first.
    pub fn hear(&self, committed: &Committed) {
        let (told, doubts) = {
            let mut book = self.lock();
            (book.hear(committed), book.has_doubts())
        };
        for (tell, outcome) in told {
            // An error means that the request is gone.
            let _ = tell.send(outcome);
        }
        if doubts {
            self.doubted.notify_one();
        }
    }

    /// Something was missed: what a later event says of a whole message is not to be trusted for
    /// anybody who waits now, and counters may have changed.
    pub fn doubt_all(&self) {
        let (has_doubts, counters) = {
            let mut book = self.lock();
            book.doubt_all();
            (book.has_doubts(), book.take_counters())
        };
        if has_doubts {
            self.doubted.notify_one();
        }
        tell_changed(counters);
    }

    /// These counters have changed; call it when whoever looks again sees it.
    pub fn changed<'a>(&self, counters: impl IntoIterator<Item = &'a Counter>) {
        let changed = {
            let mut book = self.lock();
            counters.into_iter().filter_map(|counter| book.take_counter(&counter.name)).flatten().collect()
        };
        tell_changed(changed);
    }

    /// Whether all consumers that are heard say that the store is away.
    pub fn set_consumers_away(&self, are_away: bool) {
        self.consumers_are_away.store(are_away, Ordering::Relaxed);
    }

    /// Whether no consumer runs.
    pub fn set_consumers_missing(&self, are_missing: bool) {
        self.consumers_are_missing.store(are_missing, Ordering::Relaxed);
    }

    pub fn consumers_are_missing(&self) -> bool {
        self.consumers_are_missing.load(Ordering::Relaxed)
    }

    /// Releases all waits for items while nothing is applied; to be called often.
    pub fn release_if_vain(&self) {
        if self.is_vain() {
            self.lock().release();
        }
    }

    /// Releases everybody and lets nobody wait any more.
    pub fn close(&self) {
        self.lock().close();
    }

    /// How many wait.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether nothing is applied for now: the store is known to be away, or no consumer runs.
    fn is_vain(&self) -> bool {
        self.store_is_away() || self.consumers_are_missing()
    }

    /// Whether it cannot be read from here, or no consumer that runs can apply anything.
    pub fn store_is_away(&self) -> bool {
        !self.store_breaker.is_closed() || self.consumers_are_away.load(Ordering::Relaxed)
    }

    /// What the store said of items that were in doubt when the mark was taken.
    pub(super) fn learn(&self, items: &[ItemKey], fates: Vec<Option<Fate>>, mark: u64) {
        let told = self.lock().learn(items, fates, mark);
        for (tell, outcome) in told {
            let _ = tell.send(outcome);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no code panics while it holds this lock")
    }
}

fn tell_changed(changed: Vec<oneshot::Sender<Changed>>) {
    for tell in changed {
        // An error means that the request is gone.
        let _ = tell.send(Changed);
    }
}

impl Seat {
    /// Registers for an item. `fingerprint` is that of the payload which the request is about;
    /// without one whatever was processed under a key will do.
    pub fn wait_for(self, item: ItemKey, fingerprint: Option<Fingerprint>) -> Waiter<Outcome> {
        let (tell, told) = oneshot::channel();
        let place = self.waiters.lock().enter_item(item, fingerprint, tell);
        Waiter { seat: self, place, told, ended: None }
    }

    /// Registers for the next change of a counter.
    pub fn wait_for_counter(self, name: &str) -> Waiter<Changed> {
        let (tell, told) = oneshot::channel();
        let place = self.waiters.lock().enter_counter(name, tell);
        Waiter { seat: self, place, told, ended: None }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.waiters.open.fetch_sub(1, Ordering::Relaxed);
        metrics().waiters.dec();
    }
}

impl<T: Told> Waiter<T> {
    /// Waits until then at the latest; `None` when the time is up, or nobody shall wait any more.
    /// Safe to cancel and to call again.
    pub async fn outcome(&mut self, deadline: Instant) -> Option<T> {
        if self.ended.is_some() {
            return None;
        }
        let (word, told) = match tokio::time::timeout_at(deadline.into(), &mut self.told).await {
            Ok(Ok(told)) => (told.name(), Some(told)),
            Ok(Err(_)) => ("released", None),
            Err(_) => ("time_up", None),
        };
        self.ended = Some(word);
        told
    }

    /// What was told by now.
    pub fn told(&mut self) -> Option<T> {
        if self.ended.is_some() {
            return None;
        }
        let told = self.told.try_recv().ok()?;
        self.ended = Some(told.name());
        Some(told)
    }
}

impl<T: Told> Drop for Waiter<T> {
    fn drop(&mut self) {
        let word = self.ended.unwrap_or("left");
        if matches!(word, "left" | "time_up") {
            self.seat.waiters.lock().leave(&self.place);
        }
        metrics().waited(word, self.seat.since.elapsed());
    }
}

#[cfg(test)]
mod tests;
