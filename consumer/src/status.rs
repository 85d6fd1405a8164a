//! State that the parts of a consumer share. `/health` shows some of it, and housekeeping uses some of it
//! to decide what may be forgotten. It holds no connection and makes no requests.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::low_watermark::LowWatermark;

#[derive(Debug, Default)]
pub struct ConsumerStatus {
    pub consuming: AtomicBool,
    /// A transaction failed, and none was committed since.
    pub store_away: AtomicBool,
    /// The store did not answer when it was asked for its time, which happens while nothing is applied.
    store_silent: AtomicBool,
    /// Number of committed transactions.
    commits: AtomicU64,
    /// Oldest accept time of the messages that this consumer holds or may be given.
    pub oldest: LowWatermark,
    /// A message of the dead queue is in hand that this build cannot read.
    unreadable: AtomicBool,
}

/// Guard for a message in hand whose age is not known.
pub struct UnreadableInHand<'s>(&'s AtomicBool);

impl Drop for UnreadableInHand<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl ConsumerStatus {
    pub fn store_is_away(&self) -> bool {
        self.store_away.load(Ordering::Relaxed) || self.store_silent.load(Ordering::Relaxed)
    }

    pub fn committed(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of transactions that were committed since the start.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub fn set_silent(&self, is_silent: bool) {
        self.store_silent.store(is_silent, Ordering::Relaxed);
    }

    /// Marks a message as unreadable. One at a time, as the dead queue is read.
    pub fn begin_unreadable(&self) -> UnreadableInHand<'_> {
        self.unreadable.store(true, Ordering::Relaxed);
        UnreadableInHand(&self.unreadable)
    }

    pub fn has_unreadable(&self) -> bool {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// Oldest accept time that this consumer holds or may be given; `None` before the first message.
    /// `has_dead` says that messages are ready in the dead queue, or on their way to it. A broker does
    /// not count a message that a consumer holds, so the one in hand here stops the watermark as well.
    /// When `has_dead` is not known (`None`), the result is `None` too, but the watermark does not move.
    pub fn oldest_ms(&self, has_dead: Option<bool>, now: Instant) -> Option<i64> {
        let oldest_ms = self.oldest.report(has_dead != Some(false) || self.has_unreadable(), now);
        has_dead.and(oldest_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn while_a_message_is_in_hand_that_cannot_be_read_nothing_moves() {
        let (status, begin) = (ConsumerStatus::default(), Instant::now());
        let after = |minutes: u64| begin + Duration::from_mins(minutes);
        status.oldest.observe(3);
        let unreadable = status.begin_unreadable();
        for minutes in (0..300).step_by(10) {
            assert_eq!(status.oldest_ms(Some(false), after(minutes)), Some(3), "{minutes}");
            status.oldest.observe(1_000);
        }
        drop(unreadable);
        for minutes in (300..400).step_by(10) {
            status.oldest_ms(Some(false), after(minutes));
            status.oldest.observe(1_000);
        }
        assert_eq!(status.oldest_ms(Some(false), after(400)), Some(1_000));
    }
    #[test]
    fn while_the_dead_queue_cannot_be_looked_at_nothing_moves_and_nothing_is_told() {
        let (status, begin) = (ConsumerStatus::default(), Instant::now());
        let after = |minutes: u64| begin + Duration::from_mins(minutes);
        status.oldest.observe(3);
        for minutes in (0..300).step_by(10) {
            assert_eq!(status.oldest_ms(None, after(minutes)), None, "{minutes}");
            status.oldest.observe(1_000);
        }
        assert_eq!(status.oldest_ms(Some(false), after(300)), Some(3));
    }
}
