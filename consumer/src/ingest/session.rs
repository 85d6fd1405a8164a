//! Applies queued writes to the store: several messages → one transaction → commit → events → ack.
//!
//! A message is acknowledged only after a commit that contains it (or contained it before). This file has
//! the session: it chooses the next work, and the messages that share a transaction. `apply` applies them
//! and, on failure, finds out whether the store or a message is the cause. `suspects` holds messages that
//! failed alone. Nothing here sets an item aside: the store does that, inside the transaction.
use std::collections::VecDeque;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shared::model::id::{IdKeys, MessageId};
use shared::model::message::{Message, Undecodable, decode};
use shared::model::outcome::Applied;
use shared::queue::{Delivery, Lane, Lost, Queue, Subscription};
use shared::runtime::backoff::Backoff;
use shared::runtime::progress::Mark;
use shared::runtime::shutdown::Shutdown;
use shared::store::{Apply, StoreError};

use crate::ingest::announce::Announcer;
use crate::ingest::attempts::Attempts;
use crate::ingest::batch_log;
use crate::ingest::merge::{MergeLimits, Size, WhenEmpty, Window, check_fit, when_empty};
use crate::ingest::suspects::{Pace, SuspectEnd, Suspects};
use crate::metrics::WhyStopped;
use crate::metrics::{metrics, show_oldest};
use crate::status::ConsumerStatus;

/// Longest time of a transaction after a stop was requested. Nothing is lost when it is abandoned: its
/// messages are given back, and the ledger knows whether it was committed.
pub(crate) const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Pauses between probes of a store that is away.
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(200);
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Largest body that is decoded on a thread of the runtime, which also sends the broker's heartbeats.
const DECODED_HERE_BYTES_MAX: usize = 64 << 10;

pub struct Ingest {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Apply>,
    /// For log lines, which name items as their clients know them.
    pub ids: IdKeys,
    pub announcer: Arc<Announcer>,
    pub limits: MergeLimits,
    pub prefetch: u16,
    pub pace: Pace,
    /// Moves with each step of a batch; idle while there is none.
    pub in_hand: Mark,
    pub status: Arc<ConsumerStatus>,
}

impl Ingest {
    /// Works until the shutdown; a lost session is rebuilt for ever.
    pub async fn run(&self, mut shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut attempts = Attempts::new(self.store.clone());
        while let Some(subscribed) = shutdown.unless_requested(self.queue.subscribe(Lane::Writes, 1)).await {
            let why = match subscribed {
                Ok(subscription) => {
                    self.status.consuming.store(true, Ordering::Relaxed);
                    tracing::info!("consuming");
                    let mut session = IngestSession::new(self, subscription, &mut attempts);
                    let outcome = session.run(&mut shutdown).await;
                    show_oldest(None);
                    self.in_hand.idle();
                    if session.progressed {
                        backoff.reset();
                    }
                    // Another consumer may get the messages, and no commit here would clear the flag.
                    session.store_is_away(false);
                    drop(session);
                    attempts.end_all().await;
                    match outcome {
                        Ok(()) => return,
                        Err(lost) => lost.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            self.status.consuming.store(false, Ordering::Relaxed);
            let delay = backoff.delay();
            tracing::warn!(error = why, retry.after_ms = delay.as_millis(), "not consuming");
            shutdown.unless_requested(tokio::time::sleep(delay)).await;
        }
    }

    /// Applies messages; `None` when a stop was requested and the store takes too long.
    pub(crate) async fn apply(
        &self,
        batch: &MessageBatch,
        limit: Duration,
        shutdown: &mut Shutdown,
    ) -> Option<Result<Applied, StoreError>> {
        self.in_hand.moved();
        let applied = answered(self.store.apply_within(batch.messages.clone(), limit), shutdown).await;
        self.in_hand.moved();
        applied
    }
}

/// Awaits an answer; `None` when a stop was requested and the answer takes too long.
pub(crate) async fn answered<T>(asked: impl Future<Output = T>, shutdown: &mut Shutdown) -> Option<T> {
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        answer = &mut asked => return Some(answer),
        () = shutdown.requested() => {}
    }
    tokio::time::timeout(STOP_PATIENCE, asked).await.ok()
}

/// Messages for one transaction; `deliveries[i]` brought `messages[i]`.
pub(crate) struct MessageBatch {
    pub messages: Arc<[Message]>,
    pub deliveries: Vec<Delivery>,
}

impl MessageBatch {
    pub fn of(delivery: Delivery, message: Message) -> Self {
        Self { messages: [message].into(), deliveries: vec![delivery] }
    }

    pub fn ids(&self) -> impl Iterator<Item = MessageId> {
        self.messages.iter().map(|message| message.id)
    }
}

impl FromIterator<(Delivery, Message)> for MessageBatch {
    fn from_iter<I: IntoIterator<Item = (Delivery, Message)>>(held: I) -> Self {
        let (deliveries, messages): (_, Vec<_>) = held.into_iter().unzip();
        Self { messages: messages.into(), deliveries }
    }
}

/// Decoded delivery.
pub(crate) struct DecodedDelivery {
    pub delivery: Delivery,
    pub message: Message,
    pub size: Size,
}

impl From<(Delivery, Message)> for DecodedDelivery {
    fn from((delivery, message): (Delivery, Message)) -> Self {
        let size = Size::of(message.entries.len(), delivery.body.len());
        Self { delivery, message, size }
    }
}

/// Result of a batch in this session.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum BatchOutcome {
    Acknowledged,
    /// Nothing was committed; the batch is held aside or was given back.
    Aside,
    Stopping,
}

/// Next work of the session.
enum Next {
    Message(DecodedDelivery),
    /// A message that may have brought its consumer down: it is tried alone.
    Again(DecodedDelivery),
    /// A message from a batch in which another message took too long.
    Alone(DecodedDelivery),
    SuspectEnd(SuspectEnd),
    Stopping,
}

pub(crate) struct IngestSession<'a> {
    pub ingest: &'a Ingest,
    pub subscription: Box<dyn Subscription>,
    pub window: Window,
    /// Delivered and decoded, but too large for the previous batch.
    pub pending: Option<DecodedDelivery>,
    /// Messages that an ended process has noted.
    pub again: VecDeque<DecodedDelivery>,
    /// Rest of batches in which a message took too long: tried alone.
    pub alone: VecDeque<DecodedDelivery>,
    /// Failed alone while the maximum is held aside.
    pub surplus: Vec<Delivery>,
    /// Messages of the present window that are held aside.
    pub aside_of_window: usize,
    pub suspects: Suspects,
    pub attempts: &'a mut Attempts,
    /// Time limit of the next transaction.
    pub batch_time: Duration,
    /// Pauses while nothing is committed.
    pub backoff: Backoff,
    /// A message was held aside, and nothing was committed since.
    pub is_unwell: bool,
    previous_messages: usize,
    progressed: bool,
}

