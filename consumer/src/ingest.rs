//! Applies queued writes to the store: several messages → one transaction → commit → events → ack.
//!
//! A message is acknowledged only after a commit that contains it (or contained it before). While
//! the store is away one message is kept as the probe, the others are given back once, and nothing
//! is consumed until the probe's own transaction commits. Nothing here sets an item aside: the
//! store decides that, inside the transaction.
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shared::backoff::Backoff;
use shared::id::{IdKeys, Kind, MessageId};
use shared::message::{Message, decode};
use shared::progress::Mark;
use shared::queue::{Delivery, Lost, Queue, Subscription};
use shared::shutdown::Shutdown;
use shared::store::{Applied, KeyedVerdict, Store, StoreError};

use crate::announce::Announcer;
use crate::measure::metrics;
use crate::merge::{MergeLimits, Size, WhenEmpty, WhyStopped, Window, admit, when_empty};
use crate::status::Status;
use crate::told;

/// How long a message is held that waits for the store, unless told otherwise: a broker takes one away
/// from a consumer that holds it for 30 minutes, so it is given back well before.
pub const PROBE_HELD_MAX: Duration = Duration::from_mins(15);

/// How long a transaction may go on after a stop was requested. Nothing is lost by giving it up: its
/// messages are given back, and the ledger knows whether it was committed.
pub(crate) const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A failed transaction is tried once more after this, before it counts as an outage.
const SECOND_TRY_AFTER: Duration = Duration::from_millis(50);

pub struct Ingest {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    /// For log lines, which name items as their clients know them.
    pub ids: IdKeys,
    pub announcer: Arc<Announcer>,
    pub limits: MergeLimits,
    pub prefetch: u16,
    /// [`PROBE_HELD_MAX`].
    pub probe_held_max: Duration,
    /// Moves with each step of a batch; idle while there is none.
    pub in_hand: Mark,
    pub status: Arc<Status>,
}

impl Ingest {
    /// Works until the shutdown; a lost session is rebuilt for ever.
    pub async fn run(&self, mut shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while !shutdown.is_requested() {
            let subscribed = tokio::select! {
                subscribed = self.queue.subscribe(1) => subscribed,
                () = shutdown.requested() => return,
            };
            let why = match subscribed {
                Ok(subscription) => {
                    self.status.consuming.store(true, Ordering::Relaxed);
                    tracing::info!("consuming");
                    let mut session = Session::new(self, subscription);
                    let ended = session.run(&mut shutdown).await;
                    self.in_hand.idle();
                    match ended {
                        Ok(()) => return,
                        Err(lost) => {
                            if session.progressed {
                                backoff.reset();
                            }
                            // Another consumer may get the probe, and no commit here would take it back.
                            session.store_is_away(false);
                            lost.to_string()
                        }
                    }
                }
                Err(error) => error.to_string(),
            };
            self.status.consuming.store(false, Ordering::Relaxed);
            let delay = backoff.delay();
            tracing::warn!(error = why, retry.after_ms = delay.as_millis(), "not consuming");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.requested() => return,
            }
        }
    }

    /// `None` when a stop was requested and the store takes too long for it.
    async fn apply(
        &self,
        messages: &Arc<[Message]>,
        shutdown: &mut Shutdown,
    ) -> Option<Result<Applied, StoreError>> {
        self.in_hand.moved();
        let applied = answered(self.store.apply(messages.clone()), shutdown).await;
        self.in_hand.moved();
        applied
    }
}

/// `None` when a stop was requested and the answer takes too long for it.
pub(crate) async fn answered<T>(asked: impl Future<Output = T>, shutdown: &mut Shutdown) -> Option<T> {
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        answer = &mut asked => return Some(answer),
        () = shutdown.requested() => {}
    }
    tokio::time::timeout(STOP_PATIENCE, asked).await.ok()
}

/// Messages that go into one transaction; `deliveries[i]` brought `messages[i]`.
struct Batch {
    messages: Arc<[Message]>,
    deliveries: Vec<Delivery>,
}

/// A delivery that was read.
struct Held {
    delivery: Delivery,
    message: Message,
    size: Size,
}

/// How a batch left the session.
#[derive(PartialEq)]
enum Settled {
    Acknowledged,
    Stopping,
}

struct Session<'a> {
    ingest: &'a Ingest,
    subscription: Box<dyn Subscription>,
    window: Window,
    /// Delivered and decoded, but did not fit into the batch before.
    pending: Option<Held>,
    previous_messages: usize,
    progressed: bool,
}

impl<'a> Session<'a> {
    fn new(ingest: &'a Ingest, subscription: Box<dyn Subscription>) -> Self {
        let window = Window::new(ingest.prefetch);
        Self { ingest, subscription, window, pending: None, previous_messages: 0, progressed: false }
    }

