//! Refusals in a row, and what follows from them: pure decisions of the publisher.
//!
//! A negative confirm says that the queue is full, and most often it is. But the broker decides it
//! per channel, and a channel can be wrong for as long as it lives. On RabbitMQ 3.10 one that first
//! publishes while the leader's node has just gone asks that node for leave, at each publish and
//! never another one; and the word that there is room again is sent to each channel once, by a
//! leader that may go before it is out. So a channel that only refuses is replaced, with a
//! back-off, because a new one costs a queue that really is full a little, too.
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// How long a channel may refuse everything before the first new one is opened in its place.
const RENEW_FIRST: Duration = Duration::from_secs(1);
/// And at most, when new ones refuse, too.
const RENEW_MAX: Duration = Duration::from_secs(10);
/// How long nothing but refusals must have come before the queue is shown as full.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// Without a refusal for so long nobody knows whether it still is.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

/// What was refused since the last message that the queue took.
#[derive(Debug)]
pub(super) struct Refusals {
    run: Option<Run>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Run {
    first: Instant,
    last: Instant,
    /// `None` when the channel is new and has not refused yet.
    renew_at: Option<Instant>,
}

impl Refusals {
    pub fn none() -> Self {
        Self { run: None, backoff: Backoff::new(RENEW_FIRST, RENEW_MAX) }
    }

    /// The queue took a message.
    pub fn taken(&mut self) {
        if self.run.take().is_some() {
            self.backoff.reset();
        }
    }

    /// The queue refused a message.
    pub fn refused(&mut self, now: Instant) {
        let run = self.run.get_or_insert(Run { first: now, last: now, renew_at: None });
        run.last = now;
        if run.renew_at.is_none() {
            run.renew_at = Some(now + self.backoff.delay());
        }
    }

    /// The channel has refused everything for so long that a new one should be tried.
    pub fn want_new_channel(&self, now: Instant) -> bool {
        self.run.as_ref().and_then(|run| run.renew_at).is_some_and(|at| at <= now)
    }

    /// A new channel is in use.
    pub fn channel_is_new(&mut self) {
        if let Some(run) = &mut self.run {
            run.renew_at = None;
        }
    }

    /// For a while, until now, nothing but refusals came.
    pub fn show_full(&self, now: Instant) -> bool {
        self.run.as_ref().is_some_and(|run| {
            let lasted = run.last.duration_since(run.first);
            lasted >= SHOWN_AFTER && now.saturating_duration_since(run.last) < FORGOTTEN_AFTER
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    /// When a publisher that is refused every 10 ms opens new channels within `lasting`.
    fn renewals(refusals: &mut Refusals, begin: Instant, lasting: Duration) -> Vec<Duration> {
        let (mut now, mut renewed) = (begin, Vec::new());
        while now < begin + lasting {
            refusals.refused(now);
            if refusals.want_new_channel(now) {
                renewed.push(now - begin);
                refusals.channel_is_new();
            }
            now += STEP;
        }
        renewed
    }

    #[test]
    fn a_channel_that_only_refuses_is_replaced_soon_and_then_ever_more_rarely() {
        let (mut refusals, begin) = (Refusals::none(), Instant::now());
        let renewed = renewals(&mut refusals, begin, Duration::from_mins(5));
        assert!(renewed[0] <= RENEW_FIRST + STEP, "{renewed:?}");
        let last = &renewed[renewed.len() - 2..];
        assert!(last[1] >= last[0] + RENEW_MAX / 2, "{renewed:?}");
        assert!(renewed.len() <= 5 + 300 / 5, "a storm of channels: {renewed:?}");
        assert!(renewed.len() >= 300 / 10, "given up: {renewed:?}");
    }

    #[test]
    fn a_message_that_is_taken_ends_the_suspicion_and_the_back_off() {
        let (mut refusals, begin) = (Refusals::none(), Instant::now());
        renewals(&mut refusals, begin, Duration::from_mins(1));
        refusals.taken();
        let later = begin + Duration::from_mins(2);
        assert!(!refusals.want_new_channel(later) && !refusals.show_full(later));
        let again = renewals(&mut refusals, later, RENEW_FIRST + STEP * 2);
        assert_eq!(again.len(), 1, "{again:?}");
    }

    #[test]
    fn a_queue_that_takes_some_is_busy_and_neither_full_nor_suspected() {
        let (mut refusals, mut now) = (Refusals::none(), Instant::now());
        for _ in 0..1_000 {
            refusals.refused(now);
            assert!(!refusals.want_new_channel(now) && !refusals.show_full(now));
            now += STEP;
            refusals.taken();
        }
    }

    #[test]
    fn a_new_channel_is_not_suspected_before_it_has_refused() {
        let (mut refusals, begin) = (Refusals::none(), Instant::now());
        refusals.refused(begin);
        let later = begin + RENEW_MAX;
        assert!(refusals.want_new_channel(later), "also when nobody published meanwhile");
        refusals.channel_is_new();
        assert!(!refusals.want_new_channel(later + RENEW_MAX));
    }

    #[test]
    fn a_full_queue_is_shown_as_long_as_it_refuses_and_not_when_nobody_asks_it() {
        let (mut refusals, begin) = (Refusals::none(), Instant::now());
        refusals.refused(begin);
        assert!(!refusals.show_full(begin), "one refusal is no state");
        let later = begin + SHOWN_AFTER;
        refusals.refused(later);
        refusals.channel_is_new();
        assert!(refusals.show_full(later + FORGOTTEN_AFTER / 2));
        assert!(!refusals.show_full(later + FORGOTTEN_AFTER));
        refusals.refused(later + FORGOTTEN_AFTER * 2);
        assert!(refusals.show_full(later + FORGOTTEN_AFTER * 2));
        refusals.taken();
        assert!(!refusals.show_full(later + FORGOTTEN_AFTER * 2));
    }
}
