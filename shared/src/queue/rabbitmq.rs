//! Queue as a RabbitMQ quorum queue.
//!
//! [`publisher`] and every [`subscription`] own a connection each and supervise it themselves. Recovery
//! by lapin is not used. Publishing never shares a connection with consuming, because a blocked
//! connection sends no acknowledgements either. [`topology`](crate::amqp::topology) defines the queues.
//! Decisions are in `docs/decisions/0004-broker-topology.md`.
//!
//! All connections live on the runtime that [`RabbitQueue::start`] was called on, since callers publish
//! from single-threaded runtimes of their own.
mod confirms;
mod depth;
mod properties;
mod publish_session;
mod publisher;
mod refusals;
mod subscription;

use std::sync::Arc;

use async_trait::async_trait;
use lapin::types::ShortString;
use tokio::runtime::Handle;

use self::depth::DepthReader;
use self::publisher::RabbitPublisher;
use self::subscription::RabbitSubscription;
use super::{Lane, Publisher, Queue, QueueError, Subscription, Waiting};
use crate::amqp::connection::SessionError;
use crate::amqp::settings::{Names, RabbitSettings};
use crate::runtime::shutdown::{self, Shutdown, Trigger};

/// Queues `<prefix>.writes.v1` and `<prefix>.dead.v1`. Dropping it stops the publisher as
/// [`Queue::close`] does, but without waiting for it.
pub struct RabbitQueue {
    settings: Arc<RabbitSettings>,
    runtime: Handle,
    publisher: Arc<RabbitPublisher>,
    depth: Arc<DepthReader>,
    stop: Trigger,
    stopping: Shutdown,
    supervisor_over: Shutdown,
}

impl Lane {
    fn queue(self, names: Names) -> ShortString {
        match self {
            Self::Writes => names.writes,
            Self::Dead => names.dead,
        }
    }

    /// Name of a subscriber's session in the broker's tools.
    fn session_name(self) -> &'static str {
        match self {
            Self::Writes => "forebay queue consumer",
            Self::Dead => "forebay dead queue consumer",
        }
    }
}

impl RabbitQueue {
    /// Starts the publisher. Must be called on a tokio runtime, which keeps the sessions. Never fails and
    /// never waits: sessions connect by themselves, for as long as it takes.
    pub fn start(settings: RabbitSettings) -> Arc<Self> {
        let (settings, runtime) = (Arc::new(settings), Handle::current());
        let (stop, stopping) = shutdown::channel();
        let (publisher, supervisor_over) = publisher::start(Arc::clone(&settings), stopping.clone());
        let depth = Arc::new(DepthReader::new(Arc::clone(&settings)));
        Arc::new(Self { settings, runtime, publisher, depth, stop, stopping, supervisor_over })
    }
}

#[async_trait]
impl Queue for RabbitQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn subscribe(&self, lane: Lane, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        let (settings, runtime) = (Arc::clone(&self.settings), self.runtime.clone());
        let opened = self.runtime.spawn(RabbitSubscription::open(settings, runtime, lane, window)).await;
        let opened = opened.map_err(|stopped| QueueError::Unavailable(stopped.into()))?;
        Ok(Box::new(opened?))
    }

    async fn waiting(&self, lane: Lane) -> Result<Waiting, QueueError> {
        let (depth, mut stopping) = (Arc::clone(&self.depth), self.stopping.clone());
        let looked = self.runtime.spawn(async move {
            // A session that is being opened is cut, so that a silent broker does not hold up a close.
            let looked = stopping.unless_requested(depth.waiting(lane)).await;
            looked.unwrap_or(Err(SessionError::Closed))
        });
        let looked = looked.await.map_err(|stopped| QueueError::Unavailable(stopped.into()))?;
        Ok(looked?)
    }

    fn completions(&self) -> Vec<Shutdown> {
        vec![self.supervisor_over.clone()]
    }

    /// Answers the publishes in hand first, each by its deadline at the latest.
    async fn close(&self) {
        self.stop.request();
        let mut published = self.supervisor_over.clone();
        tokio::join!(self.depth.close(), published.requested());
    }
}
