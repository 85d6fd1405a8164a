//! Group commit: many requests → one queue message → one confirm → an answer to each.
//!
//! One batcher per worker thread, without locks. With nothing in flight it flushes as soon as the
//! requests that are ready now were taken; with publishes in flight it flushes when one confirms
//! or a limit is reached. So latency is one confirm when idle, and batches grow with the load by
//! themselves. A request is never split over messages. The batcher must not know HTTP.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::model::id::{IdIssuer, Kind, MessageId};
use shared::model::message::Builder;
use shared::model::trace::TraceParent;
use shared::queue::{Link, PublishError, Publisher};
use shared::runtime::breaker::Breaker;
use shared::runtime::clock;
use tokio::sync::oneshot;

use crate::http::problem::Problem;
use crate::metrics::{WhyFlushed, metrics};
use crate::rfc3339::rfc3339;

/// Limits of one batcher.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub items_max: usize,
    pub bytes_max: usize,
    pub in_flight_max: usize,
    pub waiting_max: usize,
    /// Longest time from the first request of a message to its answer.
    pub accept_timeout: Duration,
    /// Time after which a client repeats a write that came while the queue had just been made.
    pub settle: Duration,
}

/// Position of the items of one request: `first` is the index of the first in the message.
#[derive(Clone, Debug)]
pub struct Placed {
    pub message: MessageId,
    pub first: usize,
    /// Time of acceptance: RFC 3339, UTC.
    pub accepted_at: Rc<str>,
}

/// The items of one request, all of one kind: JSON, separated by commas.
#[derive(Clone, Copy, Debug)]
pub struct BatchEntry<'a> {
    pub kind: Kind,
    pub json: &'a [u8],
    pub items: usize,
    /// The request waits for the outcome of its only item.
    pub is_awaited: bool,
    /// Trace that the request is part of.
    pub trace: Option<TraceParent>,
}

/// Items that have their place in a message which is not known to be durable yet.
#[derive(Debug)]
pub struct Pending {
    pub placed: Placed,
    answer: oneshot::Receiver<ConfirmResult>,
}

impl Pending {
    /// Waits until the message is durable. Dropping the future does not take the items back.
    pub async fn confirmed(self) -> Result<Placed, NotAccepted> {
        self.answer.await.unwrap_or(Err(NotAccepted::Unknown))?;
        Ok(self.placed)
    }
}

/// Reason for which a write is not known to be durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    #[error("too many writes are waiting")]
    Overloaded,
    #[error("writes cannot be made durable at the moment")]
    Unavailable { retry_after: Duration },
    #[error("the queue is full")]
    Full,
    #[error("no confirm in time: whether the write was taken is unknown")]
    Unknown,
}

impl From<NotAccepted> for Problem {
    fn from(error: NotAccepted) -> Self {
        let second = Duration::from_secs(1);
        match error {
            NotAccepted::Overloaded => Self::overloaded(),
            NotAccepted::Full => Self::unavailable("queue_full", "the queue is full", Duration::from_secs(5)),
            NotAccepted::Unavailable { retry_after } => {
                let detail = "the write cannot be made durable at the moment";
                Self::unavailable("queue_unavailable", detail, retry_after)
            }
            NotAccepted::Unknown => {
                let detail = "no confirm in time: whether the write was taken is unknown";
                Self::unavailable("unconfirmed", detail, second)
            }
        }
    }
}

/// Reason to close a message that holds `items` and `bytes` before `more` is added, if there is one.
/// Precondition: an empty message takes any request, however large.
pub fn must_close_before(
    items: usize,
    bytes: usize,
    more: (usize, usize),
    limits: &BatchLimits,
) -> Option<WhyFlushed> {
    if items == 0 {
        None
    } else if items + more.0 > limits.items_max {
        Some(WhyFlushed::Items)
    } else if bytes + more.1 > limits.bytes_max {
        Some(WhyFlushed::Bytes)
    } else {
        None
    }
}

/// Reason to close a message after an addition, if it is full.
pub fn must_close_after(items: usize, bytes: usize, limits: &BatchLimits) -> Option<WhyFlushed> {
    must_close_before(items, bytes, (1, 1), limits)
}