    async fn run(&mut self, shutdown: &mut Shutdown) -> Result<(), Lost> {
        while let Some(first) = self.first(shutdown).await? {
            self.ingest.in_hand.moved();
            let batch = self.gather(first, shutdown).await?;
            self.previous_messages = batch.messages.len();
            if self.settle(batch, shutdown).await? == Settled::Stopping {
                break;
            }
            self.progressed = true;
            if let Some(window) = self.window.grow() {
                self.subscription.set_window(window).await?;
            }
            self.ingest.in_hand.idle();
        }
        self.stop_deliveries(Vec::new()).await
    }

    /// Waits for the message that begins the next batch; `None` when asked to stop.
    async fn first(&mut self, shutdown: &mut Shutdown) -> Result<Option<Held>, Lost> {
        // Asked before anything else: under a backlog there is always a next message.
        if shutdown.is_requested() {
            return Ok(None);
        }
        if let Some(pending) = self.pending.take() {
            return Ok(Some(pending));
        }
        loop {
            let delivery = tokio::select! {
                biased;
                () = shutdown.requested() => return Ok(None),
                delivery = self.subscription.next() => delivery?,
            };
            if let Some(held) = self.read(delivery).await? {
                return Ok(Some(held));
            }
        }
    }

    /// Adds what is there, and under load what comes within the linger.
    async fn gather(&mut self, first: Held, shutdown: &mut Shutdown) -> Result<Batch, Lost> {
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
                if let Err(why) = admit(size, next.size, &limits) {
                    self.pending = Some(next);
                    break why;
                }
                size = size.plus(next.size);
                held.push(next);
            }
        };
        metrics().batches.with_label_values(&[why.name()]).inc();
        metrics().batch_items.observe(size.items as f64);
        let (deliveries, messages): (Vec<_>, Vec<_>) =
            held.into_iter().map(|held| (held.delivery, held.message)).unzip();
        Ok(Batch { messages: messages.into(), deliveries })
    }

    /// Decodes; what is no message for this build goes to the dead queue, and only that.
    async fn read(&mut self, delivery: Delivery) -> Result<Option<Held>, Lost> {
        match decode(&delivery.body) {
            Ok(message) => {
                self.ingest.status.oldest.came(message.accepted_at_ms.min(message.id.time_ms()));
                metrics().accepted_at_seen.set(message.accepted_at_ms / 1_000);
                let size = Size::of(message.entries.len(), delivery.body.len());
                Ok(Some(Held { delivery, message, size }))
            }
            Err(error) => {
                let (bytes, traces) = (delivery.body.len(), told::trace_ids(&delivery));
                tracing::error!(%error, message.bytes = bytes, trace.ids = traces, "undecodable message rejected");
                metrics().rejected.with_label_values(&["undecodable"]).inc();
                self.subscription.reject(delivery).await?;
                Ok(None)
            }
        }
    }

    /// Applies and acknowledges, however long the store takes to come back.
    async fn settle(&mut self, mut batch: Batch, shutdown: &mut Shutdown) -> Result<Settled, Lost> {
        let mut failed_before = false;
        while !batch.messages.is_empty() {
            let Some(outcome) = self.ingest.apply(&batch.messages, shutdown).await else {
                tracing::warn!("transaction given up by the stop, its messages are given back");
                self.stop_deliveries(batch.deliveries).await?;
                return Ok(Settled::Stopping);
            };
            match outcome {
                Ok(applied) => {
                    self.acknowledge(batch, &applied).await?;
                    break;
                }
                Err(StoreError::DigestMismatch(id)) => self.refuse_reused_id(&mut batch, id).await?,
                Err(StoreError::Unavailable(why) | StoreError::Busy(why)) if failed_before => {
                    return self.wait_for_store(batch, &why, shutdown).await;
                }
                Err(StoreError::Unavailable(why) | StoreError::Busy(why)) => {
                    tracing::info!(error = &*why, "transaction failed, trying once more");
                    failed_before = true;
                    tokio::time::sleep(SECOND_TRY_AFTER).await;
                }
            }
        }
        Ok(Settled::Acknowledged)
    }

    /// The commit is known: tell the replicas, then acknowledge.
    async fn acknowledge(&mut self, batch: Batch, applied: &Applied) -> Result<(), Lost> {
        self.store_is_away(false);
        self.ingest.announcer.committed(applied, batch.messages.len());
        count(&batch.messages, applied);
        told::log(&self.ingest.ids, &batch.messages, &batch.deliveries, applied);
        self.subscription.ack(batch.deliveries).await
    }

    /// Another body under an id that was applied: never applied, never acknowledged as if it had
    /// been. Whoever reads the dead queue keeps it for a person, and the rest goes on.
    async fn refuse_reused_id(&mut self, batch: &mut Batch, id: MessageId) -> Result<(), Lost> {
        let index = batch.messages.iter().position(|message| message.id == id);
        let Some(index) = index else { return Err(Lost("the store named a foreign message".into())) };
        let traces = told::trace_ids(&batch.deliveries[index]);
        tracing::error!(message.id = %id, trace.ids = traces, "message id was applied with another body: rejected");
        metrics().rejected.with_label_values(&["digest_mismatch"]).inc();
        let mut messages = batch.messages.to_vec();
        messages.remove(index);
        batch.messages = messages.into();
        self.subscription.reject(batch.deliveries.remove(index)).await
    }

    /// Keeps one message as the probe until its transaction commits.
    async fn wait_for_store(
        &mut self,
        mut batch: Batch,
        why: &str,
        shutdown: &mut Shutdown,
    ) -> Result<Settled, Lost> {
        tracing::warn!(error = why, "store is away, consuming paused");
        self.store_is_away(true);
        self.window.shrink();
        self.stop_deliveries(batch.deliveries.split_off(1)).await?;
        batch.messages = [batch.messages[0].clone()].into();
        let (since, mut backoff) =
            (Instant::now(), Backoff::new(Duration::from_millis(200), Duration::from_secs(2)));
        loop {
            tokio::select! {
                () = tokio::time::sleep(backoff.delay()) => {}
                () = shutdown.requested() => {
                    self.subscription.give_back(batch.deliveries).await?;
                    return Ok(Settled::Stopping);
                }
                straggler = self.subscription.next() => self.subscription.give_back(vec![straggler?]).await?,
            }
            let Some(outcome) = self.ingest.apply(&batch.messages, shutdown).await else {
                self.subscription.give_back(batch.deliveries).await?;
                return Ok(Settled::Stopping);
            };
            match outcome {
                Ok(applied) => {
                    tracing::info!(
                        away.seconds = since.elapsed().as_secs(),
                        "store is back, consuming resumes"
                    );
                    self.acknowledge(batch, &applied).await?;
                    break;
                }
                Err(StoreError::DigestMismatch(id)) => {
                    self.refuse_reused_id(&mut batch, id).await?;
                    break;
                }
                Err(_) if since.elapsed() > self.ingest.probe_held_max => {
                    self.subscription.give_back(batch.deliveries).await?;
                    return Err(Lost("the probe was held for long and is given back".into()));
                }
                Err(StoreError::Unavailable(why) | StoreError::Busy(why)) => {
                    tracing::debug!(error = &*why, "store is still away");
                }
            }
        }
        self.store_is_away(false);
        self.subscription.set_window(self.window.get()).await?;
        Ok(Settled::Acknowledged)
    }

    /// Stops deliveries and gives back everything in hand that is not applied, once.
    async fn stop_deliveries(&mut self, mut back: Vec<Delivery>) -> Result<(), Lost> {
        self.subscription.set_window(0).await?;
        back.extend(self.pending.take().map(|held| held.delivery));
        while let Some(delivery) = self.subscription.try_next()? {
            back.push(delivery);
        }
        self.subscription.give_back(back).await
    }

    fn store_is_away(&self, away: bool) {
        self.ingest.status.store_away.store(away, Ordering::Relaxed);
        metrics().paused.set(i64::from(away));
    }
}

