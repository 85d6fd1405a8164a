//! Asks the store for the outcomes of items after events about them may have been missed.
use std::sync::Arc;
use std::time::Duration;

use shared::runtime::breaker::Breaker;
use shared::runtime::shutdown::Shutdown;
use shared::store::Reads;

use crate::store_breaker::guarded;
use crate::wait::waiters::Waiters;

/// Items in one read at most.
const ITEMS_PER_READ_MAX: usize = 1_000;

/// Pause after a read that failed.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Runs until the shutdown. One read at a time: a gap with many waiting requests costs a few reads.
pub async fn run(
    waiters: Arc<Waiters>,
    store: Arc<dyn Reads>,
    breaker: Arc<Breaker>,
    mut shutdown: Shutdown,
) {
    while shutdown.unless_requested(waiters.doubted.notified()).await.is_some() {
        while !shutdown.is_requested() {
            let (items, mark) = waiters.lock().take_doubted(ITEMS_PER_READ_MAX);
            if items.is_empty() {
                break;
            }
            let items: Arc<[_]> = items.into();
            match guarded(&breaker, store.item_statuses(items.clone())).await {
                Ok(statuses) => waiters.apply_update(&items, statuses, mark),
                Err(error) => {
                    tracing::debug!(%error, "what waits cannot be looked up");
                    waiters.lock().put_back(items.to_vec());
                    shutdown.unless_requested(tokio::time::sleep(RETRY_AFTER)).await;
                }
            }
        }
    }
}
