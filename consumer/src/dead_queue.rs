//! Reads the dead queue beside the ingest: a message that this build can read is applied after all,
//! any other becomes a dead letter, where a person finds it.
//!
//! One message at a time, and acknowledged only once it is committed. While the store is away, or
//! takes no dead letters, the message in hand waits and the others stay in the queue. Nothing is
//! rejected here: behind the dead queue there is no further one. The ingest does not wait for it.
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shared::backoff::Backoff;
use shared::id::IdKeys;
use shared::message::{Message, decode};
use shared::progress::Mark;
use shared::queue::{Delivery, Lost, Queue, QueueError, Subscription};
use shared::shutdown::Shutdown;
use shared::store::{Applied, DeadMessage, Store, StoreError};

use crate::announce::Announcer;
use crate::ingest::{answered, count};
use crate::measure::metrics;
use crate::status::Status;
use crate::told;

/// How often the depth of the queue is asked for, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);

pub struct DeadQueue {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    /// For log lines, which name items as their clients know them.
    pub ids: IdKeys,
    pub announcer: Arc<Announcer>,
    /// [`PROBE_HELD_MAX`](crate::ingest::PROBE_HELD_MAX).
    pub held_max: Duration,
    /// Moves with each attempt at the message in hand; idle while there is none.
    pub in_hand: Mark,
    pub status: Arc<Status>,
}

impl DeadQueue {
    /// Works until the shutdown; a lost session is rebuilt for ever.
    pub async fn run(self, mut shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        while !shutdown.is_requested() {
            let opened = tokio::select! {
                opened = self.open() => opened,
                () = shutdown.requested() => return,
            };
            let why = match opened {
                Ok(mut session) => {
                    backoff.reset();
                    let ended = session.run(&mut shutdown).await;
                    self.in_hand.idle();
                    match ended {
                        Ok(()) => return,
                        Err(lost) => lost.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            metrics().dead_paused.set(0);
            let delay = backoff.delay();
            tracing::warn!(error = why, retry.after_ms = delay.as_millis(), "not reading the dead queue");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.requested() => return,
            }
        }
    }

    async fn open(&self) -> Result<Session<'_>, QueueError> {
        let mut subscription = self.queue.subscribe_dead(1).await?;
        look(subscription.as_mut()).await.map_err(|lost| QueueError::Unavailable(lost.into()))?;
        Ok(Session { reader: self, subscription, looked: Instant::now() })
    }

    /// Applies or buries. `None` when a stop was requested and the store takes too long for it: the
    /// message comes again, and the store knows what it took.
    async fn settle_in_time(
        &self,
        task: &mut Task,
        delivery: &Delivery,
        shutdown: &mut Shutdown,
    ) -> Option<Result<(), Arc<str>>> {
        self.in_hand.moved();
        let settled = answered(self.settle(task, delivery), shutdown).await;
        self.in_hand.moved();
        settled
    }

    async fn settle(&self, task: &mut Task, delivery: &Delivery) -> Result<(), Arc<str>> {
        if let Task::Apply(message) = task {
            match self.store.apply([message.clone()].into()).await {
                Ok(applied) => {
                    self.tell(message, delivery, &applied);
                    return Ok(());
                }
                Err(StoreError::Unavailable(why) | StoreError::Busy(why)) => return Err(why),
                Err(StoreError::DigestMismatch(id)) => {
                    *task = Task::Bury(DeadMessage::reused(delivery.body.clone(), id));
                }
            }
        }
        if let Task::Bury(dead) = task {
            self.store.bury(dead.clone()).await.map_err(|error| Arc::from(error.to_string()))?;
            let (reason, traces) = (dead.reason().name(), told::trace_ids(delivery));
            metrics().dead_messages.with_label_values(&[reason]).inc();
            tracing::error!(
                dead_letter.id = %dead.id(),
                reason,
                message.bytes = dead.bytes(),
                trace.ids = traces,
                "message set aside"
            );
        }
        Ok(())
    }

    /// The commit is known. What it set aside is told as the ingest tells it.
    fn tell(&self, message: &Message, delivery: &Delivery, applied: &Applied) {
        let messages = std::slice::from_ref(message);
        self.announcer.committed(applied, 1);
        count(messages, applied);
        metrics().dead_messages.with_label_values(&["applied"]).inc();
        tracing::info!(
            message.id = %message.id,
            items.set_aside = applied.set_aside.len(),
            "message of the dead queue applied"
        );
        told::log(&self.ids, messages, std::slice::from_ref(delivery), applied);
    }
}

/// What is to be done about a message.
enum Task {
    Apply(Message),
    Bury(DeadMessage),
}

impl Task {
    fn of(body: Bytes) -> Self {
        match decode(&body) {
            Ok(message) => Self::Apply(message),
            Err(error) => Self::Bury(DeadMessage::undecodable(body, &error)),
        }
    }
}

struct Session<'r> {
    reader: &'r DeadQueue,
    subscription: Box<dyn Subscription>,
    looked: Instant,
}

