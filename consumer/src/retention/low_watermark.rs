//! How old the messages are that may still come, and so what may be forgotten.
//!
//! Each consumer tells the oldest accept time that it holds or may be given; what was applied
//! `ids.remembered_for_hours` before the oldest of all can be forgotten. That moves by deliveries
//! only: no clock can make what waits in a queue look old. Pure but for a lock; times that pass are
//! monotonic. Why it is so: `docs/decisions/0010-floor-and-retention.md`.
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use shared::store::{Held, Holder};

/// A message that somebody was given may come again for so long: the broker's `consumer_timeout`,
/// which is 30 minutes, and a margin.
const MAY_RETURN_FOR: Duration = Duration::from_mins(35);

/// How long a consumer that looks silent by the store's clock is watched before that is believed:
/// each tells something once in a minute.
const WATCHED_FOR: Duration = Duration::from_mins(5);

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

/// Which consumers tell nothing any more.
#[derive(Debug, Default)]
pub struct Watch(HashMap<u64, (i64, Instant)>);

impl Watch {
    /// Those that were silent for [`MAY_RETURN_FOR`] by the store's clock, and while this process
    /// watched: a clock that jumps makes nobody silent. Who told at a time that is still to come did so
    /// before that clock was put back, and it cannot say for how long: such a one is watched for all of it.
    pub fn silent(&mut self, held: &Held, now: Instant) -> Vec<Holder> {
        let before = std::mem::take(&mut self.0);
        let span_ms = i64::try_from(MAY_RETURN_FOR.as_millis()).expect("minutes");
        let mut silent = Vec::new();
        for holder in &held.others {
            let (consumer, told_at_ms) = (holder.hold.consumer, holder.told_at_ms);
            let seen = before.get(&consumer).filter(|(told_before_ms, _)| *told_before_ms == told_at_ms);
            let since = seen.map_or(now, |(_, since)| *since);
            self.0.insert(consumer, (told_at_ms, since));
            let (silent_ms, watched) = (held.now_ms.saturating_sub(told_at_ms), now.duration_since(since));
            let is_silent = if silent_ms < 0 {
                watched >= MAY_RETURN_FOR
            } else {
                silent_ms >= span_ms && watched >= WATCHED_FOR
            };
            if is_silent {
                silent.push(*holder);
            }
        }
        silent
    }
}

/// What was accepted before this time, in milliseconds since 1970, may be forgotten.
pub fn forget_before_ms(own_ms: i64, held: &Held, silent: &[Holder], remembered_ms: i64) -> i64 {
    let others = held.others.iter().filter(|holder| !silent.contains(holder));
    let oldest = others.map(|holder| holder.hold.oldest_ms).fold(own_ms, i64::min);
    // A message from a clock that is ahead moves nothing beyond the store's.
    oldest.min(held.now_ms).saturating_sub(remembered_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::store::Hold;

    const HOUR_MS: i64 = 3_600_000;
    const NOW_MS: i64 = 1_763_640_000_000;

    fn holder(consumer: u64, oldest_ms: i64, told_at_ms: i64) -> Holder {
        Holder { hold: Hold { consumer, oldest_ms }, told_at_ms }
    }

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

    #[test]
    fn the_oldest_of_all_consumers_decides_and_no_clock_does() {
        let others = vec![holder(1, NOW_MS - 50 * HOUR_MS, NOW_MS), holder(2, NOW_MS, NOW_MS)];
        let held = Held { others: others.clone(), now_ms: NOW_MS };
        let day_ms = 24 * HOUR_MS;
        assert_eq!(forget_before_ms(NOW_MS, &held, &[], day_ms), NOW_MS - 74 * HOUR_MS);
        assert_eq!(forget_before_ms(NOW_MS, &held, &others[..1], day_ms), NOW_MS - 24 * HOUR_MS);
        // Only messages from a replica whose clock is ahead came.
        assert_eq!(forget_before_ms(NOW_MS + day_ms, &held, &others, day_ms), NOW_MS - day_ms);
        // The store's clock is ahead by a month: what waits is as old as before.
        let jumped = Held { others, now_ms: NOW_MS + 30 * day_ms };
        assert_eq!(forget_before_ms(NOW_MS, &jumped, &[], day_ms), NOW_MS - 74 * HOUR_MS);
    }

    #[test]
    fn a_consumer_is_silent_once_it_was_so_for_the_store_and_for_who_watches() {
        let begin = Instant::now();
        let mut watch = Watch::default();
        let old = holder(1, 5, NOW_MS);
        let after = |hours: i64| Held { others: vec![old], now_ms: NOW_MS + hours * HOUR_MS };
        // The store's clock jumps: nobody is silent at once.
        assert_eq!(watch.silent(&after(24), begin), []);
        assert_eq!(watch.silent(&after(24), begin + Duration::from_mins(4)), []);
        // It tells something, an hour ago by that clock.
        let told = holder(1, 5, NOW_MS + 23 * HOUR_MS);
        let held = Held { others: vec![told], now_ms: NOW_MS + 24 * HOUR_MS };
        assert_eq!(watch.silent(&held, begin + Duration::from_mins(6)), []);
        assert_eq!(watch.silent(&held, begin + Duration::from_mins(11)), [told]);
        // Watched for long, but told lately by the store's clock, which stands still.
        let fresh = Held { others: vec![holder(2, 5, NOW_MS)], now_ms: NOW_MS };
        assert_eq!(watch.silent(&fresh, begin), []);
        assert_eq!(watch.silent(&fresh, begin + Duration::from_hours(9)), []);
    }

    /// The store's clock was a month ahead when a consumer told and ended, and is right again.
    #[test]
    fn a_consumer_that_told_at_a_time_to_come_is_silent_once_it_was_watched_for_as_long() {
        let begin = Instant::now();
        let mut watch = Watch::default();
        let ahead_ms = NOW_MS + 30 * 24 * HOUR_MS;
        let (gone, alive) = (holder(1, 5, ahead_ms), holder(2, 5, ahead_ms + 1));
        let held = |others: &[Holder]| Held { others: others.to_vec(), now_ms: NOW_MS };
        for minutes in 0..35 {
            let now = begin + Duration::from_mins(minutes);
            assert_eq!(watch.silent(&held(&[gone, alive]), now), [], "{minutes}");
        }
        let told = holder(2, 5, ahead_ms + 2);
        assert_eq!(watch.silent(&held(&[gone, told]), begin + Duration::from_mins(35)), [gone]);
        // Who watches anew begins anew.
        assert_eq!(Watch::default().silent(&held(&[gone]), begin + Duration::from_mins(35)), []);
    }
}
