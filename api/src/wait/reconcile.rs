//! Asks the store what became of the items that events may have been missed about.
use std::sync::Arc;
use std::time::Duration;

use shared::runtime::breaker::Breaker;
use shared::runtime::shutdown::Shutdown;
use shared::store::Store;

use crate::store_breaker::guarded;
use crate::wait::waiters::Waiters;

/// Items in one read at most.
const ITEMS_PER_READ_MAX: usize = 1_000;

/// How long to wait after a read that failed.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Runs until the shutdown. One read at a time: a hole with many who wait costs a few reads.
pub async fn settle(
    waiters: Arc<Waiters>,
    store: Arc<dyn Store>,
    breaker: Arc<Breaker>,
    mut shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            () = waiters.doubted.notified() => {}
            () = shutdown.requested() => return,
        }
        while !shutdown.is_requested() {
            let (items, mark) = waiters.lock().take_doubted(ITEMS_PER_READ_MAX);
            if items.is_empty() {
                break;
            }
            let items: Arc<[_]> = items.into();
            match guarded(&breaker, store.fates(items.clone())).await {
                Ok(fates) => waiters.learn(&items, fates, mark),
                Err(error) => {
                    tracing::debug!(%error, "what waits cannot be looked up");
                    waiters.lock().put_back(items.to_vec());
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_AFTER) => {}
                        () = shutdown.requested() => return,
                    }
                }
            }
        }
    }
}