type ConfirmResult = Result<(), NotAccepted>;

/// The batcher of one worker. Cheap to clone; clones are the same batcher.
#[derive(Clone)]
pub struct Batcher(Rc<BatcherCore>);

struct BatcherCore {
    publisher: Arc<dyn Publisher>,
    breaker: Arc<Breaker>,
    limits: BatchLimits,
    state: RefCell<BatcherState>,
}

struct BatcherState {
    issuer: IdIssuer,
    open: Option<RequestBatch>,
    closed: VecDeque<RequestBatch>,
    in_flight: usize,
    /// A flush of the open batch is scheduled, to run once the ready requests were taken.
    flush_scheduled: bool,
}

struct RequestBatch {
    builder: Builder,
    accepted_at: Rc<str>,
    deadline: Instant,
    waiters: Vec<oneshot::Sender<ConfirmResult>>,
    /// Items by kind, in the order of `Kind::ALL`.
    kinds: [u64; Kind::ALL.len()],
}

impl Batcher {
    /// Makes a batcher. `issuer` must be drawn at random for each. Runs on a `LocalSet` or an actix worker.
    pub fn new(
        publisher: Arc<dyn Publisher>,
        breaker: Arc<Breaker>,
        issuer: IdIssuer,
        limits: BatchLimits,
    ) -> Self {
        let state = BatcherState {
            issuer,
            open: None,
            closed: VecDeque::new(),
            in_flight: 0,
            flush_scheduled: false,
        };
        Self(Rc::new(BatcherCore { publisher, breaker, limits, state: RefCell::new(state) }))
    }

    /// Puts the items of one request into a message. Nothing is sent before the caller yields: a caller that
    /// waits for their outcomes registers before that.
    pub fn begin(&self, entry: BatchEntry<'_>) -> Result<Pending, NotAccepted> {
        self.check_link()?;
        let placed = self.place(entry);
        // The pump also runs after a refusal, which may have closed a message.
        self.pump();
        placed
    }

    /// Refuses a write at once while the link cannot take it.
    fn check_link(&self) -> Result<(), NotAccepted> {
        let (link, breaker) = (self.0.publisher.link(), &self.0.breaker);
        if link == Link::Settling {
            return Err(NotAccepted::Unavailable { retry_after: self.0.limits.settle });
        }
        let retry_after = Duration::from_secs(1);
        if link == Link::Blocked || (link == Link::Down && !breaker.is_closed()) {
            return Err(NotAccepted::Unavailable { retry_after });
        }
        let refused = |refused: shared::runtime::breaker::BreakerOpen| NotAccepted::Unavailable {
            retry_after: refused.retry_after,
        };
        breaker.check().map_err(refused)
    }

    fn place(&self, entry: BatchEntry<'_>) -> Result<Pending, NotAccepted> {
        let BatchEntry { kind, json, items, is_awaited, trace } = entry;
        let limits = &self.0.limits;
        let mut state = self.0.state.borrow_mut();
        if let Some(why) = state.open_size().and_then(|(have_items, have_bytes)| {
            must_close_before(have_items, have_bytes, (items, json.len()), limits)
        }) {
            state.close(why);
        }
        if state.open.is_none() && state.closed.len() >= limits.waiting_max {
            return Err(NotAccepted::Overloaded);
        }
        let batch = state.open_batch(limits);
        let first = batch.builder.push(json, items);
        if is_awaited {
            batch.builder.await_last();
        }
        if trace.is_some_and(|trace| !batch.builder.trace(first, items, trace)) {
            metrics().traces_dropped.inc();
        }
        batch.kinds[kind as usize - 1] += items as u64;
        let (sender, answer) = oneshot::channel();
        batch.waiters.push(sender);
        let placed = Placed { message: batch.builder.id(), first, accepted_at: batch.accepted_at.clone() };
        let (items, bytes) = (batch.builder.items(), batch.builder.bytes());
        if let Some(why) = must_close_after(items, bytes, limits) {
            state.close(why);
        }
        Ok(Pending { placed, answer })
    }

