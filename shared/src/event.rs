//! What consumers tell the API replicas: changed values, so that caches follow without asking, and
//! outcomes, so that whoever waits for one is answered. A replica tells the others that it replaced a
//! definition.
//!
//! Events are best effort and never carry a promise: they are numbered per publisher, a heartbeat
//! repeats the last number, and [`Continuity`] turns a hole or silence into "anything may have
//! changed". No acknowledgement of a queue message waits for an event.
pub mod in_process;
pub mod rabbitmq;
mod read;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::id::ItemKey;
use crate::model::idempotency::{Fingerprint, item_key};
use crate::model::outcome::{Counter, KeyedVerdict};
use crate::runtime::shutdown::Shutdown;

/// A publisher that was not heard for this long is gone, and what it said last may be missing.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How often a publisher repeats its last number.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

#[async_trait]
pub trait Events: Send + Sync {
    /// Hands an event to the channel without waiting; a full channel drops it, and the numbers
    /// tell the subscribers.
    fn publish(&self, event: Event);

    /// Events from now on.
    async fn subscribe(&self) -> Box<dyn EventStream>;

    /// What hears the ends of the tasks that it runs by itself, as that of the queue does.
    fn over(&self) -> Vec<Shutdown> {
        Vec::new()
    }

    /// Sends what was handed over, then closes the session.
    async fn close(&self);
}

#[async_trait]
pub trait EventStream: Send {
    /// The next signal. Never ends while the process runs: a lost session is rebuilt. Panics when the
    /// task behind it did, so that who reads does not wait for ever. Safe to cancel.
    async fn next(&mut self) -> Signal;
}

#[derive(Clone, Debug, PartialEq)]
pub enum Signal {
    Event(Arc<Event>),
    /// Events may have been missed.
    Interrupted,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Drawn at random by each consumer process.
    pub publisher: u64,
    /// Of a change: its own number, from 1; one that is left out means "look for yourselves". Of
    /// a heartbeat: the last number.
    pub number: u64,
    /// The store's clock at the publisher, in milliseconds since 1970; `None` until it is known.
    pub store_time_ms: Option<i64>,
    pub body: Body,
}

impl Event {
    /// From somebody who changed the store and does not say what: the number of a change that
    /// nobody heard is a hole, so whoever hears this looks for himself. `publisher` is drawn at random.
    pub fn something_changed(publisher: u64) -> Self {
        Self { publisher, number: 1, store_time_ms: None, body: Body::Goodbye }
    }

    /// From an API that replaced a definition. `publisher` is drawn at random.
    pub fn defined(publisher: u64, collection: &str) -> Self {
        Self {
            publisher,
            number: 1,
            store_time_ms: None,
            body: Body::Defined { collection: collection.into() },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    Committed(Committed),
    Heartbeat {
        /// The publisher cannot reach the store: nobody need wait for an outcome of its.
        store_away: bool,
    },
    /// The definition of this collection was replaced. Said by an API, which is heard of no more.
    Defined {
        collection: Box<str>,
    },
    /// The publisher stops; its silence means nothing from now on.
    Goodbye,
    /// A body that only a newer build knows. It is numbered like a commit.
    #[serde(skip)]
    Unknown,
}

/// What one transaction did, or a part of it: a large one is told in several events. What a
/// message came to is told before the message is named in `messages`, or in the same event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Committed {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<CounterChanged>,
    /// Metric types that got points.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<Arc<str>>,
    /// Documents that were deleted, by their keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<Uuid>,
    /// After increments that somebody waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub standings: Vec<Standing>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<ItemFailed>,
    /// Keyed items that were not set aside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keyed: Vec<KeyedTold>,
    /// Messages that were applied: each item of them that is neither failed nor keyed is, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Uuid>,
    /// Items of which an event of another version says something that this build cannot read: only
    /// the store knows what they came to.
    #[serde(skip)]
    pub unclear: Vec<ItemKey>,
}

/// Value and version of a counter right after one increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    #[serde(with = "item_key")]
    pub item: ItemKey,
    pub value: i64,
    pub version: i64,
}

/// An item that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemFailed {
    #[serde(with = "item_key")]
    pub item: ItemKey,
    /// Of a keyed item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    pub reason: Box<str>,
    pub detail: Box<str>,
}

/// What a keyed item came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyedTold {
    #[serde(with = "item_key")]
    pub item: ItemKey,
    pub fingerprint: Fingerprint,
    pub verdict: KeyedVerdict,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterChanged {
    pub name: Arc<str>,
    pub value: i64,
    pub version: i64,
    pub updated_at_ms: i64,
}

