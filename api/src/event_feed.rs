//! Receives the consumers' events: updates the caches, answers waiting requests, and watches for gaps.
//! Gaps are checked before any request is answered from an event.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shared::event::{Body, Committed, Continuity, Event, SILENCE_MAX, Sequence, Signal};
use shared::model::id::ItemKey;
use shared::queue::Link;
use shared::runtime::shutdown::Shutdown;

use crate::admission::clock_skew::Ahead;
use crate::metrics::metrics;
use crate::state::App;

/// Time between two checks for silent consumers, and for a store that is away while requests wait.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Time that the sessions for events may take to come back after the broker did.
const RECONNECT_MAX: Duration = Duration::from_secs(6);

/// Runs until the shutdown.
pub async fn run(app: Arc<App>, shutdown: Shutdown) {
    Feed(app).run(shutdown).await;
}

struct Feed(Arc<App>);

impl Feed {
    async fn run(self, mut shutdown: Shutdown) {
        let mut stream = self.0.events.subscribe().await;
        let mut continuity = Continuity::default();
        let mut consumers = Consumers::new(Instant::now());
        let mut ahead = Ahead::default();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = stream.next() => match signal {
                    Signal::Event(event) => {
                        let now = Instant::now();
                        consumers.on_event(&event, now);
                        self.check(continuity.on_event(&event, now));
                        self.take(&event);
                        if let Some(store_ms) = event.store_time_ms {
                            self.0.clock.heard(store_ms, &mut ahead);
                        }
                    }
                    Signal::Interrupted => {
                        continuity.reset();
                        self.check(Sequence::Gap);
                    }
                },
                _ = tick.tick() => {
                    let now = Instant::now();
                    self.check(continuity.check_silence(now));
                    self.look_after(&mut consumers, now);
                }
                () = shutdown.requested() => return,
            }
        }
    }

    fn look_after(&self, consumers: &mut Consumers, now: Instant) {
        if matches!(self.0.publisher.link(), Link::Down | Link::Opening) {
            consumers.may_return(now + RECONNECT_MAX);
        }
        self.0.waiters.set_consumers_away(consumers.are_away(now));
        let (count, are_missing) = (consumers.count(), consumers.are_missing(now));
        self.0.consumers_seen.store(count, Ordering::Relaxed);
        metrics().consumers.set(i64::try_from(count).unwrap_or(i64::MAX));
        if are_missing != self.0.waiters.consumers_are_missing() {
            self.0.waiters.set_consumers_missing(are_missing);
            if are_missing {
                tracing::warn!("no consumer runs: writes are accepted, and applied once one does");
            } else if count > 0 {
                tracing::info!(consumers.count = count, "consumers run again");
            }
        }
        self.0.waiters.release_if_vain();
    }

    fn check(&self, sequence: Sequence) {
        if sequence == Sequence::Gap {
            tracing::debug!("events may have been missed");
            self.0.cache.invalidate_all();
            self.0.documents.invalidate_all();
            self.0.metrics.cache.invalidate_all();
            self.0.definitions.invalidate_all();
            self.0.waiters.doubt_all();
        }
    }

    fn take(&self, event: &Event) {
        match &event.body {
            Body::Committed(committed) => self.take_committed(committed),
            Body::Defined { .. } => self.0.definitions.invalidate_all(),
            Body::Heartbeat { .. } | Body::Goodbye | Body::Unknown => {}
        }
    }

    /// Takes a commit. Keys and cached values come first: a client that is answered may read at once.
    fn take_committed(&self, committed: &Committed) {
        self.0.cache.apply_update(&committed.counters);
        self.0.documents.forget(committed.deleted.iter().copied().filter_map(ItemKey::from_uuid));
        self.0.metrics.cache.changed(committed.types.iter().map(|kind| &**kind));
        self.0.recent_keys.on_event(committed);
        self.0.waiters.changed(&committed.counters);
        self.0.waiters.on_event(committed);
    }
}

/// Consumers that send events, and those of them that said last that they cannot reach the store.
#[derive(Debug)]
struct Consumers {
    last_events: HashMap<u64, (Instant, bool)>,
    /// Time until which silence does not mean that no consumer runs: one may just start, or come back.
    unknown_until: Instant,
}

