//! Reads of documents, answered from memory.
//!
//! A document does not change, it can only be deleted. Events drop deleted documents; an entry counts
//! as fresh for a short time only, should an event get lost. Only documents that are there are kept.
//! While the store is away an old entry is answered, marked stale.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shared::model::id::ItemKey;
use shared::runtime::breaker::Breaker;
use shared::store::{Document, Reads, StoreError, Stored};
use uuid::Uuid;

use crate::read::cache::{self, CacheLimits, CacheOutcome};
use crate::read::single_flight::SingleFlight;
use crate::store_breaker::guarded;

/// Bytes of an entry beside its data.
const ENTRY_BYTES: usize = 500;

/// A cached document.
#[derive(Debug)]
pub struct CachedDocument {
    pub collection: Arc<str>,
    pub document: Document,
    /// Time at which the store said so.
    pub read_at: Instant,
    /// Number of losses when the load began.
    losses: u64,
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
    /// Loads under way, each with the number of losses when it began. Their lock is held by everything that
    /// writes to `entries` or to the counts of losses.
    loads: Arc<SingleFlight<(Arc<str>, ItemKey), u64, DocumentLookup>>,
    /// Number of losses, deletions and gaps: a document that was read before may be deleted.
    losses: AtomicU64,
    /// Number of losses at the last gap: deletions may have been missed, so entries from before are old.
    losses_at_gap: AtomicU64,
    ttl: Duration,
    store: Arc<dyn Reads>,
    breaker: Arc<Breaker>,
}

impl DocumentCache {
    /// Makes an empty cache. Call it on the runtime on which loads shall run.
    pub fn new(store: Arc<dyn Reads>, breaker: Arc<Breaker>, limits: CacheLimits) -> Arc<Self> {
        let weigh = |_: &Uuid, cached: &Arc<CachedDocument>| cached.document.data.len() + ENTRY_BYTES;
        let entries = cache::bounded(limits.bytes_max, limits.stale_max, weigh);
        let (losses, losses_at_gap) = (AtomicU64::new(0), AtomicU64::new(0));
        let loads = SingleFlight::new();
        Arc::new(Self { entries, loads, losses, losses_at_gap, ttl: limits.ttl, store, breaker })
    }

    /// Reads one document.
    pub async fn get(self: &Arc<Self>, collection: &str, id: ItemKey) -> Result<DocumentLookup, StoreError> {
        if let Some(cached) = self.cached(collection, id)
            && cached.losses >= self.losses_at_gap.load(Ordering::Acquire)
            && cached.read_at.elapsed() < self.ttl
        {
            return Ok(DocumentLookup::Document(cached, CacheOutcome::Hit));
        }
        let begin = |(collection, id): (Arc<str>, ItemKey)| {
            let cache = self.clone();
            let load = async move {
                let read = guarded(&cache.breaker, cache.store.document(&collection, id)).await;
                move |losses| Ok(cache.keep(collection, id, read?, losses))
            };
            (self.losses(), load)
        };
        let (key, mut has_joined) = ((Arc::<str>::from(collection), id), false);
        let is_current = |losses: &u64| {
            has_joined = *losses == self.losses();
            has_joined
        };
        let mut loaded = self.loads.load(key.clone(), is_current, begin).await;
        // No event reports new documents: this one may have been stored after the load had begun.
        if has_joined && matches!(loaded, Ok(DocumentLookup::Nothing)) {
            loaded = self.loads.load(key, |_| true, begin).await;
        }
        // The entry is looked up again: the document may have been deleted meanwhile.
        loaded.or_else(|error| {
            let old = self.cached(collection, id).ok_or(error)?;
            Ok(DocumentLookup::Document(old, CacheOutcome::Stale))
        })
    }

    /// Drops documents that were deleted.
    pub fn forget(&self, deleted: impl IntoIterator<Item = ItemKey>) {
        let _held = self.loads.lock();
        for id in deleted {
            self.losses.fetch_add(1, Ordering::AcqRel);
            self.entries.invalidate(&id.as_uuid());
        }
    }

    /// Makes every entry old, because deletions may have been missed: it must be read again before it counts
    /// as fresh.
    pub fn invalidate_all(&self) {
        let _held = self.loads.lock();
        let losses = self.losses.fetch_add(1, Ordering::AcqRel) + 1;
        self.losses_at_gap.store(losses, Ordering::Release);
    }

    /// Caches the result of a load. Callers hold the lock.
    fn keep(&self, collection: Arc<str>, id: ItemKey, read: Option<Stored>, losses: u64) -> DocumentLookup {
        let Some(Stored::Document(document)) = read else {
            if self.cached(&collection, id).is_some() {
                self.entries.invalidate(&id.as_uuid());
            }
            return if read.is_some() { DocumentLookup::Deleted } else { DocumentLookup::Nothing };
        };
        let cached = Arc::new(CachedDocument { collection, document, read_at: Instant::now(), losses });
        // A document that was read before a deletion must not be kept after it.
        if losses == self.losses() {
            self.entries.insert(id.as_uuid(), cached.clone());
        }
        DocumentLookup::Document(cached, CacheOutcome::Miss)
    }

    fn cached(&self, collection: &str, id: ItemKey) -> Option<Arc<CachedDocument>> {
        self.entries.get(&id.as_uuid()).filter(|cached| *cached.collection == *collection)
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
