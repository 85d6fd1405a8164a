//! Events between the consumer and the API of one process.
//!
//! A bounded ring. A subscriber that is too slow loses the oldest events and gets a signal about it; a
//! publisher never waits.
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{Event, EventStream, Events, Signal};

/// Number of events that a subscriber may be behind before it loses some. One event is one transaction of
/// the consumer, so this is seconds of work.
const EVENTS_BEHIND_MAX: usize = 256;

#[derive(Debug)]
pub struct InProcessEvents {
    events: broadcast::Sender<Arc<Event>>,
}

impl InProcessEvents {
    pub fn start() -> Arc<Self> {
        Arc::new(Self { events: broadcast::Sender::new(EVENTS_BEHIND_MAX) })
    }
}

#[async_trait]
impl Events for InProcessEvents {
    fn publish(&self, event: Event) {
        // An error means that there is no subscriber, so nothing is lost.
        let _ = self.events.send(Arc::new(event));
    }

    async fn subscribe(&self) -> Box<dyn EventStream> {
        Box::new(InProcessStream { events: self.events.subscribe() })
    }

    async fn close(&self) {}
}

struct InProcessStream {
    events: broadcast::Receiver<Arc<Event>>,
}

#[async_trait]
impl EventStream for InProcessStream {
    async fn next(&mut self) -> Signal {
        match self.events.recv().await {
            Ok(event) => Signal::Event(event),
            Err(RecvError::Lagged(_)) => Signal::Interrupted,
            // The publisher is gone, which happens only while the process stops.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