impl<'a> IngestSession<'a> {
    fn new(ingest: &'a Ingest, subscription: Box<dyn Subscription>, attempts: &'a mut Attempts) -> Self {
        Self {
            ingest,
            subscription,
            window: Window::new(ingest.prefetch),
            pending: None,
            again: VecDeque::new(),
            alone: VecDeque::new(),
            surplus: Vec::new(),
            aside_of_window: 0,
            suspects: Suspects::new(ingest.store.clone(), ingest.pace),
            attempts,
            batch_time: ingest.pace.batch_time_max,
            backoff: Backoff::new(PROBE_PAUSE_MIN, PROBE_PAUSE_MAX),
            is_unwell: false,
            previous_messages: 0,
            progressed: false,
        }
    }

    async fn run(&mut self, shutdown: &mut Shutdown) -> Result<(), Lost> {
        loop {
            let next = self.next(shutdown).await?;
            self.ingest.in_hand.moved();
            let settled = match next {
                Next::Stopping => break,
                Next::SuspectEnd(ended) => {
                    self.end(ended).await?;
                    self.ingest.in_hand.idle();
                    continue;
                }
                Next::Again(held) => self.try_again(held, shutdown).await?,
                Next::Alone(held) => {
                    self.settle(MessageBatch::of(held.delivery, held.message), shutdown).await?
                }
                Next::Message(first) => {
                    self.show_oldest(Some(first.message.accepted_at_ms));
                    let batch = self.gather(first, shutdown).await?;
                    self.previous_messages = batch.messages.len();
                    let batch = self.note(batch).await;
                    self.settle(batch, shutdown).await?
                }
            };
            match settled {
                BatchOutcome::Stopping => break,
                BatchOutcome::Aside => {}
                BatchOutcome::Acknowledged => {
                    self.progressed = true;
                    if self.window.grow().is_some() {
                        self.open_window().await?;
                    }
                }
            }
            self.ingest.in_hand.idle();
        }
        self.stop_deliveries(Vec::new()).await
    }