impl Session<'_> {
    async fn run(&mut self, shutdown: &mut Shutdown) -> Result<(), Lost> {
        loop {
            self.look_when_due().await?;
            let delivery = tokio::select! {
                biased;
                () = shutdown.requested() => return Ok(()),
                delivery = self.subscription.next() => delivery?,
                () = tokio::time::sleep(LOOK_EVERY) => continue,
            };
            if !self.settle(&delivery, shutdown).await? {
                return self.subscription.give_back(vec![delivery]).await;
            }
            self.subscription.ack(vec![delivery]).await?;
            self.reader.in_hand.idle();
        }
    }

    /// Returns once the store has taken the message; `false` when asked to stop before.
    async fn settle(&mut self, delivery: &Delivery, shutdown: &mut Shutdown) -> Result<bool, Lost> {
        let (reader, mut task) = (self.reader, Task::of(delivery.body.clone()));
        let _burying = match &task {
            Task::Apply(message) => {
                reader.status.oldest.came(message.accepted_at_ms.min(message.id.time_ms()));
                None
            }
            Task::Bury(_) => Some(reader.status.begin_burying()),
        };
        match reader.settle_in_time(&mut task, delivery, shutdown).await {
            Some(Ok(())) => Ok(true),
            Some(Err(why)) => self.wait(&mut task, delivery, &why, shutdown).await,
            None => Ok(false),
        }
    }

    /// Tries again until the store takes it; `false` when asked to stop before.
    async fn wait(
        &mut self,
        task: &mut Task,
        delivery: &Delivery,
        why: &str,
        shutdown: &mut Shutdown,
    ) -> Result<bool, Lost> {
        tracing::warn!(error = why, "a message of the dead queue waits for the store");
        metrics().dead_paused.set(1);
        let (since, mut backoff) =
            (Instant::now(), Backoff::new(Duration::from_millis(200), Duration::from_secs(5)));
        loop {
            tokio::select! {
                () = tokio::time::sleep(backoff.delay()) => {}
                () = shutdown.requested() => return Ok(false),
                // The window is full: it can only be lost.
                more = self.subscription.next() => self.subscription.give_back(vec![more?]).await?,
            }
            self.look_when_due().await?;
            match self.reader.settle_in_time(task, delivery, shutdown).await {
                Some(Ok(())) => break,
                None => return Ok(false),
                // The end of the session does that.
                Some(Err(_)) if since.elapsed() > self.reader.held_max => {
                    return Err(Lost("the message was held for long and is given back".into()));
                }
                Some(Err(why)) => tracing::debug!(error = &*why, "the store does not take it yet"),
            }
        }
        metrics().dead_paused.set(0);
        tracing::info!(waited.seconds = since.elapsed().as_secs(), "reading the dead queue goes on");
        Ok(true)
    }

    async fn look_when_due(&mut self) -> Result<(), Lost> {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            look(self.subscription.as_mut()).await?;
        }
        Ok(())
    }
}

/// Shows how many messages wait.
async fn look(subscription: &mut dyn Subscription) -> Result<(), Lost> {
    let waiting = subscription.waiting().await?;
    metrics().dead_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    Ok(())
}
