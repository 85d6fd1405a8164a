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
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use actix_web::http::header::HeaderValue;
use bytes::Bytes;
use rand::Rng;
use sha2::{Digest, Sha256};
use shared::runtime::breaker::Breaker;
use shared::store::StoreError;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::read::counters::CacheOutcome;
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

#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    pub bytes_max: u64,
    pub ttl: Duration,
    pub stale_max: Duration,
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

/// Changes that were known when a load began.
#[derive(Clone, Debug)]
struct Stamp {
    tag: Arc<Tag>,
    changes: u64,
    generation: u64,
}

/// Number of changes that events reported for one tag. Kept by the loads and answers that have the tag.
#[derive(Debug, Default)]
struct Tag(AtomicU64);

type LoadedAnswer = Result<Arc<Answer>, StoreError>;

pub struct ReadCache<K> {
    entries: moka::sync::Cache<K, Arc<Answer>>,
    loads: Mutex<Loads<K>>,
    /// Grows when events may have been missed; answers of an earlier generation are old.
    generation: AtomicU64,
    /// Number of loads that have begun.
    begun: AtomicU64,
    limits: ReadLimits,
    breaker: Arc<Breaker>,
    /// Runtime of the loads. They run to their end, even when the request that asked first has gone.
    runtime: Handle,
}

struct Loads<K> {
    by_key: HashMap<K, InFlightLoad>,
    tags: HashMap<Box<str>, Weak<Tag>>,
    tags_max: usize,
}

/// A load under way.
struct InFlightLoad {
    number: u64,
    stamp: Stamp,
    result: watch::Receiver<Option<LoadedAnswer>>,
}

/// Load that a request waits for.
enum Joined {
    /// A load with a result that the request takes.
    Load(watch::Receiver<Option<LoadedAnswer>>),
    /// A load that may have read too early: the request waits for its end, then asks again.
    TooEarly(watch::Receiver<Option<LoadedAnswer>>),
}

impl<K: ReadKey> ReadCache<K> {
    /// Makes an empty cache. Call it on the runtime on which loads shall run.
    pub fn new(breaker: Arc<Breaker>, limits: ReadLimits) -> Arc<Self> {
        let weigh = |key: &K, answer: &Arc<Answer>| {
            let bytes = size_of::<K>() + key.heap_bytes() + answer.body.len() + ENTRY_BYTES;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let entries = moka::sync::Cache::builder()
            .max_capacity(limits.bytes_max)
            .weigher(weigh)
            .time_to_live(limits.stale_max)
            .build();
        let loads = Loads { by_key: HashMap::new(), tags: HashMap::new(), tags_max: TAGS_SPARE };
        Arc::new(Self {
            entries,
            loads: Mutex::new(loads),
            generation: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            limits,
            breaker,
            runtime: Handle::current(),
        })
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
            && self.is_fresh(&answer)
        {
            return Ok((answer, CacheOutcome::Hit));
        }
        match self.load(key, load).await {
            Ok(answer) => Ok((answer, CacheOutcome::Miss)),
            Err(error) => match self.entries.get(key) {
                Some(answer) if answer.read_at.elapsed() < self.limits.stale_max => {
                    Ok((answer, CacheOutcome::Stale))
                }
                _ => Err(error),
            },
        }
    }

    /// Makes the answers with these tags old, because an event named the tags.
    pub fn changed<'a>(&self, tags: impl Iterator<Item = &'a str>) {
        let loads = self.lock();
        for tag in tags {
            if let Some(tag) = loads.tags.get(tag).and_then(Weak::upgrade) {
                tag.0.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Makes every answer old, because events may have been missed.
    pub fn invalidate_all(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn is_fresh(&self, answer: &Answer) -> bool {
        self.is_current(&answer.stamp) && Instant::now() < answer.expires_at
    }

    /// Returns true when nothing is known to have changed since the stamp.
    fn is_current(&self, stamp: &Stamp) -> bool {
        stamp.generation == self.generation() && stamp.changes == stamp.tag.changes()
    }

    async fn load<L>(self: &Arc<Self>, key: &K, load: impl Fn() -> L) -> LoadedAnswer
    where
        L: Future<Output = Result<Vec<u8>, StoreError>> + Send + 'static,
    {
        let gone = || StoreError::Unavailable("the load was abandoned".into());
        let arrived = self.begun.load(Ordering::Acquire);
        loop {
            match self.join(key, arrived, &load) {
                Joined::Load(mut result) => {
                    let loaded = result.wait_for(Option::is_some).await;
                    return loaded.map_err(|_| gone())?.clone().ok_or_else(gone)?;
                }
                // The end counts, not the result.
                Joined::TooEarly(mut result) => drop(result.wait_for(Option::is_some).await),
            }
        }
    }

    /// Joins the load of this key or starts it. A load that began after the caller `arrived` is good enough
    /// for the caller, even when something has changed since: so no caller waits for more than two loads.
    fn join<L>(self: &Arc<Self>, key: &K, arrived: u64, load: &impl Fn() -> L) -> Joined
    where
        L: Future<Output = Result<Vec<u8>, StoreError>> + Send + 'static,
    {
        let mut loads = self.lock();
        // A load that has lost its sender never ends: it is started anew.
        if let Some(in_flight) =
            loads.by_key.get(key).filter(|in_flight| in_flight.result.has_changed().is_ok())
        {
            let result = in_flight.result.clone();
            let is_good = in_flight.number > arrived || self.is_current(&in_flight.stamp);
            return if is_good { Joined::Load(result) } else { Joined::TooEarly(result) };
        }
        let tag = loads.tag(key.tag());
        let stamp = Stamp { changes: tag.changes(), tag, generation: self.generation() };
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let (sender, result) = watch::channel(None);
        let in_flight = InFlightLoad { number, stamp: stamp.clone(), result: result.clone() };
        loads.by_key.insert(key.clone(), in_flight);
        self.runtime.spawn(self.clone().run_load(key.clone(), stamp, load(), sender));
        Joined::Load(result)
    }

    async fn run_load(
        self: Arc<Self>,
        key: K,
        stamp: Stamp,
        load: impl Future<Output = Result<Vec<u8>, StoreError>>,
        sender: watch::Sender<Option<LoadedAnswer>>,
    ) {
        let read_at = Instant::now();
        let loaded = guarded(&self.breaker, load).await.map(|body| {
            // Jitter keeps answers that were loaded together from expiring together.
            let ttl = self.limits.ttl.mul_f64(rand::rng().random_range(0.8..=1.0));
            Arc::new(Answer {
                etag: etag_of(&body),
                body: body.into(),
                read_at,
                expires_at: Instant::now() + ttl,
                stamp,
            })
        });
        {
            let mut loads = self.lock();
            if let Ok(answer) = &loaded {
                self.entries.insert(key.clone(), answer.clone());
            }
            loads.by_key.remove(&key);
        }
        sender.send_replace(Some(loaded));
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Loads<K>> {
        self.loads.lock().expect("no code panics while it holds this lock")
    }
}

impl<K> Loads<K> {
    /// Tag of this name, made when nothing that is kept has it.
    fn tag(&mut self, name: &str) -> Arc<Tag> {
        if let Some(tag) = self.tags.get(name).and_then(Weak::upgrade) {
            return tag;
        }
        if self.tags.len() >= self.tags_max {
            self.tags.retain(|_, tag| tag.strong_count() > 0);
            self.tags_max = self.tags.len() * 2 + TAGS_SPARE;
        }
        let tag = Arc::new(Tag::default());
        self.tags.insert(name.into(), Arc::downgrade(&tag));
        tag
    }
}

impl Tag {
    fn changes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
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
