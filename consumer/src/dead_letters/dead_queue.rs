//! Reads the dead queue beside the ingest. A message that this build can read is applied after all; any
//! other becomes a dead letter, for an operator.
//!
//! Messages are processed one at a time, and acknowledged only after the commit. While the store is away,
//! or takes no dead letters, the message in hand waits and the others stay in the queue. A message that
//! fails alone while the store answers is held aside, as in the ingest, and in the end kept as a whole.
//! Nothing is rejected here: there is no further queue behind the dead queue. The ingest does not wait
//! for this reader.
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::model::dead_letter::DeadMessage;
use shared::model::id::IdKeys;
use shared::model::message::Message;
use shared::model::outcome::Applied;
use shared::queue::{Delivery, Lane, Lost, Queue, QueueError, Subscription};
use shared::runtime::backoff::Backoff;
use shared::runtime::progress::Mark;
use shared::runtime::shutdown::Shutdown;
use shared::store::{Apply, StoreError};

use crate::ingest::announce::Announcer;
use crate::ingest::attempts::Attempts;
use crate::ingest::batch_log;
use crate::ingest::session::{answered, decoded};
use crate::ingest::suspects::{Pace, STRIKES_MAX, SuspectEnd, Suspects, answers};
use crate::metrics::{count, metrics};
use crate::status::ConsumerStatus;

/// Shortest time between two reads of the queue's depth.
const DEPTH_EVERY: Duration = Duration::from_secs(10);

pub struct DeadQueue {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Apply>,
    /// For log lines, which name items as their clients know them.
    pub ids: IdKeys,
    pub announcer: Arc<Announcer>,
    pub pace: Pace,
    /// Moves with each attempt at the message in hand; idle while there is none.
    pub in_hand: Mark,
    pub status: Arc<ConsumerStatus>,
}

