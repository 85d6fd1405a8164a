//! Definitions of the collections, as far as this process knows them.
//!
//! A document is checked against the definition that is known here, so that a client learns of a violation
//! at once. A definition is read again after a second, in the background. Three kinds of documents wait for
//! the store, and only briefly: the first of a collection, the first after an event said that a definition
//! was replaced, and one that is about to be refused. Nothing here is needed to accept a document: where a
//! definition is not known, or not any more, the consumer checks.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shared::event::{Event, Events};
use shared::model::collection::{Checker, Collection, Definition};
use shared::runtime::breaker::Breaker;
use shared::store::{Define, StoreError};
use tokio::runtime::Handle;

use crate::read::cache;
use crate::read::single_flight::{SingleFlight, abandoned};
use crate::store_breaker::guarded;

/// Time for which a definition is used without asking the store again.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// Age up to which a definition is used while the store is asked; an older one is waited for.
const USED_WHILE_ASKING_FOR: Duration = Duration::from_secs(10);

/// Longest wait for the store while a document is accepted.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// Memory for definitions in bytes, as far as their sizes are known.
const BYTES_MAX: u64 = 32 << 20;

/// Time after which entries that were not replaced are dropped.
const KEPT_FOR: Duration = Duration::from_mins(10);

/// A definition with its checker of documents.
#[derive(Debug)]
pub struct KnownDefinition {
    pub collection: Collection,
    /// `None` when this build cannot use the definition.
    pub checker: Option<Arc<Checker>>,
    read_at: Instant,
    /// Number of events that said that definitions were replaced, when the read began.
    changes: u64,
}

type LoadedDefinition = Result<Arc<KnownDefinition>, StoreError>;

pub struct Definitions {
    entries: moka::sync::Cache<Arc<str>, Arc<KnownDefinition>>,
    /// Number of times that a definition was replaced somewhere, or may have been.
    changes: AtomicU64,
    events: Arc<dyn Events>,
    /// Loads under way, each with the number of changes when it began. Their lock is held by everything that
    /// writes to `entries`.
    loads: Arc<SingleFlight<Arc<str>, u64, Arc<KnownDefinition>>>,
    /// Indexing under way that was begun before.
    resumed: Arc<SingleFlight<Arc<str>, (), ()>>,
    store: Arc<dyn Define>,
    breaker: Arc<Breaker>,
    runtime: Handle,
}

impl Definitions {
    /// Makes an empty cache. Call it on the runtime on which loads shall run.
    pub fn new(store: Arc<dyn Define>, breaker: Arc<Breaker>, events: Arc<dyn Events>) -> Arc<Self> {
        let weigh = |name: &Arc<str>, known: &Arc<KnownDefinition>| {
            let schema = known.collection.definition.schema.as_ref().map_or(0, String::len);
            name.len() + schema + known.checker.as_ref().map_or(0, |checker| checker.weight())
        };
        let entries = cache::bounded(BYTES_MAX, KEPT_FOR, weigh);
        let (changes, runtime) = (AtomicU64::new(0), Handle::current());
        let (loads, resumed) = (SingleFlight::new(), SingleFlight::new());
        Arc::new(Self { entries, changes, events, loads, resumed, store, breaker, runtime })
    }

    /// Checker of a document before it is accepted; `None` when it is not known soon enough.
    pub async fn checker(self: &Arc<Self>, name: &str) -> Option<Arc<Checker>> {
        let known = self.entries.get(name);
        let age = known.as_ref().and_then(|known| self.age(known)).unwrap_or(Duration::MAX);
        if age >= FRESH_FOR {
            let loaded = self.load(name, false);
            if age >= USED_WHILE_ASKING_FOR
                && let Ok(Ok(loaded)) = tokio::time::timeout(WAIT_MAX, loaded).await
            {
                return loaded.checker.clone();
            }
        }
        known?.checker.clone()
    }

    /// Definition as it is now, or was a second ago.
    pub async fn current(self: &Arc<Self>, name: &str) -> LoadedDefinition {
        let is_fresh = |known: &Arc<KnownDefinition>| self.age(known).is_some_and(|age| age < FRESH_FOR);
        match self.entries.get(name).filter(is_fresh) {
            Some(known) => Ok(known),
            None => self.load(name, false).await,
        }
    }

