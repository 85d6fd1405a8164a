//! Definitions of the collections, as far as this process knows them.
//!
//! A document is checked against the definition that is known here, so that a client learns of a violation
//! at once. A definition is read again after a second, in the background. Three kinds of documents wait for
//! the store, and only briefly: the first of a collection, the first after an event said that a definition
//! was replaced, and one that is about to be refused. Nothing here is needed to accept a document: where a
//! definition is not known, or not any more, the consumer checks.
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use shared::event::{Event, Events};
use shared::model::collection::{Checker, Collection, Definition};
use shared::runtime::breaker::Breaker;
use shared::store::{Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::watch;

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
    /// Work under way. The lock is held by everything that writes to `entries`.
    work: Mutex<Work>,
    store: Arc<dyn Store>,
    breaker: Arc<Breaker>,
    /// Runtime of the loads. They run to their end, even when the request that asked first has gone.
    runtime: Handle,
}

/// Work under way, by collection.
#[derive(Default)]
struct Work {
    loads: HashMap<Box<str>, DefinitionLoad>,
    indexing: HashSet<Box<str>>,
}

type LoadReceiver = watch::Receiver<Option<LoadedDefinition>>;

/// A load of a definition that is under way.
struct DefinitionLoad {
    /// The same as in [`KnownDefinition`].
    changes: u64,
    result: LoadReceiver,
    /// The load that begins when this one ends, for callers that came after this one had begun.
    next: Option<(watch::Sender<Option<LoadedDefinition>>, LoadReceiver)>,
}

impl Definitions {
    /// Makes an empty cache. Call it on the runtime on which loads shall run.
    pub fn new(store: Arc<dyn Store>, breaker: Arc<Breaker>, events: Arc<dyn Events>) -> Arc<Self> {
        let weigh = |name: &Arc<str>, known: &Arc<KnownDefinition>| {
            let schema = known.collection.definition.schema.as_ref().map_or(0, String::len);
            let compiled = known.checker.as_ref().map_or(0, |checker| checker.weight());
            u32::try_from(name.len() + schema + compiled).unwrap_or(u32::MAX)
        };
        let entries = moka::sync::Cache::builder()
            .max_capacity(BYTES_MAX)
            .weigher(weigh)
            .time_to_live(KEPT_FOR)
            .build();
        let (changes, work, runtime) = (AtomicU64::new(0), Mutex::default(), Handle::current());
        Arc::new(Self { entries, changes, events, work, store, breaker, runtime })
    }

    /// Checker of a document before it is accepted; `None` when it is not known soon enough.
    pub async fn checker(self: &Arc<Self>, name: &str) -> Option<Arc<Checker>> {
        let known = self.entries.get(name);
        // A definition that may have been replaced is no better than an old one.
        let age = known.as_ref().filter(|known| self.is_trusted(known)).map(|known| known.read_at.elapsed());
        if age.is_some_and(|age| age < FRESH_FOR) {
            return known?.checker.clone();
        }
        let loaded = self.load(name, false);
        if age.is_some_and(|age| age < USED_WHILE_ASKING_FOR) {
            return known?.checker.clone();
        }
        match tokio::time::timeout(WAIT_MAX, finished(loaded)).await {
            Ok(Ok(loaded)) => loaded.checker.clone(),
            _ => known?.checker.clone(),
        }
    }

    /// Definition as it is now, or was a second ago.
    pub async fn current(self: &Arc<Self>, name: &str) -> LoadedDefinition {
        let is_fresh =
            |known: &Arc<KnownDefinition>| known.read_at.elapsed() < FRESH_FOR && self.is_trusted(known);
        match self.entries.get(name).filter(is_fresh) {
            Some(known) => Ok(known),
            None => finished(self.load(name, false)).await,
        }
    }

    /// Checker of another version than `version`, when the store has one at this moment; asked before a
    /// document is refused. All calls meanwhile share one load.
    pub async fn newer_checker(self: &Arc<Self>, name: &str, version: i64) -> Option<Arc<Checker>> {
        let loaded = self.load(name, true);
        let known = tokio::time::timeout(WAIT_MAX, finished(loaded)).await.ok()?.ok()?;
        known.checker.clone().filter(|checker| checker.version != version)
    }

    /// Definition from a read that begins after this call.
    pub async fn reread(self: &Arc<Self>, name: &str) -> LoadedDefinition {
        finished(self.load(name, true)).await
    }

