//! Hears the consumers' events: feeds the cache, settles who waits, and watches what may have been
//! missed. Whether something was is checked before anybody is answered from an event.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shared::clock;
use shared::event::{Body, Committed, Continuity, Event, Events, HEARTBEAT_EVERY, Heed, SILENCE_MAX, Signal};
use shared::id::ItemKey;
use shared::shutdown::Shutdown;
use shared::store::Counter;

use crate::accept::identity::RecentKeys;
use crate::cache::CounterCache;
use crate::document_cache::DocumentCache;
use crate::measure::metrics;
use crate::read_cache::ReadCache;
use crate::routes::metrics::question::Question;
use crate::waiters::Waiters;

/// How often is looked who fell silent, and whether the store is away for those who wait.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long events must tell that this replica's clock is ahead until it is believed.
const AHEAD_FOR: Duration = HEARTBEAT_EVERY.saturating_mul(2);

/// Set while this replica's clock differs from the store's by more than is allowed.
pub type ClockOff = Arc<AtomicBool>;

pub struct CacheEvents {
    pub events: Arc<dyn Events>,
    pub cache: Arc<CounterCache>,
    pub documents: Arc<DocumentCache>,
    pub metrics: Arc<ReadCache<Question>>,
    pub waiters: Arc<Waiters>,
    pub recent_keys: RecentKeys,
    pub clock_off: ClockOff,
    pub clock_skew_max: Duration,
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
                        if let Some(store_time_ms) = event.store_time_ms {
                            let skew_ms = clock::now_ms().saturating_sub(store_time_ms);
                            self.tell_clock(skew_ms, ahead.is_off(skew_ms, self.clock_skew_max, now));
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

    fn tell_clock(&self, skew_ms: i64, off: bool) {
        metrics().clock_skew_ms.set(skew_ms);
        if self.clock_off.swap(off, Ordering::Relaxed) != off {
            tracing::warn!(clock.skew_ms = skew_ms, clock.off = off, "clock compared with the store's");
        }
    }
}

/// Since when this replica's clock has looked ahead of the store's by more than is allowed. An event
/// may be late, as one is that a broker held back during an alarm, but never from the future: late
/// ones read as "ahead", so that is believed when no event of the next heartbeats contradicts it.
#[derive(Debug, Default)]
struct Ahead(Option<Instant>);

impl Ahead {
    fn is_off(&mut self, skew_ms: i64, skew_max: Duration, now: Instant) -> bool {
        if Duration::from_millis(skew_ms.unsigned_abs()) <= skew_max {
            self.0 = None;
            return false;
        }
        skew_ms < 0 || now.duration_since(*self.0.get_or_insert(now)) >= AHEAD_FOR
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
        consumers.hear(&event(2, Body::Goodbye), now);
        assert!(consumers.are_away(now));
        assert!(!consumers.are_away(now + SILENCE_MAX), "nobody is heard any more");
    }

    #[test]
    fn a_late_event_puts_no_clock_off_and_a_clock_that_is_off_stays_so() {
        let (mut ahead, begin, max) = (Ahead::default(), Instant::now(), Duration::from_mins(1));
        let mut is_off =
            |skew_ms, after_ms| ahead.is_off(skew_ms, max, begin + Duration::from_millis(after_ms));
        assert!(!is_off(300_000, 0), "perhaps late");
        assert!(!is_off(299_000, 1_500), "perhaps late, too");
        assert!(!is_off(20, 2_500), "it was");
        assert!(!is_off(90_000, 3_000));
        assert!(is_off(90_000, 5_000), "nobody says otherwise");
        assert!(is_off(90_000, 6_000));
        assert!(!is_off(0, 7_000), "it was set right");
        assert!(is_off(-60_001, 8_000), "no event is from the future");
        assert!(!is_off(-60_000, 9_000));
    }
}
