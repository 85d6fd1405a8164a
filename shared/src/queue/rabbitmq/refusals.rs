//! Evaluates refusals in a row. Pure.
//!
//! A negative confirm means that the queue is full, and most often it is. But the broker decides it per
//! channel, and a channel can be wrong for as long as it lives. On RabbitMQ 3.10 a channel that first
//! publishes while the leader's node has just gone asks that node for permission, at each publish and
//! never another one. The notice that there is room again is sent to each channel once, by a leader that
//! may go before it is out. So a session that only refuses is replaced like one that is lost.
use std::time::{Duration, Instant};

/// Longest time that a session may refuse everything before it is given up. It equals the lifetime after
/// which the next session follows at once.
const SESSION_MAX: Duration = Duration::from_secs(5);
/// Time with refusals only after which the queue is shown as full.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// Time without a refusal after which the state of the queue is unknown again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

/// Refusals since the last message that the queue took, over all sessions.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    run: Option<Run>,
}

#[derive(Debug)]
struct Run {
    first: Instant,
    last: Instant,
    /// First refusal in this session; `None` when there was none yet.
    in_session: Option<Instant>,
}

impl Refusals {
    /// Records that the queue took a message.
    pub fn taken(&mut self) {
        self.run = None;
    }

    /// Records that the queue refused a message.
    pub fn refused(&mut self, now: Instant) {
        let run = self.run.get_or_insert(Run { first: now, last: now, in_session: None });
        run.last = now;
        run.in_session.get_or_insert(now);
    }

    pub fn session_is_new(&mut self) {
        if let Some(run) = &mut self.run {
            run.in_session = None;
        }
    }

    /// Tests whether the session has refused everything for so long that another one should be tried.
    pub fn session_is_useless(&self, now: Instant) -> bool {
        let since = self.run.as_ref().and_then(|run| run.in_session);
        since.is_some_and(|since| now.saturating_duration_since(since) >= SESSION_MAX)
    }

    /// Tests whether only refusals came for a while, until now.
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

    #[test]
    fn a_session_that_only_refuses_is_given_up_and_a_new_one_not_before_it_refuses() {
        let (mut refusals, begin) = (Refusals::default(), Instant::now());
        refusals.refused(begin);
        assert!(!refusals.session_is_useless(begin));
        let later = begin + SESSION_MAX;
        assert!(refusals.session_is_useless(later), "also when nobody published meanwhile");
        refusals.session_is_new();
        assert!(!refusals.session_is_useless(later + SESSION_MAX));
        refusals.refused(later + SESSION_MAX);
        assert!(!refusals.session_is_useless(later + SESSION_MAX));
        assert!(refusals.session_is_useless(later + SESSION_MAX * 2));
    }

    #[test]
    fn a_queue_that_takes_some_is_busy_and_neither_full_nor_suspected() {
        let (mut refusals, mut now) = (Refusals::default(), Instant::now());
        for _ in 0..1_000 {
            refusals.refused(now);
            assert!(!refusals.session_is_useless(now) && !refusals.show_full(now));
            now += Duration::from_millis(10);
            refusals.taken();
        }
    }

    #[test]
    fn a_full_queue_is_shown_as_long_as_it_refuses_and_not_when_nobody_asks_it() {
        let (mut refusals, begin) = (Refusals::default(), Instant::now());
        refusals.refused(begin);
        assert!(!refusals.show_full(begin), "one refusal is no state");
        let later = begin + SHOWN_AFTER;
        refusals.refused(later);
        refusals.session_is_new();
        assert!(refusals.show_full(later + FORGOTTEN_AFTER / 2));
        assert!(!refusals.show_full(later + FORGOTTEN_AFTER));
        refusals.refused(later + FORGOTTEN_AFTER * 2);
        assert!(refusals.show_full(later + FORGOTTEN_AFTER * 2));
        refusals.taken();
        assert!(!refusals.show_full(later + FORGOTTEN_AFTER * 2));
    }
}
