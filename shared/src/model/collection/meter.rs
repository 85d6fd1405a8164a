//! Budget of a check: CPU time, and stack, of the thread that checks.
//!
//! The validator has no place where it could be stopped. But it sees a document only through
//! [`counted`](super::counted) and [`pattern`](super::pattern), and these report here each step that they
//! take. A check that goes beyond its budget is ended there by unwinding, which [`Budget::run`] catches. So
//! the work that is done decides, not a second reading of the schema. CPU time is counted, because a
//! machine that is busy must refuse no good document.
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Steps between two looks at the clock: some tens of nanoseconds each.
const STEPS_PER_LOOK: u32 = 4_096;

/// Stack that one check may take in bytes: half of what threads have by default.
const STACK_BYTES_MAX: usize = 1 << 20;

/// Keys that the validator's own engine matches, in bytes: a match of that engine cannot be stopped.
pub const MATCHED_KEY_BYTES_MAX: usize = 512;

/// Reasons for which a check was ended before it had a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overrun {
    #[error("checking it takes more CPU time than collections.check_ms_max allows")]
    Time,
    #[error("checking it takes more than {STACK_BYTES_MAX} bytes of stack: its schema refers too deep")]
    Stack,
    #[error("a key has more than {MATCHED_KEY_BYTES_MAX} bytes, where the schema has patternProperties")]
    Key,
    #[error("the validator failed on it")]
    Panic,
}

/// CPU time that is left for the checks of one request, or of one batch.
#[derive(Debug)]
pub struct Budget {
    left: Cell<Duration>,
}

#[derive(Clone, Copy)]
struct Running {
    deadline: Duration,
    steps: u32,
    stack_begin: usize,
    matches_keys: bool,
}

thread_local! {
    /// Check that runs on this thread. Property names reach the validator without anything that could carry
    /// it.
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

impl Budget {
    pub fn new(left: Duration) -> Self {
        Self { left: Cell::new(left) }
    }

    pub fn of_ms(ms: u64) -> Self {
        Self::new(Duration::from_millis(ms))
    }

    pub fn left(&self) -> Duration {
        self.left.get()
    }

    /// Runs a check, and takes the time that it needed from the budget.
    pub(super) fn run<T>(&self, matches_keys: bool, check: impl FnOnce() -> T) -> Result<T, Overrun> {
        let begin = cpu_time();
        let deadline = begin + self.left.get();
        let marker = 0_u8;
        let stack_begin = std::ptr::from_ref(&marker).addr();
        let running = Running { deadline, steps: STEPS_PER_LOOK, stack_begin, matches_keys };
        let outer = RUNNING.replace(Some(running));
        let outcome = catch_unwind(AssertUnwindSafe(check));
        RUNNING.set(outer);
        self.left.set(deadline.saturating_sub(cpu_time()));
        // A panic of the validator is about this document, too: it must not come back with every attempt.
        outcome.map_err(|payload| payload.downcast().map_or(Overrun::Panic, |overrun| *overrun))
    }
}

/// Reports steps. Does not come back from a check that is beyond its budget.
pub fn charge(steps: usize) {
    let Some(mut running) = RUNNING.get() else { return };
    let marker = 0_u8;
    if std::ptr::from_ref(&marker).addr().abs_diff(running.stack_begin) > STACK_BYTES_MAX {
        stop(Overrun::Stack);
    }
    running.steps = running.steps.saturating_add(u32::try_from(steps).unwrap_or(u32::MAX));
    if running.steps >= STEPS_PER_LOOK {
        running.steps = 0;
        if cpu_time() >= running.deadline {
            stop(Overrun::Time);
        }
    }
    RUNNING.set(Some(running));
}

/// Reports a key that the validator is going to compare, or to match with its own engine. Looks at the
/// clock before each match.
pub fn charge_key(key: &str) {
    if !RUNNING.get().is_some_and(|running| running.matches_keys) {
        return charge(1 + key.len() / 16);
    }
    if key.len() > MATCHED_KEY_BYTES_MAX {
        stop(Overrun::Key);
    }
    charge(STEPS_PER_LOOK as usize);
}

/// Unwinds without a panic: no hook is called.
fn stop(overrun: Overrun) -> ! {
    resume_unwind(Box::new(overrun))
}

/// CPU time that this thread has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
