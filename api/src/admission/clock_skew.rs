//! Trust in this replica's clock: writes carry an accept time that others read, so they
//! are refused while it is off the store's by more than `ids.clock_skew_ms_max`.
//!
//! Two tell the store's time: the events of the consumers, and the probe of the store, which is heard
//! when no consumer is. In between the monotonic clock tells: a clock that leaps, as after a suspend, is
//! found by the next write, and is off until the store is heard again. Not so in the embedded program,
//! whose store has no other clock.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use shared::event::HEARTBEAT_EVERY;
use shared::runtime::clock;

use crate::metrics::metrics;

/// How long events must tell that this replica's clock is ahead until it is believed.
const AHEAD_FOR: Duration = HEARTBEAT_EVERY.saturating_mul(2);

/// Result of the comparisons. Clones share it.
#[derive(Clone, Debug)]
pub struct ClockCheck(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    skew_ms_max: u64,
    /// The store's clock is another one.
    finds_leaps: bool,
    began: Instant,
    /// Lead of the wall clock over the time since `began` when it was last trusted.
    lead_ms: AtomicI64,
    /// Comparisons with the store's clock.
    store_says_off: AtomicBool,
    /// A leap stands in the log.
    leap_told: AtomicBool,
}

impl ClockCheck {
    /// Trusts the clock until somebody says otherwise.
    pub fn new(skew_max: Duration, finds_leaps: bool) -> Self {
        let skew_ms_max = u64::try_from(skew_max.as_millis()).unwrap_or(u64::MAX);
        let (began, lead_ms) = (Instant::now(), AtomicI64::new(clock::now_ms()));
        let (store_says_off, leap_told) = (AtomicBool::default(), AtomicBool::default());
        Self(Arc::new(Inner { skew_ms_max, finds_leaps, began, lead_ms, store_says_off, leap_told }))
    }

    /// Asked by every write.
    pub fn is_off(&self) -> bool {
        self.0.store_says_off.load(Ordering::Relaxed) || self.leaps()
    }

    /// The store's time was read at some moment between two readings of this clock. What the way took
    /// is no skew.
    pub fn answered(&self, store_ms: i64, asked_at_ms: i64, answered_at_ms: i64) {
        let least = asked_at_ms.saturating_sub(store_ms);
        let most = answered_at_ms.saturating_sub(store_ms);
        // A leap on the way would hide between the two readings.
        let is_on_the_way = least <= 0 && most >= 0 && !self.has_leapt(Instant::now(), clock::now_ms());
        self.differs_by(match least {
            _ if is_on_the_way => 0,
            1.. => least,
            _ => most,
        });
    }

    /// Takes the store's time that an event carries.
    pub fn heard(&self, store_ms: i64, ahead: &mut Ahead) {
        let skew_ms = clock::now_ms().saturating_sub(store_ms);
        if self.is_within(skew_ms) {
            *ahead = Ahead::default();
        } else if skew_ms > 0 && !ahead.is_believed(Instant::now()) {
            return;
        }
        self.differs_by(skew_ms);
    }

    /// This clock less the store's.
    fn differs_by(&self, skew_ms: i64) {
        metrics().clock_skew_seconds.set(skew_ms as f64 / 1_000.0);
        let is_off = !self.is_within(skew_ms);
        if !is_off {
            self.0.lead_ms.store(self.lead_ms(Instant::now(), clock::now_ms()), Ordering::Relaxed);
        }
        let had_leapt = !is_off && self.0.leap_told.swap(false, Ordering::Relaxed);
        if self.0.store_says_off.swap(is_off, Ordering::Relaxed) != is_off || had_leapt {
            tracing::warn!(clock.skew_ms = skew_ms, clock.off = is_off, "clock compared with the store's");
        }
    }

    fn leaps(&self) -> bool {
        let leaps = self.has_leapt(Instant::now(), clock::now_ms());
        if leaps && !self.0.leap_told.swap(true, Ordering::Relaxed) {
            tracing::warn!("the clock has leapt: writes are refused until the store's time is heard");
        }
        leaps
    }

    fn is_within(&self, skew_ms: i64) -> bool {
        skew_ms.unsigned_abs() <= self.0.skew_ms_max
    }

