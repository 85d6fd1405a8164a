//! A circuit breaker: after failures in a row callers are refused at once, then a few probes
//! decide whether it closes again.
//!
//! One implementation for every dependency. It holds no timer and spawns nothing: it reads the time when it
//! is called. Its state is a metric and on `/health`. An outage is one log line with its reason when the
//! breaker opens, and one when it closes, however many probes fail in between.
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::runtime::metrics::metrics;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    Open,
    HalfOpen,
}

impl BreakerState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct BreakerLimits {
    /// Failures in a row that open the breaker.
    pub failures_max: u32,
    /// Time that the breaker stays open before it lets a probe through.
    pub open_for: Duration,
    /// Probes under way at once, at most, while the breaker is half open.
    pub probes_max: u32,
}

#[derive(Debug)]
pub struct Breaker {
    name: &'static str,
    limits: BreakerLimits,
    inner: Mutex<TrackedState>,
    /// Mirror of `inner`, so that the usual question costs no lock.
    closed: AtomicBool,
}

#[derive(Debug)]
enum TrackedState {
    Closed { failures: u32 },
    Open { since: Instant },
    HalfOpen { probes: u32 },
}

/// Permission for one attempt. Dropped without a result, it counts neither as a success nor as a failure.
#[derive(Debug)]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    probe: bool,
    reported: bool,
}

/// Refusal: the breaker is open, or all its probes are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerOpen {
    /// Time after which the next attempt makes sense.
    pub retry_after: Duration,
}

impl Breaker {
    pub fn new(name: &'static str, limits: BreakerLimits) -> Self {
        metrics().breaker_state.with_label_values(&[name]).set(0);
        Self {
            name,
            limits,
            inner: Mutex::new(TrackedState::Closed { failures: 0 }),
            closed: AtomicBool::new(true),
        }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn state(&self) -> BreakerState {
        match *self.lock() {
            TrackedState::Closed { .. } => BreakerState::Closed,
            TrackedState::Open { .. } => BreakerState::Open,
            TrackedState::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Checks that [`permit`](Self::permit) would be granted, without taking a permit. Cheap while closed.
    pub fn check(&self) -> Result<(), BreakerOpen> {
        if self.is_closed() {
            return Ok(());
        }
        match *self.lock() {
            TrackedState::Open { since } if since.elapsed() < self.limits.open_for => {
                Err(BreakerOpen { retry_after: self.limits.open_for.saturating_sub(since.elapsed()) })
            }
            TrackedState::HalfOpen { probes } if probes >= self.limits.probes_max => {
                Err(BreakerOpen { retry_after: self.limits.open_for })
            }
            _ => Ok(()),
        }
    }

    /// Asks for a permit at `now`.
    pub fn permit(&self, now: Instant) -> Result<Permit<'_>, BreakerOpen> {
        let mut inner = self.lock();
        let probe = match *inner {
            TrackedState::Closed { .. } => false,
            TrackedState::Open { since } => {
                let waited = now.saturating_duration_since(since);
                if waited < self.limits.open_for {
                    return Err(BreakerOpen { retry_after: self.limits.open_for.saturating_sub(waited) });
                }
                *inner = TrackedState::HalfOpen { probes: 1 };
                self.show(BreakerState::HalfOpen);
                true
            }
            TrackedState::HalfOpen { probes } if probes >= self.limits.probes_max => {
                return Err(BreakerOpen { retry_after: self.limits.open_for });
            }
            TrackedState::HalfOpen { ref mut probes } => {
                *probes += 1;
                true
            }
        };
        Ok(Permit { breaker: self, probe, reported: false })
    }

    fn succeeded(&self) {
        let mut inner = self.lock();
        let was_closed = matches!(*inner, TrackedState::Closed { .. });
        *inner = TrackedState::Closed { failures: 0 };
        if !was_closed {
            self.show(BreakerState::Closed);
            tracing::info!(breaker.name = self.name, breaker.state = "closed", "breaker closed");
        }
    }

    fn failed(&self, now: Instant, why: &dyn fmt::Display) {
        let mut inner = self.lock();
        let opens = match *inner {
            TrackedState::Closed { ref mut failures } => {
                *failures += 1;
                *failures >= self.limits.failures_max
            }
            TrackedState::HalfOpen { .. } => true,
            // A straggler from before it opened is no news.
            TrackedState::Open { .. } => false,
        };
        if opens {
            let is_first = matches!(*inner, TrackedState::Closed { .. });
            *inner = TrackedState::Open { since: now };
            self.show(BreakerState::Open);
            if is_first {
                tracing::warn!(breaker.name = self.name, breaker.state = "open", error = %why, "breaker opened");
            } else {
                tracing::debug!(breaker.name = self.name, error = %why, "breaker stays open");
            }
        }
    }

    fn show(&self, state: BreakerState) {
        self.closed.store(state == BreakerState::Closed, Ordering::Relaxed);
        metrics().breaker_state.with_label_values(&[self.name]).set(match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TrackedState> {
        self.inner.lock().expect("no code panics while it holds this lock")
    }
}

impl Permit<'_> {
    pub fn success(mut self) {
        self.reported = true;
        self.breaker.succeeded();
    }

    /// Reports a failure; `why` is logged when it opens the breaker.
    pub fn failure(mut self, now: Instant, why: &dyn fmt::Display) {
        self.reported = true;
        self.breaker.failed(now, why);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.reported
            && self.probe
            && let TrackedState::HalfOpen { ref mut probes } = *self.breaker.lock()
        {
            *probes = probes.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BreakerLimits =
        BreakerLimits { failures_max: 2, open_for: Duration::from_secs(1), probes_max: 1 };

    fn fail(breaker: &Breaker, now: Instant) {
        breaker.permit(now).expect("closed").failure(now, &"away");
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_success_between_them_resets_the_count() {
        let (breaker, now) = (Breaker::new("test", LIMITS), Instant::now());
        fail(&breaker, now);
        breaker.permit(now).expect("closed").success();
        fail(&breaker, now);
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&breaker, now);
        assert_eq!(breaker.state(), BreakerState::Open);
        let refused = breaker.permit(now + Duration::from_millis(400)).expect_err("open");
        assert_eq!(refused.retry_after, Duration::from_millis(600));
    }

    #[test]
    fn one_probe_decides_and_an_abandoned_probe_leaves_its_place() {
        let (breaker, now) = (Breaker::new("test", LIMITS), Instant::now());
        fail(&breaker, now);
        fail(&breaker, now);
        let later = now + LIMITS.open_for;
        let probe = breaker.permit(later).expect("half open");
        assert!(breaker.permit(later).is_err(), "one probe at a time");
        drop(probe);
        breaker.permit(later).expect("the place is free").failure(later, &"away");
        assert_eq!(breaker.state(), BreakerState::Open);
        breaker.permit(later + LIMITS.open_for).expect("half open").success();
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn a_straggler_does_not_prolong_the_outage() {
        let (breaker, now) = (Breaker::new("test", LIMITS), Instant::now());
        let straggler = breaker.permit(now).expect("closed");
        fail(&breaker, now);
        fail(&breaker, now);
        straggler.failure(now + Duration::from_millis(900), &"away");
        assert!(breaker.permit(now + LIMITS.open_for).is_ok());
    }
}
