//! One load of a key at a time, shared by all callers that ask meanwhile.
//!
//! A load runs to its end, even when the caller that started it has gone. It has a stamp: what was known when
//! it began. The result is made under the lock of the loads, and events change stamps under the same lock, so
//! nothing is lost between a load and the cache that keeps its result.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use shared::store::StoreError;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

pub struct SingleFlight<K, S, T> {
    loads: Mutex<HashMap<K, InFlightLoad<S, T>>>,
    runtime: Handle,
}

/// A load under way.
pub struct InFlightLoad<S, T> {
    pub stamp: S,
    task: AbortHandle,
    result: LoadResult<T>,
}

type LoadResult<T> = Shared<BoxFuture<'static, Result<T, StoreError>>>;

impl<K, S, T> SingleFlight<K, S, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    S: Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Call it on the runtime on which loads shall run.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { loads: Mutex::default(), runtime: Handle::current() })
    }

    /// Joins the load under way when its stamp `is_current`, or else the first load that begins after this
    /// call. Starts a load at once when none is under way, also when the returned future is never polled; a
    /// load after one that is not current begins only while somebody waits for it.
    ///
    /// `begin` makes a stamp and a load. A load ends with a closure that makes the result from the stamp,
    /// under the lock.
    pub fn load<L: Future<Output: FnOnce(S) -> Result<T, StoreError>> + Send + 'static>(
        self: &Arc<Self>,
        key: K,
        is_current: impl FnOnce(&S) -> bool,
        begin: impl Fn(K) -> (S, L),
    ) -> impl Future<Output = Result<T, StoreError>> {
        let (first, is_good) = self.join(&key, is_current, &begin);
        async move {
            let loaded = first.await;
            if is_good {
                return loaded;
            }
            // One load of a key at a time: the one that is under way now began after the call.
            self.join(&key, |_| true, begin).0.await
        }
    }

    /// Loads under way. None begins or ends while the lock is held.
    pub fn lock(&self) -> MutexGuard<'_, HashMap<K, InFlightLoad<S, T>>> {
        self.loads.lock().expect("no code panics while it holds this lock")
    }

    /// Finds or starts a load; true when its result counts for the caller.
    fn join<L: Future<Output: FnOnce(S) -> Result<T, StoreError>> + Send + 'static>(
        self: &Arc<Self>,
        key: &K,
        is_current: impl FnOnce(&S) -> bool,
        begin: impl Fn(K) -> (S, L),
    ) -> (LoadResult<T>, bool) {
        let mut loads = self.lock();
        // A load that is finished and still here has panicked: it is started anew.
        if let Some(load) = loads.get(key).filter(|load| !load.task.is_finished()) {
            return (load.result.clone(), is_current(&load.stamp));
        }
        let (stamp, load) = begin(key.clone());
        let (flight, own_key) = (self.clone(), key.clone());
        let task = self.runtime.spawn(async move {
            let make_result = load.await;
            let mut loads = flight.lock();
            loads.remove(&own_key).map_or_else(|| Err(abandoned()), |load| make_result(load.stamp))
        });
        let abort_handle = task.abort_handle();
        let result = task.map(|ended| ended.unwrap_or_else(|_| Err(abandoned()))).boxed().shared();
        loads.insert(key.clone(), InFlightLoad { stamp, task: abort_handle, result: result.clone() });
        (result, true)
    }
}

/// Error of work that did not come to its end.
pub fn abandoned() -> StoreError {
    StoreError::Unavailable("the load was abandoned".into())
}

#[cfg(test)]
mod tests;
