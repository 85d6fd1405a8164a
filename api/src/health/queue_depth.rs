//! Looks at the queue of writes every few seconds: how many messages wait, for how long while no consumer
//! takes them, and whether the queue has readers that are no consumers of Forebay. Such a reader that holds
//! messages without acknowledging them keeps the queue's log growing, and their writes stay unapplied. The
//! broker counts all readers, the events show how many consumers there are.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shared::queue::Lane;
use shared::runtime::metrics::metrics;
use shared::runtime::shutdown::Shutdown;

use crate::state::App;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Time between two judgements on readers. The broker counts a consumer that died for 20 s at most.
const JUDGE_EVERY: Duration = Duration::from_mins(1);

/// Runs until the shutdown.
pub async fn run(app: Arc<App>, mut shutdown: Shutdown) {
    let started = Instant::now();
    let (mut seen, mut untaken) = (Seen::default(), Untaken { moving_at: started });
    let mut judged_at = started;
    loop {
        shutdown.unless_requested(tokio::time::sleep(LOOK_EVERY)).await;
        let looked = shutdown.unless_requested(app.backend.queue.waiting(Lane::Writes)).await;
        let (consumers, now) = (app.consumers_seen.load(Ordering::Relaxed), Instant::now());
        match looked {
            Some(Ok(waiting)) => {
                metrics().queue_messages.set(i64::try_from(waiting.messages).unwrap_or(i64::MAX));
                metrics()
                    .queue_untaken_seconds
                    .set(untaken.take(waiting.messages, consumers, now).as_secs_f64());
                if let Some(readers) = waiting.readers
                    && now.duration_since(judged_at) >= JUDGE_EVERY
                {
                    judged_at = now;
                    seen.take(readers as usize, consumers);
                }
            }
            None => return,
            Some(Err(error)) => tracing::debug!(%error, "the queue cannot be looked at"),
        }
    }
}

/// Waiting time of messages that no consumer takes.
#[derive(Debug)]
struct Untaken {
    /// Last time at which nothing waited, or a consumer was there.
    moving_at: Instant,
}

impl Untaken {
    /// Upper limit of the oldest message's age. Zero while a consumer's events arrive: it knows the age
    /// exactly.
    fn take(&mut self, messages: u64, consumers: usize, now: Instant) -> Duration {
        if messages == 0 || consumers > 0 {
            self.moving_at = now;
        }
        now.duration_since(self.moving_at)
    }
}

/// Findings of the looks before.
#[derive(Debug, Default)]
struct Seen {
    in_a_row: u32,
}

impl Seen {
    /// Takes the result of a look. Two in a row must agree: one may fall between the start of a consumer and
    /// its first event. While no event arrives nothing is known.
    fn take(&mut self, readers: usize, consumers: usize) {
        let foreign = if consumers == 0 { 0 } else { readers.saturating_sub(consumers) };
        self.in_a_row = if foreign > 0 { self.in_a_row + 1 } else { 0 };
        let shown = if self.in_a_row >= 2 { foreign } else { 0 };
        metrics().queue_foreign_readers.set(i64::try_from(shown).unwrap_or(i64::MAX));
        if self.in_a_row == 2 {
            tracing::warn!(
                readers,
                readers.consumers = consumers,
                "the queue has readers that are no consumers of this service: what they hold stays unapplied"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_consumer_takes_grows_old_until_one_does_or_nothing_waits() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut untaken = Untaken { moving_at: begin };
        for (seconds, messages, consumers, age) in [
            (5, 0, 0, 0),
            (10, 3, 0, 5),
            (15, 3, 0, 10),
            (20, 3, 1, 0),
            (25, 3, 0, 5),
            (30, 0, 0, 0),
            (35, 1, 2, 0),
        ] {
            assert_eq!(untaken.take(messages, consumers, at(seconds)), Duration::from_secs(age), "{seconds}");
        }
    }

    #[test]
    fn readers_beyond_the_consumers_that_are_heard_are_foreign_when_two_looks_agree() {
        let (mut seen, shown) = (Seen::default(), || metrics().queue_foreign_readers.get());
        for (readers, consumers, expected) in [
            (2, 2, 0),
            (3, 2, 0),
            (3, 2, 1),
            (4, 2, 2),
            (3, 3, 0),
            (4, 3, 0),
            (3, 3, 0),
            (5, 0, 0),
            (5, 0, 0),
        ] {
            seen.take(readers, consumers);
            assert_eq!(shown(), expected, "{readers} readers, {consumers} consumers");
        }
    }
}
