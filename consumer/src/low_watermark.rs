//! How old the messages are that may still come, and so what may be forgotten.
//!
//! Each consumer tells the oldest accept time that it holds or may be given; what was applied
//! `ids.remembered_for_hours` before the oldest of all can be forgotten. That moves by deliveries
//! only: no clock can make what waits in a queue look old. Pure but for a lock; times that pass are
//! monotonic. Why it is so: `docs/decisions/0010-floor-and-retention.md`.
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A message that somebody was given may come again for so long: the broker's `consumer_timeout`,
/// which is 30 minutes, and a margin.
pub const MAY_RETURN_FOR: Duration = Duration::from_mins(35);

/// The oldest accept time that one consumer holds or may be given.
#[derive(Debug, Default)]
pub struct Oldest(Mutex<Window>);

impl Oldest {
    /// A message came, which was accepted then.
    pub fn came(&self, accepted_at_ms: i64) {
        self.window().came(accepted_at_ms, Instant::now());
    }

    /// In milliseconds since 1970; `None` before the first message. While `has_dead`, messages may
    /// be given that nobody here has seen: it stays where it is.
    pub fn tell(&self, has_dead: bool, now: Instant) -> Option<i64> {
        let mut window = self.window();
        let oldest = window.oldest(now)?;
        if has_dead {
            window.came(oldest, now);
        }
        Some(oldest)
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

/// The least of what came within [`MAY_RETURN_FOR`], and of what came in the time of that length
/// before, or last.
#[derive(Debug, Default)]
struct Window {
    begun: Option<Instant>,
    current: Option<i64>,
    before: Option<i64>,
}

impl Window {
    fn came(&mut self, at_ms: i64, now: Instant) {
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
        let mut window = Window::default();
        assert_eq!(window.oldest(begin), None);
        window.came(3, begin);
        let minute = Duration::from_mins(1);
        for passed in 1..=34 {
            window.came(100 + i64::from(passed), begin + minute * passed);
            assert_eq!(window.oldest(begin + minute * passed), Some(3));
        }
        // Given again to somebody, just before the end.
        window.came(50, begin + minute * 34);
        for passed in 35..=69 {
            window.came(200, begin + minute * passed);
            assert_eq!(window.oldest(begin + minute * passed), Some(3), "{passed}");
        }
        window.came(201, begin + minute * 70);
        assert_eq!(window.oldest(begin + minute * 70), Some(200));
    }

    #[test]
    fn time_that_passes_without_a_message_moves_nothing() {
        let begin = Instant::now();
        let mut window = Window::default();
        window.came(3, begin);
        for days in 1..9 {
            assert_eq!(window.oldest(begin + Duration::from_hours(24 * days)), Some(3));
        }
        // Behind an outage the first that comes is as old as the queue.
        window.came(2, begin + Duration::from_hours(24 * 9));
        assert_eq!(window.oldest(begin + Duration::from_hours(24 * 9)), Some(2));
    }

    #[test]
    fn while_messages_wait_in_the_dead_queue_nothing_moves() {
        let begin = Instant::now();
        let mut window = Window::default();
        window.came(3, begin);
        for passed in (0..300).step_by(10) {
            let now = begin + Duration::from_mins(passed);
            // As `Oldest::tell` does.
            let oldest = window.oldest(now).expect("something came");
            window.came(oldest, now);
            window.came(1_000, now);
            assert_eq!(oldest, 3);
        }
        let oldest = Oldest::default();
        assert_eq!(oldest.tell(true, begin), None);
        oldest.came(5);
        assert_eq!(oldest.tell(true, begin), Some(5));
    }
}
