//! Asks the store for its time every few seconds, even when no request reads. So its breaker knows the state
//! of the store, this replica's clock is compared although no consumer's events may arrive, and new ids stay
//! above those that the ledger has forgotten. Nothing waits for the probe.
use std::sync::Arc;
use std::time::Duration;

use shared::runtime::clock;
use shared::runtime::shutdown::Shutdown;

use crate::state::App;
use crate::store_breaker::guarded;

const EVERY: Duration = Duration::from_secs(5);

/// Runs until the shutdown.
pub async fn run(app: Arc<App>, mut shutdown: Shutdown) {
    let asking = async {
        loop {
            ask(&app).await;
            tokio::time::sleep(EVERY).await;
        }
    };
    // A stop does not wait for a silent store.
    shutdown.unless_requested(asking).await;
}

async fn ask(app: &App) {
    let asked_at_ms = clock::now_ms();
    // The breaker keeps the outcome for later reads.
    let Ok(store_ms) = guarded(&app.store_breaker, app.store.now_ms()).await else { return };
    app.clock.answered(store_ms, asked_at_ms, clock::now_ms());
    // The floor is read past the breaker, which has its answer.
    if let Err(error) = app.backend.learn_floor().await {
        tracing::debug!(%error, "the ledger's floor cannot be read");
    }
}
