//! Applies a batch and acknowledges it. When that fails, it decides whether the store or a message is the
//! cause.
//!
//! It probes the store with a small write. When the store does not answer, the batch waits for it: one
//! message is kept, the others are given back once, and nothing is consumed. When it answers, the
//! messages are applied one by one, small ones first. A message that fails alone is held aside as a
//! suspect, and everything else goes on.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shared::model::id::MessageId;
use shared::model::message::Message;
use shared::model::outcome::Applied;
use shared::queue::{Delivery, Lost};
use shared::runtime::shutdown::Shutdown;
use shared::store::{Apply, StoreError};

use crate::ingest::batch_log;
use crate::ingest::session::{BatchOutcome, DecodedDelivery, IngestSession, MessageBatch, answered};
use crate::ingest::suspects::{STRIKES_MAX, SuspectEnd, answers};
use crate::metrics::{count, metrics};

/// Pause before the second try of a failed transaction; the store is probed after that.
const SECOND_TRY_AFTER: Duration = Duration::from_millis(50);

/// Upper bound of the batch time, which is doubled while all messages of a batch are slow.
const BATCH_TIME_GROWN_MAX: Duration = Duration::from_mins(1);

/// Shortest time that one message is tried at a store that answers but does not take it, before another
/// is tried.
const KEPT_MIN: Duration = Duration::from_millis(200);

/// Refusal by a store for which a message waits.
struct StoreRefusal {
    error: StoreError,
    /// The store took the probe.
    probed: bool,
}

