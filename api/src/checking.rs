//! Work whose size a client decides, away from the workers: checks of documents against a schema,
//! and the compiling of definitions. Few at once, so that the workers keep their share of the cores.
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use shared::collection::Budget;
use shared::config;
use tokio::sync::Semaphore;

use crate::problem::Problem;

/// How long a request waits for its turn before it gets 503.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Checking {
    turns: Arc<Semaphore>,
    ms_max: u64,
}

impl Checking {
    pub fn new(config: &config::Collections) -> Arc<Self> {
        let threads = available_parallelism().map_or(1, |cores| (cores.get() - 1).max(1));
        Arc::new(Self { turns: Arc::new(Semaphore::new(threads)), ms_max: config.check_ms_max })
    }

    /// Runs work on a thread of its own, with the budget of one request. It goes on to its end also
    /// when nobody waits for it any more, and keeps its turn until then.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Budget) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok).ok_or_else(Problem::overloaded)?;
        let budget = Budget::of_ms(self.ms_max);
        let work = move || {
            let done = work(&budget);
            drop(turn);
            done
        };
        off_worker(work).await
    }
}

/// Runs what takes milliseconds at most, whatever the client sent.
pub async fn off_worker<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "work off the worker panicked");
        Problem::internal()
    })
}
