//! Hears the consumers' events: feeds the cache, settles who waits, and watches what may have been
//! missed. Whether something was is checked before anybody is answered from an event.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shared::event::{Body, Committed, Continuity, Event, Events, Heed, SILENCE_MAX, Signal};
use shared::id::ItemKey;
use shared::shutdown::Shutdown;
use shared::store::Counter;

use crate::accept::identity::RecentKeys;
use crate::cache::CounterCache;
use crate::clock_check::{Ahead, ClockCheck};
use crate::document_cache::DocumentCache;
use crate::measure::metrics;
use crate::read_cache::ReadCache;
use crate::routes::metrics::question::Question;
use crate::waiters::Waiters;

/// How often is looked who fell silent, and whether the store is away for those who wait.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub struct CacheEvents {
    pub events: Arc<dyn Events>,
    pub cache: Arc<CounterCache>,
    pub documents: Arc<DocumentCache>,
    pub metrics: Arc<ReadCache<Question>>,
    pub waiters: Arc<Waiters>,
    pub recent_keys: RecentKeys,
    pub clock: ClockCheck,
    /// Consumers whose events arrive.
    pub consumers_heard: Arc<AtomicUsize>,
}

impl CacheEvents {
    /// Runs until the shutdown.
    pub async fn run(self, mut shutdown: Shutdown) {
        let mut stream = self.events.subscribe().await;
        let mut continuity = Continuity::default();
        let mut consumers = Consumers::default();
        let mut ahead = Ahead::default();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = stream.next() => match signal {
                    Signal::Event(event) => {
                        let now = Instant::now();
                        consumers.hear(&event, now);
                        self.heed(continuity.hear(&event, now));
                        self.take(&event);
                        if let Some(store_ms) = event.store_time_ms {
                            self.clock.heard(store_ms, &mut ahead);
                        }
                    }
                    Signal::Interrupted => {
                        continuity.reset();
                        self.heed(Heed::Hole);
                    }
                },
                _ = tick.tick() => {
                    let now = Instant::now();
                    self.heed(continuity.check_silence(now));
                    self.waiters.set_consumers_away(consumers.are_away(now));
                    self.consumers_heard.store(consumers.0.len(), Ordering::Relaxed);
                    metrics().consumers.set(i64::try_from(consumers.0.len()).unwrap_or(i64::MAX));
                    self.waiters.release_if_away();
                }
                () = shutdown.requested() => return,
            }
        }
    }

    fn heed(&self, heed: Heed) {
        if heed == Heed::Hole {
            tracing::debug!("events may have been missed");
            self.cache.distrust_all();
            self.documents.distrust_all();
            self.metrics.distrust_all();
            self.waiters.doubt_all();
        }
    }

    fn take(&self, event: &Event) {
        if let Body::Committed(committed) = &event.body {
            self.take_committed(committed);
        }
    }

    /// Keys and cached values first: who is answered may look at once.
    fn take_committed(&self, committed: &Committed) {
        let counters: Vec<Counter> = committed.counters.iter().cloned().map(Into::into).collect();
        self.cache.learn(&counters);
        self.documents.forget(committed.deleted.iter().copied().filter_map(ItemKey::from_uuid));
        self.metrics.changed(committed.types.iter().map(|kind| &**kind));
        self.recent_keys.hear(committed);
        self.waiters.changed(&counters);
        self.waiters.hear(committed);
    }
}

/// Which consumers said last that they cannot reach the store.
#[derive(Debug, Default)]
struct Consumers(HashMap<u64, (Instant, bool)>);

impl Consumers {
    fn hear(&mut self, event: &Event, now: Instant) {
        let is_away = match event.body {
            Body::Heartbeat { store_away } => store_away,
            Body::Committed(_) => false,
            // Nothing about the store, but its publisher lives.
            Body::Unknown => self.0.get(&event.publisher).is_some_and(|(_, is_away)| *is_away),
            Body::Goodbye => {
                self.0.remove(&event.publisher);
                return;
            }
        };
        self.0.insert(event.publisher, (now, is_away));
    }

    /// Whether all that were heard lately say so. Of consumers that nobody hears nothing is known.
    fn are_away(&mut self, now: Instant) -> bool {
        self.0.retain(|_, (heard_at, _)| now.duration_since(*heard_at) < SILENCE_MAX);
        !self.0.is_empty() && self.0.values().all(|(_, is_away)| *is_away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(publisher: u64, body: Body) -> Event {
        Event { publisher, number: 0, store_time_ms: None, body }
    }

    #[test]
    fn the_store_is_away_when_every_consumer_that_is_heard_says_so() {
        let (mut consumers, now) = (Consumers::default(), Instant::now());
        assert!(!consumers.are_away(now), "nobody knows");
        let away = || Body::Heartbeat { store_away: true };
        consumers.hear(&event(1, away()), now);
        assert!(consumers.are_away(now));
        consumers.hear(&event(2, Body::Heartbeat { store_away: false }), now);
        assert!(!consumers.are_away(now), "one reaches it");
        consumers.hear(&event(2, away()), now);
        assert!(consumers.are_away(now));
        consumers.hear(&event(2, Body::Committed(Committed::default())), now);
        assert!(!consumers.are_away(now), "it has just committed");
        consumers.hear(&event(2, Body::Unknown), now);
        assert!(!consumers.are_away(now), "nothing new about the store");
        consumers.hear(&event(2, Body::Goodbye), now);
        assert!(consumers.are_away(now));
        assert!(!consumers.are_away(now + SILENCE_MAX), "nobody is heard any more");
    }
}
