//! Messages of the embedded queue in memory: those ready for delivery, and the leases of those delivered.
//!
//! Pure state behind one lock that is never held across an await. Sequence numbers are dense and grow.
//! `loaded` divides the file: all messages up to it are ready, leased, returned or settled; all after it
//! are only in the file, from which the loader reads them. While `loaded` keeps up with `committed` a
//! fresh message goes to the subscriber from memory and is never read back.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::queue::{Lane, Lost, PREFETCH_MAX, Waiting};

/// Bytes of bodies kept ready ahead of the subscribers; more stays in the file only.
const READY_BYTES_MAX: usize = 8 << 20;

/// Level below which the loader reads on.
const READY_BYTES_LOW: usize = READY_BYTES_MAX / 2;

/// Ready buffers, one for each lane.
#[derive(Clone)]
pub(super) struct Lanes {
    pub writes: Arc<ReadyBuffer>,
    pub dead: Arc<ReadyBuffer>,
}

impl Lanes {
    pub fn buffer(&self, lane: Lane) -> &Arc<ReadyBuffer> {
        match lane {
            Lane::Writes => &self.writes,
            Lane::Dead => &self.dead,
        }
    }
}

pub(super) struct ReadyBuffer {
    inner: Mutex<BufferState>,
    /// Wakes subscribers: a message is ready, or the queue was closed.
    arrived: Notify,
    /// Wakes the loader.
    wanted: Notify,
}

#[derive(Default)]
struct BufferState {
    ready: VecDeque<(u64, Bytes)>,
    ready_bytes: usize,
    loaded: u64,
    committed: u64,
    /// Number of the last message that was in the file when it was opened.
    found: u64,
    /// Count of those that an earlier process may have delivered: it held no more than the largest
    /// window, and they come first.
    found_in_hand: usize,
    /// Messages given back or left behind, delivered before all others.
    returned: BTreeMap<u64, Bytes>,
    leases: HashMap<u64, BufferLease>,
    /// Traces of the messages in memory that have some.
    traces: HashMap<u64, Arc<str>>,
    /// Leases by owner.
    counts: HashMap<u64, usize>,
    closed: bool,
}

struct BufferLease {
    owner: u64,
    body: Bytes,
}

/// Message in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredMessage {
    pub seq: u64,
    pub body: Bytes,
    pub traces: Option<Arc<str>>,
}

/// Message leased to a subscriber.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeasedMessage {
    pub seq: u64,
    pub body: Bytes,
    pub traces: Option<Arc<str>>,
    pub redelivered: bool,
}

/// Part of the file: after `after`, up to and including `up_to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub after: u64,
    pub up_to: u64,
}

impl ReadyBuffer {
    /// Builds the buffer of a file whose last message is `last_seq`.
    pub(super) fn new(last_seq: u64) -> Self {
        let inner = BufferState {
            committed: last_seq,
            found: last_seq,
            found_in_hand: PREFETCH_MAX.into(),
            ..BufferState::default()
        };
        Self { inner: Mutex::new(inner), arrived: Notify::new(), wanted: Notify::new() }
    }

    /// Number of the last message in the file.
    pub(super) fn committed(&self) -> u64 {
        self.lock().committed
    }

    /// Adds messages that were committed, in order, the first right after [`Self::committed`].
    pub(super) fn add(&self, messages: impl IntoIterator<Item = StoredMessage>) {
        let mut inner = self.lock();
        for message in messages {
            debug_assert_eq!(message.seq, inner.committed + 1);
            inner.committed = message.seq;
            let fits = inner.ready.is_empty() || inner.ready_bytes + message.body.len() <= READY_BYTES_MAX;
            if inner.loaded + 1 == message.seq && fits {
                inner.put_ready(message);
            }
        }
        self.wake(&inner);
    }

    /// Records messages up to `last_seq` that are in the file only: their commit failed, or they came
    /// there from the other lane.
    pub(super) fn add_unseen(&self, last_seq: u64) {
        let mut inner = self.lock();
        inner.committed = inner.committed.max(last_seq);
        self.wake(&inner);
    }

    /// Depth of the lane; approximate, because numbers may be left out.
    pub(super) fn waiting(&self) -> Waiting {
        let inner = self.lock();
        let in_memory = (inner.ready.len() + inner.returned.len()) as u64;
        let messages = in_memory + inner.committed.saturating_sub(inner.loaded);
        Waiting { messages, more_may_come: !inner.leases.is_empty(), readers: None }
    }

    /// Range that the loader should read next, if any.
    pub(super) fn missing(&self) -> Option<Range> {
        let inner = self.lock();
        inner.is_missing().then_some(Range { after: inner.loaded, up_to: inner.committed })
    }