    fn has_leapt(&self, now: Instant, wall_ms: i64) -> bool {
        if !self.0.finds_leaps {
            return false;
        }
        let leap_ms = self.lead_ms(now, wall_ms).saturating_sub(self.0.lead_ms.load(Ordering::Relaxed));
        !self.is_within(leap_ms)
    }

    fn lead_ms(&self, now: Instant, wall_ms: i64) -> i64 {
        let since_ms = now.duration_since(self.0.began).as_millis();
        wall_ms.saturating_sub(i64::try_from(since_ms).unwrap_or(i64::MAX))
    }
}

/// Start of the time in which events say that this replica's clock is ahead. An event may be late, as one is
/// that a broker held back during an alarm, but never from the future: late ones read as "ahead", so
/// that is believed when no event of the next heartbeats contradicts it.
#[derive(Debug, Default)]
pub struct Ahead(Option<Instant>);

impl Ahead {
    fn is_believed(&mut self, now: Instant) -> bool {
        now.duration_since(*self.0.get_or_insert(now)) >= AHEAD_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: i64 = 60_000;

    fn check() -> ClockCheck {
        ClockCheck::new(Duration::from_mins(1), true)
    }

    #[test]
    fn a_slow_answer_is_no_skew_and_a_skew_is_seen_through_it() {
        let check = check();
        let is_off = || check.0.store_says_off.load(Ordering::Relaxed);
        for (store_ms, off) in [
            (0, false),
            (5 * MINUTE_MS, false),
            (10 * MINUTE_MS, false),
            (11 * MINUTE_MS, false),
            (11 * MINUTE_MS + 1, true),
            (-MINUTE_MS, false),
            (-MINUTE_MS - 1, true),
        ] {
            // Asked at 0, answered ten minutes later.
            check.answered(store_ms, 0, 10 * MINUTE_MS);
            assert_eq!(is_off(), off, "{store_ms}");
        }
        // This clock was put back in between.
        check.answered(0, MINUTE_MS, -MINUTE_MS);
        assert!(!is_off());
        // It leaps on the way, and the store does not.
        let now_ms = clock::now_ms();
        check.0.lead_ms.fetch_sub(2 * MINUTE_MS, Ordering::Relaxed);
        check.answered(now_ms - 2 * MINUTE_MS, now_ms - 2 * MINUTE_MS, now_ms);
        assert!(is_off());
    }

    #[test]
    fn a_clock_that_leaps_is_off_until_the_store_says_the_same() {
        let check = check();
        let began_ms = check.0.lead_ms.load(Ordering::Relaxed);
        let (later, wall_ms) = (check.0.began + Duration::from_hours(1), began_ms + 60 * MINUTE_MS);
        // Steered, not stepped.
        assert!(!check.has_leapt(later, wall_ms + 50_000));
        for leap_ms in [-70_000, 70_000, 40 * 24 * 60 * MINUTE_MS] {
            assert!(check.has_leapt(later, wall_ms + leap_ms), "{leap_ms}");
        }
        // As after a suspend: the store agrees with the clock as it is now.
        check.0.lead_ms.store(began_ms - 2 * MINUTE_MS, Ordering::Relaxed);
        assert!(check.is_off());
        check.answered(clock::now_ms(), clock::now_ms(), clock::now_ms());
        assert!(!check.is_off());
    }

    #[test]
    fn a_late_event_puts_no_clock_off_and_a_clock_that_is_ahead_is_believed_to_be() {
        let (check, mut ahead) = (check(), Ahead::default());
        let now_ms = clock::now_ms();
        check.heard(now_ms - 5 * MINUTE_MS, &mut ahead);
        assert!(!check.is_off(), "perhaps late");
        check.heard(now_ms, &mut ahead);
        assert!(ahead.0.is_none(), "it was");
        ahead.0 = Instant::now().checked_sub(AHEAD_FOR);
        check.heard(now_ms - 5 * MINUTE_MS, &mut ahead);
        assert!(check.is_off(), "nobody says otherwise");
        // A late one changes nothing then, either.
        check.heard(now_ms - 4 * MINUTE_MS, &mut Ahead::default());
        assert!(check.is_off());
        check.heard(now_ms, &mut ahead);
        assert!(!check.is_off());
        check.heard(now_ms + 2 * MINUTE_MS, &mut ahead);
        assert!(check.is_off(), "no event is from the future");
    }
}