    /// Checker of another version than `version`, when the store has one at this moment; asked before a
    /// document is refused. All calls meanwhile share one load.
    pub async fn newer_checker(self: &Arc<Self>, name: &str, version: i64) -> Option<Arc<Checker>> {
        let known = tokio::time::timeout(WAIT_MAX, self.reread(name)).await.ok()?.ok()?;
        known.checker.clone().filter(|checker| checker.version != version)
    }

    /// Definition from a read that begins after this call.
    pub async fn reread(self: &Arc<Self>, name: &str) -> LoadedDefinition {
        self.load(name, true).await
    }

    /// Makes each definition be read again before it is used, because definitions may have been replaced.
    pub fn invalidate_all(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Age of a definition; `None` when it may have been replaced, which makes it no better than an old one.
    fn age(&self, known: &KnownDefinition) -> Option<Duration> {
        (known.changes == self.changes()).then(|| known.read_at.elapsed())
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Reads the definition as it is now.
    pub async fn read(self: &Arc<Self>, name: &str) -> LoadedDefinition {
        let changes = self.changes();
        let collection = guarded(&self.breaker, self.store.collection(name)).await?;
        Ok(self.apply_update(name, collection, changes).await)
    }

    /// Replaces a definition and indexes the documents that are there. Goes on when the caller is gone.
    pub async fn define(self: &Arc<Self>, name: &str, definition: Definition) -> LoadedDefinition {
        let (definitions, name) = (self.clone(), Arc::<str>::from(name));
        let work = async move {
            let store = &definitions.store;
            let collection = guarded(&definitions.breaker, store.define(&name, definition)).await?;
            let changes = definitions.changes();
            definitions.apply_update(&name, collection, changes).await;
            definitions.publish_defined(&name);
            definitions.index(&name).await?;
            // The other replicas do not know yet that it is indexed.
            definitions.publish_defined(&name);
            definitions.read(&name).await
        };
        self.runtime.spawn(work).await.unwrap_or_else(|_| Err(abandoned()))
    }

    fn publish_defined(&self, name: &str) {
        self.events.publish(Event::defined(rand::random(), name));
    }

    /// Goes on with an indexing that was begun, here or elsewhere, and did not end.
    pub fn resume_indexing(self: &Arc<Self>, name: &str) {
        let begin = |name: Arc<str>| {
            let definitions = self.clone();
            let work = async move {
                let log = |error: &StoreError| tracing::debug!(%error, "indexing of a collection stopped");
                let ended = definitions.index(&name).await.inspect_err(log);
                move |()| ended
            };
            ((), work)
        };
        drop(self.resumed.load(name.into(), |()| true, begin));
    }

    async fn index(&self, name: &str) -> Result<(), StoreError> {
        while guarded(&self.breaker, self.store.index_page(name)).await? {}
        Ok(())
    }

    /// Joins the load of this definition, or starts it. A load that began before the last change, or with
    /// `from_now` before this call, does not count: then the caller joins the next load.
    fn load(self: &Arc<Self>, name: &str, from_now: bool) -> impl Future<Output = LoadedDefinition> {
        let is_current = move |changes: &u64| !from_now && *changes == self.changes();
        self.loads.load(name.into(), is_current, move |name: Arc<str>| {
            let definitions = self.clone();
            let load = async move {
                let loaded = definitions.read(&name).await;
                move |_| loaded
            };
            (self.changes(), load)
        })
    }

    /// Keeps the newer version: a read may be overtaken by a change of this process.
    async fn apply_update(&self, name: &str, collection: Collection, changes: u64) -> Arc<KnownDefinition> {
        let is_same = |known: &Arc<KnownDefinition>| known.collection.version == collection.version;
        let checker = if let Some(known) = self.entries.get(name).filter(is_same) {
            known.checker.clone()
        } else {
            let checker = Checker::compiled(name, collection.clone()).await;
            checker.unusable().is_none().then_some(checker)
        };
        let known = Arc::new(KnownDefinition { collection, checker, read_at: Instant::now(), changes });
        let _held = self.loads.lock();
        let is_newer = |kept: &Arc<KnownDefinition>| kept.collection.version > known.collection.version;
        if let Some(newer) = self.entries.get(name).filter(is_newer) {
            return newer;
        }
        self.entries.insert(name.into(), known.clone());
        known
    }
}

#[cfg(test)]
mod tests;
