//! Reads of documents, answered from memory.
//!
//! A document does not change, it can only be deleted. Events drop deleted documents; an entry counts
//! as fresh for a short time only, should an event get lost. Only documents that are there are kept.
//! While the store is away an old entry is answered, marked stale.
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use shared::model::id::ItemKey;
use shared::runtime::breaker::Breaker;
use shared::store::{Document, Store, StoreError, Stored};
use uuid::Uuid;

use crate::read::counters::{CacheLimits, CacheOutcome};
use crate::store_breaker::guarded;

/// Bytes of an entry beside its data.
const ENTRY_BYTES: usize = 500;

/// A cached document.
#[derive(Debug)]
pub struct CachedDocument {
    pub collection: Box<str>,
    pub document: Document,
    /// Time at which the store said so.
    pub read_at: Instant,
    generation: u64,
}

/// Result of a read.
#[derive(Clone, Debug)]
pub enum DocumentLookup {
    Document(Arc<CachedDocument>, CacheOutcome),
    Deleted,
    /// The document has not been stored, or not in this collection.
    Nothing,
}

pub struct DocumentCache {
    entries: moka::sync::Cache<Uuid, Arc<CachedDocument>>,
    /// Counts of losses. The lock is held by everything that writes to `entries`.
    losses: Mutex<Losses>,
    ttl: Duration,
    store: Arc<dyn Store>,
    breaker: Arc<Breaker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Losses {
    /// Number of deletions that were reported: a document that was read before may be deleted.
    deletions: u64,
    /// Grows when deletions may have been missed; entries of an earlier generation are old.
    generation: u64,
}

impl DocumentCache {
    pub fn new(store: Arc<dyn Store>, breaker: Arc<Breaker>, limits: CacheLimits) -> Arc<Self> {
        let weigh = |_: &Uuid, cached: &Arc<CachedDocument>| {
            u32::try_from(cached.document.data.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        let entries = moka::sync::Cache::builder()
            .max_capacity(limits.bytes_max)
            .weigher(weigh)
            .time_to_live(limits.stale_max)
            .build();
        let losses = Mutex::new(Losses { deletions: 0, generation: 0 });
        Arc::new(Self { entries, losses, ttl: limits.ttl, store, breaker })
    }

    /// Reads one document.
    pub async fn get(&self, collection: &str, id: ItemKey) -> Result<DocumentLookup, StoreError> {
        let key = id.as_uuid();
        let losses = *self.lock();
        let cached = self.entries.get(&key).filter(|cached| *cached.collection == *collection);
        if let Some(cached) = &cached
            && cached.generation == losses.generation
            && cached.read_at.elapsed() < self.ttl
        {
            return Ok(DocumentLookup::Document(cached.clone(), CacheOutcome::Hit));
        }
        match guarded(&self.breaker, self.store.document(collection, id)).await {
            Ok(Some(Stored::Document(document))) => {
                let generation = losses.generation;
                let (collection, read_at) = (collection.into(), Instant::now());
                let cached = Arc::new(CachedDocument { collection, document, read_at, generation });
                // A document that was read before a deletion must not be kept after it.
                let held = self.lock();
                if *held == losses {
                    self.entries.insert(key, cached.clone());
                }
                Ok(DocumentLookup::Document(cached, CacheOutcome::Miss))
            }
            Ok(stored) => {
                if cached.is_some() {
                    self.forget([id]);
                }
                Ok(if stored.is_some() { DocumentLookup::Deleted } else { DocumentLookup::Nothing })
            }
            // The entry is looked up again: the document may have been deleted meanwhile.
            Err(error) => match cached.and_then(|_| self.entries.get(&key)) {
                Some(cached) => Ok(DocumentLookup::Document(cached, CacheOutcome::Stale)),
                None => Err(error),
            },
        }
    }

    /// Drops documents that were deleted.
    pub fn forget(&self, deleted: impl IntoIterator<Item = ItemKey>) {
        let mut losses = self.lock();
        for id in deleted {
            losses.deletions += 1;
            self.entries.invalidate(&id.as_uuid());
        }
    }

    /// Makes every entry old, because deletions may have been missed: it must be read again before it counts
    /// as fresh.
    pub fn invalidate_all(&self) {
        self.lock().generation += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests;
