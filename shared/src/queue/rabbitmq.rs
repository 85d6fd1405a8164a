//! The queue as a RabbitMQ quorum queue.
//!
//! [`publisher`] and every [`subscription`] own a connection each and supervise it themselves:
//! nothing here recovers by lapin's means, and publishing never shares a connection with
//! consuming, because a blocked connection sends no acknowledgements either. [`topology`] says
//! which queues there are. Decisions are in `docs/decisions/0004-broker-topology.md`.
//!
//! All connections live on the runtime that [`RabbitQueue::start`] was called on, since callers
//! publish from single-threaded runtimes of their own.
mod connection;
mod flow;
mod judged;
mod look;
mod properties;
mod publisher;
mod refusals;
mod subscription;
mod topology;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lapin::uri::AMQPUri;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub(crate) use self::connection::{ConnectionEvents, LogOnce, Session, SessionError, call};
use self::look::Look;
use self::publisher::RabbitPublisher;
use self::subscription::{Lane, RabbitSubscription};
pub(crate) use self::topology::{Names, declare_events};
use super::{Publisher, Queue, QueueError, QueueLimits, Subscription, Waiting};
use crate::config::Config;
use crate::shutdown::{self, Shutdown, Trigger};

/// Seconds between heartbeats when the URL does not say; twice of it without a byte ends a session.
const HEARTBEAT_SECONDS: u16 = 10;

/// Messages that may wait for their confirms at once. Beyond a few hundred a quorum queue gains
/// nothing from more.
const IN_FLIGHT_MAX: usize = 1_024;

/// Bytes of messages that may wait for their confirms at once: lapin's buffer has no bound.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Messages that may wait for a session; further callers wait for a place until their deadline.
const WAITING_MAX: usize = 1_024;

/// What both RabbitMQ ports need to know.
#[derive(Clone)]
pub struct RabbitSettings {
    /// `None` when the URL could not be read; connecting then fails with that reason.
    uri: Option<AMQPUri>,
    prefix: String,
    limits: QueueLimits,
    /// How old a new queue must be before it is published to.
    settle: Duration,
    in_flight_max: usize,
    in_flight_bytes_max: usize,
    waiting_max: usize,
}

impl RabbitSettings {
    /// `prefix` begins the name of every queue and exchange. A new queue is published to at once.
    pub fn new(url: &str, prefix: &str, limits: QueueLimits) -> Self {
        let mut uri: Option<AMQPUri> = url.parse().ok();
        if let Some(uri) = &mut uri {
            uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        }
        Self {
            uri,
            prefix: prefix.into(),
            limits,
            settle: Duration::ZERO,
            in_flight_max: IN_FLIGHT_MAX,
            in_flight_bytes_max: IN_FLIGHT_BYTES_MAX,
            waiting_max: WAITING_MAX,
        }
    }

    pub(crate) fn names(&self) -> Names {
        Names::new(&self.prefix)
    }
}

impl From<&Config> for RabbitSettings {
    fn from(config: &Config) -> Self {
        let limits = QueueLimits {
            bytes_max: config.queue.bytes_max,
            confirm_timeout: Duration::from_millis(config.queue.confirm_timeout_ms),
        };
        let settle = Duration::from_millis(config.queue.settle_ms);
        Self { settle, ..Self::new(&config.queue.url, &config.queue.prefix, limits) }
    }
}

/// Without user and password.
impl fmt::Debug for RabbitSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.uri.as_ref().map(|uri| {
            format!("{}://{}:{}/{}", uri.scheme, uri.authority.host, uri.authority.port, uri.vhost)
        });
        f.debug_struct("RabbitSettings")
            .field("server", &server)
            .field("prefix", &self.prefix)
            .field("limits", &self.limits)
            .field("settle", &self.settle)
            .field("in_flight_max", &self.in_flight_max)
            .field("in_flight_bytes_max", &self.in_flight_bytes_max)
            .field("waiting_max", &self.waiting_max)
            .finish()
    }
}

