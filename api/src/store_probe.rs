//! Asks the store for its time every few seconds, whether or not anybody reads: so its breaker knows,
//! this replica's clock is compared although no consumer may be heard, and what is issued stays above
//! what the ledger has forgotten. Nothing waits for it.
use std::sync::Arc;
use std::time::Duration;

use shared::program::backend::Backend;
use shared::runtime::breaker::Breaker;
use shared::runtime::clock;
use shared::runtime::shutdown::Shutdown;

use crate::cache::guarded;
use crate::clock_check::ClockCheck;

const EVERY: Duration = Duration::from_secs(5);

pub struct StoreProbe {
    pub backend: Backend,
    pub breaker: Arc<Breaker>,
    pub clock: ClockCheck,
}

impl StoreProbe {
    /// Runs until the shutdown.
    pub async fn run(self, mut shutdown: Shutdown) {
        let asking = async {
            loop {
                self.ask().await;
                tokio::time::sleep(EVERY).await;
            }
        };
        // A stop does not wait for a server that is silent.
        tokio::select! {
            () = asking => {}
            () = shutdown.requested() => {}
        }
    }

    async fn ask(&self) {
        let asked_at_ms = clock::now_ms();
        // The breaker keeps the outcome; who reads meets it there.
        let Ok(store_ms) = guarded(&self.breaker, self.backend.store.now_ms()).await else { return };
        self.clock.answered(store_ms, asked_at_ms, clock::now_ms());
        // Past the breaker, which has its answer.
        if let Err(error) = self.backend.learn_floor().await {
            tracing::debug!(%error, "the ledger's floor cannot be read");
        }
    }
}
