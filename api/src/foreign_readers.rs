//! Looks for readers of the queue that are no consumers of Forebay. One that holds messages without
//! acknowledging them keeps the queue's log growing, and their writes stay unapplied. The broker counts
//! all readers, the events show how many consumers there are.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shared::queue::Queue;
use shared::shutdown::Shutdown;
use shared::telemetry::metrics;

/// Time between two looks. The broker counts a consumer that died for 20 s at most.
const LOOK_EVERY: Duration = Duration::from_mins(1);

pub struct ForeignReaders {
    pub queue: Arc<dyn Queue>,
    /// Consumers whose events arrive.
    pub heard: Arc<AtomicUsize>,
}

impl ForeignReaders {
    /// Runs until the shutdown.
    pub async fn run(self, mut shutdown: Shutdown) {
        let mut seen = Seen::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.requested() => return,
            }
            let looked = tokio::select! {
                looked = self.queue.readers() => looked,
                () = shutdown.requested() => return,
            };
            match looked {
                Ok(Some(readers)) => seen.take(readers as usize, self.heard.load(Ordering::Relaxed)),
                Ok(None) => return shutdown.requested().await,
                Err(error) => tracing::debug!(%error, "the readers of the queue are not known"),
            }
        }
    }
}

/// Findings of the looks before.
#[derive(Debug, Default)]
struct Seen {
    in_a_row: u32,
}

impl Seen {
    /// Takes a look. Two in a row must agree: one may fall between the start of a consumer and its first
    /// event. While no event arrives nothing is known.
    fn take(&mut self, readers: usize, heard: usize) {
        let foreign = if heard == 0 { 0 } else { readers.saturating_sub(heard) };
        self.in_a_row = if foreign > 0 { self.in_a_row + 1 } else { 0 };
        let shown = if self.in_a_row >= 2 { foreign } else { 0 };
        metrics().queue_foreign_readers.set(i64::try_from(shown).unwrap_or(i64::MAX));
        if self.in_a_row == 2 {
            tracing::warn!(
                readers,
                readers.consumers = heard,
                "the queue has readers that are no consumers of this service: what they hold stays unapplied"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_beyond_the_consumers_that_are_heard_are_foreign_when_two_looks_agree() {
        let (mut seen, shown) = (Seen::default(), || metrics().queue_foreign_readers.get());
        for (readers, heard, expected) in [
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
            seen.take(readers, heard);
            assert_eq!(shown(), expected, "{readers} readers, {heard} heard");
        }
    }
}