/// The queues `<prefix>.writes.v1` and `<prefix>.dead.v1`. Dropping it stops the publisher as [`Queue::close`] does, but
/// without waiting for it.
pub struct RabbitQueue {
    settings: Arc<RabbitSettings>,
    runtime: Handle,
    publisher: Arc<RabbitPublisher>,
    look: Arc<Look>,
    stop: Trigger,
    stopping: Shutdown,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    supervisor_over: Shutdown,
}

impl RabbitQueue {
    /// Must be called on a tokio runtime, which keeps the sessions. Never fails and never waits:
    /// sessions connect by themselves, for as long as it takes.
    pub fn start(settings: RabbitSettings) -> Arc<Self> {
        let (settings, runtime) = (Arc::new(settings), Handle::current());
        let (stop, stopping) = shutdown::channel();
        let (publisher, (supervisor, supervisor_over)) =
            publisher::start(Arc::clone(&settings), stopping.clone());
        let look = Arc::new(Look::new(Arc::clone(&settings)));
        let supervisor = Mutex::new(Some(supervisor));
        Arc::new(Self { settings, runtime, publisher, look, stop, stopping, supervisor, supervisor_over })
    }

    async fn open(&self, lane: Lane, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
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
        self.open(Lane::Writes, window).await
    }

    async fn subscribe_dead(&self, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        self.open(Lane::Dead, window).await
    }

    async fn has_dead(&self) -> Result<bool, QueueError> {
        let (look, mut stopping) = (Arc::clone(&self.look), self.stopping.clone());
        let looked = self.runtime.spawn(async move {
            tokio::select! {
                biased;
                // What it had opened is cut, so that a silent broker does not hold up a close.
                () = stopping.requested() => Err(SessionError::Closed),
                looked = look.has_dead() => looked,
            }
        });
        let looked = looked.await;
        Ok(looked.map_err(|stopped| QueueError::Unavailable(stopped.into()))??)
    }

    async fn waiting(&self) -> Result<Option<Waiting>, QueueError> {
        let (look, mut stopping) = (Arc::clone(&self.look), self.stopping.clone());
        let looked = self.runtime.spawn(async move {
            tokio::select! {
                biased;
                () = stopping.requested() => Err(SessionError::Closed),
                looked = look.writes() => looked,
            }
        });
        let looked = looked.await.map_err(|stopped| QueueError::Unavailable(stopped.into()))?;
        Ok(Some(looked?))
    }

    fn over(&self) -> Vec<Shutdown> {
        vec![self.supervisor_over.clone()]
    }

    /// Publishes that are in hand are answered first, each by its deadline at the latest.
    async fn close(&self) {
        self.stop.request();
        let supervisor = self.supervisor.lock().expect("no code panics while it holds this lock").take();
        let published = async {
            if let Some(supervisor) = supervisor {
                // An error is a panic of the supervisor, which the panic hook has told.
                let _ = supervisor.await;
            }
        };
        tokio::join!(self.look.close(), published);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { bytes_max: 1, confirm_timeout: Duration::from_secs(1) };

    fn heartbeat(url: &str) -> Option<u16> {
        RabbitSettings::new(url, "p", LIMITS).uri.expect("a URL").query.heartbeat
    }

    #[test]
    fn a_heartbeat_is_asked_for_unless_the_url_does() {
        assert_eq!(heartbeat("amqp://host"), Some(HEARTBEAT_SECONDS));
        assert_eq!(heartbeat("amqp://host/%2f?channel_max=7"), Some(HEARTBEAT_SECONDS));
        assert_eq!(heartbeat("amqp://host/%2f?channel_max=7&heartbeat=3"), Some(3));
    }

    #[test]
    fn neither_user_nor_password_are_shown() {
        for url in ["amqp://anna:geheim@host:1/v", "amqp:anna:geheim@host"] {
            let shown = format!("{:?}", RabbitSettings::new(url, "p", LIMITS));
            assert!(!shown.contains("geheim") && !shown.contains("anna"), "{shown}");
        }
    }
}
