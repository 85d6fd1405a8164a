//! State that a connection and the requests on it share: its limits, how long it stands still,
//! how far it may be read.
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::admission::memory_budget::MemoryBudget;

/// Bytes that are read behind a request in work, and before the server has decoded what it has.
pub(super) const READ_AHEAD_BYTES: usize = 1 << 10;

/// Limits of every connection of a server.
#[derive(Debug)]
pub struct ConnectionLimits {
    /// How long it may stand still while no request is in work on it.
    pub patience: Duration,
    /// How long the client may take nothing of what is written.
    pub answer_timeout: Duration,
    /// How long a request may still wait once the client has closed its half.
    pub half_closed_wait: Duration,
    /// Room for what is not sent yet, on all connections.
    pub answers: Arc<MemoryBudget>,
}

/// State that one connection and the requests on it share.
#[derive(Debug)]
pub struct ConnectionState {
    pub(super) limits: Arc<ConnectionLimits>,
    pub(super) in_work: Cell<usize>,
    /// When it was opened, something was written, or a request was done.
    pub(super) since: Cell<Instant>,
    /// The client takes nothing of what was written.
    pub(super) is_blocked: Cell<bool>,
    /// A large answer is on its way, and counts with some room in the buffer.
    pub(super) is_sending: Cell<bool>,
    /// The request in work asked whether to send its body.
    pub(super) has_asked: Cell<bool>,
    /// Time at which the client closed its half.
    pub(super) half_closed: Cell<Option<Instant>>,
    pub(super) half_closes: Notify,
    /// Bytes that may be read before a request ends or a body wants more.
    pub(super) read_ahead: Cell<usize>,
    /// The reader that waits for that.
    pub(super) held_reader: RefCell<Option<Waker>>,
}

impl ConnectionState {
    pub(super) fn new(limits: Arc<ConnectionLimits>) -> Rc<Self> {
        Rc::new(Self {
            limits,
            in_work: Cell::new(0),
            since: Cell::new(Instant::now()),
            is_blocked: Cell::new(false),
            is_sending: Cell::new(false),
            has_asked: Cell::new(false),
            half_closed: Cell::new(None),
            half_closes: Notify::new(),
            read_ahead: Cell::new(READ_AHEAD_BYTES),
            held_reader: RefCell::new(None),
        })
    }

    /// A request is in work until what this returns is dropped.
    pub fn begin(self: &Rc<Self>) -> RequestInWork {
        self.in_work.set(self.in_work.get() + 1);
        RequestInWork(self.clone())
    }

    /// The client waits for leave to send a body. A refusal goes out without it.
    pub fn ask(&self) {
        self.has_asked.set(true);
    }

    pub fn answers(&self) -> &Arc<MemoryBudget> {
        &self.limits.answers
    }

    pub fn is_blocked(&self) -> bool {
        self.is_blocked.get()
    }

    pub fn set_sending(&self, is_sending: bool) {
        self.is_sending.set(is_sending);
        self.release_reader();
    }

    /// The body of the request in work needs so much more at least. Nothing is read behind it yet.
    pub fn want(&self, bytes: usize) {
        let wanted = bytes.saturating_add(READ_AHEAD_BYTES);
        self.read_ahead.set(self.read_ahead.get().max(wanted));
        self.release_reader();
    }

    pub(super) fn is_busy(&self) -> bool {
        self.in_work.get() > 0 || self.is_sending.get()
    }

    /// Wakes a reader that may read again.
    fn release_reader(&self) {
        if (!self.is_busy() || self.read_ahead.get() > 0)
            && let Some(reader) = self.held_reader.take()
        {
            reader.wake();
        }
    }

    /// Resolves when a request has waited for long enough after its client closed its half.
    async fn given_up(&self) {
        let since = loop {
            match self.half_closed.get() {
                Some(since) => break since,
                None => self.half_closes.notified().await,
            }
        };
        sleep_until(since + self.limits.half_closed_wait).await;
    }

    /// Until when nothing may happen at least.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let since = if self.in_work.get() > 0 { now } else { self.since.get() };
        since + self.limits.patience
    }
}

/// Waits for an outcome as long as the client may still be there; `None` when it may have gone. A client
/// that has closed both halves looks like one that has closed its own, until something is written.
pub async fn while_there<T>(
    state: Option<&Rc<ConnectionState>>,
    outcome: impl Future<Output = Option<T>>,
) -> Option<T> {
    let Some(state) = state else { return outcome.await };
    tokio::select! {
        biased;
        outcome = outcome => outcome,
        () = state.given_up() => None,
    }
}

/// A request on a connection.
#[derive(Debug)]
pub struct RequestInWork(Rc<ConnectionState>);

impl RequestInWork {
    pub fn state(&self) -> &Rc<ConnectionState> {
        &self.0
    }
}

impl Drop for RequestInWork {
    fn drop(&mut self) {
        self.0.in_work.set(self.0.in_work.get() - 1);
        self.0.since.set(Instant::now());
        self.0.release_reader();
    }
}
