//! Publisher's work on an open session: send, wait for confirms, answer.
//!
//! Only a positive confirm counts as durable, and only in a session without a returned message
//! ([`super::confirms`]). All results that are ready are judged together. When a confirm takes too long
//! the whole session is given up, since single confirms that are dropped leak and a channel that lost one
//! cannot be trusted. So is a session that refuses everything ([`super::refusals`]).
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Event};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::confirms::{PublishResult, SessionConfirms};
use super::properties::properties_of;
use super::publisher::{Job, SWEEP_EVERY, Supervisor};
use crate::amqp::connection::{ConnectionEvents, Session};
use crate::model::message::Outgoing;
use crate::queue::{Link, PublishError};

/// End of a session.
pub(super) enum SessionEnd {
    /// The supervisor is closed and all publishes are answered.
    Finished,
    /// Publishes in flight wait in the supervisor again.
    Lost {
        reason: String,
        /// The session answered something, so that the next attempt need not be late.
        was_useful: bool,
    },
}

struct InFlightPublish {
    job: Job,
    since: Instant,
}

/// Publishing on one session.
pub(super) struct PublishSession<'a> {
    supervisor: &'a mut Supervisor,
    session: Session,
    channel: Arc<Channel>,
    queue: ShortString,
    events: ConnectionEvents,
    confirms: FuturesUnordered<BoxFuture<'static, PublishResult>>,
    session_confirms: SessionConfirms,
    /// Publishes by number, so that the first is the oldest.
    in_flight: BTreeMap<u64, InFlightPublish>,
    bytes_in_flight: usize,
    number: u64,
    is_blocked: bool,
    unblocked_at: Instant,
    was_useful: bool,
}

impl<'a> PublishSession<'a> {
    pub fn new(supervisor: &'a mut Supervisor, session: Session, channel: Channel) -> Self {
        let (events, queue) = (session.events(), supervisor.settings.names().writes);
        supervisor.refusals.session_is_new();
        Self {
            // Checked after the listener is there, so that neither way misses a block.
            is_blocked: session.is_blocked(),
            supervisor,
            session,
            channel: Arc::new(channel),
            queue,
            events,
            confirms: FuturesUnordered::new(),
            session_confirms: SessionConfirms::default(),
            in_flight: BTreeMap::new(),
            bytes_in_flight: 0,
            number: 0,
            unblocked_at: Instant::now(),
            was_useful: false,
        }
    }

    pub async fn run(mut self) -> SessionEnd {
        let ended = self.work().await;
        self.supervisor.link.set(Link::Down);
        match ended {
            Ok(()) => {
                self.session.close().await;
                SessionEnd::Finished
            }
            Err(reason) => {
                self.take_back();
                SessionEnd::Lost { reason, was_useful: self.was_useful }
            }
        }
    }

