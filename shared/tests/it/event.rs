//! The contract of the events port, run against every implementation, and tests for RabbitMQ alone.
mod contract;
mod private;
mod rabbitmq;

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::event::{Body, Committed, Event, EventStream, Events, Signal};
use shared::model::outcome::Counter;

const PATIENCE: Duration = Duration::from_secs(20);

/// Publisher of the events that only check whether a stream is connected.
const PROBE: u64 = 0;

fn event(publisher: u64, number: u64, body: Body) -> Event {
    Event { publisher, number, store_time_ms: Some(1_763_600_000_000), body }
}

fn changed(publisher: u64, number: u64) -> Event {
    let value = i64::try_from(number).expect("a small number");
    let counter = Counter { name: "a.b".into(), value, version: value, updated_at_ms: 5 };
    event(publisher, number, Body::Committed(Committed { counters: vec![counter], ..Committed::default() }))
}

/// Publishes probes until one comes through: from then on the stream misses nothing.
async fn connected(events: &dyn Events) -> Box<dyn EventStream> {
    let mut stream = events.subscribe().await;
    reaches(events, stream.as_mut()).await;
    stream
}

async fn reaches(events: &dyn Events, stream: &mut dyn EventStream) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        events.publish(event(PROBE, 0, Body::Heartbeat { store_away: false }));
        let came = tokio::time::timeout(Duration::from_millis(50), stream.next()).await;
        if matches!(came, Ok(Signal::Event(_))) {
            return;
        }
        assert!(Instant::now() < deadline, "no event comes through");
    }
}

/// Returns the next signal that is not about a probe.
async fn next(stream: &mut dyn EventStream) -> Signal {
    loop {
        let signal = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a signal in time");
        match &signal {
            Signal::Event(event) if event.publisher == PROBE => {}
            _ => return signal,
        }
    }
}

fn signal(event: Event) -> Signal {
    Signal::Event(Arc::new(event))
}
