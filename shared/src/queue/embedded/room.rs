//! Room in the embedded queue, in bytes, and the state of its file, as requests see them.
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::queue::{Link, PublishError};

/// Bytes that the queue may hold, and bytes that it holds: waiting messages, those on their way into the
/// file, and rejected ones.
pub(super) struct QueueRoom {
    pub(super) bytes: AtomicU64,
    bytes_max: u64,
    /// Size of the message that was refused last, if none was taken since; else 0.
    refused: AtomicU64,
}

impl QueueRoom {
    pub(super) fn new(bytes: u64, bytes_max: u64) -> Self {
        Self { bytes: AtomicU64::new(bytes), bytes_max, refused: AtomicU64::new(0) }
    }

    /// Tests whether the message refused last would be refused again. A queue that takes smaller messages
    /// is not full, and it needs no publish to show that there is room again.
    pub(super) fn is_full(&self) -> bool {
        let refused = self.refused.load(Ordering::Relaxed);
        refused > 0 && self.bytes.load(Ordering::Relaxed).saturating_add(refused) > self.bytes_max
    }

    /// Records the end of an attempt, for [`is_full`](Self::is_full).
    pub(super) fn note_refused(&self, bytes: u64) {
        // Most often nothing changes, and all publishers share the value.
        if self.refused.load(Ordering::Relaxed) != bytes {
            self.refused.store(bytes, Ordering::Relaxed);
        }
    }
}

/// Bytes that are taken until the message is settled; given back when it never became durable.
pub(super) struct Reservation {
    room: Arc<QueueRoom>,
    bytes: u64,
}

impl Reservation {
    pub(super) fn take(room: &Arc<QueueRoom>, bytes: u64) -> Result<Self, PublishError> {
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= room.bytes_max);
        let taken = room.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        room.note_refused(if taken { 0 } else { bytes.max(1) });
        if taken { Ok(Self { room: Arc::clone(room), bytes }) } else { Err(PublishError::Full) }
    }

    /// Keeps the bytes of a message that is in the file: they stay taken until it is settled.
    pub(super) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// State of the file as the writer reports it, readable by every request.
#[derive(Default)]
pub(super) struct FileLink(AtomicU8);

impl FileLink {
    pub(super) fn get(&self) -> Link {
        match self.0.load(Ordering::Relaxed) {
            0 => Link::Up,
            1 => Link::Blocked,
            2 => Link::Full,
            _ => Link::Down,
        }
    }

    pub(super) fn set(&self, link: Link) {
        let word = match link {
            Link::Up => 0,
            Link::Blocked => 1,
            Link::Full => 2,
            // A file is opened before the first publish, and never has to settle.
            Link::Down | Link::Opening | Link::Settling => 3,
        };
        self.0.store(word, Ordering::Relaxed);
    }
}
