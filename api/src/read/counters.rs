//! Reads of counters, answered from memory.
//!
//! Values come from the store on a miss (one load per key at a time) and from events afterwards.
//! All writers of the cache hold one lock and keep the higher version, so the answers of a replica
//! for a key never go backwards; readers take no lock. A gap in the events makes every entry
//! old at once, but keeps it: while the store is away an old value is answered, marked stale.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use shared::model::outcome::Counter;
use shared::runtime::breaker::Breaker;
use shared::store::{Reads, StoreError};

use crate::metrics::metrics;
use crate::read::cache::{self, CacheLimits, CacheOutcome};
use crate::read::single_flight::SingleFlight;
use crate::rfc3339::rfc3339;
use crate::store_breaker::guarded;

/// Bytes of an entry beside its name, which it holds twice: the rendered body and the structures.
const ENTRY_BYTES: usize = 400;

/// One cached read: the counter, or that there is none.
#[derive(Debug)]
pub struct CachedCounter {
    pub counter: Option<Counter>,
    /// Time at which the store or an event said so.
    pub read_at: Instant,
    expires_at: Instant,
    generation: u64,
    body: OnceLock<Bytes>,
}

pub struct CounterCache {
    entries: moka::sync::Cache<Arc<str>, Arc<CachedCounter>>,
    /// Loads under way. Their lock is held by everything that writes to `entries`.
    loads: Arc<SingleFlight<Arc<str>, CounterStamp, Arc<CachedCounter>>>,
    /// Grows when events may have been missed; entries of an earlier generation are old.
    generation: AtomicU64,
    limits: CacheLimits,
    store: Arc<dyn Reads>,
    breaker: Arc<Breaker>,
}

struct CounterStamp {
    /// Generation when the load began: a gap noticed meanwhile makes the result old.
    generation: u64,
    /// Newest value that events reported meanwhile: the load may have read before it.
    reported: Option<Counter>,
}

impl CounterCache {
    /// Makes an empty cache. Call it on the runtime on which loads shall run.
    pub fn new(store: Arc<dyn Reads>, breaker: Arc<Breaker>, limits: CacheLimits) -> Arc<Self> {
        let weigh = |name: &Arc<str>, _: &Arc<CachedCounter>| 2 * name.len() + ENTRY_BYTES;
        let entries = cache::bounded(limits.bytes_max, limits.stale_max, weigh);
        let (loads, generation) = (SingleFlight::new(), AtomicU64::new(0));
        Arc::new(Self { entries, loads, generation, limits, store, breaker })
    }

    /// Reads one counter.
    pub async fn get(self: &Arc<Self>, name: &str) -> Result<(Arc<CachedCounter>, CacheOutcome), StoreError> {
        if let Some(entry) = self.entries.get(name)
            && entry.generation == self.generation()
            && Instant::now() < entry.expires_at
        {
            return Ok((entry, CacheOutcome::Hit));
        }
        let begin = |name: Arc<str>| {
            let cache = self.clone();
            let load = async move {
                let read = guarded(&cache.breaker, cache.store.counter(&name)).await;
                move |stamp: CounterStamp| {
                    let cached = cache.entries.get(&*name).and_then(|entry| entry.counter.clone());
                    let counter = newest([cached, read?, stamp.reported]);
                    Ok(cache.insert(&name, counter, stamp.generation))
                }
            };
            (CounterStamp { generation: self.generation(), reported: None }, load)
        };
        match self.loads.load(name.into(), |_| true, begin).await {
            Ok(entry) => Ok((entry, CacheOutcome::Miss)),
            // The entry is looked up again, because events may have brought a newer value. That a counter
            // does not exist is never answered from an old entry: it may have come into being since.
            Err(error) => {
                let old = self.entries.get(name).filter(|entry| entry.counter.is_some());
                old.map(|entry| (entry, CacheOutcome::Stale)).ok_or(error)
            }
        }
    }

    /// Takes newer values of cached counters from an event.
    pub fn apply_update<'a>(&self, changed: impl IntoIterator<Item = &'a Counter>) {
        let mut loads = self.loads.lock();
        for counter in changed {
            if let Some(load) = loads.get_mut(&*counter.name) {
                load.stamp.reported = newest([load.stamp.reported.take(), Some(counter.clone())]);
            }
            if let Some(entry) = self.entries.get(&*counter.name)
                && entry.counter.as_ref().is_none_or(|cached| cached.version < counter.version)
            {
                self.insert(&counter.name, Some(counter.clone()), self.generation());
            }
        }
    }

    /// Makes every entry old, because events may have been missed: it must be read again before it counts as
    /// fresh.
    pub fn invalidate_all(&self) {
        let _held = self.loads.lock();
        self.generation.fetch_add(1, Ordering::Release);
        metrics().event_holes.inc();
    }

    /// Caches a counter. Callers hold the lock.
    fn insert(&self, name: &str, counter: Option<Counter>, generation: u64) -> Arc<CachedCounter> {
        let ttl = if counter.is_some() { self.limits.ttl } else { self.limits.negative_ttl };
        let (read_at, expires_at, body) = (Instant::now(), cache::expiry(ttl), OnceLock::new());
        let entry = Arc::new(CachedCounter { counter, read_at, expires_at, generation, body });
        self.entries.insert(name.into(), entry.clone());
        entry
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

impl CachedCounter {
    /// JSON that clients get, rendered at the first read.
    pub fn body(&self, counter: &Counter) -> Bytes {
        self.body.get_or_init(|| render(counter).into()).clone()
    }
}

/// JSON of a counter: `{"name","value","version","updated_at"}`. Names need no escapes.
pub fn render(counter: &Counter) -> String {
    let Counter { name, value, version, updated_at_ms } = counter;
    let updated_at = rfc3339(*updated_at_ms);
    format!(r#"{{"name":"{name}","value":{value},"version":{version},"updated_at":"{updated_at}"}}"#)
}

fn newest<const N: usize>(counters: [Option<Counter>; N]) -> Option<Counter> {
    counters.into_iter().flatten().max_by_key(|counter| counter.version)
}

#[cfg(test)]
mod tests;
