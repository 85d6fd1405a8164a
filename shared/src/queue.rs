//! Durable queue between the API and the consumer, as a port.
//!
//! Two implementations, [`rabbitmq`] and [`embedded`], hold the same contract, which
//! `shared/tests/it/queue.rs` runs against both:
//!
//! * `publish` returns `Ok` only when the message survives a crash of every process and of the
//!   queue's own server. Any error means *unknown*: the message may still be delivered.
//! * A message is delivered until it is acknowledged: again after [`Subscription::give_back`],
//!   after the subscription or its process is gone, or after [`Lost`].
//! * Order is not promised.
pub mod embedded;
pub mod rabbitmq;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;

use crate::model::message::Outgoing;
use crate::runtime::shutdown::Shutdown;

/// Maximum of unacknowledged messages; quorum queues take no more.
pub const PREFETCH_MAX: u16 = 2_000;

/// Both sides of the queue.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Publisher of this process, shared by all its batchers.
    fn publisher(&self) -> Arc<dyn Publisher>;

    /// Opens a subscription with `window` unacknowledged messages at most.
    async fn subscribe(&self, lane: Lane, window: u16) -> Result<Box<dyn Subscription>, QueueError>;

    /// Depth and readers of a lane. An error when they cannot be known.
    async fn waiting(&self, lane: Lane) -> Result<Waiting, QueueError>;

    /// Completion signals of its background tasks. None ends before [`close`](Self::close), so the
    /// program must end when one does.
    fn completions(&self) -> Vec<Shutdown> {
        Vec::new()
    }

    /// Answers the publishes in hand, then closes sessions and files.
    async fn close(&self);
}

/// Queue of its own within the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Writes,
    /// Rejected messages. There is no queue behind it: to reject one again is refused, and ends the
    /// subscription, so that the message stays.
    Dead,
}

/// Depth and readers of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Messages that no subscriber has taken.
    pub messages: u64,
    /// More may come: they are on their way to the lane, or with a subscriber. A broker does not show the
    /// latter.
    pub more_may_come: bool,
    /// Readers as the server counts them; `None` when only this process can read.
    pub readers: Option<u32>,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.messages == 0 && !self.more_may_come
    }
}

#[async_trait]
pub trait Publisher: Send + Sync {
    /// Returns once the message is durable, or with an error by `deadline` at the latest.
    async fn publish(&self, message: Outgoing, deadline: Instant) -> Result<(), PublishError>;

    /// State of the link, for the chance of a publish now; cheap enough for every request.
    fn link(&self) -> Link;
}

/// State of a publisher's link to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    /// The first session is being opened.
    Opening,
    /// Connected, but the queue was just made: nothing is published to it before `queue.settle_ms`.
    Settling,
    /// Not connected; the session is being rebuilt.
    Down,
    /// Connected, but the broker takes nothing (memory or disk alarm).
    Blocked,
    /// Connected, but the queue is full: it refuses everything, or has done so for a while. With a broker
    /// only a publish shows that there is room again.
    Full,
}

/// Reason why a publish is not known to be durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("no confirm before the deadline")]
    DeadlineExceeded,
    /// The queue is at its limit and refused the message: back-pressure.
    #[error("the queue is full")]
    Full,
    #[error("the queue is not available: {0}")]
    Unavailable(Arc<str>),
}

#[async_trait]
pub trait Subscription: Send {
    /// Waits for the next delivery. Safe to cancel.
    async fn next(&mut self) -> Result<Delivery, Lost>;

    /// Returns a delivery that is already here, without waiting.
    fn try_next(&mut self) -> Result<Option<Delivery>, Lost>;

    /// Acknowledges messages. They are never delivered again once this returned `Ok` and the queue has
    /// received it; until then they may be.
    async fn ack(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost>;

    /// Gives messages back for another consumer, or for this one later.
    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost>;

    /// Moves a message that can never be applied to the dead queue.
    async fn reject(&mut self, delivery: Delivery) -> Result<(), Lost>;

    /// About how many messages wait for a delivery.
    async fn waiting(&mut self) -> Result<u64, Lost>;

    /// Changes the maximum of messages that are delivered from now on without an acknowledgement; 0 stops
    /// deliveries. Earlier deliveries stay with the subscriber, on top of the new window.
    async fn set_window(&mut self, window: u16) -> Result<(), Lost>;
}

/// Delivered message. The call that settles it consumes it.
#[derive(Debug)]
pub struct Delivery {
    pub body: Bytes,
    /// Traces as published beside the body; a hint that may get lost.
    pub traces: Option<Arc<str>>,
    pub redelivered: bool,
    tag: u64,
}

impl Delivery {
    /// Builds a delivery. `tag` is the implementation's own name for it.
    pub fn new(body: Bytes, redelivered: bool, tag: u64) -> Self {
        Self { body, traces: None, redelivered, tag }
    }
}

/// The session of a subscription is gone. None of its deliveries can be acknowledged any more; all are
/// delivered again to the next subscriber.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the queue session was lost: {0}")]
pub struct Lost(pub Arc<str>);

/// Error of a rejected message that is rejected again.
const REJECTED_TWICE: &str = "a dead message cannot be rejected again";

#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("the queue is not available: {0}")]
    Unavailable(#[source] anyhow::Error),
    /// The queue is declared differently from what this build needs: an operator must act.
    #[error("{0}")]
    Misdeclared(String),
}