    /// Works until all is done, or returns the reason why the session is given up.
    async fn work(&mut self) -> Result<(), String> {
        let watchdog = sleep(self.supervisor.settings.limits.confirm_timeout);
        tokio::pin!(watchdog);
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            self.show_link(now);
            if !self.is_blocked && self.supervisor.refusals.session_is_useless(now) {
                return Err("the queue refuses all messages".into());
            }
            self.send();
            if self.supervisor.is_finished() && self.is_unawaited() {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some(result) = self.confirms.next(), if !self.confirms.is_empty() => self.land(result)?,
                event = self.events.next() => self.on_event(event)?,
                () = self.supervisor.take_job() => {}
                () = &mut watchdog => watchdog.as_mut().reset(self.check_age(Instant::now())?.into()),
                _ = sweep.tick(), if self.supervisor.needs_sweeping() => self.supervisor.sweep(),
            }
        }
    }

    /// Sends waiting jobs, up to the maximum in flight. While the broker is blocked lapin would only pile
    /// them up.
    fn send(&mut self) {
        self.supervisor.take_ready_jobs();
        let (count_max, bytes_max) =
            (self.supervisor.settings.in_flight_max, self.supervisor.settings.in_flight_bytes_max);
        let now = Instant::now();
        while !self.is_blocked && self.in_flight.len() < count_max && self.bytes_in_flight < bytes_max {
            let Some(job) = self.supervisor.waiting.pop_front() else { break };
            if job.is_over(now) {
                continue;
            }
            self.number += 1;
            self.confirms.push(self.publish(self.number, &job.message));
            self.bytes_in_flight += job.message.body.len();
            self.in_flight.insert(self.number, InFlightPublish { job, since: now });
        }
    }

    /// Publishes one message. Tag and frames are taken together when the future is first polled, and only
    /// this task polls them, so that a confirm answers for its own message:
    /// `many_publishers_at_once_and_every_confirmed_message_is_there`.
    fn publish(&self, number: u64, message: &Outgoing) -> BoxFuture<'static, PublishResult> {
        let (channel, queue, body) = (Arc::clone(&self.channel), self.queue.clone(), message.body.clone());
        let properties = properties_of(message);
        // Mandatory: a message that no queue takes comes back instead of being confirmed and lost.
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        Box::pin(async move {
            let sent = channel.basic_publish(ShortString::default(), queue, options, &body, properties).await;
            match sent {
                Ok(confirm) => (number, confirm.await),
                Err(error) => (number, Err(error)),
            }
        })
    }

    fn land(&mut self, first: PublishResult) -> Result<(), String> {
        let mut results = vec![first];
        self.drain_ready(&mut results);
        self.answer_callers(results)
    }

    /// Collects all results that are there. A return is attached to a confirm that completed no later
    /// than the one of the returned message, so it is among them, or came before. `FuturesUnordered` may
    /// yield before it has looked at everything, and then wakes itself; hence the waker of its own.
    fn drain_ready(&mut self, results: &mut Vec<PublishResult>) {
        let woken = Arc::new(WakeFlag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        loop {
            match self.confirms.poll_next_unpin(&mut context) {
                Poll::Ready(Some(outcome)) => results.push(outcome),
                Poll::Pending if woken.0.swap(false, Ordering::AcqRel) => {}
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }

    /// Answers the callers. On an error, publishes without an answer are still in flight.
    fn answer_callers(&mut self, results: Vec<PublishResult>) -> Result<(), String> {
        let resolved = self.session_confirms.resolve(results);
        for (number, answer) in resolved.answers {
            self.answer(number, answer);
        }
        resolved.failure.map_or(Ok(()), Err)
    }

    fn answer(&mut self, number: u64, answer: Result<(), PublishError>) {
        let publish = self.in_flight.remove(&number).expect("each publish lands once");
        self.bytes_in_flight -= publish.job.message.body.len();
        self.was_useful = true;
        match answer {
            Ok(()) => self.note_taken(),
            Err(_) => self.supervisor.refusals.refused(Instant::now()),
        }
        publish.job.answer(answer);
    }

    fn note_taken(&mut self) {
        self.supervisor.refusals.taken();
        if std::mem::take(&mut self.supervisor.full_was_logged) {
            tracing::info!("queue takes messages again");
        }
    }

    fn show_link(&mut self, now: Instant) {
        let is_full = self.supervisor.refusals.show_full(now);
        if is_full && !std::mem::replace(&mut self.supervisor.full_was_logged, true) {
            tracing::warn!("queue refuses all messages");
        }
        self.supervisor.link.set(match (self.is_blocked, is_full) {
            (true, _) => Link::Blocked,
            (false, true) => Link::Full,
            (false, false) => Link::Up,
        });
    }

    fn is_unawaited(&self) -> bool {
        let now = Instant::now();
        self.in_flight.values().all(|publish| publish.job.is_over(now))
    }

    fn on_event(&mut self, event: Option<Event>) -> Result<(), String> {
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                tracing::warn!(broker.reason = reason, "broker blocks publishing");
                self.is_blocked = true;
            }
            Some(Event::ConnectionUnblocked) => {
                tracing::info!("broker takes messages again");
                (self.is_blocked, self.unblocked_at) = (false, Instant::now());
            }
            // An error of a channel during the declaration of the topology arrives here, too.
            Some(Event::Error(error)) if !self.session.is_alive(&self.channel) => {
                return Err(error.to_string());
            }
            Some(_) => {}
            None => return Err("the connection has ended".into()),
        }
        Ok(())
    }

    /// Time of the next look, or an error when the oldest confirm is overdue. A blocked broker is not
    /// late: it has said that it takes nothing, and its heartbeats show that it lives.
    fn check_age(&self, now: Instant) -> Result<Instant, String> {
        let timeout = self.supervisor.settings.limits.confirm_timeout;
        let oldest = self.in_flight.values().next().filter(|_| !self.is_blocked);
        let due = oldest.map_or(now, |oldest| oldest.since.max(self.unblocked_at)) + timeout;
        if due <= now { Err(format!("no confirm within {} ms", timeout.as_millis())) } else { Ok(due) }
    }

    /// Answers publishes that were confirmed meanwhile; the rest waits in front of later ones.
    fn take_back(&mut self) {
        let mut results = Vec::new();
        self.drain_ready(&mut results);
        // The session is lost already, whatever the reason was.
        let _ = self.answer_callers(results);
        for publish in std::mem::take(&mut self.in_flight).into_values().rev() {
            self.supervisor.waiting.push_front(publish.job);
        }
    }
}

/// Remembers that it was woken.
struct WakeFlag(AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}
