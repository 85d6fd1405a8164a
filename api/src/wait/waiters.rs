//! Requests that wait: for the outcome of an item, or for a change of a counter. One registry for
//! the whole process, shared by its workers.
//!
//! A request takes a [`WaitPermit`], registers before its write can be sent (or before it reads the
//! store), and waits. Events answer it; after a gap one batched read of the store does
//! ([`reconcile`](crate::wait::reconcile)). It stops waiting when its time is up, when the store is known
//! to be away, when no consumer runs or when the process stops. Nothing here knows HTTP. Nothing here is a
//! promise: a request that gets no outcome answers 202.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use shared::event::Committed;
use shared::model::id::ItemKey;
use shared::model::idempotency::Fingerprint;
use shared::model::outcome::{Counter, ItemStatus};
use shared::runtime::breaker::Breaker;
use tokio::sync::{Notify, oneshot};

use crate::metrics::metrics;
use crate::wait::outcome::{Changed, Outcome, WaitResult};
use crate::wait::registry::{Registration, Registry};

/// All waiting requests of the process.
pub struct Waiters {
    registry: Mutex<Registry>,
    /// Permits that are taken.
    open: AtomicUsize,
    open_max: usize,
    store_breaker: Arc<Breaker>,
    /// Every consumer with events that arrive says that it cannot reach the store.
    consumers_are_away: AtomicBool,
    /// No consumer runs, as far as events show.
    consumers_are_missing: AtomicBool,
    /// There are items in doubt.
    pub(super) doubted: Notify,
}

/// The right to wait, given back when dropped.
pub struct WaitPermit {
    waiters: Arc<Waiters>,
    since: Instant,
}

/// A registered request. Dropping it takes it out of the registry.
pub struct Waiter<T: WaitResult> {
    permit: WaitPermit,
    registration: Registration,
    result: oneshot::Receiver<T>,
    /// Result label of the wait, once it has ended.
    ended: Option<&'static str>,
}

impl Waiters {
    pub fn new(open_max: usize, store_breaker: Arc<Breaker>) -> Arc<Self> {
        Arc::new(Self {
            registry: Mutex::default(),
            open: AtomicUsize::new(0),
            open_max,
            store_breaker,
            consumers_are_away: AtomicBool::new(false),
            consumers_are_missing: AtomicBool::new(false),
            doubted: Notify::new(),
        })
    }

    /// Permit to wait for an item; `None` when too many requests wait, or nothing is applied for now.
    pub fn permit(self: &Arc<Self>) -> Option<WaitPermit> {
        if self.is_vain() {
            metrics().waits_refused.inc();
            return None;
        }
        self.permit_for_counter()
    }

