//! Reads of counters, answered from memory.
//!
//! Values come from the store on a miss (one load per key at a time) and from events afterwards.
//! All writers of the cache hold one lock and keep the higher version, so the answers of a replica
//! for a key never go backwards; readers take no lock. A gap in the events makes every entry
//! old at once, but keeps it: while the store is away an old value is answered, marked stale.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng;
use shared::model::outcome::Counter;
use shared::runtime::breaker::Breaker;
use shared::store::{Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::metrics::metrics;
use crate::rfc3339::rfc3339;
use crate::store_breaker::guarded;

/// Bytes of an entry beside its name, which it holds twice: the rendered body and the structures.
const ENTRY_BYTES: usize = 400;

#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    pub bytes_max: u64,
    pub ttl: Duration,
    pub negative_ttl: Duration,
    pub stale_max: Duration,
}

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

/// Source of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    Hit,
    Miss,
    /// An answer that is older than it should be, because the store is away.
    Stale,
}

type LoadedCounter = Result<Arc<CachedCounter>, StoreError>;

pub struct CounterCache {
    entries: moka::sync::Cache<Arc<str>, Arc<CachedCounter>>,
    /// Loads under way. The lock is held by everything that writes to `entries`.
    loads: Mutex<HashMap<Box<str>, CounterLoad>>,
    /// Grows when events may have been missed; entries of an earlier generation are old.
    generation: AtomicU64,
    limits: CacheLimits,
    store: Arc<dyn Store>,
    breaker: Arc<Breaker>,
    /// Runtime of the loads. They run to their end, even when the request that asked first has gone.
    runtime: Handle,
}

/// A load of a counter that is under way.
struct CounterLoad {
    result: watch::Receiver<Option<LoadedCounter>>,
    /// Newest value that events reported meanwhile: the load may have read before it.
    reported: Option<Counter>,
}

impl CounterCache {
    /// Makes an empty cache. Call it on the runtime on which loads shall run.
    pub fn new(store: Arc<dyn Store>, breaker: Arc<Breaker>, limits: CacheLimits) -> Arc<Self> {
        let entries = moka::sync::Cache::builder()
            .max_capacity(limits.bytes_max)
            .weigher(|key: &Arc<str>, _| u32::try_from(2 * key.len() + ENTRY_BYTES).unwrap_or(u32::MAX))
            .time_to_live(limits.stale_max)
            .build();
        Arc::new(Self {
            entries,
            loads: Mutex::default(),
            generation: AtomicU64::new(0),
            limits,
            store,
            breaker,
            runtime: Handle::current(),
        })
    }

    /// Reads one counter.
    pub async fn get(self: &Arc<Self>, name: &str) -> Result<(Arc<CachedCounter>, CacheOutcome), StoreError> {
        if let Some(entry) = self.entries.get(name)
            && self.is_fresh(&entry)
        {
            return Ok((entry, CacheOutcome::Hit));
        }
        match self.load(name).await {
            Ok(entry) => Ok((entry, CacheOutcome::Miss)),
            // The entry is looked up again, because events may have brought a newer value. That a counter
            // does not exist is never answered from an old entry: it may have come into being since.
            Err(error) => match self.entries.get(name) {
                Some(entry) if entry.counter.is_some() && entry.read_at.elapsed() < self.limits.stale_max => {
                    Ok((entry, CacheOutcome::Stale))
                }
                _ => Err(error),
            },
        }
    }

    /// Takes newer values of cached counters from an event.
    pub fn apply_update<'a>(&self, changed: impl IntoIterator<Item = &'a Counter>) {
        let mut loads = self.lock();
        for counter in changed {
            if let Some(load) = loads.get_mut(&*counter.name) {
                load.reported = newer(load.reported.take(), Some(counter.clone()));
            }
            if let Some(entry) = self.entries.get(&*counter.name)
                && version(entry.counter.as_ref()) < counter.version
            {
                self.insert(&counter.name, Some(counter.clone()), self.generation());
            }
        }
    }

    /// Makes every entry old, because events may have been missed: it must be read again before it counts as
    /// fresh.
    pub fn invalidate_all(&self) {
        let _held = self.lock();
        self.generation.fetch_add(1, Ordering::Release);
        metrics().event_holes.inc();
    }

    fn is_fresh(&self, entry: &CachedCounter) -> bool {
        entry.generation == self.generation() && Instant::now() < entry.expires_at
    }

    /// Joins the load of this key or starts it.
    async fn load(self: &Arc<Self>, name: &str) -> LoadedCounter {
        let mut result = {
            let mut loads = self.lock();
            // A load that has lost its sender never ends: it is started anew.
            if let Some(load) = loads.get(name).filter(|load| load.result.has_changed().is_ok()) {
                load.result.clone()
            } else {
                let (sender, result) = watch::channel(None);
                loads.insert(name.into(), CounterLoad { result: result.clone(), reported: None });
                self.runtime.spawn(self.clone().run_load(name.into(), sender));
                result
            }
        };
        let loaded = result.wait_for(Option::is_some).await;
        let gone = || StoreError::Unavailable("the load was abandoned".into());
        loaded.map_err(|_| gone())?.clone().ok_or_else(gone)?
    }

    /// Reads the store once. The generation is taken before, so that a gap noticed meanwhile makes the result
    /// old.
    async fn run_load(self: Arc<Self>, name: Box<str>, sender: watch::Sender<Option<LoadedCounter>>) {
        let generation = self.generation();
        let read = guarded(&self.breaker, self.store.counter(&name)).await;
        let loaded = {
            let mut loads = self.lock();
            let reported = loads.remove(&name).and_then(|load| load.reported);
            read.map(|counter| {
                let cached = self.entries.get(&*name).and_then(|entry| entry.counter.clone());
                self.insert(&name, newer(newer(cached, counter), reported), generation)
            })
        };
        sender.send_replace(Some(loaded));
    }

    /// Caches a counter. Callers hold the lock.
    fn insert(&self, name: &str, counter: Option<Counter>, generation: u64) -> Arc<CachedCounter> {
        let ttl = if counter.is_some() { self.limits.ttl } else { self.limits.negative_ttl };
        // Jitter keeps entries that were read together from expiring together.
        let ttl = ttl.mul_f64(rand::rng().random_range(0.8..=1.0));
        let now = Instant::now();
        let body = OnceLock::new();
        let entry =
            Arc::new(CachedCounter { counter, read_at: now, expires_at: now + ttl, generation, body });
        self.entries.insert(name.into(), entry.clone());
        entry
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, CounterLoad>> {
        self.loads.lock().expect("no code panics while it holds this lock")
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

fn newer(one: Option<Counter>, other: Option<Counter>) -> Option<Counter> {
    if version(one.as_ref()) >= version(other.as_ref()) { one } else { other }
}

/// Version of a counter; 0 when there is no counter: the first increment makes version 1.
fn version(counter: Option<&Counter>) -> i64 {
    counter.map_or(0, |counter| counter.version)
}

#[cfg(test)]
mod tests;
