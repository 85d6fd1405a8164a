//! Choice of the messages for one transaction, and the reason why no more. Pure decisions, no input or
//! output.
//!
//! Preconditions of a batch: its messages were delivered in this session and are unacknowledged;
//! it holds at least one message however large, because a message is never split; with more than
//! one it stays within every limit.
use std::time::Duration;

use crate::metrics::WhyStopped;

/// Limits of one batch.
#[derive(Clone, Copy, Debug)]
pub struct MergeLimits {
    pub items_max: usize,
    pub bytes_max: usize,
    /// Longest wait for more messages under load.
    pub linger_max: Duration,
}

/// Size of the batch under construction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub messages: usize,
    pub items: usize,
    pub bytes: usize,
}

impl Size {
    pub fn of(items: usize, bytes: usize) -> Self {
        Self { messages: 1, items, bytes }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            items: self.items + other.items,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Checks that `next` fits into the batch beside its messages.
pub fn check_fit(batch: Size, next: Size, limits: &MergeLimits) -> Result<(), WhyStopped> {
    let together = batch.plus(next);
    if batch.messages == 0 {
        Ok(())
    } else if together.items > limits.items_max {
        Err(WhyStopped::Items)
    } else if together.bytes > limits.bytes_max {
        Err(WhyStopped::Bytes)
    } else {
        Ok(())
    }
}

/// Next action when nothing more is waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenEmpty {
    Stop(WhyStopped),
    WaitFor(Duration),
}

/// Lingers only under load: when this batch or the one before it merged several messages. A lone
/// write is applied at once.
pub fn when_empty(
    batch: Size,
    previous_messages: usize,
    window: usize,
    waited: Duration,
    limits: &MergeLimits,
) -> WhenEmpty {
    if batch.messages >= window {
        WhenEmpty::Stop(WhyStopped::Window)
    } else if batch.items >= limits.items_max {
        WhenEmpty::Stop(WhyStopped::Items)
    } else if batch.bytes >= limits.bytes_max {
        WhenEmpty::Stop(WhyStopped::Bytes)
    } else if batch.messages < 2 && previous_messages < 2 {
        WhenEmpty::Stop(WhyStopped::Drained)
    } else if waited >= limits.linger_max {
        WhenEmpty::Stop(WhyStopped::Lingered)
    } else {
        WhenEmpty::WaitFor(limits.linger_max.saturating_sub(waited))
    }
}

/// Limit of unacknowledged messages. It starts with one after every start, lost session and outage, and
/// grows with each success, so that a message that kills its consumer spends the delivery count of few
/// others.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    now: u16,
    max: u16,
}

impl Window {
    pub fn new(max: u16) -> Self {
        Self { now: 1, max: max.max(1) }
    }

    pub fn get(self) -> u16 {
        self.now
    }

    /// Next window after a committed batch, or `None` when fully open.
    pub fn grow(&mut self) -> Option<u16> {
        let next = self.now.saturating_mul(4).min(self.max);
        (next > self.now).then(|| {
            self.now = next;
            next
        })
    }

    pub fn shrink(&mut self) {
        self.now = 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: MergeLimits =
        MergeLimits { items_max: 100, bytes_max: 1_000, linger_max: Duration::from_millis(20) };

    proptest! {
        #[test]
        fn a_batch_of_several_messages_stays_within_its_limits_and_a_single_one_always_fits(
            sizes in proptest::collection::vec((1usize..150, 1usize..1_500), 1..40),
        ) {
            let mut batch = Size::default();
            for (items, bytes) in sizes {
                let next = Size::of(items, bytes);
                match check_fit(batch, next, &LIMITS) {
                    Ok(()) => batch = batch.plus(next),
                    Err(WhyStopped::Items) => prop_assert!(batch.items + items > LIMITS.items_max),
                    Err(why) => {
                        prop_assert_eq!(why, WhyStopped::Bytes);
                        prop_assert!(batch.bytes + bytes > LIMITS.bytes_max);
                    }
                }
            }
            prop_assert!(batch.messages >= 1);
            if batch.messages > 1 {
                prop_assert!(batch.items <= LIMITS.items_max && batch.bytes <= LIMITS.bytes_max);
            }
        }

        #[test]
        fn waiting_never_exceeds_the_linger(waited_ms in 0u64..40, messages in 1usize..8, before in 0usize..8) {
            let batch = Size { messages, items: messages, bytes: messages };
            let waited = Duration::from_millis(waited_ms);
            match when_empty(batch, before, 64, waited, &LIMITS) {
                WhenEmpty::WaitFor(more) => {
                    prop_assert!(waited + more <= LIMITS.linger_max);
                    prop_assert!(messages > 1 || before > 1);
                }
                WhenEmpty::Stop(WhyStopped::Lingered) => prop_assert!(waited >= LIMITS.linger_max),
                WhenEmpty::Stop(why) => prop_assert_eq!(why, WhyStopped::Drained),
            }
        }
    }

    #[test]
    fn a_batch_that_holds_the_whole_window_does_not_wait_for_what_cannot_come() {
        let batch = Size { messages: 4, items: 4, bytes: 4 };
        let stop = when_empty(batch, 4, 4, Duration::ZERO, &LIMITS);
        assert_eq!(stop, WhenEmpty::Stop(WhyStopped::Window));
    }

    #[test]
    fn the_window_opens_in_few_steps_and_closes_at_once() {
        let mut window = Window::new(64);
        let steps: Vec<_> = std::iter::from_fn(|| window.grow()).collect();
        assert_eq!(steps, [4, 16, 64]);
        window.shrink();
        assert_eq!(window.get(), 1);
    }
}
