//! Subscription: one connection, one channel, one consumer at a time.
//!
//! It never reconnects. Any failure (a time-out, an error, a consumer that the broker cancelled, a stream
//! that ends) makes it [`Lost`] for good, and its owner subscribes anew; so no acknowledgement can reach
//! a session that does not know its delivery.
use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{FutureExt, try_join_all};
use futures_util::{Stream, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer, Event};
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::properties::traces_of;
use crate::amqp::connection::{ConnectionEvents, Session, SessionError, call};
use crate::amqp::settings::RabbitSettings;
use crate::amqp::topology;
use crate::queue::{Delivery, Lane, Lost, QueueError, REJECTED_TWICE, Subscription};
use crate::runtime::backoff::Backoff;
use crate::runtime::metrics::metrics;

/// Attempts to declare and to consume. Two programs that declare a new quorum queue at once can
/// crash each other's channel on RabbitMQ 3.10.
const OPEN_ATTEMPTS: u32 = 4;

/// Interval at which a subscription without a consumer checks its session; with a consumer the stream
/// reports the loss.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bits of a tag that are the broker's. The number of the session is above them, so that a delivery of
/// another session is recognised.
const BROKER_TAG_BITS: u32 = 40;

pub(super) struct RabbitSubscription {
    runtime: Handle,
    /// Taken when it is lost or dropped.
    session: Option<Session>,
    channel: Channel,
    events: ConnectionEvents,
    lane: Lane,
    queue: ShortString,
    consumer: Option<Consumer>,
    /// Deliveries to earlier consumers of this session, not handed out yet.
    earlier: VecDeque<lapin::message::Delivery>,
    /// Broker's tags of deliveries that were handed out and are not settled.
    outstanding: BTreeSet<u64>,
    /// Number of this session, shifted to its place in a tag.
    session_bits: u64,
    lost: Option<Lost>,
}

impl RabbitSubscription {
    pub async fn open(
        settings: Arc<RabbitSettings>,
        runtime: Handle,
        lane: Lane,
        window: u16,
    ) -> Result<Self, QueueError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for _ in 1..OPEN_ATTEMPTS {
            match Self::try_open(&settings, &runtime, lane, window).await {
                Ok(subscription) => return Ok(subscription),
                // Only an error of the broker itself may be such a crash: the caller waits for an absent
                // broker.
                Err(error) if error.code().is_none() => return Err(error.into()),
                Err(_) => sleep(backoff.delay()).await,
            }
        }
        Ok(Self::try_open(&settings, &runtime, lane, window).await?)
    }

    async fn try_open(
        settings: &RabbitSettings,
        runtime: &Handle,
        lane: Lane,
        window: u16,
    ) -> Result<Self, SessionError> {
        static SESSIONS: AtomicU64 = AtomicU64::new(1);
        let session = Session::open(settings, lane.session_name()).await?;
        let names = settings.names();
        topology::declare_queues(&session, &names, settings.limits.bytes_max, sleep(settings.settle)).await?;
        let channel = session.channel().await?;
        let mut subscription = Self {
            runtime: runtime.clone(),
            events: session.events(),
            session: Some(session),
            channel,
            lane,
            queue: lane.queue(names),
            consumer: None,
            earlier: VecDeque::new(),
            outstanding: BTreeSet::new(),
            session_bits: SESSIONS.fetch_add(1, Ordering::Relaxed) << BROKER_TAG_BITS,
            lost: None,
        };
        subscription.consume(window).await?;
        tracing::info!(session.name = lane.session_name(), queue.window = window, "session opened");
        Ok(subscription)
    }

    /// Starts a consumer. The window is a property of a consumer: it applies to those that start
    /// afterwards.
    async fn consume(&mut self, window: u16) -> Result<(), SessionError> {
        if window == 0 {
            return Ok(());
        }
        let qos = self.channel.basic_qos(window, BasicQosOptions { global: false });
        call("basic.qos", qos).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = self.channel.basic_consume(self.queue.clone(), ShortString::default(), options, none);
        self.consumer = Some(call("basic.consume", consumer).await?);
        Ok(())
    }

    /// Ends the consumer and keeps the deliveries that it had received.
    async fn cancel(&mut self) -> Result<(), SessionError> {
        let Some(mut consumer) = self.consumer.take() else { return Ok(()) };
        let cancelled = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        call("basic.cancel", cancelled).await?;
        // The stream ends with the answer to the cancel: all earlier deliveries are there.
        while let Some(Some(delivery)) = consumer.next().now_or_never() {
            self.earlier.push_back(delivery?);
        }
        Ok(())
    }

    /// Records the reason, ends the session and returns the error that every later call returns, too.
    fn lose(&mut self, reason: &impl ToString) -> Lost {
        let lost = self.lost.get_or_insert_with(|| {
            metrics().queue_sessions_lost.inc();
            Lost(reason.to_string().into())
        });
        let lost = lost.clone();
        (self.session, self.consumer) = (None, None);
        self.earlier.clear();
        self.outstanding.clear();
        lost
    }

    fn check(&mut self) -> Result<(), Lost> {
        match (&self.lost, &self.session) {
            (Some(lost), _) => Err(lost.clone()),
            (None, Some(session)) if session.is_alive(&self.channel) => Ok(()),
            (None, _) => Err(self.lose(&"connection or channel closed")),
        }
    }

    fn hand_out(&mut self, delivery: lapin::message::Delivery) -> Delivery {
        self.outstanding.insert(delivery.delivery_tag);
        Delivery {
            tag: self.session_bits | delivery.delivery_tag,
            redelivered: delivery.redelivered,
            traces: traces_of(&delivery.properties),
            body: Bytes::from(delivery.data),
        }
    }

    /// Removes these deliveries and returns the tags for the broker.
    fn settle(&mut self, deliveries: &[Delivery]) -> Result<AckRange, Lost> {
        self.check()?;
        let mut tags: Vec<_> = deliveries.iter().map(|delivery| delivery.tag ^ self.session_bits).collect();
        tags.sort_unstable();
        if !tags.iter().all(|tag| self.outstanding.contains(tag)) {
            return Err(Lost("the delivery is of another session".into()));
        }
        let last = tags.last().copied();
        let is_prefix = self.outstanding.iter().take(tags.len()).eq(tags.iter());
        for tag in &tags {
            self.outstanding.remove(tag);
        }
        Ok(match last {
            Some(last) if is_prefix && tags.len() > 1 => AckRange::UpTo(last),
            _ => AckRange::Each(tags),
        })
    }

    async fn call_broker<T>(
        &mut self,
        what: &'static str,
        sent: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Lost> {
        call(what, sent).await.map_err(|error| self.lose(&error))
    }
}

