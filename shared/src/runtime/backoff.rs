//! Delays between attempts: exponential, capped, jittered, without an end.
use std::time::Duration;

use rand::Rng;

/// Delays for one sequence of attempts. Attempts are not limited; give up elsewhere, by a deadline.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    /// The next delay, between half and all of the current step, so that replicas which lost the
    /// same server do not come back in step.
    pub fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts again at the first delay; called after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for expected_ms in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.delay();
            assert!(delay <= Duration::from_millis(expected_ms), "{delay:?}");
            assert!(delay >= Duration::from_millis(expected_ms / 2), "{delay:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(100));
    }
}
