//! Events through a RabbitMQ topic exchange.
//!
//! The publisher ([`mod@publish`]) and each subscriber ([`mod@follow`]) own a connection and rebuild it
//! for ever. Events are transient, unconfirmed and dropped whenever the channel does not take them:
//! subscribers notice by the numbers and heartbeats. The queue of a subscriber is exclusive, and the
//! server names it anew in each session, since an earlier name cannot be declared again.
mod follow;
mod publish;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::follow::{RabbitEventStream, follow};
use self::publish::publish_all;
use super::{Event, EventStream, Events};
use crate::amqp::settings::RabbitSettings;
use crate::runtime::metrics::metrics;
use crate::runtime::shutdown::{self, Shutdown, Trigger};

/// Maximum of events that wait for the publisher.
const BUFFER_MAX: usize = 1_024;

/// Maximum of signals that wait for the reader of a stream; beyond them the broker's queue fills.
const SIGNALS_MAX: usize = 1_024;

/// Longest time of `close`: it sends the remaining events and says goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Events of the exchange `<prefix>.events.v1`.
pub struct RabbitEvents {
    settings: Arc<RabbitSettings>,
    runtime: Handle,
    buffer: mpsc::Sender<Event>,
    stop: Trigger,
    publisher: JoinHandle<()>,
    publisher_over: Shutdown,
}

impl RabbitEvents {
    /// Starts the sessions. Must be called on a tokio runtime, which keeps them. Never fails and never
    /// waits.
    pub fn start(settings: RabbitSettings) -> Arc<Self> {
        let (settings, runtime) = (Arc::new(settings), Handle::current());
        let (buffer, events) = mpsc::channel(BUFFER_MAX);
        let (stop, stopping) = shutdown::channel();
        let publishing = publish_all(Arc::clone(&settings), events, stopping);
        let (publisher, publisher_over) = shutdown::watched(publishing);
        Arc::new(Self { settings, runtime, buffer, stop, publisher, publisher_over })
    }
}

impl fmt::Debug for RabbitEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitEvents").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[async_trait]
impl Events for RabbitEvents {
    fn publish(&self, event: Event) {
        if self.buffer.try_send(event).is_err() {
            metrics().events_dropped.inc();
        }
    }

    async fn subscribe(&self) -> Box<dyn EventStream> {
        let (sender, signals) = mpsc::channel(SIGNALS_MAX);
        let following = Some(self.runtime.spawn(follow(Arc::clone(&self.settings), sender)));
        Box::new(RabbitEventStream { signals, following })
    }

    fn completions(&self) -> Vec<Shutdown> {
        vec![self.publisher_over.clone()]
    }

    async fn close(&self) {
        self.stop.request();
        if timeout(CLOSE_TIMEOUT, self.publisher_over.clone().requested()).await.is_err() {
            // Abort cuts its session.
            self.publisher.abort();
        }
    }
}
