//! Work of a size that a client decides, run away from the workers: checks of documents against a schema,
//! and the compiling of definitions. Few run at once, so that the workers keep their share of the cores.
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use shared::config;
use shared::model::collection::Budget;
use tokio::sync::Semaphore;

use crate::http::problem::Problem;

/// Longest wait of a request for its turn; after it the request gets 503.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

/// CPU time of the first try. Longer checks wait in a line of their own, so that no other work waits for
/// them.
const SHORT_TIME_MAX: Duration = Duration::from_millis(5);

/// Threads for checks and for definitions.
#[derive(Debug)]
pub struct Checking {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    definitions: Arc<Semaphore>,
    time_max: Duration,
}

impl Checking {
    pub fn new(config: &config::Collections) -> Arc<Self> {
        let threads = available_parallelism().map_or(1, |cores| (cores.get() - 1).max(1));
        let lane = |threads| Arc::new(Semaphore::new(threads));
        let time_max = Duration::from_millis(config.check_ms_max);
        Arc::new(Self { short: lane(threads), long: lane(threads), definitions: lane(1), time_max })
    }

    /// Checks documents with the budget of one request: first with a short budget, and once more with all of
    /// it when that is used up.
    pub async fn check<T: Send + 'static>(
        &self,
        work: impl Fn(&Budget) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let budget = Budget::new(self.time_max.min(SHORT_TIME_MAX));
        let first_try = move || {
            let done = work(&budget);
            (done, budget.left(), work)
        };
        let (done, left, work) = in_turn(&self.short, first_try).await?;
        if !left.is_zero() || self.time_max <= SHORT_TIME_MAX {
            return Ok(done);
        }
        drop(done);
        let budget = Budget::new(self.time_max);
        in_turn(&self.long, move || work(&budget)).await
    }

    /// Compiles a definition.
    pub async fn compile<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        in_turn(&self.definitions, work).await
    }
}

/// Runs work on a thread of its own. The work goes on to its end even when its request has gone, and keeps
/// its turn until then.
async fn in_turn<T: Send + 'static>(
    lane: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(lane).acquire_owned()).await;
    let turn = turn.ok().and_then(Result::ok).ok_or_else(Problem::overloaded)?;
    off_worker(move || {
        let done = work();
        drop(turn);
        done
    })
    .await
}

/// Runs work that takes milliseconds at most for any input.
pub async fn off_worker<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "work off the worker panicked");
        Problem::internal()
    })
}
