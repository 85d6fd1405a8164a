//! Reads that are computed from many rows, answered from memory. Bodies are cached ready to be sent.
//!
//! An answer is loaded by one load per key at a time and stays fresh for its time to live, until
//! an event names its tag (what it was computed from), or until events may have been missed. A
//! load notes how often its tag had changed before it began, so what it read before a change never
//! counts as fresh, and a request after the change waits for the load after it. Old answers are
//! kept: while the store is away they are answered, marked stale. Hits take no lock.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use actix_web::http::header::HeaderValue;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use shared::runtime::breaker::Breaker;
use shared::store::StoreError;

use crate::read::cache::{self, CacheLimits, CacheOutcome};
use crate::read::single_flight::SingleFlight;
use crate::store_breaker::guarded;

/// Bytes of an entry beside its key and its body: the structures, its tag among them.
const ENTRY_BYTES: usize = 600;

/// Margin of the clean-up: unused tags are looked for when there are twice as many tags as were in use, and
/// this many more.
const TAGS_SPARE: usize = 64;

/// Key of a cached answer.
pub trait ReadKey: Clone + Eq + Hash + Send + Sync + 'static {
    /// Name that events carry when the answer may have changed.
    fn tag(&self) -> &str;

    /// Bytes that the key points to.
    fn heap_bytes(&self) -> usize;
}

/// One answer, ready to be sent.
#[derive(Debug)]
pub struct Answer {
    pub body: Bytes,
    /// Strong ETag: a hash of the body.
    pub etag: HeaderValue,
    /// Time at which the store was asked.
    pub read_at: Instant,
    expires_at: Instant,
    stamp: Stamp,
}

/// Number of changes that events had reported for a tag when a load began, beside the number of today.
#[derive(Debug)]
struct Stamp {
    changes: u64,
    changes_now: Arc<AtomicU64>,
}

pub struct ReadCache<K> {
    entries: moka::sync::Cache<K, Arc<Answer>>,
    loads: Arc<SingleFlight<K, Stamp, Arc<Answer>>>,
    tags: Mutex<Tags>,
    limits: CacheLimits,
    breaker: Arc<Breaker>,
}

/// Numbers of changes by tag.
struct Tags {
    tags: HashMap<Box<str>, Arc<AtomicU64>>,
    tags_max: usize,
}

impl<K: ReadKey> ReadCache<K> {
    /// Makes an empty cache. Call it on the runtime on which loads shall run.
    pub fn new(breaker: Arc<Breaker>, limits: CacheLimits) -> Arc<Self> {
        let weigh = |key: &K, answer: &Arc<Answer>| {
            size_of::<K>() + key.heap_bytes() + answer.body.len() + ENTRY_BYTES
        };
        let entries = cache::bounded(limits.bytes_max, limits.stale_max, weigh);
        let tags = Mutex::new(Tags { tags: HashMap::new(), tags_max: TAGS_SPARE });
        Arc::new(Self { entries, loads: SingleFlight::new(), tags, limits, breaker })
    }

    /// Answer of a key; `load` computes its body from the store.
    pub async fn get<L>(
        self: &Arc<Self>,
        key: &K,
        load: impl Fn() -> L,
    ) -> Result<(Arc<Answer>, CacheOutcome), StoreError>
    where
        L: Future<Output = Result<Vec<u8>, StoreError>> + Send + 'static,
    {
        if let Some(answer) = self.entries.get(key)
            && answer.stamp.is_current()
            && Instant::now() < answer.expires_at
        {
            return Ok((answer, CacheOutcome::Hit));
        }
        let begin = |key: K| {
            let changes_now = self.lock().tag(key.tag());
            let stamp = Stamp { changes: changes_now.load(Ordering::Acquire), changes_now };
            (stamp, self.clone().run_load(key, load()))
        };
        match self.loads.load(key.clone(), Stamp::is_current, begin).await {
            Ok(answer) => Ok((answer, CacheOutcome::Miss)),
            Err(error) => {
                let is_usable = |answer: &Arc<Answer>| answer.read_at.elapsed() < self.limits.stale_max;
                let old = self.entries.get(key).filter(is_usable);
                old.map(|answer| (answer, CacheOutcome::Stale)).ok_or(error)
            }
        }
    }

    /// Makes the answers with these tags old, because an event named the tags.
    pub fn changed<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let tags = self.lock();
        for changes in names.filter_map(|name| tags.tags.get(name)) {
            changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Makes every answer old, because events may have been missed.
    pub fn invalidate_all(&self) {
        for changes in self.lock().tags.values() {
            changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Computes an answer; the closure keeps it.
    async fn run_load(
        self: Arc<Self>,
        key: K,
        load: impl Future<Output = Result<Vec<u8>, StoreError>>,
    ) -> impl FnOnce(Stamp) -> Result<Arc<Answer>, StoreError> {
        let read_at = Instant::now();
        let body = guarded(&self.breaker, load).await;
        let loaded = body.map(|body| (etag_of(&body), cache::expiry(self.limits.ttl), body.into()));
        move |stamp| {
            let (etag, expires_at, body) = loaded?;
            let answer = Arc::new(Answer { body, etag, read_at, expires_at, stamp });
            self.entries.insert(key, answer.clone());
            Ok(answer)
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tags> {
        self.tags.lock().expect("no code panics while it holds this lock")
    }
}

impl Tags {
    /// Changes of a tag. Tags that neither a load nor an answer has are dropped from time to time.
    fn tag(&mut self, name: &str) -> Arc<AtomicU64> {
        if self.tags.len() >= self.tags_max {
            self.tags.retain(|_, tag| Arc::strong_count(tag) > 1);
            self.tags_max = self.tags.len() * 2 + TAGS_SPARE;
        }
        self.tags.entry(name.into()).or_default().clone()
    }
}

impl Stamp {
    /// Returns true when nothing is known to have changed since.
    fn is_current(&self) -> bool {
        self.changes == self.changes_now.load(Ordering::Acquire)
    }
}

/// ETag of a body: the first half of its SHA-256, quoted, the same at every replica.
fn etag_of(body: &[u8]) -> HeaderValue {
    let digest = Sha256::digest(body);
    let half = u128::from_be_bytes(digest[..16].try_into().expect("a digest has 32 bytes"));
    HeaderValue::from_str(&format!("\"{half:032x}\"")).expect("hexadecimal digits are visible")
}

#[cfg(test)]
mod tests;