    /// Makes each definition be read again before it is used, because definitions may have been replaced.
    pub fn invalidate_all(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn is_trusted(&self, known: &KnownDefinition) -> bool {
        known.changes == self.changes.load(Ordering::Acquire)
    }

    /// Reads the definition as it is now.
    pub async fn read(self: &Arc<Self>, name: &str) -> LoadedDefinition {
        let changes = self.changes.load(Ordering::Acquire);
        let collection = guarded(&self.breaker, self.store.collection(name)).await?;
        Ok(self.apply_update(name, collection, changes).await)
    }

    /// Replaces a definition and indexes the documents that are there. Goes on when the caller is gone.
    pub async fn define(self: &Arc<Self>, name: &str, definition: Definition) -> LoadedDefinition {
        let (definitions, name) = (self.clone(), Box::<str>::from(name));
        let work = async move {
            let store = &definitions.store;
            let collection = guarded(&definitions.breaker, store.define(&name, definition)).await?;
            let changes = definitions.changes.load(Ordering::Acquire);
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
        if self.lock().indexing.insert(name.into()) {
            let (definitions, name) = (self.clone(), Box::<str>::from(name));
            self.runtime.spawn(async move {
                if let Err(error) = definitions.index(&name).await {
                    tracing::debug!(%error, "indexing of a collection stopped");
                }
                definitions.lock().indexing.remove(&name);
            });
        }
    }

    async fn index(&self, name: &str) -> Result<(), StoreError> {
        while guarded(&self.breaker, self.store.index_page(name)).await? {}
        Ok(())
    }

    /// Joins the load of this definition, or starts it. A load that began before the last change, or with
    /// `from_now` before this call, does not count: then the caller joins the next load, which all calls
    /// meanwhile share.
    fn load(self: &Arc<Self>, name: &str, from_now: bool) -> LoadReceiver {
        let mut work = self.lock();
        let changes = self.changes.load(Ordering::Acquire);
        // A load that has lost its sender never ends: it is started anew.
        if let Some(load) = work.loads.get_mut(name).filter(|load| load.result.has_changed().is_ok()) {
            if load.changes == changes && !from_now {
                return load.result.clone();
            }
            return load.next.get_or_insert_with(|| watch::channel(None)).1.clone();
        }
        let (sender, result) = watch::channel(None);
        work.loads.insert(name.into(), DefinitionLoad { changes, result: result.clone(), next: None });
        self.runtime.spawn(self.clone().read_all(name.into(), sender));
        result
    }

    /// Reads, and reads again as long as the next load was asked for meanwhile.
    async fn read_all(self: Arc<Self>, name: Box<str>, mut sender: watch::Sender<Option<LoadedDefinition>>) {
        loop {
            let loaded = self.read(&name).await;
            let next = {
                let mut work = self.lock();
                let next = work.loads.get_mut(&name).and_then(|load| load.next.take());
                match (&next, work.loads.get_mut(&name)) {
                    (Some((_, result)), Some(load)) => {
                        load.changes = self.changes.load(Ordering::Acquire);
                        load.result = result.clone();
                    }
                    _ => drop(work.loads.remove(&name)),
                }
                next
            };
            sender.send_replace(Some(loaded));
            let Some((next, _)) = next else { return };
            sender = next;
        }
    }

    /// Keeps the newer version: a read may be overtaken by a change of this process.
    async fn apply_update(&self, name: &str, collection: Collection, changes: u64) -> Arc<KnownDefinition> {
        let before = self.entries.get(name);
        let same = |known: &&Arc<KnownDefinition>| known.collection.version == collection.version;
        let checker = match before.as_ref().filter(same) {
            Some(known) => known.checker.clone(),
            None => usable(name, &collection).await,
        };
        let known = Arc::new(KnownDefinition { collection, checker, read_at: Instant::now(), changes });
        let _held = self.lock();
        match self.entries.get(name) {
            Some(newer) if newer.collection.version > known.collection.version => newer,
            _ => {
                self.entries.insert(name.into(), known.clone());
                known
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().expect("no code panics while it holds this lock")
    }
}

/// Checker of a definition; `None` when this build cannot use the definition: the consumer decides then.
async fn usable(name: &str, collection: &Collection) -> Option<Arc<Checker>> {
    let checker = Checker::compiled(name, collection.clone()).await;
    checker.unusable().is_none().then_some(checker)
}

async fn finished(mut load: watch::Receiver<Option<LoadedDefinition>>) -> LoadedDefinition {
    let finished = load.wait_for(Option::is_some).await.map_err(|_| abandoned())?;
    finished.clone().ok_or_else(abandoned)?
}

fn abandoned() -> StoreError {
    StoreError::Unavailable("the load was abandoned".into())
}

#[cfg(test)]
mod tests;