    /// Publishes closed messages as far as allowed, and schedules a flush when idle.
    fn pump(&self) {
        let mut state = self.0.state.borrow_mut();
        while state.in_flight < self.0.limits.in_flight_max {
            let Some(batch) = state.closed.pop_front() else { break };
            state.in_flight += 1;
            actix_web::rt::spawn(self.clone().publish(batch));
        }
        if state.in_flight == 0 && state.open.is_some() && !state.flush_scheduled {
            state.flush_scheduled = true;
            actix_web::rt::spawn(self.clone().flush_when_taken());
        }
    }

    /// Flushes after one turn of the event loop, so that every request that is ready now joins.
    async fn flush_when_taken(self) {
        tokio::task::yield_now().await;
        {
            let mut state = self.0.state.borrow_mut();
            state.flush_scheduled = false;
            state.close(WhyFlushed::Idle);
        }
        self.pump();
    }

    async fn publish(self, batch: RequestBatch) {
        let RequestBatch { builder, deadline, waiters, kinds, .. } = batch;
        let (started, fair_share) = (Instant::now(), self.0.limits.accept_timeout / 2);
        let message = builder.finish();
        let answer = match self.0.breaker.permit(started) {
            // The message waited too long behind others. Nothing was sent, and the link is not to blame.
            _ if deadline <= started => Err(NotAccepted::Overloaded),
            Err(refused) => Err(NotAccepted::Unavailable { retry_after: refused.retry_after }),
            Ok(permit) => {
                let outcome = self.0.publisher.publish(message, deadline).await;
                match &outcome {
                    // A full queue answers: the link is fine.
                    Ok(()) | Err(PublishError::Full) => permit.success(),
                    // The message spent most of its time behind others.
                    Err(PublishError::DeadlineExceeded) if deadline - started < fair_share => drop(permit),
                    Err(error @ (PublishError::DeadlineExceeded | PublishError::Unavailable(_))) => {
                        permit.failure(Instant::now(), error);
                    }
                }
                outcome.map_err(not_accepted)
            }
        };
        if answer.is_ok() {
            for (kind, items) in Kind::ALL.iter().zip(kinds).filter(|(_, items)| *items > 0) {
                metrics().accepted.with_label_values(&[kind.name()]).inc_by(items);
            }
            metrics().confirm_seconds.observe(started.elapsed().as_secs_f64());
        }
        for waiter in waiters {
            // An error means that the client is gone; its write counts all the same.
            let _ = waiter.send(answer.clone());
        }
        {
            let mut state = self.0.state.borrow_mut();
            state.in_flight -= 1;
            if state.closed.is_empty() && !state.flush_scheduled {
                state.close(WhyFlushed::Confirmed);
            }
        }
        self.pump();
    }
}

fn not_accepted(error: PublishError) -> NotAccepted {
    match error {
        PublishError::DeadlineExceeded => NotAccepted::Unknown,
        PublishError::Full => NotAccepted::Full,
        PublishError::Unavailable(why) => {
            tracing::debug!(error = &*why, "publish failed");
            NotAccepted::Unavailable { retry_after: Duration::from_secs(1) }
        }
    }
}

impl BatcherState {
    fn open_size(&self) -> Option<(usize, usize)> {
        self.open.as_ref().map(|batch| (batch.builder.items(), batch.builder.bytes()))
    }

    fn open_batch(&mut self, limits: &BatchLimits) -> &mut RequestBatch {
        let issuer = &mut self.issuer;
        self.open.get_or_insert_with(|| {
            let now_ms = clock::now_ms();
            RequestBatch {
                builder: Builder::new(issuer.next(now_ms), now_ms),
                accepted_at: rfc3339(now_ms).into(),
                deadline: Instant::now() + limits.accept_timeout,
                waiters: Vec::new(),
                kinds: [0; Kind::ALL.len()],
            }
        })
    }

    fn close(&mut self, why: WhyFlushed) {
        if let Some(batch) = self.open.take() {
            metrics().batches.with_label_values(&[why.name()]).inc();
            metrics().batch_items.observe(batch.builder.items() as f64);
            self.closed.push_back(batch);
        }
    }
}

#[cfg(test)]
mod tests;
