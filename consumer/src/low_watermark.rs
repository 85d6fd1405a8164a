//! Age of the oldest message that may still come, which decides what may be forgotten.
//!
//! Each consumer reports the oldest accept time that it holds or may be given. Entries that were applied
//! `ids.remembered_for_hours` before the oldest of all can be forgotten. The watermark moves by
//! deliveries only: no clock can make a message in a queue look old. Durations are monotonic. The reasons
//! are in `docs/decisions/0010-floor-and-retention.md`.
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Time within which a message that was delivered may come again: the broker's `consumer_timeout`, which
/// is 30 minutes, and a margin.
pub const MAY_RETURN_FOR: Duration = Duration::from_mins(35);

/// Oldest accept time that one consumer holds or may be given.
#[derive(Debug, Default)]
pub struct LowWatermark(Mutex<ObservedWindow>);

impl LowWatermark {
    /// Records the accept time of a message that came.
    pub fn observe(&self, accepted_at_ms: i64) {
        self.window().observe(accepted_at_ms, Instant::now());
    }

    /// Watermark in milliseconds since 1970; `None` before the first message. While `has_dead`, messages
    /// may be given that this consumer has not seen, so the watermark stays where it is.
    pub fn report(&self, has_dead: bool, now: Instant) -> Option<i64> {
        let mut window = self.window();
        let oldest = window.oldest(now)?;
        if has_dead {
            window.observe(oldest, now);
        }
        Some(oldest)
    }

    fn window(&self) -> MutexGuard<'_, ObservedWindow> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

/// Minimum of the times that came within [`MAY_RETURN_FOR`], and of those in the period of that length
/// before, or the last one.
#[derive(Debug, Default)]
struct ObservedWindow {
    begun: Option<Instant>,
    current: Option<i64>,
    before: Option<i64>,
}

impl ObservedWindow {
    fn observe(&mut self, at_ms: i64, now: Instant) {
        self.roll(now);
        self.current = Some(self.current.map_or(at_ms, |least| least.min(at_ms)));
    }

    fn oldest(&mut self, now: Instant) -> Option<i64> {
        self.roll(now);
        self.current.into_iter().chain(self.before).min()
    }

    fn roll(&mut self, now: Instant) {
        let begun = *self.begun.get_or_insert(now);
        if now.duration_since(begun) >= MAY_RETURN_FOR {
            self.begun = Some(now);
            self.before = self.current.take().or(self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_counts_as_long_as_it_may_come_again() {
        let begin = Instant::now();
        let mut window = ObservedWindow::default();
        assert_eq!(window.oldest(begin), None);
        window.observe(3, begin);
        let minute = Duration::from_mins(1);
        for passed in 1..=34 {
            window.observe(100 + i64::from(passed), begin + minute * passed);
            assert_eq!(window.oldest(begin + minute * passed), Some(3));
        }
        // Redelivered just before the end.
        window.observe(50, begin + minute * 34);
        for passed in 35..=69 {
            window.observe(200, begin + minute * passed);
            assert_eq!(window.oldest(begin + minute * passed), Some(3), "{passed}");
        }
        window.observe(201, begin + minute * 70);
        assert_eq!(window.oldest(begin + minute * 70), Some(200));
    }

    #[test]
    fn time_that_passes_without_a_message_moves_nothing() {
        let begin = Instant::now();
        let mut window = ObservedWindow::default();
        window.observe(3, begin);
        for days in 1..9 {
            assert_eq!(window.oldest(begin + Duration::from_hours(24 * days)), Some(3));
        }
        // After an outage the first message is as old as the queue.
        window.observe(2, begin + Duration::from_hours(24 * 9));
        assert_eq!(window.oldest(begin + Duration::from_hours(24 * 9)), Some(2));
    }

    #[test]
    fn while_messages_wait_in_the_dead_queue_nothing_moves() {
        let begin = Instant::now();
        let mut window = ObservedWindow::default();
        window.observe(3, begin);
        for passed in (0..300).step_by(10) {
            let now = begin + Duration::from_mins(passed);
            // As in `LowWatermark::report`.
            let oldest = window.oldest(now).expect("something came");
            window.observe(oldest, now);
            window.observe(1_000, now);
            assert_eq!(oldest, 3);
        }
        let oldest = LowWatermark::default();
        assert_eq!(oldest.report(true, begin), None);
        oldest.observe(5);
        assert_eq!(oldest.report(true, begin), Some(5));
    }
}