impl Consumers {
    fn new(now: Instant) -> Self {
        Self { last_events: HashMap::new(), unknown_until: now + SILENCE_MAX }
    }

    fn on_event(&mut self, event: &Event, now: Instant) {
        let is_away = match event.body {
            Body::Heartbeat { store_away } => store_away,
            Body::Committed(_) => false,
            // Says nothing about the store, but shows that its publisher lives, if that is a consumer.
            Body::Unknown => match self.last_events.get(&event.publisher) {
                Some((_, is_away)) => *is_away,
                None => return,
            },
            // An API publishes that, no consumer.
            Body::Defined { .. } => return,
            Body::Goodbye => {
                if self.last_events.remove(&event.publisher).is_some() {
                    self.may_return(now + SILENCE_MAX);
                }
                return;
            }
        };
        self.last_events.insert(event.publisher, (now, is_away));
        self.may_return(now + SILENCE_MAX);
    }

    /// Makes silence mean nothing until then.
    fn may_return(&mut self, until: Instant) {
        self.unknown_until = self.unknown_until.max(until);
    }

    fn count(&self) -> usize {
        self.last_events.len()
    }

    /// Returns true when no event of a consumer came for so long that none runs.
    fn are_missing(&self, now: Instant) -> bool {
        self.last_events.is_empty() && now >= self.unknown_until
    }

    /// Returns true when all consumers that sent events lately say that the store is away. Nothing is known
    /// of other consumers.
    fn are_away(&mut self, now: Instant) -> bool {
        self.last_events.retain(|_, (received_at, _)| now.duration_since(*received_at) < SILENCE_MAX);
        !self.last_events.is_empty() && self.last_events.values().all(|(_, is_away)| *is_away)
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
        let now = Instant::now();
        let mut consumers = Consumers::new(now);
        assert!(!consumers.are_away(now), "nobody knows");
        let away = || Body::Heartbeat { store_away: true };
        consumers.on_event(&event(1, away()), now);
        assert!(consumers.are_away(now));
        consumers.on_event(&event(2, Body::Heartbeat { store_away: false }), now);
        assert!(!consumers.are_away(now), "one reaches it");
        consumers.on_event(&event(2, away()), now);
        assert!(consumers.are_away(now));
        consumers.on_event(&event(2, Body::Committed(Committed::default())), now);
        assert!(!consumers.are_away(now), "it has just committed");
        consumers.on_event(&event(2, Body::Unknown), now);
        assert!(!consumers.are_away(now), "nothing new about the store");
        consumers.on_event(&event(2, Body::Goodbye), now);
        assert!(consumers.are_away(now));
        assert!(!consumers.are_away(now + SILENCE_MAX), "nobody is heard any more");
    }

    #[test]
    fn consumers_are_missing_after_silence_or_a_goodbye_and_not_while_one_may_return() {
        let begin = Instant::now();
        let after = |ms: u64| begin + Duration::from_millis(ms);
        let mut consumers = Consumers::new(begin);
        let missing_at = |consumers: &mut Consumers, ms: u64| {
            consumers.are_away(after(ms));
            consumers.are_missing(after(ms))
        };
        assert!(!missing_at(&mut consumers, 2_900), "it has just begun to listen");
        assert!(missing_at(&mut consumers, 3_000), "none was there");
        let heartbeat = |publisher| event(publisher, Body::Heartbeat { store_away: true });
        consumers.on_event(&heartbeat(1), after(3_100));
        assert!(!missing_at(&mut consumers, 6_000), "it is there, whatever it says of the store");
        assert!(missing_at(&mut consumers, 6_100), "silence");
        consumers.on_event(&heartbeat(2), after(6_200));
        consumers.on_event(&event(2, Body::Goodbye), after(7_000));
        assert!(!missing_at(&mut consumers, 9_900), "another may be about to start");
        assert!(missing_at(&mut consumers, 10_000));
        consumers.on_event(&event(3, Body::Goodbye), after(10_100));
        assert!(missing_at(&mut consumers, 10_100), "that was no consumer");
        consumers.may_return(after(16_000));
        assert!(!missing_at(&mut consumers, 15_900), "nothing could be heard");
    }
}
