//! Embedded queue: one SQLite file, for the form of Forebay that needs no server.
//!
//! Publishers and subscribers only touch channels and memory. One [`writer`] task owns the file and turns
//! all waiting commands into one fsynced transaction (group commit), and a [`loader`] for each lane reads
//! ahead of the subscribers. Leases are kept in memory ([`ready_buffer`]), so a restart delivers every
//! message again that was not acknowledged. Only one process may use the directory:
//! [`crate::program::backend`] holds its lock.
mod file;
mod loader;
pub mod pairing;
mod ready_buffer;
mod room;
mod subscription;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc, oneshot};

use self::file::QueueFile;
use self::ready_buffer::{Lanes, ReadyBuffer};
use self::room::{FileLink, QueueRoom, Reservation};
use self::subscription::EmbeddedSubscription;
use self::writer::{Publish, QueueWriter, WriterCommand};
use super::{Lane, Link, PublishError, Publisher, Queue, QueueError, Subscription, Waiting};
use crate::config::queue_limits::QueueLimits;
use crate::model::message::Outgoing;
use crate::runtime::shutdown::{self, Shutdown};

/// Maximum of commands that wait for the writer; beyond them publishers wait, until their deadlines.
const COMMANDS_WAITING_MAX: usize = 256;

pub struct EmbeddedQueue {
    publisher: Arc<EmbeddedPublisher>,
    lanes: Lanes,
    next_owner: AtomicU64,
    writer_over: Shutdown,
    loaders_over: [Shutdown; 2],
}

struct EmbeddedPublisher {
    commands: mpsc::Sender<WriterCommand>,
    room: Arc<QueueRoom>,
    state: Arc<FileLink>,
}

impl EmbeddedQueue {
    /// Opens or creates `queue.db` in `directory`, which must exist. The tasks run on the caller's
    /// runtime, until [`Queue::close`] or until the queue and everything that came from it are dropped.
    pub async fn open(directory: &Path, limits: QueueLimits) -> Result<Arc<Self>, QueueError> {
        let (file, found) = QueueFile::open(directory).await?;
        let reader = Arc::new(Mutex::new(None));
        let room = Arc::new(QueueRoom::new(found.bytes, limits.bytes_max));
        let lanes = Lanes {
            writes: Arc::new(ReadyBuffer::new(found.last_seq)),
            dead: Arc::new(ReadyBuffer::new(found.last_dead)),
        };
        let state = Arc::new(FileLink::default());
        let (commands, waiting) = mpsc::channel(COMMANDS_WAITING_MAX);
        let loaders_over = [Lane::Writes, Lane::Dead].map(|lane| {
            let buffer = Arc::clone(lanes.buffer(lane));
            let loader = loader::run(lane, buffer, Arc::clone(&reader), directory.to_owned());
            shutdown::watched(loader).1
        });
        let writer = QueueWriter {
            file: Some(file),
            directory: directory.to_owned(),
            commands: waiting,
            lanes: lanes.clone(),
            reader,
            room: Arc::clone(&room),
            link: Arc::clone(&state),
            confirm_timeout: limits.confirm_timeout,
            bytes_since_checkpoint: 0,
            disk_low: false,
        };
        let writer_over = shutdown::watched(writer.run()).1;
        let publisher = Arc::new(EmbeddedPublisher { commands, room, state });
        Ok(Arc::new(Self { publisher, lanes, next_owner: AtomicU64::new(0), writer_over, loaders_over }))
    }
}

#[async_trait]
impl Queue for EmbeddedQueue {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn subscribe(&self, lane: Lane, window: u16) -> Result<Box<dyn Subscription>, QueueError> {
        let owner = self.next_owner.fetch_add(1, Ordering::Relaxed);
        let (buffer, commands) = (Arc::clone(self.lanes.buffer(lane)), self.publisher.commands.clone());
        Ok(Box::new(EmbeddedSubscription::new(owner, window, lane, buffer, commands)))
    }

    async fn waiting(&self, lane: Lane) -> Result<Waiting, QueueError> {
        let buffer = self.lanes.buffer(lane);
        if buffer.is_closed() {
            return Err(QueueError::Unavailable(anyhow::anyhow!("the queue is closed")));
        }
        Ok(buffer.waiting())
    }

    fn completions(&self) -> Vec<Shutdown> {
        [self.loaders_over.as_slice(), std::slice::from_ref(&self.writer_over)].concat()
    }

    async fn close(&self) {
        // An error means that the writer has stopped already.
        let _ = self.publisher.commands.send(WriterCommand::Close).await;
        self.writer_over.clone().requested().await;
    }
}

#[async_trait]
impl Publisher for EmbeddedPublisher {
    async fn publish(&self, message: Outgoing, deadline: Instant) -> Result<(), PublishError> {
        if deadline <= Instant::now() {
            return Err(PublishError::DeadlineExceeded);
        }
        let reservation = Reservation::take(&self.room, message.body.len() as u64)?;
        let (reply, answer) = oneshot::channel();
        let publish = Publish { message, deadline, reservation, reply };
        let confirmed = async {
            self.commands.send(WriterCommand::Publish(publish)).await.map_err(|_| closed_to_publish())?;
            answer.await.map_err(|_| closed_to_publish())?
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        tokio::time::timeout_at(deadline, confirmed).await.unwrap_or(Err(PublishError::DeadlineExceeded))
    }

    fn link(&self) -> Link {
        match self.state.get() {
            _ if self.commands.is_closed() => Link::Down,
            Link::Up if self.room.is_full() => Link::Full,
            link => link,
        }
    }
}

fn closed_to_publish() -> PublishError {
    PublishError::Unavailable("the queue is closed".into())
}
