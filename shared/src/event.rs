//! Events from consumers to the API replicas: changed values, so that caches follow without requests, and
//! outcomes, so that waiting clients get an answer. A replica publishes to the others that it replaced a
//! definition.
//!
//! Events are best effort and never carry a promise. They are numbered per publisher, a heartbeat repeats
//! the last number, and [`Continuity`] turns a gap or silence into "anything may have changed". No
//! acknowledgement of a queue message waits for an event.
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
use crate::model::outcome::{Counter, CounterResult, KeyedOutcome};
use crate::runtime::shutdown::Shutdown;

/// Silence after which a publisher counts as gone, and its last events may be missing.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Interval at which a publisher repeats its last number.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

#[async_trait]
pub trait Events: Send + Sync {
    /// Hands an event to the channel without waiting. A full channel drops it, and subscribers notice by
    /// the numbers.
    fn publish(&self, event: Event);

    /// Subscribes to events from now on.
    async fn subscribe(&self) -> Box<dyn EventStream>;

    /// Completion signals of its background tasks, as those of the queue.
    fn completions(&self) -> Vec<Shutdown> {
        Vec::new()
    }

    /// Sends the events that were handed over, then closes the session.
    async fn close(&self);
}

#[async_trait]
pub trait EventStream: Send {
    /// Returns the next signal. Never ends while the process runs: a lost session is rebuilt. Panics when
    /// the task behind it did, so that the reader does not wait for ever. Safe to cancel.
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
    /// Number that each consumer process draws at random.
    pub publisher: u64,
    /// Number of the event. A change has its own number, from 1; a gap means that caches must be
    /// reloaded. A heartbeat repeats the last number.
    pub number: u64,
    /// The store's clock at the publisher, in milliseconds since 1970; `None` until it is known.
    pub store_time_ms: Option<i64>,
    pub body: Body,
}

impl Event {
    /// Event of a publisher that changed the store and does not publish the details: its one change is a
    /// missing number, so each subscriber reloads. `publisher` is drawn at random.
    pub fn something_changed(publisher: u64) -> Self {
        Self { publisher, number: 1, store_time_ms: None, body: Body::Goodbye }
    }

    /// Event of an API that replaced a definition. `publisher` is drawn at random.
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
        /// The publisher cannot reach the store: no client need wait for an outcome of it.
        store_away: bool,
    },
    /// The definition of this collection was replaced. Published by an API, which sends nothing more as
    /// this publisher.
    Defined {
        collection: Box<str>,
    },
    /// The publisher stops; its silence means nothing from now on.
    Goodbye,
    /// Body that only a newer build knows. It is numbered like a commit.
    #[serde(skip)]
    Unknown,
}

/// Effects of one transaction, or a part of them: a large transaction is spread over several events. The
/// outcome of a message is published before the message is named in `messages`, or in the same event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Committed {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<Counter>,
    /// Metric types that got points.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<Arc<str>>,
    /// Documents that were deleted, by their keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<Uuid>,
    /// Results right after increments that a client waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub standings: Vec<CounterResult>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<ItemFailed>,
    /// Keyed items that were not set aside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keyed: Vec<KeyedOutcome>,
    /// Messages that were applied: each item of them that is neither failed nor keyed is, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Uuid>,
    /// Items for which an event of another version has an entry that this build cannot read: only the
    /// store knows their outcome.
    #[serde(skip)]
    pub unclear: Vec<ItemKey>,
}

/// An item that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemFailed {
    #[serde(with = "item_key")]
    pub item: ItemKey,
    /// Fingerprint of a keyed item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    pub reason: Box<str>,
    pub detail: Box<str>,
}

/// Follows the numbers of all publishers.
#[derive(Debug, Default)]
pub struct Continuity {
    publishers: HashMap<u64, LastEvent>,
}

#[derive(Debug)]
struct LastEvent {
    number: u64,
    at: Instant,
}

/// Result of a check of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    Complete,
    /// Events were missed: any cached value may be old.
    Gap,
}

impl Continuity {
    pub fn on_event(&mut self, event: &Event, now: Instant) -> Sequence {
        let known = self.publishers.get(&event.publisher).map_or(0, |last| last.number);
        let expected = match event.body {
            Body::Committed(_) | Body::Defined { .. } | Body::Unknown => known + 1,
            Body::Heartbeat { .. } | Body::Goodbye => known,
        };
        if matches!(event.body, Body::Goodbye | Body::Defined { .. }) {
            self.publishers.remove(&event.publisher);
        } else {
            let number = event.number.max(known);
            self.publishers.insert(event.publisher, LastEvent { number, at: now });
        }
        if event.number > expected { Sequence::Gap } else { Sequence::Complete }
    }

    /// Removes publishers that fell silent; call it about once a second.
    pub fn check_silence(&mut self, now: Instant) -> Sequence {
        let before = self.publishers.len();
        self.publishers.retain(|_, last| now.duration_since(last.at) < SILENCE_MAX);
        if self.publishers.len() < before { Sequence::Gap } else { Sequence::Complete }
    }

    /// Forgets all publishers after an interruption.
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
        for event in [event(0, HEARTBEAT), changed(1), changed(2), event(2, HEARTBEAT)] {
            assert_eq!(continuity.on_event(&event, now), Sequence::Complete, "{event:?}");
        }
        assert_eq!(continuity.on_event(&event(2, Body::Goodbye), now), Sequence::Complete);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Sequence::Complete);
    }

    #[test]
    fn a_missed_change_is_a_hole_whoever_tells() {
        for teller in [changed(3), event(2, HEARTBEAT), event(2, Body::Goodbye)] {
            let (mut continuity, now) = (Continuity::default(), Instant::now());
            continuity.on_event(&changed(1), now);
            assert_eq!(continuity.on_event(&teller, now), Sequence::Gap, "{teller:?}");
        }
    }

    #[test]
    fn a_publisher_met_in_the_middle_and_one_that_falls_silent_are_holes() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        assert_eq!(continuity.on_event(&event(7, HEARTBEAT), now), Sequence::Gap);
        assert_eq!(continuity.on_event(&changed(8), now), Sequence::Complete);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX / 2), Sequence::Complete);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Sequence::Gap);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Sequence::Complete);
    }

    #[test]
    fn a_change_that_is_not_told_is_a_hole_and_leaves_nobody_to_listen_for() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        assert_eq!(continuity.on_event(&Event::something_changed(9), now), Sequence::Gap);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Sequence::Complete);
    }

    #[test]
    fn a_body_of_a_newer_version_is_numbered_like_a_change_and_is_no_hole() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        for event in [changed(1), event(2, Body::Unknown), event(2, HEARTBEAT), changed(3)] {
            assert_eq!(continuity.on_event(&event, now), Sequence::Complete, "{event:?}");
        }
        assert_eq!(continuity.on_event(&event(5, Body::Unknown), now), Sequence::Gap);
    }

    #[test]
    fn a_definition_that_was_replaced_is_no_hole_and_leaves_nobody_to_listen_for() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        assert_eq!(continuity.on_event(&Event::defined(9, "a"), now), Sequence::Complete);
        assert_eq!(continuity.check_silence(now + SILENCE_MAX), Sequence::Complete);
    }

    #[test]
    fn an_event_that_comes_twice_is_no_hole() {
        let (mut continuity, now) = (Continuity::default(), Instant::now());
        for number in [1, 2, 2, 1, 3] {
            assert_eq!(continuity.on_event(&changed(number), now), Sequence::Complete, "{number}");
        }
    }
}
