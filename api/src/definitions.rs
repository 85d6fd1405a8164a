//! What this process knows of the collections' definitions.
//!
//! A document is checked against what is known here, so that a client hears of a violation at
//! once. A definition is asked for again after a second, in the background; only the first
//! document of a collection waits for the store, and only briefly. Nothing here is needed to
//! accept a document: what is not known, or not any more, the consumer checks.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use shared::breaker::Breaker;
use shared::collection::{Checker, Collection, Definition};
use shared::store::{Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cache::guarded;

/// How long a definition is used without asking the store again.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// How old a definition may be that is used while the store is asked; an older one is waited for.
const USED_WHILE_ASKING_FOR: Duration = Duration::from_secs(10);

/// How long accepting a document may wait for the store.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// Memory for definitions in bytes, as far as it can be told.
const BYTES_MAX: u64 = 32 << 20;

/// Entries that nobody replaced are dropped after this time.
const KEPT_FOR: Duration = Duration::from_mins(10);

/// A definition with what checks documents against it.
#[derive(Debug)]
pub struct Known {
    pub collection: Collection,
    /// `None` when this build cannot use the definition.
    pub checker: Option<Arc<Checker>>,
    read_at: Instant,
}

type Loaded = Result<Arc<Known>, StoreError>;

pub struct Definitions {
    entries: moka::sync::Cache<Arc<str>, Arc<Known>>,
    /// Held by everything that writes to `entries`.
    work: Mutex<Work>,
    store: Arc<dyn Store>,
    breaker: Arc<Breaker>,
    /// Loads run here and to their end, whatever becomes of the request that asked first.
    runtime: Handle,
}

/// What is under way, by collection.
#[derive(Default)]
struct Work {
    loads: HashMap<Box<str>, watch::Receiver<Option<Loaded>>>,
    indexing: HashSet<Box<str>>,
}

impl Definitions {
    /// Call it on the runtime that loads shall run on.
    pub fn new(store: Arc<dyn Store>, breaker: Arc<Breaker>) -> Arc<Self> {
        let weigh = |name: &Arc<str>, known: &Arc<Known>| {
            let schema = known.collection.definition.schema.as_ref().map_or(0, String::len);
            let compiled = known.checker.as_ref().map_or(0, |checker| checker.weight());
            u32::try_from(name.len() + schema + compiled).unwrap_or(u32::MAX)
        };
        let entries = moka::sync::Cache::builder()
            .max_capacity(BYTES_MAX)
            .weigher(weigh)
            .time_to_live(KEPT_FOR)
            .build();
        Arc::new(Self { entries, work: Mutex::default(), store, breaker, runtime: Handle::current() })
    }

    /// What checks a document before it is accepted; `None` when that is not known soon enough.
    pub async fn checker(self: &Arc<Self>, name: &str) -> Option<Arc<Checker>> {
        let known = self.entries.get(name);
        let age = known.as_ref().map(|known| known.read_at.elapsed());
        if age.is_some_and(|age| age < FRESH_FOR) {
            return known?.checker.clone();
        }
        let loaded = self.load(name);
        if age.is_some_and(|age| age < USED_WHILE_ASKING_FOR) {
            return known?.checker.clone();
        }
        match tokio::time::timeout(WAIT_MAX, landed(loaded)).await {
            Ok(Ok(loaded)) => loaded.checker.clone(),
            _ => known?.checker.clone(),
        }
    }

    /// The definition as it is now, or was a second ago.
    pub async fn current(self: &Arc<Self>, name: &str) -> Loaded {
        match self.entries.get(name).filter(|known| known.read_at.elapsed() < FRESH_FOR) {
            Some(known) => Ok(known),
            None => landed(self.load(name)).await,
        }
    }

    /// The definition as it is now.
    pub async fn read(self: &Arc<Self>, name: &str) -> Loaded {
        let collection = guarded(&self.breaker, self.store.collection(name)).await?;
        Ok(self.learn(name, collection).await)
    }

    /// Replaces a definition and indexes what was there before. Goes on when the caller is gone.
    pub async fn define(self: &Arc<Self>, name: &str, definition: Definition) -> Loaded {
        let (definitions, name) = (self.clone(), Box::<str>::from(name));
        let work = async move {
            let store = &definitions.store;
            let collection = guarded(&definitions.breaker, store.define(&name, definition)).await?;
            definitions.learn(&name, collection).await;
            definitions.index(&name).await?;
            definitions.read(&name).await
        };
        self.runtime.spawn(work).await.unwrap_or_else(|_| Err(abandoned()))
    }

    /// Goes on with the indexing that somebody began and did not end.
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

    /// Joins the load of this definition or starts it.
    fn load(self: &Arc<Self>, name: &str) -> watch::Receiver<Option<Loaded>> {
        let mut work = self.lock();
        // A load whose sender is gone will never land: it is started anew.
        if let Some(under_way) = work.loads.get(name).filter(|load| load.has_changed().is_ok()) {
            return under_way.clone();
        }
        let (sender, receiver) = watch::channel(None);
        work.loads.insert(name.into(), receiver.clone());
        let (definitions, name) = (self.clone(), Box::<str>::from(name));
        self.runtime.spawn(async move {
            let loaded = definitions.read(&name).await;
            definitions.lock().loads.remove(&name);
            sender.send_replace(Some(loaded));
        });
        receiver
    }

    /// Keeps the newer version: a reading may be overtaken by a change of our own.
    async fn learn(&self, name: &str, collection: Collection) -> Arc<Known> {
        let before = self.entries.get(name);
        let same = |known: &&Arc<Known>| known.collection.version == collection.version;
        let checker = match before.as_ref().filter(same) {
            Some(known) => known.checker.clone(),
            None => usable(name, &collection).await,
        };
        let known = Arc::new(Known { collection, checker, read_at: Instant::now() });
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

/// A definition that this build cannot use is the consumer's to judge.
async fn usable(name: &str, collection: &Collection) -> Option<Arc<Checker>> {
    let checker = Checker::compiled(name, collection.clone()).await;
    checker.unusable().is_none().then_some(checker)
}

async fn landed(mut load: watch::Receiver<Option<Loaded>>) -> Loaded {
    let landed = load.wait_for(Option::is_some).await.map_err(|_| abandoned())?;
    landed.clone().ok_or_else(abandoned)?
}

fn abandoned() -> StoreError {
    StoreError::Unavailable("the load was abandoned".into())
}

#[cfg(test)]
mod tests;