/// Counts what a commit did.
pub(crate) fn count(messages: &[Message], applied: &Applied) {
    let mut fresh: HashSet<_> = applied.fresh.iter().collect();
    let set_aside: HashSet<_> = applied.set_aside.iter().map(|aside| aside.item).collect();
    let mut counts = [0; Kind::ALL.len()];
    for message in messages {
        // Removed, because a batch may hold two deliveries of one message.
        if !fresh.remove(&message.id) {
            metrics().duplicates.inc();
            continue;
        }
        let waited_ms = applied.committed_at_ms.saturating_sub(message.accepted_at_ms).max(0);
        metrics().accept_to_applied.observe(waited_ms as f64 / 1_000.0);
        for (index, entry) in message.entries.iter().enumerate() {
            let is_aside = !set_aside.is_empty() && set_aside.contains(&message.item_key(index));
            // Keyed ones have verdicts.
            if entry.keyed().is_none() && !is_aside {
                counts[entry.kind() as usize - 1] += 1;
            }
        }
    }
    let applied_keyed = applied.keyed.iter().filter(|told| told.verdict == KeyedVerdict::Applied);
    for kind in applied_keyed.filter_map(|told| told.item.kind()) {
        counts[kind as usize - 1] += 1;
    }
    for (kind, count) in Kind::ALL.into_iter().zip(counts) {
        metrics().applied.with_label_values(&[kind.name()]).inc_by(count);
    }
    for set_aside in &applied.set_aside {
        metrics().set_aside.with_label_values(&[set_aside.reason.name()]).inc();
    }
}