/// Deliveries that an answer to the broker covers.
enum AckRange {
    /// All that are outstanding up to this one.
    UpTo(u64),
    Each(Vec<u64>),
}

impl AckRange {
    /// Tags, each with the flag that it covers all earlier ones, too.
    fn tags(self) -> Vec<(u64, bool)> {
        match self {
            Self::UpTo(tag) => vec![(tag, true)],
            Self::Each(tags) => tags.into_iter().map(|tag| (tag, false)).collect(),
        }
    }
}

#[async_trait]
impl Subscription for RabbitSubscription {
    async fn next(&mut self) -> Result<Delivery, Lost> {
        loop {
            if let Some(delivery) = self.try_next()? {
                return Ok(delivery);
            }
            let came = tokio::select! {
                came = next_of(self.consumer.as_mut()) => came,
                event = self.events.next() => {
                    if matches!(event, None | Some(Event::Error(_))) { self.check()?; }
                    continue;
                }
                () = sleep(LOOK_EVERY), if self.consumer.is_none() => continue,
            };
            // There is no await between taking a delivery and returning it.
            return self.accept(came);
        }
    }

    fn try_next(&mut self) -> Result<Option<Delivery>, Lost> {
        self.check()?;
        if let Some(delivery) = self.earlier.pop_front() {
            return Ok(Some(self.hand_out(delivery)));
        }
        match next_of(self.consumer.as_mut()).now_or_never() {
            Some(came) => self.accept(came).map(Some),
            None => Ok(None),
        }
    }

    async fn ack(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        let tags = self.settle(&deliveries)?.tags();
        let channel = self.channel.clone();
        let sent = tags.iter().map(|&(tag, multiple)| channel.basic_ack(tag, BasicAckOptions { multiple }));
        self.call_broker("basic.ack", try_join_all(sent)).await.map(drop)
    }

    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), Lost> {
        let tags = self.settle(&deliveries)?.tags();
        let channel = self.channel.clone();
        let sent = tags
            .iter()
            .map(|&(tag, multiple)| channel.basic_nack(tag, BasicNackOptions { multiple, requeue: true }));
        self.call_broker("basic.nack", try_join_all(sent)).await.map(drop)
    }

    async fn reject(&mut self, delivery: Delivery) -> Result<(), Lost> {
        if self.lane == Lane::Dead {
            // The broker would drop it.
            return Err(self.lose(&REJECTED_TWICE));
        }
        let tags = self.settle(&[delivery])?.tags();
        let channel = self.channel.clone();
        let sent =
            tags.iter().map(|&(tag, _)| channel.basic_reject(tag, BasicRejectOptions { requeue: false }));
        self.call_broker("basic.reject", try_join_all(sent)).await.map(drop)
    }

    async fn waiting(&mut self) -> Result<u64, Lost> {
        self.check()?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.channel.clone();
        let declared = channel.queue_declare(self.queue.clone(), options, FieldTable::default());
        Ok(self.call_broker("queue.declare", declared).await?.message_count().into())
    }

    async fn set_window(&mut self, window: u16) -> Result<(), Lost> {
        self.check()?;
        let changed = async {
            self.cancel().await?;
            self.consume(window).await
        };
        changed.await.map_err(|error| self.lose(&error))
    }
}

impl RabbitSubscription {
    /// Handles an item of the consumer's stream: `None` is a consumer that the broker cancelled.
    fn accept(&mut self, came: Option<lapin::Result<lapin::message::Delivery>>) -> Result<Delivery, Lost> {
        match came {
            Some(Ok(delivery)) => Ok(self.hand_out(delivery)),
            Some(Err(error)) => Err(self.lose(&error)),
            None => Err(self.lose(&"the broker cancelled the consumer")),
        }
    }
}

/// Pending for ever without a consumer. Safe to cancel.
async fn next_of<S: Stream + Unpin>(stream: Option<&mut S>) -> Option<S::Item> {
    match stream {
        Some(stream) => stream.next().await,
        None => pending().await,
    }
}

/// Closes in the background: unacknowledged messages are delivered again once the broker has received it.
impl Drop for RabbitSubscription {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.runtime.spawn(session.close());
        }
    }
}

impl From<SessionError> for QueueError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Misdeclared(explanation) => Self::Misdeclared(explanation),
            other => Self::Unavailable(other.into()),
        }
    }
}