impl DeadQueue {
    /// Works until the shutdown; a lost session is rebuilt for ever.
    pub async fn run(self, mut shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let mut attempts = Attempts::new(self.store.clone());
        while let Some(opened) = shutdown.unless_requested(self.open(&mut attempts)).await {
            let why = match opened {
                Ok(mut session) => {
                    backoff.reset();
                    let outcome = session.run(&mut shutdown).await;
                    drop(session);
                    self.in_hand.idle();
                    attempts.end_all().await;
                    match outcome {
                        Ok(()) => return,
                        Err(lost) => lost.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            metrics().dead_paused.set(0);
            let delay = backoff.delay();
            tracing::warn!(error = why, retry.after_ms = delay.as_millis(), "not reading the dead queue");
            shutdown.unless_requested(tokio::time::sleep(delay)).await;
        }
    }

    async fn open<'r>(&'r self, attempts: &'r mut Attempts) -> Result<DeadQueueSession<'r>, QueueError> {
        let mut subscription = self.queue.subscribe(Lane::Dead, 1).await?;
        update_depth(subscription.as_mut()).await.map_err(|lost| QueueError::Unavailable(lost.into()))?;
        let suspects = Suspects::new(self.store.clone(), self.pace);
        Ok(DeadQueueSession { reader: self, subscription, suspects, attempts, depth_read_at: Instant::now() })
    }

    /// Applies or dead-letters the message. `None` when a stop was requested and the store takes too
    /// long: the message is delivered again, and the store knows what it committed.
    async fn settle_in_time(
        &self,
        task: &mut DeadTask,
        delivery: &Delivery,
        shutdown: &mut Shutdown,
    ) -> Option<Result<(), StoreError>> {
        self.in_hand.moved();
        let settled = answered(self.settle(task, delivery), shutdown).await;
        self.in_hand.moved();
        settled
    }

    async fn settle(&self, task: &mut DeadTask, delivery: &Delivery) -> Result<(), StoreError> {
        if let DeadTask::Apply(message) = task {
            let limit = self.pace.batch_time_max;
            match self.store.apply_within([message.clone()].into(), limit).await {
                Ok(applied) => {
                    self.report_commit(message, delivery, &applied);
                    return Ok(());
                }
                Err(StoreError::DigestMismatch(id)) => {
                    *task = DeadTask::DeadLetter(DeadMessage::reused(delivery.body.clone(), id));
                }
                Err(error) => return Err(error),
            }
        }
        if let DeadTask::DeadLetter(dead) = task {
            self.store.bury(dead.clone()).await?;
            let (reason, traces) = (dead.reason().name(), batch_log::trace_ids(delivery));
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

    /// Reports a commit. Items that it set aside are logged as the ingest logs them.
    fn report_commit(&self, message: &Message, delivery: &Delivery, applied: &Applied) {
        let messages = std::slice::from_ref(message);
        self.status.committed();
        self.announcer.committed(applied, 1);
        count(messages, applied);
        metrics().dead_messages.with_label_values(&["applied"]).inc();
        tracing::info!(
            message.id = %message.id,
            items.set_aside = applied.set_aside.len(),
            "message of the dead queue applied"
        );
        batch_log::log(&self.ids, messages, std::slice::from_ref(delivery), applied);
    }
}

/// Work to do for one message.
enum DeadTask {
    Apply(Message),
    DeadLetter(DeadMessage),
}

impl DeadTask {
    async fn of(delivery: &Delivery) -> Result<Self, Lost> {
        Ok(match decoded(delivery).await? {
            Ok(message) => Self::Apply(message),
            Err(error) => Self::DeadLetter(DeadMessage::undecodable(delivery.body.clone(), &error)),
        })
    }
}

/// How a message left the session.
enum DeadOutcome {
    Taken,
    /// The message failed alone.
    Aside(Message, StoreError),
    /// The message brought down its consumer, too often.
    Crashed(Message),
    Stopping,
}

struct DeadQueueSession<'r> {
    reader: &'r DeadQueue,
    subscription: Box<dyn Subscription>,
    suspects: Suspects,
    attempts: &'r mut Attempts,
    depth_read_at: Instant,
}

impl DeadQueueSession<'_> {
    async fn run(&mut self, shutdown: &mut Shutdown) -> Result<(), Lost> {
        loop {
            self.update_depth_when_due().await?;
            let delivery = tokio::select! {
                biased;
                () = shutdown.requested() => return Ok(()),
                ended = self.suspects.ended(&self.reader.status) => {
                    if !self.end(ended, shutdown).await? {
                        return Ok(());
                    }
                    continue;
                }
                delivery = self.subscription.next() => delivery?,
                () = tokio::time::sleep(DEPTH_EVERY) => continue,
            };
            let task = DeadTask::of(&delivery).await?;
            if !self.take(delivery, task, shutdown).await? {
                return Ok(());
            }
            self.reader.in_hand.idle();
        }
    }

    /// Settles a message; `false` when a stop was requested before.
    async fn take(
        &mut self,
        delivery: Delivery,
        mut task: DeadTask,
        shutdown: &mut Shutdown,
    ) -> Result<bool, Lost> {
        let message = if let DeadTask::Apply(message) = &task { Some(message.id) } else { None };
        let settled = self.settle(&delivery, &mut task, shutdown).await?;
        match (&settled, message) {
            (DeadOutcome::Aside(_, error), Some(id)) => self.attempts.hold_aside(vec![id], error).await,
            _ => self.attempts.end(message).await,
        }
        match settled {
            DeadOutcome::Taken => self.subscription.ack(vec![delivery]).await?,
            DeadOutcome::Stopping => {
                self.subscription.give_back(vec![delivery]).await?;
                return Ok(false);
            }
            DeadOutcome::Aside(message, error) => {
                self.suspects.add(delivery, message, &error, self.reader.status.commits());
                self.open_window().await?;
            }
            DeadOutcome::Crashed(message) => {
                self.suspects.add_crashed(delivery, message, self.reader.status.commits());
                self.open_window().await?;
            }
        }
        Ok(true)
    }

    /// Opens the window for one message beside those that are held aside.
    async fn open_window(&mut self) -> Result<(), Lost> {
        self.subscription.set_window(1).await
    }

    /// Returns once the store has taken the message, or another message should be tried.
    async fn settle(
        &mut self,
        delivery: &Delivery,
        task: &mut DeadTask,
        shutdown: &mut Shutdown,
    ) -> Result<DeadOutcome, Lost> {
        let reader = self.reader;
        let _unreadable = match &*task {
            DeadTask::Apply(message) => {
                reader.status.oldest.observe(message.accepted_at_ms.min(message.id.time_ms()));
                let is_noted = delivery.redelivered && !self.suspects.is_full();
                if is_noted && self.attempts.again(message.id).await > STRIKES_MAX {
                    return Ok(DeadOutcome::Crashed(message.clone()));
                }
                None
            }
            DeadTask::DeadLetter(_) => Some(reader.status.begin_unreadable()),
        };
        match reader.settle_in_time(task, delivery, shutdown).await {
            Some(Ok(())) => Ok(DeadOutcome::Taken),
            Some(Err(error)) => self.wait(task, delivery, error, shutdown).await,
            None => Ok(DeadOutcome::Stopping),
        }
    }

    /// Retries until the store takes the message, or answers without taking it.
    async fn wait(
        &mut self,
        task: &mut DeadTask,
        delivery: &Delivery,
        mut error: StoreError,
        shutdown: &mut Shutdown,
    ) -> Result<DeadOutcome, Lost> {
        tracing::warn!(%error, "a message of the dead queue waits for the store");
        metrics().dead_paused.set(1);
        let (since, mut backoff) =
            (Instant::now(), Backoff::new(Duration::from_millis(200), Duration::from_secs(5)));
        let settled = loop {
            if let DeadTask::Apply(message) = &*task
                && !self.suspects.is_full()
                && answers(&self.reader.store).await
            {
                break DeadOutcome::Aside(message.clone(), error);
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.delay()) => {}
                () = shutdown.requested() => break DeadOutcome::Stopping,
                // The window is full, so a result can only be `Lost`.
                more = self.subscription.next() => self.subscription.give_back(vec![more?]).await?,
            }
            self.update_depth_when_due().await?;
            match self.reader.settle_in_time(task, delivery, shutdown).await {
                Some(Ok(())) => break DeadOutcome::Taken,
                None => break DeadOutcome::Stopping,
                // The end of the session gives the message back.
                Some(Err(_)) if since.elapsed() > self.reader.pace.held_max => {
                    return Err(Lost("the message was held for long and is given back".into()));
                }
                Some(Err(again)) => error = again,
            }
        };
        metrics().dead_paused.set(0);
        tracing::info!(waited.seconds = since.elapsed().as_secs(), "reading the dead queue goes on");
        Ok(settled)
    }

    /// Settles a suspect that left the suspects; `false` when a stop was requested.
    async fn end(&mut self, ended: SuspectEnd, shutdown: &mut Shutdown) -> Result<bool, Lost> {
        let id = ended.message();
        let goes_on = self.settle_ended(ended, shutdown).await?;
        self.attempts.end([id]).await;
        Ok(goes_on)
    }

    async fn settle_ended(&mut self, ended: SuspectEnd, shutdown: &mut Shutdown) -> Result<bool, Lost> {
        match ended {
            SuspectEnd::Applied { suspect, applied, given_up } => {
                metrics().given_up.inc_by(u64::from(given_up));
                self.reader.report_commit(&suspect.message, &suspect.delivery, &applied);
                self.subscription.ack(vec![suspect.delivery]).await?;
                Ok(true)
            }
            SuspectEnd::Rejected(suspect, reused) => {
                let body = suspect.delivery.body.clone();
                let dead = match reused {
                    Some(id) => DeadMessage::reused(body, id),
                    None => DeadMessage::not_applied(body, &suspect.why),
                };
                self.take(suspect.delivery, DeadTask::DeadLetter(dead), shutdown).await
            }
            SuspectEnd::GivenBack(suspect) => {
                self.attempts.give_back(&[suspect.message.id]).await;
                self.subscription.give_back(vec![suspect.delivery]).await?;
                Ok(true)
            }
        }
    }

    async fn update_depth_when_due(&mut self) -> Result<(), Lost> {
        if self.depth_read_at.elapsed() >= DEPTH_EVERY {
            self.depth_read_at = Instant::now();
            update_depth(self.subscription.as_mut()).await?;
        }
        Ok(())
    }
}

/// Updates the metric of waiting messages.
async fn update_depth(subscription: &mut dyn Subscription) -> Result<(), Lost> {
    let waiting = subscription.waiting().await?;
    metrics().dead_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    Ok(())
}
