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
mod dead_depth;
mod flow;
mod properties;
mod publisher;
mod refusals;
mod subscription;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use self::dead_depth::DepthReader;
use self::publisher::RabbitPublisher;
use self::subscription::{RabbitLane, RabbitSubscription};
use super::{Publisher, Queue, QueueError, Subscription, Waiting};
use crate::amqp::connection::SessionError;
use crate::amqp::settings::RabbitSettings;
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
    supervisor: Mutex<Option<JoinHandle<()>>>,
    supervisor_over: Shutdown,
}

impl RabbitQueue {
    /// Starts the publisher. Must be called on a tokio runtime, which keeps the sessions. Never fails and
    /// never waits: sessions connect by themselves, for as long as it takes.
    pub fn start(settings: RabbitSettings) -> Arc<Self> {
        let (settings, runtime) = (Arc::new(settings), Handle::current());
        let (stop, stopping) = shutdown::channel();
        let (publisher, (supervisor, supervisor_over)) =
            publisher::start(Arc::clone(&settings), stopping.clone());
        let depth = Arc::new(DepthReader::new(Arc::clone(&settings)));
        let supervisor = Mutex::new(Some(supervisor));
        Arc::new(Self { settings, runtime, publisher, depth, stop, stopping, supervisor, supervisor_over })
    }

    async fn open(&self, lane: RabbitLane, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        let (settings, runtime) = (Arc::clone(&self.settings), self.runtime.clone());
        let opened = self.runtime.spawn(RabbitSubscription::open(settings, runtime, lane, window)).await;
        let opened = opened.map_err(|stopped| QueueError::Unavailable(stopped.into()))?;
        Ok(Box::new(opened?))
    }
}

#[async_trait]
impl Queue for RabbitQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn subscribe(&self, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        self.open(RabbitLane::Writes, window).await
    }

    async fn subscribe_dead(&self, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        self.open(RabbitLane::Dead, window).await
    }

    async fn has_dead(&self) -> Result<bool, QueueError> {
        let (depth, mut stopping) = (Arc::clone(&self.depth), self.stopping.clone());
        let looked = self.runtime.spawn(async move {
            tokio::select! {
                biased;
                // A session that is being opened is cut, so that a silent broker does not hold up a
                // close.
                () = stopping.requested() => Err(SessionError::Closed),
                looked = depth.has_dead() => looked,
            }
        });
        let looked = looked.await;
        Ok(looked.map_err(|stopped| QueueError::Unavailable(stopped.into()))??)
    }

    async fn waiting(&self) -> Result<Option<Waiting>, QueueError> {
        let (depth, mut stopping) = (Arc::clone(&self.depth), self.stopping.clone());
        let looked = self.runtime.spawn(async move {
            tokio::select! {
                biased;
                () = stopping.requested() => Err(SessionError::Closed),
                looked = depth.writes() => looked,
            }
        });
        let looked = looked.await.map_err(|stopped| QueueError::Unavailable(stopped.into()))?;
        Ok(Some(looked?))
    }

    fn completions(&self) -> Vec<Shutdown> {
        vec![self.supervisor_over.clone()]
    }

    /// Answers the publishes in hand first, each by its deadline at the latest.
    async fn close(&self) {
        self.stop.request();
        let supervisor = self.supervisor.lock().expect("no code panics while it holds this lock").take();
        let published = async {
            if let Some(supervisor) = supervisor {
                // An error is a panic of the supervisor, which the panic hook has reported.
                let _ = supervisor.await;
            }
        };
        tokio::join!(self.depth.close(), published);
    }
}