    /// Adds messages that the loader read of `range`; `whole` means that nothing of it is left.
    pub(super) fn load(&self, range: Range, messages: Vec<StoredMessage>, whole: bool) {
        let mut inner = self.lock();
        debug_assert_eq!(range.after, inner.loaded);
        for message in messages {
            inner.put_ready(message);
        }
        if whole {
            inner.loaded = range.up_to;
        }
        self.wake(&inner);
    }

    /// Leases the next message to `owner`, which may hold `window` at once.
    pub(super) fn take(&self, owner: u64, window: usize) -> Result<Option<LeasedMessage>, Lost> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(Lost("the queue is closed".into()));
        }
        if inner.counts.get(&owner).is_some_and(|count| *count >= window) || window == 0 {
            return Ok(None);
        }
        let Some(taken) = inner.pop() else { return Ok(None) };
        inner.leases.insert(taken.seq, BufferLease { owner, body: taken.body.clone() });
        *inner.counts.entry(owner).or_default() += 1;
        if inner.is_missing() {
            self.wanted.notify_one();
        }
        Ok(Some(taken))
    }

    /// Removes messages that are gone from the file; returns their bytes.
    pub(super) fn settle(&self, seqs: &[u64]) -> u64 {
        let mut inner = self.lock();
        let mut bytes = 0;
        for seq in seqs {
            let body = inner.end_lease(*seq).or_else(|| inner.returned.remove(seq));
            inner.traces.remove(seq);
            bytes += body.map_or(0, |body| body.len() as u64);
        }
        drop(inner);
        self.arrived.notify_waiters();
        bytes
    }

    /// Takes messages back, to be delivered again.
    pub(super) fn give_back(&self, seqs: &[u64]) {
        let mut inner = self.lock();
        for seq in seqs {
            if let Some(body) = inner.end_lease(*seq) {
                inner.returned.insert(*seq, body);
            }
        }
        drop(inner);
        self.arrived.notify_waiters();
    }

    /// Takes back everything that `owner` holds.
    pub(super) fn release(&self, owner: u64) {
        self.give_back(&self.held_by(owner));
    }

    /// Messages that a subscriber holds.
    pub(super) fn held_by(&self, owner: u64) -> Vec<u64> {
        let held = |(seq, lease): (&u64, &BufferLease)| (lease.owner == owner).then_some(*seq);
        self.lock().leases.iter().filter_map(held).collect()
    }

    /// Closes the buffer: from now on subscribers get an error.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_waiters();
        self.wanted.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Resolves when there may be more to take than at the call. Enable it, then look.
    pub(super) fn arrived(&self) -> Notified<'_> {
        self.arrived.notified()
    }

    /// Resolves when there may be more to load.
    pub(super) fn wanted(&self) -> Notified<'_> {
        self.wanted.notified()
    }

    fn wake(&self, inner: &MutexGuard<'_, BufferState>) {
        if !inner.ready.is_empty() {
            self.arrived.notify_waiters();
        }
        if inner.is_missing() {
            self.wanted.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BufferState> {
        self.inner.lock().expect("no code panics while it holds this lock")
    }
}

impl BufferState {
    fn is_missing(&self) -> bool {
        self.loaded < self.committed && self.ready_bytes < READY_BYTES_LOW
    }

    fn put_ready(&mut self, StoredMessage { seq, body, traces }: StoredMessage) {
        self.loaded = seq;
        self.ready_bytes += body.len();
        self.ready.push_back((seq, body));
        if let Some(traces) = traces {
            self.traces.insert(seq, traces);
        }
    }

    fn pop(&mut self) -> Option<LeasedMessage> {
        if let Some((seq, body)) = self.returned.pop_first() {
            return Some(self.taken(seq, body, true));
        }
        let (seq, body) = self.ready.pop_front()?;
        self.ready_bytes -= body.len();
        let may_be_known = seq <= self.found && self.found_in_hand > 0;
        self.found_in_hand -= usize::from(may_be_known);
        Some(self.taken(seq, body, may_be_known))
    }

    fn taken(&self, seq: u64, body: Bytes, redelivered: bool) -> LeasedMessage {
        LeasedMessage { seq, body, traces: self.traces.get(&seq).cloned(), redelivered }
    }

    fn end_lease(&mut self, seq: u64) -> Option<Bytes> {
        let BufferLease { owner, body } = self.leases.remove(&seq)?;
        if let Some(count) = self.counts.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&owner);
            }
        }
        Some(body)
    }
}
