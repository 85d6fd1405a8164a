//! Whether this replica's clock can be trusted: writes carry an accept time that others read, so they
//! are refused while it is off the store's by more than `ids.clock_skew_ms_max`.
//!
//! Two tell it: the events of the consumers, and the probe of the store, which is heard when no consumer is.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::measure::metrics;

/// What the last comparison came to. Clones share it.
#[derive(Clone, Debug)]
pub struct ClockCheck {
    is_off: Arc<AtomicBool>,
    skew_max: Duration,
}

impl ClockCheck {
    pub fn new(skew_max: Duration) -> Self {
        Self { is_off: Arc::default(), skew_max }
    }

    pub fn is_off(&self) -> bool {
        self.is_off.load(Ordering::Relaxed)
    }

    /// The store's time was read at some moment between two readings of this clock. What the way took
    /// is no skew.
    pub fn answered(&self, store_ms: i64, asked_at_ms: i64, answered_at_ms: i64) {
        let least = asked_at_ms.saturating_sub(store_ms);
        let most = answered_at_ms.saturating_sub(store_ms);
        self.differs_by(if least > 0 { least } else { most.min(0) });
    }

    /// This clock less the store's. What was told may be late, but never from the future: a lag alone
    /// reads as "ahead" by that lag, so the bound must be larger than any lag that is worth a warning.
    pub fn differs_by(&self, skew_ms: i64) {
        metrics().clock_skew_ms.set(skew_ms);
        let is_off = Duration::from_millis(skew_ms.unsigned_abs()) > self.skew_max;
        if self.is_off.swap(is_off, Ordering::Relaxed) != is_off {
            tracing::warn!(clock.skew_ms = skew_ms, clock.off = is_off, "clock compared with the store's");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_skew_and_a_skew_is_seen_through_it() {
        let check = ClockCheck::new(Duration::from_mins(1));
        let minute_ms = 60_000;
        for (store_ms, is_off) in [
            (0, false),
            (5 * minute_ms, false),
            (10 * minute_ms, false),
            (11 * minute_ms, false),
            (11 * minute_ms + 1, true),
            (-minute_ms, false),
            (-minute_ms - 1, true),
        ] {
            // Asked at 0, answered ten minutes later.
            check.answered(store_ms, 0, 10 * minute_ms);
            assert_eq!(check.is_off(), is_off, "{store_ms}");
        }
        // This clock was put back in between.
        check.answered(0, minute_ms, -minute_ms);
        assert!(!check.is_off());
    }
}