    /// Waits for the next work. Messages that are tried alone take turns with batches.
    async fn next(&mut self, shutdown: &mut Shutdown) -> Result<Next, Lost> {
        // Checked before anything else: under a backlog there is always a next message.
        if shutdown.is_requested() {
            return Ok(Next::Stopping);
        }
        if self.previous_messages > 0
            && let Some(next) = self.next_alone()
        {
            self.previous_messages = 0;
            return Ok(next);
        }
        let mut is_idle = false;
        loop {
            let has_pending = self.pending.is_some();
            let has_alone = !self.again.is_empty() || !self.alone.is_empty();
            let delivery = tokio::select! {
                biased;
                () = shutdown.requested() => return Ok(Next::Stopping),
                ended = self.suspects.ended(&self.ingest.status) => return Ok(Next::SuspectEnd(ended)),
                () = ready(()), if has_pending => {
                    let pending = self.pending.take().expect("there is one");
                    return Ok(Next::Message(pending));
                }
                delivery = self.subscription.next() => delivery?,
                () = ready(()), if has_alone => return Ok(self.next_alone().expect("there is one")),
                // Nothing else waits, only messages that are held aside.
                () = ready(()), if !is_idle => {
                    self.show_oldest(None);
                    is_idle = true;
                    continue;
                }
            };
            if let Some(held) = self.read(delivery).await? {
                return Ok(Next::Message(held));
            }
        }
    }

    /// Reports the older of the next message and the messages held aside.
    fn show_oldest(&self, next_ms: Option<i64>) {
        let waiting = self.again.iter().chain(&self.alone).map(|held| held.message.accepted_at_ms);
        show_oldest(next_ms.into_iter().chain(waiting).chain(self.suspects.oldest_ms()).min());
    }

    fn next_alone(&mut self) -> Option<Next> {
        let again = self.again.pop_front().map(Next::Again);
        again.or_else(|| self.alone.pop_front().map(Next::Alone))
    }

    /// Adds the messages that are there, and under load those that come within the linger.
    async fn gather(
        &mut self,
        first: DecodedDelivery,
        shutdown: &mut Shutdown,
    ) -> Result<MessageBatch, Lost> {
        let (started, limits) = (Instant::now(), self.ingest.limits);
        let mut size = first.size;
        let mut held = vec![first];
        let why = loop {
            let delivery = if let Some(delivery) = self.subscription.try_next()? {
                delivery
            } else {
                let window = usize::from(self.window.get());
                match when_empty(size, self.previous_messages, window, started.elapsed(), &limits) {
                    WhenEmpty::Stop(why) => break why,
                    WhenEmpty::WaitFor(more) => tokio::select! {
                        delivery = self.subscription.next() => delivery?,
                        () = tokio::time::sleep(more) => continue,
                        () = shutdown.requested() => break WhyStopped::Stopping,
                    },
                }
            };
            if let Some(next) = self.read(delivery).await? {
                if let Err(why) = check_fit(size, next.size, &limits) {
                    self.pending = Some(next);
                    break why;
                }
                size = size.plus(next.size);
                held.push(next);
            }
        };
        metrics().batches.with_label_values(&[why.name()]).inc();
        metrics().batch_items.observe(size.items as f64);
        Ok(held.into_iter().map(|held| (held.delivery, held.message)).collect())
    }

    /// Decodes a delivery. Only a body that is no message for this build goes to the dead queue.
    async fn read(&mut self, delivery: Delivery) -> Result<Option<DecodedDelivery>, Lost> {
        match decoded(&delivery).await? {
            Ok(message) => {
                self.ingest.status.oldest.observe(message.accepted_at_ms.min(message.id.time_ms()));
                metrics().accepted_at_seen.set(message.accepted_at_ms / 1_000);
                Ok(Some((delivery, message).into()))
            }
            Err(error) => {
                let (bytes, traces) = (delivery.body.len(), batch_log::trace_ids(&delivery));
                tracing::error!(%error, message.bytes = bytes, trace.ids = traces, "undecodable message rejected");
                metrics().rejected.with_label_values(&["undecodable"]).inc();
                self.subscription.reject(delivery).await?;
                Ok(None)
            }
        }
    }
}

/// Decodes a body; a large one on a blocking thread, so that no other task waits.
pub(crate) async fn decoded(delivery: &Delivery) -> Result<Result<Message, Undecodable>, Lost> {
    if delivery.body.len() <= DECODED_HERE_BYTES_MAX {
        return Ok(decode(&delivery.body));
    }
    let body = delivery.body.clone();
    let decoding = tokio::task::spawn_blocking(move || decode(&body));
    decoding.await.map_err(|error| Lost(format!("a message could not be read: {error}").into()))
}