impl IngestSession<'_> {
    /// Notes redelivered messages before they are tried. Messages that another, ended process noted leave
    /// the batch: each is tried alone.
    pub(crate) async fn note(&mut self, batch: MessageBatch) -> MessageBatch {
        let redelivered = batch.deliveries.iter().zip(batch.messages.iter());
        let redelivered = redelivered.filter(|(delivery, _)| delivery.redelivered);
        let others = self.attempts.begin(redelivered.map(|(_, message)| message.id).collect()).await;
        if others.is_empty() {
            return batch;
        }
        let (again, batch): (Vec<_>, Vec<_>) =
            pairs(batch).into_iter().partition(|(_, message)| others.contains(&message.id));
        self.again.extend(again.into_iter().map(DecodedDelivery::from));
        batch.into_iter().collect()
    }

    /// Tries alone a message that may have brought its consumer down, or gives it up.
    pub(crate) async fn try_again(
        &mut self,
        held: DecodedDelivery,
        shutdown: &mut Shutdown,
    ) -> Result<BatchOutcome, Lost> {
        let DecodedDelivery { delivery, message, .. } = held;
        if self.attempts.again(message.id).await > STRIKES_MAX && !self.suspects.is_full() {
            self.suspects.add_crashed(delivery, message, self.ingest.status.commits());
            self.aside_of_window += 1;
            self.make_way(shutdown).await?;
            return Ok(BatchOutcome::Aside);
        }
        self.settle(MessageBatch::of(delivery, message), shutdown).await
    }

    /// Applies and acknowledges, however long the store is away.
    pub(crate) async fn settle(
        &mut self,
        mut batch: MessageBatch,
        shutdown: &mut Shutdown,
    ) -> Result<BatchOutcome, Lost> {
        let mut failed_before = false;
        while !batch.messages.is_empty() {
            let begun = Instant::now();
            let Some(outcome) = self.ingest.apply(&batch, self.batch_time, shutdown).await else {
                return self.stop(batch).await;
            };
            match outcome {
                Ok(applied) => {
                    self.acknowledge(batch, &applied).await?;
                    if begun.elapsed() < self.batch_time / 4 {
                        self.batch_time = (self.batch_time / 2).max(self.ingest.pace.batch_time_max);
                    }
                    return Ok(BatchOutcome::Acknowledged);
                }
                Err(StoreError::DigestMismatch(id)) => self.refuse_reused_id(&mut batch, id).await?,
                Err(error @ (StoreError::Unavailable(_) | StoreError::Busy(_))) if !failed_before => {
                    tracing::info!(%error, "transaction failed, trying once more");
                    failed_before = true;
                    tokio::time::sleep(SECOND_TRY_AFTER).await;
                }
                Err(error) => return self.isolate(batch, error, shutdown).await,
            }
        }
        Ok(BatchOutcome::Aside)
    }

    /// Probes the store after a failed batch, then tries the messages one by one.
    async fn isolate(
        &mut self,
        batch: MessageBatch,
        error: StoreError,
        shutdown: &mut Shutdown,
    ) -> Result<BatchOutcome, Lost> {
        if !answers(&self.ingest.store).await {
            return self.wait_for_store(batch, &error, shutdown).await;
        }
        if batch.messages.len() > 1 {
            tracing::info!(%error, batch.messages = batch.messages.len(), "batch failed, applied one by one");
            let is_slow = matches!(error, StoreError::Failed(_));
            return self.one_by_one(batch, is_slow, shutdown).await;
        }
        if self.must_be_the_store(&error) {
            return self.wait_for_store(batch, &error, shutdown).await;
        }
        self.hold_aside(batch, &error).await;
        self.make_way(shutdown).await?;
        Ok(BatchOutcome::Aside)
    }

    async fn one_by_one(
        &mut self,
        batch: MessageBatch,
        is_slow: bool,
        shutdown: &mut Shutdown,
    ) -> Result<BatchOutcome, Lost> {
        let mut settled = BatchOutcome::Aside;
        let mut has_failed = false;
        let mut rest = pairs(batch);
        // The last of the list is tried next.
        rest.sort_by_key(|(delivery, _)| std::cmp::Reverse(delivery.body.len()));
        while let Some((delivery, message)) = rest.pop() {
            let mut one = MessageBatch::of(delivery, message);
            let Some(outcome) = self.ingest.apply(&one, self.batch_time, shutdown).await else {
                return self.stop(together(one, rest)).await;
            };
            match outcome {
                Ok(applied) => {
                    self.acknowledge(one, &applied).await?;
                    settled = BatchOutcome::Acknowledged;
                }
                Err(StoreError::DigestMismatch(id)) => self.refuse_reused_id(&mut one, id).await?,
                Err(error) => {
                    if !answers(&self.ingest.store).await || self.must_be_the_store(&error) {
                        return self.wait_for_store(together(one, rest), &error, shutdown).await;
                    }
                    self.hold_aside(one, &error).await;
                    has_failed = true;
                    if matches!(error, StoreError::Failed(_)) {
                        // Each may take as long, so they take turns with batches.
                        self.alone.extend(rest.drain(..).rev().map(DecodedDelivery::from));
                    }
                }
            }
        }
        if has_failed {
            self.make_way(shutdown).await?;
        } else if is_slow {
            // Only all of them together take longer, so the cause is not one message.
            self.grow_batch_time();
        }
        Ok(settled)
    }

    fn grow_batch_time(&mut self) {
        self.batch_time = (self.batch_time * 2).min(BATCH_TIME_GROWN_MAX);
    }

    /// An error that names the server, after another failure without a commit in between.
    fn must_be_the_store(&self, error: &StoreError) -> bool {
        !matches!(error, StoreError::Failed(_)) && self.is_unwell
    }

    /// Holds aside a message that failed alone while the store answers. The caller makes room for the
    /// others afterwards.
    async fn hold_aside(&mut self, one: MessageBatch, error: &StoreError) {
        let ids: Vec<MessageId> = one.ids().collect();
        if self.suspects.is_full() {
            tracing::warn!(%error, "a message failed alone and is given back: too many are held aside");
            self.attempts.give_back(&ids).await;
            self.surplus.extend(one.deliveries);
            return;
        }
        self.attempts.hold_aside(ids, error).await;
        self.is_unwell = true;
        self.aside_of_window += one.deliveries.len();
        for (delivery, message) in pairs(one) {
            self.suspects.add(delivery, message, error, self.ingest.status.commits());
        }
    }

    /// Makes room for others after messages failed alone. Messages that do not fit are given back after a
    /// pause and come again at the head of the queue, and the window grows beyond them. Suspects leave
    /// half of the window free.
    async fn make_way(&mut self, shutdown: &mut Shutdown) -> Result<(), Lost> {
        let mut has_grown = false;
        if !self.surplus.is_empty() {
            shutdown.unless_requested(tokio::time::sleep(self.backoff.delay())).await;
            self.subscription.give_back(std::mem::take(&mut self.surplus)).await?;
            // Other messages are tried before the store counts as away.
            self.is_unwell = false;
            has_grown = self.window.grow().is_some();
        }
        if has_grown || self.aside_of_window * 2 >= usize::from(self.window.get()) {
            self.open_window().await?;
        }
        Ok(())
    }

    /// Keeps one message and probes the store until it answers; then that message is tried.
    async fn wait_for_store(
        &mut self,
        mut batch: MessageBatch,
        why: &StoreError,
        shutdown: &mut Shutdown,
    ) -> Result<BatchOutcome, Lost> {
        if !self.ingest.status.store_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = %why, "store is away, consuming paused");
        }
        metrics().paused.set(1);
        self.window.shrink();
        let others = batch.deliveries.split_off(1);
        batch.messages = [batch.messages[0].clone()].into();
        self.stop_deliveries(others).await?;
        let since = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.backoff.delay()) => {}
                () = shutdown.requested() => return self.stop(batch).await,
                straggler = self.subscription.next() => {
                    self.subscription.give_back(vec![straggler?]).await?;
                    continue;
                }
            }
            if since.elapsed() > self.ingest.pace.held_max {
                self.subscription.give_back(batch.deliveries).await?;
                return Err(Lost("a message was held for long and is given back".into()));
            }
            self.ingest.in_hand.moved();
            let asked = probe_then_apply(&self.ingest.store, &batch, self.batch_time);
            let outcome = answered(asked, shutdown).await;
            self.ingest.in_hand.moved();
            let Some(outcome) = outcome else { return self.stop(batch).await };
            match outcome {
                Ok(applied) => {
                    tracing::info!(
                        away.seconds = since.elapsed().as_secs(),
                        "store is back, consuming resumes"
                    );
                    self.acknowledge(batch, &applied).await?;
                    self.open_window().await?;
                    return Ok(BatchOutcome::Acknowledged);
                }
                Err(StoreRefusal { error: StoreError::DigestMismatch(id), .. }) => {
                    self.store_is_away(false);
                    self.refuse_reused_id(&mut batch, id).await?;
                    break;
                }
                Err(StoreRefusal { error, probed }) if !probed || since.elapsed() < KEPT_MIN => {
                    tracing::debug!(%error, "store is still away");
                }
                // The store answers but does not take this message: another message may show more.
                Err(StoreRefusal { error, .. }) => {
                    self.hold_aside(batch, &error).await;
                    break;
                }
            }
        }
        self.open_window().await?;
        self.make_way(shutdown).await?;
        Ok(BatchOutcome::Aside)
    }

    /// Announces the commit to the replicas, then acknowledges.
    pub(crate) async fn acknowledge(&mut self, batch: MessageBatch, applied: &Applied) -> Result<(), Lost> {
        self.store_is_away(false);
        self.ingest.status.committed();
        self.is_unwell = false;
        self.backoff.reset();
        self.ingest.announcer.committed(applied, batch.messages.len());
        count(&batch.messages, applied);
        batch_log::log(&self.ingest.ids, &batch.messages, &batch.deliveries, applied);
        let ids: Vec<MessageId> = batch.ids().collect();
        self.subscription.ack(batch.deliveries).await?;
        self.attempts.end(ids).await;
        Ok(())
    }

    /// Settles a suspect that left the suspects.
    pub(crate) async fn end(&mut self, ended: SuspectEnd) -> Result<(), Lost> {
        let id = ended.message();
        self.settle_ended(ended).await?;
        self.attempts.end([id]).await;
        Ok(())
    }

    async fn settle_ended(&mut self, ended: SuspectEnd) -> Result<(), Lost> {
        match ended {
            SuspectEnd::Applied { suspect, applied, given_up } => {
                if given_up {
                    tracing::error!(
                        message.id = %suspect.message.id,
                        items.set_aside = applied.set_aside.len(),
                        error = &*suspect.why,
                        "message given up: it failed alone time and again"
                    );
                    metrics().given_up.inc();
                } else if self.is_unwell {
                    // The suspect needed more time, and nothing else was committed meanwhile.
                    self.grow_batch_time();
                }
                self.acknowledge(MessageBatch::of(suspect.delivery, suspect.message), &applied).await
            }
            SuspectEnd::Rejected(suspect, reused) => {
                let mut batch = MessageBatch::of(suspect.delivery, suspect.message);
                if let Some(id) = reused {
                    return self.refuse_reused_id(&mut batch, id).await;
                }
                let id = batch.messages[0].id;
                tracing::error!(message.id = %id, error = &*suspect.why, "message rejected: it cannot even be given up");
                metrics().rejected.with_label_values(&["not_applied"]).inc();
                for delivery in batch.deliveries {
                    self.subscription.reject(delivery).await?;
                }
                Ok(())
            }
            SuspectEnd::GivenBack(suspect) => {
                self.attempts.give_back(&[suspect.message.id]).await;
                self.subscription.give_back(vec![suspect.delivery]).await
            }
        }
    }

    /// Rejects a message whose id was applied with another body: it is never applied, and never
    /// acknowledged as if it had been. The reader of the dead queue keeps it for an operator, and the
    /// rest goes on.
    async fn refuse_reused_id(&mut self, batch: &mut MessageBatch, id: MessageId) -> Result<(), Lost> {
        let index = batch.messages.iter().position(|message| message.id == id);
        let Some(index) = index else { return Err(Lost("the store named a foreign message".into())) };
        let traces = batch_log::trace_ids(&batch.deliveries[index]);
        tracing::error!(message.id = %id, trace.ids = traces, "message id was applied with another body: rejected");
        metrics().rejected.with_label_values(&["digest_mismatch"]).inc();
        let mut messages = batch.messages.to_vec();
        messages.remove(index);
        batch.messages = messages.into();
        self.subscription.reject(batch.deliveries.remove(index)).await
    }

    async fn stop(&mut self, batch: MessageBatch) -> Result<BatchOutcome, Lost> {
        tracing::warn!("stopped before the end of a transaction, its messages are given back");
        self.stop_deliveries(batch.deliveries).await?;
        Ok(BatchOutcome::Stopping)
    }

    /// Stops deliveries and gives back once everything in hand that is not applied; suspects are kept.
    pub(crate) async fn stop_deliveries(&mut self, mut back: Vec<Delivery>) -> Result<(), Lost> {
        self.subscription.set_window(0).await?;
        back.extend(self.pending.take().map(|held| held.delivery));
        back.extend(self.again.drain(..).chain(self.alone.drain(..)).map(|held| held.delivery));
        back.append(&mut self.surplus);
        while let Some(delivery) = self.subscription.try_next()? {
            back.push(delivery);
        }
        self.subscription.give_back(back).await
    }

    /// Opens the window; messages that are held aside count on top of it.
    pub(crate) async fn open_window(&mut self) -> Result<(), Lost> {
        self.aside_of_window = 0;
        self.subscription.set_window(self.window.get()).await
    }

    pub(crate) fn store_is_away(&self, away: bool) {
        self.ingest.status.store_away.store(away, Ordering::Relaxed);
        metrics().paused.set(i64::from(away));
    }
}

/// Probes the store and then applies, however long the probe takes.
async fn probe_then_apply(
    store: &Arc<dyn Apply>,
    batch: &MessageBatch,
    limit: Duration,
) -> Result<Applied, StoreRefusal> {
    store.probe().await.map_err(|error| StoreRefusal { error, probed: false })?;
    let applied = store.apply_within(batch.messages.clone(), limit).await;
    applied.map_err(|error| StoreRefusal { error, probed: true })
}

fn pairs(batch: MessageBatch) -> Vec<(Delivery, Message)> {
    batch.deliveries.into_iter().zip(batch.messages.iter().cloned()).collect()
}

/// Joins the batch with the rest; the first message stays first.
fn together(one: MessageBatch, rest: Vec<(Delivery, Message)>) -> MessageBatch {
    pairs(one).into_iter().chain(rest).collect()
}
