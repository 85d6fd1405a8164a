//! Asks the store for its time every few seconds, whether or not anybody reads: so its breaker knows,
//! this replica's clock is compared although no consumer may be heard, and what is issued stays above
//! what the ledger has forgotten. Nothing waits for it.
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
    // A stop does not wait for a server that is silent.
    tokio::select! {
        () = asking => {}
        () = shutdown.requested() => {}
    }
}

async fn ask(app: &App) {
    let asked_at_ms = clock::now_ms();
    // The breaker keeps the outcome; who reads meets it there.
    let Ok(store_ms) = guarded(&app.store_breaker, app.store.now_ms()).await else { return };
    app.clock.answered(store_ms, asked_at_ms, clock::now_ms());
    // Past the breaker, which has its answer.
    if let Err(error) = app.backend.learn_floor().await {
        tracing::debug!(%error, "the ledger's floor cannot be read");
    }
}