impl From<Counter> for CounterChanged {
    fn from(counter: Counter) -> Self {
        let Counter { name, value, version, updated_at_ms } = counter;
        Self { name, value, version, updated_at_ms }
    }
}

impl From<CounterChanged> for Counter {
    fn from(changed: CounterChanged) -> Self {
        let CounterChanged { name, value, version, updated_at_ms } = changed;
        Self { name, value, version, updated_at_ms }
    }
}

/// Follows the numbers of all publishers.
#[derive(Debug, Default)]
pub struct Continuity {
    publishers: HashMap<u64, Heard>,
}

#[derive(Debug)]
struct Heard {
    number: u64,
    at: Instant,
}

/// Whether everything was heard so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heed {
    Complete,
    /// Something was missed: any cached value may be old.
    Hole,
}

impl Continuity {
    pub fn hear(&mut self, event: &Event, now: Instant) -> Heed {
        let known = self.publishers.get(&event.publisher).map_or(0, |heard| heard.number);
        let expected = match event.body {
            Body::Committed(_) | Body::Defined { .. } | Body::Unknown => known + 1,
            Body::Heartbeat { .. } | Body::Goodbye => known,
        };
        if matches!(event.body, Body::Goodbye | Body::Defined { .. }) {
            self.publishers.remove(&event.publisher);
        } else {
            let number = event.number.max(known);
            self.publishers.insert(event.publisher, Heard { number, at: now });
        }
        if event.number > expected { Heed::Hole } else { Heed::Complete }
    }

    /// Forgets publishers that fell silent; to be called about once a second.
    pub fn check_silence(&mut self, now: Instant) -> Heed {
        let before = self.publishers.len();
        self.publishers.retain(|_, heard| now.duration_since(heard.at) < SILENCE_MAX);
        if self.publishers.len() < before { Heed::Hole } else { Heed::Complete }
    }

    /// After an interruption nothing is known of anybody.
    pub fn reset(&mut self) {
        self.publishers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Body = Body::Heartbeat { store_away: false };

    fn event(number: u64, body: Body) -> Event {
        Event { publisher: 1, number, store_time_ms: None, body }
    }

    fn changed(number: u64) -> Event {
        event(number, Body::Committed(Committed::default()))
    }

    #[test]
    fn a_publisher_heard_from_its_beginning_leaves_no_hole() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        for heard in [event(0, HEARTBEAT), changed(1), changed(2), event(2, HEARTBEAT)] {
            assert_eq!(continuity.hear(&heard, now), Heed::Complete, "{heard:?}");
        }
        assert_eq!(continuity.hear(&event(2, Body::Goodbye), now), Heed::Complete);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Heed::Complete);
    }

    #[test]
    fn a_missed_change_is_a_hole_whoever_tells() {
        for teller in [changed(3), event(2, HEARTBEAT), event(2, Body::Goodbye)] {
            let (mut continuity, now) = (Continuity::default(), Instant::now());
            continuity.hear(&changed(1), now);
            assert_eq!(continuity.hear(&teller, now), Heed::Hole, "{teller:?}");
        }
    }

    #[test]
    fn a_publisher_met_in_the_middle_and_one_that_falls_silent_are_holes() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        assert_eq!(continuity.hear(&event(7, HEARTBEAT), now), Heed::Hole);
        assert_eq!(continuity.hear(&changed(8), now), Heed::Complete);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX / 2), Heed::Complete);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Heed::Hole);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Heed::Complete);
    }

    #[test]
    fn a_change_that_is_not_told_is_a_hole_and_leaves_nobody_to_listen_for() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        assert_eq!(continuity.hear(&Event::something_changed(9), now), Heed::Hole);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Heed::Complete);
    }

    #[test]
    fn a_body_of_a_newer_version_is_numbered_like_a_change_and_is_no_hole() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        for heard in [changed(1), event(2, Body::Unknown), event(2, HEARTBEAT), changed(3)] {
            assert_eq!(continuity.hear(&heard, now), Heed::Complete, "{heard:?}");
        }
        assert_eq!(continuity.hear(&event(5, Body::Unknown), now), Heed::Hole);
    }

    #[test]
    fn a_definition_that_was_replaced_is_no_hole_and_leaves_nobody_to_listen_for() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        assert_eq!(continuity.hear(&Event::defined(9, "a"), now), Heed::Complete);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Heed::Complete);
    }

    #[test]
    fn an_event_that_comes_twice_is_no_hole() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        for number in [1, 2, 2, 1, 3] {
            assert_eq!(continuity.hear(&changed(number), now), Heed::Complete, "{number}");
        }
    }
}
