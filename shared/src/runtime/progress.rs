//! Liveness: notices loops that stand still, for `/livez` of the operations port, a metric and the log.
//!
//! Each loop that a program cannot do without leaves marks here: HTTP workers tick, tasks mark each poll,
//! the ingest marks each step while it holds messages. A loop that waits is idle, however long a server
//! is away. The time is counted by a thread of this module, so nothing here depends on a runtime, and a
//! process that was frozen as a whole counts as not run, not as stuck.
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::runtime::metrics::metrics;

/// Time of a mark that is idle; the clock starts behind it.
const IDLE: u64 = 0;

/// The loops of one program. Clones share them.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Loops>);

#[derive(Debug)]
struct Loops {
    /// Milliseconds that the process has run, advanced by the watching thread.
    clock_ms: AtomicU64,
    stuck_after: Duration,
    states: Mutex<Vec<Arc<LoopState>>>,
}

#[derive(Debug)]
struct LoopState {
    name: &'static str,
    limit_ms: u64,
    /// Time of the last move while the loop is busy, else [`IDLE`].
    moved_ms: AtomicU64,
}

/// Handle of one loop: idle until [`Self::moved`], forgotten when dropped.
#[derive(Debug)]
pub struct Mark {
    loops: Arc<Loops>,
    state: Arc<LoopState>,
}

/// A loop that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    pub name: &'static str,
    pub since: Duration,
}

impl Progress {
    /// Starts the watching thread; it ends when all clones are dropped. A loop that does not move for
    /// `stuck_after` is stuck (`ops.stuck_ms_max`).
    pub fn start(stuck_after: Duration) -> io::Result<Self> {
        let loops =
            Arc::new(Loops { clock_ms: AtomicU64::new(IDLE + 1), stuck_after, states: Mutex::default() });
        let watched = Arc::downgrade(&loops);
        let period = (stuck_after / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
        std::thread::Builder::new().name("progress".into()).spawn(move || watch(&watched, period))?;
        Ok(Self(loops))
    }

    /// Registers a loop. `grace` is the time that one step may take beside `stuck_after`: the time-outs of
    /// the servers that it waits for.
    pub fn register(&self, name: &'static str, grace: Duration) -> Mark {
        let limit = self.0.stuck_after.saturating_add(grace);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let state = Arc::new(LoopState { name, limit_ms, moved_ms: AtomicU64::new(IDLE) });
        self.0.states().push(state.clone());
        Mark { loops: self.0.clone(), state }
    }

    /// Runs a task that is stuck when one of its polls does not return: a thread is blocked then.
    pub async fn watching<F: Future>(self, name: &'static str, task: F) -> F::Output {
        let mark = self.register(name, Duration::ZERO);
        drop(self);
        let mut task = pin!(task);
        poll_fn(|context| {
            mark.moved();
            let polled = task.as_mut().poll(context);
            mark.idle();
            polled
        })
        .await
    }

    /// Ticks for ever: a runtime that does not run this task is stuck.
    pub async fn ticking(self, name: &'static str) {
        let mark = self.register(name, Duration::ZERO);
        let mut tick = tokio::time::interval(
            (self.0.stuck_after / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)),
        );
        drop(self);
        loop {
            mark.moved();
            tick.tick().await;
        }
    }

    /// The loops that stand still now; of several with one name the worst.
    pub fn stuck(&self) -> Vec<Stuck> {
        self.0.stuck()
    }
}

impl Mark {
    /// Marks a move: from now on the loop must move in time, or become idle.
    pub fn moved(&self) {
        self.state.moved_ms.store(self.loops.clock_ms.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Marks the loop as idle: nothing is in hand.
    pub fn idle(&self) {
        self.state.moved_ms.store(IDLE, Ordering::Relaxed);
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.loops.states().retain(|state| !Arc::ptr_eq(state, &self.state));
    }
}

impl Loops {
    fn states(&self) -> MutexGuard<'_, Vec<Arc<LoopState>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stuck(&self) -> Vec<Stuck> {
        let now_ms = self.clock_ms.load(Ordering::Relaxed);
        let mut stuck: Vec<Stuck> = Vec::new();
        for state in self.states().iter() {
            let moved_ms = state.moved_ms.load(Ordering::Relaxed);
            let still_ms = now_ms.saturating_sub(moved_ms);
            if moved_ms == IDLE || still_ms <= state.limit_ms {
                continue;
            }
            let since = Duration::from_millis(still_ms);
            match stuck.iter_mut().find(|known| known.name == state.name) {
                Some(known) => known.since = known.since.max(since),
                None => stuck.push(Stuck { name: state.name, since }),
            }
        }
        stuck
    }

    fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.states().iter().map(|state| state.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Advances the clock, at most by two periods at once, and logs each loop that begins or ends to stand
/// still.
#[expect(clippy::disallowed_methods, reason = "a thread of its own, which must not depend on a runtime")]
fn watch(loops: &Weak<Loops>, period: Duration) {
    let (mut before, mut known) = (Instant::now(), Vec::<&'static str>::new());
    loop {
        std::thread::sleep(period);
        let Some(loops) = loops.upgrade() else { return };
        let elapsed = before.elapsed().min(period * 2);
        before = Instant::now();
        loops.clock_ms.fetch_add(u64::try_from(elapsed.as_millis()).unwrap_or(0), Ordering::Relaxed);
        let stuck = loops.stuck();
        for name in loops.names() {
            let since =
                stuck.iter().find(|stuck| stuck.name == name).map_or(Duration::ZERO, |stuck| stuck.since);
            let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
            metrics().stuck_seconds.with_label_values(&[name]).set(seconds);
        }
        for new in stuck.iter().filter(|stuck| !known.contains(&stuck.name)) {
            tracing::error!(
                loop.name = new.name,
                loop.still_ms = new.since.as_millis(),
                "a loop stands still, /livez fails"
            );
        }
        for name in known.iter().filter(|name| stuck.iter().all(|stuck| stuck.name != **name)) {
            tracing::warn!(loop.name = name, "a loop moves again");
            metrics().stuck_seconds.with_label_values(&[name]).set(0);
        }
        known = stuck.into_iter().map(|stuck| stuck.name).collect();
    }
}
