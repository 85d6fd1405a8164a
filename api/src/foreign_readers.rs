//! Looks for readers of the queue that are no consumers of Forebay. One that holds messages and
//! neither acknowledges nor loses them keeps the queue's log growing, and their writes are applied by
//! nobody. The broker tells how many read; how many should, the events tell.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shared::queue::Queue;
use shared::shutdown::Shutdown;

use crate::measure::metrics;

/// How often is looked. A consumer that died is read by the broker as one for 20 s at most.
const LOOK_EVERY: Duration = Duration::from_mins(1);

pub struct ForeignReaders {
    pub queue: Arc<dyn Queue>,
    /// Consumers whose events come.
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
            match self.queue.readers().await {
                Ok(Some(readers)) => seen.take(readers as usize, self.heard.load(Ordering::Relaxed)),
                Ok(None) => return shutdown.requested().await,
                Err(error) => tracing::debug!(%error, "the readers of the queue are not known"),
            }
        }
    }
}

/// What the looks before found.
#[derive(Debug, Default)]
struct Seen {
    in_a_row: u32,
}

impl Seen {
    /// Two looks in a row must agree: one may fall between the start of a consumer and its first event.
    /// While no consumer is heard nothing is known.
    fn take(&mut self, readers: usize, heard: usize) {
        let foreign = if heard == 0 { 0 } else { readers.saturating_sub(heard) };
        self.in_a_row = if foreign > 0 { self.in_a_row + 1 } else { 0 };
        let shown = if self.in_a_row >= 2 { foreign } else { 0 };
        metrics().foreign_readers.set(i64::try_from(shown).unwrap_or(i64::MAX));
        if self.in_a_row == 2 {
            tracing::warn!(
                readers,
                readers.consumers = heard,
                "the queue has readers that are no consumers of this service: what they hold is applied by nobody"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_beyond_the_consumers_that_are_heard_are_foreign_when_two_looks_agree() {
        let (mut seen, shown) = (Seen::default(), || metrics().foreign_readers.get());
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