    /// Permit to follow a counter, which goes on while the store is away; `None` when too many requests wait.
    pub fn permit_for_counter(self: &Arc<Self>) -> Option<WaitPermit> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.open_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            metrics().waits_refused.inc();
            return None;
        }
        metrics().waiters.inc();
        Some(WaitPermit { waiters: self.clone(), since: Instant::now() })
    }

    /// Takes what an event said of items. After a gap call [`doubt_all`](Self::doubt_all) first.
    pub fn on_event(&self, committed: &Committed) {
        let (answers, doubts) = {
            let mut registry = self.lock();
            (registry.on_event(committed), registry.has_doubts())
        };
        for (sender, outcome) in answers {
            // An error means that the request is gone.
            let _ = sender.send(outcome);
        }
        if doubts {
            self.doubted.notify_one();
        }
    }

    /// Puts all items in doubt, because an event may have been missed. Later events about whole messages do
    /// not answer the requests that wait now, and counters may have changed.
    pub fn doubt_all(&self) {
        let (has_doubts, counters) = {
            let mut registry = self.lock();
            registry.doubt_all();
            (registry.has_doubts(), registry.take_counters())
        };
        if has_doubts {
            self.doubted.notify_one();
        }
        send_changed(counters);
    }

    /// Answers the requests that follow these counters; call it once a new read shows the change.
    pub fn changed<'a>(&self, counters: impl IntoIterator<Item = &'a Counter>) {
        let changed = {
            let mut registry = self.lock();
            counters
                .into_iter()
                .filter_map(|counter| registry.take_counter(&counter.name))
                .flatten()
                .collect()
        };
        send_changed(changed);
    }

    /// Notes that all consumers with events that arrive say that the store is away, or that not all do.
    pub fn set_consumers_away(&self, are_away: bool) {
        self.consumers_are_away.store(are_away, Ordering::Relaxed);
    }

    /// Notes that no consumer runs, or that one does.
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

    /// Releases all waits and permits no more.
    pub fn close(&self) {
        self.lock().close();
    }

    /// Number of requests that wait.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns true when nothing is applied for now: the store is known to be away, or no consumer runs.
    fn is_vain(&self) -> bool {
        self.store_is_away() || self.consumers_are_missing()
    }

    /// Returns true when the store cannot be read from here, or no running consumer can reach it.
    pub fn store_is_away(&self) -> bool {
        !self.store_breaker.is_closed() || self.consumers_are_away.load(Ordering::Relaxed)
    }

    /// Takes the answer of the store about items that were in doubt when the mark was taken.
    pub(super) fn apply_update(&self, items: &[ItemKey], statuses: Vec<Option<ItemStatus>>, mark: u64) {
        let answers = self.lock().apply_update(items, statuses, mark);
        for (sender, outcome) in answers {
            let _ = sender.send(outcome);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().expect("no code panics while it holds this lock")
    }
}

fn send_changed(changed: Vec<oneshot::Sender<Changed>>) {
    for sender in changed {
        // An error means that the request is gone.
        let _ = sender.send(Changed);
    }
}

impl WaitPermit {
    /// Registers for an item. `fingerprint` is that of the request's payload; without one any payload that
    /// was processed under the key will do.
    pub fn wait_for(self, item: ItemKey, fingerprint: Option<Fingerprint>) -> Waiter<Outcome> {
        let (sender, result) = oneshot::channel();
        let registration = self.waiters.lock().register_item(item, fingerprint, sender);
        Waiter { permit: self, registration, result, ended: None }
    }

    /// Registers for the next change of a counter.
    pub fn wait_for_counter(self, name: &str) -> Waiter<Changed> {
        let (sender, result) = oneshot::channel();
        let registration = self.waiters.lock().register_counter(name, sender);
        Waiter { permit: self, registration, result, ended: None }
    }
}

impl Drop for WaitPermit {
    fn drop(&mut self) {
        self.waiters.open.fetch_sub(1, Ordering::Relaxed);
        metrics().waiters.dec();
    }
}

impl<T: WaitResult> Waiter<T> {
    /// Waits until the deadline at the latest; `None` when the time is up, or waits were released.
    /// Safe to cancel and to call again.
    pub async fn outcome(&mut self, deadline: Instant) -> Option<T> {
        if self.ended.is_some() {
            return None;
        }
        let (word, result) = match tokio::time::timeout_at(deadline.into(), &mut self.result).await {
            Ok(Ok(result)) => (result.name(), Some(result)),
            Ok(Err(_)) => ("released", None),
            Err(_) => ("time_up", None),
        };
        self.ended = Some(word);
        result
    }

    /// Result that was reported by now, if any.
    pub fn reported(&mut self) -> Option<T> {
        if self.ended.is_some() {
            return None;
        }
        let result = self.result.try_recv().ok()?;
        self.ended = Some(result.name());
        Some(result)
    }
}

impl<T: WaitResult> Drop for Waiter<T> {
    fn drop(&mut self) {
        let word = self.ended.unwrap_or("left");
        if matches!(word, "left" | "time_up") {
            self.permit.waiters.lock().unregister(&self.registration);
        }
        metrics().waited(word, self.permit.since.elapsed());
    }
}

#[cfg(test)]
mod tests;
